"""The write-ahead log of the index, read without SQLite (sqlite.org/fileformat2.html#walformat).

SQLite looks at the checksums of the frames only after a crash, and then gives up everything behind the first bad one
without a word; and when the last program closes the index, the log is gone. So this is read before SQLite opens it.
"""

import functools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mailfs.errors import storage_error

_HEADER = struct.Struct(">IIIIIIII")
_FRAME = struct.Struct(">IIIIII")
# The log's directory is in the byte order of its machine: versions and a counter, whether it is set, the order of the
# checksums, bytes of a page, frames, pages of the index, a checksum, the salt of the log.
_INDEX_HEADER = struct.Struct("=12sBBHII8s8s")
# With the lowest bit set the words that are summed are big endian.
_MAGIC = 0x377F0682
_MASK = 0xFFFFFFFF
_PAGE_BYTES = range(512, 65537)


class Frame(NamedTuple):
    """A version of one page: `page` counts from 1, its bytes lie at `offset` of the log's file.

    `pages`: how many the index has after it, in the last frame of a transaction; 0 in the others. `is_good`: it matches
    its checksum.
    """

    page: int
    offset: int
    pages: int
    is_good: bool


class Wal(NamedTuple):
    """What a log holds of its newest generation. `readable` frames from the start are what SQLite would go by."""

    page_bytes: int
    frames: tuple[Frame, ...]
    readable: int
    is_header_good: bool
    # So many frames the programs knew that had the index open last, if that is known: not behind a power cut.
    known: int = 0


def wal_path(index: Path) -> Path:
    """The log of an index."""
    return Path(f"{index}-wal")


def read_wal_or_none(index: Path) -> Wal | None:
    """The log of an index; None where there is none, or an empty one. Some 0.1 ms a frame. Raises StoreError."""
    path = wal_path(index)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(error, f"cannot read {path}") from error
    return parse_wal(content)._replace(known=_known_frames(index, content)) if content else None


def _known_frames(index: Path, content: bytes) -> int:
    """How many frames of this generation are said to be there by the log's directory, which SQLite does not believe."""
    try:
        path = Path(f"{index}-shm")
        found = path.stat()
        header = os.pread(_kept_open(path, found.st_dev, found.st_ino), _INDEX_HEADER.size, 0)
        _, is_set, _, page_bytes, frames, _, _, salt = _INDEX_HEADER.unpack(header)
    except (OSError, struct.error):
        return 0
    return int(frames) if is_set and page_bytes and salt == content[16:24] else 0


@functools.cache
def _kept_open(path: Path, device: int, inode: int) -> int:
    """The file, open until the process ends: closing it would drop the locks SQLite has on it in this process (fcntl(2))."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)


def parse_wal(content: bytes) -> Wal:
    """The frames in the bytes of a log. What is behind the last frame of its generation is of an older one."""
    if len(content) < _HEADER.size:
        return Wal(0, (), 0, is_header_good=False)
    magic, _, page_bytes, _, salt1, salt2, check1, check2 = _HEADER.unpack_from(content)
    order = ">" if magic & 1 else "<"
    head = content[: _HEADER.size - 8]
    is_header_good = (
        magic & ~1 == _MAGIC
        and page_bytes in _PAGE_BYTES
        and _checksum(order, head, 0, 0) == (check1, check2)
    )
    if not is_header_good:
        return Wal(page_bytes, (), 0, is_header_good=False)
    frames = tuple(_iter_frames(content, order, page_bytes, (salt1, salt2), (check1, check2)))
    readable = 0
    for number, frame in enumerate(frames, 1):
        if not frame.is_good:
            break
        if frame.pages:
            readable = number
    return Wal(page_bytes, frames, readable, is_header_good=True)


def _iter_frames(
    content: bytes, order: str, page_bytes: int, salt: tuple[int, int], check: tuple[int, int]
) -> Iterator[Frame]:
    """Frames of this generation, up to the last that has its salt: behind a damaged one there may be sound ones.

    The checksum of each goes on from that of the one before it, as written there.
    """
    places = range(
        _HEADER.size, len(content) - page_bytes - _FRAME.size + 1, page_bytes + _FRAME.size
    )
    heads = [(place, _FRAME.unpack_from(content, place)) for place in places]
    last = max((n for n, (_, head) in enumerate(heads) if head[2:4] == salt), default=-1)
    for place, (page, pages, salt1, salt2, check1, check2) in heads[: last + 1]:
        start = place + _FRAME.size
        found = _checksum(order, content[place : place + 8], *check)
        found = _checksum(order, content[start : start + page_bytes], *found)
        check = (check1, check2)
        yield Frame(page, start, pages, (salt1, salt2) == salt and found == check and page > 0)


def _checksum(order: str, data: bytes, s1: int, s2: int) -> tuple[int, int]:
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for first, second in zip(words[::2], words[1::2], strict=True):
        s1 = (s1 + first + s2) & _MASK
        s2 = (s2 + second + s1) & _MASK
    return s1, s2
