"""Header blocks: where they end, the fields the index needs, and their values as text, ids and parameters.

Works on data with LF line ends whose first byte is the line end before the first line, so that every field
begins with a line end: `unify_lines` makes it. Invariant: nothing raises, all is linear in the data.
"""

import binascii
import re
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from mailfs.message.text import decode_base64, decode_charset, decode_undeclared

# Dovecot's limit for one header, set after 20 MB headers stopped it (CVE-2024-23185).
MAX_HEADER_BYTES = 10 * 1024 * 1024
# Fields of one block that are looked at: time and memory for 500,000 `To:` lines (CVE-2024-23184).
MAX_FIELDS = 100_000
# What one field may add to the index, in characters.
MAX_ADDRESS_CHARS = 64 * 1024
MAX_SUBJECT_CHARS = 8 * 1024
# RFC 5322 section 2.1.1: a line has 998 characters, less `<`, `>` and some room for the field's name.
MAX_MESSAGE_ID_CHARS = 990
# Enough to find a conversation's beginning and its neighbours.
MAX_REFERENCES = 50
# A parameter list longer than this is an attack (100,000 RFC 2231 pieces), not a file name.
MAX_PARAMETER_BYTES = 64 * 1024

Fields = dict[bytes, list[bytes]]
"""Lower-case field name -> its values as they stand (with folds), topmost first."""

_NAMES = (
    *("from", "sender", "to", "cc", "bcc", "subject", "date", "list-id", "received"),
    *("message-id", "references", "in-reply-to"),
    *("content-type", "content-transfer-encoding", "content-disposition"),
)


def _any_case(name: str) -> str:
    # Sets of two letters instead of the flag IGNORECASE: the matcher skips a branch by its first set.
    return "".join(f"[{sign}{sign.upper()}]" if sign.isalpha() else sign for sign in name)


# Possessive repeats (`*+`) of single signs only: of groups they are wrong before Python 3.11.5 (gh-106052).
# The folds have a limit because each takes memory while the rest is matched; nothing follows them, so
# nothing is tried twice. What is behind the limit is not read; the value is then longer than any limit below.
_FIELD = re.compile(
    rb"\n(%s)[ \t]*+:([^\n]*+(?:\n[ \t][^\n]*+){0,100000})"
    % "|".join(map(_any_case, _NAMES)).encode()
)
_FIRST_LINE = re.compile(rb"\n[^\s:]{1,998}+[ \t]*+:")
_NO_FIELD = re.compile(rb"\n(?![ \t]|[^\s:]{1,998}+[ \t]*+:)")
# Without the look behind, a run of CRs would be tried again from each of them.
_MANY_RETURNS = re.compile(rb"(?<!\r)\r++\n")


def unify_lines(raw: bytes) -> bytes:
    """`raw` behind one line end, with CRLF (and CR CR LF) turned into LF; CR alone too where it ends the
    first line. A lone CR elsewhere stays what it is: a blank."""
    carriage = raw.find(b"\r")
    if carriage < 0:
        return b"\n" + raw
    raw = raw.replace(b"\r\n", b"\n")
    if b"\r\n" in raw:
        raw = _MANY_RETURNS.sub(b"\n", raw)
    first_line_end = raw.find(b"\n")
    if first_line_end < 0 or raw.find(b"\r", 0, first_line_end) >= 0:
        raw = raw.replace(b"\r", b"\n")
    return b"\n" + raw


def skip_mbox_line(data: bytes, start: int, end: int) -> int:
    """`start`, or the end of the `From ` lines (two at most) an mbox left before the header."""
    for _ in range(2):
        if not data.startswith((b"\nFrom ", b"\n>From "), start, end):
            break
        line_end = data.find(b"\n", start + 1, end)
        if line_end < 0:
            return end
        start = line_end
    return start


def split_head(data: bytes, start: int, end: int) -> tuple[int, int]:
    """(end of the header, start of the body) of the entity data[start:end], whose first byte is a line end.

    Lines within a header that are no fields are skipped. Where no empty line follows, the header ends
    before the first line that is no field; where the first line is none, there is no header.
    """
    blank = data.find(b"\n\n", start, end)
    if blank == start:
        return start, min(start + 2, end)
    if _FIRST_LINE.match(data, start, end) is None:
        return start, min(start + 1, end)
    if blank >= 0:
        return blank, blank + 2
    end_of_search = min(end, start + MAX_HEADER_BYTES)
    match = _NO_FIELD.search(data, start, end_of_search)
    head_end = end_of_search if match is None else match.start()
    return head_end, min(head_end + 1, end)


def read_fields(data: bytes, start: int, end: int) -> tuple[Fields, bool]:
    """The fields the index needs within data[start:end], and whether limits cut some off."""
    is_cut = end - start > MAX_HEADER_BYTES
    if is_cut:
        end = start + MAX_HEADER_BYTES
    fields: Fields = {}
    found: list[tuple[bytes, bytes]]
    # The list is faster; the iterator never holds a million values. A field takes four bytes or more.
    if end - start < MAX_FIELDS:
        found = _FIELD.findall(data, start, end)
    else:
        matches = islice(_FIELD.finditer(data, start, end), MAX_FIELDS)
        found = [(match[1], match[2]) for match in matches]
        is_cut = is_cut or len(found) == MAX_FIELDS
    for name, value in found:
        name = name.lower()
        if name in fields:
            fields[name].append(value)
        else:
            fields[name] = [value]
    return fields, is_cut


