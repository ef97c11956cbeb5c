"""Packs: what was acknowledged stays, a torn tail is cut at the last whole record, and all can be taken back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mailfs.errors import Corrupt, StoreError
from mailfs.ids import PackNumber
from mailfs.store import packs
from mailfs.store.layout import Layout, new_layout
from mailfs.store.packfile import PACK_HEAD
from mailfs.store.packs import Location, PackAppender, PackReader
from mailfs.store.records import FRAME_BYTES, HEADER_BYTES, blob_hash, format_record
from mailfs.store.unpacked import MemoryRecord

FIRST = PackNumber(1)
SECOND = PackNumber(2)


def record_of(raw: bytes) -> bytes:
    return format_record(raw, blob_hash(raw))


def new(raw: bytes) -> MemoryRecord:
    """What an appender takes."""
    return MemoryRecord(record_of(raw))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return new_layout(tmp_path / "store")


@pytest.fixture
def reader(layout: Layout) -> Iterator[PackReader]:
    made = PackReader(layout)
    yield made
    made.close()


@contextmanager
def appending(
    layout: Layout, reader: PackReader, pack: int = 0, size: int = 0
) -> Iterator[PackAppender]:
    appender = PackAppender(layout, reader)
    try:
        appender.open(PackNumber(pack), size)
        yield appender
    finally:
        appender.close()


def acknowledged(layout: Layout, reader: PackReader, *raws: bytes) -> list[Location]:
    """A first pack with these messages."""
    with appending(layout, reader) as appender:
        found = [appender.append(new(raw)) for raw in raws]
        appender.sync()
    return found


def size_of(layout: Layout, pack: PackNumber = FIRST) -> int:
    return layout.pack(pack).stat().st_size


def test_what_is_appended_is_read_back(layout: Layout, reader: PackReader) -> None:
    raws = [b"", b"one", b"two " * 1000, b"three " * 100_000]
    where = acknowledged(layout, reader, *raws)
    assert [reader.load(location) for location in where] == raws
    assert [location.raw for location in where] == [len(raw) for raw in raws]
    assert where[0].offset == len(PACK_HEAD)
    assert layout.pack(FIRST).read_bytes().startswith(PACK_HEAD)


def test_appending_goes_on_where_the_last_transaction_ended(
    layout: Layout, reader: PackReader
) -> None:
    (one,) = acknowledged(layout, reader, b"one")
    with appending(layout, reader, 1, size_of(layout)) as appender:
        two = appender.append(new(b"two"))
    assert two.pack == one.pack == FIRST
    assert two.offset == one.offset + one.stored
    assert (reader.load(one), reader.load(two)) == (b"one", b"two")


def test_rollback_leaves_the_pack_as_it_was(layout: Layout, reader: PackReader) -> None:
    acknowledged(layout, reader, b"one")
    before = layout.pack(FIRST).read_bytes()
    with appending(layout, reader, 1, len(before)) as appender:
        appender.append(new(b"two"))
        appender.append(new(b"three"))
        appender.rollback()
    assert layout.pack(FIRST).read_bytes() == before


def test_rollback_of_the_first_pack_removes_it(layout: Layout, reader: PackReader) -> None:
    with appending(layout, reader) as appender:
        appender.append(new(b"one"))
        appender.rollback()
    assert list(layout.packs.iterdir()) == []


def test_a_new_pack_is_begun_when_one_is_full(
    layout: Layout, reader: PackReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", 400)
    raws = [bytes([letter]) * 60 for letter in b"abcdefghij"]
    with appending(layout, reader) as appender:
        where = [appender.append(new(raw)) for raw in raws]
        appender.sync()
        finished = list(appender.finished)
    assert [reader.load(location) for location in where] == raws
    numbers = sorted({location.pack for location in where})
    assert len(numbers) > 1
    assert [pack for pack, _ in finished] == numbers[:-1]
    for pack, size in finished:
        assert size == size_of(layout, pack) <= 400


def test_a_record_larger_than_a_pack_gets_one_for_itself(
    layout: Layout, reader: PackReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", 100)
    where = acknowledged(layout, reader, bytes(range(200)), bytes(range(1, 201)))
    assert [location.pack for location in where] == [FIRST, SECOND]


def test_rollback_takes_back_packs_begun_meanwhile_too(
    layout: Layout, reader: PackReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    acknowledged(layout, reader, b"one")
    before = layout.pack(FIRST).read_bytes()
    monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", 200)
    with appending(layout, reader, 1, len(before)) as appender:
        for letter in b"abcdefghij":
            appender.append(new(bytes([letter]) * 60))
        assert appender.pack > SECOND
        appender.rollback()
    assert layout.pack(FIRST).read_bytes() == before
    assert list(layout.packs.iterdir()) == [layout.pack(FIRST)]


def test_rollback_never_touches_a_full_pack_that_nothing_was_appended_to(
    layout: Layout, reader: PackReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    acknowledged(layout, reader, b"one", b"two")
    before = layout.pack(FIRST).read_bytes()
    monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", len(before))
    with appending(layout, reader, 1, len(before)) as appender:
        assert appender.append(new(b"three")).pack == SECOND
        appender.rollback()
    assert layout.pack(FIRST).read_bytes() == before
    assert list(layout.packs.iterdir()) == [layout.pack(FIRST)]


class BrokenRecord(MemoryRecord):
    """A record that cannot be read to its end."""

    def chunks(self) -> Iterator[bytes]:
        yield self.record[:-10]
        raise StoreError("no more")


def test_half_a_record_is_written_over_by_the_next(layout: Layout, reader: PackReader) -> None:
    (one,) = acknowledged(layout, reader, b"one")
    with appending(layout, reader, 1, size_of(layout)) as appender:
        with pytest.raises(StoreError, match="no more"):
            appender.append(BrokenRecord(record_of(bytes(range(256)))))
        two = appender.append(new(b"two"))
        appender.sync()
        assert appender.size == two.offset + two.stored
    assert two.offset == one.offset + one.stored
    assert reader.load(two) == b"two"


def test_a_pack_nobody_knows_is_never_written_over(layout: Layout, reader: PackReader) -> None:
    layout.pack(FIRST).write_bytes(b"somebody's")
    (where,) = acknowledged(layout, reader, b"one")
    assert where.pack == SECOND
    assert layout.pack(FIRST).read_bytes() == b"somebody's"


def test_a_torn_tail_is_cut_at_the_acknowledged_end(layout: Layout, reader: PackReader) -> None:
    acknowledged(layout, reader, b"one")
    whole = layout.pack(FIRST).read_bytes()
    for cut in (1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 2):
        layout.pack(FIRST).write_bytes(whole + record_of(b"torn")[:cut])
        with appending(layout, reader, 1, len(whole)) as appender:
            assert appender.size == len(whole)
        assert layout.pack(FIRST).read_bytes() == whole


def test_a_record_of_which_a_power_cut_left_the_header_only_is_cut(
    layout: Layout, reader: PackReader
) -> None:
    acknowledged(layout, reader, b"one")
    whole = layout.pack(FIRST).read_bytes()
    lost = record_of(b"lost")
    zeros = lost[:HEADER_BYTES] + bytes(len(lost) - HEADER_BYTES)
    layout.pack(FIRST).write_bytes(whole + zeros)
    assert reader.promised_end(reader.file(FIRST), len(whole)) == len(whole)
    # Where a message follows, the index is older than the pack.
    layout.pack(FIRST).write_bytes(whole + zeros + lost)
    end = len(whole) + 2 * len(lost)
    assert reader.promised_end(reader.file(FIRST), len(whole)) == end


def test_whole_records_behind_the_end_are_kept_and_what_is_torn_behind_them_is_cut(
    layout: Layout, reader: PackReader
) -> None:
    acknowledged(layout, reader, b"one")
    known = size_of(layout)
    orphans = layout.pack(FIRST).read_bytes() + record_of(b"two") + record_of(b"three")
    layout.pack(FIRST).write_bytes(orphans + record_of(b"torn")[:-1])
    with appending(layout, reader, 1, known) as appender:
        four = appender.append(new(b"four"))
    assert four.offset == len(orphans)
    assert layout.pack(FIRST).read_bytes() == orphans + record_of(b"four")


def test_rollback_keeps_whole_records_found_behind_the_end(
    layout: Layout, reader: PackReader
) -> None:
    acknowledged(layout, reader, b"one")
    known = size_of(layout)
    with layout.pack(FIRST).open("ab") as file:
        file.write(record_of(b"orphan"))
    before = layout.pack(FIRST).read_bytes()
    with appending(layout, reader, 1, known) as appender:
        appender.append(new(b"two"))
        appender.rollback()
    assert layout.pack(FIRST).read_bytes() == before


def test_a_pack_shorter_than_the_index_says_is_refused(layout: Layout, reader: PackReader) -> None:
    acknowledged(layout, reader, b"one")
    with (
        pytest.raises(Corrupt, match="the index knows"),
        appending(layout, reader, 1, size_of(layout) + 1),
    ):
        pass


def test_nothing_is_appended_when_the_newest_pack_is_missing(
    layout: Layout, reader: PackReader
) -> None:
    with pytest.raises(StoreError, match="pack 1"), appending(layout, reader, 1, 100):
        pass
    assert list(layout.packs.iterdir()) == []


def test_a_missing_pack_is_corrupt(reader: PackReader) -> None:
    with pytest.raises(Corrupt, match="pack 1 is missing"):
        reader.load(Location(FIRST, 16, 50, 2))


def test_damage_names_the_pack_and_the_place(layout: Layout, reader: PackReader) -> None:
    (where,) = acknowledged(layout, reader, b"one")
    damaged = bytearray(layout.pack(FIRST).read_bytes())
    damaged[-1] ^= 1
    layout.pack(FIRST).write_bytes(damaged)
    with pytest.raises(Corrupt, match=f"pack 1 at {where.offset}: "):
        reader.load(where)


def test_only_a_large_message_is_read_in_pieces(layout: Layout, reader: PackReader) -> None:
    large_raw = bytes(range(256)) * 3000
    small, large = acknowledged(layout, reader, b"small", large_raw)
    assert reader.chain_or_none(small) is None
    chain = reader.chain_or_none(large)
    assert chain is not None
    assert chain.frame(1) == large_raw[FRAME_BYTES : 2 * FRAME_BYTES]
    assert list(reader.raw_pieces(small)) == [b"small"]
    assert list(reader.raw_pieces(large)) == [
        large_raw[start : start + FRAME_BYTES] for start in range(0, len(large_raw), FRAME_BYTES)
    ]


def test_damage_in_a_large_message_names_the_place_too(layout: Layout, reader: PackReader) -> None:
    (where,) = acknowledged(layout, reader, bytes(range(256)) * 3000)
    damaged = bytearray(layout.pack(FIRST).read_bytes())
    damaged[-10] ^= 1
    layout.pack(FIRST).write_bytes(damaged)
    pieces = reader.raw_pieces(where)
    assert next(pieces) == bytes(range(256)) * (FRAME_BYTES // 256)
    with pytest.raises(Corrupt, match=f"pack 1 at {where.offset}: "):
        list(pieces)


def test_records_are_found_by_walking_the_pack(layout: Layout, reader: PackReader) -> None:
    where = acknowledged(layout, reader, b"one", b"two", b"three")
    walked = [(offset, header.raw) for offset, header in reader.iter_records(FIRST)]
    assert walked == [(location.offset, location.raw) for location in where]
