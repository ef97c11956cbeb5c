"""The Maildir contract of a mount, letter B: files on their way to be messages, also when the daemon is killed."""

import errno
import os
import signal
import threading
from contextlib import suppress
from itertools import chain, count
from pathlib import Path

import pytest

from tests.fakes import make_message
from tests.mount.calls import deliver, refused, spool
from tests.mount.mounting import Mailfs, is_alive
from tests.mount.waiting import DEADLINE_S, wait_until

RAW = make_message(1)
LONG_AGO_NS = 1_234_567_890_123_456_789


@pytest.fixture
def inbox(mailfs: Mailfs) -> Path:
    """The inbox of an empty store that is mounted."""
    mailfs.create()
    mailfs.mount()
    return mailfs.path("inbox")


# --- B. open(O_CREAT|O_EXCL) in tmp, reopen, read-back, unique inode, fsync


def test_a_name_in_tmp_is_given_once_until_it_is_free_again(inbox: Path) -> None:
    path = spool(inbox, "one", RAW)
    exclusive = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with refused(errno.EEXIST):
        os.open(path, exclusive)
    os.link(path, inbox / "new/one")
    with refused(errno.EEXIST):
        os.open(path, exclusive)
    path.unlink()
    os.close(os.open(path, exclusive))
    path.rename(inbox / "tmp/two")
    os.close(os.open(path, exclusive))
    assert sorted(os.listdir(inbox / "tmp")) == ["one", "two"]
    assert os.listdir(inbox / "new") == ["one"]


