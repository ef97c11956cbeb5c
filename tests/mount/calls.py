"""What clients do to a Maildir, call by call, and system calls Python has no name for."""

import ctypes
import ctypes.util
import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

# linux/fs.h, linux/fcntl.h
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
_AT_FDCWD = -100

_libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)


def check(result: int) -> int:
    """The result of a call into libc; its errno as an OSError."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def renameat2(old: Path, new: Path, flags: int) -> None:
    """renameat2(2)."""
    check(_libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags))


@contextmanager
def refused(*codes: int) -> Iterator[None]:
    """What is done in the block fails with one of these errnos."""
    with pytest.raises(OSError) as caught:  # noqa: PT011  # its errno is looked at
        yield
    names = [errno.errorcode[code] for code in codes]
    assert errno.errorcode.get(caught.value.errno or 0) in names, caught.value


def spool(view: Path, name: str, raw: bytes) -> Path:
    """Write a file into tmp/ as delivery agents do. Its path."""
    path = view / "tmp" / name
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        assert os.write(fd, raw) == len(raw)
        os.fsync(fd)
    finally:
        os.close(fd)
    return path


def deliver(view: Path, name: str, raw: bytes, part: str = "cur") -> Path:
    """tmp/, link, unlink. The path of the message as it was named."""
    path = view / part / name
    # The name in tmp/ needs no room for letters, and no two deliveries have the same.
    spooled = spool(view, name.partition(":")[0], raw)
    os.link(spooled, path)
    spooled.unlink()
    return path


class _Dirent(ctypes.Structure):
    """struct dirent64 of glibc on 64-bit Linux."""

    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_uint16),
        ("d_type", ctypes.c_uint8),
        ("d_name", ctypes.c_char * 256),
    )


class Dirent(NamedTuple):
    """One entry of readdir(3)."""

    name: bytes
    ino: int
    type: int


DT_DIR = 4
DT_REG = 8

_libc.opendir.restype = ctypes.c_void_p
_libc.readdir64.restype = ctypes.POINTER(_Dirent)
_libc.readdir64.argtypes = _libc.closedir.argtypes = _libc.telldir.argtypes = (ctypes.c_void_p,)
_libc.rewinddir.argtypes = (ctypes.c_void_p,)
_libc.rewinddir.restype = None
_libc.telldir.restype = ctypes.c_long
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)
_libc.seekdir.restype = None


class Listing:
    """opendir(3) and what belongs to it."""

    def __init__(self, path: Path) -> None:
        self._stream: int | None = _libc.opendir(os.fsencode(path))
        if self._stream is None:
            check(-1)

    def next_or_none(self) -> Dirent | None:
        """readdir(3); None at the end."""
        ctypes.set_errno(0)
        entry = _libc.readdir64(self._stream)
        if not entry:
            check(-1 if ctypes.get_errno() else 0)
            return None
        found = entry.contents
        return Dirent(found.d_name, found.d_ino, found.d_type)

    def rest(self) -> list[Dirent]:
        """Everything that still comes, without `.` and `..`."""
        return [entry for entry in iter(self.next_or_none, None) if entry.name not in (b".", b"..")]

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)

    def __enter__(self) -> "Listing":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_view(path: Path) -> Path:
    """mkdir by a process that ends: to everybody else the new view is whole at once."""
    subprocess.run(["mkdir", path], check=True)
    return path
