"""Everything about a new message that needs processor time and no lock: parse, hash, compress.

Pure and, from bytes, picklable, so that an import does it in worker processes and only writing waits for the writer.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mailfs.errors import StoreError, storage_error
from mailfs.ids import Keyword
from mailfs.message.keywords import ATTACHMENT
from mailfs.message.parse import ParsedMessage, parse_message
from mailfs.store.layout import Layout
from mailfs.store.records import FRAME_BYTES, Dictionary, RecordHeader, blob_hash, format_record
from mailfs.store.unpacked import MemoryRecord, Record, spool_chain

_NS = 1_000_000_000
# What a repair gives to a message nobody knew of.
RECOVERED = Keyword("recovered")
# Words are looked for in so much of a message, a whole number of frames: text stands before attachments, and
# parsing takes several times the memory of what is parsed.
PARSED_BYTES = 32 * FRAME_BYTES
# A file up to this size is read whole.
_IN_MEMORY_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message ready to be added. `record` holds its bytes; `received_ns` is between 1970 and now."""

    digest: bytes
    record: Record
    size: int
    parsed: ParsedMessage
    flags: int
    keywords: tuple[Keyword, ...]
    received_ns: int


def prepare_message(
    raw: bytes,
    flags: int,
    keywords: tuple[Keyword, ...],
    received_ns: int | None,
    dictionary: Dictionary | None = None,
) -> NewMessage:
    """Parse, hash and compress, with the newest dictionary of the store, if any.

    Without `received_ns` the newest Received counts, then Date, then now.

    Never raises, whatever the bytes. Beyond PARSED_BYTES nothing is looked at for words and attachments.
    """
    digest = blob_hash(raw)
    record = MemoryRecord(format_record(raw, digest, dictionary))
    parsed = parse_start(raw, len(raw))
    return _new_message(digest, record, len(raw), parsed, flags, keywords, received_ns)


def prepare_file(
    fd: int,
    size: int,
    flags: int,
    keywords: tuple[Keyword, ...],
    received_ns: int | None,
    layout: Layout,
    dictionary: Dictionary | None = None,
) -> NewMessage:
    """The same for the message in an open file of `size` bytes: the same record, the same words.

    Of a large one some 8 MiB are in memory at a time, and the record is in a nameless file in the spool: give it
    back with `record.close()`. Every byte is read once, so a file that is changed meanwhile gives one or the other.
    Raises StoreError when the file is longer or shorter than `size` or cannot be read, StoreFull.
    """
    if size <= _IN_MEMORY_BYTES:
        raw = b"".join(_iter_frames(fd, size))
        return prepare_message(raw, flags, keywords, received_ns, dictionary)
    start: list[bytes] = []

    def keep_start() -> Iterator[bytes]:
        for frame in _iter_frames(fd, size):
            if len(start) * FRAME_BYTES < PARSED_BYTES:
                start.append(frame)
            yield frame

    record = spool_chain(layout, size, keep_start())
    parsed = parse_start(b"".join(start), size)
    return _new_message(record.header.hash, record, size, parsed, flags, keywords, received_ns)


def _iter_frames(fd: int, size: int) -> Iterator[bytes]:
    for start in range(0, size, FRAME_BYTES):
        length = min(FRAME_BYTES, size - start)
        if len(frame := _read(fd, length, start)) != length:
            raise StoreError("a message became shorter while it was read: deliver it again")
        yield frame
    if _read(fd, 1, size):
        raise StoreError("a message became longer while it was read: deliver it again")


def _read(fd: int, length: int, start: int) -> bytes:
    try:
        return os.pread(fd, length, start)
    except OSError as error:
        raise storage_error(error, "cannot read a message to be stored") from error


def parse_start(raw: bytes, size: int) -> ParsedMessage:
    """What is known of a message of `size` bytes, of which `raw` is at least the part that is looked at."""
    parsed = parse_message(raw[:PARSED_BYTES])
    return parsed if size <= PARSED_BYTES else replace(parsed, is_partial=True)


def _new_message(
    digest: bytes,
    record: Record,
    size: int,
    parsed: ParsedMessage,
    flags: int,
    keywords: tuple[Keyword, ...],
    received_ns: int | None,
) -> NewMessage:
    return NewMessage(
        digest=digest,
        record=record,
        size=size,
        parsed=parsed,
        flags=flags | (ATTACHMENT if parsed.has_attachment else 0),
        keywords=keywords,
        received_ns=received_of(parsed, received_ns),
    )


def prepare_record(record: Record, header: RecordHeader, start: bytes) -> NewMessage:
    """A message nobody knows of, found in a record: `start` is at least the part that is parsed. Keyword `recovered`."""
    parsed = parse_start(start, header.raw)
    return _new_message(header.hash, record, header.raw, parsed, 0, (RECOVERED,), None)


def received_of(parsed: ParsedMessage, known_ns: int | None) -> int:
    """When a message came (ns), between 1970 and now: as is known, else by its fields, else now."""
    now_ns = time.time_ns()
    # An mtime of 0 is what archives and copies without a time leave behind: no time at all.
    if not known_ns:
        seconds = parsed.received_s if parsed.received_s is not None else parsed.date_s
        known_ns = now_ns if seconds is None else seconds * _NS
    # A date of the future would make the entry's mtime run ahead of the clock.
    return min(max(known_ns, 0), now_ns)
