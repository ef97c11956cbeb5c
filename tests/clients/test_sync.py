"""mbsync and OfflineIMAP between an IMAP account and a folder of Maildirs, with changes on both sides.

The account is a Dovecot over Maildirs of its own; it is far, the Maildirs are near. Every test syncs twice over with
changes on both sides, and what is near then is exactly what is far: no message and no flag is lost or doubled.
"""

import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.clients.dovecot import SERVER, Dovecot
from tests.clients.sides import Side
from tests.clients.syncing import (
    FOLDERS,
    Pair,
    Sync,
    letters_by_number,
    mbsync_configuration,
    run_mbsync,
    run_offlineimap,
    uids_of,
)
from tests.mount.mounting import is_alive
from tests.mount.waiting import wait_until

pytestmark = pytest.mark.skipif(shutil.which(SERVER) is None, reason="dovecot is not installed")

ARRIVALS = 60
INTERRUPTED = (100, 101)  # mbsync's exit codes of -Tj: before and after it has written the line
MBSYNCS: dict[str, Sync] = {
    "mbsync": run_mbsync,
    "mbsync-state-elsewhere": partial(run_mbsync, inside=False),
    "mbsync-altmap": partial(run_mbsync, alternative=True),
    "mbsync-altmap-state-elsewhere": partial(run_mbsync, alternative=True, inside=False),
}
needs_mbsync = pytest.mark.skipif(shutil.which("mbsync") is None, reason="mbsync is not installed")
needs_offlineimap = pytest.mark.skipif(
    shutil.which("offlineimap") is None, reason="offlineimap is not installed"
)
EVERY_PROGRAM = [
    *(pytest.param(sync, id=name, marks=needs_mbsync) for name, sync in MBSYNCS.items()),
    pytest.param(run_offlineimap, id="offlineimap", marks=needs_offlineimap),
]
ONE_OF_EACH = [EVERY_PROGRAM[0], EVERY_PROGRAM[-1]]


@pytest.fixture
def pairs(sides: tuple[Side, Side], tmp_path: Path) -> tuple[Pair, Pair]:
    """Each side with an account of its own, the plain one first."""

    def pair(side: Side) -> Pair:
        folder = tmp_path / f"{side.name}-sync"
        folder.mkdir()
        side.account.own(folder)
        far = tmp_path / f"{side.name}-far"
        return Pair(side, Dovecot(far, f"maildir:{far}/mail:LAYOUT=fs", side.account), folder)

    plain, mounted = sides
    return pair(plain), pair(mounted)


