"""Pack files: append-only runs of records, each file begun with one line that names it.

Readers open packs freely and need no lock: acknowledged bytes never change. Appending needs the writer lock.
A pack's acknowledged end is `pack.size` in the index; what lies behind it was never promised. Whole
records found there are kept (a verify lists them), a torn one is cut off.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

from mailfs.errors import Corrupt, storage_error
from mailfs.ids import PackNumber
from mailfs.store.layout import Layout, sync_directory
from mailfs.store.records import (
    CODEC_CHAIN,
    FRAME_BYTES,
    HEADER_BYTES,
    Chain,
    ReadPayload,
    RecordHeader,
    iter_chain,
    parse_header,
    parse_record,
)
from mailfs.store.unpacked import Record

PACK_HEAD = b"mailfs pack 1\n".ljust(16, b"\0")
# A pack is followed by a new one at this size: large enough for few files, small enough for rsync and backup.
PACK_LIMIT_BYTES = 256 * 1024 * 1024


_APPEND_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class Location(NamedTuple):
    """Where a record lies. `stored` counts header and payload; `raw` is the message's length."""

    pack: PackNumber
    offset: int
    stored: int
    raw: int


class PackReader:
    """Reads records. May be used by several threads: pread(2) has no position to share."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._fds: dict[PackNumber, int] = {}

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def forget(self, pack: PackNumber) -> None:
        """Close a pack that is about to be removed."""
        fd = self._fds.pop(pack, None)
        if fd is not None:
            os.close(fd)

    def _fd(self, pack: PackNumber) -> int:
        fd = self._fds.get(pack)
        if fd is None:
            try:
                fd = os.open(self._layout.pack(pack), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                raise Corrupt(f"pack {pack} is missing") from None
            # Another thread may have been faster; then its descriptor stays.
            kept = self._fds.setdefault(pack, fd)
            if kept != fd:
                os.close(fd)
                fd = kept
        return fd

    def head(self, pack: PackNumber) -> bytes:
        """The line a pack begins with; PACK_HEAD in a sound one."""
        return os.pread(self._fd(pack), len(PACK_HEAD), 0)

    def load(self, location: Location) -> bytes:
        """A whole message, checked against its hash. One pread(2). Raises Corrupt."""
        record = os.pread(self._fd(location.pack), location.stored, location.offset)
        try:
            return parse_record(record)
        except Corrupt as error:
            raise Corrupt(f"pack {location.pack} at {location.offset}: {error}") from None

    def raw_pieces(self, location: Location) -> Iterator[bytes]:
        """A message in pieces of FRAME_BYTES, one piece when it is no longer.

        Raises Corrupt, behind the last piece when they do not match the hash together.
        """
        if location.raw <= FRAME_BYTES:
            yield self.load(location)
            return
        try:
            header = self.header(location)
            if header.codec != CODEC_CHAIN:
                raise Corrupt("a large record is no chain")
            yield from iter_chain(header, self._payload(location))
        except Corrupt as error:
            raise Corrupt(f"pack {location.pack} at {location.offset}: {error}") from None

    def _payload(self, location: Location) -> ReadPayload:
        fd = self._fd(location.pack)
        base = location.offset + HEADER_BYTES
        return lambda start, length: os.pread(fd, length, base + start)

    def header(self, location: Location) -> RecordHeader:
        """The header of a record. Raises Corrupt."""
        return parse_header(os.pread(self._fd(location.pack), HEADER_BYTES, location.offset))

    def chain_or_none(self, location: Location) -> Chain | None:
        """Random access to a large message; None where the record is not a chain."""
        header = self.header(location)
        if header.codec != CODEC_CHAIN:
            return None
        return Chain(header, self._payload(location))

    def iter_records(
        self, pack: PackNumber, start: int = len(PACK_HEAD)
    ) -> Iterator[tuple[int, RecordHeader]]:
        """Offsets and headers from `start`, one after the other; raises Corrupt where no record begins."""
        fd = self._fd(pack)
        end = os.fstat(fd).st_size
        while start < end:
            header = parse_header(os.pread(fd, HEADER_BYTES, start))
            if start + HEADER_BYTES + header.stored > end:
                raise Corrupt(f"pack {pack} at {start}: a record is cut off")
            yield start, header
            start += HEADER_BYTES + header.stored


class PackAppender:
    """Appends to the newest pack during one write transaction, and can take it all back.

    The caller holds the writer lock. After sync() the records survive power loss. rollback() and close() may
    be called after any error, also of open().
    """

    def __init__(self, layout: Layout, reader: PackReader) -> None:
        self._layout = layout
        self._reader = reader
        self._fd = -1
        self._is_dirty = False
        self._new_packs: list[PackNumber] = []
        # The pack that was there before and where it ended; None when nothing is appended to it.
        self._continued: tuple[PackNumber, int] | None = None
        self.pack, self.size = PackNumber(0), 0
        self.finished: list[tuple[PackNumber, int]] = []

    def open(self, pack: PackNumber, size: int) -> None:
        """Get ready. `pack` and `size` are the newest pack and its acknowledged end; (0, 0) in a new store."""
        if pack == 0 or size >= PACK_LIMIT_BYTES:
            self._begin_pack(PackNumber(pack + 1))
            return
        self.pack, self.size = pack, size
        try:
            self._fd = os.open(self._layout.pack(pack), _APPEND_FLAGS)
        except OSError as error:
            raise storage_error(error, f"cannot open pack {pack}") from error
        self._cut_torn_tail()
        self._continued = (pack, self.size)

    def _begin_pack(self, number: PackNumber) -> None:
        if self._fd >= 0:
            self._sync_file()
            os.close(self._fd)
            self._fd = -1
            self.finished.append((self.pack, self.size))
        while self._fd < 0:
            try:
                self._fd = os.open(
                    self._layout.pack(number), _APPEND_FLAGS | os.O_CREAT | os.O_EXCL, 0o600
                )
            except FileExistsError:
                # Left by a writer that died before its commit, or the index is older than the packs:
                # what is in it is not ours to destroy.
                number = PackNumber(number + 1)
            except OSError as error:
                raise storage_error(error, f"cannot make pack {number}") from error
        self._new_packs.append(number)
        self.pack, self.size = number, 0
        self._write(PACK_HEAD)
        try:
            sync_directory(self._layout.packs)
        except OSError as error:
            raise storage_error(error, f"cannot sync {self._layout.packs}") from error

    def _cut_torn_tail(self) -> None:
        length = os.fstat(self._fd).st_size
        if length < self.size:
            raise Corrupt(
                f"pack {self.pack} is {length} bytes long, the index knows {self.size}: "
                "run `mailfs verify`"
            )
        if length == self.size:
            return
        try:
            for offset, header in self._reader.iter_records(self.pack, self.size):
                self.size = offset + HEADER_BYTES + header.stored
        except Corrupt:
            os.ftruncate(self._fd, self.size)

    def append(self, record: Record) -> Location:
        """Write one record. `raw` of the location is taken from its header.

        One that is larger than a pack should be gets a pack of its own.
        """
        if self.size + record.stored > PACK_LIMIT_BYTES and self.size > len(PACK_HEAD):
            self._begin_pack(PackNumber(self.pack + 1))
        offset, raw = self.size, 0
        try:
            for chunk in record.chunks():
                if self.size == offset:
                    raw = parse_header(chunk).raw
                self._write(chunk)
        except BaseException:
            # The next record is written over what there is of this one.
            self.size = offset
            raise
        return Location(self.pack, offset, record.stored, raw)

    def _write(self, data: bytes) -> None:
        self._is_dirty = True
        view = memoryview(data)
        position = self.size
        try:
            while view:
                written = os.pwrite(self._fd, view, position)
                view = view[written:]
                position += written
        except OSError as error:
            raise storage_error(error, f"cannot write pack {self.pack}") from error
        self.size = position

    def _sync_file(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as error:
            # The kernel marks the lost pages clean, so a second fsync would lie (USENIX ATC 2020,
            # "Can Applications Recover from fsync Failures?"): the caller rolls back instead.
            raise storage_error(error, f"cannot sync pack {self.pack}") from error

    def sync(self) -> None:
        """Make everything appended durable. Raises StoreError or StoreFull; then call rollback()."""
        if self._is_dirty:
            self._sync_file()
            self._is_dirty = False

    def rollback(self) -> None:
        """Take back everything appended; the packs end where they did."""
        for number in self._new_packs:
            self._reader.forget(number)
            self._layout.pack(number).unlink(missing_ok=True)
        if self._continued is not None:
            pack, size = self._continued
            path = self._layout.pack(pack)
            if path.stat().st_size > size:
                os.truncate(path, size)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
