"""Compacting: dead bytes are given back, and no message is lost or changed, whatever comes between."""

import os
import random
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from mailfs.errors import Corrupt, Unhealthy
from mailfs.ids import Docid, PackNumber
from mailfs.store import packs
from mailfs.store.packfile import PACK_HEAD
from mailfs.store.packs import Location
from mailfs.store.records import (
    CODEC_CHAIN,
    CODEC_DICTIONARY,
    CODEC_TOMBSTONES,
    MESSAGE_CODECS,
    Dictionary,
    parse_tombstones,
)
from mailfs.store.store import Store
from mailfs.store.upkeep import training
from mailfs.store.upkeep.compact import Compaction, compact, worth_it
from mailfs.store.upkeep.disk_use import disk_use
from mailfs.store.upkeep.removal import keep_packs, remove_dead_packs
from mailfs.store.upkeep.seal import seal_full_packs
from mailfs.store.upkeep.training import introduce
from tests.fakes import make_dictionary, make_message
from tests.oracle import contents_of, problems_of
from tests.store.packed import add, codecs_of, messages, packs_of, reclaim, records_of

LIMIT = 8000
KILLS = 12


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", LIMIT)


def finished(store: Store, dead_share: float = 0.25, *, everything: bool = False) -> Compaction:
    """All of it; what was done."""
    *_, done = compact(store, dead_share, everything=everything)
    return done


def holes(store: Store, count: int = 100) -> dict[Docid, bytes]:
    """Messages in several packs, every second of them reclaimed; those that are left."""
    docids = add(store, messages(count))
    reclaim(store, docids[::2])
    return dict(zip(docids[1::2], messages(count)[1::2], strict=True))


# --- what it does


def test_packs_with_dead_bytes_are_rewritten_and_the_messages_are_as_they_were(
    store: Store,
) -> None:
    left = holes(store)
    before = disk_use(store)
    done = finished(store)
    after = disk_use(store)
    assert contents_of(store) == left
    assert done.packs == done.removed == len(before.packs)
    assert done.messages == len(left)
    assert after.dead_bytes < before.dead_bytes / 10
    assert after.pack_bytes < 0.7 * before.pack_bytes
    assert sum(path.stat().st_size for path in store.layout.packs.iterdir()) == after.pack_bytes
    assert done.kept == []


def test_it_changes_nothing_a_reader_could_notice(store: Store) -> None:
    holes(store)
    state = store.index.state()
    finished(store)
    assert store.index.state() == state


def test_packs_with_few_dead_bytes_are_left_alone(store: Store) -> None:
    docids = add(store, messages(100))
    reclaim(store, docids[::10])
    before = packs_of(store)
    assert finished(store).packs == 0
    assert packs_of(store) == before
    assert finished(store, 0.02).packs > 0


def test_a_store_without_dead_bytes_is_left_as_it_is(store: Store) -> None:
    add(store, messages(10))
    before = store.layout.pack(PackNumber(1)).read_bytes()
    assert finished(store) == Compaction()
    assert store.layout.pack(PackNumber(1)).read_bytes() == before


def test_a_new_store_can_be_compacted(store: Store) -> None:
    assert finished(store) == Compaction()


def test_compacting_twice_does_nothing_more(store: Store) -> None:
    holes(store)
    finished(store)
    before = packs_of(store)
    assert finished(store) == Compaction()
    assert packs_of(store) == before


def test_a_pack_of_which_nothing_is_left_goes(store: Store) -> None:
    docids = add(store, messages(100))
    reclaim(store, docids)
    done = finished(store)
    assert contents_of(store) == {}
    assert done.messages == 0
    # The newest stays: the next number comes from it.
    assert len(packs_of(store)) == 1
    assert disk_use(store).pack_bytes < 100


def test_numbers_of_packs_are_never_used_again(store: Store) -> None:
    seen = set(packs_of(store))
    for first in (0, 100, 200):
        reclaim(store, add(store, messages(60, first)))
        finished(store)
        new = set(packs_of(store)) - seen
        assert all(number > max(seen, default=0) for number in new)
        seen |= new


