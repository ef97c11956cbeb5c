"""The Maildir contract of a mount, letters C, E, F: how messages come, move and go."""

import contextlib
import errno
import os
from pathlib import Path

import pytest

from tests.fakes import make_message
from tests.mount.calls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    deliver,
    refused,
    renameat2,
    spool,
)
from tests.mount.mounting import Mailfs
from tests.mount.waiting import wait_until

RAW = make_message(1)
OTHER = make_message(2)


@pytest.fixture
def inbox(mailfs: Mailfs) -> Path:
    """The inbox of an empty store that is mounted and has the label views work and lists too."""
    mailfs.create()
    mailfs.say("save", "work", "tag:work")
    mailfs.say("save", "lists", "tag:lists")
    mailfs.mount()
    return mailfs.path("inbox")


# --- C. link and rename from tmp into new and cur


@pytest.mark.parametrize("part", ["new", "cur"])
def test_a_link_from_tmp_is_a_second_name_of_one_file(inbox: Path, part: str) -> None:
    spooled, target = spool(inbox, "1.host", RAW), inbox / part / "1.host:2,"
    os.link(spooled, target)
    assert spooled.stat() == target.stat()
    assert target.stat().st_nlink == 2
    assert spooled.read_bytes() == target.read_bytes() == RAW
    assert os.listdir(inbox / "tmp") == ["1.host"]
    assert os.listdir(inbox / part) == ["1.host:2,"]
    spooled.unlink()
    assert target.stat().st_nlink == 1
    assert os.listdir(inbox / "tmp") == []
    assert target.read_bytes() == RAW


def test_the_first_name_can_go_before_the_one_in_tmp(mailfs: Mailfs, inbox: Path) -> None:
    spooled = spool(inbox, "1", RAW)
    os.link(spooled, inbox / "new/1")
    (inbox / "new/1").unlink()
    assert mailfs.count("*") == 0
    assert spooled.read_bytes() == RAW
    spooled.rename(inbox / "new/2")
    assert mailfs.names("inbox", "new") == ["2"]
    assert (inbox / "new/2").read_bytes() == RAW
    assert mailfs.count("tag:inbox") == 1


def test_a_delivery_is_refused_as_on_any_disk(mailfs: Mailfs, inbox: Path) -> None:
    deliver(inbox, "taken:2,", OTHER)
    spooled = spool(inbox, "1", RAW)
    with refused(errno.EEXIST):
        os.link(spooled, inbox / "cur/taken:2,")
    with refused(errno.EEXIST):
        renameat2(spooled, inbox / "cur/taken:2,", RENAME_NOREPLACE)
    for target in (inbox / "cur/none/x", mailfs.path("none/cur/x")):
        with refused(errno.ENOENT, errno.ENOTDIR):
            os.link(spooled, target)
    for give_name in (os.link, os.rename):
        with refused(errno.ENOENT):
            give_name(inbox / "tmp/none", inbox / "cur/none:2,")
        with refused(errno.EXDEV):
            give_name(spooled, mailfs.folder / "outside")
        with refused(errno.EEXIST, errno.EISDIR):
            give_name(spooled, inbox / "cur")
    with refused(errno.EPERM):
        os.link(inbox / "cur", inbox / "linked")
    with refused(errno.EPERM):
        (inbox / "tmp/link").symlink_to("1")
        (inbox / "tmp/link").rename(inbox / "cur/2:2,")
    assert spooled.read_bytes() == RAW
    assert mailfs.names("inbox") == ["taken:2,"]
    assert (inbox / "cur/taken:2,").read_bytes() == OTHER


def test_renameat2_with_flags(mailfs: Mailfs, inbox: Path) -> None:
    first, second = deliver(inbox, "1:2,", RAW), deliver(inbox, "2:2,S", OTHER)
    spooled = spool(inbox, "x", b"x")
    for flags in (RENAME_EXCHANGE, RENAME_WHITEOUT, RENAME_EXCHANGE | RENAME_NOREPLACE):
        for old, new in ((first, second), (spooled, first), (first, mailfs.path("work/cur/1:2,"))):
            with refused(errno.EINVAL, errno.ENOENT):
                renameat2(old, new, flags)
    with refused(errno.EEXIST):
        renameat2(first, second, RENAME_NOREPLACE)
    with refused(errno.ENOENT):
        renameat2(inbox / "cur/none", inbox / "cur/3:2,", RENAME_NOREPLACE)
    renameat2(first, inbox / "cur/1:2,F", RENAME_NOREPLACE)
    renameat2(spooled, inbox / "tmp/y", RENAME_NOREPLACE)
    with refused(errno.EEXIST):
        renameat2(spool(inbox, "x", b""), inbox / "tmp/y", RENAME_NOREPLACE)
    renameat2(inbox / "cur/1:2,F", mailfs.path("work/cur/1:2,F"), RENAME_NOREPLACE)
    assert mailfs.names("inbox") == ["2:2,S"]
    assert mailfs.names("work") == ["1:2,F"]


