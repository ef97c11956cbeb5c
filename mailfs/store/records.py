"""A pack is a run of records: a header that describes itself, then the payload.

    offset size  field
         0    4  magic "mfr1"
         4    1  codec, see below
         5    3  zero
         8    4  dictionary id, 0 for none
        12    8  raw length: bytes of the message
        20    8  stored length: bytes that follow the header
        28   16  xxh3-128 of the message, big endian
        44    4  CRC-32 of the 44 bytes before

    codec 0  a message as it is
          1  a message as one zstd frame, perhaps with the dictionary of the pack
          2  a message as a chain of zstd frames
          3  tombstones: records that were reclaimed       28 bytes each: pack (4), offset (8), hash (16)
          4  footer: what is in the pack, which is sealed  see format_footer
          5  a zstd dictionary, its id in the header

Integers are little endian. In the last three "the message" is what the payload says: tombstones, table of the footer,
dictionary. A chain is: frame size F and frame count N (4 bytes each), N stored lengths (4 bytes each), N frames of F
raw bytes each (the last may be shorter). Its frames carry zstd's own checksum, so a part of a large message can be
read, and checked, without the rest.
"""

import io
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import xxhash
import zstandard

from mailfs.errors import Corrupt
from mailfs.ids import PackNumber

_HEADER = struct.Struct("<4sB3xIQQ16sI")
_CHECKED = struct.Struct("<4sB3xIQQ16s")
HEADER_BYTES = _HEADER.size
MAGIC = b"mfr1"
CODEC_RAW, CODEC_ZSTD, CODEC_CHAIN = 0, 1, 2
CODEC_TOMBSTONES, CODEC_FOOTER, CODEC_DICTIONARY = 3, 4, 5
# The others are about the pack.
MESSAGE_CODECS = (CODEC_RAW, CODEC_ZSTD, CODEC_CHAIN)
_WITH_DICTIONARY = (CODEC_ZSTD, CODEC_DICTIONARY)
HASH_BYTES = 16

# Messages above this are chains. 256 KiB: the kernel reads ahead 128 KiB, so a frame serves two reads, and
# a mail without attachment is practically never that long.
FRAME_BYTES = 256 * 1024
_CHAIN_HEAD = struct.Struct("<II")
# What a chain's head may claim: a reader has one frame in memory.
_LONGEST_FRAME_BYTES = 16 * 1024 * 1024
# 2,788 real messages, 8.3 kB in the mean, ratio and time to compress each. Without a dictionary: level 1 2.11
# (25 us), 3 2.14 (30), 5 2.19 (70), 9 2.20 (139). With one of 110 kB trained from the other half of them: 1 2.50
# (23), 2 2.62 (27), 3 2.68 (38), 5 2.76 (71), 9 2.85 (148), 12 2.86 (352). To decompress takes 10 us with or without.
LEVEL = 3
# For who has time: compact.
THOROUGH_LEVEL = 9


class _Contexts(threading.local):
    """One set a thread: two threads in one context of zstd, which lets others run meanwhile, crash the process."""

    def __init__(self) -> None:
        self.frame = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
        self.chain = zstandard.ZstdCompressor(
            level=LEVEL, write_checksum=True, write_content_size=True
        )
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


class _DictionaryContexts(threading.local):
    """Those of one dictionary, a set a thread; the dictionary itself is prepared once for all of them."""

    def __init__(self) -> None:
        self.compressor: zstandard.ZstdCompressor | None = None
        self.decompressor: zstandard.ZstdDecompressor | None = None


