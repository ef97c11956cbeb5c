"""What expire reclaims and what it leaves, and what the journal keeps of it."""

import time
from collections.abc import Callable

import pytest

from mailfs.errors import Busy, NoSuchMessage, NotFound
from mailfs.ids import Docid, Modseq
from mailfs.store.journal import Operation
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from mailfs.store.upkeep import expire as expire_module
from mailfs.store.upkeep.expire import ExpireProgress, Expunged, expire, expunged_by_time
from mailfs.store.upkeep.log import Counts, iter_log, logged
from tests.fakes import Deliver, make_message, new_message
from tests.oracle import docids_of

UNTIL_S = 2000.5


def do(store: Store, work: Callable[[Transaction], object]) -> Modseq:
    operation = Operation("test")
    with store.writer.transaction("test", durable=True, operation=operation) as transaction:
        work(transaction)
    return operation.number


def run(store: Store, until_s: float = UNTIL_S) -> ExpireProgress:
    *_, progress = expire(store, until_s)
    return progress


def expunge_at(store: Store, docid: Docid, second: int) -> None:
    do(store, lambda tx: tx.set_expunged(docid, second))


def is_there(store: Store, docid: Docid) -> bool:
    return bool(store.index.entries([docid]))


def test_what_was_expunged_before_goes_and_what_was_later_or_lives_stays(
    store: Store, deliver: Deliver
) -> None:
    old, now, later, live = (deliver() for _ in range(4))
    for docid, second in ((old, 1), (now, 2000), (later, 2001)):
        expunge_at(store, docid, second)
    progress = run(store)
    assert progress.messages == 2
    assert progress.stored_bytes > 0
    assert [is_there(store, docid) for docid in (old, now, later, live)] == [0, 0, 1, 1]
    with pytest.raises(NoSuchMessage):
        store.load(old)
    assert docids_of(store) == [live]


def test_it_is_one_operation_in_the_log_that_says_how_much(
    store: Store, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expire_module, "_BATCH", 2)
    monkeypatch.setattr(expire_module, "SLICE_S", 0.0)
    docids = [deliver() for _ in range(5)]
    for docid in docids:
        expunge_at(store, docid, 1)
    # 5 messages by two in a slice.
    assert sum(1 for _ in expire(store, UNTIL_S)) == 3 + 1
    newest = next(iter_log(store.index))
    assert (newest.reason, newest.counts) == ("expire", Counts(reclaimed=5))


def test_a_docid_is_never_given_again(store: Store, deliver: Deliver) -> None:
    docid = deliver()
    expunge_at(store, docid, 1)
    run(store)
    assert deliver() > docid


def test_bytes_that_come_again_are_a_new_message(store: Store, deliver: Deliver) -> None:
    raw = make_message(7)
    docid = deliver(raw=raw)
    expunge_at(store, docid, 1)
    run(store)
    again = deliver(raw=raw)
    assert again != docid
    assert store.load(again) == raw


def test_one_brought_back_between_two_slices_stays(
    store: Store, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expire_module, "_BATCH", 1)
    monkeypatch.setattr(expire_module, "SLICE_S", 0.0)
    first, second = deliver(), deliver()
    expunge_at(store, first, 1)
    expunge_at(store, second, 2)
    going = expire(store, UNTIL_S)
    next(going)
    do(store, lambda tx: tx.undelete(second))
    *_, progress = going
    assert progress.messages == 1
    assert docids_of(store) == [second]


def test_cut_off_it_goes_on_the_next_time(
    store: Store, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expire_module, "_BATCH", 1)
    monkeypatch.setattr(expire_module, "SLICE_S", 0.0)
    for docid in [deliver() for _ in range(3)]:
        expunge_at(store, docid, 1)
    next(expire(store, UNTIL_S))
    assert run(store).messages == 2
    assert expunged_by_time(store.index) == []


def test_nothing_due_needs_no_lock(store: Store, deliver: Deliver) -> None:
    expunge_at(store, deliver(), 3000)
    with (
        Store.open(store.layout.root) as other,
        other.writer.transaction("other", durable=False),
    ):
        assert list(expire(store, UNTIL_S, deadline_s=0.0)) == [ExpireProgress()]
        with pytest.raises(Busy):
            list(expire(store, 4000.0, deadline_s=0.0))


def test_what_goes_when_is_known_by_second(store: Store, deliver: Deliver) -> None:
    docids = [deliver() for _ in range(3)]
    for docid, second in zip(docids, (7, 5, 7), strict=True):
        expunge_at(store, docid, second)
    sizes = [row.size for row in store.index.entries(docids)]
    assert expunged_by_time(store.index) == [
        Expunged(5, 1, sizes[1]),
        Expunged(7, 2, sizes[0] + sizes[2]),
    ]


# --- the journal


def test_the_journal_of_those_times_goes_too(store: Store, deliver: Deliver) -> None:
    docid = deliver()

    def work(tx: Transaction) -> None:
        tx.set_expunged(docid, 1)
        tx.searches.save("a", "*")

    number = do(store, work)
    modseq = store.index.state().modseq
    assert run(store, time.time()).messages == 1
    assert [operation.reason for operation in iter_log(store.index)] == ["expire"]
    with pytest.raises(NotFound):
        logged(store.index, number)
    for table in ("journal_change", "journal_event"):
        assert not store.index.rows(f"SELECT 1 FROM {table} WHERE modseq <= ?", (modseq,))


def test_forgetting_the_journal_is_nothing_a_reader_must_notice(
    store: Store, deliver: Deliver
) -> None:
    deliver()
    before = store.index.state()
    assert run(store, time.time() + 10) == ExpireProgress(journal=1)
    assert store.index.state() == before


def test_an_operation_whose_first_slice_is_old_is_not_in_the_log(
    store: Store, deliver: Deliver
) -> None:
    operation = Operation("test")
    docid = deliver()
    times_s = []
    for flag in (1, 2):
        with store.writer.transaction("test", durable=True, operation=operation) as tx:
            tx.edit_flags(docid, flag, 0)
        times_s.append(time.time())
    run(store, times_s[0])
    assert operation.number not in [each.number for each in iter_log(store.index)]
    run(store, time.time() + 10)
    assert not store.index.rows("SELECT 1 FROM journal_change")


def test_a_whole_import_is_reclaimed(store: Store) -> None:
    def add(tx: Transaction) -> None:
        for number in range(300):
            tx.add(new_message(make_message(number)))

    do(store, add)
    for docid in docids_of(store):
        expunge_at(store, docid, 1)
    assert run(store).messages == 300