def test_a_rename_over_another_message_replaces_it(mailfs: Mailfs, inbox: Path) -> None:
    target = deliver(inbox, "1.host:2,S", OTHER)
    with target.open("rb") as file:
        spool(inbox, "new", RAW).rename(target)
        assert file.read() == OTHER
    assert mailfs.names("inbox") == ["1.host:2,S"]
    assert target.read_bytes() == RAW
    assert mailfs.count("*") == mailfs.count("is:seen") == 1
    other = deliver(inbox, "2.host:2,", OTHER)
    target.rename(other)
    assert mailfs.names("inbox") == ["2.host:2,"]
    assert other.read_bytes() == RAW


@pytest.mark.parametrize(
    "place", ["inbox/draft", "inbox/cur/.draft", "inbox/.own/draft", ".Sub/cur/draft", "draft"]
)
def test_a_link_of_a_clients_own_file_leaves_the_file_where_it_was(
    mailfs: Mailfs, inbox: Path, place: str
) -> None:
    path = mailfs.path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(RAW)
    os.link(path, inbox / "cur/1:2,S")
    assert path.read_bytes() == (inbox / "cur/1:2,S").read_bytes() == RAW
    assert path.name in os.listdir(path.parent)
    mailfs.umount()
    mailfs.mount()
    assert path.read_bytes() == (inbox / "cur/1:2,S").read_bytes() == RAW
    path.unlink()
    assert mailfs.names("inbox") == ["1:2,S"]


def test_every_name_in_tmp_of_a_delivered_file_can_be_read_and_delivered(
    mailfs: Mailfs, inbox: Path
) -> None:
    first, second = spool(inbox, "1", RAW), inbox / "tmp/2"
    os.link(first, second)
    os.link(first, inbox / "cur/1:2,")
    assert first.read_bytes() == second.read_bytes() == RAW
    first.unlink()
    second.rename(inbox / "cur/2:2,")
    assert mailfs.names("inbox") == ["1:2,", "2:2,"]
    assert os.listdir(inbox / "tmp") == []
    assert mailfs.count("*") == 1


def test_an_empty_file_replaces_a_message_or_is_refused(mailfs: Mailfs, inbox: Path) -> None:
    target = deliver(inbox, "1:2,S", RAW)
    spooled = spool(inbox, "empty", b"")
    try:
        spooled.rename(target)
    except PermissionError:
        assert os.listdir(inbox / "tmp") == ["empty"]
        assert target.read_bytes() == RAW
    else:
        assert os.listdir(inbox / "tmp") == []
        assert target.read_bytes() == b""
    assert mailfs.names("inbox") == ["1:2,S"]
    target.unlink()
    assert mailfs.names("inbox") == []


def test_link_to_another_view_adds_and_each_view_has_its_own_name(
    mailfs: Mailfs, inbox: Path
) -> None:
    path = deliver(inbox, "1.host:2,S", RAW)
    linked = mailfs.path("work/cur/other:2,S")
    os.link(path, linked)
    assert linked.stat().st_ino == path.stat().st_ino
    assert mailfs.names("inbox") == ["1.host:2,S"]
    assert mailfs.names("work") == ["other:2,S"]
    assert mailfs.count("tag:inbox tag:work") == mailfs.count("*") == 1
    with refused(errno.EEXIST):
        os.link(path, linked)


@pytest.mark.parametrize("end", ["unlink", "rename", "replace"])
def test_a_message_can_be_linked_on_when_its_name_in_another_view_has_gone(
    mailfs: Mailfs, inbox: Path, end: str
) -> None:
    """The kernel counts down the links of the one inode, and links nothing that has none."""
    path, other = deliver(inbox, "1:2,", RAW), mailfs.path("work/cur/2:2,")
    os.link(path, other)
    for view in ("inbox", "work"):
        assert [entry.stat().st_size for entry in os.scandir(mailfs.path(view, "cur"))]
    match end:
        case "unlink":
            path.unlink()
        case "rename":
            deliver(inbox, "3:2,", OTHER).rename(path)
        case _:
            spool(inbox, "x", OTHER).rename(path)
    os.link(other, mailfs.path("lists/cur/3:2,"))
    assert mailfs.names("work") == ["2:2,"]
    assert mailfs.names("lists") == ["3:2,"]
    assert other.read_bytes() == RAW


