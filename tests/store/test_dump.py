"""Dumps: everything the packs do not tell, in lines anybody can read, and nothing else is taken for one."""

import gzip
import io
import json
import os
import stat
import threading
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailfs.errors import BadDump, StoreFull
from mailfs.ids import Docid, Keyword, Modseq, PackNumber, SearchId, ThreadId
from mailfs.message.keywords import DELETED_BY_ENTRY, SEEN
from mailfs.message.maildir import ChosenName, Form, split_name
from mailfs.store.packs import PackReader
from mailfs.store.store import Store
from mailfs.store.upkeep.dump import (
    MAX_LINE_BYTES,
    dump_lines,
    dump_path,
    opened_dump,
    save_dump,
    save_own_dump,
    why_unsound,
    write_dump,
)
from mailfs.store.upkeep.dump_lines import (
    ON_RM,
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
from tests.fakes import Deliver

HEADER = DumpHeader("abc", Modseq(1), Modseq(1), Modseq(0), Docid(1), SearchId(4), None)


def dump_of(store: Store) -> bytes:
    file = io.BytesIO()
    write_dump(dump_lines(store.layout), file)
    return file.getvalue()


def lines_of(file: BinaryIO, name: str = "a dump") -> list[Line]:
    with opened_dump(file, name) as lines:
        return [line for _, line in lines]


# --- lines

numbers = st.integers(0, 2**63 - 1)
texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=40)
bases = (
    st.binary(min_size=1, max_size=255)
    .filter(lambda base: not set(base) & {0, ord("/")} and base not in (b".", b".."))
    .filter(lambda base: split_name(base).letters is None)
)
letters = st.sets(st.sampled_from("abcxyzDT")).map(lambda each: "".join(sorted(each)).encode())
names = st.builds(ChosenName, bases, letters, st.sampled_from(Form), st.booleans())
own_keywords = st.sampled_from(["todo", "größe", "$label1", "lists/linux", "a'b", "日本"]).map(
    Keyword
)
blobs = st.builds(
    DumpedBlob,
    st.binary(min_size=16, max_size=16),
    numbers,
    numbers.map(PackNumber),
    numbers,
)
messages = st.builds(
    DumpedMessage,
    docid=numbers.map(Docid),
    flags=st.integers(0, 2 * DELETED_BY_ENTRY - 1),
    keywords=st.lists(own_keywords, unique=True, max_size=4).map(tuple),
    expunged=numbers,
    received_ns=numbers,
    modseq=numbers.map(Modseq),
    changed_ns=numbers,
    thread=numbers.map(ThreadId),
    size=numbers,
    blobs=st.lists(blobs, max_size=2).map(tuple),
    names=st.lists(st.tuples(numbers.map(SearchId), names), max_size=3).map(tuple),
)
searches = st.builds(
    DumpedSearch,
    numbers.map(SearchId),
    st.sampled_from(["inbox", "lists/linux-api", "from:ann is:unread", "日本", "\u202eabc"[1:]]),
    texts,
    st.sampled_from(ON_RM),
    numbers,
)
any_line = st.one_of(
    messages,
    searches,
    st.builds(DumpedKeyword, numbers, own_keywords),
    st.builds(DumpedDictionary, numbers, numbers, numbers),
    st.builds(DumpedThread, numbers.map(ThreadId), st.lists(texts, max_size=5).map(tuple)),
    st.builds(
        DumpHeader,
        st.just("abc"),
        numbers.map(Modseq),
        numbers.map(Modseq),
        numbers.map(Modseq),
        numbers.map(Docid),
        numbers.map(SearchId),
        st.none() | texts,
    ),
    st.just(DumpEnd()),
    st.just(DumpEnd("00ff")),
)


def read_or_none(raw: bytes) -> Line | None:
    """None for bytes that are refused as they should be; any other error is one of the reader."""
    try:
        return parse_line(raw)
    except BadDump:
        return None


@given(any_line)
def test_a_line_says_all_of_what_it_was_made_of(line: Line) -> None:
    written = format_line(line)
    assert written.isascii()
    assert written.count(b"\n") == 1
    assert parse_line(written) == line


@given(st.binary(max_size=200))
def test_any_bytes_are_a_line_or_say_why_not(raw: bytes) -> None:
    line = read_or_none(raw)
    assert line is None or parse_line(format_line(line)) == line


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(any_line, st.data())
def test_a_line_with_any_field_of_another_kind_is_read_or_refused(
    line: Line, data: st.DataObject
) -> None:
    fields = json.loads(format_line(line))
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(json_values)
    again = read_or_none(json.dumps(fields).encode())
    assert again is None or parse_line(format_line(again)) == again


def changed(line: Line, **fields: object) -> bytes:
    """The line with other fields; `_` in a name stands for `-`."""
    known = json.loads(format_line(line))
    return json.dumps(
        known | {name.replace("_", "-"): value for name, value in fields.items()}
    ).encode()


