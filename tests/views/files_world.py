"""Short words for what tests do to ordinary files."""

import os

import pytest

from mailfs.ids import Ino
from mailfs.views.files import FileAttributes, Files, Place

NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR


def put(files: Files, place: Place, name: bytes, content: bytes = b"") -> FileAttributes:
    """Make a file and close it."""
    fd, attributes = files.create(place, name, NEW, 0o600)
    os.write(fd, content)
    os.close(fd)
    return attributes


def open_new(files: Files, place: Place, name: bytes, flags: int = NEW) -> tuple[Ino, int]:
    """Make a file and keep it open, as a client of the mount would."""
    fd, attributes = files.create(place, name, flags, 0o600)
    files.opened(attributes.ino, fd, flags)
    return attributes.ino, fd


def close(files: Files, ino: Ino, fd: int) -> None:
    files.closed(ino, fd)
    os.close(fd)


def names(files: Files, place: Place) -> list[bytes]:
    return [entry.name for entry in files.entries(place)]


def content(files: Files, ino: Ino) -> bytes:
    fd = files.open(ino, os.O_RDONLY)
    try:
        return os.pread(fd, 1000, 0)
    finally:
        os.close(fd)


def ino_of(files: Files, place: Place, name: bytes) -> Ino:
    found = files.lookup_or_none(place, name)
    assert found is not None
    return found.ino


def two_of_one_number(
    files: Files, place: Place, *, is_forgotten: bool = False
) -> tuple[FileAttributes, FileAttributes]:
    """A file `first` that was removed, and another, `second`, that got its number from the real file system.

    `is_forgotten`: the kernel had forgotten the first by then.
    """
    for _ in range(200):
        first = put(files, place, b"first")
        files.unlink(place, b"first")
        if is_forgotten:
            files.forget(first.ino)
        second = put(files, place, b"second")
        if second.stat.st_ino == first.stat.st_ino:
            return first, second
        files.unlink(place, b"second")
        files.forget(second.ino)
    pytest.skip("this file system gives no number twice")
