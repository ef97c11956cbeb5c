"""The Maildir contract of a mount, letters I, J, K, L: times, names others changed, listings and inodes."""

import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from tests.fakes import make_message
from tests.mount.calls import DT_DIR, DT_REG, Listing, deliver, make_view, refused, spool
from tests.mount.mounting import Mailfs
from tests.mount.waiting import wait_until

RAW = make_message(1)
PARTS = ["cur", "new", "tmp"]


@pytest.fixture
def inbox(mailfs: Mailfs) -> Path:
    """The inbox of an empty store that is mounted and has the label view work too."""
    mailfs.create()
    mailfs.say("save", "work", "tag:work")
    mailfs.mount()
    return mailfs.path("inbox")


def remount(mailfs: Mailfs) -> None:
    mailfs.umount()
    mailfs.mount()


# --- I. times of directories


def times(mailfs: Mailfs) -> dict[str, int]:
    return {
        f"{view}/{part}": os.stat(mailfs.path(view, part)).st_mtime_ns
        for view in ("inbox", "work", "flagged")
        for part in PARTS
    }


def test_the_time_of_a_directory_moves_with_every_change_in_it_and_with_nothing_else(
    mailfs: Mailfs, inbox: Path
) -> None:
    for view in ("inbox", "work", "flagged"):
        mailfs.names(view)
    cur, new, work = inbox / "cur", inbox / "new", mailfs.path("work/cur")
    steps: list[tuple[Callable[[], object], str]] = [
        (lambda: spool(inbox, "1", RAW), "inbox/tmp"),
        # The file in tmp/ has become the message: tmp/ moves too, which harms nobody.
        (lambda: os.link(inbox / "tmp/1", new / "1"), "inbox/new inbox/tmp"),
        (lambda: (inbox / "tmp/1").unlink(), "inbox/tmp"),
        (lambda: (new / "1").rename(cur / "1:2,"), "inbox/new inbox/cur"),
        (lambda: (cur / "1:2,").rename(cur / "1:2,S"), "inbox/cur"),
        (lambda: (cur / "1:2,S").rename(cur / "1,U=5:2,S"), "inbox/cur"),
        (lambda: (cur / "1,U=5:2,S").rename(cur / "1,U=5:2,Sx"), "inbox/cur"),
        (lambda: os.link(cur / "1,U=5:2,Sx", work / "w:2,S"), "work/cur"),
        (lambda: os.link(work / "w:2,S", work / "v:2,S"), "work/cur"),
        (lambda: (work / "v:2,S").unlink(), "work/cur"),
        (lambda: mailfs.say("tag", "+flagged", "*"), "inbox/cur work/cur flagged/cur"),
        (lambda: (cur / "1,U=5:2,FSx").unlink(), "inbox/cur"),
        (lambda: (work / "w:2,FS").rename(cur / "2:2,S"), "inbox/cur work/cur flagged/cur"),
        (lambda: (cur / ".dot").write_bytes(b""), "inbox/cur"),
        (lambda: (cur / ".dot").unlink(), "inbox/cur"),
        (lambda: (cur / "2:2,S").read_bytes(), ""),
        (lambda: os.utime(cur / "2:2,S"), ""),
        (lambda: [mailfs.names(view) for view in ("inbox", "work", "flagged")], ""),
        (lambda: (cur / "2:2,S").rename(cur / "2:2,S"), ""),
        (lambda: remount(mailfs), ""),
        (lambda: [mailfs.names(view) for view in ("inbox", "work", "flagged")], ""),
        (lambda: mailfs.say("tag", "+unshown", "*"), ""),
        (lambda: (cur / "2:2,S").unlink(), "inbox/cur"),
    ]
    before = times(mailfs)
    for number, (step, moved) in enumerate(steps):
        step()
        after = times(mailfs)
        assert {name for name in after if after[name] > before[name]} == set(moved.split()), number
        assert {name for name in after if after[name] < before[name]} == set(), number
        assert max(after.values()) <= time.time_ns()
        before = after


def test_fast_changes_have_times_of_their_own(inbox: Path) -> None:
    path = deliver(inbox, "1:2,", RAW)
    seen = set()
    for number in range(200):
        path = path.rename(inbox / "cur" / ("1:2,S" if number % 2 else "1:2,F"))
        seen.add(os.stat(inbox / "cur").st_mtime_ns)
    assert len(seen) == 200