def test_a_message_in_two_views_can_be_linked_on_when_it_has_left_one(
    mailfs: Mailfs, inbox: Path
) -> None:
    deliver(inbox, "1:2,", RAW)
    mailfs.say("tag", "+work", "*")
    (other,) = mailfs.path("work/cur").iterdir()
    assert other.stat().st_size == len(RAW)
    (inbox / "cur/1:2,").unlink()

    def is_linked() -> bool:
        # The kernel has counted the links of the inode down to none, and hears just behind the unlink that there are more.
        with contextlib.suppress(FileNotFoundError):
            os.link(other, mailfs.path("lists/cur/3:2,"))
            return True
        return False

    wait_until(is_linked, "a link of the message that is left")
    assert mailfs.names("lists") == ["3:2,"]


def test_a_delivery_from_the_tmp_of_another_view_is_one_into_this_view(
    mailfs: Mailfs, inbox: Path
) -> None:
    os.link(spool(inbox, "1", RAW), mailfs.path("work/new/1"))
    spool(inbox, "2", OTHER).rename(mailfs.path("work/cur/2:2,R"))
    assert mailfs.keywords() == {"1@example.org": {"work"}, "2@example.org": {"work", "$answered"}}
    assert os.listdir(inbox / "tmp") == ["1"]


def test_what_a_query_view_would_not_show_is_refused_and_stays_in_tmp(
    mailfs: Mailfs, inbox: Path
) -> None:
    mailfs.say("save", "bob", "from:bob@example.org")
    bob = mailfs.path("bob")
    spooled = spool(bob, "1.host", RAW)
    for give_name in (os.link, os.rename):
        for part in ("new", "cur"):
            with refused(errno.EPERM):
                give_name(spooled, bob / part / "1.host:2,")
    assert os.listdir(bob / "tmp") == ["1.host"]
    assert spooled.read_bytes() == RAW
    assert mailfs.names("bob") == mailfs.names("bob", "new") == []
    assert mailfs.count("*") == 0
    assert "would not show" in mailfs.log_text()
    deliver(bob, "2.host:2,", make_message(3, sender="bob@example.org"))
    assert mailfs.names("bob") == ["2.host:2,"]
    # Flags a view asks for are set: what is put into `flagged` is flagged.
    deliver(mailfs.path("flagged"), "3.host:2,F", RAW)
    assert mailfs.count("is:flagged") == 1
    spooled.rename(inbox / "new/1.host")
    assert mailfs.count("*") == 2


def test_a_known_message_delivered_again_has_both_names_in_the_view(
    mailfs: Mailfs, inbox: Path
) -> None:
    deliver(inbox, "1.host:2,S", RAW)
    deliver(inbox, "2.host:2,F", RAW)
    assert mailfs.count("*") == 1
    assert mailfs.names("inbox") == ["1.host:2,FS", "2.host:2,FS"]
    names = [inbox / "cur" / name for name in mailfs.names("inbox")]
    assert [path.stat().st_nlink for path in names] == [2, 2]
    assert names[0].samefile(names[1])
    mailfs.umount()
    mailfs.mount()
    assert [path.stat().st_nlink for path in names] == [2, 2]
    names[0].unlink()
    assert mailfs.names("inbox") == ["2.host:2,FS"]
    assert names[1].stat().st_nlink == 1
    assert names[1].read_bytes() == RAW
    names[1].unlink()
    assert mailfs.count("*") == 0


def test_an_expunged_message_delivered_again_is_back_as_if_new(mailfs: Mailfs, inbox: Path) -> None:
    path = deliver(inbox, "1.host,U=12:2,FS", RAW)
    mailfs.say("tag", "+own", "*")
    mailfs.say("tag", "-own", "*")
    path.unlink()
    assert mailfs.count("*") == 0
    path = deliver(inbox, "2.host", RAW, "new")
    assert mailfs.names("inbox") == []
    assert mailfs.names("inbox", "new") == ["2.host"]
    assert path.read_bytes() == RAW
    assert mailfs.count("is:flagged or is:seen or tag:own") == 0
    assert mailfs.count("tag:inbox is:unread") == 1


