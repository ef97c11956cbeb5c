"""The tree of MIME parts, walked for what the index needs: text and attachments' names (RFC 2045, 2046, 2183).

Invariant: no input raises, and the work is bounded whatever the tree claims: parts, depth, bytes scanned for
delimiters and bytes decoded each have a limit. Where one is hit, `is_partial` says so and the walk goes on
with what is left. Attachments that are no text are never decoded.
"""

from typing import Final, NamedTuple

from mailfs.message.headers import (
    MAX_ADDRESS_CHARS,
    MAX_SUBJECT_CHARS,
    PLAIN_TEXT,
    ContentType,
    Fields,
    decode_values,
    read_content_type,
    read_disposition,
    read_fields,
    skip_mbox_line,
    split_head,
    unify_lines,
)
from mailfs.message.text import (
    decode_charset,
    decode_transfer,
    html_to_text,
    without_armour,
)

# Dovecot's limits, set after trees of 10,000 levels stopped it (CVE-2020-12100).
MAX_DEPTH: Final = 100
MAX_PARTS: Final = 10_000
# Text of one message that is indexed. A novel has half of it; beyond are logs and data.
MAX_TEXT_CHARS: Final = 1024 * 1024
# Bytes of text parts that are decoded: room for the above in base64, or in HTML with four bytes of tags to
# each of text.
MAX_TEXT_BYTES: Final = 4 * 1024 * 1024
# All file names of a message together.
MAX_NAMES_CHARS: Final = 64 * 1024
# Every level of nesting scans its bytes again for delimiters: so many times the message's size is enough for
# forwarded mail in forwarded mail, and keeps 100 levels around 100 MB short.
MAX_SCANS: Final = 6
_FREE_SCAN_BYTES: Final = 4 * 1024 * 1024
# RFC 2046 allows a boundary of 70 bytes, and blanks behind it.
_MAX_DELIMITER_TAIL: Final = 200

_MESSAGE_KINDS = {b"message/rfc822", b"message/global", b"message/news"}
# Letters, but nothing a person would search for (or markup that would drown it).
_UNREAD_TEXT = {b"text/css", b"text/javascript", b"text/rtf", b"text/x-amp-html"}
_MARKUP = {b"text/html", b"text/xhtml", b"text/xml", b"text/enriched", b"text/richtext"}
# What signs a message is no attachment of it.
_SIGNATURES = {
    b"application/pgp-signature",
    b"application/pkcs7-signature",
    b"application/x-pkcs7-signature",
}


class Entity(NamedTuple):
    """A part whose header is read: data[start:end] is its body."""

    data: bytes
    start: int
    end: int
    depth: int
    default: ContentType
    fields: Fields


class _Span(NamedTuple):
    """A part not yet looked at: data[start] is the line end before its header."""

    data: bytes
    start: int
    end: int
    depth: int
    default: ContentType
    is_message: bool


_DIGEST_PART = ContentType(b"message/rfc822", "", b"", "")


