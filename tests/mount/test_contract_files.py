"""The Maildir contract of a mount, letters G, H, N, O: attributes, content, side-cars."""

import errno
import fcntl
import mmap
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes import make_message
from tests.mount.calls import deliver, refused, renameat2, spool
from tests.mount.mounting import Mailfs
from tests.mount.waiting import wait_until

RAW = make_message(1)
LONG_AGO_NS = 1_234_567_890_123_456_789


@pytest.fixture
def inbox(mailfs: Mailfs) -> Path:
    """The inbox of an empty store that is mounted."""
    mailfs.create()
    mailfs.mount()
    return mailfs.path("inbox")


# --- G. times, modes and owners


@pytest.mark.parametrize(
    "set_ns", [LONG_AGO_NS, 1, 0, -1_500_000_000, 1 << 62], ids=lambda set_ns: f"{set_ns}ns"
)
def test_the_time_a_delivery_agent_sets_is_the_messages_for_ever(
    mailfs: Mailfs, inbox: Path, set_ns: int
) -> None:
    path = spool(inbox, "timed", RAW)
    os.utime(path, ns=(set_ns, set_ns))
    path.rename(inbox / "cur/timed:2,")
    message = inbox / "cur/timed:2,"
    received_ns = message.stat().st_mtime_ns
    # 0 is no time, and none is before 1970 or ahead of the clock.
    assert 0 <= received_ns <= time.time_ns()
    assert received_ns == set_ns or not 0 < set_ns < time.time_ns()
    os.utime(message)
    os.utime(message, ns=(5, 5))
    assert message.stat().st_mtime_ns == received_ns
    seen = message.rename(inbox / "cur/timed:2,S")
    assert seen.stat().st_mtime_ns == received_ns
    # Under its own name in another view, which has the seconds in it.
    (other,) = mailfs.names("all")
    assert mailfs.path("all/cur", other).stat().st_mtime_ns == received_ns
    mailfs.umount()
    mailfs.mount()
    assert seen.stat().st_mtime_ns == received_ns
    assert seen.read_bytes() == RAW


def test_a_change_of_flags_moves_ctime_and_nothing_else(inbox: Path) -> None:
    path = deliver(inbox, "1.host:2,", RAW)
    before = path.stat()
    assert before.st_ctime_ns <= time.time_ns()
    after = path.rename(inbox / "cur/1.host:2,F").stat()
    assert after.st_ctime_ns > before.st_ctime_ns
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )


def test_times_modes_and_owners_of_a_file_in_tmp_are_as_on_any_disk(inbox: Path) -> None:
    started_ns = time.time_ns()
    path = spool(inbox, "1", RAW)
    found = path.stat()
    # Programs remove from tmp/ by atime (36 h) or ctime (24 h).
    assert min(found.st_atime_ns, found.st_ctime_ns, found.st_mtime_ns) >= started_ns - 10**8
    assert stat.S_IMODE(found.st_mode) == 0o600
    path.chmod(0o444)
    os.chown(path, os.getuid(), os.getgid())
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    os.utime(path, ns=(7, LONG_AGO_NS))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (7, LONG_AGO_NS)
    path.rename(inbox / "new/1")
    assert os.listdir(inbox / "new") == ["1"]


def test_chmod_chown_and_utime_of_messages_and_views_are_accepted_and_change_nothing(
    inbox: Path,
) -> None:
    path = deliver(inbox, "1.host:2,", RAW)
    for each in (path, inbox, inbox / "cur", inbox.parent):
        before = each.stat()
        each.chmod(0o755)
        os.chown(each, os.getuid(), os.getgid())
        os.utime(each, (1, 1))
        assert each.stat() == before
    assert path.read_bytes() == RAW


# --- H. size exact, content immutable


