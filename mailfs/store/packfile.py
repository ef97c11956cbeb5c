"""One open pack file.

    head ("mailfs pack 1\\n" and zeros, 16 bytes)  [dictionary]  records ...  [footer]

A pack that uses a dictionary has it as its first record, and has no other: everything in a pack can be read with the pack
alone. A footer seals a pack; nothing is behind it, and a sealed pack never changes again.
"""

import os
import weakref
from collections.abc import Iterator
from pathlib import Path

from mailfs.errors import Corrupt, storage_error
from mailfs.ids import PackNumber
from mailfs.store.records import (
    CODEC_DICTIONARY,
    CODEC_FOOTER,
    FOOTER_END_BYTES,
    HEADER_BYTES,
    Dictionary,
    RecordHeader,
    footer_start_or_none,
    parse_dictionary,
    parse_footer,
    parse_header,
)

PACK_HEAD = b"mailfs pack 1\n".ljust(16, b"\0")
# What a walk over headers reads at once: those of some twenty messages.
_WALK_BYTES = 64 * 1024


class PackFile:
    """A descriptor that is closed when the last one who uses it lets go of it, and never under a reader.

    What is unlinked meanwhile can be read on. For any thread: pread(2) has no position to share.
    """

    __slots__ = ("__weakref__", "_fd", "number")

    def __init__(self, path: Path, number: PackNumber) -> None:
        """Raises Corrupt where there is no such pack, StoreError when it cannot be opened."""
        self.number = number
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise Corrupt(f"pack {number} is missing") from None
        except OSError as error:
            raise storage_error(error, f"cannot open pack {number}") from error
        weakref.finalize(self, os.close, self._fd).atexit = False

    def read(self, length: int, offset: int) -> bytes:
        """Bytes from `offset`, fewer at the end of the file. Raises Corrupt for a place that cannot be."""
        try:
            return os.pread(self._fd, length, offset)
        except (OverflowError, MemoryError, ValueError):
            raise self._corrupt(offset, f"nothing can be {length} bytes long here") from None
        except OSError as error:
            if offset < 0 or length < 0:
                raise self._corrupt(offset, "there is no such place") from None
            raise storage_error(error, f"cannot read pack {self.number}") from error

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    @property
    def is_removed(self) -> bool:
        """No name leads to it any more: it takes room on the disk for as long as it is open."""
        return os.fstat(self._fd).st_nlink == 0

    @property
    def head(self) -> bytes:
        """What a pack begins with; PACK_HEAD in a sound one."""
        return self.read(len(PACK_HEAD), 0)

    def header(self, offset: int) -> RecordHeader:
        """The header of the record there. Raises Corrupt."""
        try:
            return parse_header(self.read(HEADER_BYTES, offset))
        except Corrupt as error:
            raise self._corrupt(offset, error) from None

    def record(self, offset: int, header: RecordHeader | None = None) -> bytes:
        """A whole record, not checked but for its header and its length. Raises Corrupt."""
        header = header or self.header(offset)
        whole = HEADER_BYTES + header.stored
        # Nothing is allocated for a length that the file does not have.
        if offset + whole > self.size or len(record := self.read(whole, offset)) != whole:
            raise self._corrupt(offset, "a record is cut off")
        return record

    def iter_records(
        self, start: int = len(PACK_HEAD), end: int | None = None
    ) -> Iterator[tuple[int, RecordHeader]]:
        """Offsets and headers from `start`, one after the other; raises Corrupt where no whole record begins.

        Records of all kinds: dictionary and footer too. Some 2 us each of small ones.
        """
        end = self.size if end is None else end
        window, window_start = b"", start
        while start < end:
            within = start - window_start
            if within + HEADER_BYTES > len(window):
                window, window_start, within = self.read(_WALK_BYTES, start), start, 0
            try:
                header = parse_header(window[within : within + HEADER_BYTES])
            except Corrupt as error:
                raise self._corrupt(start, error) from None
            if start + HEADER_BYTES + header.stored > end:
                raise self._corrupt(start, "a record is cut off")
            yield start, header
            start += HEADER_BYTES + header.stored

    def dictionary_or_none(self) -> Dictionary | None:
        """The dictionary its records use. Raises Corrupt when it is damaged."""
        header = self.first_header_or_none()
        if header is None or header.codec != CODEC_DICTIONARY:
            return None
        try:
            return parse_dictionary(self.record(len(PACK_HEAD), header))
        except Corrupt as error:
            raise self._corrupt(len(PACK_HEAD), error) from None

    def first_header_or_none(self) -> RecordHeader | None:
        """The header behind the head; None in a pack without a record. Raises Corrupt."""
        start = len(PACK_HEAD)
        return self.header(start) if self.size > start else None

    def footer_start_or_none(self) -> int | None:
        """Where the footer lies, by the end of the file; None where there is none.

        A message that does not compress can end in the bytes of one: only of a pack that the index says is sealed, or when
        a walk comes to that place, is it to be believed.
        """
        size = self.size
        start = footer_start_or_none(self.read(FOOTER_END_BYTES, max(size - FOOTER_END_BYTES, 0)))
        if start is None or not len(PACK_HEAD) <= start <= size - FOOTER_END_BYTES - HEADER_BYTES:
            return None
        try:
            header = self.header(start)
        except Corrupt:
            return None  # a message may end in the same bytes
        is_footer = header.codec == CODEC_FOOTER and start + HEADER_BYTES + header.stored == size
        return start if is_footer else None

    def footer_or_none(self) -> list[tuple[int, RecordHeader]] | None:
        """Offsets and headers of all records before the footer, by the footer; None where there is none.

        To be believed as footer_start_or_none(). Raises Corrupt for a footer that is damaged or is not that of this pack.
        """
        start = self.footer_start_or_none()
        if start is None:
            return None
        found, offset = [], len(PACK_HEAD)
        try:
            for header in parse_footer(self.record(start)):
                found.append((offset, header))
                offset += HEADER_BYTES + header.stored
        except Corrupt as error:
            raise self._corrupt(start, error) from None
        if offset != start:
            raise self._corrupt(start, "a footer does not fit its pack")
        return found

    def _corrupt(self, offset: int, what: object) -> Corrupt:
        return Corrupt(f"pack {self.number} at {offset}: {what}")