class Harvest:
    """What one message gives to the index: `texts` and `names` in the order they stand, and whether that
    is all of it. Used once: `Harvest(size).reap(entity)`."""

    __slots__ = (
        "_chars_left",
        "_name_chars_left",
        "_parts_left",
        "_scan_left",
        "_text_left",
        "_waiting",
        "has_attachment",
        "is_partial",
        "names",
        "texts",
    )

    def __init__(self, size: int) -> None:
        self.texts: list[str] = []
        self.names: list[str] = []
        self.has_attachment = False
        self.is_partial = False
        self._chars_left = MAX_TEXT_CHARS
        self._name_chars_left = MAX_NAMES_CHARS
        self._text_left = MAX_TEXT_BYTES
        self._parts_left = MAX_PARTS
        self._scan_left = MAX_SCANS * size + _FREE_SCAN_BYTES
        self._waiting: list[_Span] = []

    def reap(self, entity: Entity) -> None:
        """Walk the tree below `entity`."""
        self._take(entity)
        while self._waiting:
            self._open(self._waiting.pop())

    def _open(self, span: _Span) -> None:
        """Read the header of a part, and of a message within the message what a person sees of it."""
        start = span.start
        if span.is_message:
            start = skip_mbox_line(span.data, start, span.end)
        head_end, body = split_head(span.data, start, span.end)
        fields, is_cut = read_fields(span.data, start, head_end)
        if is_cut:
            self.is_partial = True
        if span.is_message:
            for name, limit in ((b"subject", MAX_SUBJECT_CHARS), (b"from", MAX_ADDRESS_CHARS)):
                self._add(decode_values(fields.get(name), limit)[0])
        self._take(Entity(span.data, body, span.end, span.depth, span.default, fields))

    def _take(self, entity: Entity) -> None:
        fields = entity.fields
        values = fields.get(b"content-type")
        content = entity.default if values is None else read_content_type(values[0])
        kind = content.kind
        if kind.startswith(b"multipart/"):
            self._split(entity, content)
            return
        if kind in _SIGNATURES:
            return
        self._name(fields, content)
        values = fields.get(b"content-transfer-encoding")
        encoding = b"" if values is None else values[0].strip().lower()
        if kind in _MESSAGE_KINDS:
            self._nest(entity, encoding)
        elif kind.startswith((b"text/", b"message/")) and kind not in _UNREAD_TEXT:
            self._read(entity, content, encoding)

    def _name(self, fields: Fields, content: ContentType) -> None:
        """Note a part's file name, and whether it is an attachment."""
        name = content.name
        values = fields.get(b"content-disposition")
        if values is not None:
            disposition, file_name = read_disposition(values[0])
            name = file_name or name
            if disposition == b"attachment":
                self.has_attachment = True
        if name:
            self.has_attachment = True
            if len(name) > self._name_chars_left:
                self.is_partial = True
                name = name[: self._name_chars_left]
            self._name_chars_left -= len(name)
            self.names.append(name)

    def _split(self, entity: Entity, content: ContentType) -> None:
        """Put the parts of a multipart on the list. What has no delimiters is read as plain text."""
        if content.kind == b"multipart/encrypted":
            return
        self._scan_left -= entity.end - entity.start
        if entity.depth >= MAX_DEPTH or self._scan_left < 0:
            self.is_partial = True
            return
        bodies = self._bodies(entity, content.boundary) if content.boundary else []
        if not bodies:
            self.is_partial = True
            self._read(entity, PLAIN_TEXT, b"")
            return
        default = _DIGEST_PART if content.kind == b"multipart/digest" else PLAIN_TEXT
        for start, end in reversed(bodies):
            self._waiting.append(_Span(entity.data, start, end, entity.depth + 1, default, False))

    def _bodies(self, entity: Entity, boundary: bytes) -> list[tuple[int, int]]:
        """(line end before, end) of every part: RFC 2046 section 5.1.1, preamble and epilogue left out.

        A line that only begins with the boundary is none, though it counts as a part: a message made of
        such lines would take for ever.
        """
        data, end = entity.data, entity.end
        delimiter = b"\n--" + boundary
        bodies: list[tuple[int, int]] = []
        opened = -1
        at = data.find(delimiter, entity.start - 1, end)
        while at >= 0:
            if self._parts_left == 0:
                self.is_partial = True
                return bodies
            self._parts_left -= 1
            tail_start = at + len(delimiter)
            line_end = data.find(b"\n", tail_start, end)
            if line_end < 0:
                line_end = end
            tail = data[tail_start : min(line_end, tail_start + _MAX_DELIMITER_TAIL)].strip()
            if tail in (b"", b"--"):
                if opened >= 0:
                    bodies.append((opened, at))
                if tail:
                    return bodies
                opened = line_end
            at = data.find(delimiter, line_end, end)
        if opened >= 0:
            self.is_partial = True
            bodies.append((opened, end))
        return bodies

    def _nest(self, entity: Entity, encoding: bytes) -> None:
        """Put a message within the message on the list."""
        data, start, end = entity.data, entity.start - 1, entity.end
        if encoding in (b"base64", b"quoted-printable"):
            # Against RFC 2046 section 5.2.1, but some gateways do it.
            data = unify_lines(decode_transfer(self._cut(entity), encoding))
            start, end = 0, len(data)
        self._scan_left -= end - start
        if entity.depth >= MAX_DEPTH or self._scan_left < 0:
            self.is_partial = True
            return
        self._waiting.append(_Span(data, start, end, entity.depth + 1, PLAIN_TEXT, True))

    def _read(self, entity: Entity, content: ContentType, encoding: bytes) -> None:
        """Add the text of a part."""
        find_words = html_to_text if content.kind in _MARKUP else without_armour
        # Nothing here keeps the text while its words are found: with one wide sign in it, it takes four bytes a letter.
        self._add(
            find_words(
                decode_charset(decode_transfer(self._cut(entity), encoding), content.charset)
            )
        )

    def _cut(self, entity: Entity) -> bytes:
        """The body's bytes as far as they may still be decoded."""
        end = entity.start + self._text_left
        if end < entity.end:
            self.is_partial = True
        else:
            end = entity.end
        payload = entity.data[entity.start : end]
        self._text_left -= len(payload)
        return payload

    def _add(self, text: str) -> None:
        if len(text) > self._chars_left:
            self.is_partial = True
            text = text[: self._chars_left]
        self._chars_left -= len(text)
        if text:
            # SQLite takes a NUL for the end of a text.
            self.texts.append(text.replace("\0", " ") if "\0" in text else text)
