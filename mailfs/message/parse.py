"""A message's bytes to the facts the index keeps of it. The import's hot path.

Invariant: `parse_message` never raises, takes time linear in the message, and its strings hold no lone
surrogates and no NUL. The standard library's `email` would take several times as long, and raises on or is
quadratic in some mail.
"""

from dataclasses import dataclass

from mailfs.message.dates import parse_date, parse_received
from mailfs.message.headers import (
    MAX_ADDRESS_CHARS,
    MAX_SUBJECT_CHARS,
    PLAIN_TEXT,
    Fields,
    decode_values,
    read_fields,
    read_message_id,
    read_references,
    skip_mbox_line,
    split_head,
    unify_lines,
)
from mailfs.message.mime import Entity, Harvest

# A message takes some five hops; a hundred lines without a believable date have none.
_MAX_RECEIVED_TRIED = 100
# Ids beyond are not looked at: 50,000 of them in one field are an attack.
_MAX_REFERENCES_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class ParsedMessage:
    """What is known of a message from its bytes alone. Missing texts are ''.

    message_id      without angle brackets, blanks and controls; cut at 990 characters
    references      ids of References, then In-Reply-To, each once, without its own: the first and last 49
    date_s          the Date field in seconds since 1970 UTC; None: absent, unreadable, outside 1970 to 9999
    received_s      the topmost Received date between 1970 and 2100, else None
    subject ... cc  decoded, on one line; sender is From or else Sender, recipient To, cc Cc and Bcc
    body            text of all text parts, HTML without its tags, nested messages with their Subject and From
    attachment      file names of parts, one a line
    has_attachment  some part has a file name or is declared an attachment (signatures do not count)
    is_partial      a limit was hit or the structure is broken: the index holds what could be read
    """

    message_id: str
    references: tuple[str, ...]
    date_s: int | None
    received_s: int | None
    subject: str
    sender: str
    recipient: str
    cc: str
    list_id: str
    body: str
    attachment: str
    has_attachment: bool
    is_partial: bool


def parse_message(raw: bytes) -> ParsedMessage:
    """Parse a message. Any bytes at all give a result; some 50 microseconds for one of 8 kB."""
    data = unify_lines(raw)
    end = len(data)
    start = skip_mbox_line(data, 0, end)
    head_end, body = split_head(data, start, end)
    fields, is_cut = read_fields(data, start, head_end)
    harvest = Harvest(end)
    harvest.reap(Entity(data, body, end, 0, PLAIN_TEXT, fields))

    subject, subject_cut = decode_values(_first(fields, b"subject"), MAX_SUBJECT_CHARS)
    sender, sender_cut = decode_values(
        _first(fields, b"from") or _first(fields, b"sender"), MAX_ADDRESS_CHARS
    )
    recipient, recipient_cut = decode_values(fields.get(b"to"), MAX_ADDRESS_CHARS)
    cc, cc_cut = decode_values(_copies(fields), MAX_ADDRESS_CHARS)
    list_id, list_cut = decode_values(_first(fields, b"list-id"), MAX_SUBJECT_CHARS)
    values = fields.get(b"message-id")
    message_id = "" if values is None else read_message_id(values[0])
    values = fields.get(b"date")
    return ParsedMessage(
        message_id=message_id,
        references=_references(fields, message_id),
        date_s=None if values is None else parse_date(values[0]),
        received_s=_received(fields),
        subject=subject,
        sender=sender,
        recipient=recipient,
        cc=cc,
        list_id=list_id,
        body="\n".join(harvest.texts),
        attachment="\n".join(harvest.names),
        has_attachment=harvest.has_attachment,
        is_partial=harvest.is_partial
        or is_cut
        or subject_cut
        or sender_cut
        or recipient_cut
        or cc_cut
        or list_cut,
    )


def _first(fields: Fields, name: bytes) -> list[bytes] | None:
    """The topmost value of a field that may stand only once."""
    values = fields.get(name)
    return values if values is None or len(values) == 1 else values[:1]


def _copies(fields: Fields) -> list[bytes] | None:
    cc = fields.get(b"cc")
    bcc = fields.get(b"bcc")
    if cc is None or bcc is None:
        return cc or bcc
    return cc + bcc


def _references(fields: Fields, own: str) -> tuple[str, ...]:
    references = fields.get(b"references")
    in_reply_to = fields.get(b"in-reply-to")
    if references is None and in_reply_to is None:
        return ()
    return read_references(
        b"" if references is None else references[0][:_MAX_REFERENCES_BYTES],
        b"" if in_reply_to is None else in_reply_to[0][:_MAX_REFERENCES_BYTES],
        own,
    )


def _received(fields: Fields) -> int | None:
    for value in fields.get(b"received", ())[:_MAX_RECEIVED_TRIED]:
        seconds = parse_received(value)
        if seconds is not None:
            return seconds
    return None
