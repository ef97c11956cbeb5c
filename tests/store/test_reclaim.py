"""Reclaiming: rows and bytes of expunged messages end, and nothing else does."""

import pytest

from mailfs.errors import NoSuchMessage, StoreError
from mailfs.ids import Docid, PackNumber
from mailfs.store.reclaim import Reclaimed
from mailfs.store.records import CODEC_TOMBSTONES, Tombstone, parse_header, parse_tombstones
from mailfs.store.store import Store
from tests.fakes import Deliver, make_message
from tests.oracle import contents_of, docids_of
from tests.store.packed import add, expunge, messages, reclaim, records_of


def tombstones_of(store: Store, pack: int = 1) -> list[Tombstone]:
    file = store.packs.file(PackNumber(pack))
    return [
        tombstone
        for offset, header in records_of(store, pack)
        if header.codec == CODEC_TOMBSTONES
        for tombstone in parse_tombstones(file.record(offset))
    ]


def rows_about(store: Store, docid: Docid) -> int:
    """How many rows of all tables name a message."""
    tables = ("message", "envelope", "message_blob", "message_keyword", "entry", "message_text")
    return sum(
        store.index.rows(
            f"SELECT count(*) FROM {table} WHERE {'rowid' if table == 'message_text' else 'docid'} = ?",
            (docid,),
        )[0][0]
        for table in tables
    )


def test_what_is_reclaimed_is_gone_from_the_index_and_the_others_are_as_they_were(
    store: Store, deliver: Deliver
) -> None:
    docids = [deliver(keywords=["work"]) for _ in range(5)]
    before = contents_of(store)
    reclaim(store, docids[1:3])
    assert contents_of(store) == {docid: before[docid] for docid in (docids[0], *docids[3:])}
    assert [rows_about(store, docid) > 0 for docid in docids] == [True, False, False, True, True]
    store.index.forget_locations()
    with pytest.raises(NoSuchMessage):
        store.load(docids[1])


def test_a_tombstone_names_each_record_that_was_given_up(store: Store) -> None:
    docids = add(store, messages(4))
    where = [store.index.location(docid) for docid in docids]
    hashes = [store.packs.header(location).hash for location in where]
    expunge(store, docids[:2])
    with store.writer.transaction("test", durable=True) as transaction:
        assert transaction.reclaim(docids[:2]) == Reclaimed(2, 2, where[0].stored + where[1].stored)
    assert tombstones_of(store) == [
        Tombstone(location.pack, location.offset, digest)
        for location, digest in zip(where[:2], hashes[:2], strict=True)
    ]


def test_live_messages_unknown_ones_and_those_expunged_later_are_left_out(store: Store) -> None:
    docids = add(store, messages(3))
    expunge(store, docids[1:])
    with store.writer.transaction("test", durable=True) as transaction:
        assert transaction.reclaim([docids[0], Docid(99)]) == Reclaimed(0, 0, 0)
        assert transaction.reclaim(docids, until_s=transaction.now_ns // 10**9) == (0, 0, 0)
        assert transaction.reclaim(docids).messages == 2
    assert docids_of(store) == [docids[0]]


def test_bytes_that_another_message_has_too_are_kept(store: Store) -> None:
    first, second = add(store, messages(2))
    with store.writer.transaction("test", durable=True) as transaction:
        # As when several copies of a message are one message.
        transaction.rows(
            "INSERT INTO message_blob SELECT ?, blob_id FROM message_blob WHERE docid = ?",
            (second, first),
        )
        transaction.rows("DELETE FROM message_blob WHERE docid = ? AND blob_id = 2", (second,))
        transaction.rows("DELETE FROM blob WHERE blob_id = 2")
        transaction.rows(
            "UPDATE message SET size = (SELECT raw FROM blob) WHERE docid = ?", (second,)
        )
        transaction.edit_flags(second, 1, 0)
    expunge(store, [first])
    with store.writer.transaction("test", durable=True) as transaction:
        assert transaction.reclaim([first]) == Reclaimed(1, 0, 0)
    assert store.load(second) == messages(1)[0]
    assert tombstones_of(store) == []
    reclaim(store, [second])
    assert len(tombstones_of(store)) == 1


def test_the_same_bytes_can_come_again_after_they_were_reclaimed(store: Store) -> None:
    (docid,) = add(store, [make_message(1)])
    reclaim(store, [docid])
    (again,) = add(store, [make_message(1)])
    assert again > docid
    assert store.load(again) == make_message(1)


def test_who_follows_the_changes_can_tell_that_it_missed_some(store: Store) -> None:
    docids = add(store, messages(3))
    expunge(store, docids[:2])
    modseq = store.index.state().modseq
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.reclaim(docids[:2])
    assert store.index.state().reclaimed_modseq == modseq
    assert store.index.state().modseq > modseq


def test_reclaiming_is_durable_or_refused(store: Store) -> None:
    docids = add(store, messages(1))
    expunge(store, docids)
    with (
        pytest.raises(StoreError, match="durably"),
        store.writer.transaction("test", durable=False) as transaction,
    ):
        transaction.reclaim(docids)
    assert rows_about(store, docids[0]) > 0


def test_a_transaction_that_is_taken_back_reclaims_nothing_and_leaves_no_tombstone(
    store: Store,
) -> None:
    docids = add(store, messages(2))
    expunge(store, docids)
    before = store.layout.pack(PackNumber(1)).read_bytes()
    with (
        pytest.raises(ZeroDivisionError),
        store.writer.transaction("test", durable=True) as transaction,
    ):
        assert transaction.reclaim(docids).blobs / 0
    assert store.layout.pack(PackNumber(1)).read_bytes() == before
    assert store.load(docids[0]) == messages(1)[0]


def test_tombstones_whose_transaction_was_lost_are_cut_off(store: Store) -> None:
    docids = add(store, messages(2))
    size = store.layout.pack(PackNumber(1)).stat().st_size
    expunge(store, docids[:1])
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.reclaim(docids[:1])
    record = store.layout.pack(PackNumber(1)).read_bytes()[size:]
    assert parse_header(record).codec == CODEC_TOMBSTONES
    with store.layout.pack(PackNumber(1)).open("ab") as file:
        file.write(record)  # a second one, of a writer that died before its commit
    add(store, messages(1, first=10))
    assert len(tombstones_of(store)) == 1


def test_messages_behind_tombstones_stay_when_the_index_is_older_than_its_packs(
    store: Store,
) -> None:
    docids = add(store, messages(3))
    ((older_end,),) = store.index.rows("SELECT size FROM pack")
    reclaim(store, docids[:1])
    later = messages(3, first=10)
    docids = add(store, later)
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.write("UPDATE pack SET size = ?", (older_end,))
    add(store, messages(1, first=20))
    assert [store.load(docid) for docid in docids] == later