class Dictionary:
    """A zstd dictionary, ready for use by any thread. Prepared for what is asked of it, when it is asked first."""

    def __init__(self, raw: bytes, level: int = LEVEL) -> None:
        """Raises Corrupt when these bytes are no dictionary."""
        self.raw = raw
        self.hash = blob_hash(raw)
        self.id = dictionary_id(self.hash)
        self._level = level
        if not self.id:
            raise Corrupt("a dictionary has an id that means none")
        try:
            self._data = zstandard.ZstdCompressionDict(raw, dict_type=zstandard.DICT_TYPE_FULLDICT)
            # Its tables are looked at here and not when the first message is read.
            zstandard.ZstdDecompressor(dict_data=self._data)
        except (zstandard.ZstdError, MemoryError) as error:
            raise Corrupt(f"this is no dictionary: {error}") from error
        self._preparing = threading.Lock()
        self._is_prepared = False
        self._contexts = _DictionaryContexts()

    def compress(self, raw: bytes) -> bytes:
        """One frame. It does not name its dictionary: the record does."""
        compressor = self._contexts.compressor
        if compressor is None:
            with self._preparing:
                if not self._is_prepared:
                    self._data.precompute_compress(level=self._level)  # 0.4 ms
                    self._is_prepared = True
            compressor = self._contexts.compressor = zstandard.ZstdCompressor(
                level=self._level,
                dict_data=self._data,
                write_content_size=True,
                write_dict_id=False,
            )
        return compressor.compress(raw)

    @property
    def decompressor(self) -> zstandard.ZstdDecompressor:
        """That of this thread."""
        decompressor = self._contexts.decompressor
        if decompressor is None:
            decompressor = self._contexts.decompressor = zstandard.ZstdDecompressor(
                dict_data=self._data
            )
        return decompressor


# Dictionary id -> the dictionary; raises Corrupt where it cannot be had.
FindDictionary = Callable[[int], Dictionary]


def no_dictionary(wanted: int) -> Dictionary:
    """For records that have none."""
    raise Corrupt(f"a record needs dictionary {wanted}, which is not here")


# (start, length) -> bytes of a record's payload, short at its end.
ReadPayload = Callable[[int, int], bytes | memoryview]


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


def dictionary_id(digest: bytes) -> int:
    """The number that stands for a dictionary of this hash; 0 is none, and a dictionary that has it cannot be used."""
    return int.from_bytes(digest[:4], "little")


def format_record(raw: bytes, digest: bytes, dictionary: Dictionary | None = None) -> bytes:
    """The whole record of a message, header and all."""
    if len(raw) > FRAME_BYTES:
        return _format_chain(raw, digest)
    codec, payload, used = CODEC_RAW, raw, 0
    if raw:
        packed = _contexts.frame.compress(raw) if dictionary is None else dictionary.compress(raw)
        if len(packed) < len(raw):
            codec, payload, used = CODEC_ZSTD, packed, dictionary.id if dictionary else 0
    return format_header(RecordHeader(codec, used, len(raw), len(payload), digest)) + payload


