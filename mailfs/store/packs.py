"""Pack files: append-only runs of records, see packfile.py for what is in one.

Readers open packs freely and need no lock: acknowledged bytes never change. Appending needs the writer lock.
A pack's acknowledged end is `pack.size` in the index; what lies behind it was never promised. Whole messages
found there are kept (a verify lists them), a torn one is cut off, and so is a record about the pack, which
says what has not come to be.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from mailfs.errors import ConfigError, Corrupt, storage_error
from mailfs.ids import PackNumber
from mailfs.store.dictionaries import Dictionaries
from mailfs.store.layout import Layout, sync_directory
from mailfs.store.packfile import PACK_HEAD, PackFile
from mailfs.store.records import (
    CODEC_CHAIN,
    CODEC_DICTIONARY,
    FRAME_BYTES,
    HEADER_BYTES,
    MESSAGE_CODECS,
    Chain,
    Dictionary,
    ReadPayload,
    RecordHeader,
    format_dictionary,
    format_record,
    iter_chain,
    joined,
    parse_header,
    parse_record,
)
from mailfs.store.unpacked import MemoryRecord, Record

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
    """Reads records. May be used by several threads; who reads from a pack keeps it open, also when it is removed."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._files: dict[PackNumber, PackFile] = {}
        self._configured_bytes: int | None = None
        self.dictionaries = Dictionaries(layout)

    def close(self) -> None:
        self._files.clear()

    @property
    def pack_limit_bytes(self) -> int:
        """A pack of this size is followed by a new one: as STORE/config said when this was asked first."""
        if self._configured_bytes is None:
            self._configured_bytes = _configured_bytes(self._layout)
        return self._configured_bytes or PACK_LIMIT_BYTES

    def forget(self, pack: PackNumber) -> None:
        """Let go of a pack that is about to be removed."""
        self._files.pop(pack, None)

    def forget_removed(self) -> int:
        """Let go of packs that others have removed, so that the disk has their room back; how many bytes that is."""
        removed = [file for file in list(self._files.values()) if file.is_removed]
        for file in removed:
            self.forget(file.number)
        return sum(file.size for file in removed)

    def file(self, pack: PackNumber) -> PackFile:
        """An open pack. Raises Corrupt when it is missing."""
        file = self._files.get(pack)
        if file is None:
            # Another thread may have been faster; then its descriptor stays.
            file = self._files.setdefault(pack, PackFile(self._layout.pack(pack), pack))
        return file

    def promised_end(self, file: PackFile, size: int) -> int:
        """Where a pack ends whose acknowledged end is `size`: behind the last whole message.

        What stands behind that was left by a writer that died, perhaps with a power cut, which keeps the header of a
        record and loses what follows. A record about the pack there says what has not come to be; but no writer goes on
        behind one that was not acknowledged: where messages follow, the index is older than the pack. Raises Corrupt
        when the pack is shorter than `size`.
        """
        if file.size < size:
            raise Corrupt(
                f"pack {file.number} is {file.size} bytes long, the index knows {size}: "
                "run `mailfs verify`"
            )
        with suppress(Corrupt):
            for offset, header in file.iter_records(size):
                if header.codec in MESSAGE_CODECS and self._is_whole(file, offset, header):
                    size = offset + HEADER_BYTES + header.stored
        return size

    def _is_whole(self, file: PackFile, offset: int, header: RecordHeader) -> bool:
        """Whether the bytes of a message are those of its hash. One whose dictionary is missing counts as whole."""
        base = offset + HEADER_BYTES
        try:
            if header.dictionary:
                self.dictionaries.find(header.dictionary, file)
        except Corrupt:
            return True
        try:
            if header.codec == CODEC_CHAIN:
                for _ in iter_chain(header, lambda start, length: file.read(length, base + start)):
                    pass
            else:
                record = file.read(HEADER_BYTES + header.stored, offset)
                parse_record(record, lambda wanted: self.dictionaries.find(wanted, file))
        except Corrupt:
            return False
        return True

    def head(self, pack: PackNumber) -> bytes:
        """The line a pack begins with; PACK_HEAD in a sound one."""
        return self.file(pack).head

    def load(self, location: Location) -> bytes:
        """A whole message, checked against its hash. One pread(2) of a small one. Raises Corrupt."""
        if location.raw > FRAME_BYTES:
            return joined(self.raw_pieces(location))
        file = self.file(location.pack)
        record = file.read(location.stored, location.offset)
        try:
            _check_is_meant(parse_header(record), location)
            return parse_record(record, lambda wanted: self.dictionaries.find(wanted, file))
        except Corrupt as error:
            raise Corrupt(f"pack {location.pack} at {location.offset}: {error}") from None

    def raw_pieces(self, location: Location) -> Iterator[bytes]:
        """A message in pieces of FRAME_BYTES, one piece when it is no longer.

        Raises Corrupt, behind the last piece when they do not match the hash together.
        """
        if location.raw <= FRAME_BYTES:
            yield self.load(location)
            return
        header = self.header(location)
        try:
            if header.codec != CODEC_CHAIN:
                raise Corrupt("a large record is no chain")
            yield from iter_chain(header, self._payload(location))
        except Corrupt as error:
            raise Corrupt(f"pack {location.pack} at {location.offset}: {error}") from None

    def _payload(self, location: Location) -> ReadPayload:
        file = self.file(location.pack)
        base = location.offset + HEADER_BYTES
        return lambda start, length: file.read(length, base + start)

    def header(self, location: Location) -> RecordHeader:
        """The header of a record. Raises Corrupt, also for one that is another record's."""
        header = self.file(location.pack).header(location.offset)
        try:
            _check_is_meant(header, location)
        except Corrupt as error:
            raise Corrupt(f"pack {location.pack} at {location.offset}: {error}") from None
        return header

    def chain_or_none(self, location: Location) -> Chain | None:
        """Random access to a large message; None where the record is not a chain."""
        header = self.header(location)
        if header.codec != CODEC_CHAIN:
            return None
        return Chain(header, self._payload(location))

    def open_message(self, location: Location) -> bytes | Chain:
        """A message as a whole when it is small, else random access to it. Raises Corrupt."""
        if location.raw <= FRAME_BYTES:
            return self.load(location)
        chain = self.chain_or_none(location)
        return self.load(location) if chain is None else chain

    def iter_records(
        self, pack: PackNumber, start: int = len(PACK_HEAD)
    ) -> Iterator[tuple[int, RecordHeader]]:
        """As PackFile.iter_records."""
        return self.file(pack).iter_records(start)


