"""A store and a mount of it, started and ended with the commands a user has."""

import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mailfs.ids import Keyword
from mailfs.store.prepare import prepare_message
from mailfs.store.store import Store
from tests.fakes import make_message
from tests.mount.accounts import Account
from tests.mount.waiting import wait_until


@dataclass
class Mailfs:
    """One store in `folder`, and its mount."""

    account: Account
    folder: Path
    store: Path = field(init=False)
    mountpoint: Path = field(init=False)
    foreground: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    log_start: int = 0
    # Set where the store has other mounts too.
    served_by: int | None = None

    def __post_init__(self) -> None:
        self.store = self.folder / "store"
        self.mountpoint = self.folder / "mail"

    # --- the store, while nothing is mounted

    def create(self, messages: int = 0, keywords: tuple[str, ...] = ("inbox",)) -> None:
        """Make the store, with some messages that are in cur/ and unread."""
        with Store.create(self.store) as store:
            add_messages(store, messages, keywords)
        self.account.own(self.store)

    # --- commands

    def command(
        self, *words: str | Path, input: str | None = None
    ) -> "subprocess.CompletedProcess[str]":
        return self.account.execute(self.account.mailfs_arguments(self.store, *words), input)

    def say(self, *words: str | Path) -> str:
        """What a command says that must succeed."""
        done = self.command(*words)
        assert done.returncode == 0, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def count(self, query: str) -> int:
        return int(self.say("count", query))

    def keywords(self) -> dict[str, set[str]]:
        """Message-ID -> keywords, of all messages, as the command says them."""
        rows = json.loads(self.say("search", "--output=json", "*"))
        return {row["message_id"]: set(row["keywords"]) for row in rows}

    # --- the mount

    def mount(self, *flags: str) -> None:
        self.log_start = self.log.stat().st_size if self.log.exists() else 0
        self.say("mount", *flags, self.mountpoint)

    def mount_in_foreground(self, *flags: str) -> "subprocess.Popen[bytes]":
        """`mount -f`; its log goes where a mount in the background writes it."""
        with open(self.log, "ab", opener=for_owner) as log:
            process = subprocess.Popen(
                self.account.mailfs_arguments(self.store, "mount", "-f", *flags, self.mountpoint),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=self.account.environment(),
                cwd=self.account.folder(),
            )
        self.foreground.append(process)
        wait_until(lambda: "mounted at" in self.log_text(), "the mount in the foreground")
        return process

    def umount(self, *flags: str) -> None:
        self.say("umount", *flags, self.mountpoint)

    @property
    def log(self) -> Path:
        return self.store / "mount.log"

    def log_text(self) -> str:
        """What the daemon wrote since the mount was begun."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(self.log_start)
            return file.read().decode(errors="replace")

    def pids(self) -> list[int]:
        """The processes that say they serve a mount of this store."""
        records = self.store / "mounts"
        return [int(path.name) for path in records.iterdir()] if records.is_dir() else []

    @property
    def pid(self) -> int:
        """The daemon of this mount."""
        if self.served_by is not None:
            return self.served_by
        (pid,) = self.pids()
        return pid

    def is_mounted(self) -> bool:
        return any(
            line.split()[4] == str(self.mountpoint)
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
        )

    def status(self) -> dict[str, object]:
        """What the daemon says of itself."""
        before = len(self.log_text())
        os.kill(self.pid, signal.SIGUSR2)

        def told() -> list[str]:
            return re.findall(r"status (\{.*\})\n", self.log_text()[before:])

        found = json.loads(wait_until(told, "the daemon's status")[-1])
        assert isinstance(found, dict)
        return found

    def requests(self) -> Counter[str]:
        found = self.status()["requests"]
        assert isinstance(found, dict)
        return Counter(found)

    @contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """Requests made in the block; complete behind it. A release may come after its close(2) returned."""
        before = self.requests()
        made: Counter[str] = Counter()
        yield made

        def settled() -> bool:
            made.clear()
            made.update(self.requests() - before)
            return made["open"] == made["release"] and made["opendir"] == made["releasedir"]

        wait_until(settled, "a release for every open")

    # --- the end

    def end(self) -> None:
        """Take everything away that is still there; whoever is killed here is one we started."""
        pids = self.pids()
        if self.is_mounted():
            self.account.run("fusermount3", "-u", "-z", "--", self.mountpoint)
        for process in self.foreground:
            process.kill()
            process.wait(10)
        for pid in pids:
            try:
                wait_until(lambda pid=pid: not is_alive(pid), "the daemon's end")  # type: ignore[misc]  # the loop's pid of now
            except AssertionError:
                os.kill(pid, signal.SIGKILL)
                raise

    # --- the tree

    def path(self, *parts: str) -> Path:
        return self.mountpoint.joinpath(*parts)

    def names(self, view: str, part: str = "cur") -> list[str]:
        return sorted(os.listdir(self.path(view, part)))

    def only(self, view: str, part: str = "cur") -> Path:
        """The only message of a folder."""
        (name,) = self.names(view, part)
        return self.path(view, part, name)


def for_owner(path: str, flags: int) -> int:
    """How files of a store are made, whatever the umask: for open()."""
    return os.open(path, flags, 0o600)


def add_messages(
    store: Store, count: int, keywords: tuple[str, ...] = ("inbox",), flags: int = 0, first: int = 1
) -> None:
    """Generated messages `<first@example.org>` and on."""
    words = tuple(map(Keyword, keywords))
    with store.writer.transaction("test", durable=True) as transaction:
        for number in range(first, first + count):
            raw = make_message(number, subject=f"message {number}", body="text\n" * (number % 40))
            transaction.add(prepare_message(raw, flags, words, 1_600_000_000 * 10**9 + number))


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in (b"Z", b"X")
