"""What the journal keeps of a write transaction, and what the log makes of it."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mailfs.errors import NotFound
from mailfs.ids import Docid, Keyword, Modseq
from mailfs.message.keywords import DELETED, FLAGGED, RECENT, SEEN
from mailfs.search.plan import plan
from mailfs.search.query import parse_query
from mailfs.store.journal import Actor, Operation
from mailfs.store.saved import ViewState
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from mailfs.store.upkeep import log as log_module
from mailfs.store.upkeep.log import (
    Counts,
    Event,
    LoggedOperation,
    NetChange,
    Range,
    changes,
    events,
    iter_log,
    logged,
    ranges,
)
from tests.fakes import Deliver, make_message, new_message

MUTT = Actor(4711, "mutt")
TODO, DONE = Keyword("todo"), Keyword("done")


def do(
    store: Store, work: Callable[[Transaction], object], operation: Operation | None = None
) -> Operation:
    """One transaction; the operation it belongs to."""
    operation = operation or Operation("test", MUTT)
    with store.writer.transaction("test", durable=True, operation=operation) as transaction:
        work(transaction)
    return operation


def newest(store: Store) -> LoggedOperation:
    return next(iter_log(store.index))


def numbers(store: Store, query: str | None = None) -> list[Modseq]:
    asked = None if query is None else plan(parse_query(query), time.time())
    return [operation.number for operation in iter_log(store.index, asked)]


def change(docid: Docid, **other: object) -> NetChange:
    same = NetChange(docid, 0, 0, 0, 0, frozenset(), frozenset())
    return same._replace(**other)  # type: ignore[arg-type]  # the fields of the test


# --- what is kept


def test_an_operation_says_who_did_what_why_and_when(store: Store, deliver: Deliver) -> None:
    docid = deliver()
    before_ns = time.time_ns()
    do(store, lambda tx: tx.edit_flags(docid, FLAGGED, 0), Operation("rename in inbox", MUTT))
    found = newest(store)
    assert (found.actor, found.reason) == (MUTT, "rename in inbox")
    assert before_ns <= found.time_ns <= time.time_ns()
    assert found.number == store.index.state().modseq
    assert (found.undoes, found.undone_by) == (0, 0)
    assert found.counts == Counts(flagged=1)
    assert changes(store.index, found.number) == [change(docid, flags_after=FLAGGED)]


def test_without_an_operation_it_is_this_process_for_the_purpose(store: Store) -> None:
    with store.writer.transaction("a purpose", durable=True) as transaction:
        transaction.searches.save("work", "tag:work")
    found = newest(store)
    assert found.reason == "a purpose"
    assert found.actor == (os.getpid(), Path("/proc/self/comm").read_text().strip())


def test_several_changes_of_a_message_are_one(store: Store, deliver: Deliver) -> None:
    docid = deliver(flags=SEEN, keywords=["done"])

    def work(tx: Transaction) -> None:
        tx.edit_flags(docid, FLAGGED, 0)
        tx.edit_flags(docid, 0, SEEN)
        tx.edit_keywords(docid, add=[TODO])
        tx.edit_keywords(docid, remove=[DONE, TODO])
        tx.edit_keywords(docid, add=[TODO])
        tx.expunge(docid)

    number = do(store, work).number
    (found,) = changes(store.index, number)
    assert (found.flags_before, found.flags_after) == (SEEN, FLAGGED)
    assert (found.added, found.removed) == (frozenset({TODO}), frozenset({DONE}))
    assert found.expunged_before == 0 < found.expunged_after
    assert newest(store).counts == Counts(expunged=1, flagged=1, tagged=1)


def test_what_is_as_it_was_at_the_end_is_not_journaled(store: Store, deliver: Deliver) -> None:
    docid = deliver()
    before = numbers(store)

    def there_and_back(tx: Transaction) -> None:
        tx.edit_flags(docid, SEEN, 0)
        tx.edit_flags(docid, 0, SEEN)
        tx.edit_keywords(docid, add=[TODO])
        tx.edit_keywords(docid, remove=[TODO])

    do(store, there_and_back)
    assert numbers(store) == before


def test_what_no_reader_need_notice_is_not_journaled(store: Store) -> None:
    before = numbers(store)
    search_id = store.index.search("inbox").search_id
    do(store, lambda tx: tx.put_view_states([ViewState(search_id, 1, 2)], tx.modseq))
    assert numbers(store) == before


def test_a_transaction_that_fails_leaves_no_line(store: Store, deliver: Deliver) -> None:
    docid = deliver()
    before = numbers(store)
    operation = Operation("test")

    def fail(tx: Transaction) -> None:
        tx.expunge(docid)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        do(store, fail, operation)
    assert numbers(store) == before
    assert operation.number == 0


def test_added_messages_are_a_range_and_no_row_each(store: Store, deliver: Deliver) -> None:
    known = deliver()

    def add(tx: Transaction) -> None:
        for number in range(100, 105):
            added = tx.add(new_message(make_message(number)))
            tx.edit_flags(added.docid, SEEN, 0)
        tx.edit_keywords(known, add=[TODO])

    number = do(store, add).number
    assert newest(store).counts == Counts(added=5, tagged=1)
    assert ranges(store.index, number) == [Range(Docid(known + 1), Docid(known + 5))]
    assert [each.docid for each in changes(store.index, number)] == [known]


def test_a_message_that_comes_back_as_new_says_what_it_had(store: Store, deliver: Deliver) -> None:
    docid = deliver(flags=SEEN, keywords=["todo"])
    do(store, lambda tx: tx.expunge(docid))
    do(store, lambda tx: tx.revive(docid))
    found = newest(store)
    assert found.counts == Counts(undeleted=1, flagged=1, tagged=1)
    (only,) = changes(store.index, found.number)
    assert (only.flags_before, only.flags_after, only.removed) == (SEEN, 0, frozenset({TODO}))


def test_an_undeleted_message_is_as_it_was_but_not_marked(store: Store, deliver: Deliver) -> None:
    docid = deliver(flags=SEEN | DELETED | RECENT, keywords=["todo"])
    do(store, lambda tx: tx.expunge(docid))
    with store.writer.transaction("test", durable=False) as tx:
        assert tx.undelete(docid)
        assert not tx.undelete(docid)
        assert tx.is_live(docid)
        assert tx.flags(docid) == SEEN | RECENT
        assert tx.keywords(docid) == {TODO}


def test_searches_are_journaled_as_before_and_after(store: Store) -> None:
    row: dict[str, str | int] = {"name": "work", "query": "tag:work", "on_rm": ""}
    do(store, lambda tx: tx.searches.save("work", "tag:work"))
    search_id = store.index.search("work").search_id
    row |= {"search_id": search_id}
    saved = newest(store)
    assert saved.counts == Counts(searches=1)
    assert events(store.index, saved.number) == [Event("search", {}, row)]
    do(store, lambda tx: tx.searches.rename("work", "job", "tag:job"))
    after = row | {"name": "job", "query": "tag:job"}
    assert events(store.index, newest(store).number) == [Event("search", row, after)]
    do(store, lambda tx: tx.searches.save("job", "tag:job", "refuse", replace=True))
    refuse = after | {"on_rm": "refuse"}
    assert events(store.index, newest(store).number) == [Event("search", after, refuse)]
    do(store, lambda tx: tx.searches.forget("job"))
    assert events(store.index, newest(store).number) == [Event("search", refuse, {})]


def test_a_reason_that_is_a_path_no_terminal_could_show_is_kept_all_the_same(store: Store) -> None:
    path = os.fsdecode(b"/mail/\xff") + "x" * 5000
    do(store, lambda tx: tx.searches.save("a", "*"), Operation(f"import {path}"))
    reason = newest(store).reason
    assert reason.startswith("import /mail/\\udcff")
    assert len(reason) < 600


# --- slices


def test_slices_of_a_command_are_one_operation(store: Store, deliver: Deliver) -> None:
    first, second, other = deliver(), deliver(), deliver()
    operation = Operation("tag +todo", MUTT)
    do(store, lambda tx: tx.edit_keywords(first, add=[TODO]), operation)
    do(store, lambda tx: tx.edit_keywords(other, add=[DONE]))
    do(store, lambda tx: tx.edit_keywords(second, add=[TODO]), operation)
    do(store, lambda tx: tx.add(new_message(make_message(50))), operation)
    found = logged(store.index, operation.number)
    assert found.counts == Counts(added=1, tagged=2)
    assert [each.docid for each in changes(store.index, found.number)] == [first, second]
    assert len(numbers(store)) == 3 + 2
    assert numbers(store) == sorted(numbers(store), reverse=True)


def test_a_message_changed_by_two_slices_counts_once(store: Store, deliver: Deliver) -> None:
    docid = deliver(flags=SEEN, keywords=["done"])
    operation = Operation("test")
    do(store, lambda tx: tx.edit_keywords(docid, [TODO], [DONE]), operation)
    do(store, lambda tx: tx.edit_keywords(docid, [Keyword("more")], [TODO]), operation)
    do(store, lambda tx: tx.edit_flags(docid, FLAGGED, SEEN), operation)
    (found,) = changes(store.index, operation.number)
    assert found == change(
        docid,
        flags_before=SEEN,
        flags_after=FLAGGED,
        added=frozenset({Keyword("more")}),
        removed=frozenset({DONE}),
    )
    assert logged(store.index, operation.number).counts == Counts(flagged=1, tagged=1)


def test_a_slice_in_which_nothing_changed_gives_the_operation_no_number(
    store: Store, deliver: Deliver
) -> None:
    docid = deliver(keywords=["todo"])
    operation = Operation("test")
    do(store, lambda tx: tx.edit_keywords(docid, add=[TODO]), operation)
    assert operation.number == 0
    do(store, lambda tx: tx.edit_keywords(docid, add=[DONE]), operation)
    assert operation.number == store.index.state().modseq


def test_changes_read_piece_by_piece_are_all_of_them(
    store: Store, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    docids = [deliver() for _ in range(7)]
    monkeypatch.setattr(log_module, "_PIECE_DOCIDS", 2)
    operation = Operation("test")
    for docid in (docids[6], docids[1], docids[2]):
        do(store, lambda tx, docid=docid: tx.edit_keywords(docid, [TODO]), operation)  # type: ignore[misc]  # the loop's docid of now
    found = changes(store.index, operation.number)
    assert [each.docid for each in found] == [docids[1], docids[2], docids[6]]


# --- the log


def test_a_number_that_is_no_operation_is_told(store: Store, deliver: Deliver) -> None:
    docid, operation = deliver(), Operation("test")
    do(store, lambda tx: tx.edit_flags(docid, SEEN, 0), operation)
    do(store, lambda tx: tx.edit_flags(docid, FLAGGED, 0), operation)
    for number in (Modseq(999), store.index.state().modseq):
        with pytest.raises(NotFound, match=f"no operation {number}"):
            logged(store.index, number)


def test_a_query_picks_what_touched_the_messages_that_match_expunged_ones_too(
    store: Store, deliver: Deliver
) -> None:
    apples = deliver(subject="apples")
    brought = newest(store).number
    pears = deliver(subject="pears")
    tagged = do(store, lambda tx: tx.edit_keywords(apples, add=[TODO])).number
    do(store, lambda tx: tx.edit_keywords(pears, add=[TODO]))
    do(store, lambda tx: tx.searches.save("a", "*"))
    removed = do(store, lambda tx: tx.expunge(apples)).number
    assert numbers(store, "subject:apples") == [removed, tagged, brought]
    assert numbers(store, "tag:todo subject:apples") == [removed, tagged, brought]
    assert numbers(store, "subject:plums") == []


def test_a_query_finds_a_message_in_the_middle_of_an_import(store: Store) -> None:
    def add(tx: Transaction) -> None:
        for number in range(10):
            tx.add(new_message(make_message(number, subject=f"number{number}")))

    number = do(store, add).number
    for subject in ("number0", "number5", "number9"):
        assert numbers(store, f"subject:{subject}") == [number]
