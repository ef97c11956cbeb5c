"""The records of a pack, whatever is damaged in it: where one cannot be read, the next is looked for.

The writer of a mail chooses its bytes, and so can put into it what looks like a whole record. So what was only found by
its look is told apart from what lies where a record is known to begin: a message found so may be kept, but nothing is
believed that it says about the pack (tombstones, footer, dictionary).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mailfs.errors import Corrupt
from mailfs.store.packfile import PACK_HEAD, PackFile
from mailfs.store.records import HEADER_BYTES, MAGIC, RecordHeader, parse_header

_WINDOW_BYTES = 1024 * 1024


class Found(NamedTuple):
    """A record whose header is sound; its payload was not looked at. `is_certain`: a record is known to begin there."""

    offset: int
    header: RecordHeader
    is_certain: bool

    @property
    def end(self) -> int:
        return self.offset + HEADER_BYTES + self.header.stored


class Gap(NamedTuple):
    """Bytes from `start` to `end` that are no record."""

    start: int
    end: int


def resync(
    file: PackFile, known: Iterable[int] = (), end: int | None = None
) -> Iterator[Found | Gap]:
    """All records of a pack in order, and what lies between them.

    `known`: offsets at which records begin, by the index or by tombstones. What looks like a footer is only a hint: a
    message may end so. Up to `end`, else the end of the file. In a sound pack it costs what a walk over the headers does.
    Raises StoreError when the pack cannot be read.
    """
    end = file.size if end is None else min(end, file.size)
    certain = sorted({place for place in known if len(PACK_HEAD) < place < end})
    places = sorted({*certain, *(place for place in _by_footer(file) if place < end)})
    position, is_certain = len(PACK_HEAD), True
    while position < end:
        try:
            for offset, header in file.iter_records(position, end):
                is_certain = is_certain or _is_among(certain, offset)
                found = Found(offset, header, is_certain)
                if _covers_another(file, found, certain, end):
                    break
                yield found
                position = found.end
        except Corrupt:
            pass
        if position < end:
            start = position
            position = _next(file, start, end, places)
            is_certain = _is_among(certain, position)
            yield Gap(start, position)


def _is_among(places: list[int], place: int) -> bool:
    at = bisect_left(places, place)
    return at < len(places) and places[at] == place


def _covers_another(file: PackFile, found: Found, certain: list[int], end: int) -> bool:
    """Whether a record is known to begin within this one, and does: then this header came here by the damage."""
    within = certain[bisect_right(certain, found.offset) : bisect_left(certain, found.end)]
    return any(_header_or_none(file, place, end) is not None for place in within)


def _by_footer(file: PackFile) -> list[int]:
    try:
        return [offset for offset, _ in file.footer_or_none() or ()]
    except Corrupt:
        return []


def _next(file: PackFile, start: int, end: int, places: list[int]) -> int:
    """Where the next record begins behind a place where none does; `end` where there is none."""
    for place in [*places[bisect_right(places, start) :], end]:
        found = _look_for(file, start + 1, place)
        if found is not None:
            return found
        if place == end or _header_or_none(file, place, end) is not None:
            return place
        start = place
    return end


def _look_for(file: PackFile, start: int, end: int) -> int | None:
    """The first place from `start` that looks like a record which ends before `end`."""
    while start < end:
        window = file.read(min(_WINDOW_BYTES, end - start), start)
        at = window.find(MAGIC)
        while at >= 0:
            header = _header_or_none(file, start + at, end)
            if header is not None:
                return start + at
            at = window.find(MAGIC, at + 1)
        if len(window) < len(MAGIC):
            return None
        # A magic may lie across the border of two windows.
        start += len(window) - len(MAGIC) + 1
    return None


def _header_or_none(file: PackFile, offset: int, end: int) -> RecordHeader | None:
    try:
        header = parse_header(file.read(HEADER_BYTES, offset))
    except Corrupt:
        return None
    return header if offset + HEADER_BYTES + header.stored <= end else None