def test_small_packs_are_joined(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", 1_000_000)
    for first in range(0, 40, 10):
        add(store, messages(10, first))
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.begin_pack()
    add(store, messages(10, 100))
    assert len(packs_of(store)) == 5
    finished(store)
    assert packs_of(store) == [5]


def test_a_record_larger_than_a_slice_is_copied_as_it_is(store: Store) -> None:
    raw = make_message(1, body=random.Random(1).randbytes(700_000).hex())
    gone, docid = add(store, [make_message(2, body=random.Random(2).randbytes(900_000).hex()), raw])
    reclaim(store, [gone])
    finished(store)
    assert store.load(docid) == raw
    assert store.packs.header(store.index.location(docid)).codec == CODEC_CHAIN


# --- dictionaries


def test_what_is_moved_is_compressed_with_the_newest_dictionary(store: Store) -> None:
    left = holes(store)
    one = Dictionary(make_dictionary(1))
    introduce(store, one)
    done = finished(store)
    assert done.written_bytes < 0.8 * done.read_bytes
    assert contents_of(store) == left
    for number in packs_of(store):
        assert {h.dictionary for _, h in records_of(store, number) if h.codec == 1} <= {one.id}


def test_everything_is_compressed_anew_only_when_asked(store: Store) -> None:
    docids = add(store, messages(60))
    introduce(store, Dictionary(make_dictionary(1)))
    assert finished(store).messages == 0
    assert finished(store, everything=True).messages == 60
    assert finished(store, everything=True).messages == 0
    assert contents_of(store) == dict(zip(docids, messages(60), strict=True))


def test_two_dictionaries_become_one(store: Store) -> None:
    introduce(store, Dictionary(make_dictionary(1)))
    old = add(store, messages(30))
    introduce(store, Dictionary(make_dictionary(2)))
    new = add(store, messages(30, first=50))
    finished(store, everything=True)
    assert [store.load(docid) for docid in old + new] == messages(30) + messages(30, first=50)
    wanted = Dictionary(make_dictionary(2)).id
    assert {store.packs.file(PackNumber(n)).dictionary_or_none().id for n in packs_of(store)} == {  # type: ignore[union-attr]
        wanted
    }


def test_compacting_makes_a_dictionary_when_there_is_mail_enough(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LEAST_MESSAGES", 50)
    monkeypatch.setattr(training, "DICTIONARY_BYTES", 4096)
    monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", 100_000)
    add(store, messages(200))
    assert finished(store).made_dictionary
    assert codecs_of(store, packs_of(store)[-1])[0] == CODEC_DICTIONARY


# --- tombstones


def tombstones_in(store: Store) -> list[tuple[int, int]]:
    return [
        (tombstone.pack, tombstone.offset)
        for number in packs_of(store)
        for offset, header in records_of(store, number)
        if header.codec == CODEC_TOMBSTONES
        for tombstone in parse_tombstones(store.packs.file(PackNumber(number)).record(offset))
    ]


def test_tombstones_of_a_pack_that_is_gone_go_with_it(store: Store) -> None:
    holes(store)
    assert tombstones_in(store)
    finished(store)
    assert tombstones_in(store) == []


def test_tombstones_of_a_pack_that_stays_are_kept_when_theirs_is_rewritten(store: Store) -> None:
    docids = add(store, messages(60))
    first = store.index.location(docids[0])
    # A little of pack 1; then all of the newest, which holds the tombstones.
    reclaim(store, docids[:1])
    newest = packs_of(store)[-1]
    reclaim(store, [each for each in docids[1:] if store.index.location(each).pack == newest])
    finished(store, 0.3)
    assert newest not in packs_of(store)
    assert (first.pack, first.offset) in tombstones_in(store)


def test_a_newest_pack_of_tombstones_is_left_alone(store: Store) -> None:
    docids = add(store, messages(60))
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.begin_pack()
    reclaim(store, docids[:3])
    before = packs_of(store)
    assert disk_use(store).packs[-1].dead_share > 0.5
    assert finished(store).packs == 0
    assert packs_of(store) == before


# --- what stays


def damage(store: Store, docid: Docid) -> Callable[[], None]:
    """Damage the bytes of a message; what undoes it."""
    where = store.index.location(docid)
    path = store.layout.pack(where.pack)

    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(where.offset + where.stored - 3)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 0xFF]))

    flip()
    return flip


def test_a_damaged_message_keeps_its_pack_and_the_others_are_moved(store: Store) -> None:
    left = holes(store)
    victim = next(iter(left))
    mend = damage(store, victim)
    pack = store.index.location(victim).pack
    done = finished(store)
    assert pack in packs_of(store)
    assert any(f"pack {pack} holds 1 messages that are damaged" in text for text in done.kept)
    store.index.forget_locations()
    assert store.index.location(victim).pack == pack
    assert {docid: store.load(docid) for docid in left if docid != victim} == {
        docid: raw for docid, raw in left.items() if docid != victim
    }
    # What was moved is not brought back from there.
    places = {place for place in tombstones_in(store) if place[0] == pack}
    assert len(places) == len(codecs_of(store, pack)) - 2  # the damaged one and the footer
    mend()
    assert finished(store).kept == []
    assert contents_of(store) == left


def test_a_pack_that_cannot_be_walked_stays_as_it_is(store: Store) -> None:
    left = holes(store)
    path = store.layout.pack(PackNumber(1))
    sound = path.read_bytes()
    path.write_bytes(sound[: len(PACK_HEAD)] + b"\xff" + sound[len(PACK_HEAD) + 1 :])
    done = finished(store)
    assert any(text.startswith("pack 1 is damaged") for text in done.kept)
    assert 1 in packs_of(store)
    path.write_bytes(sound)
    assert finished(store).kept == []
    assert contents_of(store) == left