MESSAGE = DumpedMessage(
    Docid(7), SEEN, (Keyword("a"),), 0, 1, Modseq(1), 1, ThreadId(7), 5,
    (DumpedBlob(bytes(16), 5, PackNumber(1), 16),),
    ((SearchId(1), ChosenName(b"a")),),
)  # fmt: skip
SEARCH = DumpedSearch(SearchId(1), "inbox", "tag:inbox", "", 1)
NAME = {"search": 1, "base": "a", "extra": "", "form": 0, "copy": False}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"[]", "no JSON object"),
        (b"{", "no JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"x":1}', "of no kind"),
        (b'{"message":' + b"9" * 5000 + b"}", "no JSON"),
        (changed(MESSAGE, message=-1), "'message' is no number"),
        (changed(MESSAGE, message=2**63), "'message' is no number"),
        (changed(MESSAGE, message=True), "'message' is no number"),
        (changed(MESSAGE, message=1.0), "'message' is no number"),
        (changed(MESSAGE, size=float("nan")), "'size' is no number"),
        (changed(MESSAGE, keywords="a"), "'keywords' is no list"),
        (changed(MESSAGE, keywords=[1]), "'keywords' is no text"),
        (changed(MESSAGE, keywords=["Seen"]), r"write '\$seen'"),
        (changed(MESSAGE, keywords=["a b"]), "cannot contain ' '"),
        (changed(MESSAGE, keywords=["TODO"]), "write 'todo'"),
        (changed(MESSAGE, keywords=["\ud800"]), "surrogate"),
        (changed(MESSAGE, keywords=["a\0"]), "NUL"),
        (changed(MESSAGE, flags=["great"]), "flag that is none: 'great'"),
        (changed(MESSAGE, blobs=[{"hash": "12", "size": 1, "pack": 1, "offset": 1}]), "a hash"),
        (changed(MESSAGE, names=[NAME | {"base": "a/b"}]), "name that is none"),
        (changed(MESSAGE, names=[NAME | {"base": ".."}]), "name that is none"),
        (changed(MESSAGE, names=[NAME | {"base": ""}]), "name that is none"),
        (changed(MESSAGE, names=[NAME | {"base": "x" * 256}]), "name that is none"),
        (changed(MESSAGE, names=[NAME | {"base": "a:2,S"}]), "name that is none"),
        (changed(MESSAGE, names=[NAME | {"base": "\u0100"}]), "no bytes"),
        (changed(MESSAGE, names=[NAME | {"extra": "ba"}]), "letters that are none"),
        (changed(MESSAGE, names=[NAME | {"extra": "1"}]), "letters that are none"),
        (changed(MESSAGE, names=[NAME | {"form": 3}]), "form"),
        (changed(MESSAGE, names=[NAME | {"copy": 1}]), "neither true nor false"),
        (changed(SEARCH, search="../etc"), "relative path"),
        (changed(SEARCH, search="a/cur"), "'cur' cannot be part"),
        (changed(SEARCH, search="a\nb"), "control signs"),
        (changed(SEARCH, on_rm="burn"), "on-rm that is none"),
        (changed(HEADER, mailfs_dump=2), "version 2; this mailfs reads 1"),
        (changed(HEADER, store_id="../x"), "store-id"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_line_is_said(raw: bytes, reason: str) -> None:
    with pytest.raises(BadDump, match=reason):
        parse_line(raw)


# --- whole dumps


def test_the_line_that_is_wrong_is_named(store: Store, deliver: Deliver) -> None:
    deliver()
    lines = dump_of(store).splitlines(keepends=True)
    lines[3] = b'{"search":1}\n'
    with pytest.raises(BadDump, match="my dump: line 4 field 'search' is no text"):
        lines_of(io.BytesIO(b"".join(lines)), "my dump")


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (lambda raw: raw[:-2], "line 8 is cut off"),
        (lambda raw: raw[: raw.rindex(b'{"end"')], "is cut off: the last line"),
        (lambda raw: b"", "is cut off: the last line"),
        (lambda raw: raw.split(b"\n", 1)[1], "line 1 is not that of a mailfs dump"),
        (lambda raw: raw + b'{"end":true}\n', "line 9 comes behind the end"),
        (lambda raw: raw.split(b"\n", 1)[0] + b"\n" + raw, "line 2 is the first line"),
        (lambda raw: gzip.compress(raw)[:-30], "cannot be read behind line"),
        (lambda raw: gzip.compress(raw)[:30] + b"xxxxxxxx", "cannot be read behind line"),
        (lambda raw: b"From ann@example.org Tue Jan  2 03:04:05 2024\n", "line 1 is no JSON"),
        (lambda raw: b" " * (MAX_LINE_BYTES + 1), "line 1 is too long"),
    ],
)  # fmt: skip
def test_a_dump_that_is_not_whole_is_refused(
    store: Store, deliver: Deliver, cut: object, reason: str
) -> None:
    deliver()
    assert callable(cut)
    with pytest.raises(BadDump, match=reason):
        lines_of(io.BytesIO(cut(dump_of(store))))


