"""What is fuzzed: functions of bytes that do something with any bytes at all, and raise AssertionError where a promise is broken.

Any other exception is a fault too: each says which errors of its own it allows.
"""

import io
import os
import zlib
from collections.abc import Callable
from contextlib import closing
from functools import cache
from random import Random
from typing import NamedTuple

import apsw
import zstandard

from mailfs.errors import BadDump, BadKeyword, Corrupt, EditRefused, QuerySyntaxError
from mailfs.ids import Docid, Keyword, Modseq, PackNumber, SearchId, ThreadId
from mailfs.ingest import folders, mbox
from mailfs.ingest.importer import search_name_for_folder
from mailfs.message.keywords import keyword_for_folder, parse_keyword
from mailfs.message.maildir import (
    Base,
    ChosenName,
    format_base,
    format_name,
    parse_base_or_none,
    split_name,
)
from mailfs.message.parse import parse_message
from mailfs.message.text import decode_charset, html_to_text, without_armour
from mailfs.search.names import check_search_name
from mailfs.search.plan import plan
from mailfs.search.query import MAX_QUERY_CHARS, format_query, parse_query
from mailfs.store import records
from mailfs.store.schema import TABLES
from mailfs.store.upkeep.dump import opened_dump
from mailfs.store.upkeep.dump_lines import (
    DumpedBlob,
    DumpedDictionary,
    DumpedKeyword,
    DumpedMessage,
    DumpedSearch,
    DumpedThread,
    DumpEnd,
    DumpHeader,
    Line,
    format_line,
    parse_line,
)
from tests.fakes import make_message


class Target(NamedTuple):
    """One thing to fuzz. `words` are pieces that input is made of beside noise; `seeds` is where it begins."""

    name: str
    run: Callable[[bytes], None]
    words: tuple[bytes, ...]
    seeds: tuple[bytes, ...]


def fuzz_message(data: bytes) -> None:
    message = parse_message(data)
    for text in (
        *(message.message_id, message.subject, message.sender, message.recipient, message.cc),
        *(message.list_id, message.body, message.attachment, *message.references),
    ):
        _check_text(text)
    for text in (message.subject, message.sender, message.message_id):
        assert "\n" not in text
        assert "\r" not in text
    assert message == parse_message(data)


def _check_text(text: str) -> None:
    assert "\0" not in text
    text.encode()


def fuzz_charset(data: bytes) -> None:
    """The first line names the charset."""
    name, _, rest = data.partition(b"\n")
    decode_charset(rest, name.decode("latin-1")).encode()


def fuzz_html(data: bytes) -> None:
    text = data.decode(errors="replace")
    html_to_text(text).encode()
    without_armour(text).encode()
    assert "<b>" not in html_to_text(f"{text[:0]}<b>{'x' * (len(text) % 7)}")


def fuzz_record(data: bytes) -> None:
    """As it is, and with a header whose check is right, so that what is behind it is read."""
    checked = bytearray(data.ljust(records.HEADER_BYTES, b"\0"))
    checked[:4] = records.MAGIC
    checked[4] %= 7
    checked[44:48] = zlib.crc32(bytes(checked[:44])).to_bytes(4, "little")
    for record in (data, bytes(checked)):
        for read in (records.parse_record, records.unpack_record, records.parse_tombstones,
                     records.parse_dictionary, records.parse_footer):  # fmt: skip
            try:
                read(record)
            except Corrupt:
                continue
    raw = data[:1000] * (1 + len(data) % 300)
    assert records.parse_record(records.format_record(raw, records.blob_hash(raw))) == raw


@cache
def _index() -> apsw.Connection:
    connection = apsw.Connection(":memory:")
    for statements in TABLES:
        connection.execute(statements)
    return connection


