"""Another reader of a store, written from man/mailfs-store.5 alone. It knows nothing of mailfs's code, and needs no index."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash
import zstandard

_HEAD = b"mailfs pack 1\n\0\0"
_HEADER = struct.Struct("<4sB3sIQQ16sI")
_TOMBSTONE = struct.Struct("<IQ16s")
_ROW = struct.Struct("<QQ16sIB3s")


class Damaged(Exception):
    """A pack is not as the page says."""


class Record(NamedTuple):
    """A whole record."""

    pack: int
    offset: int
    codec: int
    dictionary: int
    raw: int
    hash: bytes
    stored: bytes


def _claim(is_so: bool, what: str) -> None:
    if not is_so:
        raise Damaged(what)


def iter_records(path: Path) -> Iterator[Record]:
    """The records of a pack, one behind the other."""
    content = path.read_bytes()
    _claim(content[:16] == _HEAD, "head")
    offset = 16
    while offset < len(content):
        magic, codec, zeros, dictionary, raw, stored, digest, check = _HEADER.unpack_from(
            content, offset
        )
        _claim(magic == b"mfr1" and zeros == bytes(3), f"header at {offset}")
        _claim(check == zlib.crc32(content[offset : offset + 44]), f"check at {offset}")
        payload = content[offset + 48 : offset + 48 + stored]
        _claim(len(payload) == stored, f"length at {offset}")
        yield Record(int(path.stem), offset, codec, dictionary, raw, digest, payload)
        offset += 48 + stored


def _checked(record: Record, raw: bytes) -> bytes:
    _claim(len(raw) == record.raw, "raw length")
    _claim(xxhash.xxh3_128(raw, seed=0).digest() == record.hash, "hash")
    return raw


def _message(record: Record, dictionary: bytes | None) -> bytes:
    if record.codec == 0:
        return _checked(record, record.stored)
    if record.codec == 1:
        _claim(record.raw <= 262144, "raw length of a frame")
        _claim(not record.dictionary or dictionary is not None, "dictionary")
        data = (
            zstandard.ZstdCompressionDict(dictionary) if record.dictionary and dictionary else None
        )
        return _checked(
            record, zstandard.ZstdDecompressor(dict_data=data).decompress(record.stored)
        )
    frame_bytes, count = struct.unpack_from("<II", record.stored)
    lengths = struct.unpack_from(f"<{count}I", record.stored, 8)
    start, frames = 8 + 4 * count, []
    for length in lengths:
        frame = zstandard.ZstdDecompressor().decompress(record.stored[start : start + length])
        frames.append(frame)
        start += length
    _claim(start == len(record.stored), "length of a chain")
    _claim(all(len(frame) == frame_bytes for frame in frames[:-1]), "frames of a chain")
    return _checked(record, b"".join(frames))


def _check_footer(record: Record, before: list[Record]) -> None:
    start, magic = struct.unpack("<Q8s", record.stored[-16:])
    _claim((start, magic) == (record.offset, b"mfsealed"), "end of a footer")
    table = _checked(record, zstandard.ZstdDecompressor().decompress(record.stored[:-16]))
    rows = [
        (len(each.stored), each.raw, each.hash, each.dictionary, each.codec, bytes(3))
        for each in before
    ]
    _claim(list(_ROW.iter_unpack(table)) == rows, "rows of a footer")


class Found(NamedTuple):
    """What is in all packs: messages, without those that were reclaimed, and the numbers of packs that are sealed."""

    messages: set[bytes]
    sealed: set[int]


def read_packs(folder: Path) -> Found:
    """All messages of a store. Raises Damaged."""
    messages: dict[tuple[int, int], tuple[bytes, bytes]] = {}
    tombstones: list[tuple[int, int, bytes]] = []
    sealed = set()
    for path in sorted(folder.glob("*.pack")):
        records = list(iter_records(path))
        dictionary = None
        for number, record in enumerate(records):
            if record.codec in (0, 1, 2):
                raw = _message(record, dictionary)
                messages[record.pack, record.offset] = (record.hash, raw)
            elif record.codec == 3:
                tombstones += _TOMBSTONE.iter_unpack(_checked(record, record.stored))
            elif record.codec == 4:
                _claim(record is records[-1], "something is behind a footer")
                _check_footer(record, records[:number])
                sealed.add(record.pack)
            elif record.codec == 5:
                _claim(number == 0, "a dictionary is not the first record")
                dictionary = _checked(record, record.stored)
                _claim(
                    record.dictionary == struct.unpack("<I", record.hash[:4])[0], "dictionary id"
                )
            else:
                raise Damaged(f"codec {record.codec}")
    for pack, offset, digest in tombstones:
        found = messages.get((pack, offset))
        if found is not None and digest in (found[0], bytes(16)):
            del messages[pack, offset]
    return Found({raw for _, raw in messages.values()}, sealed)


def read_format(path: Path) -> dict[str, str]:
    """The fields of the file `format`. Raises Damaged."""
    content = path.read_bytes()
    lines = content.decode("ascii").splitlines()
    _claim(lines[0] == "mailfs store", "first line")
    fields = dict(line.split(" ") for line in lines[1:])
    said = content[: content.index(b"check ")]
    _claim(fields["check"] == xxhash.xxh3_64(said, seed=0).hexdigest(), "check")
    return fields