def test_a_letter_that_was_changed_is_noticed_unless_the_checksum_is_taken_out(
    store: Store, deliver: Deliver, tmp_path: Path
) -> None:
    deliver(keywords=["todo"])
    raw = dump_of(store)
    changed = raw.replace(b'"todo"', b'"tod0"')
    with pytest.raises(BadDump, match="does not match the checksum"):
        lines_of(io.BytesIO(changed))
    without = changed[: changed.rindex(b',"check"')] + b"}\n"
    assert isinstance(lines_of(io.BytesIO(without))[-1], DumpEnd)
    for content, is_sound in ((raw, True), (changed, False), (without, True), (raw[:-1], False)):
        (tmp_path / "dump").write_bytes(content)
        assert (why_unsound(tmp_path / "dump") is None) == is_sound


def test_with_a_list_for_them_bad_lines_are_left_out(store: Store, deliver: Deliver) -> None:
    deliver()
    lines = dump_of(store).splitlines(keepends=True)
    bad: list[str] = []
    with opened_dump(io.BytesIO(b"".join([*lines[:3], b"{\n", *lines[3:-1]])), "x", bad) as read:
        found = [line for _, line in read]
    assert found == [parse_line(line) for line in lines[:-1]]
    assert len(bad) == 2
    assert "line 4 is no JSON" in bad[0]
    assert "is cut off" in bad[1]


def test_a_dump_tells_all_of_a_message(store: Store, deliver: Deliver) -> None:
    deliver(keywords=["todo", "a"])
    docid = deliver(flags=SEEN, new=True)
    inbox = store.index.search("inbox").search_id
    name = ChosenName(b"caf\xe9\n\"'\x01", b"ab", Form.BARE_IN_CUR, is_copy=True)
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.entries.put(inbox, docid, name)
        transaction.expunge(Docid(1))
    lines = lines_of(io.BytesIO(dump_of(store)))
    first, second = (line for line in lines if isinstance(line, DumpedMessage))
    assert (first.keywords, first.expunged > 0) == (("a", "todo"), True)
    assert (second.names, second.expunged) == (((inbox, name),), 0)
    assert second.modseq == store.index.state().modseq
    (blob,) = second.blobs
    where = store.index.location(docid)
    assert (blob.pack, blob.offset, blob.size) == (where.pack, where.offset, where.raw)
    assert blob.hash == PackReader(store.layout).header(where).hash
    assert [line.name for line in lines if isinstance(line, DumpedSearch)] == [
        "inbox", "unread", "flagged", "all",
    ]  # fmt: skip
    assert isinstance(lines[0], DumpHeader)
    assert lines[0].last_docid == 2


def test_two_dumps_of_the_same_store_are_the_same(
    store: Store, deliver: Deliver, tmp_path: Path
) -> None:
    deliver()
    assert dump_of(store) == dump_of(store)
    for name in ("one.gz", "two.gz"):
        save_dump(dump_lines(store.layout), tmp_path / name)
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()
    assert gzip.decompress((tmp_path / "one.gz").read_bytes()) == dump_of(store)


def test_a_dump_is_one_snapshot_and_keeps_nobody_from_writing(
    store: Store, deliver: Deliver
) -> None:
    deliver()
    lines = dump_lines(store.layout)
    header = next(lines)
    with (
        Store.open(store.layout.root) as other,
        other.writer.transaction("test", durable=True, deadline_s=0.5) as transaction,
    ):
        transaction.edit_keywords(Docid(1), add=[Keyword("new")])
    rest = list(lines)
    (message,) = (line for line in rest if isinstance(line, DumpedMessage))
    assert message.keywords == ()
    assert isinstance(header, DumpHeader)
    assert message.modseq <= header.modseq < store.index.state().modseq


def test_the_stores_own_dump_is_replaced_as_a_whole(
    store: Store, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver()
    assert save_own_dump(store.layout) == 1
    path = dump_path(store.layout)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    assert before == dump_of(store)
    deliver()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StoreFull, match=f"cannot write the dump {path}"):
            save_own_dump(store.layout)
    assert path.read_bytes() == before
    assert not list(store.layout.root.glob("dump.*"))
    assert save_own_dump(store.layout) == 2


def test_a_dump_goes_into_a_pipe_and_through_a_symbolic_link(
    store: Store, deliver: Deliver, tmp_path: Path
) -> None:
    deliver()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    save_dump(dump_lines(store.layout), pipe)
    reader.join(10)
    assert read == [dump_of(store)]
    (tmp_path / "link").symlink_to("target")
    save_dump(dump_lines(store.layout), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == dump_of(store)
