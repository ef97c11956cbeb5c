"""Dovecot's folders on a mount: made, renamed, deleted, kept over restarts, and the layouts that can be chosen.

Of a mount the saved searches a new store has (all, flagged, unread) are folders too; the comparisons leave them out.
"""

import os
from collections.abc import Iterator

import pytest

from tests.clients.dovecot import Dovecot
from tests.clients.imap import Facts, Imap, Opened
from tests.clients.served import (
    DATE,
    Both,
    Served,
    fill,
    give,
    needs_dovecot,
    numbered,
    same,
    served,
    shared_dovecot,
)
from tests.clients.sides import Side
from tests.fakes import make_message
from tests.mount.accounts import Account
from tests.mount.conftest import as_ordinary, packages, public_folder
from tests.mount.mounting import Mailfs

__all__ = ["as_ordinary", "packages", "public_folder", "served", "shared_dovecot"]

pytestmark = needs_dovecot

FIRST_VIEWS = {"all", "flagged", "unread"}


def folders(connection: Imap) -> set[str]:
    return connection.folders() - FIRST_VIEWS


def contents(connection: Imap, folder: str) -> dict[int, tuple[str, bytes]]:
    """Flags and content of each message of a folder, by UID."""
    connection.open(folder)
    flags, bodies = connection.flags(), connection.bodies()
    assert set(flags) == set(bodies)
    return {uid: (flags[uid], bodies[uid]) for uid in flags}


# --- made, renamed, deleted


def test_folders_are_created_and_listed(served: Both) -> None:
    def steps(one: Served) -> list[set[str]]:
        connection = one.connect()
        told = [folders(connection)]
        for name in ("work", "lists", "lists/linux", "lists/linux/kernel", "two words"):
            connection.ok("create", f'"{name}"')
            told.append(folders(connection))
        connection.append(numbered(1), "lists/linux/kernel")
        told.append({f"{connection.status('lists/linux/kernel')}"})
        connection.close()
        return told

    told = same(served, steps)
    assert told[0] == {"INBOX"}
    assert told[-2] == {
        "INBOX", "work", "lists", "lists/linux", "lists/linux/kernel", "two words"
    }  # fmt: skip


def test_a_folder_that_exists_is_not_created_again(served: Both) -> None:
    def steps(one: Served) -> list[str]:
        connection = one.connect()
        connection.ok("create", "work")
        told = [connection.refused("create", name) for name in ("work", "INBOX")]
        told += [connection.refused(verb, "absent") for verb in ("select", "delete")]
        connection.close()
        return told

    assert "exists" in same(served, steps)[0]


def test_a_renamed_folder_keeps_its_messages(served: Both) -> None:
    def steps(one: Served) -> list[object]:
        connection = one.connect()
        connection.ok("create", "work")
        connection.ok("create", "work/old")
        fill(connection, 3, "work")
        for number in (11, 12):
            connection.append(numbered(number), "work/old", date=DATE)
        connection.open("work")
        connection.store([1, 2], "+FLAGS", "\\Seen urgent")
        connection.ok("unselect")
        connection.ok("rename", "work", "done")
        told: list[object] = [folders(connection)]
        told += [contents(connection, "done"), contents(connection, "done/old")]
        connection.append(numbered(9), "done")
        told.append(contents(connection, "done"))
        connection.close()
        return told

    told = same(served, steps)
    assert told[0] == {"INBOX", "done", "done/old"}
    assert isinstance(told[1], dict)
    assert [flags for flags, _ in told[1].values()] == ["\\Seen urgent"] * 2 + [""]
    assert isinstance(told[3], dict)
    assert len(told[3]) == 4


def test_a_deleted_folder_is_gone_and_can_be_made_anew(served: Both) -> None:
    def steps(one: Served) -> list[object]:
        connection = one.connect("INBOX")
        fill(connection, 1)
        connection.ok("create", "work")
        connection.ok("create", "keep")
        fill(connection, 3, "work")
        connection.ok("delete", "work")
        told: list[object] = [folders(connection)]
        connection.ok("create", "work")
        told.append(contents(connection, "work"))
        connection.append(numbered(9), "work", date=DATE)
        told += [contents(connection, "work"), contents(connection, "INBOX")]
        connection.close()
        return told

    told = same(served, steps)
    assert told[0] == {"INBOX", "keep"}
    assert told[1] == {}
    assert isinstance(told[2], dict)
    assert len(told[2]) == 1


def test_subscriptions_are_kept(served: Both) -> None:
    def steps(one: Served) -> list[object]:
        connection = one.connect()
        for name in ("work", "home"):
            connection.ok("create", name)
            connection.ok("subscribe", name)
        connection.ok("unsubscribe", "work")
        connection.close()
        connection = one.connect()
        told = sorted(connection.ok("lsub"))
        connection.close()
        return told

    assert same(served, steps) == [b'() "/" home']