def _format_chain(raw: bytes, digest: bytes) -> bytes:
    """In one buffer that grows: beside a large message there is only its record."""
    view = memoryview(raw)
    record = io.BytesIO()
    record.seek(HEADER_BYTES + len(format_chain_head([0] * -(-len(raw) // FRAME_BYTES))))
    lengths = [
        record.write(compress_frame(view[start : start + FRAME_BYTES]))
        for start in range(0, len(raw), FRAME_BYTES)
    ]
    stored = record.tell() - HEADER_BYTES
    record.seek(0)
    record.write(format_header(RecordHeader(CODEC_CHAIN, 0, len(raw), stored, digest)))
    record.write(format_chain_head(lengths))
    return record.getvalue()


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
    header = RecordHeader(codec, dictionary, raw, stored, digest)
    if codec > CODEC_DICTIONARY or (dictionary and codec not in _WITH_DICTIONARY):
        raise Corrupt(f"a record of an unknown kind (codec {codec}, dictionary {dictionary})")
    if not _is_possible(header):
        raise Corrupt("a record header has lengths that cannot be")
    return header


def _is_possible(header: RecordHeader) -> bool:
    """Whether what is allocated for such a record has a bound: its payload is read whole, its frame is one."""
    if header.codec == CODEC_ZSTD:
        return header.raw <= FRAME_BYTES and header.stored < header.raw
    return header.codec in (CODEC_CHAIN, CODEC_FOOTER) or header.raw == header.stored


def parse_record(record: bytes, find: FindDictionary = no_dictionary) -> bytes:
    """The message in a whole record, checked against its hash. Raises Corrupt, also for a record that is no message."""
    header = parse_header(record)
    raw = unpack_record(record, find)
    if len(raw) != header.raw or blob_hash(raw) != header.hash:
        raise Corrupt("a record does not match its hash")
    return raw


def unpack_record(record: bytes, find: FindDictionary = no_dictionary) -> bytes:
    """The same, not held against the hash: of a damaged record perhaps not what it was. For who saves what there is."""
    header = parse_header(record)
    if len(record) < HEADER_BYTES + header.stored:
        raise Corrupt("a record is cut off")
    if header.codec == CODEC_CHAIN:
        view = memoryview(record)[HEADER_BYTES : HEADER_BYTES + header.stored]
        return joined(iter_chain(header, lambda start, length: view[start : start + length]))
    payload = record[HEADER_BYTES : HEADER_BYTES + header.stored]
    if header.codec not in MESSAGE_CODECS:
        raise Corrupt(f"a record is no message (codec {header.codec})")
    if header.codec == CODEC_RAW:
        return payload
    contexts = find(header.dictionary) if header.dictionary else _contexts
    return _decompress(contexts.decompressor, payload, header.raw)


def joined(pieces: Iterable[bytes]) -> bytes:
    """Like b"".join(), but holds one piece at a time."""
    whole = io.BytesIO()
    for piece in pieces:
        whole.write(piece)
    return whole.getvalue()


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


def _decompress(
    decompressor: zstandard.ZstdDecompressor, frame: bytes | memoryview, raw_bytes: int
) -> bytes:
    try:
        # A frame that claims more than the header does is refused before anything is allocated.
        if zstandard.frame_content_size(frame) != raw_bytes:
            raise Corrupt("a record's frame has another length than its header")
        return decompressor.decompress(frame)
    except (zstandard.ZstdError, MemoryError) as error:
        raise Corrupt(f"a record cannot be decompressed: {error}") from error


class Chain:
    """Random access to a record of codec 2: one frame in memory at a time."""

    def __init__(self, header: RecordHeader, read: ReadPayload) -> None:
        self._read = read
        head = read(0, _CHAIN_HEAD.size)
        if len(head) != _CHAIN_HEAD.size:
            raise Corrupt("a chain is cut off")
        self.frame_bytes, self.count = _CHAIN_HEAD.unpack(head)
        self.raw_bytes = header.raw
        if not 0 < self.frame_bytes <= _LONGEST_FRAME_BYTES or self.count != -(
            -header.raw // self.frame_bytes
        ):
            raise Corrupt("a chain has another length than its header")
        if _CHAIN_HEAD.size + 4 * self.count > header.stored:
            raise Corrupt("a chain is longer than its record")
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
        raw_bytes = min(self.frame_bytes, self.raw_bytes - number * self.frame_bytes)
        frame = self._read(self._starts[number], self._lengths[number])
        return _decompress(_contexts.decompressor, frame, raw_bytes)


# --- records about the pack


class Tombstone(NamedTuple):
    """The record that lay there, of a message with this hash, was reclaimed: a rebuild must not bring it back."""

    pack: PackNumber
    offset: int
    hash: bytes


_TOMBSTONE = struct.Struct("<IQ16s")
# Stored and raw length, hash, dictionary and codec of a record; they lie one behind the other.
_FOOTER_ROW = struct.Struct("<QQ16sIB3x")
# Where the footer begins, for who reads a pack from its end.
_FOOTER_END = struct.Struct("<Q8s")
_FOOTER_MAGIC = b"mfsealed"
FOOTER_END_BYTES = _FOOTER_END.size


def format_tombstones(tombstones: Iterable[Tombstone]) -> bytes:
    """The whole record."""
    return _format_plain(CODEC_TOMBSTONES, b"".join(_TOMBSTONE.pack(*each) for each in tombstones))


def parse_tombstones(record: bytes) -> list[Tombstone]:
    """What a whole record of codec 3 says. Raises Corrupt."""
    payload = _parse_plain(CODEC_TOMBSTONES, record)
    if len(payload) % _TOMBSTONE.size:
        raise Corrupt("a record of tombstones is cut off")
    return [
        Tombstone(PackNumber(pack), offset, digest)
        for pack, offset, digest in _TOMBSTONE.iter_unpack(payload)
    ]


def format_dictionary(dictionary: Dictionary) -> bytes:
    """The whole record."""
    return _format_plain(CODEC_DICTIONARY, dictionary.raw, dictionary.id)


def parse_dictionary(record: bytes) -> Dictionary:
    """The dictionary in a whole record of codec 5. Raises Corrupt."""
    dictionary = Dictionary(_parse_plain(CODEC_DICTIONARY, record))
    if parse_header(record).dictionary != dictionary.id:
        raise Corrupt("a dictionary does not have the id of its record")
    return dictionary


def _format_plain(codec: int, payload: bytes, dictionary: int = 0) -> bytes:
    length = len(payload)
    header = RecordHeader(codec, dictionary, length, length, blob_hash(payload))
    return format_header(header) + payload


def _parse_plain(codec: int, record: bytes) -> bytes:
    header = parse_header(record)
    payload = record[HEADER_BYTES:]
    if header.codec != codec:
        raise Corrupt(f"a record has codec {header.codec} and not {codec}")
    if len(payload) != header.stored or blob_hash(payload) != header.hash:
        raise Corrupt("a record does not match its hash")
    return payload


def format_footer(start: int, headers: Iterable[RecordHeader]) -> bytes:
    """The record that seals a pack, at `start`: the headers of all before it, in their order.

    The payload is a zstd frame, and 16 bytes with which the file ends: `start` (8) and "mfsealed". In the frame, whose
    raw length and hash the header has, are 40 bytes a record: stored length (8), raw length (8), hash (16), dictionary
    (4), codec (1) and three of zero. The first record is behind the head of the pack, each begins where the one before
    it ends. Some 22 bytes a message.
    """
    table = b"".join(
        _FOOTER_ROW.pack(header.stored, header.raw, header.hash, header.dictionary, header.codec)
        for header in headers
    )
    packed = _contexts.chain.compress(table) + _FOOTER_END.pack(start, _FOOTER_MAGIC)
    header = RecordHeader(CODEC_FOOTER, 0, len(table), len(packed), blob_hash(table))
    return format_header(header) + packed


def footer_start_or_none(end: bytes) -> int | None:
    """Where the footer begins, by the last FOOTER_END_BYTES of a pack; None of one that is not sealed."""
    if len(end) != _FOOTER_END.size:
        return None
    start, magic = _FOOTER_END.unpack(end)
    return int(start) if magic == _FOOTER_MAGIC else None


def parse_footer(record: bytes) -> list[RecordHeader]:
    """The headers of all records before a footer, which is a whole record. Raises Corrupt."""
    header = parse_header(record)
    start = footer_start_or_none(record[-_FOOTER_END.size :])
    if header.codec != CODEC_FOOTER or len(record) != HEADER_BYTES + header.stored or start is None:
        raise Corrupt("this is no whole footer")
    rows, rest = divmod(header.raw, _FOOTER_ROW.size)
    if rest or rows * HEADER_BYTES > start:
        raise Corrupt("a footer has a length that cannot be")
    frame = record[HEADER_BYTES : -_FOOTER_END.size]
    table = _decompress(_contexts.decompressor, frame, header.raw)
    if blob_hash(table) != header.hash:
        raise Corrupt("a footer does not match its hash")
    return [
        RecordHeader(codec, dictionary, raw, stored, digest)
        for stored, raw, digest, dictionary, codec in _FOOTER_ROW.iter_unpack(table)
    ]