def _check_is_meant(header: RecordHeader, location: Location) -> None:
    """A whole record of another message may have come there by damage: its hash is right, and its bytes are wrong."""
    if (HEADER_BYTES + header.stored, header.raw) != (location.stored, location.raw):
        raise Corrupt("another record lies there than the index describes")


def _configured_bytes(layout: Layout) -> int:
    """What STORE/config says, 0 where it says nothing; without it nothing is imported to read it."""
    if not (layout.root / "config").exists():
        return 0
    from mailfs.store.config import read_config

    try:
        return read_config(layout).pack_bytes
    except ConfigError:
        return 0  # who reads it for a person complains; mail goes on


class PackAppender:
    """Appends to the newest pack during one write transaction, and can take it all back.

    The caller holds the writer lock. After sync() the records survive power loss. rollback() and close() may
    be called after any error, also of open().
    """

    def __init__(
        self,
        layout: Layout,
        reader: PackReader,
        newest: Callable[[], Dictionary | None] = lambda: None,
    ) -> None:
        """`newest` gives the dictionary of packs that are begun."""
        self._layout = layout
        self._reader = reader
        self._newest = newest
        self._limit_bytes = reader.pack_limit_bytes
        self._fd = -1
        self._is_dirty = False
        self._new_packs: list[PackNumber] = []
        # The pack that was there before and where it ended; None when nothing is appended to it.
        self._continued: tuple[PackNumber, int] | None = None
        # Of the pack at hand: its dictionary, 0 for none, and where its messages begin.
        self._dictionary_id = 0
        self._start = len(PACK_HEAD)
        self.pack, self.size = PackNumber(0), 0
        self.finished: list[tuple[PackNumber, int]] = []

    def open(self, pack: PackNumber, size: int, *, is_sealed: bool = False) -> None:
        """Get ready. `pack` and `size` are the newest pack and its acknowledged end; (0, 0) in a new store."""
        if pack == 0 or is_sealed or size >= self._limit_bytes:
            self._begin_pack(PackNumber(pack + 1))
            return
        self.pack, self.size = pack, size
        try:
            self._fd = os.open(self._layout.pack(pack), _APPEND_FLAGS)
        except OSError as error:
            raise storage_error(error, f"cannot open pack {pack}") from error
        self._cut_torn_tail()
        self._continued = (pack, self.size)
        self._look_for_dictionary()

    def begin_pack(self) -> None:
        """Go on in a new pack, with the newest dictionary; the one before gets nothing more.

        Nothing happens in one that has no message yet, and that dictionary.
        """
        newest = self._newest()
        if self.size > self._start or self._dictionary_id != (newest.id if newest else 0):
            self._begin_pack(PackNumber(self.pack + 1))

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
        self.pack, self.size, self._dictionary_id = number, 0, 0
        self._write(PACK_HEAD)
        dictionary = self._newest()
        if dictionary is not None:
            self._write(format_dictionary(dictionary))
            self._dictionary_id = dictionary.id
        self._start = self.size
        try:
            sync_directory(self._layout.packs)
        except OSError as error:
            raise storage_error(error, f"cannot sync {self._layout.packs}") from error

    def _cut_torn_tail(self) -> None:
        length = os.fstat(self._fd).st_size
        if length == self.size:
            return
        self.size = self._reader.promised_end(self._reader.file(self.pack), self.size)
        if self.size < length:
            os.ftruncate(self._fd, self.size)

    def _look_for_dictionary(self) -> None:
        try:
            header = self._reader.file(self.pack).first_header_or_none()
        except Corrupt:
            return  # then what is appended needs none
        if header is not None and header.codec == CODEC_DICTIONARY and self.size > self._start:
            self._dictionary_id = header.dictionary
            self._start += HEADER_BYTES + header.stored

    def append(self, record: Record) -> Location:
        """Write one record. `raw` of the location is taken from its header.

        One that is larger than a pack should be gets a pack of its own. One that needs another dictionary than its pack
        has is made anew: somebody prepared it just before another dictionary came.
        """
        if self.size + record.stored > self._limit_bytes and self.size > self._start:
            self._begin_pack(PackNumber(self.pack + 1))
        offset, header = self.size, None
        try:
            for chunk in record.chunks():
                if header is None:
                    header = parse_header(chunk)
                    if header.dictionary not in (0, self._dictionary_id):
                        return self.append(self._made_anew(chunk, header))
                self._write(chunk)
        except BaseException:
            # The next record is written over what there is of this one.
            self.size = offset
            raise
        assert header is not None
        return Location(self.pack, offset, self.size - offset, header.raw)

    def _made_anew(self, record: bytes, header: RecordHeader) -> MemoryRecord:
        find = self._reader.dictionaries.find
        raw = parse_record(record, find)
        dictionary = None
        if self._dictionary_id:
            dictionary = find(self._dictionary_id, self._reader.file(self.pack))
        return MemoryRecord(format_record(raw, header.hash, dictionary))

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

    @property
    def has_grown(self) -> bool:
        """Something whole was appended, or a pack begun."""
        return self.ends != [self._continued]

    @property
    def ends(self) -> list[tuple[PackNumber, int]]:
        """The packs that were written, and where they end."""
        return [*self.finished, (self.pack, self.size)]

    def sync(self) -> None:
        """Make everything appended durable. Raises StoreError or StoreFull; then call rollback()."""
        if self._is_dirty:
            self._sync_file()
            self._is_dirty = False

    def rollback(self) -> None:
        """Take back everything appended; the packs end where they did.

        Raises nothing: what cannot be taken back was promised to nobody, and the next writer deals with it.
        """
        for number in self._new_packs:
            self._reader.forget(number)
            with suppress(OSError):
                self._layout.pack(number).unlink(missing_ok=True)
        if self._continued is not None:
            pack, size = self._continued
            path = self._layout.pack(pack)
            with suppress(OSError):
                if path.stat().st_size > size:
                    os.truncate(path, size)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