def fuzz_query(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    try:
        query = parse_query(text)
    except QuerySyntaxError as error:
        if not 0 <= error.position <= len(text):
            raise AssertionError(f"an error at {error.position} of {len(text)}") from error
        return
    written = format_query(query)
    if len(written) <= MAX_QUERY_CHARS:
        assert parse_query(written) == query, written
    where, parameters = plan(query, 1_700_000_000.0)
    _index().execute(
        f"SELECT count(*) FROM message WHERE expunged = 0 AND ({where})", parameters
    ).fetchall()


def fuzz_dump(data: bytes) -> None:
    """The whole is read to the first wrong line, or told of; a line that is right is written as it was read."""
    for bad_lines in (None, list[str]()):
        try:
            with opened_dump(io.BytesIO(data), "fuzz", bad_lines) as lines:
                for _ in lines:
                    pass
        except BadDump as error:
            if bad_lines is not None:
                raise AssertionError("an error that was to be told") from error
    for line in data.splitlines(keepends=True):
        try:
            found = parse_line(line)
        except BadDump:
            continue
        assert parse_line(format_line(found)) == found


def fuzz_name(data: bytes) -> None:
    """Names of entries in views."""
    name = data[:255]
    base, letters = split_name(name)
    assert name == (base if letters is None else base + b":2," + letters)
    parsed = parse_base_or_none(base)
    assert parsed is None or format_base(parsed) == base
    if parsed is not None and letters is not None:
        assert format_name(format_base(Base(*parsed)), letters, in_new=False) == name


def fuzz_folder(data: bytes) -> None:
    """Names of folders, and the keywords and searches they become."""
    folder = folders.folder_name(data.replace(b"\0", b"")[:255])
    for path in (folder, data.decode(errors="replace")[:5000]):
        keyword = keyword_for_folder(path)
        assert parse_keyword(keyword) == keyword, (path, keyword)
        parse_query(f"tag:{keyword}")
        name = search_name_for_folder(path)
        assert check_search_name(name) == name
    try:
        found: Keyword = parse_keyword(data.decode(errors="replace"))
    except BadKeyword:
        return
    assert parse_keyword(found) == found
    folders.parse_dovecot_keywords(data)
    folders.parse_mh_sequences(data)


def fuzz_search_name(data: bytes) -> None:
    """A name is refused or leads nowhere else."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        check_search_name(text)
    except EditRefused:
        return
    assert not text.startswith("/")
    assert ".." not in text.split("/")
    assert text.isprintable()


def fuzz_mbox(data: bytes) -> None:
    """Messages lie behind each other, and each is read as it was found."""
    fd = os.memfd_create("fuzz")
    with closing(os.fdopen(fd, "wb", closefd=True)) as file:
        file.write(data)
        file.flush()
        for dialect in (mbox.ANY, mbox.MBOXO, mbox.MBOXCL2):
            end = 0
            for found in mbox.iter_ranges(fd, dialect):
                if isinstance(found, mbox.Junk):
                    continue
                assert end <= found.start < found.end <= len(data)
                end = found.end
                mbox.read_range(fd, found)


_FIELD_WORDS = (
    *(b"Subject: ", b"From: ", b"To: ", b"Date: ", b"Message-ID: <", b"References: ", b"\n", b"\r\n", b"\n\n", b"\n "),
    *(b"Content-Type: ", b"multipart/mixed; boundary=b", b"\n--b\n", b"\n--b--\n", b"message/rfc822", b"text/html"),
    *(b"Content-Transfer-Encoding: base64", b"quoted-printable", b"=?utf-8?q?", b"?=", b"=?x?b?", b"; name*0*=", b'"', b"\\"),
    *(b"charset=utf-7", b"charset=utf-16", b"\x1b$B", b"\xff", b"<!--", b"-->", b"<a ", b"&#x", b"begin 644 x\nM", b"From x"),
    *(b"Mon, 1 Jan 2024 00:00:00 +0000", b"9999", b"=3D", b"=\n", b";", b"(", b")", b"<", b">", b"@", b",", b"\0", b"digest"),
)  # fmt: skip
_QUERY_WORDS = (
    *(b" or ", b" and ", b"not ", b"-", b"(", b")", b'"', b"*", b":", b"from:", b"tag:", b"is:unread", b"is:", b"id:", b"date:"),
    *(b"received:", b"size:", b"thread:{", b"}", b"thread:1", b"has:attachment", b"..", b"2015", b"3d", b"1M", b"monday", b"a"),
    *(b"subject:(", "\u0301".encode(), "é".encode(), "\u3000".encode(), b"\0", b"\xff", b"NEAR(", b"{sender}", b"^", b"@99999999999"),
)  # fmt: skip
_DUMP_WORDS = (
    *(b"{", b"}", b"[", b"]", b":", b",", b"\n", b'"', b"1", b"-1", b"1e999", b"9223372036854775808", b"null", b"true", b"NaN"),
    *(b'"docid"', b'"search"', b'"query"', b'"keywords"', b'"flags"', b'"hash"', b'"mailfs-dump"', b"\\ud800", b"\\u0000", b"[" * 2000),
)  # fmt: skip
_NAME_WORDS = (
    *(b":2,", b":2,FS", b".M1.", b",S=", b"1700000000", b".", b"/", b"..", b",C=1", b",U=", b"&", b"-", b"&AC8-", b"\0", b"\n"),
    *("\u0130".encode(), "ẞ".encode(), "\u212a".encode(), "ﬁ".encode(), b"$seen", b"unread", b"$", b"+", b" ", "\u202e".encode()),
)  # fmt: skip
_MBOX_WORDS = (
    *(b"From ann@example.org Mon Jan  1 00:00:00 2001\n", b"From ", b">From ", b"\n\n", b"\n", b"\r\n", b"Content-Length: ", b"10\n"),
    *(b"Status: RO\n", b"X-Keywords: a b\n", b"Subject: x\n", b"remote from x", b"MET DST", b"+0100", b" ", b"99"),
)  # fmt: skip


def _record_seeds() -> tuple[bytes, ...]:
    raws = (b"", b"x", b"Subject: x\n\n" + b"text " * 200, bytes(700_000), Random(1).randbytes(300))
    made = [records.format_record(raw, records.blob_hash(raw)) for raw in raws]
    mail: list[bytes | bytearray | memoryview] = [
        make_message(number, body=f"text {number * 7919} " * 9) for number in range(300)
    ]
    trained = zstandard.train_dictionary(4096, mail).as_bytes()
    made.append(records.format_dictionary(records.Dictionary(trained)))
    made.append(records.format_footer(16, [records.parse_header(record) for record in made[:3]]))
    made.append(records.format_tombstones([records.Tombstone(PackNumber(1), 16, bytes(16))]))
    return tuple(made)


def _message_seeds() -> tuple[bytes, ...]:
    from tests.torture.hostile_mail import all_files

    return tuple(file.build(0.001)[:5000] for file in all_files(1))


def _dump_seeds() -> tuple[bytes, ...]:
    """A line of each kind, and all of them."""
    blob = DumpedBlob(bytes(16), 10, PackNumber(1), 16)
    name = (SearchId(1), ChosenName(b"a\xff", b"ab"))
    message = DumpedMessage(
        docid=Docid(1), flags=3, keywords=(Keyword("work"),), expunged=0, received_ns=1, modseq=Modseq(2),
        changed_ns=3, thread=ThreadId(1), size=10, blobs=(blob,), names=(name,),
    )  # fmt: skip
    lines: tuple[Line, ...] = (
        DumpHeader("abcdefgh", Modseq(2), Modseq(1), Modseq(0), Docid(1), SearchId(4), None),
        DumpedKeyword(1, Keyword("work")),
        DumpedDictionary(7, 1, 1000),
        DumpedSearch(SearchId(1), "work", "tag:work", "", 1),
        DumpedThread(ThreadId(1), ("a@b", "c@d")),
        message,
        DumpEnd(),
    )
    written = tuple(map(format_line, lines))
    return (*written, b"".join(written))


@cache
def targets() -> tuple[Target, ...]:
    """All of them, the named eight and what else is read from strangers."""
    from tests.torture.hostile_queries import QUERIES

    queries = tuple(shape.build(60).encode("utf-8", "surrogatepass") for shape in QUERIES)
    messages = _message_seeds()
    return (
        Target("message", fuzz_message, _FIELD_WORDS, messages),
        Target("charset", fuzz_charset, _FIELD_WORDS, (b"utf-7\n+2AA-", b"iso-2022-jp\n\x1b$B", b"gb18030\n\xff")),
        Target("html", fuzz_html, _FIELD_WORDS, (b"<p>a<b>b</b>&amp;</p>", b"<!-- x --><style>y</style>z")),
        Target("record", fuzz_record, _FIELD_WORDS[-9:], _record_seeds()),
        Target("query", fuzz_query, _QUERY_WORDS, queries),
        Target("dump", fuzz_dump, _DUMP_WORDS, _dump_seeds()),
        Target("entry name", fuzz_name, _NAME_WORDS, (b"1700000000.M1.abcdefgh,S=10:2,FS", b"a:2,", b"x")),
        Target("folder", fuzz_folder, _NAME_WORDS, (b"Entw&APw-rfe", b"R&D", "İx".encode(), b"A/B.C")),
        Target("search name", fuzz_search_name, _NAME_WORDS, (b"lists/linux", b"../x", b"a//b")),
        Target("mbox", fuzz_mbox, _MBOX_WORDS, (_MBOX_WORDS[0] + b"Subject: x\n\nbody\n\n" + _MBOX_WORDS[0],)),
    )  # fmt: skip