def unfold(value: bytes) -> bytes:
    """A value on one line (RFC 5322 section 2.2.3); a tab behind a fold becomes a blank."""
    if b"\n" in value:
        return value.replace(b"\n\t", b" ").replace(b"\n", b"")
    return value


# The text may hold blanks, which is wrong but frequent. No `?`: with it the search would be quadratic.
_ENCODED_WORD = re.compile(rb"=\?([^?*\s]{1,40}+)(?:\*[^?\s]{0,40}+)?\?([BbQq])\?([^?]*+)\?=")
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def decode_value(value: bytes) -> str:
    """Unstructured text of a field: unfolded, encoded words decoded (RFC 2047), controls made blanks."""
    value = unfold(value)
    text = _decode_words(value) if b"=?" in value else decode_undeclared(value)
    if not text.isprintable():
        text = _CONTROLS.sub(" ", text)
    return text.strip()


def decode_values(values: list[bytes] | None, max_chars: int) -> tuple[str, bool]:
    """The text of all values of a field, joined by commas, and whether it was cut at `max_chars`."""
    if values is None:
        return "", False
    value = values[0]
    if len(values) > 1:
        # No value costs less than a byte, so that this many values are more than enough.
        value = b", ".join(one.strip() for one in values[:max_chars])
    # An encoded character takes up to 12 bytes (`=F0=9F=98=80`); most of them take far less.
    max_bytes = 4 * max_chars
    is_cut = len(value) > max_bytes
    text = decode_value(value[:max_bytes] if is_cut else value)
    return text[:max_chars], is_cut or len(text) > max_chars


def _decode_words(value: bytes) -> str:
    """Text with its encoded words decoded. Blanks between two are no text (RFC 2047 section 6.2), and words
    of one charset are decoded together, because many programs cut characters in two."""
    pieces: list[str] = []
    run: list[bytes] = []
    charset = b""
    at = 0
    for match in _ENCODED_WORD.finditer(value):
        between = value[at : match.start()]
        at = match.end()
        is_adjacent = bool(run) and not between.strip()
        name = match[1].lower()
        if run and not (is_adjacent and name == charset):
            pieces.append(decode_charset(b"".join(run), charset.decode("latin-1")))
            run = []
        if not is_adjacent:
            pieces.append(decode_undeclared(between))
        charset = name
        payload = match[3]
        is_base64 = match[2] in b"Bb"
        run.append(decode_base64(payload) if is_base64 else binascii.a2b_qp(payload, header=True))
    if run:
        pieces.append(decode_charset(b"".join(run), charset.decode("latin-1")))
    pieces.append(decode_undeclared(value[at:]))
    return "".join(pieces)


_IDS = re.compile(rb"<([^<>]+)>")
_LEADING_IDS = re.compile(rb"(?:[\s,]*+<[^<>]++>)+")
_NO_ID_SIGNS = re.compile("[\x00-\x20\x7f-\xa0\u2028\u2029]+")
# A bare word of In-Reply-To shorter than this is rather somebody's address.
_MIN_BARE_ID_BYTES = 20
# Bytes of a Message-ID value that are looked at: MAX_MESSAGE_ID_CHARS in UTF-8, and its folds.
_MAX_ID_BYTES = 8 * 1024


def clean_id(value: bytes) -> str:
    """A message id without blanks and controls, cut at MAX_MESSAGE_ID_CHARS."""
    text = decode_undeclared(value)
    if not text.isprintable() or " " in text:
        text = _NO_ID_SIGNS.sub("", text)
    return text[:MAX_MESSAGE_ID_CHARS]


def read_message_id(value: bytes) -> str:
    """The id of a Message-ID value: what stands between `<` and `>`, or all of it where they are missing."""
    value = value[:_MAX_ID_BYTES]
    start = value.find(b"<")
    if start < 0:
        return clean_id(value.strip(b"> \t\n"))
    end = value.find(b">", start)
    return clean_id(value[start + 1 : end] if end >= 0 else value[start + 1 :])


def read_references(references: bytes, in_reply_to: bytes, own: str) -> tuple[str, ...]:
    """Ids this message refers to, in order, without repetition: at most MAX_REFERENCES, of which the first
    (the conversation's beginning) and the last ones are kept."""
    ids: dict[str, None] = {}
    for found in _IDS.findall(references):
        ids[clean_id(found)] = None
    for found in _replied_to(in_reply_to):
        ids[clean_id(found)] = None
    ids.pop(own, None)
    ids.pop("", None)
    if len(ids) > MAX_REFERENCES:
        every = list(ids)
        return (every[0], *every[1 - MAX_REFERENCES :])
    return tuple(ids)


