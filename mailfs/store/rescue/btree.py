"""The trees of an SQLite file, read page by page without SQLite (sqlite.org/fileformat2.html), whatever is damaged in it.

A page that cannot be read loses what is on it; the leaves below a damaged inner page are found again among the pages that
no tree leads to. Nothing is written, and no file is opened with SQLite, which would cut off the log at its first bad frame.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import apsw

from mailfs.errors import storage_error
from mailfs.store.checksums import use_checksums
from mailfs.store.rescue.wal import read_wal_or_none, wal_path

Value = int | float | str | bytes | None
Record = tuple[Value, ...]

_USUAL_PAGE_BYTES = 4096
# What the checksums of cksumvfs take at the end of a page.
_RESERVED_BYTES = 8
_HEADER_BYTES = 100
_INDEX_INNER, _TABLE_INNER, _INDEX_LEAF, _TABLE_LEAF = 2, 5, 10, 13
# A record of ours is far shorter; a length beyond is damage, and nothing is allocated for it.
_MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
_FIXED_BYTES = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 7: 8, 8: 0, 9: 0}
_FLOAT = struct.Struct(">d")


class Cell(NamedTuple):
    """One row or key. `rowid` is 0 in an index. `is_doubtful`: its page does not match its checksum."""

    rowid: int
    values: Record
    is_doubtful: bool


class _Damage(Exception):
    """What is read is not what SQLite writes."""


class Trees:
    """The trees of one file as its newest pages, those of its log included, tell them. close() it."""

    def __init__(self, path: Path) -> None:
        """Raises StoreError when there is a file and it cannot be read; without one there are no trees."""
        self._fd = self._log_fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            self._size = os.fstat(self._fd).st_size
            header = os.pread(self._fd, _HEADER_BYTES, 0)
        except FileNotFoundError:
            self._size, header = 0, b""
        except OSError as error:
            raise storage_error(error, f"cannot read {path}") from error
        self._in_log: dict[int, int] = {}
        self.page_bytes, self._usable = _page_sizes(header)
        self._read_log(path)
        self._count = max(self._size // self.page_bytes, *self._in_log, 0)
        self._verifier = _verifier()
        self._visited: set[int] = set()

    @property
    def is_empty(self) -> bool:
        """There is no file, or nothing in it."""
        return self._count == 0

    def close(self) -> None:
        for fd in (self._fd, self._log_fd):
            if fd >= 0:
                os.close(fd)
        self._verifier.close()

    def _read_log(self, path: Path) -> None:
        """Where the newest version of each page lies in the log: good frames up to the last that ends a transaction."""
        wal = read_wal_or_none(path) if self._size else None
        if wal is None or not wal.frames:
            return
        self.page_bytes = wal.page_bytes
        last = max((n for n, frame in enumerate(wal.frames) if frame.pages), default=-1)
        for frame in wal.frames[: last + 1]:
            if frame.is_good:
                self._in_log[frame.page] = frame.offset
        self._log_fd = os.open(wal_path(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        if 1 in self._in_log:
            _, self._usable = _page_sizes(os.pread(self._log_fd, _HEADER_BYTES, self._in_log[1]))

    def _page(self, number: int) -> bytes:
        if number in self._in_log:
            return os.pread(self._log_fd, self.page_bytes, self._in_log[number])
        return os.pread(self._fd, self.page_bytes, (number - 1) * self.page_bytes)

    def _is_doubtful(self, number: int, page: bytes) -> bool:
        """Frames of the log have been checked already; indexes before format 3 have no checksums."""
        has_checksums = self.page_bytes - self._usable == _RESERVED_BYTES
        return has_checksums and number not in self._in_log and not self._matches(page)

    def _matches(self, page: bytes) -> bool:
        row = self._verifier.execute("SELECT verify_checksum(?)", (page,)).fetchone()
        return row is not None and row[0] == 1

    # --- trees

    def cells(self, root: int, problems: list[str]) -> Iterator[Cell]:
        """All cells of the tree at a root page that can be read, in no certain order; what cannot goes into `problems`."""
        stack, seen = [root], set[int]()
        while stack:
            number = stack.pop()
            if not 0 < number <= self._count or number in seen:
                problems.append(f"page {number} is where it cannot be")
                continue
            seen.add(number)
            self._visited.add(number)
            page = self._page(number)
            is_doubtful = self._is_doubtful(number, page)
            if is_doubtful:
                problems.append(f"page {number} does not match its checksum")
            try:
                node = _Node(page, number, self._usable)
            except _Damage as damage:
                problems.append(f"page {number}: {damage}")
                continue
            stack += node.children()
            yield from self._cells(node, problems, is_doubtful=is_doubtful)

    def _cells(self, node: "_Node", problems: list[str], *, is_doubtful: bool) -> Iterator[Cell]:
        if node.kind == _TABLE_INNER:
            return
        for place in node.places:
            problems_before = len(problems)
            try:
                rowid, values = self._cell(node, place, problems)
                yield Cell(rowid, values, is_doubtful or len(problems) > problems_before)
            except (_Damage, IndexError, struct.error, UnicodeDecodeError) as damage:
                problems.append(f"page {node.number}: the cell at {place} cannot be read: {damage}")

    def _cell(self, node: "_Node", place: int, problems: list[str]) -> tuple[int, Record]:
        if node.kind == _INDEX_INNER:
            place += 4  # the page below
        length, place = _varint(node.page, place)
        rowid = 0
        if node.kind == _TABLE_LEAF:
            rowid, place = _varint(node.page, place)
        if length > _MAX_PAYLOAD_BYTES:
            raise _Damage("is too long")
        local = self._local_bytes(length, is_table=node.kind == _TABLE_LEAF)
        payload = node.page[place : place + local]
        if local < length:
            first = int.from_bytes(node.page[place + local : place + local + 4], "big")
            payload += self._overflow(first, length - local, problems)
        if len(payload) != length:
            raise _Damage("is cut off")
        return rowid, _record(payload)

    def _local_bytes(self, length: int, *, is_table: bool) -> int:
        """How much of a payload is on the page itself: section 1.6 of the format."""
        usable = self._usable
        most = usable - 35 if is_table else (usable - 12) * 64 // 255 - 23
        if length <= most:
            return length
        least = (usable - 12) * 32 // 255 - 23
        kept = least + (length - least) % (usable - 4)
        return kept if kept <= most else least

    def _overflow(self, number: int, length: int, problems: list[str]) -> bytes:
        parts = []
        while length > 0:
            if not 0 < number <= self._count:
                raise _Damage("goes on where it cannot")
            page = self._page(number)
            if self._is_doubtful(number, page):
                problems.append(f"page {number} does not match its checksum")
            part = page[4 : min(self._usable, 4 + length)]
            parts.append(part)
            length -= len(part)
            number = int.from_bytes(page[:4], "big")
        return b"".join(parts)

    # --- what no tree leads to

    def lost_leaves(self) -> Iterator[tuple[bool, list[Cell]]]:
        """The leaves no tree asked for so far led to: whether it is one of a table, and its cells.

        Ask for the cells of all trees first. What was deleted may lie there, too.
        """
        problems: list[str] = []  # pages of other things are among them
        self._skip_free_pages()
        for number in range(1, self._count + 1):
            if number in self._visited:
                continue
            page = self._page(number)
            with suppress(_Damage):
                node = _Node(page, number, self._usable)
                if node.kind in (_TABLE_LEAF, _INDEX_LEAF):
                    is_doubtful = self._is_doubtful(number, page)
                    cells = list(self._cells(node, problems, is_doubtful=is_doubtful))
                    yield node.kind == _TABLE_LEAF, cells

    def _skip_free_pages(self) -> None:
        """Section 1.5: a list of pages, each of which names others."""
        trunk = int.from_bytes(self._page(1)[32:36], "big") if self._count else 0
        seen: set[int] = set()
        while 0 < trunk <= self._count and trunk not in seen:
            seen.add(trunk)
            page = self._page(trunk)
            count = min(int.from_bytes(page[4:8], "big"), self._usable // 4 - 2)
            seen.update(struct.unpack_from(f">{count}I", page, 8))
            trunk = int.from_bytes(page[:4], "big")
        self._visited |= seen


def _page_sizes(header: bytes) -> tuple[int, int]:
    """Bytes of a page, and how many of them are used; as we make them where the header says nothing that can be."""
    if len(header) == _HEADER_BYTES:
        size = int.from_bytes(header[16:18], "big")
        size = 65536 if size == 1 else size
        if 512 <= size <= 65536 and size & (size - 1) == 0:
            return size, size - header[20]
    return _USUAL_PAGE_BYTES, _USUAL_PAGE_BYTES - _RESERVED_BYTES


def _verifier() -> apsw.Connection:
    """A connection to nothing, for the function of cksumvfs that checks a page."""
    use_checksums()
    return apsw.Connection(":memory:")


class _Node:
    """A page of a tree, taken apart."""

    def __init__(self, page: bytes, number: int, usable: int) -> None:
        self.page, self.number = page, number
        start = _HEADER_BYTES if number == 1 else 0
        if len(page) < usable:
            raise _Damage("is cut off")
        self.kind = page[start]
        if self.kind not in (_INDEX_INNER, _TABLE_INNER, _INDEX_LEAF, _TABLE_LEAF):
            raise _Damage("is no page of a tree")
        count = int.from_bytes(page[start + 3 : start + 5], "big")
        is_inner = self.kind in (_INDEX_INNER, _TABLE_INNER)
        first = start + (12 if is_inner else 8)
        if first + 2 * count > usable:
            raise _Damage("has more cells than fit")
        self.places = struct.unpack_from(f">{count}H", page, first)
        self._right = page[start + 8 : start + 12] if is_inner else b""

    def children(self) -> list[int]:
        """The pages below."""
        if not self._right:
            return []
        below = [int.from_bytes(self.page[place : place + 4], "big") for place in self.places]
        return [*below, int.from_bytes(self._right, "big")]


def _varint(page: bytes, place: int) -> tuple[int, int]:
    """A number of 1 to 9 bytes, and where the next thing begins."""
    value = 0
    for step in range(8):
        byte = page[place + step]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + step + 1
    value = value << 8 | page[place + 8]
    return value - (1 << 64) if value >> 63 else value, place + 9


def _record(payload: bytes) -> Record:
    """Section 2.1: the kinds of the values, then the values."""
    head_bytes, place = _varint(payload, 0)
    if head_bytes > len(payload):
        raise _Damage("has a head that is too long")
    values: list[Value] = []
    start = head_bytes
    while place < head_bytes:
        kind, place = _varint(payload, place)
        length = _FIXED_BYTES[kind] if kind in _FIXED_BYTES else (kind - 12) // 2
        data = payload[start : start + length]
        if kind in (10, 11) or kind < 0 or len(data) != length:
            raise _Damage("has a value that is cut off")
        values.append(_value(kind, data))
        start += length
    return tuple(values)


def _value(kind: int, data: bytes) -> Value:
    if kind == 0:
        return None
    if kind <= 6:
        return int.from_bytes(data, "big", signed=True)
    if kind == 7:
        return float(_FLOAT.unpack(data)[0])
    if kind in (8, 9):
        return kind - 8
    return data.decode() if kind % 2 else data