# --- kept


@pytest.fixture(params=["beside", "elsewhere"])
def alone(request: pytest.FixtureRequest, mounted: Side) -> Iterator[Served]:
    """A mount and a Dovecot that can be ended and started again."""
    folder = mounted.account.home / "dovecot"
    location = f"maildir:{mounted.root}:LAYOUT=fs:UTF-8:INBOX={mounted.root}/inbox"
    if request.param == "elsewhere":
        location += f":CONTROL={folder}/control:INDEX={folder}/index"
    server = Dovecot(folder, location, mounted.account)
    server.start()
    made = Served(mounted, server)
    yield made
    server.end()
    made.end()


def test_uids_flags_and_dates_are_kept_over_a_restart_and_a_remount(alone: Served) -> None:
    def look() -> tuple[Opened, dict[int, tuple[str, bytes]], dict[int, Facts]]:
        connection = alone.connect()
        opened = connection.open("work")
        found = opened, contents(connection, "work"), connection.facts()
        connection.close()
        return found

    connection = alone.connect()
    connection.ok("create", "work")
    fill(connection, 5, "work")
    connection.open("work")
    connection.store([2, 4], "+FLAGS", "\\Seen urgent")
    connection.delete([3])
    connection.close()
    before = look()
    assert set(before[1]) == {1, 2, 4, 5}
    alone.dovecot.restart()
    assert look() == before

    alone.dovecot.end()
    mailfs_of(alone).umount()
    mailfs_of(alone).mount()
    alone.dovecot.start()
    assert look() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_serves_a_mount_with_a_dovecot_of_ones_own(as_ordinary: Account) -> None:
    """Nobody is root here, so modes count: `dovecot-uidvalidity.*` is made with 0444 and opened for writing."""
    mailfs = Mailfs(as_ordinary, as_ordinary.home)
    mailfs.create()
    mailfs.mount()
    location = f"maildir:{mailfs.mountpoint}:LAYOUT=fs:UTF-8:INBOX={mailfs.mountpoint}/inbox"
    server = Dovecot(as_ordinary.home / "dovecot", location, as_ordinary)
    one = Served(Side("mounted", mailfs.mountpoint, as_ordinary, mailfs), server)
    try:
        server.start()
        connection = one.connect("INBOX")
        connection.ok("create", "work")
        fill(connection, 3)
        connection.move([1, 2], "work")
        connection.open("work")
        connection.delete([1])
        connection.ok("rename", "work", "done")
        assert len(contents(connection, "done")) == len(contents(connection, "INBOX")) == 1
        connection.ok("delete", "done")
        assert folders(connection) == {"INBOX"}
        connection.close()
        one.end()
    finally:
        server.end()
        mailfs.end()


# --- what only a mount has


@pytest.fixture
def mail(shared_dovecot: Dovecot, mounted: Side) -> Iterator[Served]:
    """Just the mount; Dovecot's files are beside the mail."""
    made = give(shared_dovecot, mounted)
    yield made
    made.end()


def mailfs_of(one: Served) -> Mailfs:
    assert one.side.mailfs is not None
    return one.side.mailfs


def test_a_keyword_is_a_keyword_of_the_store(mail: Served) -> None:
    mailfs = mailfs_of(mail)
    connection = mail.connect("INBOX")
    fill(connection, 2)
    connection.store([1], "+FLAGS", "\\Seen urgent")
    in_store = mailfs.keywords()
    mailfs.say("tag", "+urgent", "--", "mid:2@example.org")
    connection.ok("noop")
    seen = connection.flags()
    connection.close()
    assert in_store == {"1@example.org": {"inbox", "$seen", "urgent"}, "2@example.org": {"inbox"}}
    assert seen == {1: "\\Seen urgent", 2: "urgent"}


def test_forwarded_is_the_letter_p(mail: Served) -> None:
    """Dovecot writes a letter of dovecot-keywords for it, other clients P (maildir(5), passed)."""
    connection = mail.connect("INBOX")
    fill(connection, 2)
    connection.store([1, 2], "+FLAGS", "$Forwarded work")
    connection.store([2], "-FLAGS", "$Forwarded")
    assert connection.flags() == {1: "$Forwarded work", 2: "work"}
    passed = [mail_.letters for mail_ in mail.side.mails() if "P" in mail_.letters]
    assert len(passed) == 1
    assert mailfs_of(mail).count("is:forwarded") == 1
    connection.close()