def _replied_to(value: bytes) -> list[bytes]:
    """The ids of an In-Reply-To value. It is often prose (RFC 822 allowed it: `Joe <joe@example.org>'s
    message of Monday <id>`), and an address taken for an id would join all that refer to a person."""
    value = value.strip()
    if not value:
        return []
    leading = _LEADING_IDS.match(value)
    if leading is not None:
        found: list[bytes] = _IDS.findall(leading[0])
        return found
    if value.endswith(b">"):
        return [value[value.rfind(b"<") + 1 : -1]]
    is_bare_id = b"@" in value and b"<" not in value and len(value.split(None, 1)) == 1
    return [value] if is_bare_id and len(value) >= _MIN_BARE_ID_BYTES else []


class ContentType(NamedTuple):
    """What a Content-Type says. `kind` is lower case; '' and b'' where a parameter is missing."""

    kind: bytes
    charset: str
    boundary: bytes
    name: str


PLAIN_TEXT = ContentType(b"text/plain", "", b"", "")

# A value without quotes ends at the next semicolon, so that `filename=my file.pdf` is read as it was meant.
_PARAMETER = re.compile(rb';\s*+([^\s=;"]++)\s*+=\s*+(?:"((?:[^"\\]++|\\.)*)"|([^;]*+))', re.DOTALL)
_QUOTED_PAIR = re.compile(rb"\\(.)", re.DOTALL)
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")
_MAX_REMEMBERED_BYTES = 200


def read_content_type(value: bytes) -> ContentType:
    """Parse a Content-Type value; what is no type at all is text/plain (RFC 2045 section 5.2)."""
    if len(value) <= _MAX_REMEMBERED_BYTES:
        return _remembered_content_type(value)
    return _read_content_type(value)


def _read_content_type(value: bytes) -> ContentType:
    kind, semicolon, _ = value.partition(b";")
    words = kind.split(None, 1)
    kind = words[0].lower() if words and b"/" in words[0] else PLAIN_TEXT.kind
    if not semicolon:
        return ContentType(kind, "", b"", "")
    parameters = read_parameters(value)
    charset = parameters.get(b"charset", b"").split(None, 1)
    return ContentType(
        kind,
        charset[0].decode("latin-1") if charset else "",
        parameters.get(b"boundary", b"").rstrip(),
        parameter_text(parameters, b"name"),
    )


# Most mail repeats a few dozen values.
_remembered_content_type = lru_cache(maxsize=1024)(_read_content_type)


def read_disposition(value: bytes) -> tuple[bytes, str]:
    """(`attachment` or `inline` or another word in lower case, file name or '') of a Content-Disposition."""
    kind, semicolon, _ = value.partition(b";")
    name = parameter_text(read_parameters(value), b"filename") if semicolon else ""
    return kind.strip().lower(), name


def read_parameters(value: bytes) -> dict[bytes, bytes]:
    """Lower-case parameter name -> raw value without its quotes; of two with one name the first."""
    parameters: dict[bytes, bytes] = {}
    found: list[tuple[bytes, bytes, bytes]] = _PARAMETER.findall(
        unfold(value[:MAX_PARAMETER_BYTES])
    )
    for name, quoted, bare in found:
        if b"\\" in quoted:
            quoted = _QUOTED_PAIR.sub(rb"\1", quoted)
        parameters.setdefault(name.lower(), quoted or bare.strip(b' \t\n"'))
    return parameters


def parameter_text(parameters: dict[bytes, bytes], name: bytes) -> str:
    """A parameter as text: RFC 2231's forms first, else a plain value with encoded words (which RFC 2047
    forbids there and most programs write). '' where it is missing."""
    pieces = _extended_pieces(parameters, name)
    if not pieces:
        return decode_value(parameters.get(name, b""))
    charset = ""
    first, is_encoded = pieces[0]
    if is_encoded and first.count(b"'") >= 2:
        prefix, _, first = first.split(b"'", 2)
        charset = prefix.decode("latin-1")
        pieces[0] = (first, True)
    data = b"".join(
        _PERCENT.sub(_unescape_percent, piece) if is_encoded else piece
        for piece, is_encoded in pieces
    )
    return _CONTROLS.sub(" ", decode_charset(data, charset)).strip()


def _extended_pieces(parameters: dict[bytes, bytes], name: bytes) -> list[tuple[bytes, bool]]:
    """(value, whether it is percent-encoded) of `name*`, or of `name*0`, `name*1*` ... up to the first gap."""
    whole = parameters.get(name + b"*")
    if whole is not None:
        return [(whole, True)]
    pieces: list[tuple[bytes, bool]] = []
    while True:
        key = b"%s*%d" % (name, len(pieces))
        if key in parameters:
            pieces.append((parameters[key], False))
        elif key + b"*" in parameters:
            pieces.append((parameters[key + b"*"], True))
        else:
            return pieces


def _unescape_percent(match: re.Match[bytes]) -> bytes:
    return bytes.fromhex(match[1].decode())
