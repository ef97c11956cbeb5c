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
import zlib
from collections.abc import Callable
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

_frame_compressor = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True)
_chain_compressor = zstandard.ZstdCompressor(
    level=_LEVEL, write_checksum=True, write_content_size=True
)
_decompressor = zstandard.ZstdDecompressor()


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


def format_record(raw: bytes, digest: bytes) -> bytes:
    """The whole record of a message, header and all."""
    codec, payload = CODEC_RAW, raw
    if len(raw) > FRAME_BYTES:
        codec, payload = CODEC_CHAIN, _compress_chain(raw)
    elif raw:
        packed = _frame_compressor.compress(raw)
        if len(packed) < len(raw):
            codec, payload = CODEC_ZSTD, packed
    checked = _CHECKED.pack(MAGIC, codec, 0, len(raw), len(payload), digest)
    return b"".join((checked, zlib.crc32(checked).to_bytes(4, "little"), payload))


def _compress_chain(raw: bytes) -> bytes:
    view = memoryview(raw)
    frames = [
        _chain_compressor.compress(view[start : start + FRAME_BYTES])
        for start in range(0, len(raw), FRAME_BYTES)
    ]
    lengths = struct.pack(f"<{len(frames)}I", *map(len, frames))
    return b"".join((_CHAIN_HEAD.pack(FRAME_BYTES, len(frames)), lengths, *frames))


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
    if header.codec == CODEC_RAW:
        raw = payload
    elif header.codec == CODEC_ZSTD:
        raw = _decompress(payload, header.raw)
    else:
        chain = Chain(header, lambda start, length: payload[start : start + length])
        raw = b"".join(map(chain.frame, range(chain.count)))
    if len(raw) != header.raw or blob_hash(raw) != header.hash:
        raise Corrupt("a record does not match its hash")
    return raw


def _decompress(frame: bytes, raw_bytes: int) -> bytes:
    try:
        # A frame that claims more than the header does is refused before anything is allocated.
        if zstandard.frame_content_size(frame) != raw_bytes:
            raise Corrupt("a record's frame has another length than its header")
        return _decompressor.decompress(frame)
    except zstandard.ZstdError as error:
        raise Corrupt(f"a record cannot be decompressed: {error}") from error


class Chain:
    """Random access to a record of codec 2: one frame in memory at a time.

    `read(start, length)` gives bytes of the payload (short at its end).
    """

    def __init__(self, header: RecordHeader, read: Callable[[int, int], bytes]) -> None:
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
