"""Mail made to cost time: an input eight times as long may take a few times eight, never sixty-four.

Each shape stopped some mail program once. Processor time, the least of several runs, so that other load on
the machine does not matter.
"""

import time
from collections.abc import Callable

import pytest

from mailfs.message.parse import parse_message

_SMALL = 50_000
_FACTOR = 8
# Quadratic is _FACTOR * _FACTOR; caches and the collector make linear look like twice _FACTOR at worst.
_ALLOWED = 3 * _FACTOR
# Below this the clock and the fixed costs are all one sees.
_NOISE_S = 0.005

_MIXED = b"Content-Type: multipart/mixed; boundary=b\n\n"


def _repeat(unit: bytes, before: bytes = b"", after: bytes = b"\n\nbody") -> Callable[[int], bytes]:
    return lambda size: before + unit * (size // len(unit)) + after


def _text(unit: bytes, header: bytes = b"text/plain") -> Callable[[int], bytes]:
    return _repeat(unit, b"Content-Type: " + header + b"\n\n", b"")


def _nested(size: int) -> bytes:
    return b"".join(
        b"Content-Type: multipart/mixed; boundary=%06d\n\n--%06d\n" % (level, level)
        for level in range(size // 60)
    )


def _fat_nest(unit: bytes) -> Callable[[int], bytes]:
    return lambda size: _nested(90 * 60) + unit * (size // len(unit))


def _pieces(size: int) -> bytes:
    pieces = b"".join(b";\n name*%d*=abc" % number for number in range(size // 16))
    return b"Content-Type: application/x" + pieces + b"\n\nbody"


_SHAPES: dict[str, Callable[[int], bytes]] = {
    "To lines": _repeat(b"To: a@example.org\n"),
    "empty To lines": _repeat(b"To:\n"),
    "Received lines": _repeat(b"Received: x; no date\n"),
    "mbox lines": _repeat(b"From x\n"),
    "one long field": _repeat(b"x", b"Subject: "),
    "folds": _repeat(b"\n x", b"Subject: "),
    "folds without an end": _repeat(b"\n x", b"Subject: ", b""),
    "blanks before a colon": _repeat(b" ", b"Subject"),
    "addresses": _repeat(b"a@example.org, ", b"To: "),
    "empty groups": _repeat(b";", b"From: "),
    "comments": _repeat(b"(", b"From: "),
    "encoded words": _repeat(b"=?utf-8?q?a?= ", b"To: "),
    "encoded words in many fields": _repeat(b"To: =?utf-8?q?a?=\n"),
    "unfinished encoded words": _repeat(b"=?a?q?x", b"To: "),
    "encoded words that begin and never end": _repeat(b"=?a?q?", b"To: "),
    "references": _repeat(b"<a@b> ", b"References: "),
    "unclosed references": _repeat(b"<", b"References: "),
    "replies": _repeat(b"<a>", b"In-Reply-To: ", b"<\n\n"),
    "Message-ID of blanks": _repeat(b"a ", b"Message-ID: <"),
    "Date of digits": _repeat(b"1", b"Date: "),
    "Date of blanks": _repeat(b" ", b"Date: "),
    "RFC 2231 pieces": _pieces,
    "quotes in parameters": _repeat(b';a="\\', b"Content-Type: application/x"),
    "nested multiparts": _nested,
    "much text nested deep": _fat_nest(b"x"),
    "false delimiters nested deep": _fat_nest(b"\n--00008"),
    "nested messages": _repeat(b"Content-Type: message/rfc822\n\n"),
    "flat parts": _repeat(b"--b\n\nx\n", _MIXED),
    "lines like the delimiter": _repeat(b"--bx\n", _MIXED),
    "delimiters on one line": _repeat(b"--b", _MIXED),
    "carriage returns": _repeat(b"\r", b"a\r\r\n", b"x"),
    "NULs": _repeat(b"\0"),
    "line ends": _repeat(b"\n"),
    "bad base64": _text(b"YWF\xff\n", b"text/plain\nContent-Transfer-Encoding: base64"),
    "soft line breaks": _text(b"=\n", b"text/plain\nContent-Transfer-Encoding: quoted-printable"),
    "undefined bytes": _text(b"\x81", b"text/plain; charset=windows-1252"),
    "bad UTF-7": _text(b"+\xff-", b"text/plain; charset=utf-7"),
    "bad ISO-2022-JP": _text(b"\x1b$B\xff", b"text/plain; charset=iso-2022-jp"),
    "punycode": _text(b"ab-", b"text/plain; charset=punycode"),
    "unclosed PGP blocks": _text(b"-----BEGIN PGP SIGNATURE-----\n"),
    "unclosed uuencoded files": _text(b"\nbegin 644 x\nM"),
    "HTML: <": _text(b"<", b"text/html"),
    "HTML: < and a letter": _text(b"<a", b"text/html"),
    "HTML: > and blanks": _text(b">  ", b"text/html"),
    "HTML: unclosed comments": _text(b"<!--", b"text/html"),
    "HTML: comments": _text(b"<!---->", b"text/html"),
    "HTML: unclosed scripts": _text(b"<script>", b"text/html"),
    "HTML: style sheets": _text(b"<style></style>", b"text/html"),
    "HTML: attributes": _text(b"x=y ", b"text/html\n\n<a "),
    "HTML: entities": _text(b"&abcdefghijklmnopqrstuvwxyz", b"text/html"),
    "HTML: endless number": _text(b"1", b"text/html\n\n&#"),
}


def _least_seconds(raw: bytes, runs: int) -> float:
    least = float("inf")
    for _ in range(runs):
        start = time.process_time()
        parse_message(raw)
        least = min(least, time.process_time() - start)
    return least


@pytest.mark.parametrize("shape", list(_SHAPES))
def test_time_grows_no_faster_than_the_message(shape: str) -> None:
    build = _SHAPES[shape]
    small = _least_seconds(build(_SMALL), 3)
    large = _least_seconds(build(_SMALL * _FACTOR), 2)
    assert large <= _ALLOWED * max(small, _NOISE_S / _FACTOR)


@pytest.mark.parametrize("shape", list(_SHAPES))
def test_hostile_mail_gives_text_that_can_be_stored(shape: str) -> None:
    message = parse_message(_SHAPES[shape](5_000))
    for text in (message.subject, message.sender, message.recipient, message.cc, message.body):
        assert "\0" not in text
        text.encode()
