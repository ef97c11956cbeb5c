"""aerc with its maildir backend: opening, reading, flags, moves, copies, deleting, sending, and what others do meanwhile.

On open aerc renames all of new/ to cur/, and one rename that fails fails the whole folder. It delivers by O_EXCL in tmp/
and rename, finds the file of a message by its base name, and hears of changes by inotify alone.
"""

import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.sides import Mail, Side
from tests.fakes import make_message
from tests.mount.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(shutil.which("aerc") is None, reason="aerc is not installed"),
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]

Shown = list[str]  # the message list at the end of the steps

DEADLINE_S = 20.0
LINES = 40
EMPTY = "(no messages)"
STORM_MESSAGES = 400
# Sent with the From of the account; the command that sends takes the message and says nothing.
ACCOUNTS = """\
[mail]
source = maildir://{root}
default = inbox
archive = archive
postpone = drafts
copy-to = sent
from = Ann <ann@example.org>
outgoing = {home}/send
"""
SETTINGS = """\
[ui]
index-format = %Z %s
sidebar-width = 0
sort = subject
dirlist-delay = 0s
new-message-bell = false
[compose]
editor = true
[filters]
text/plain = cat
"""
# Without an own key for `:` in the viewer and the composer it would go to the program shown there.
BINDINGS = """\
[messages]
[view]
[compose]
$ex = :
[compose::review]
$ex = :
"""


@dataclass(frozen=True)
class Aerc:
    """A running aerc in a tmux server of its own, which listens at `socket`."""

    side: Side
    socket: Path

    def tmux(self, *words: str | Path) -> str:
        return self.side.account.output("tmux", "-S", self.socket, *words)

    def type(self, text: str) -> None:
        self.tmux("send-keys", "-l", "--", text)

    def command(self, text: str) -> None:
        """Type a command such as `:flag`."""
        self.type(text)
        self.tmux("send-keys", "Enter")

    def screen(self) -> str:
        return self.tmux("capture-pane", "-p")

    def rows(self) -> list[str]:
        """The message list: flags and subject of each."""
        lines = self.screen().splitlines()[1 : LINES - 1]
        return [" ".join(line.split()) for line in lines if line.strip()]

    def subjects(self) -> list[str]:
        return [row.rpartition("about ")[2] for row in self.rows()]

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        try:
            wait_until(condition, what, DEADLINE_S)
        except AssertionError as error:
            raise AssertionError(f"{error}; aerc shows:\n{self.screen()}") from error

    def wait_for_subjects(self, *subjects: str) -> None:
        self.wait_for(lambda: self.subjects() == list(subjects), f"the list {subjects}")

    def select(self, subject: str) -> None:
        self.command(f":select {self.subjects().index(subject)}")

    def change_folder(self, folder: str, *subjects: str) -> None:
        self.command(f":cf {folder}")
        self.wait_for_subjects(*subjects)

    def wait_for_mails(self, folder: str, count: int) -> None:
        """By names alone: aerc gives a copy its flags in a second rename, so a name read here may be gone."""
        parts = [self.side.root / folder / part for part in ("cur", "new")]
        self.wait_for(
            lambda: sum(len(os.listdir(part)) for part in parts) == count,
            f"{count} messages in {folder}",
        )

    def wait_for_letters(self, folder: str, base: str, letters: str) -> None:
        """Until a message is in cur/ with these flags."""
        path = self.side.root / folder / "cur" / f"{base}:2,{letters}"
        self.wait_for(path.exists, f"{path.name} in {folder}/cur")


def configure(side: Side) -> None:
    folder = side.account.home / ".config" / "aerc"
    folder.mkdir(parents=True, exist_ok=True)
    send = side.account.home / "send"
    send.write_text("#!/bin/sh\ncat > /dev/null\n")
    send.chmod(0o700)
    files = {
        "aerc.conf": SETTINGS,
        "accounts.conf": ACCOUNTS.format(root=side.root, home=side.account.home),
        "binds.conf": BINDINGS,
    }
    for name, text in files.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)  # aerc reads no accounts.conf that others may read
    side.account.own(side.account.home)


