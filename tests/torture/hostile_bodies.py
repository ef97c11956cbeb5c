"""Hostile text: bodies of one part."""

import base64
import gzip
import zlib
from collections.abc import Callable
from random import Random

import zstandard

from tests.torture.hostile_mail import MIB, Kind, Place, Shape, constant, numbered, repeat

_GIB = 1 << 30


def _body(
    name: str,
    number: int,
    build: Callable[[int], bytes],
    type_field: bytes = b"text/plain",
    size: int = MIB,
) -> Shape:
    return Shape(name, number, Kind.BODY, build, size, type_field)


def _html(name: str, build: Callable[[int], bytes], size: int = MIB) -> Shape:
    return _body(f"html: {name}", 13, build, b"text/html; charset=utf-8", size)


def _encoded(name: str, encoding: bytes, build: Callable[[int], bytes], size: int = MIB) -> Shape:
    """One that is transfer-encoded in its own way, and so has no place in base64."""
    head = b"text/plain\nContent-Transfer-Encoding: " + encoding
    return Shape(name, 22, Kind.BODY, build, size, head, (Place.TOP, Place.PART))


def _zstd_bomb(_: int) -> bytes:
    """A frame of a few kB that holds 256 MiB, and says so."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=256 * MIB)
    piece = bytes(MIB)
    return b"".join([*(compressor.compress(piece) for _ in range(256)), compressor.flush()])


def _gzip_bomb(_: int) -> bytes:
    """gzip in gzip: a few kB that hold hundreds of MB."""
    return gzip.compress(gzip.compress(bytes(64 * MIB), mtime=0) * 16, mtime=0)


def _xml_bomb(size: int) -> bytes:
    """Entities that stand for ten of the one before."""
    lines = [b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e0 "ha">']
    lines += [
        b'<!ENTITY e%d "%s">' % (level, b"&e%d;" % (level - 1) * 10) for level in range(1, 12)
    ]
    return b"\n".join(lines) + b"]>" + b"<x>&e11;</x>" * (size // 12)


def _distinct_words(size: int) -> bytes:
    return b" ".join(b"w%x" % number for number in range(size // 7))


def _noise(size: int) -> bytes:
    return Random(size).randbytes(size)


def _many_alphabets(size: int) -> bytes:
    """Letters of every block of Unicode, some of them four bytes long."""
    text = "".join(
        chr(code) + (" " if code % 7 == 0 else "")
        for code in range(0xA0, 0x1F000)
        if not 0xD800 <= code <= 0xDFFF
    ).encode()
    return (text * (size // len(text) + 1))[:size]


def _uuencoded(size: int) -> bytes:
    """Lines that say they are longer than they are (mutt CVE-2022-1328)."""
    return b"\nbegin 644 x\n" + b"\xffM\n" * (size // 3) + b"end\n"


def _protocol(text: bytes) -> Callable[[int], bytes]:
    return repeat(text, after=b"")


_DUMP = (
    b'{"mailfs-dump":1,"store":"abcdefgh","modseq":1}\n'
    b'{"search":"all","query":"tag:inbox","on_rm":"expunge"}\n'
    b'{"message":{"hash":"00","docid":1,"expunged":1}}\n'
)
_STATUS = (
    b"mailfs: 2026-01-01 00:00:00 ERROR mailfs.fuse: the store is damaged\n\x1b[31mred\x1b[0m\n"
)

SHAPES: tuple[Shape, ...] = (
    # 13: HTML (CPython CVE-2025-6069, Dovecot CVE-2020-7957)
    _html("brackets", repeat(b"<")),
    _html("open tags", repeat(b"<a"), 4 * MIB),
    _html("unclosed comments", repeat(b"<!--")),
    _html("comments", repeat(b"<!---->")),
    _html("comments in comments", repeat(b"<!--<!-- -- >")),
    _html("attributes", repeat(b"x=y ", b"<a "), 4 * MIB),
    _html("open quotes", repeat(b"<a b='")),
    _html("deep nesting", repeat(b"<div>"), 4 * MIB),
    _html("short texts", repeat(b">xy<"), 4 * MIB),
    _html("wide texts", repeat(">😀😀<".encode()), 4 * MIB),
    _html("one wide sign", repeat(b"<b>xy", "😀".encode()), 4 * MIB),
    _html("blanks between tags", repeat(b">" + b" " * 50)),
    _html("scripts", repeat(b"<script></script>")),
    _html("unclosed styles", repeat(b"<style>")),
    _html("conditional comments", repeat(b"<!--[if mso]><![endif]-->")),
    _html("entities", repeat(b"&CounterClockwiseContourIntegral;"), 4 * MIB),
    _html("no entities", repeat(b"&xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx")),
    _html("numbers", repeat(b"&#x10FFFF;&#55555;&#0;")),
    _html("one endless number", repeat(b"9", b"&#")),
    _html("cdata", repeat(b"<![CDATA[")),
    _body("xml: entities in entities", 13, _xml_bomb, b"text/xml"),
    _body("enriched", 13, repeat(b"<<bold>"), b"text/enriched"),
    # 14
    _body("uuencoded lines of false length", 14, _uuencoded),
    _body("unclosed uuencoded files", 14, repeat(b"\nbegin 644 x\nM")),
    # 15: a program's own words (Dovecot CVE-2026-33606)
    _body("lines of a dump", 15, _protocol(_DUMP)),
    _body("lines of a log", 15, _protocol(_STATUS)),
    _body("from lines", 15, _protocol(b"From ann@example.org Mon Jan  1 00:00:00 2001\n\n")),
    _body("quoted from lines", 15, _protocol(b">>>From x\n")),
    _body("query signs", 15, _protocol(b'" OR (* AND NEAR/5 {sender} : - ^ \n')),
    # 16
    _body("lone dots", 16, _protocol(b"\r.\r\n.\n.\r")),
    _body("carriage returns in text", 16, _protocol(b"words\r")),
    _body("nul", 16, _protocol(b"wo\0rd ")),
    # 22: much from little
    _body("zstd bomb", 22, _zstd_bomb, b"application/zstd; name=x.zst"),
    _body("zstd bomb that is called text", 22, _zstd_bomb),
    _body("gzip bomb", 22, _gzip_bomb, b"text/plain; charset=x-gzip"),
    _body("deflated", 22, lambda size: zlib.compress(bytes(64 * size)), b"text/plain; charset=zip"),
    _encoded("soft line breaks", b"quoted-printable", repeat(b"=\n")),
    _encoded("escapes", b"quoted-printable", repeat(b"=41=")),
    _encoded("escapes that are none", b"quoted-printable", repeat(b"=GZ")),
    _encoded("bad base64", b"base64", repeat(b"YWF\xff\n")),
    _encoded(
        "base64 in base64",
        b"base64",
        lambda size: base64.encodebytes(base64.encodebytes(_noise(size // 2))),
    ),
    _encoded("padding", b"base64", repeat(b"YQ==")),
    _encoded("gzip in base64", b"base64", lambda size: base64.encodebytes(_gzip_bomb(size))),
    _encoded("x-uuencode", b"x-uuencode", _uuencoded),
    _body("noise", 22, _noise, b"text/plain; charset=utf-8", 4 * MIB),
    _body("noise as utf-16", 22, _noise, b"text/plain; charset=utf-16", 4 * MIB),
    _body("noise as utf-32", 22, _noise, b"text/plain; charset=utf-32", 4 * MIB),
    _body("noise as utf-7", 22, _noise, b"text/plain; charset=utf-7"),
    _body("noise as gb18030", 22, _noise, b"text/plain; charset=gb2312", 4 * MIB),
    _body(
        "escapes of iso-2022-jp",
        22,
        repeat(b"\x1b$B\xff\x1b(B"),
        b"text/plain; charset=iso-2022-jp",
    ),
    _body("hz", 22, repeat(b"~{<:Ky~}~"), b"text/plain; charset=hz"),
    _body("punycode", 22, repeat(b"ab-"), b"text/plain; charset=punycode"),
    _body("unicode escapes", 22, repeat(b"\\N{SPACE}"), b"text/plain; charset=unicode_escape"),
    _body("charset of a path", 22, constant(b"words"), b"text/plain; charset=../../etc/passwd"),
    # words for the index
    _body("a million words", 22, _distinct_words, size=8 * MIB),
    _body("one word", 22, repeat(b"x"), size=4 * MIB),
    _body("letters alone", 22, repeat(b"a b c d e f g h "), size=4 * MIB),
    _body("every alphabet", 22, _many_alphabets, b"text/plain; charset=utf-8", 4 * MIB),
    _body("combining marks in text", 22, repeat(b"\xcc\x81\xcc\x96"), b"text/plain; charset=utf-8"),
    _body("right to left", 22, repeat("\u202e\u2066x ".encode()), b"text/plain; charset=utf-8"),
    _body("short lines", 22, repeat(b"x\n")),
    # 24: what others wrote in code (mu #1050, #1577)
    _body("open armour", 24, repeat(b"-----BEGIN PGP MESSAGE-----\n")),
    _body("armour", 24, repeat(b"-----BEGIN PGP SIGNATURE-----\nx\n-----END PGP \n")),
    _body(
        "pkcs7", 24, _noise, b"application/pkcs7-mime; smime-type=enveloped-data; name=smime.p7m"
    ),
    _body("broken signature", 24, _noise, b"application/pgp-signature; name=signature.asc"),
    _body("encrypted", 24, repeat(b"--b\n\nx\n"), b"multipart/encrypted; boundary=b"),
    # 18
    _body("numbered words of one length", 18, numbered(b"key%08d ", after=b"")),
)
