"""man/mailfs-store.5: another reader can be written from it, and it says what the code does."""

import random
import re
import struct
from functools import cache
from pathlib import Path

import pytest
import zstandard

from mailfs.message import keywords, maildir
from mailfs.store import journal, packs, records
from mailfs.store.database import OLDEST_SQLITE
from mailfs.store.layout import read_format as our_format
from mailfs.store.packfile import PACK_HEAD
from mailfs.store.records import Dictionary
from mailfs.store.schema import CHANGES, FORMAT_VERSION
from mailfs.store.store import Store
from mailfs.store.upkeep import dump_lines
from mailfs.store.upkeep.compact import compact
from mailfs.store.upkeep.seal import seal_full_packs
from mailfs.store.upkeep.training import introduce
from tests.fakes import PROJECT, make_dictionary, make_message
from tests.oracle import contents_of
from tests.store.other_reader import Damaged, read_format, read_packs
from tests.store.packed import add, codecs_of, messages, packs_of, reclaim

PAGE = PROJECT / "man" / "mailfs-store.5"
# Of SQLite itself and of FTS5.
_NOT_OURS = re.compile(r"sqlite_|message_text_")


@pytest.fixture
def used(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store that holds records of every kind."""
    monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", 12_000)
    noise = random.Random(1).randbytes(500)
    add(store, [*messages(30), noise, make_message(99, body=noise.hex() * 800)])
    introduce(store, Dictionary(make_dictionary(1)))
    docids = add(store, messages(60, first=100))
    reclaim(store, docids[:5])
    add(store, messages(60, first=200))
    seal_full_packs(store)
    codecs = {codec for number in packs_of(store) for codec in codecs_of(store, number)}
    assert codecs == {0, 1, 2, 3, 4, 5}
    return store


def test_another_reader_finds_every_message_in_the_packs_alone(used: Store) -> None:
    found = read_packs(used.layout.packs)
    assert found.messages == set(contents_of(used).values())
    assert found.sealed == {
        pack for (pack,) in used.index.rows("SELECT pack FROM pack WHERE sealed = 1")
    }
    assert found.sealed


def test_another_reader_finds_them_when_packs_have_been_rewritten(used: Store) -> None:
    docids = list(contents_of(used))
    reclaim(used, docids[::2])
    # As after a crash: moved, and the old packs not removed yet.
    steps = compact(used)
    for _ in range(3):
        next(steps)
    del steps
    assert read_packs(used.layout.packs).messages == set(contents_of(used).values())
    *_, done = compact(used)
    assert done.packs
    assert read_packs(used.layout.packs).messages == set(contents_of(used).values())


def test_another_reader_notices_damage(used: Store) -> None:
    path = sorted(used.layout.packs.iterdir())[0]
    sound = path.read_bytes()
    for position in range(0, len(sound), 997):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
        with pytest.raises((Damaged, struct.error, zstandard.ZstdError)):
            read_packs(used.layout.packs)
    path.write_bytes(sound)


def test_another_reader_reads_what_store_this_is(store: Store) -> None:
    fields = read_format(store.layout.root / "format")
    assert fields.keys() == {"version", "store-id", "check"}
    assert int(fields["version"]) == FORMAT_VERSION
    assert fields["store-id"].encode() == our_format(store.layout.root, "format").store_id
    assert read_format(store.layout.root / "format.bak") == fields


# --- the page against the code


@cache
def page() -> str:
    return PAGE.read_text("utf-8").replace("\\-", "-").replace("\\fP", "").replace("\\fR", "")


def section(title: str) -> str:
    found = re.search(rf"^\.S[HS] {re.escape(title)}\n(.*?)(?=^\.S[HS] |\Z)", page(), re.M | re.S)
    assert found is not None, title
    return found[1]


def tags(title: str) -> list[str]:
    """What is explained in a list of a section."""
    lines = re.findall(r"^\.T[PQ]\n\.[IB] (.*)$", section(title), re.M)
    return [name for line in lines for name in line.split(", ")]


def test_every_table_and_column_is_explained_and_none_is_made_up(store: Store) -> None:
    explained = {
        title: sorted(tags(f"Table {title}"))
        for title in re.findall(r"^\.SS Table (\w+)$", page(), re.M)
    }
    tables = store.index.rows("SELECT name FROM sqlite_schema WHERE type = 'table'")
    assert explained == {
        name: sorted(row[1] for row in store.index.rows(f"PRAGMA table_info({name})"))
        for (name,) in tables
        if not _NOT_OURS.match(name)
    }


def test_every_version_is_explained() -> None:
    assert tags("VERSIONS") == [str(number) for number in range(1, FORMAT_VERSION + 1)]
    assert sorted(CHANGES) == list(range(2, FORMAT_VERSION + 1))
    assert f"version {FORMAT_VERSION}\n" in section("The file format")


def test_every_codec_is_explained() -> None:
    codecs = [value for name, value in vars(records).items() if re.fullmatch(r"CODEC_\w+", name)]
    assert tags("Records") == [str(codec) for codec in sorted(codecs)]


def test_the_numbers_of_the_page_are_those_of_the_code() -> None:
    text = section("Records")
    assert "        48        the stored bytes" in text
    assert records.HEADER_BYTES == 48
    assert len(PACK_HEAD) == 16
    assert f"at most {records.FRAME_BYTES}." in text
    assert f"({4} bytes, {records.FRAME_BYTES} in what is written)" in text
    assert f'"{records.MAGIC.decode()}"' in text
    assert f'"{PACK_HEAD[:13].decode()}", a newline, two zeros' in section("PACKS")
    assert f"\n.B {packs.PACK_LIMIT_BYTES >> 20}\nMiB" in section("PACKS")
    assert f"SQLite {'.'.join(map(str, OLDEST_SQLITE))} or newer" in section("INDEX")
    assert (
        f"tombstones, {len(records.format_tombstones([])) - 20} bytes each".lower() in text.lower()
    )


def test_the_bits_of_flags_are_those_of_the_code() -> None:
    text = section("Table message")
    said = {name: int(bit) for bit, name in re.findall(r"^(\d+)\n\.BR (\$\w+) ,$", text, re.M)}
    assert said == {str(name): bit for name, bit in keywords.SYSTEM_KEYWORDS.items()}
    assert f"{keywords.RECENT} recent" in text
    assert f"{keywords.ATTACHMENT} it has an attachment" in text
    assert f"{keywords.DELETED_BY_ENTRY}\n.B $deleted\nwas set in some view" in text


def test_the_forms_of_names_and_kinds_of_events_are_all_there() -> None:
    assert [int(form) for form in maildir.Form] == [0, 1, 2]
    for what in (journal.SEARCH, journal.KEYWORD, journal.RECLAIMED, journal.REPAIRED):
        assert re.search(rf"^\.BR? {what}\b", section("Table journal_event"), re.M), what


def test_the_lines_of_a_dump_and_their_fields_are_all_there() -> None:
    text = section("DUMP")
    words = set(re.findall(r"[a-z][a-z-]*", text))
    assert len(tags("DUMP")) == len(dump_lines._FIELDS)
    for fields in (
        {"mailfs-dump", "store-id", "modseq", "searches-modseq", "reclaimed-modseq"},
        {"last-docid", "last-search-id", "query", "keyword", "id", "dictionary", "made-ns"},
        {"messages", "search", "on-rm", "changed-ns", "thread", "message-ids", "message", "size"},
        {"flags", "keywords", "expunged", "received-ns", "blobs", "hash", "pack", "offset"},
        {"names", "base", "extra", "form", "copy", "end"},
    ):
        assert fields <= words, fields - words
    assert set(dump_lines._FLAG_WORDS) <= words


def test_every_file_of_a_used_store_is_in_the_page(used: Store) -> None:
    known = {name.partition("/")[0] for name in tags("LAYOUT")} | {
        "index.sqlite3-wal",
        "index.sqlite3-shm",
    }
    assert {path.name for path in Path(used.layout.root).iterdir()} <= known