def test_a_whole_message_the_index_does_not_know_is_moved_as_it_is(store: Store) -> None:
    docids = add(store, messages(100))
    orphan = store.index.location(docids[1])
    with store.writer.transaction("test", durable=True) as transaction:
        # As after a crash: bytes without rows, and no tombstone.
        for table in ("message_blob", "message", "envelope"):
            transaction.write(f"DELETE FROM {table} WHERE docid = ?", (docids[1],))
        transaction.write("DELETE FROM message_text WHERE rowid = ?", (docids[1],))
        transaction.write("DELETE FROM blob WHERE blob_id = 2")
    reclaim(store, docids[2:])
    done = finished(store)
    assert (done.kept, done.unknown) == ([], 1)
    assert orphan.pack not in packs_of(store)
    moved = [
        store.packs.load(Location(PackNumber(number), offset, 48 + header.stored, header.raw))
        for number in packs_of(store)
        for offset, header in records_of(store, number)
        if header.codec in MESSAGE_CODECS
    ]
    assert messages(2)[1] in moved
    # It lies in the newest pack now, which is not worth it because of that.
    assert finished(store).packs == 0


def test_a_damaged_message_the_index_does_not_know_keeps_its_pack(store: Store) -> None:
    docids = add(store, messages(100))
    mend = damage(store, docids[1])
    pack = store.index.location(docids[1]).pack
    with store.writer.transaction("test", durable=True) as transaction:
        for table in ("message_blob", "message", "envelope"):
            transaction.write(f"DELETE FROM {table} WHERE docid = ?", (docids[1],))
        transaction.write("DELETE FROM message_text WHERE rowid = ?", (docids[1],))
        transaction.write("DELETE FROM blob WHERE blob_id = 2")
    reclaim(store, docids[2:])
    assert finished(store).kept == [
        f"pack {pack} holds 1 messages that are damaged: see `mailfs verify`"
    ]
    assert pack in packs_of(store)
    mend()
    assert finished(store).unknown == 1
    assert pack not in packs_of(store)


def test_a_copy_that_a_run_left_behind_keeps_no_pack(store: Store) -> None:
    left = holes(store)
    where = store.index.location(next(iter(left)))
    record = store.packs.file(where.pack).record(where.offset)
    with store.writer.transaction("test", durable=True) as transaction:
        from mailfs.store.unpacked import MemoryRecord

        transaction.append(MemoryRecord(record))
        transaction.begin_pack()
    assert finished(store).kept == []
    assert contents_of(store) == left