# --- E. renames across views


def test_mv_between_label_views_relabels_and_takes_the_flags_of_the_name(
    mailfs: Mailfs, inbox: Path
) -> None:
    path = deliver(inbox, "1.host:2,F", RAW)
    inode = path.stat().st_ino
    moved = path.rename(mailfs.path("work/cur/1.host:2,S"))
    assert mailfs.names("inbox") == []
    assert mailfs.names("work") == ["1.host:2,S"]
    assert moved.stat().st_ino == inode
    assert moved.read_bytes() == RAW
    assert mailfs.count("tag:work is:seen not is:flagged not tag:inbox") == 1
    back = moved.rename(inbox / "new/1.host")
    assert mailfs.names("inbox", "new") == ["1.host"]
    assert back.read_bytes() == RAW
    assert mailfs.names("work") == []


def test_mv_out_of_a_query_view_only_adds(mailfs: Mailfs, inbox: Path) -> None:
    deliver(inbox, "1.host:2,", RAW)
    path = mailfs.path("unread/cur", mailfs.names("unread")[0])
    path.rename(mailfs.path("work/cur/1.host:2,"))
    assert mailfs.names("work") == mailfs.names("inbox") == ["1.host:2,"]
    assert len(mailfs.names("unread")) == 1
    assert mailfs.count("tag:inbox tag:work") == 1


def test_mv_into_a_view_that_would_not_show_it_changes_nothing(mailfs: Mailfs, inbox: Path) -> None:
    mailfs.say("save", "bob", "from:bob@example.org")
    path = deliver(inbox, "1.host:2,", RAW)
    with refused(errno.EPERM, errno.EXDEV):
        path.rename(mailfs.path("bob/cur/1.host:2,"))
    with refused(errno.EPERM, errno.EXDEV):
        os.link(path, mailfs.path("bob/cur/1.host:2,"))
    assert mailfs.names("inbox") == ["1.host:2,"]
    assert mailfs.names("bob") == []
    with refused(errno.EXDEV):
        path.rename(inbox / "sidecar")
    with refused(errno.EXDEV):
        os.link(path, inbox / ".sidecar")


# --- copies: a name made of a message that was there outlives the name it was copied from


@pytest.mark.parametrize("way", ["link", "cp", "delivery", "link through tmp"])
def test_a_copy_made_before_is_kept_when_the_original_is_removed(
    mailfs: Mailfs, inbox: Path, way: str
) -> None:
    original = deliver(inbox, "1.host:2,S", RAW)
    copy = mailfs.path("work/cur/copy:2,S")
    match way:
        case "link":
            os.link(original, copy)
        case "cp":
            copy.write_bytes(original.read_bytes())
        case "delivery":
            deliver(mailfs.path("work"), copy.name, RAW)
        case _:
            os.link(original, mailfs.path("work/tmp/copy"))
            mailfs.path("work/tmp/copy").rename(copy)
    wait_until(lambda: mailfs.names("work") == [copy.name], "the copy")
    # Removed from where it would be expunged, whatever its keywords.
    everything = mailfs.path("all/cur", mailfs.names("all")[0])
    everything.unlink()
    assert mailfs.names("work") == [copy.name]
    assert copy.read_bytes() == RAW
    copy.unlink()
    assert mailfs.count("*") == 0
    assert mailfs.names("work") == mailfs.names("all") == mailfs.names("inbox") == []


# --- F. unlink leaves the view


@pytest.mark.parametrize("end", ["unlink", "rename", "replace", "forget", "expunge"])
def test_an_open_message_is_readable_whatever_becomes_of_its_name(
    mailfs: Mailfs, inbox: Path, end: str
) -> None:
    raw = make_message(7, body="0123456789" * 100_000)
    path = deliver(inbox, "1.host:2,", raw)
    with path.open("rb", buffering=0) as file:
        match end:
            case "unlink":
                path.unlink()
            case "rename":
                path.rename(mailfs.path("work/cur/2.host:2,T"))
            case "replace":
                spool(inbox, "x", RAW).rename(path)
            case "forget":
                mailfs.say("forget", "inbox")
            case _:
                mailfs.path("all/cur", mailfs.names("all")[0]).unlink()
        assert os.fstat(file.fileno()).st_size == len(raw)
        assert b"".join(iter(lambda: file.read(1 << 16), b"")) == raw