def test_a_view_and_the_root_move_when_something_is_made_in_them(
    mailfs: Mailfs, inbox: Path
) -> None:
    for folder, make in (
        (mailfs.mountpoint, lambda: make_view(mailfs.path("fresh"))),
        (mailfs.mountpoint, lambda: mailfs.path("fresh").rename(mailfs.path("named"))),
        (mailfs.mountpoint, lambda: mailfs.path("subscriptions").write_bytes(b"")),
        (mailfs.mountpoint, lambda: mailfs.path("named").rmdir()),
        (inbox, lambda: make_view(inbox / "sub")),
        (inbox, lambda: (inbox / "dovecot-uidlist").write_bytes(b"")),
        (inbox, lambda: (inbox / "dovecot-uidlist").unlink()),
        (inbox, lambda: (inbox / "sub").rmdir()),
    ):
        before = folder.stat().st_mtime_ns
        make()
        assert before < folder.stat().st_mtime_ns <= time.time_ns()


# --- J. what others change is not kept by the kernel


def test_a_name_another_process_changed_is_gone_and_the_new_one_there_at_once(
    mailfs: Mailfs, inbox: Path
) -> None:
    old = deliver(inbox, "1.host,U=3:2,", RAW)
    mailfs.names("inbox")
    assert old.read_bytes() == RAW
    mailfs.say("tag", "+flagged", "*")
    assert (inbox / "cur/1.host,U=3:2,F").read_bytes() == RAW
    wait_until(lambda: not old.exists(), "the old name is forgotten")
    mailfs.say("tag", "-inbox", "+other", "*")
    wait_until(lambda: not (inbox / "cur/1.host,U=3:2,F").exists(), "the message has left")
    assert mailfs.names("inbox") == []


# --- K. listings


@pytest.fixture
def full(mailfs: Mailfs) -> Path:
    """An inbox of 1500 messages: several requests to list."""
    mailfs.create(messages=1500)
    mailfs.mount()
    return mailfs.path("inbox")


def base_of(name: bytes) -> bytes:
    return name.partition(b":")[0]


def test_a_listing_says_of_every_entry_what_stat_says(mailfs: Mailfs, inbox: Path) -> None:
    deliver(inbox, "1:2,", RAW)
    deliver(inbox, "2:2,", RAW)
    deliver(inbox, "3", make_message(3), "new")
    (inbox / "cur/.dot").write_bytes(b"")
    (inbox / ".nnmaildir").mkdir()
    (inbox / "dovecot-uidlist").write_bytes(b"")
    os.link(inbox / "cur/1:2,", inbox / "tmp/linked")
    make_view(inbox / "sub")
    for folder in (mailfs.mountpoint, inbox, *(inbox / part for part in PARTS)):
        with Listing(folder) as listing:
            found = {entry.name: entry for entry in iter(listing.next_or_none, None)}
        assert found.keys() >= {b".", b".."}
        assert found[b"."].ino == folder.stat().st_ino
        if folder != mailfs.mountpoint:
            assert found[b".."].ino == folder.parent.stat().st_ino
        assert [found[name].type for name in (b".", b"..")] == [DT_DIR, DT_DIR]
        for name in os.listdir(folder):
            status, entry = (folder / name).stat(), found[os.fsencode(name)]
            assert entry.ino == status.st_ino
            assert entry.type == (DT_DIR if stat.S_ISDIR(status.st_mode) else DT_REG)
        assert len(found) == len(os.listdir(folder)) + 2


def test_a_listing_neither_skips_nor_repeats_while_the_folder_changes(
    mailfs: Mailfs, full: Path
) -> None:
    """One client lists; meanwhile messages before and behind its place get flags, are removed, and come."""
    cur = full / "cur"
    with Listing(cur) as listing:
        order = [os.fsdecode(entry.name) for entry in listing.rest()]
    flagged, removed = order[::30], order[5::50]
    seen: Counter[bytes] = Counter()
    with Listing(cur) as listing:
        for number in count():
            entry = listing.next_or_none()
            if entry is None:
                break
            seen[base_of(entry.name)] += 1
            if number == 400:
                for name in set(flagged) - set(removed):
                    (cur / name).rename(cur / f"{name}S")
            if number == 800:
                for name in removed:
                    (cur / name).unlink()
            if number % 100 == 0:
                deliver(full, f"{number}.late:2,", make_message(10_000 + number))
    kept = {base_of(os.fsencode(name)) for name in set(order) - set(removed)}
    assert max(seen.values()) == 1
    assert seen.keys() >= kept
    assert {base_of(os.fsencode(name)) for name in mailfs.names("inbox")} >= kept


