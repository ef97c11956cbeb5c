"""Hostile messages from their first byte: trees of parts, what is cut off, and what is no message at all."""

import base64
import struct
from collections.abc import Callable
from random import Random

from mailfs.store.records import RecordHeader, blob_hash, format_header, format_record
from tests.torture.hostile_mail import MIB, Kind, Place, Shape, constant, repeat

_TOP = (Place.TOP,)


def _whole(
    name: str,
    number: int,
    build: Callable[[int], bytes],
    size: int = MIB,
    places: tuple[Place, ...] = (),
) -> Shape:
    return Shape(name, number, Kind.WHOLE, build, size, places=places)


_MIXED = b"Subject: parts\nContent-Type: multipart/mixed; boundary=b\n\n"


def _nested(form: bytes, end: bytes = b"\ntext\n") -> Callable[[int], bytes]:
    """Parts in parts; `form` has the level in each of its places."""
    places = form.count(b"%")

    def build(size: int) -> bytes:
        return b"".join(form % ((level,) * places) for level in range(size // len(form))) + end

    return build


def _closed(size: int) -> bytes:
    """Nested as it should be: every boundary is closed."""
    levels = size // 100
    opening = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%06d\n\n--b%06d\n" % (n, n)
        for n in range(levels)
    )
    closing = b"".join(b"\n--b%06d--\n" % n for n in range(levels - 1, -1, -1))
    return opening + b"\ntext" + closing


def _base64_nest(size: int) -> bytes:
    """A message in base64 in a message in base64 ..."""
    inner = b"Subject: inner\n\n" + b"x" * (size // 20)
    while len(inner) < size:
        inner = (
            b"Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n"
            + base64.encodebytes(inner)
        )
    return inner


def _prefixes(size: int) -> bytes:
    """Every boundary begins as its parent's does."""
    levels = min(int((size / 2) ** 0.5), 600)
    pieces = [
        b"Content-Type: multipart/mixed; boundary=%s\n\n--%s\n" % (b"b" * n, b"b" * n)
        for n in range(1, levels)
    ]
    tail = b"\ntext\n" + b"".join(b"--%s\n\nx\n" % (b"b" * n) for n in range(levels, 0, -1))
    return b"".join(pieces) + tail


def _headers_of_parts(size: int) -> bytes:
    """Many parts, each with a header of 10 kB."""
    part = b"--b\nX-Long: " + b"x" * 10_000 + b"\n\ntext\n"
    return _MIXED + part * (size // len(part))


def _small_large(size: int) -> bytes:
    return b"Subject: large\n\n" + Random(size).randbytes(size)


def _record(codec: int, payload: bytes) -> bytes:
    """A whole record as it stands in a pack, of any kind."""
    return (
        format_header(RecordHeader(codec, 0, len(payload), len(payload), blob_hash(payload)))
        + payload
    )


def _carrying(record: Callable[[], bytes]) -> Callable[[int], bytes]:
    """Noise, which is stored as it is, around what looks like a record of a pack."""

    def build(size: int) -> bytes:
        found = record()
        noise = Random(size).randbytes(max(size // 8, 1000))
        return b"Subject: carries\n\n" + (noise + found) * 8

    return build


def _tombstones() -> bytes:
    """Says of the first records of the first packs that they were reclaimed."""
    graves = b"".join(struct.pack("<IQ", pack, 16) + bytes(16) for pack in range(1, 9))
    return _record(3, graves)


def _half(data: bytes) -> Callable[[int], bytes]:
    return constant(data)


_MANY = b"To: a@example.org\nSubject: cut\n"
_CUTS: tuple[tuple[str, bytes], ...] = (
    ("in a boundary", _MIXED + b"--b\n\nx\n--b"),
    ("in an encoded word", b"Subject: a =?utf-8?q?=C3=8"),
    ("in a character", "Subject: 😀".encode()[:-1]),
    ("in a line end", b"Subject: a\r"),
    ("in an escape", b"Content-Transfer-Encoding: quoted-printable\n\na=4"),
    ("in base64", b"Content-Transfer-Encoding: base64\n\nYWJjZ"),
    ("in a header", _MANY + b"Content-Ty"),
    ("in a parameter", b'Content-Type: text/plain; name="a\\'),
    ("in a header of a part", _MIXED + b"--b\nContent-"),
    ("in a closing boundary", _MIXED + b"--b\n\nx\n--b-"),
)
_ODD: tuple[tuple[str, bytes], ...] = (
    ("empty", b""),
    ("one nul", b"\0"),
    ("one line end", b"\n"),
    ("line ends", b"\r\n\r\n"),
    ("header alone", b"Subject: alone\n"),
    ("header without an end", b"Subject: alone"),
    ("body alone", b"\nbody\n"),
    ("body without a line end", b"body"),
    ("a from line first", b"From ann@example.org Mon Jan  1 00:00:00 2001\nSubject: x\n\nbody\n"),
    ("a quoted from line first", b">From ann@example.org\nSubject: x\n\nbody\n"),
    ("from lines alone", b"From \nFrom \nFrom \n"),
    ("a mark of byte order", b"\xef\xbb\xbfSubject: x\n\nbody\n"),
    ("utf-16", "Subject: x\n\nbody\n".encode("utf-16")),
    ("an html page", b"<!DOCTYPE html><html><body>x</body></html>"),
    ("a colon", b":"),
    ("blanks", b" \t \n \n"),
    ("ff", b"\xff" * 300),
    ("a fold first", b" folded\nSubject: x\n\nbody\n"),
)

SHAPES: tuple[Shape, ...] = (
    # 2
    _whole("headers of all parts of 100 MB", 2, _headers_of_parts, 100 * MIB, _TOP),
    _whole(
        "header of 100 MB", 2, repeat(b"X: " + b"y" * 95 + b"\n", b"Subject: x\n"), 100 * MIB, _TOP
    ),
    # 6: trees (Dovecot CVE-2020-12100, CVE-2020-25275; mutt 801f3a2d)
    _whole(
        "10,000 levels",
        6,
        _nested(b"Content-Type: multipart/mixed; boundary=%06d\n\n--%06d\n"),
        600_000,
    ),
    _whole("10,000 levels, closed", 6, _closed, MIB),
    _whole(
        "100,000 levels",
        6,
        _nested(b"Content-Type: multipart/mixed; boundary=%06d\n\n--%06d\n"),
        6_000_000,
    ),
    _whole("messages in messages", 6, _nested(b"Content-Type: message/rfc822\n\n"), 300_000),
    _whole(
        "messages and parts in turn",
        6,
        _nested(
            b"Content-Type: message/rfc822\n\nContent-Type: multipart/mixed; boundary=%06d\n\n--%06d\n"
        ),
    ),
    _whole(
        "digests in digests",
        6,
        _nested(b"Content-Type: multipart/digest; boundary=%06d\n\n--%06d\n"),
    ),
    _whole("a million parts", 6, repeat(b"--b\n\nx\n", _MIXED), 7_000_000),
    _whole("empty parts", 6, repeat(b"--b\n", _MIXED), 4_000_000),
    _whole("attachments", 6, repeat(b"--b\nContent-Type: x/y; name=n\n\nx\n", _MIXED), 4 * MIB),
    _whole("boundaries that begin alike", 6, _prefixes),
    _whole(
        "one boundary at every level",
        6,
        _nested(b"Content-Type: multipart/mixed; boundary=b\n\n--b\n"),
    ),
    _whole("lines like the boundary", 6, repeat(b"--bx\n", _MIXED), 4 * MIB),
    _whole("boundaries on one line", 6, repeat(b"--b", _MIXED)),
    _whole("blanks behind a boundary", 6, repeat(b"--b" + b" " * 100 + b"\n", _MIXED)),
    _whole(
        "a long boundary",
        6,
        lambda size: (
            b"Content-Type: multipart/mixed; boundary="
            + b"b" * 60_000
            + b"\n\n"
            + (b"--" + b"b" * 60_000 + b"\n\nx\n") * (size // 60_000)
        ),
    ),
    _whole(
        "a boundary of dashes",
        6,
        repeat(b"-", b"Content-Type: multipart/mixed; boundary=" + b"-" * 60 + b"\n\n"),
    ),
    _whole("messages in base64 in base64", 6, _base64_nest),
    _whole(
        "text under many levels",
        6,
        lambda size: (
            _nested(b"Content-Type: multipart/mixed; boundary=%06d\n\n--%06d\n")(5_000)
            + b"\n"
            + b"x" * size
        ),
        8 * MIB,
    ),
    _whole(
        "false boundaries under many levels",
        6,
        lambda size: (
            _nested(b"Content-Type: multipart/mixed; boundary=%06d\n\n--%06d\n")(5_000)
            + b"\n--00008" * (size // 8)
        ),
        4 * MIB,
    ),
    # 7: cut off (Cyrus #1256, Dovecot CVE-2020-7046)
    *(_whole(f"cut {name}", 7, _half(data), places=_TOP) for name, data in _CUTS),
    # 15: the store's own records
    _whole(
        "carries a record",
        15,
        _carrying(lambda: format_record(b"Subject: no\n\nx", blob_hash(b"Subject: no\n\nx"))),
    ),
    _whole("carries tombstones", 15, _carrying(_tombstones)),
    _whole("carries a footer", 15, _carrying(lambda: _record(4, bytes(64)))),
    _whole("carries a dictionary", 15, _carrying(lambda: _record(5, bytes(64)))),
    _whole(
        "carries the head of a pack", 15, _carrying(lambda: b"mailfs pack 1\n".ljust(16, b"\0"))
    ),
    # 16
    _whole(
        "carriage returns for line ends",
        16,
        repeat(b"X: y\r", b"Subject: x\r", b"\rbody"),
        places=(Place.TOP, Place.CUT),
    ),
    _whole("mixed line ends", 16, repeat(b"X: y\r\r\nX: z\n\r", b"Subject: x\n")),
    _whole("nul alone", 16, repeat(b"\0")),
    _whole("line ends alone", 16, repeat(b"\n")),
    _whole("carriage returns alone", 16, repeat(b"\r")),
    # 24
    _whole(
        "signed in signed",
        24,
        _nested(b"Content-Type: multipart/signed; micalg=x; protocol=y; boundary=%06d\n\n--%06d\n"),
    ),
    # 25
    *(_whole(name, 25, constant(data), places=(Place.TOP, Place.CRLF)) for name, data in _ODD),
    _whole("noise of 32 MiB", 25, _small_large, 32 * MIB, _TOP),
    _whole("zeros of 100 MB", 25, lambda size: b"Subject: x\n\n" + bytes(size), 100 * MIB, _TOP),
)
