"""Sealing: a footer tells what is in a pack that gets nothing more, and nothing is ever behind it."""

import random

import pytest

from mailfs.errors import Corrupt
from mailfs.ids import PackNumber
from mailfs.store import packs
from mailfs.store.packfile import PACK_HEAD, PackFile
from mailfs.store.records import (
    CODEC_FOOTER,
    FOOTER_END_BYTES,
    HEADER_BYTES,
    Dictionary,
    RecordHeader,
    blob_hash,
    format_footer,
)
from mailfs.store.store import Store
from mailfs.store.upkeep.compact import compact
from mailfs.store.upkeep.disk_use import disk_use
from mailfs.store.upkeep.seal import seal_full_packs
from mailfs.store.upkeep.training import introduce
from tests.fakes import make_dictionary, make_message
from tests.oracle import contents_of, problems_of
from tests.store.packed import add, codecs_of, messages, packs_of, reclaim, records_of

FIRST = PackNumber(1)


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", 4000)


def rows_of(store: Store) -> list[tuple[int, int, int]]:
    return [(a, b, c) for a, b, c in store.index.rows("SELECT pack, size, sealed FROM pack")]


def size_of(store: Store, pack: int) -> int:
    return store.layout.pack(PackNumber(pack)).stat().st_size


def test_every_pack_but_the_newest_is_sealed_once(store: Store) -> None:
    docids = add(store, messages(60))
    numbers = packs_of(store)
    assert len(numbers) > 2
    assert seal_full_packs(store) == numbers[:-1]
    assert seal_full_packs(store) == []
    assert [(pack, sealed) for pack, _, sealed in rows_of(store)] == [
        *((number, 1) for number in numbers[:-1]),
        (numbers[-1], 0),
    ]
    assert all(size == size_of(store, pack) for pack, size, _ in rows_of(store))
    assert [store.load(docid) for docid in docids] == messages(60)


def test_the_footer_is_the_last_record_and_names_all_before_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", 20_000)
    introduce(store, Dictionary(make_dictionary(1)))
    docids = add(store, messages(10))
    reclaim(store, docids[:2])
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.begin_pack()
    assert seal_full_packs(store) == [1]
    assert codecs_of(store, 1) == [5, *[1] * 10, 3, CODEC_FOOTER]
    assert store.packs.file(FIRST).footer_or_none() == list(records_of(store, 1))[:-1]


def test_nothing_is_appended_to_a_sealed_pack(store: Store) -> None:
    add(store, messages(40))
    seal_full_packs(store)
    before = {number: size_of(store, number) for number in packs_of(store)[:-1]}
    add(store, messages(40, first=100))
    assert {number: size_of(store, number) for number in before} == before


def test_the_newest_pack_is_not_appended_to_when_it_is_sealed(store: Store) -> None:
    """As when the index of a backup is older than its packs were."""
    add(store, messages(40))
    seal_full_packs(store)
    newest = packs_of(store)[-1]
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.write("DELETE FROM pack WHERE pack = ?", (newest,))
        transaction.write("DELETE FROM blob WHERE pack = ?", (newest,))
        lost = [
            row[0]
            for row in transaction.rows(
                "SELECT docid FROM message_blob WHERE blob_id NOT IN (SELECT blob_id FROM blob)"
            )
        ]
        for table in ("message_blob", "message", "envelope"):
            transaction.write(f"DELETE FROM {table} WHERE docid IN ({','.join(map(str, lost))})")
        transaction.write(f"DELETE FROM message_text WHERE rowid IN ({','.join(map(str, lost))})")
    store.layout.pack(PackNumber(newest)).unlink()
    before = size_of(store, newest - 1)
    (docid,) = add(store, [make_message(999)])
    assert store.index.location(docid).pack == newest
    assert size_of(store, newest - 1) == before


@pytest.mark.parametrize("tail", [b"torn", random.Random(1).randbytes(5000)], ids=["short", "long"])
def test_what_an_earlier_try_left_behind_the_end_is_written_over(store: Store, tail: bytes) -> None:
    add(store, messages(40))
    with store.layout.pack(FIRST).open("ab") as file:
        file.write(tail)
    assert 1 in seal_full_packs(store)
    assert store.packs.file(FIRST).footer_or_none() is not None
    assert problems_of(store) == []


def test_a_footer_whose_commit_was_lost_is_made_again(store: Store) -> None:
    add(store, messages(40))
    known = size_of(store, 1)
    seal_full_packs(store)
    sealed = store.layout.pack(FIRST).read_bytes()
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.write("UPDATE pack SET sealed = 0, size = ? WHERE pack = 1", (known,))
    assert seal_full_packs(store) == [1]
    assert store.layout.pack(FIRST).read_bytes() == sealed


def test_a_whole_message_behind_the_end_is_kept_when_the_pack_is_sealed(store: Store) -> None:
    add(store, messages(40))
    offset, header = next(records_of(store, 1))
    record = store.packs.file(FIRST).record(offset)
    with store.layout.pack(FIRST).open("ab") as file:
        file.write(record)
    seal_full_packs(store)
    footer = store.packs.file(FIRST).footer_or_none()
    assert footer is not None
    assert footer[-1][1] == header


def test_a_damaged_pack_is_not_sealed_and_keeps_no_other_from_it(store: Store) -> None:
    docids = add(store, messages(60))
    path = store.layout.pack(FIRST)
    sound = path.read_bytes()
    path.write_bytes(sound[:20] + b"\xff" + sound[21:])
    assert seal_full_packs(store) == packs_of(store)[1:-1]
    path.write_bytes(sound)
    assert seal_full_packs(store) == [1]
    assert contents_of(store) == dict(zip(docids, messages(60), strict=True))


def test_damage_to_a_footer_is_noticed_and_harms_no_message(store: Store) -> None:
    docids = add(store, messages(40))
    known = size_of(store, 1)
    seal_full_packs(store)
    path = store.layout.pack(FIRST)
    sound = path.read_bytes()
    for position in range(known, len(sound)):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 0xFF]) + sound[position + 1 :])
        file = PackFile(path, FIRST)
        try:
            assert file.footer_or_none() is None
        except Corrupt:
            continue
        # Its end or its header: no footer is found there, and the walk tells why.
        assert position < known + HEADER_BYTES or position >= len(sound) - FOOTER_END_BYTES
    assert store.load(docids[0]) == messages(1)[0]
    path.write_bytes(sound)


def test_a_message_that_ends_in_a_whole_footer_seals_nothing(store: Store) -> None:
    """As its writer can choose, who knows where it will lie."""
    noise = random.Random(2).randbytes(3000)
    start = len(PACK_HEAD) + HEADER_BYTES + len(noise)
    forged = format_footer(start, [RecordHeader(0, 0, 3000, 3000, blob_hash(noise))])
    (docid,) = add(store, [noise + forged])
    file = store.packs.file(FIRST)
    assert codecs_of(store, 1) == [0]
    assert file.footer_start_or_none() == start
    use = disk_use(store).packs[0]
    assert (use.dead, use.own, use.is_sealed) == (0, len(PACK_HEAD), False)
    (other,) = add(store, messages(1))
    assert codecs_of(store, 1) == [0, 1]
    reclaim(store, [other])
    *_, done = compact(store, 0.01)
    assert done.kept == []
    assert store.load(docid) == noise + forged
