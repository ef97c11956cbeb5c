"""Files made directly in cur/ while the mount is killed: a half one is no message, a whole one is not lost."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from mailfs.store.store import Store
from tests.fakes import make_message
from tests.mount.mounting import Mailfs, is_alive
from tests.mount.waiting import wait_until

RAW = make_message(1, body="text\n" * 100)


def write_half(mailfs: Mailfs, path: Path) -> None:
    """Write to a new file, and kill the daemon before it is closed."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.write(fd, RAW[:50])
    kill(mailfs)
    # close(2) says that there is no daemon any more, if it asks.
    with suppress(OSError):
        os.close(fd)


def kill(mailfs: Mailfs) -> None:
    pid = mailfs.pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the daemon's end")


def spooled(mailfs: Mailfs) -> list[Path]:
    return [path for path in (mailfs.store / "spool").rglob("*") if path.is_file()]


def test_a_file_half_written_in_cur_when_the_mount_is_killed_goes_to_tmp(mailfs: Mailfs) -> None:
    mailfs.create()
    mailfs.mount()
    write_half(mailfs, mailfs.path("inbox", "cur", "1.a:2,"))
    mailfs.mount()
    assert mailfs.names("inbox") == []
    assert mailfs.path("inbox", "tmp", "1.a:2,.half").read_bytes() == RAW[:50]
    assert "inbox/tmp/1.a:2,.half was being written" in mailfs.path(".mailfs/errors").read_text()
    mailfs.path("inbox", "cur", "1.a:2,").write_bytes(RAW)
    wait_until(lambda: mailfs.count("*") == 1, "the message to be taken in")
    mailfs.umount()


def test_a_second_half_written_file_takes_no_name_from_the_first(mailfs: Mailfs) -> None:
    mailfs.create()
    mailfs.mount()
    mailfs.path("inbox", "tmp", "1.a.half").write_bytes(b"of another client")
    write_half(mailfs, mailfs.path("inbox", "new", "1.a"))
    mailfs.mount()
    assert mailfs.names("inbox", "new") == []
    assert mailfs.path("inbox", "tmp", "1.a.half").read_bytes() == b"of another client"
    assert mailfs.path("inbox", "tmp", "1.a.half.half").read_bytes() == RAW[:50]
    mailfs.umount()


def leave_closed(mailfs: Mailfs) -> Path:
    """A file a client has closed in cur/ while the store was busy, and whose mount was killed then."""
    mailfs.create()
    mailfs.mount()
    with Store.open(mailfs.store) as store, store.writer.lock.hold("test", 0):
        mailfs.path("inbox", "cur", "1.a:2,").write_bytes(RAW)
        (path,) = spooled(mailfs)
        wait_until(lambda: os.listxattr(path), "the close to be told to the daemon")
        kill(mailfs)
    return path


def test_a_file_closed_in_cur_before_the_mount_is_killed_becomes_a_message(mailfs: Mailfs) -> None:
    leave_closed(mailfs)
    mailfs.mount()
    wait_until(lambda: not spooled(mailfs), "the message to be taken in")
    assert mailfs.only("inbox").read_bytes() == RAW
    mailfs.umount()


def test_a_file_that_a_power_cut_left_with_zeros_is_no_message(mailfs: Mailfs) -> None:
    path = leave_closed(mailfs)
    with path.open("r+b") as file:
        file.seek(len(RAW) // 2)
        file.write(bytes(len(RAW) - len(RAW) // 2))
    mailfs.mount()
    assert mailfs.names("inbox") == []
    assert mailfs.path("inbox", "tmp", "1.a:2,.half").stat().st_size == len(RAW)
    mailfs.umount()
