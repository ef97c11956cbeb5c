"""What a failed fsync(2) may have lost, done to the files.

The kernel drops the pages that could not be written and marks them clean (Rebello et al., "Can Applications Recover from
fsync Failures?", USENIX ATC 2020): they are read as they were written until memory is needed, and then as they were on the
disk before. A page written to again is dirty again, as a whole, and goes to the disk with the next fsync that succeeds.
"""

import os
import struct
from collections import defaultdict
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

PAGE_BYTES = 4096
# struct change of shim.c: magic, what, inode, start, length, bytes of the old content that follow.
_HEAD = struct.Struct("<IIQQQQ")
_MAGIC = 0x746F7274


class _What(IntEnum):
    CHANGED = 1
    SYNCED = 2
    NOT_SYNCED = 3
    GONE = 4


@dataclass
class _File:
    """Pages by number, each with what the disk holds in its place."""

    dirty: dict[int, bytes] = field(default_factory=dict)
    lost: dict[int, bytes] = field(default_factory=dict)

    def change(self, page: int, before: bytes) -> None:
        if page in self.lost:
            self.dirty[page] = self.lost.pop(page)
        else:
            self.dirty.setdefault(page, before)

    def fail(self) -> None:
        self.lost |= self.dirty
        self.dirty.clear()


def lose(root: Path, log: bytes) -> int:
    """Put lost pages of files below `root` back to what the disk holds; how many there were.

    `log` is what shim.c has written. Nobody may have the files open.
    """
    files = _read(log)
    count = 0
    for path in sorted(root.rglob("*")):
        found = path.lstat()
        if found.st_ino in files and path.is_file():
            lost = files[found.st_ino].lost
            _put_back(path, found.st_size, lost)
            count += len(lost)
    return count


def _put_back(path: Path, size: int, pages: dict[int, bytes]) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        for page, content in pages.items():
            start = page * PAGE_BYTES
            # What was not there before is zeros now; the file's length has been kept.
            os.pwrite(fd, content.ljust(PAGE_BYTES, b"\0")[: max(size - start, 0)], start)
    finally:
        os.close(fd)


def _read(log: bytes) -> dict[int, _File]:
    files: dict[int, _File] = defaultdict(_File)
    position = 0
    while position < len(log):
        magic, what, inode, start, length, before = _HEAD.unpack_from(log, position)
        assert magic == _MAGIC, f"the log is none at {position}"
        position += _HEAD.size
        content = log[position : position + before]
        position += before
        file = files[inode]
        if what == _What.GONE:
            del files[inode]
        elif what == _What.SYNCED:
            file.dirty.clear()
        elif what == _What.NOT_SYNCED:
            file.fail()
        else:
            for offset in range(0, length, PAGE_BYTES):
                page = content[offset : offset + PAGE_BYTES]
                file.change((start + offset) // PAGE_BYTES, page)
    return files