@pytest.mark.parametrize("size", [0, 1, 4096, 300_000, 5_000_000])
def test_a_message_of_any_size_is_exactly_as_long_as_it_says(inbox: Path, size: int) -> None:
    raw = (b"Subject: size\n\n" + b"0123456789abcdef" * (size // 16 + 1))[:size]
    path = inbox / "tmp/sized"
    path.write_bytes(raw)
    os.link(path, inbox / "cur/sized:2,")
    path.unlink()
    message = inbox / "cur/sized:2,"
    assert message.stat().st_size == size
    assert message.read_bytes() == raw
    assert (message.stat().st_blocks > 0) == (size > 0)
    assert message.stat().st_blocks * 512 >= size
    with message.open("rb") as file:
        assert os.pread(file.fileno(), 10, size) == b""
        assert os.pread(file.fileno(), 10, max(size - 4, 0)) == raw[max(size - 4, 0) :]
    if size:
        with message.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == raw


def test_a_message_cannot_be_written(inbox: Path) -> None:
    path = deliver(inbox, "1.host:2,", RAW)
    for flags in (
        os.O_WRONLY,
        os.O_RDWR,
        os.O_WRONLY | os.O_APPEND,
        os.O_RDONLY | os.O_TRUNC,
        os.O_WRONLY | os.O_CREAT,
        os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    ):
        with refused(errno.EPERM):
            os.open(path, flags)
    with refused(errno.EPERM):
        os.truncate(path, 0)
    assert path.read_bytes() == RAW


@pytest.mark.parametrize("call", [os.link, os.rename])
def test_a_file_that_is_being_written_becomes_a_message_when_it_is_closed(
    mailfs: Mailfs, inbox: Path, call: Callable[[Path, Path], None]
) -> None:
    path = spool(inbox, "1", RAW)
    with path.open("ab", buffering=0) as file:
        call(path, inbox / "cur/1:2,S")
        file.write(b"more\n")
        assert mailfs.count("*") == 0
        assert (inbox / "cur/1:2,S").read_bytes() == RAW + b"more\n"
    wait_until(lambda: mailfs.count("is:seen") == 1, "the message to be taken in")
    assert mailfs.names("inbox") == ["1:2,S"]
    assert (inbox / "cur/1:2,S").read_bytes() == RAW + b"more\n"
    assert os.listdir(inbox / "tmp") == (["1"] if call is os.link else [])


def test_a_delivered_file_cannot_be_changed_by_its_old_name(inbox: Path) -> None:
    path = spool(inbox, "1", RAW)
    os.link(path, inbox / "cur/1:2,")
    for change in (lambda: path.write_bytes(b"X"), lambda: os.truncate(path, 0)):
        with refused(errno.EPERM):
            change()
    path.unlink()
    assert (inbox / "cur/1:2,").read_bytes() == RAW


def test_an_editor_replaces_a_message_by_writing_another_and_renaming_it(
    mailfs: Mailfs, inbox: Path
) -> None:
    path = deliver(inbox, "1.host:2,FS", RAW)
    mailfs.say("tag", "+kept", "*")
    mailfs.say("save", "kept", "tag:kept")
    for temporary in (".1.host.swp", ".1.host:2,FS.XYZ123"):
        new = make_message(1, subject=temporary)
        with (inbox / "cur" / temporary).open("xb") as file:
            file.write(new)
        (inbox / "cur" / temporary).rename(path)
        assert mailfs.names("inbox") == [path.name]
        assert path.read_bytes() == new
        assert mailfs.count("tag:inbox is:flagged") == mailfs.count("tag:inbox") == 1
    # In the other view it was in, as in another folder it was linked to, the message is what it was.
    (kept,) = mailfs.names("kept")
    assert mailfs.path("kept/cur", kept).read_bytes() == RAW
    assert mailfs.count("*") == 2


# --- N. side-cars


def files_below(root: Path) -> dict[str, bytes | None]:
    """Content by path; None for directories."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in root.rglob("*")
    }


def test_side_cars_of_any_kind_are_kept_over_a_remount(mailfs: Mailfs, inbox: Path) -> None:
    def put(path: Path) -> None:
        path.write_bytes(str(path).encode())
        path.chmod(0o640)
        os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))

    for path in (
        mailfs.mountpoint / "subscriptions",
        mailfs.mountpoint / ".notmuch-config",
        inbox / "dovecot-uidlist",
        inbox / ".uidvalidity",
        inbox / "maildirfolder",
        inbox / "cur/.hidden",
        inbox / "new/.also",
        inbox / "tmp/waiting",
    ):
        put(path)
    (inbox / ".nnmaildir/num/deep er").mkdir(parents=True)
    put(inbox / ".nnmaildir/num/deep er/file")
    os.link(inbox / ".uidvalidity", inbox / ".nnmaildir/linked")
    (inbox / ".link").symlink_to("dovecot-uidlist")
    os.mkfifo(inbox / ".fifo")
    (inbox / "tmp/folder").mkdir(mode=0o750)

    def state() -> dict[str, tuple[int, ...]]:
        found = {str(path): path.lstat() for path in mailfs.mountpoint.rglob("*")}
        return {
            path: (each.st_ino, each.st_mode, each.st_nlink, each.st_mtime_ns, each.st_size)
            for path, each in found.items()
        }

    before = state()
    mailfs.umount()
    mailfs.mount()
    assert state() == before
    assert len(before) == 4 * 4 + 8 + 5 + 3
    assert (inbox / ".nnmaildir/num/deep er/file").read_bytes().endswith(b"deep er/file")
    assert (inbox / ".link").readlink() == Path("dovecot-uidlist")
    assert (inbox / ".uidvalidity").samefile(inbox / ".nnmaildir/linked")
    assert mailfs.count("*") == 0


def test_a_side_car_is_renamed_linked_cut_and_mapped_as_on_any_disk(
    mailfs: Mailfs, inbox: Path
) -> None:
    log = inbox / "dovecot.index.log"
    (inbox / "dovecot.index.log.newlock").write_bytes(b"x" * 5000)
    (inbox / "dovecot.index.log.newlock").rename(log)
    with log.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:4] = b"1234"
        mapped[4090:4100] = b"over pages"
        mapped.flush()
        os.rename(log, inbox / ".moved")
        mapped[4:6] = b"56"
        mapped.flush()
        assert os.pread(file.fileno(), 6, 0) == b"123456"
    moved = inbox / ".moved"
    assert moved.read_bytes()[4085:4105] == b"xxxxxover pagesxxxxx"
    mailfs.umount()
    mailfs.mount()
    assert moved.read_bytes()[:6] == b"123456"
    os.truncate(moved, 3)
    os.link(moved, inbox / "dotlock")
    with refused(errno.EEXIST):
        os.link(moved, inbox / "dotlock")
    with refused(errno.EEXIST):
        renameat2(moved, inbox / "dotlock", 1)
    assert (moved.stat().st_nlink, moved.stat().st_ino) == (2, (inbox / "dotlock").stat().st_ino)
    moved.unlink()
    assert (inbox / "dotlock").read_bytes() == b"123"
    assert (inbox / "dotlock").stat().st_nlink == 1


def test_a_clients_own_folder_is_moved_with_all_that_is_in_it_and_open(inbox: Path) -> None:
    (inbox / ".a/b").mkdir(parents=True)
    with (inbox / ".a/b/file").open("xb", buffering=0) as file:
        (inbox / ".a").rename(inbox.parent / ".moved")
        file.write(b"text")
        (inbox.parent / ".moved/b/more").write_bytes(b"more")
        assert files_below(inbox.parent / ".moved") == {
            "b": None,
            "b/file": b"text",
            "b/more": b"more",
        }
        with refused(errno.ENOTEMPTY):
            (inbox.parent / ".moved/b").rmdir()
        with refused(errno.EINVAL):
            (inbox.parent / ".moved").rename(inbox.parent / ".moved/b/inside")
    assert not (inbox / ".a").exists()


APPEND = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
for number in range(300):
    os.write(fd, f"{sys.argv[2]} {number}\\n".encode())
"""


def test_two_processes_append_to_one_file_and_no_line_is_lost(inbox: Path) -> None:
    log = inbox / "dovecot.log"
    words = ("a", "b")
    writers = [subprocess.Popen([sys.executable, "-c", APPEND, log, word]) for word in words]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    expected = {f"{word} {number}" for word in words for number in range(300)}
    lines = log.read_text().splitlines()
    assert len(lines) == 600
    assert set(lines) == expected


TRY_LOCKS = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
for lock in (fcntl.flock, fcntl.lockf):
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print("free", end=" ")
    except BlockingIOError:
        print("held", end=" ")
"""


def test_flock_and_fcntl_locks_hold_between_processes(inbox: Path) -> None:
    def other_finds(path: Path) -> str:
        return subprocess.check_output([sys.executable, "-c", TRY_LOCKS, path], text=True)

    for path in (inbox / ".lock", inbox / "tmp/lock"):
        with path.open("xb") as file:
            assert other_finds(path) == "free free "
            fcntl.flock(file, fcntl.LOCK_EX)
            assert other_finds(path) == "held free "
            fcntl.lockf(file, fcntl.LOCK_EX)
            assert other_finds(path) == "held held "
            fcntl.flock(file, fcntl.LOCK_UN)
            assert other_finds(path) == "free held "
        assert other_finds(path) == "free free "


# --- O. statfs, access, xattr


def test_access_is_that_of_the_owner(inbox: Path) -> None:
    path = deliver(inbox, "1.host:2,", RAW)
    assert os.access(path, os.R_OK)
    assert os.access(inbox / "cur", os.R_OK | os.W_OK | os.X_OK)
    assert not os.access(inbox / "cur/none", os.F_OK)


def test_statvfs_is_of_the_disk_and_extended_attributes_work_or_are_not_supported(
    mailfs: Mailfs, inbox: Path
) -> None:
    path = deliver(inbox, "1.host:2,", RAW)
    found, real = os.statvfs(path), os.statvfs(mailfs.store)
    assert (found.f_blocks, found.f_bsize, found.f_namemax) == (
        real.f_blocks,
        real.f_bsize,
        real.f_namemax,
    )
    (inbox / "file").write_bytes(b"")
    for each in (path, inbox / "file", inbox):
        with refused(errno.ENOTSUP):
            os.setxattr(each, "user.test", b"value")
        with refused(errno.ENOTSUP, errno.ENODATA):
            os.getxattr(each, "user.test")
