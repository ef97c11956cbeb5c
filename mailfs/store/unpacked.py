"""Records that are in no pack yet: small ones in memory, large ones in a file without a name."""

import errno
import os
import secrets
import weakref
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from mailfs.errors import Corrupt, StoreError, storage_error
from mailfs.store.layout import Layout
from mailfs.store.packfile import PackFile
from mailfs.store.records import (
    CODEC_CHAIN,
    FRAME_BYTES,
    HEADER_BYTES,
    FindDictionary,
    RecordHeader,
    blob_hasher,
    compress_frame,
    format_chain_head,
    format_header,
    iter_chain,
    parse_record,
)

_CHUNK_BYTES = 1024 * 1024
# What a file system without O_TMPFILE answers: overlayfs and NFS, or (EISDIR) a kernel that does not know it.
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


class Record(Protocol):
    """A whole record, header and all, on its way into a pack."""

    @property
    def stored(self) -> int:
        """Its length in bytes with the header."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """The record in order; the first chunk holds the whole header. Raises StoreError."""
        ...

    def raw_pieces(self, find: FindDictionary) -> Iterator[bytes]:
        """The message in pieces of FRAME_BYTES, one piece when it is no longer. Raises StoreError."""
        ...

    def close(self) -> None:
        """Let go of what it lies in; may be left to the garbage collector."""
        ...


class MemoryRecord(NamedTuple):
    """A record in memory; can be pickled."""

    record: bytes

    @property
    def stored(self) -> int:
        return len(self.record)

    def chunks(self) -> Iterator[bytes]:
        yield self.record

    def raw_pieces(self, find: FindDictionary) -> Iterator[bytes]:
        raw = parse_record(self.record, find)
        yield raw[:FRAME_BYTES]
        for start in range(FRAME_BYTES, len(raw), FRAME_BYTES):
            yield raw[start : start + FRAME_BYTES]

    def close(self) -> None:
        pass


class FileRecord:
    """A chain in a file that has no name any more. Takes over the descriptor."""

    def __init__(self, fd: int, header: RecordHeader) -> None:
        self._fd = fd
        self._close = weakref.finalize(self, os.close, fd)
        self.header = header

    @property
    def stored(self) -> int:
        return HEADER_BYTES + self.header.stored

    def chunks(self) -> Iterator[bytes]:
        for start in range(0, self.stored, _CHUNK_BYTES):
            yield self._read(start, min(_CHUNK_BYTES, self.stored - start))

    def raw_pieces(self, find: FindDictionary) -> Iterator[bytes]:
        return iter_chain(
            self.header, lambda start, length: self._read(HEADER_BYTES + start, length)
        )

    def close(self) -> None:
        self._close()

    def _read(self, start: int, length: int) -> bytes:
        try:
            data = os.pread(self._fd, length, start)
        except OSError as error:
            raise storage_error(error, "cannot read a spooled message") from error
        if len(data) != length:
            raise StoreError("a spooled message is cut off")
        return data


class PackedRecord:
    """A record that lies in a pack, on its way into another. As it is, whatever its dictionary."""

    def __init__(self, file: PackFile, offset: int, header: RecordHeader) -> None:
        self._file = file
        self._offset = offset
        self.header = header

    @property
    def stored(self) -> int:
        return HEADER_BYTES + self.header.stored

    def chunks(self) -> Iterator[bytes]:
        for start in range(0, self.stored, _CHUNK_BYTES):
            yield self._read(start, min(_CHUNK_BYTES, self.stored - start))

    def raw_pieces(self, find: FindDictionary) -> Iterator[bytes]:
        if self.header.codec == CODEC_CHAIN:
            return iter_chain(
                self.header, lambda start, length: self._read(HEADER_BYTES + start, length)
            )
        return MemoryRecord(self._read(0, self.stored)).raw_pieces(find)

    def close(self) -> None:
        pass

    def _read(self, start: int, length: int) -> bytes:
        data = self._file.read(length, self._offset + start)
        if len(data) != length:
            raise Corrupt("a record is cut off")
        return data


def spool_chain(layout: Layout, size: int, frames: Iterable[bytes]) -> FileRecord:
    """Make the record of a message of `size` bytes that comes in frames of FRAME_BYTES; one is in memory at a time.

    Not durable: a crash leaves nothing behind. Raises StoreError, StoreFull, and what `frames` raises.
    """
    try:
        fd = _open_nameless(layout)
    except OSError as error:
        raise storage_error(error, f"cannot make a file in {layout.spool}") from error
    try:
        return FileRecord(fd, _write_chain(fd, size, frames))
    except OSError as error:
        os.close(fd)
        raise storage_error(error, f"cannot write a file in {layout.spool}") from error
    except BaseException:
        os.close(fd)
        raise


def _open_nameless(layout: Layout) -> int:
    layout.spool.mkdir(mode=0o700, exist_ok=True)
    try:
        return os.open(layout.spool, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    path = layout.spool / f".{secrets.token_hex(16)}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    path.unlink()
    return fd


def _write_chain(fd: int, size: int, frames: Iterable[bytes]) -> RecordHeader:
    """The frames first, behind the place of the header and the table that tell their lengths."""
    hasher = blob_hasher()
    lengths: list[int] = []
    head_bytes = len(format_chain_head([0] * -(-size // FRAME_BYTES)))
    end = HEADER_BYTES + head_bytes
    for frame in frames:
        hasher.update(frame)
        packed = compress_frame(frame)
        _write(fd, packed, end)
        lengths.append(len(packed))
        end += len(packed)
    header = RecordHeader(CODEC_CHAIN, 0, size, end - HEADER_BYTES, hasher.digest())
    _write(fd, format_header(header) + format_chain_head(lengths), 0)
    return header


def _write(fd: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, position)
        view = view[written:]
        position += written