def test_nothing_is_moved_while_there_is_no_room(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = holes(store)
    before = packs_of(store)

    def refuse(count: int = 0) -> None:
        raise Unhealthy(f"no room for {count} bytes", 28)

    with monkeypatch.context() as patch:
        patch.setattr(store.writer.health, "check_room", refuse)
        with pytest.raises(Unhealthy):
            finished(store)
    assert set(before) <= set(packs_of(store))
    assert contents_of(store) == left
    assert finished(store).kept == []


# --- beside others


def test_a_pack_is_not_removed_while_somebody_keeps_the_packs(store: Store) -> None:
    left = holes(store)
    before = set(packs_of(store))
    with keep_packs(store.layout):
        assert finished(store).removed == 0
        assert before < set(packs_of(store))
        assert disk_use(store).removable == len(before)
    assert remove_dead_packs(store) == len(before)
    assert not before & set(packs_of(store))
    assert disk_use(store).removable == 0
    assert contents_of(store) == left


def test_who_has_a_pack_open_reads_on_when_it_is_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", 10_000_000)
    raw = make_message(1, body=random.Random(1).randbytes(700_000).hex())
    gone, docid = add(store, [make_message(2, body=random.Random(2).randbytes(900_000).hex()), raw])
    reclaim(store, [gone])
    with Store.open(store.layout.root) as reader:
        chain = reader.packs.open_message(reader.index.location(docid))
        assert not isinstance(chain, bytes)
        finished(store)
        assert reader.packs.forget_removed() > 900_000
        frames = (chain.frame(number) for number in range(chain.count))
        assert b"".join(frames) == raw
        assert reader.load(docid) == raw


def test_a_reader_finds_a_message_whose_place_it_has_from_before(store: Store) -> None:
    left = holes(store)
    with Store.open(store.layout.root) as reader:
        for docid in left:
            reader.index.location(docid)  # read ahead
        finished(store)
        assert {docid: reader.load(docid) for docid in left} == left
    with Store.open(store.layout.root) as reader:
        first = next(iter(left))
        old = reader.index.location(first)
        store.layout.pack(old.pack).rename(store.layout.root / "away")
        with pytest.raises(Corrupt, match="missing"):
            reader.load(first)
        (store.layout.root / "away").rename(store.layout.pack(old.pack))


def test_messages_that_come_or_go_meanwhile_are_neither_lost_nor_brought_back(store: Store) -> None:
    left = holes(store)
    steps = compact(store, slice_s=0.0)  # one message a slice
    number = 1000
    for _ in steps:
        number += 1
        (docid,) = add(store, [make_message(number)])
        left[docid] = make_message(number)
        if number % 2:
            victim = random.Random(number).choice(sorted(left))
            reclaim(store, [victim])
            del left[victim]
    assert number > 1040
    assert contents_of(store) == left
    assert finished(store).kept == []
    assert contents_of(store) == left


def test_two_at_once_do_no_harm(store: Store) -> None:
    left = holes(store)
    with Store.open(store.layout.root) as peer:
        one, other = compact(store, slice_s=0.0), compact(peer, slice_s=0.0)
        is_over = False
        while not is_over:
            is_over = [next(one, None), next(other, None)] == [None, None]
    assert contents_of(store) == left
    assert finished(store).kept == []


# --- killed at every step

_CALLS = ("open", "pwrite", "fsync", "ftruncate", "unlink", "truncate")


def calls_of_a_run(root: Path, killed_at: int = 0) -> int:
    """Compact in a process of its own, which is gone at its nth call that changes files; how many calls there were."""
    child = os.fork()
    if child == 0:
        calls = 0

        def counted(call: Callable[..., object]) -> Callable[..., object]:
            def instead(*args: object, **named: object) -> object:
                nonlocal calls
                calls += 1
                if calls == killed_at:
                    os._exit(0)
                return call(*args, **named)

            return instead

        try:
            for name in _CALLS:
                setattr(os, name, counted(getattr(os, name)))
            with Store.open(root) as store:
                finished(store)
        finally:
            os._exit(calls)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_killed_anywhere_it_loses_nothing_and_the_next_run_finishes(tmp_path: Path) -> None:
    before, root = tmp_path / "before", tmp_path / "store"
    with Store.create(before) as store:
        introduce(store, Dictionary(make_dictionary(1)))
        left = holes(store, 60)
    shutil.copytree(before, root)
    total = calls_of_a_run(root)
    assert 20 < total < 255
    for point in random.Random(1).sample(range(1, total + 1), KILLS):
        shutil.rmtree(root)
        shutil.copytree(before, root)
        assert calls_of_a_run(root, killed_at=point) == 0
        with Store.open(root) as store:
            assert problems_of(store) == [], point
            assert contents_of(store) == left, point
            assert finished(store).kept == []
            assert problems_of(store) == [], point
            assert contents_of(store) == left, point
            assert worth_it(store) == []
            assert disk_use(store).removable == 0


# --- what is worth it


def test_what_is_worth_it_is_told_without_doing_it(store: Store) -> None:
    holes(store)
    before = packs_of(store)
    uses = worth_it(store)
    assert [use.pack for use in uses] == before
    assert all(0.25 < use.dead_share < 0.75 for use in uses)
    assert packs_of(store) == before


def test_the_use_of_the_disk_adds_up(store: Store) -> None:
    introduce(store, Dictionary(make_dictionary(1)))
    holes(store)
    seal_full_packs(store)
    use = disk_use(store)
    for pack in use.packs:
        assert pack.size == store.layout.pack(pack.pack).stat().st_size
        assert pack.size == pack.live + pack.own + pack.dead
        assert pack.is_newest or pack.is_sealed
    assert sum(pack.messages for pack in use.packs) == 50
    assert use.dictionaries == 1
    assert use.dictionary_bytes == len(make_dictionary(1))
    assert use.live_bytes + use.dead_bytes + sum(p.own for p in use.packs) == use.pack_bytes
    assert use.index_bytes >= store.layout.index.stat().st_size


def test_a_pack_begun_with_the_number_of_one_that_was_removed_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process removes the dead pack, and a third begins a pack of its number, when this one has just looked."""
    docid = add(store, messages(1))[0]
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.write("INSERT INTO dead_pack VALUES (2)")
    looked = []

    def hold(purpose: str, deadline_s: float | None) -> AbstractContextManager[None]:
        looked.append(purpose)
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.write("DELETE FROM dead_pack")
            transaction.begin_pack()
        add(store, messages(1, first=5))
        return nullcontext()

    with monkeypatch.context() as patched:
        patched.setattr(type(store.writer), "lock", SimpleNamespace(hold=hold))
        assert remove_dead_packs(store) == 0
    assert looked
    assert packs_of(store) == [1, 2]
    assert store.load(docid) == messages(1)[0]
