"""What is synchronised in test_sync.py, and the programs that do it.

mbsync keeps UIDs in names (`,U=12`) and in .uidvalidity, or with AltMap in the database .isyncuidmap.db; its own state
is in the folder (SyncState *) or elsewhere. OfflineIMAP keeps UIDs in names (`,U=12,FMD5=...`) and its state elsewhere.
"""

import hashlib
import imaplib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.clients.dovecot import Dovecot
from tests.clients.imap import Imap, Uid
from tests.clients.sides import Side
from tests.fakes import make_message

# A mount has searches too: only folders of one's own are synchronised.
FOLDERS = ("archive", "lists/python", "trips")
LETTERS = {
    "\\Answered": "R",
    "\\Draft": "D",
    "\\Flagged": "F",
    "\\Seen": "S",
    "$Forwarded": "P",
}
# mbsync marks what it copies with a header of its own, to find it again after a crash.
_TUID = re.compile(rb"^X-TUID: [^\n]*\n", re.MULTILINE)
_MESSAGE_ID = re.compile(rb"^Message-ID: <(\d+)@example\.org>$", re.MULTILINE)


class Held(NamedTuple):
    """A message as it is on both sides of a synchronisation."""

    number: int
    letters: str
    digest: str


def held(raw: bytes, letters: str) -> Held:
    raw = _TUID.sub(b"", raw.replace(b"\r\n", b"\n"))
    number = _MESSAGE_ID.search(raw)
    assert number is not None, raw
    return Held(int(number[1]), letters, hashlib.sha256(raw).hexdigest())


@dataclass(frozen=True)
class Pair:
    """A folder of Maildirs, an IMAP account, and a folder for what the synchroniser needs."""

    side: Side
    dovecot: Dovecot
    folder: Path

    # --- the far side, by IMAP

    @contextmanager
    def far(self, folder: str = "INBOX") -> Iterator[Imap]:
        """A session with a folder open."""
        imap = Imap(imaplib.IMAP4_stream(self.dovecot.tunnel()))
        try:
            imap.open(folder)
            yield imap
        finally:
            imap.close()

    def append(self, number: int, flags: str = "", folder: str = "INBOX") -> None:
        with self.far() as imap:
            imap.append(message(number).replace(b"\n", b"\r\n"), folder, flags)

    def mark(self, number: int, change: str, flags: str) -> None:
        with self.far() as imap:
            imap.store(uids_of(imap, number), change, flags)

    def expunge(self, number: int, folder: str = "INBOX") -> None:
        with self.far(folder) as imap:
            imap.delete(uids_of(imap, number))

    def far_holds(self, folder: str = "INBOX") -> "Counter[Held]":
        with self.far(folder) as imap:
            if not imap.search("ALL"):
                return Counter()
            flags = imap.flags()
            return Counter(held(raw, letters_of(flags[uid])) for uid, raw in imap.bodies().items())

    # --- the near side, as programs do it that read mail

    def deliver(self, number: int, letters: str | None = None, folder: str = "inbox") -> None:
        suffix = "" if letters is None else f":2,{letters}"
        self.side.deliver(message(number), f"{number}.host{suffix}", folder)

    def paths(self, folder: str = "inbox") -> list[Path]:
        return [
            path
            for part in ("cur", "new")
            for path in (self.side.root / folder / part).iterdir()
            if not path.name.startswith(".")
        ]

    def path(self, number: int, folder: str = "inbox") -> Path:
        (found,) = (p for p in self.paths(folder) if held(p.read_bytes(), "").number == number)
        return found

    def flag(self, number: int, letters: str) -> None:
        """Set the flags of a message, which is then in cur/."""
        path = self.path(number)
        base = path.name.partition(":")[0]
        path.rename(path.parents[1] / "cur" / f"{base}:2,{letters}")

    def near_holds(self, folder: str = "inbox") -> "Counter[Held]":
        return Counter(
            held(path.read_bytes(), "".join(sorted(path.name.partition(":2,")[2])))
            for path in self.paths(folder)
        )

    def near_parts(self, folder: str = "inbox") -> dict[int, str]:
        """In which part of a folder each message is, cur or new."""
        return {held(path.read_bytes(), "").number: path.parent.name for path in self.paths(folder)}

    def near_names(self, folder: str = "inbox") -> list[str]:
        return sorted(f"{path.parent.name}/{path.name}" for path in self.paths(folder))

    # --- both

    def assert_same(self, *folders: str) -> None:
        for folder in folders:
            assert self.near_holds(folder) == self.far_holds(folder), folder

    def again(self) -> None:
        """What is mounted is unmounted and mounted again."""
        if self.side.mailfs is not None:
            self.side.mailfs.umount()
            self.side.mailfs.mount()


Sync = Callable[[Pair], None]


def message(number: int) -> bytes:
    return make_message(number, subject=f"message {number}", body="text\n" * (number % 7))


def uids_of(imap: Imap, number: int) -> list[Uid]:
    found = imap.search("HEADER", "Message-ID", f"<{number}@example.org>")
    assert found, number
    return found


def letters_of(flags: str) -> str:
    return "".join(sorted(LETTERS[flag] for flag in flags.split()))


def letters_by_number(holds: "Counter[Held]") -> dict[int, str]:
    """The flags of every message; there must be no two of one."""
    assert all(count == 1 for count in holds.values()), holds
    found = {each.number: each.letters for each in holds}
    assert len(found) == len(holds), holds
    return found


# --- the programs


def mbsync_configuration(pair: Pair, *, alternative: bool, inside: bool) -> Path:
    """`alternative` is mbsync's other scheme for UIDs; `inside`: its state is in the folder it belongs to."""
    state = "*" if inside else f"{pair.folder}/state-"
    path = pair.folder / "mbsyncrc"
    path.write_text(
        f"""\
IMAPStore far
Tunnel "{pair.dovecot.tunnel()}"

MaildirStore near
Path {pair.side.root}/
Inbox {pair.side.root}/inbox
SubFolders Verbatim
AltMap {"yes" if alternative else "no"}

Channel all
Far :far:
Near :near:
Patterns INBOX {" ".join(FOLDERS)}
Create Both
Expunge Both
SyncState {state}
"""
    )
    return path


def run_mbsync(pair: Pair, *, alternative: bool = False, inside: bool = True) -> None:
    configuration = mbsync_configuration(pair, alternative=alternative, inside=inside)
    done = pair.side.account.run("mbsync", "-c", configuration, "-a")
    assert done.returncode == 0, done.stderr
    assert "rror:" not in done.stderr


def run_offlineimap(pair: Pair) -> None:
    configuration = pair.folder / "offlineimaprc"
    names = repr(("INBOX", *FOLDERS))
    configuration.write_text(
        f"""\
[general]
accounts = both
metadata = {pair.folder}/metadata

[Account both]
localrepository = near
remoterepository = far

[Repository near]
type = Maildir
localfolders = {pair.side.root}
sep = /
nametrans = lambda name: 'INBOX' if name == 'inbox' else name
folderfilter = lambda name: name in {names} or name == 'inbox'

[Repository far]
type = IMAP
preauthtunnel = {pair.dovecot.tunnel()}
nametrans = lambda name: 'inbox' if name == 'INBOX' else name
folderfilter = lambda name: name in {names}
"""
    )
    done = pair.side.account.run("offlineimap", "-c", configuration, "-o", "-u", "basic")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ERROR" not in done.stdout + done.stderr