def do_both(pairs: tuple[Pair, Pair], steps: Callable[[Pair], None]) -> None:
    """The same steps on both sides, at once: mbsync sleeps until a folder it reads was not changed in this second."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(steps, pairs))


# --- one folder


def begin(pair: Pair) -> None:
    """Mail on both sides that have not met yet: 1 to 4 are far, 11 to 14 near."""
    for number, flags in enumerate(("", "\\Seen", "\\Flagged \\Seen", "\\Answered"), 1):
        pair.append(number, flags)
    pair.side.folder("inbox")
    for number, letters in enumerate((None, "S", "FS", "R"), 11):
        pair.deliver(number, letters)


def change_on_both_sides(pair: Pair) -> None:
    pair.append(5)
    pair.append(6, "\\Draft \\Seen")
    pair.mark(1, "+FLAGS", "\\Seen")
    pair.mark(3, "-FLAGS", "\\Flagged")
    pair.mark(11, "+FLAGS", "\\Answered \\Seen")
    pair.expunge(2)
    pair.expunge(14)
    pair.deliver(15)
    pair.flag(4, "FRS")
    pair.flag(13, "S")
    pair.path(12).unlink()


AFTER_THE_FIRST = {
    1: "S", 3: "S", 4: "FRS", 5: "", 6: "DS", 11: "RS", 13: "S", 15: ""
}  # fmt: skip


def change_again(pair: Pair) -> None:
    # Both sides change the same message.
    pair.mark(1, "+FLAGS", "\\Flagged")
    pair.flag(1, "RS")
    pair.mark(4, "-FLAGS", "\\Answered")
    pair.expunge(15)
    pair.expunge(3)
    pair.append(7, "\\Flagged")
    pair.path(13).unlink()
    pair.path(5).unlink()
    pair.flag(6, "")
    pair.deliver(16, "DFRS")


AFTER_THE_SECOND = {1: "FRS", 4: "FS", 6: "", 7: "F", 11: "RS", 16: "DFRS"}


@pytest.mark.parametrize("sync", EVERY_PROGRAM)
def test_a_folder_with_changes_on_both_sides_twice_over_and_then_with_none(
    pairs: tuple[Pair, Pair], sync: Sync
) -> None:
    def steps(pair: Pair) -> None:
        begin(pair)
        sync(pair)
        pair.assert_same("inbox")
        assert pair.near_holds().total() == 8
        change_on_both_sides(pair)
        sync(pair)
        pair.assert_same("inbox")
        assert letters_by_number(pair.near_holds()) == AFTER_THE_FIRST
        pair.again()
        change_again(pair)
        sync(pair)
        pair.assert_same("inbox")
        assert letters_by_number(pair.near_holds()) == AFTER_THE_SECOND
        names, far = pair.near_names(), pair.far_holds()
        pair.again()
        sync(pair)
        assert pair.near_names() == names
        assert pair.far_holds() == far

    do_both(pairs, steps)
    plain, mounted = pairs
    assert plain.near_parts() == mounted.near_parts()
    assert plain.side.files() == mounted.side.files()
    assert mounted.side.mailfs is not None
    assert mounted.side.mailfs.count("*") == len(AFTER_THE_SECOND)


@needs_mbsync
def test_mbsync_carries_the_mark_of_a_forwarded_message(pairs: tuple[Pair, Pair]) -> None:
    def steps(pair: Pair) -> None:
        pair.side.folder("inbox")
        pair.append(1, "$Forwarded \\Seen")
        pair.deliver(11, "P")
        run_mbsync(pair)
        pair.assert_same("inbox")
        pair.mark(11, "-FLAGS", "$Forwarded")
        pair.flag(1, "FPRS")
        run_mbsync(pair)
        pair.assert_same("inbox")
        assert letters_by_number(pair.near_holds()) == {1: "FPRS", 11: ""}

    do_both(pairs, steps)


@needs_mbsync
def test_mbsync_expunges_what_is_marked_deleted_on_either_side(pairs: tuple[Pair, Pair]) -> None:
    def steps(pair: Pair) -> None:
        begin(pair)
        run_mbsync(pair)
        pair.flag(13, "FST")
        pair.flag(2, "ST")
        pair.mark(1, "+FLAGS", "\\Deleted")
        run_mbsync(pair)
        pair.assert_same("inbox")
        assert set(letters_by_number(pair.near_holds())) == {3, 4, 11, 12, 14}

    do_both(pairs, steps)


@pytest.mark.parametrize("sync", ONE_OF_EACH)
def test_what_comes_while_a_sync_runs_is_neither_lost_nor_doubled(
    pairs: tuple[Pair, Pair], sync: Sync
) -> None:
    def arrive(pair: Pair) -> None:
        for number in range(100, 100 + ARRIVALS, 2):
            pair.deliver(number)
            pair.append(number + 1)

    def steps(pair: Pair) -> None:
        begin(pair)
        with ThreadPoolExecutor(1) as pool:
            arriving = pool.submit(arrive, pair)
            sync(pair)
            while not arriving.done():
                sync(pair)
            arriving.result()
        sync(pair)
        pair.assert_same("inbox")
        expected = {1, 2, 3, 4, 11, 12, 13, 14, *range(100, 100 + ARRIVALS)}
        assert set(letters_by_number(pair.near_holds())) == expected

    do_both(pairs, steps)


@pytest.mark.parametrize("sync", ONE_OF_EACH)
def test_what_a_command_changes_reaches_the_account(pairs: tuple[Pair, Pair], sync: Sync) -> None:
    """There is no such command for a plain Maildir."""
    _, mounted = pairs
    mailfs = mounted.side.mailfs
    assert mailfs is not None
    mounted.side.folder("archive")
    begin(mounted)
    sync(mounted)
    mailfs.say("tag", "+archive", "-inbox", "--", "id:13@example.org")
    mailfs.say("tag", "+flagged", "+archive", "--", "id:2@example.org")
    sync(mounted)
    mounted.assert_same("inbox", "archive")
    assert set(letters_by_number(mounted.far_holds())) == {1, 2, 3, 4, 11, 12, 14}
    assert letters_by_number(mounted.far_holds())[2] == "FS"
    assert letters_by_number(mounted.far_holds("archive")) == {2: "FS", 13: "FS"}


# --- several folders


@pytest.mark.parametrize("sync", ONE_OF_EACH)
def test_messages_move_between_folders_and_folders_are_made_on_both_sides(
    pairs: tuple[Pair, Pair], sync: Sync
) -> None:
    folders = ("inbox", *FOLDERS)

    def steps(pair: Pair) -> None:
        begin(pair)
        with pair.far() as imap:
            imap.ok("create", "trips")
        pair.append(21, "\\Seen", "trips")
        pair.deliver(22, "F", "archive")
        pair.deliver(23, None, "lists/python")
        sync(pair)
        pair.assert_same(*folders)
        # A move near is a new name elsewhere; mutt and mu do that, and mbsync asks for it.
        path = pair.path(13)
        path.rename(pair.side.root / "archive" / "cur" / "moved.host:2,FS")
        with pair.far() as imap:
            imap.move(uids_of(imap, 2), "trips")
        with pair.far("trips") as imap:
            imap.copy(uids_of(imap, 21), "archive")
        sync(pair)
        pair.assert_same(*folders)
        assert set(letters_by_number(pair.near_holds())) == {1, 3, 4, 11, 12, 14}
        assert letters_by_number(pair.near_holds("archive")) == {13: "FS", 21: "S", 22: "F"}
        assert letters_by_number(pair.near_holds("trips")) == {2: "S", 21: "S"}
        # What is copied far ends in one folder and stays in the other.
        pair.path(21, "trips").unlink()
        pair.expunge(23, "lists/python")
        sync(pair)
        pair.assert_same(*folders)
        assert set(letters_by_number(pair.near_holds("trips"))) == {2}
        assert set(letters_by_number(pair.near_holds("archive"))) == {13, 21, 22}
        assert not pair.near_holds("lists/python")

    do_both(pairs, steps)


@pytest.mark.parametrize("sync", ONE_OF_EACH)
def test_two_copies_of_a_message_in_one_folder_stay_two(
    pairs: tuple[Pair, Pair], sync: Sync
) -> None:
    def steps(pair: Pair) -> None:
        pair.side.folder("inbox")
        for number in (1, 1, 2):
            pair.append(number, "\\Seen")
        sync(pair)
        pair.assert_same("inbox")
        assert pair.near_holds().total() == 3
        with pair.far() as imap:
            imap.delete(uids_of(imap, 1)[:1])
        sync(pair)
        pair.assert_same("inbox")
        assert letters_by_number(pair.near_holds()) == {1: "S", 2: "S"}
        pair.path(1).unlink()
        sync(pair)
        pair.assert_same("inbox")
        assert letters_by_number(pair.near_holds()) == {2: "S"}

    do_both(pairs, steps)


@pytest.mark.parametrize("sync", ONE_OF_EACH)
def test_a_message_with_two_labels_is_two_messages_of_the_account_with_the_same_flags(
    pairs: tuple[Pair, Pair], sync: Sync
) -> None:
    """Only where labels are: a plain Maildir has two files that know nothing of each other."""
    _, mounted = pairs
    mounted.side.folder("archive")
    mounted.deliver(1, "S")
    mounted.deliver(2)
    (mounted.side.root / "archive" / "cur" / "linked.host:2,S").hardlink_to(mounted.path(1))
    sync(mounted)
    mounted.assert_same("inbox", "archive")
    assert letters_by_number(mounted.far_holds("archive")) == {1: "S"}
    mounted.mark(1, "+FLAGS", "\\Flagged")
    sync(mounted)
    # The first brought the flag to the message, the second takes it to the other folder of the account.
    sync(mounted)
    mounted.assert_same("inbox", "archive")
    assert letters_by_number(mounted.far_holds("archive")) == {1: "FS"}
    mounted.expunge(1)
    sync(mounted)
    mounted.assert_same("inbox", "archive")
    assert letters_by_number(mounted.near_holds("archive")) == {1: "FS"}
    assert letters_by_number(mounted.near_holds()) == {2: ""}


# --- when something breaks


@needs_mbsync
def test_mbsync_that_is_interrupted_goes_on_where_it_was(pairs: tuple[Pair, Pair]) -> None:
    def steps(pair: Pair) -> None:
        begin(pair)
        run_mbsync(pair)
        change_on_both_sides(pair)
        configuration = mbsync_configuration(pair, alternative=False, inside=True)
        # -Tj: mbsync ends without a word when it has written so many lines of its journal.
        for lines in (1, 2, 3, 5, 8):
            done = pair.side.account.run("mbsync", "-c", configuration, f"-Tj{lines}", "-a")
            assert done.returncode in INTERRUPTED, done.stderr
            pair.again()
        run_mbsync(pair)
        pair.assert_same("inbox")
        assert letters_by_number(pair.near_holds()) == AFTER_THE_FIRST
        assert not {name for name in pair.side.files() if ".journal" in name or ".lock" in name}

    do_both(pairs, steps)


@pytest.mark.parametrize("sync", ONE_OF_EACH)
@pytest.mark.parametrize("is_dead", [True, False], ids=["dead", "unmounted"])
def test_a_mount_that_is_not_there_takes_nothing_from_the_account(
    pairs: tuple[Pair, Pair], sync: Sync, is_dead: bool
) -> None:
    _, mounted = pairs
    mailfs = mounted.side.mailfs
    assert mailfs is not None
    begin(mounted)
    sync(mounted)
    before = mounted.far_holds()
    assert before.total() == 8
    if is_dead:
        pid = mailfs.pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), "the daemon's end")
    else:
        mailfs.umount()
    # It may fail, or fill the empty folder that is there now.
    with suppress(AssertionError):
        sync(mounted)
    assert mounted.far_holds() == before
    mailfs.mount()
    sync(mounted)
    assert mounted.far_holds() == before
    mounted.assert_same("inbox")
    mailfs.umount()
