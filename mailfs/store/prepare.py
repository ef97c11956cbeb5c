"""Everything about a new message that needs processor time and no lock: parse, hash, compress.

Pure and picklable, so that an import does it in worker processes and only writing waits for the writer.
"""

import time
from dataclasses import dataclass

from mailfs.ids import Keyword
from mailfs.message.keywords import ATTACHMENT
from mailfs.message.parse import ParsedMessage, parse_message
from mailfs.store.records import blob_hash, format_record

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message ready to be added. `record` holds its bytes; `received_ns` is between 1970 and now."""

    digest: bytes
    record: bytes
    size: int
    parsed: ParsedMessage
    flags: int
    keywords: tuple[Keyword, ...]
    received_ns: int


def prepare_message(
    raw: bytes, flags: int, keywords: tuple[Keyword, ...], received_ns: int | None
) -> NewMessage:
    """Parse, hash and compress. Without `received_ns` the newest Received counts, then Date, then now.

    Never raises, whatever the bytes.
    """
    parsed = parse_message(raw)
    digest = blob_hash(raw)
    now_ns = time.time_ns()
    # An mtime of 0 is what archives and copies without a time leave behind: no time at all.
    if not received_ns:
        seconds = parsed.received_s if parsed.received_s is not None else parsed.date_s
        received_ns = now_ns if seconds is None else seconds * _NS
    return NewMessage(
        digest=digest,
        record=format_record(raw, digest),
        size=len(raw),
        parsed=parsed,
        flags=flags | (ATTACHMENT if parsed.has_attachment else 0),
        keywords=keywords,
        # A date of the future would make the entry's mtime run ahead of the clock.
        received_ns=min(max(received_ns, 0), now_ns),
    )