def test_a_place_in_a_listing_is_found_again_whatever_was_removed_before_it(full: Path) -> None:
    for name in (".a", ".b", ".c"):
        (full / "cur" / name).write_bytes(b"")
    with Listing(full / "cur") as listing:
        places: list[tuple[int, bytes]] = []
        while True:
            place = listing.tell()
            entry = listing.next_or_none()
            if entry is None:
                break
            places.append((place, entry.name))
        assert len(places) == 1505
        for number in (1504, 0, 1, 2, 700, 1503, 1, 1502, 1501):
            listing.seek(places[number][0])
            entry = listing.next_or_none()
            assert entry is not None
            assert entry.name == places[number][1]
        for _, removed in places[3:600:7]:
            (full / "cur" / os.fsdecode(removed)).unlink(missing_ok=removed.startswith(b"."))
        listing.seek(places[1000][0])
        assert [entry.name for entry in listing.rest()] == [name for _, name in places[1000:]]


def test_a_listing_that_is_rewound_shows_what_is_there_now(inbox: Path) -> None:
    for folder, make in (
        (inbox / "cur", lambda: deliver(inbox, "1:2,", RAW)),
        (inbox / "tmp", lambda: spool(inbox, "x", RAW)),
        (inbox, lambda: (inbox / "dovecot-uidlist").write_bytes(b"")),
        (inbox, lambda: make_view(inbox / "sub")),
    ):
        with Listing(folder) as listing:
            before = {entry.name for entry in listing.rest()}
            make()
            listing.rewind()
            assert len({entry.name for entry in listing.rest()} - before) == 1


# --- L. inode numbers


def test_inode_numbers_are_unique_and_the_same_after_a_remount(mailfs: Mailfs, inbox: Path) -> None:
    (inbox / ".nnmaildir/num").mkdir(parents=True)
    (inbox / "dovecot-uidlist").write_bytes(b"")
    make_view(inbox / "sub")
    for number in range(5):
        deliver(inbox, f"{number}:2,", make_message(number))

    def inodes() -> dict[Path, int]:
        return {path: path.stat().st_ino for path in mailfs.mountpoint.rglob("*")}

    before = inodes()
    by_inode = {inode: path for path, inode in before.items()}
    for path, inode in before.items():
        # Only one message, in several views, may have several paths.
        assert by_inode[inode] == path or by_inode[inode].parent.name == path.parent.name == "cur"
    mailfs.umount()
    mailfs.mount()
    assert inodes() == before


def test_the_inode_of_a_message_is_not_given_away_and_comes_back_with_it(inbox: Path) -> None:
    path = deliver(inbox, "1:2,", RAW)
    inode = path.stat().st_ino
    path.unlink()
    seen = {inode}
    for number in range(2, 20):
        path = deliver(inbox, f"{number}:2,", make_message(number))
        assert path.stat().st_ino not in seen
        seen.add(path.stat().st_ino)
        path.unlink()
    assert deliver(inbox, "other:2,", RAW).stat().st_ino == inode


def test_what_is_not_there_is_not_found_and_nothing_worse(mailfs: Mailfs, inbox: Path) -> None:
    deliver(inbox, "1:2,", RAW)
    for path in (
        inbox / "cur/1:2,S",
        inbox / "cur/2:2,",
        inbox / "new/1",
        inbox / "new/1:2,",
        mailfs.path("work/cur/1:2,"),
        inbox / "tmp/1",
        inbox / ".none/x",
        mailfs.path("none"),
    ):
        with refused(errno.ENOENT):
            os.stat(path)
        with refused(errno.ENOENT):
            os.unlink(path)
        with refused(errno.ENOENT):
            os.rename(path, inbox / "cur/3:2,")
