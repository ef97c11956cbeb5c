"""notmuch and mu index a mount as they index a Maildir, their database elsewhere, and their tags become flags."""

import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.clients.sides import Side
from tests.fakes import make_message

# Of the searches of a new store those that are no folders.
SEARCHES = ("all", "flagged", "unread")

# As a user has it: path=database, mail_root=vmail, from the home directory.
NOTMUCH_CONFIG = """\
[database]
path={database}
mail_root={mail}
[user]
name=Ann
primary_email=ann@example.org
[new]
tags=unread;inbox
ignore={searches}
[search]
exclude_tags=
[maildir]
synchronize_flags=true
"""


def fill(side: Side) -> None:
    """Two folders: mail in new/, read, flagged and answered mail in cur/, and a message that is in both."""
    side.deliver(make_message(1), "1.x")
    side.deliver(make_message(2), "2.x:2,S")
    side.deliver(make_message(3), "3.x:2,FRS")
    side.deliver(make_message(4), "4.x", "work")
    side.deliver(make_message(5), "5.x:2,", "work")
    side.deliver(make_message(6), "6.x:2,S", "work")
    side.deliver(make_message(6), "6.x:2,S")


def need(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


class Notmuch(NamedTuple):
    """notmuch with its database elsewhere. It indexes folders, not the searches that show the same mail again."""

    side: Side
    config: Path

    def say(self, *words: str) -> str:
        return self.side.account.output("notmuch", f"--config={self.config}", *words)

    def search(self, query: str) -> list[str]:
        """The Message-IDs that match."""
        return sorted(self.say("search", "--output=messages", query).splitlines())

    def tags(self) -> list[str]:
        """Message-ID and tags of all messages."""
        return sorted(self.say("dump", "--include=tags").splitlines()[1:])


def notmuch_on(side: Side, folder: Path) -> Notmuch:
    database = folder / f"database of {side.name}"
    database.mkdir()
    config = folder / f"notmuch of {side.name}"
    config.write_text(
        NOTMUCH_CONFIG.format(database=database, mail=side.root, searches=";".join(SEARCHES))
    )
    return Notmuch(side, config)


@pytest.fixture
def notmuchs(sides: tuple[Side, Side], tmp_path: Path) -> list[Notmuch]:
    need("notmuch")
    found = []
    for side in sides:
        fill(side)
        found.append(notmuch_on(side, tmp_path))
        found[-1].say("new")
    return found


def test_notmuch_finds_the_same_messages_and_tags(notmuchs: list[Notmuch]) -> None:
    plain, mounted = notmuchs
    assert mounted.tags() == plain.tags()
    assert len(plain.tags()) == 6
    for query in ("folder:work", "path:inbox/new", "tag:replied", "subject:subject", "tag:unread"):
        assert mounted.search(query) == plain.search(query), query
    assert plain.say("count", "--output=files", "id:6@example.org") == "2\n"
    assert mounted.say("count", "--output=files", "id:6@example.org") == "2\n"


def test_tags_of_notmuch_become_flags_and_flags_become_tags(notmuchs: list[Notmuch]) -> None:
    for notmuch in notmuchs:
        notmuch.say(
            "tag", "-unread", "+flagged", "--", "id:1@example.org", "or", "id:4@example.org"
        )
        notmuch.say("tag", "+unread", "--", "id:6@example.org")
        notmuch.say("tag", "+draft", "+replied", "+passed", "--", "id:5@example.org")
        notmuch.say("tag", "-flagged", "--", "id:3@example.org")
        inbox = notmuch.side.folder("inbox")
        (inbox / "cur/2.x:2,S").rename(inbox / "cur/2.x:2,FRS")
        notmuch.say("new")
    plain, mounted = notmuchs
    assert mounted.tags() == plain.tags()
    for folder in ("inbox", "work"):
        assert mounted.side.mails(folder) == plain.side.mails(folder)
    mailfs = mounted.side.mailfs
    assert mailfs is not None
    assert mailfs.count("tag:inbox is:flagged") == 2


def test_notmuch_sees_what_came_moved_and_went(notmuchs: list[Notmuch]) -> None:
    for notmuch in notmuchs:
        side = notmuch.side
        side.deliver(make_message(7), "7.x")
        (side.root / "inbox/cur/2.x:2,S").rename(side.root / "work/cur/2.x:2,S")
        (side.root / "inbox/cur/3.x:2,FRS").unlink()
        (side.root / "work/cur/6.x:2,S").unlink()
        notmuch.say("new")
        assert notmuch.say("count", "--output=files", "id:6@example.org") == "1\n", side.name
    plain, mounted = notmuchs
    assert mounted.tags() == plain.tags()
    assert mounted.search("folder:work") == plain.search("folder:work")
    # Nothing changed: nothing is read again.
    assert "No new mail." in plain.say("new")
    assert "No new mail." in mounted.say("new")


def test_notmuch_insert_delivers(notmuchs: list[Notmuch]) -> None:
    for notmuch in notmuchs:
        done = notmuch.side.account.run(
            "notmuch",
            f"--config={notmuch.config}",
            "insert",
            "--folder=work",
            "+flagged",
            "-unread",
            input=make_message(8).decode(),
        )
        assert done.returncode == 0, done.stderr
    plain, mounted = notmuchs
    assert mounted.side.mails("work") == plain.side.mails("work")
    assert mounted.tags() == plain.tags()


class Mu(NamedTuple):
    """mu with its database elsewhere. A file .noindex keeps it out of the searches that show the same mail again."""

    side: Side
    home: Path

    def say(self, command: str, *words: str) -> str:
        return self.side.account.output("mu", command, f"--muhome={self.home}", "--nocolor", *words)

    def flags(self, folder: str) -> list[str]:
        """Message-ID, flags and path in the mail of every message in a folder."""
        fields = self.say("find", "--fields=i g l", f"maildir:/{folder}")
        return sorted(fields.replace(f"{self.side.root}/", "").splitlines())

    def serve(self, *commands: str) -> str:
        """Commands to `mu server`, as mu4e gives them."""
        done = self.side.account.run(
            "mu", "server", f"--muhome={self.home}", input="\n".join([*commands, "(quit)\n"])
        )
        assert done.returncode == 0, done.stderr
        assert "(:error" not in done.stdout, done.stdout
        return done.stdout

    def move(self, number: int, arguments: str) -> None:
        self.serve(f'(move :msgid "{number}@example.org" {arguments})')


@pytest.fixture
def mus(sides: tuple[Side, Side], tmp_path: Path) -> list[Mu]:
    need("mu")
    found = []
    for side in sides:
        fill(side)
        for name in SEARCHES if side.mailfs else ():
            (side.root / name / ".noindex").touch()
        home = tmp_path / f"mu-{side.name}"
        side.account.output("mu", "init", f"--muhome={home}", f"--maildir={side.root}")
        found.append(Mu(side, home))
        found[-1].say("index")
    return found


def test_mu_finds_the_same_messages_and_flags(mus: list[Mu]) -> None:
    plain, mounted = mus
    for folder in ("inbox", "work"):
        assert mounted.flags(folder) == plain.flags(folder)
        assert len(plain.flags(folder)) == (4 if folder == "inbox" else 3)
    ask = ("find", "--fields=i", "--skip-dups", "flag:replied", "subject:subject")
    assert mounted.say(*ask) == plain.say(*ask) == "3@example.org\n"


def test_what_mu4e_marks_and_refiles_is_marked_and_refiled(mus: list[Mu]) -> None:
    for mu in mus:
        mu.move(1, ':flags "+S-u-N"')
        mu.move(3, ':flags "-F"')
        mu.move(4, ':flags "+F+R-N" :maildir "/inbox"')
        mu.move(5, ':maildir "/inbox" :flags "+S" :rename t')
        mu.say("index")
    plain, mounted = mus
    for folder in ("inbox", "work"):
        assert mounted.side.mails(folder) == plain.side.mails(folder), folder
        told = [strip_new_name(line) for line in mounted.flags(folder)]
        assert told == [strip_new_name(line) for line in plain.flags(folder)]


def strip_new_name(line: str) -> str:
    """Without the base name mu made up."""
    return re.sub(r"/\d{9,}\.[^:]*", "/", line)


def test_mu_sees_what_came_moved_and_went(mus: list[Mu]) -> None:
    for mu in mus:
        root = mu.side.root
        mu.side.deliver(make_message(7), "7.x")
        (root / "inbox/cur/2.x:2,S").rename(root / "work/cur/2.x:2,S")
        (root / "inbox/cur/3.x:2,FRS").unlink()
        mu.say("index")
    plain, mounted = mus
    for folder in ("inbox", "work"):
        assert mounted.flags(folder) == plain.flags(folder)


def test_mu_makes_a_maildir(mus: list[Mu]) -> None:
    for mu in mus:
        mu.say("mkdir", str(mu.side.root / "later"))
        mu.move(1, ':maildir "/later" :flags "-N"')
        assert [mail.part for mail in mu.side.mails("later")] == ["cur"]
