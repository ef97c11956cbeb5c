"""The only door for change: all of a transaction or nothing, and what was in stays in."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mailfs.errors import (
    Corrupt,
    NoSuchMessage,
    NoSuchSearch,
    SearchExists,
    StoreError,
)
from mailfs.ids import Docid, Keyword, Modseq, SearchId
from mailfs.message.keywords import FLAGGED, SEEN
from mailfs.store import prepare, records
from mailfs.store.adding import Outcome
from mailfs.store.saved import ViewState
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from tests.fakes import Deliver, make_message, new_message
from tests.oracle import contents_of, count_of, docids_of, problems_of


def add(store: Store, *raws: bytes) -> list[Docid]:
    """Add messages in one transaction."""
    with store.writer.transaction("test", durable=True) as transaction:
        return [transaction.add(new_message(raw)).docid for raw in raws]


def modseq_of(store: Store) -> int:
    return store.index.state().modseq


def pack_bytes(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.layout.packs.iterdir()}


# --- adding


def test_what_is_added_is_read_back_byte_for_byte(store: Store) -> None:
    raws = [b"", b"\0\xff\r\r\n", b"no header at all", make_message(1), make_message(2) * 9000]
    docids = add(store, *raws)
    assert [store.load(docid) for docid in docids] == raws
    assert [store.index.entry(docid).size for docid in docids] == [len(raw) for raw in raws]


def test_bytes_that_are_here_are_not_stored_again(store: Store) -> None:
    raw = make_message(1)
    (first,) = add(store, raw)
    before = pack_bytes(store)
    with store.writer.transaction("test", durable=True) as transaction:
        again = transaction.add(new_message(raw))
    assert again == (first, Outcome.KNOWN)
    assert pack_bytes(store) == before
    assert count_of(store) == 1


def test_the_same_bytes_twice_in_one_transaction_are_one_message(store: Store) -> None:
    raw = make_message(1)
    with store.writer.transaction("test", durable=True) as transaction:
        first, second = transaction.add(new_message(raw)), transaction.add(new_message(raw))
    assert (first.outcome, second.outcome) == (Outcome.ADDED, Outcome.KNOWN)
    assert first.docid == second.docid


def test_an_expunged_message_stays_expunged_and_is_told_apart_from_a_known_one(
    store: Store,
) -> None:
    raw = make_message(1)
    (docid,) = add(store, raw)
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.expunge(docid)
    before = modseq_of(store)
    with store.writer.transaction("test", durable=True) as transaction:
        assert transaction.add(new_message(raw)) == (docid, Outcome.EXPUNGED)
    assert docids_of(store) == []
    assert modseq_of(store) == before


def test_a_known_message_keeps_its_flags_and_keywords(store: Store, deliver: Deliver) -> None:
    raw = make_message(1)
    docid = deliver(raw=raw, keywords=["work"], flags=SEEN)
    assert deliver(raw=raw, keywords=["other"], flags=FLAGGED) == docid
    assert store.index.entry(docid).flags == SEEN
    assert store.index.summaries([docid])[0].keywords == ("work",)


def test_a_message_can_only_be_added_durably(store: Store) -> None:
    with (
        pytest.raises(StoreError, match="durably"),
        store.writer.transaction("test", durable=False) as transaction,
    ):
        transaction.add(new_message(make_message(1)))
    assert count_of(store) == 0


def test_with_a_hash_of_8_bits_no_message_is_taken_for_another(
    monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    # The store is verified before the hash is made whole again: monkeypatch comes first.
    def short_hash(raw: bytes, whole: Callable[[bytes], bytes] = records.blob_hash) -> bytes:
        return whole(raw)[:1].ljust(records.HASH_BYTES, b"\0")

    monkeypatch.setattr(prepare, "blob_hash", short_hash)
    monkeypatch.setattr(records, "blob_hash", short_hash)
    # All of one length, so that only the bytes tell them apart.
    raws = [make_message(number) for number in range(1000, 1300)]
    assert len({len(raw) for raw in raws}) == 1
    docids = add(store, *raws)
    assert len(set(docids)) == 300
    assert [store.load(docid) for docid in docids] == raws
    with store.writer.transaction("test", durable=True) as transaction:
        again = [transaction.add(new_message(raw)) for raw in raws]
    assert again == [(docid, Outcome.KNOWN) for docid in docids]
    assert problems_of(store) == []


def test_a_copy_whose_bytes_are_damaged_is_mended_by_a_second_one(tmp_path: Path) -> None:
    raw = make_message(1)
    with Store.create(tmp_path / "store") as store:
        (docid,) = add(store, raw)
        where = store.index.location(docid)
        with store.layout.pack(where.pack).open("r+b") as file:
            file.seek(where.offset + where.stored - 1)
            file.write(b"\0\0")
        with pytest.raises(Corrupt):
            store.load(docid)
        with store.writer.transaction("test", durable=True) as transaction:
            again = transaction.add(new_message(raw))
        assert again.outcome is Outcome.ADDED
        assert store.load(again.docid) == raw


# --- modseq and docids


def test_every_transaction_that_changes_something_takes_one_modseq(
    store: Store, deliver: Deliver
) -> None:
    before = modseq_of(store)
    docid = deliver()
    with store.writer.transaction("test", durable=False) as transaction:
        assert transaction.edit_flags(docid, SEEN, 0)
        assert transaction.edit_keywords(docid, add=[Keyword("a"), Keyword("b")])
    assert modseq_of(store) == before + 2


def test_a_transaction_that_changes_nothing_takes_no_modseq(store: Store, deliver: Deliver) -> None:
    docid = deliver(keywords=["work"], flags=SEEN)
    before = modseq_of(store)
    version = store.index.data_version()
    with store.writer.transaction("test", durable=True) as transaction:
        assert not transaction.edit_flags(docid, SEEN, FLAGGED)
        assert not transaction.edit_keywords(docid, add=[Keyword("work")], remove=[Keyword("x")])
        assert not transaction.searches.save_if_absent("inbox", "from:somebody")
        assert transaction.add(new_message(store.load(docid))).outcome is Outcome.KNOWN
        assert transaction.keywords(docid) == {"work"}
    assert modseq_of(store) == before
    assert store.index.data_version() == version


def test_expunging_twice_changes_nothing_the_second_time(store: Store, deliver: Deliver) -> None:
    docid = deliver()
    for _ in range(2):
        with store.writer.transaction("test", durable=False) as transaction:
            transaction.expunge(docid)
    assert modseq_of(store) == 3
    with pytest.raises(NoSuchMessage):
        store.index.entry(docid)


def test_a_docid_is_never_used_again(store: Store, deliver: Deliver) -> None:
    first, second = deliver(), deliver()
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.expunge(second)
    third = deliver()
    assert first < second < third
    with Store.open(store.layout.root) as other:
        (fourth,) = add(other, make_message(99))
    assert fourth > third


def edit_flags(transaction: Transaction) -> None:
    transaction.edit_flags(Docid(77), SEEN, 0)


def put_keyword_on(transaction: Transaction) -> None:
    transaction.edit_keywords(Docid(77), add=[Keyword("work")])


@pytest.mark.parametrize("edit", [edit_flags, put_keyword_on])
def test_editing_a_message_that_never_was_is_refused(
    store: Store, edit: Callable[[Transaction], None]
) -> None:
    with (
        pytest.raises(NoSuchMessage),
        store.writer.transaction("test", durable=False) as transaction,
    ):
        edit(transaction)


def test_two_writers_see_what_the_other_did(store: Store, deliver: Deliver) -> None:
    docid = deliver()
    with Store.open(store.layout.root) as other:
        for writer, keyword in ((store.writer, "a"), (other.writer, "b"), (store.writer, "c")):
            with writer.transaction("test", durable=False) as transaction:
                transaction.edit_keywords(docid, add=[Keyword(keyword)])
        add(other, make_message(50))
        add(store, make_message(51))
        assert len(contents_of(other)) == 3
    assert store.index.summaries([docid])[0].keywords == ("a", "b", "c")


# --- saved searches


def test_a_search_is_saved_replaced_and_forgotten(store: Store) -> None:
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.searches.save("mine", "from:ann")
    first = store.index.search("mine")
    with (
        pytest.raises(SearchExists),
        store.writer.transaction("test", durable=True) as transaction,
    ):
        transaction.searches.save("mine", "from:bob")
    assert store.index.search("mine") == first
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.searches.save("mine", "from:bob", "refuse", replace=True)
    second = store.index.search("mine")
    assert (second.query, second.on_rm) == ("from:bob", "refuse")
    assert second.search_id == first.search_id
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.searches.forget("mine")
    with pytest.raises(NoSuchSearch):
        store.index.search("mine")


def test_forgetting_an_unknown_search_is_refused(store: Store) -> None:
    with (
        pytest.raises(NoSuchSearch),
        store.writer.transaction("test", durable=True) as transaction,
    ):
        transaction.searches.forget("none")


def test_only_a_change_of_the_searches_moves_their_modseq(store: Store, deliver: Deliver) -> None:
    before = store.index.state()
    deliver()
    assert store.index.state().searches_modseq == before.searches_modseq
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.searches.save("mine", "from:ann")
    assert store.index.state().searches_modseq == store.index.state().modseq > before.modseq


def test_the_number_of_a_forgotten_search_is_never_given_again(store: Store) -> None:
    numbers = []
    for name in ("one", "two"):
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.searches.save(name, "from:ann")
        numbers.append(store.index.search(name).search_id)
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.searches.forget(name)
    assert numbers[0] < numbers[1]


# --- the mtimes a mount leaves for the next one

STATES = [ViewState(SearchId(1), 11, 12), ViewState(SearchId(2), 21, 22)]


def put(store: Store, modseq: int) -> None:
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.put_view_states(STATES, Modseq(modseq))


def take(store: Store) -> dict[SearchId, ViewState]:
    with store.writer.transaction("test", durable=True) as transaction:
        return transaction.take_view_states()


def test_view_states_are_found_again_while_nothing_changed(store: Store, deliver: Deliver) -> None:
    deliver()
    before = modseq_of(store)
    put(store, before)
    assert modseq_of(store) == before
    assert take(store) == {state.search_id: state for state in STATES}


def test_view_states_are_taken_only_once(store: Store) -> None:
    put(store, modseq_of(store))
    take(store)
    assert take(store) == {}


def test_view_states_do_not_hold_after_a_change(store: Store, deliver: Deliver) -> None:
    put(store, modseq_of(store))
    deliver()
    assert take(store) == {}


def test_view_states_of_an_older_modseq_never_hold(store: Store, deliver: Deliver) -> None:
    deliver()
    put(store, modseq_of(store) - 1)
    assert take(store) == {}