@contextmanager
def running(side: Side) -> Iterator[Aerc]:
    """aerc with the Maildirs of one side; ended behind the block."""
    configure(side)
    # A socket's path must be short (unix(7)); pytest's folders may be long.
    with tempfile.TemporaryDirectory(prefix="mailfs-aerc-") as folder:
        side.account.own(Path(folder))
        aerc = Aerc(side, Path(folder) / "tmux")
        size = ("-x", "80", "-y", str(LINES))
        aerc.tmux("-f", "/dev/null", "new-session", "-d", *size, "aerc")
        try:
            aerc.wait_for(lambda: "Connected" in aerc.screen(), "aerc's start")
            yield aerc
            aerc.command(":quit -f")
            wait_until(lambda: not has_session(aerc), "aerc's end", DEADLINE_S)
        finally:
            if has_session(aerc):
                aerc.tmux("kill-server")


def has_session(aerc: Aerc) -> bool:
    words = aerc.side.account.arguments("tmux", "-S", aerc.socket, "has-session")
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def deliver(side: Side, number: int, subject: str, letters: str | None = None) -> None:
    """A message in new/, or with its letters in cur/. Its base name is `NUMBER.host`."""
    suffix = "" if letters is None else f":2,{letters}"
    side.deliver(make_message(number, subject=f"about {subject}"), f"{number}.host{suffix}")


def assert_same(
    sides: tuple[Side, Side], steps: Callable[[Side], Shown], *folders: str
) -> "Counter[Mail]":
    """Do the steps on both sides: the same is shown and left in the folders. What is left, of all of them."""
    plain, mounted = sides
    assert steps(plain) == steps(mounted)
    left: Counter[Mail] = Counter()
    for folder in folders:
        assert plain.mails(folder) == mounted.mails(folder), folder
        left += mounted.mails(folder)
    return left


def open_folder(side: Side) -> Shown:
    for number, subject in enumerate(("apples", "bread", "cheese"), 1):
        deliver(side, number, subject)
    deliver(side, 4, "dates", "S")
    deliver(side, 5, "eggs", "FRS")
    with running(side) as aerc:
        aerc.wait_for_subjects("apples", "bread", "cheese", "dates", "eggs")
        return aerc.rows()


def test_aerc_opens_a_folder_and_everything_in_new_is_in_cur(sides: tuple[Side, Side]) -> None:
    left = assert_same(sides, open_folder, "inbox")
    assert left.total() == 5
    assert {mail.part for mail in left} == {"cur"}


def open_folder_after_a_storm(side: Side) -> Shown:
    for number in range(STORM_MESSAGES):
        deliver(side, number, f"storm {number:03}")
    with running(side) as aerc:
        aerc.wait_for_subjects(*(f"storm {number:03}" for number in range(LINES - 2)))
        return aerc.subjects()


def test_aerc_opens_a_folder_with_hundreds_of_new_messages(sides: tuple[Side, Side]) -> None:
    left = assert_same(sides, open_folder_after_a_storm, "inbox")
    assert left.total() == STORM_MESSAGES
    assert {mail.part for mail in left} == {"cur"}


def read_and_flag(side: Side) -> Shown:
    for number, subject in enumerate(("apples", "bread", "cheese"), 1):
        deliver(side, number, subject)
    deliver(side, 4, "dates", "FS")
    with running(side) as aerc:
        aerc.wait_for_subjects("apples", "bread", "cheese", "dates")
        aerc.select("apples")
        aerc.command(":view")
        aerc.wait_for_letters("inbox", "1.host", "S")
        aerc.wait_for(lambda: "some text" in aerc.screen(), "the message")
        aerc.command(":close")
        aerc.wait_for_subjects("apples", "bread", "cheese", "dates")
        aerc.select("bread")
        aerc.command(":flag")
        aerc.wait_for_letters("inbox", "2.host", "F")
        aerc.command(":flag -x Answered")
        aerc.wait_for_letters("inbox", "2.host", "FR")
        aerc.select("dates")
        aerc.command(":unread")
        aerc.wait_for_letters("inbox", "4.host", "F")
        # The row of a message changes a moment after its name.
        aerc.wait_for(lambda: aerc.rows()[-1] == "O! about dates", "the row of an unread message")
        return aerc.rows()


def test_aerc_reads_and_flags(sides: tuple[Side, Side]) -> None:
    left = assert_same(sides, read_and_flag, "inbox")
    assert sorted(mail.letters for mail in left.elements()) == ["", "F", "FR", "S"]