def test_a_flag_set_in_one_folder_is_set_in_all(mail: Served) -> None:
    connection = mail.connect("INBOX")
    connection.ok("create", "work")
    fill(connection, 2)
    connection.copy([1], "work")
    connection.store([1], "+FLAGS", "\\Seen")
    connection.open("work")
    assert connection.flags() == {1: "\\Seen"}
    connection.store([1], "+FLAGS", "\\Flagged")
    connection.open("INBOX")
    assert connection.flags() == {1: "\\Flagged \\Seen", 2: ""}
    connection.close()


def test_saved_searches_are_folders(mail: Served) -> None:
    connection = mail.connect("INBOX")
    fill(connection, 3)
    connection.store([2], "+FLAGS", "\\Flagged \\Seen")
    assert connection.folders() == {"INBOX", *FIRST_VIEWS}
    assert len(contents(connection, "all")) == 3
    assert [body for _, body in contents(connection, "flagged").values()] == [
        numbered(2).replace(b"\n", b"\r\n")
    ]
    assert len(contents(connection, "unread")) == 2
    connection.close()


def test_a_message_read_in_unread_stays_until_its_reader_is_done(mail: Served) -> None:
    connection = mail.connect("INBOX")
    fill(connection, 3)
    connection.open("unread")
    connection.store([2], "+FLAGS", "\\Seen")
    connection.ok("noop")
    assert connection.flags()[2] == "\\Seen"
    assert len(connection.bodies()) == 3
    connection.open("INBOX")
    assert connection.flags() == {1: "", 2: "\\Seen", 3: ""}
    connection.close()


def test_a_message_brought_into_flagged_is_flagged(mail: Served) -> None:
    connection = mail.connect("INBOX")
    connection.append(numbered(1), "flagged", date=DATE)
    fill(connection, 3)
    connection.copy([2], "flagged")
    connection.ok("noop")
    assert len(contents(connection, "flagged")) == 2
    assert connection.open("INBOX").messages == 3
    assert "\\Flagged" in connection.flags()[2]
    connection.close()


def test_a_message_a_search_does_not_match_is_refused(mail: Served) -> None:
    mailfs_of(mail).say("save", "from-carol", "from:carol")
    mail.expected.append("Operation not permitted")
    connection = mail.connect("INBOX")
    fill(connection, 1)
    connection.refused("append", "from-carol", "", "", numbered(2))
    assert connection.connection.uid("COPY", "1", "from-carol")[0] == "NO"
    assert contents(connection, "from-carol") == {}
    assert mailfs_of(mail).names("from-carol", "tmp") == []
    raw = make_message(3, sender="Carol <carol@example.org>")
    connection.append(raw, "from-carol", date=DATE)
    assert len(contents(connection, "from-carol")) == 1
    assert len(contents(connection, "INBOX")) == 1
    connection.close()


def test_a_keyword_named_like_a_folder_brings_the_message_there(mail: Served) -> None:
    connection = mail.connect("INBOX")
    connection.ok("create", "work")
    fill(connection, 2)
    connection.store([2], "+FLAGS", "work")
    assert len(contents(connection, "work")) == 1
    connection.open("INBOX")
    connection.store([2], "-FLAGS", "work")
    assert contents(connection, "work") == {}
    connection.close()


def test_an_expunged_message_with_a_keyword_is_still_in_the_store(mail: Served) -> None:
    """A keyword is a link: the message is gone when the last one is."""
    connection = mail.connect("INBOX")
    fill(connection, 2)
    connection.store([1], "+FLAGS", "urgent")
    connection.delete([1, 2])
    assert contents(connection, "INBOX") == {}
    assert len(contents(connection, "all")) == 1
    connection.delete("1:*")
    assert mailfs_of(mail).count("*") == 0
    connection.close()


@pytest.fixture
def plus_plus(shared_dovecot: Dovecot, mounted: Side) -> Iterator[Served]:
    """Dovecot's default layout in a view."""
    shared_dovecot.add_user("plus-plus", f"maildir:{mounted.root}/inbox")
    made = Served(mounted, shared_dovecot, "plus-plus")
    yield made
    made.end()


def test_maildir_plus_plus_folders_lie_beside_the_store(plus_plus: Served) -> None:
    """INBOX is a view; the folders `.name` in it are ordinary Maildirs, whose mail the store does not know."""
    one = plus_plus
    connection = one.connect("INBOX")
    connection.ok("create", "work")
    fill(connection, 3)
    connection.store([1], "+FLAGS", "\\Seen")
    connection.move([1, 2], "work")
    inbox, work = contents(connection, "INBOX"), contents(connection, "work")
    assert (set(inbox), set(work)) == ({3}, {1, 2})
    assert work[1][0] == "\\Seen"
    assert mailfs_of(one).count("*") == 1
    connection.move([1], "INBOX")
    assert set(contents(connection, "INBOX")) == {3, 4}
    assert mailfs_of(one).count("*") == 2
    assert connection.folders() == {"INBOX", "work"}
    connection.close()