def test_every_file_has_an_inode_of_its_own_from_the_moment_it_is_made(inbox: Path) -> None:
    seen: dict[int, str] = {}
    fds = []
    for number in range(40):
        name = f"{number}.host"
        fd = os.open(inbox / "tmp" / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        inode = os.fstat(fd).st_ino
        assert inode == os.stat(inbox / "tmp" / name).st_ino
        assert inode not in seen, (name, seen[inode])
        seen[inode] = name
        os.write(fd, make_message(number))
        if number % 2:
            os.rename(inbox / "tmp" / name, inbox / "new" / name)
        # The number is still its own while it is open, delivered or not.
        assert os.fstat(fd).st_ino == inode
        fds.append(fd)
    for fd in fds:
        os.close(fd)
    assert len(os.listdir(inbox / "new")) == len(os.listdir(inbox / "tmp")) == 20


def test_a_file_made_when_a_delivered_one_has_gone_is_nothing_of_it(inbox: Path) -> None:
    """The disk below gives the number of a removed file to the next one."""
    for number in range(1, 11):
        raw = make_message(number)
        path = spool(inbox, f"{number}.host", raw)
        os.utime(path, ns=(LONG_AGO_NS + number, LONG_AGO_NS + number))
        path.rename(inbox / "cur" / f"{number}.host:2,")
        empty = inbox / "tmp" / "next"
        with empty.open("xb") as file:
            assert os.fstat(file.fileno()).st_size == 0
            file.write(b"something else")
        with empty.open("ab") as file:
            file.write(b", and more")
        assert empty.read_bytes() == b"something else, and more"
        os.truncate(empty, 4)
        assert empty.read_bytes() == b"some"
        empty.unlink()
    for number in range(1, 11):
        path = inbox / "cur" / f"{number}.host:2,"
        assert path.stat().st_mtime_ns == LONG_AGO_NS + number
        assert path.read_bytes() == make_message(number)


def test_after_link_and_after_rename_who_has_the_file_open_reads_it_to_the_end(
    inbox: Path,
) -> None:
    for name, give_name in (("linked", os.link), ("renamed", os.rename)):
        raw = make_message(5, subject=name)
        with spool(inbox, name, raw).open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            give_name(inbox / "tmp" / name, inbox / "cur" / f"{name}:2,")
            assert os.fstat(file.fileno()).st_ino == inode
            assert os.fstat(file.fileno()).st_size == len(raw)
            assert file.read() == raw
            (inbox / "tmp" / name).unlink(missing_ok=True)
            (inbox / "cur" / f"{name}:2,").unlink()
            file.seek(0)
            assert file.read() == raw


def test_a_file_is_opened_again_by_its_path_while_it_is_written(inbox: Path) -> None:
    path = inbox / "tmp/again"
    with path.open("xb", buffering=0) as writer, path.open("rb+", buffering=0) as other:
        writer.write(b"first ")
        assert other.read() == b"first "
        assert path.read_bytes() == b"first "
        other.write(b"second ")
        writer.seek(0, os.SEEK_END)
        writer.write(b"third")
        other.seek(0)
        assert other.read() == b"first second third"
        assert path.stat().st_size == os.fstat(writer.fileno()).st_size == 18


def test_what_is_written_read_back_cut_and_grown_is_what_is_delivered(inbox: Path) -> None:
    path = inbox / "tmp/cut"
    with path.open("x+b", buffering=0) as file:
        file.write(b"Subject: a longer one\n\n")
        file.seek(0)
        assert file.read() == b"Subject: a longer one\n\n"
        os.ftruncate(file.fileno(), 10)
        file.seek(20)
        file.write(b"\n\nbody\n")
        file.seek(0)
        expected = b"Subject: a" + bytes(10) + b"\n\nbody\n"
        assert file.read() == expected
        os.truncate(path, 1000)
        assert os.fstat(file.fileno()).st_size == 1000
        os.truncate(path, len(expected))
        os.posix_fallocate(file.fileno(), 0, 10)
    path.rename(inbox / "cur/cut:2,")
    assert (inbox / "cur/cut:2,").read_bytes() == expected
    with spool(inbox, "again", RAW).open("wb") as file:
        assert os.fstat(file.fileno()).st_size == 0
        file.write(b"new")
    assert (inbox / "tmp/again").read_bytes() == b"new"


def test_a_file_removed_while_it_is_open_can_be_read_and_written_and_is_gone(inbox: Path) -> None:
    path = inbox / "tmp/gone"
    with path.open("x+b", buffering=0) as file:
        file.write(b"one")
        path.unlink()
        assert not path.exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(b" two")
        os.fchmod(file.fileno(), 0o640)
        os.utime(file.fileno(), ns=(1, LONG_AGO_NS))
        os.ftruncate(file.fileno(), 5)
        file.seek(0)
        assert file.read() == b"one t"
        assert os.fstat(file.fileno()).st_size == 5
    assert os.listdir(inbox / "tmp") == []


def test_fsync_and_fdatasync_are_accepted_on_everything(mailfs: Mailfs, inbox: Path) -> None:
    deliver(inbox, "1.host:2,", RAW)
    (inbox / "dovecot-uidlist").write_bytes(b"3 V1\n")
    (inbox / ".nnmaildir").mkdir()
    for path in (
        mailfs.mountpoint,
        inbox,
        *inbox.iterdir(),
        inbox / "cur/1.host:2,",
        spool(inbox, "x", RAW),
    ):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.fdatasync(fd)
        os.close(fd)


def test_a_delivery_survives_a_daemon_that_is_killed_right_behind_it(
    mailfs: Mailfs, inbox: Path
) -> None:
    pid = mailfs.pid
    for name, give_name in (("linked", os.link), ("renamed", os.rename)):
        path = spool(inbox, name, make_message(1, subject=name))
        give_name(path, inbox / "new" / name)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the end of the daemon")
    with refused(errno.ENOTCONN, errno.ECONNABORTED):
        os.listdir(inbox)
    mailfs.mount()
    assert mailfs.names("inbox", "new") == ["linked", "renamed"]
    for name in ("linked", "renamed"):
        assert (inbox / "new" / name).read_bytes() == make_message(1, subject=name)
    mailfs.umount()


def test_whatever_was_acknowledged_is_there_when_the_daemon_is_killed_at_any_time(
    mailfs: Mailfs, inbox: Path
) -> None:
    pid = mailfs.pid
    acknowledged: list[list[str]] = [[] for _ in range(3)]

    def deliver_until_killed(word: int) -> None:
        with suppress(OSError):
            for number in count():
                name = f"{word}.{number}"
                path = spool(inbox, name, make_message(number, subject=name))
                os.link(path, inbox / "new" / name)
                acknowledged[word].append(name)
                path.unlink()
                (inbox / "new" / name).rename(inbox / "cur" / f"{name}:2,S")
                acknowledged[word][-1] = f"{name}:2,S"

    threads = [threading.Thread(target=deliver_until_killed, args=(word,)) for word in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: min(map(len, acknowledged)) >= 10, "some deliveries")
    os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(DEADLINE_S)
    wait_until(lambda: not is_alive(pid), "the end of the daemon")
    mailfs.mount()
    names = {*mailfs.names("inbox"), *mailfs.names("inbox", "new")}
    # What was killed on the way may have come further than its client was told.
    bases = {name.partition(":")[0] for name in names}
    assert len(names) == len(bases) <= sum(map(len, acknowledged)) + 3
    for name in chain(*acknowledged):
        shown = name if name in names else f"{name}:2,S"
        assert shown in names
        part = "cur" if ":" in shown else "new"
        number = int(name.partition(":")[0].partition(".")[2])
        raw = make_message(number, subject=name.partition(":")[0])
        assert (inbox / part / shown).read_bytes() == raw
    mailfs.umount()


def test_a_message_of_100_megabytes_is_delivered_and_read_in_bounded_memory(
    mailfs: Mailfs, inbox: Path
) -> None:
    def peak_kib() -> int:
        status = Path(f"/proc/{mailfs.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])

    before = peak_kib()
    block = os.urandom(1 << 16) * 16
    path = inbox / "tmp/large"
    with path.open("xb") as file:
        file.write(b"Subject: large\n\n")
        for _ in range(100):
            file.write(block)
    path.rename(inbox / "cur/large:2,")
    with (inbox / "cur/large:2,").open("rb") as message:
        assert message.readline() == b"Subject: large\n"
        message.readline()
        assert all(message.read(len(block)) == block for _ in range(100))
        assert message.read() == b""
    assert peak_kib() - before < 80 * 1024


def test_what_was_not_delivered_is_still_in_tmp_after_a_crash(mailfs: Mailfs, inbox: Path) -> None:
    pid = mailfs.pid
    spool(inbox, "waiting", RAW)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the end of the daemon")
    mailfs.mount()
    (inbox / "tmp/waiting").rename(inbox / "new/waiting")
    assert (inbox / "new/waiting").read_bytes() == RAW
    assert os.listdir(inbox / "tmp") == []
    mailfs.umount()


# --- B and H. files made directly in cur and new are taken in when they are closed


def test_cp_into_cur_is_taken_in_when_it_is_closed(mailfs: Mailfs, inbox: Path) -> None:
    path = inbox / "cur/copied:2,S"
    with path.open("xb") as file:
        file.write(RAW[:10])
        file.flush()
        assert mailfs.count("*") == 0
        assert path.stat().st_size == 10
        file.write(RAW[10:])
    wait_until(lambda: mailfs.count("*") == 1, "the message is taken in")
    assert mailfs.names("inbox") == ["copied:2,S"]
    assert path.read_bytes() == RAW
    with refused(errno.EPERM):
        path.open("ab")


def test_a_file_that_is_written_in_cur_can_be_renamed_and_is_taken_in_whole(
    mailfs: Mailfs, inbox: Path
) -> None:
    """As aerc does, which takes all of new/ to cur/ while cp(1) is still writing."""
    with (inbox / "new/1").open("xb", buffering=0) as file:
        file.write(RAW[:10])
        (inbox / "new/1").rename(inbox / "cur/1:2,")
        (inbox / "cur/1:2,").rename(inbox / "cur/1:2,S")
        file.write(RAW[10:])
    wait_until(lambda: mailfs.count("*") == 1, "the message is taken in")
    assert mailfs.names("inbox") == ["1:2,S"]
    assert (inbox / "cur/1:2,S").read_bytes() == RAW
    assert mailfs.count("is:seen") == 1


def test_what_a_view_would_not_show_stays_a_file_in_it(mailfs: Mailfs, inbox: Path) -> None:
    mailfs.say("save", "bob", "from:bob@example.org")
    path = mailfs.path("bob/cur/1:2,S")
    path.write_bytes(RAW)
    wait_until(lambda: "would not show" in mailfs.log_text(), "the refusal")
    for _ in range(2):
        assert mailfs.names("bob") == ["1:2,S"]
        assert path.read_bytes() == RAW
        assert mailfs.count("*") == 0
        mailfs.umount()
        mailfs.mount()
    path.rename(inbox / "cur/1:2,S")
    assert mailfs.names("bob") == []
    assert mailfs.count("tag:inbox is:seen") == 1
