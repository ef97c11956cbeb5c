"""One message as a pack record: a header that describes itself, then the bytes, compressed.

    offset size  field
         0    4  magic "mfr1"
         4    1  codec: 0 as it is, 1 one zstd frame, 2 a chain of zstd frames
         5    3  zero
         8    4  dictionary id, 0 for none
        12    8  raw length: bytes of the message
        20    8  stored length: bytes that follow the header
        28   16  xxh3-128 of the message, big endian
        44    4  CRC-32 of the 44 bytes before

Integers are little endian. A chain is: frame size F and frame count N (4 bytes each), N stored lengths (4
bytes each), N frames of F raw bytes each (the last may be shorter). Frames carry zstd's own checksum, so a
part of a large message can be read, and checked, without the rest.
"""

import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import xxhash
import zstandard

from mailfs.errors import Corrupt

_HEADER = struct.Struct("<4sB3xIQQ16sI")
_CHECKED = struct.Struct("<4sB3xIQQ16s")
HEADER_BYTES = _HEADER.size
MAGIC = b"mfr1"
CODEC_RAW, CODEC_ZSTD, CODEC_CHAIN = 0, 1, 2
HASH_BYTES = 16

# Messages above this are chains. 256 KiB: the kernel reads ahead 128 KiB, so a frame serves two reads, and
# a mail without attachment is practically never that long.
FRAME_BYTES = 256 * 1024
_CHAIN_HEAD = struct.Struct("<II")
# 2,973 real messages, 8.3 kB in the mean: level 1 2.14 (20 us each), 3 2.18 (27 us), 5 2.23 (63 us).
_LEVEL = 3


class _Contexts(threading.local):
    """One set a thread: two threads in one context of zstd, which lets others run meanwhile, crash the process."""

    def __init__(self) -> None:
        self.frame = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True)
        self.chain = zstandard.ZstdCompressor(
            level=_LEVEL, write_checksum=True, write_content_size=True
        )
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


# (start, length) -> bytes of a record's payload, short at its end.
ReadPayload = Callable[[int, int], bytes]


class RecordHeader(NamedTuple):
    """A parsed header. `stored` counts the bytes after the header."""

    codec: int
    dictionary: int
    raw: int
    stored: int
    hash: bytes


def blob_hash(raw: bytes) -> bytes:
    """xxh3-128 of a message. Not cryptographic: whoever finds a hit compares the bytes."""
    return xxhash.xxh3_128_digest(raw)


def blob_hasher() -> xxhash.xxh3_128:
    """The same hash of a message that comes in pieces."""
    return xxhash.xxh3_128()


def format_record(raw: bytes, digest: bytes) -> bytes:
    """The whole record of a message, header and all."""
    codec, payload = CODEC_RAW, raw
    if len(raw) > FRAME_BYTES:
        codec, payload = CODEC_CHAIN, _compress_chain(raw)
    elif raw:
        packed = _contexts.frame.compress(raw)
        if len(packed) < len(raw):
            codec, payload = CODEC_ZSTD, packed
    return format_header(RecordHeader(codec, 0, len(raw), len(payload), digest)) + payload


def _compress_chain(raw: bytes) -> bytes:
    view = memoryview(raw)
    frames = [
        compress_frame(view[start : start + FRAME_BYTES])
        for start in range(0, len(raw), FRAME_BYTES)
    ]
    return b"".join((format_chain_head(list(map(len, frames))), *frames))


def compress_frame(raw: bytes | memoryview) -> bytes:
    """One frame of a chain; `raw` is FRAME_BYTES long, the last one may be shorter."""
    return _contexts.chain.compress(raw)


def format_chain_head(lengths: list[int]) -> bytes:
    """What a chain begins with: the stored lengths of its frames."""
    table = struct.pack(f"<{len(lengths)}I", *lengths)
    return _CHAIN_HEAD.pack(FRAME_BYTES, len(lengths)) + table


def format_header(header: RecordHeader) -> bytes:
    """The header of a record."""
    checked = _CHECKED.pack(MAGIC, *header)
    return checked + zlib.crc32(checked).to_bytes(4, "little")


def parse_header(data: bytes) -> RecordHeader:
    """The header at the start of `data`. Raises Corrupt."""
    if len(data) < HEADER_BYTES:
        raise Corrupt("a record header is cut off")
    magic, codec, dictionary, raw, stored, digest, check = _HEADER.unpack_from(data)
    if magic != MAGIC or zlib.crc32(data[: _CHECKED.size]) != check:
        raise Corrupt("no record header here")
    if codec > CODEC_CHAIN or dictionary:
        raise Corrupt(f"a record of an unknown kind (codec {codec}, dictionary {dictionary})")
    return RecordHeader(codec, dictionary, raw, stored, digest)


def parse_record(record: bytes) -> bytes:
    """The message in a whole record, checked against its hash. Raises Corrupt."""
    header = parse_header(record)
    payload = record[HEADER_BYTES : HEADER_BYTES + header.stored]
    if len(payload) != header.stored:
        raise Corrupt("a record is cut off")
    if header.codec == CODEC_CHAIN:
        return b"".join(iter_chain(header, lambda start, length: payload[start : start + length]))
    raw = _decompress(payload, header.raw) if header.codec == CODEC_ZSTD else payload
    if len(raw) != header.raw or blob_hash(raw) != header.hash:
        raise Corrupt("a record does not match its hash")
    return raw


def iter_chain(header: RecordHeader, read: ReadPayload) -> Iterator[bytes]:
    """The frames of a chain; raises Corrupt behind the last one when they do not match the hash together."""
    chain = Chain(header, read)
    hasher = blob_hasher()
    for number in range(chain.count):
        frame = chain.frame(number)
        hasher.update(frame)
        yield frame
    if hasher.digest() != header.hash:
        raise Corrupt("a record does not match its hash")


def _decompress(frame: bytes, raw_bytes: int) -> bytes:
    try:
        # A frame that claims more than the header does is refused before anything is allocated.
        if zstandard.frame_content_size(frame) != raw_bytes:
            raise Corrupt("a record's frame has another length than its header")
        return _contexts.decompressor.decompress(frame)
    except zstandard.ZstdError as error:
        raise Corrupt(f"a record cannot be decompressed: {error}") from error


class Chain:
    """Random access to a record of codec 2: one frame in memory at a time."""

    def __init__(self, header: RecordHeader, read: ReadPayload) -> None:
        self._read = read
        head = read(0, _CHAIN_HEAD.size)
        if len(head) != _CHAIN_HEAD.size:
            raise Corrupt("a chain is cut off")
        self.frame_bytes, self.count = _CHAIN_HEAD.unpack(head)
        self._raw = header.raw
        if not self.frame_bytes or self.count != -(-header.raw // self.frame_bytes):
            raise Corrupt("a chain has another length than its header")
        table = read(_CHAIN_HEAD.size, 4 * self.count)
        if len(table) != 4 * self.count:
            raise Corrupt("a chain is cut off")
        self._lengths = struct.unpack(f"<{self.count}I", table)
        self._starts = []
        start = _CHAIN_HEAD.size + 4 * self.count
        for length in self._lengths:
            self._starts.append(start)
            start += length
        if start != header.stored:
            raise Corrupt("a chain's frames are not as long as its record")

    def frame(self, number: int) -> bytes:
        """The raw bytes of one frame, checked by zstd's checksum."""
        raw_bytes = min(self.frame_bytes, self._raw - number * self.frame_bytes)
        return _decompress(self._read(self._starts[number], self._lengths[number]), raw_bytes)