def move_and_delete(side: Side) -> Shown:
    names = ("apples", "bread", "cheese", "dates", "eggs")
    side.folder("archive")
    for number, subject in enumerate(names, 1):
        deliver(side, number, subject, "F" if subject == "cheese" else "")
    with running(side) as aerc:
        aerc.wait_for_subjects(*names)
        aerc.select("apples")
        aerc.command(":move archive")
        aerc.wait_for_subjects("bread", "cheese", "dates", "eggs")
        aerc.select("bread")
        aerc.command(":archive flat")
        aerc.wait_for_subjects("cheese", "dates", "eggs")
        aerc.select("cheese")
        aerc.command(":copy archive")
        aerc.wait_for_mails("archive", 3)
        aerc.select("dates")
        aerc.command(":delete")
        aerc.wait_for_subjects("cheese", "eggs")
        aerc.command(":mkdir later")
        # aerc goes there.
        aerc.wait_for_subjects(EMPTY)
        aerc.change_folder("inbox", "cheese", "eggs")
        aerc.select("eggs")
        aerc.command(":move later")
        aerc.wait_for_subjects("cheese")
        # What was copied and is deleted here is still there.
        aerc.select("cheese")
        aerc.command(":delete")
        aerc.wait_for_mails("inbox", 0)
        aerc.change_folder("archive", "apples", "bread", "cheese")
        return aerc.rows()


def test_aerc_moves_archives_copies_and_deletes(sides: tuple[Side, Side]) -> None:
    left = assert_same(sides, move_and_delete, "inbox", "archive", "later")
    assert sorted(mail.letters for mail in left.elements()) == ["", "", "", "F"]


def change_under_aerc(side: Side) -> Shown:
    for number, subject in enumerate(("apples", "bread", "cheese"), 1):
        deliver(side, number, subject, "S")
    cur = side.root / "inbox" / "cur"
    with running(side) as aerc:
        aerc.wait_for_subjects("apples", "bread", "cheese")
        deliver(side, 4, "dates")
        aerc.wait_for_subjects("apples", "bread", "cheese", "dates")
        aerc.wait_for_letters("inbox", "4.host", "")
        (cur / "1.host:2,S").unlink()
        aerc.wait_for_subjects("bread", "cheese", "dates")
        # aerc finds the file whose name has changed.
        (cur / "2.host:2,S").rename(cur / "2.host:2,FS")
        aerc.select("bread")
        aerc.command(":unread")
        aerc.wait_for_letters("inbox", "2.host", "F")
        return aerc.subjects()


def test_aerc_shows_what_others_deliver_and_remove_and_finds_what_they_flag(
    sides: tuple[Side, Side],
) -> None:
    left = assert_same(sides, change_under_aerc, "inbox")
    assert sorted(mail.letters for mail in left.elements()) == ["", "F", "S"]


def has_letters(side: Side, folder: str, letters: str) -> bool:
    """Whether the only message of a folder is in cur/ with these flags."""
    return [name.rpartition(":2,")[2] for name in os.listdir(side.root / folder / "cur")] == [
        letters
    ]


def postpone_and_send(side: Side) -> Shown:
    for folder in ("inbox", "sent", "drafts"):
        side.folder(folder)
    with running(side) as aerc:
        aerc.command(':compose -H "To: bob@example.org" -H "Subject: about lunch" "some words"')
        aerc.wait_for(lambda: "Send this email?" in aerc.screen(), "the review")
        aerc.command(":postpone")
        aerc.wait_for_mails("drafts", 1)
        aerc.change_folder("drafts", "lunch")
        aerc.command(":recall")
        aerc.wait_for(lambda: "Send this email?" in aerc.screen(), "the review")
        aerc.command(":send")
        aerc.wait_for_mails("drafts", 0)
        aerc.wait_for(lambda: has_letters(side, "sent", "S"), "the copy of the message")
        aerc.change_folder("sent", "lunch")
        # The Date and Message-ID of the message are new each time.
        return [f"{mail.part} {mail.letters}" for mail in side.mails("sent")]


def test_aerc_postpones_recalls_and_keeps_a_copy_of_what_it_sends(
    sides: tuple[Side, Side],
) -> None:
    assert_same(sides, postpone_and_send, "drafts")
