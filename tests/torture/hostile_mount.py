"""A client that means harm, on a mount: noise, too much of everything, and another user."""

import ctypes
import ctypes.util
import errno
import fcntl
import os
import resource
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.mount.mounting import Mailfs

_libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)

# linux/fs.h, linux/fscrypt.h, linux/fsverity.h, linux/fuse.h and numbers that are nobody's.
_IOCTLS = (
    *(
        0x80086601,
        0x40086602,
        0x80087601,
        0x40087602,
        0x801C581F,
        0x401C5820,
        0xC0045877,
        0xC0045878,
    ),
    *(0x40049409, 0x4020940D, 0xC0189436, 0x8010661B, 0xC0406619, 0x40806685, 0x80041272, 0x5401),
    *(0x5413, 0x541B, 0x0, 0xFFFFFFFF, 0xC0207FFF, 0x8004587D),
)
_XATTRS = (
    "user.x",
    "security.selinux",
    "system.posix_acl_access",
    "trusted.x",
    "system.nfs4_acl",
    "x",
    "",
    "user." + "x" * 250,
)


@contextmanager
def mounted(mailfs: Mailfs, *flags: str) -> Iterator[Mailfs]:
    """Mounted within the block; afterwards nothing is, and the log holds no fault."""
    mailfs.mount(*flags)
    pid = mailfs.pid
    try:
        yield mailfs
        assert mailfs.pids() == [pid], "the daemon is not the one it was"
        mailfs.umount()
    finally:
        mailfs.end()
    text = mailfs.log_text()
    assert "Traceback" not in text, text
    assert " ERROR " not in text, text


def places_of(mailfs: Mailfs) -> list[Path]:
    """One of everything there is on a mount."""
    view = mailfs.path("inbox")
    side = view / ".client-state"
    side.write_bytes(b"x")
    spooled = view / "tmp" / "spooled"
    spooled.write_bytes(b"Subject: spooled\n\n")
    return [
        mailfs.mountpoint,
        view,
        view / "cur",
        view / "new",
        view / "tmp",
        view / "cur" / mailfs.names("inbox")[0],
        side,
        spooled,
        mailfs.path(".mailfs"),
        mailfs.path(".mailfs", "status"),
        mailfs.path(".mailfs", "views", "inbox", "query"),
    ]


def make_noise(path: Path, random: Random) -> int:
    """Extended attributes and ioctls on one file or folder; the number of calls. None may do more than fail."""
    calls = 0
    for name in _XATTRS:
        for value in (b"", b"x", random.randbytes(60_000)):
            with suppress(OSError, ValueError):
                os.setxattr(path, name, value, follow_symlinks=False)
            calls += 1
        with suppress(OSError, ValueError):
            os.getxattr(path, name)
        with suppress(OSError, ValueError):
            os.removexattr(path, name)
        calls += 2
    with suppress(OSError):
        os.listxattr(path)
    fd = os.open(path, os.O_RDONLY)
    try:
        for number in (*_IOCTLS, *(random.getrandbits(32) for _ in range(20))):
            with suppress(OSError):
                fcntl.ioctl(fd, number, bytearray(random.randbytes(1024)), True)
            calls += 1
        calls += _other_calls(fd)
    finally:
        os.close(fd)
    return calls + 1


def _other_calls(fd: int) -> int:
    """Calls that a mail store has no answer to."""
    buffer = ctypes.create_string_buffer(4096)
    with suppress(OSError):
        os.posix_fallocate(fd, 0, 1 << 62)
    with suppress(OSError):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    for flags in (os.F_LOCK, os.F_TEST, os.F_ULOCK):
        with suppress(OSError):
            os.lockf(fd, flags | 0, 1)
    for operation in (fcntl.LOCK_SH | fcntl.LOCK_NB, fcntl.LOCK_UN):
        with suppress(OSError):
            fcntl.flock(fd, operation)
    for whence in (3, 4, 99):
        with suppress(OSError):
            os.lseek(fd, 1 << 62, whence)
    for size in (-1, 1 << 62):
        _libc.pread(fd, buffer, ctypes.c_size_t(4096), ctypes.c_int64(size))
        _libc.pwrite(fd, buffer, ctypes.c_size_t(1), ctypes.c_int64(size))
        _libc.ftruncate(fd, ctypes.c_int64(size))
    return 15


def look_up_absent(mailfs: Mailfs, count: int) -> None:
    """Names that are not there, all different: nothing is kept of any."""
    view = mailfs.path("inbox")
    folders = [
        mailfs.mountpoint,
        view,
        view / "cur",
        view / "new",
        view / "tmp",
        mailfs.path(".mailfs"),
    ]
    for number in range(count):
        path = folders[number % len(folders)] / f"{secrets.token_hex(8)}.{number}"
        try:
            os.lstat(path)
        except FileNotFoundError:
            continue
        raise AssertionError(f"{path} is there")


class Opened(NamedTuple):
    """What somebody holds open, and how often opening was refused for want of descriptors."""

    messages: int
    files: int
    refused: int


@contextmanager
def many_open(mailfs: Mailfs, count: int) -> Iterator[Opened]:
    """So many files held open within the block, most of them messages, every third one a file of another program.

    By several processes, because one may not have so many. Raises AssertionError where a message is refused, or a file
    for another reason than that there are no descriptors.
    """
    view = mailfs.path("inbox")
    message = view / "cur" / mailfs.names("inbox")[0]
    each = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100
    children: list[tuple[int, int]] = []
    told = [0, 0, 0]
    try:
        for start in range(0, count, each):
            children.append(_fork_opener(message, view, start, min(start + each, count)))
        for _, answers in children:
            answer = os.read(answers, 4096).decode()
            assert answer.startswith("open "), answer
            told = [sum(pair) for pair in zip(told, map(int, answer.split()[1:]), strict=True)]
        yield Opened(*told)
    finally:
        for pid, answers in children:
            os.close(answers)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _fork_opener(message: Path, view: Path, start: int, stop: int) -> tuple[int, int]:
    """A process that holds files open until it is killed: its pid, and where it answers."""
    answers, answer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(answer)
        return pid, answers
    try:
        told = _open_all(message, view, range(start, stop))
        os.write(answer, told.encode())
        signal.pause()
    finally:
        os._exit(0)


def _open_all(message: Path, view: Path, numbers: range) -> str:
    counts = [0, 0, 0]
    for number in numbers:
        is_file = number % 3 == 2
        path = view / f".side-{number}" if is_file else message
        try:
            os.open(path, os.O_RDWR | os.O_CREAT if is_file else os.O_RDONLY, 0o600)
        except OSError as error:
            if not is_file or error.errno not in (errno.EMFILE, errno.ENFILE):
                return f"{path.name} was refused: {error}"
            counts[2] += 1
        else:
            counts[is_file] += 1
    return f"open {counts[0]} {counts[1]} {counts[2]}"
