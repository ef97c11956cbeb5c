"""Operations taken back: what is restored, what others changed since and stays, and what cannot be had back."""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailfs.errors import EditRefused, KeywordInUse, NoSuchSearch, SearchExists
from mailfs.ids import Docid, Keyword, Modseq
from mailfs.message.keywords import (
    ANSWERED,
    DELETED,
    DELETED_BY_ENTRY,
    FLAGGED,
    RECENT,
    SEEN,
)
from mailfs.message.maildir import ChosenName
from mailfs.store.index import SavedSearch
from mailfs.store.journal import Operation
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from mailfs.store.upkeep import undo as undo_module
from mailfs.store.upkeep.log import Counts, logged
from mailfs.store.upkeep.undo import UndoProgress, newest_to_undo, undo
from tests.fakes import Deliver, make_message, new_message
from tests.oracle import docids_of, problems_of

TODO, DONE, WORK, JOB = map(Keyword, ("todo", "done", "work", "job"))


def do(store: Store, work: Callable[[Transaction], object], reason: str = "test") -> Modseq:
    """One transaction, an operation of its own; its number."""
    operation = Operation(reason)
    with store.writer.transaction("test", durable=True, operation=operation) as transaction:
        work(transaction)
    return operation.number


def take_back(store: Store, number: Modseq) -> UndoProgress:
    *_, progress = undo(store, logged(store.index, number))
    return progress


class Facts(NamedTuple):
    flags: int
    expunged: int
    keywords: frozenset[Keyword]


def facts(store: Store, docid: Docid) -> Facts:
    row = store.index.entry(docid, live=False)
    (summary,) = store.index.summaries([docid])
    return Facts(row.flags, row.expunged, frozenset(summary.keywords))


# --- messages


def test_flags_and_keywords_are_as_before(store: Store, deliver: Deliver) -> None:
    docid = deliver(flags=SEEN, keywords=["todo"])
    before = facts(store, docid)

    def work(tx: Transaction) -> None:
        tx.edit_flags(docid, FLAGGED | DELETED, SEEN)
        tx.edit_keywords(docid, [DONE], [TODO])

    number = do(store, work)
    assert take_back(store, number) == UndoProgress(restored=1)
    assert facts(store, docid) == before


def test_an_expunged_message_is_back_with_its_marks(store: Store, deliver: Deliver) -> None:
    docid = deliver(flags=SEEN | DELETED, keywords=["todo"])
    before = facts(store, docid)
    number = do(store, lambda tx: tx.expunge(docid))
    assert take_back(store, number) == UndoProgress(restored=1)
    assert facts(store, docid) == before


def test_what_was_brought_back_is_expunged_since_it_was_at_first(
    store: Store, deliver: Deliver
) -> None:
    docid = deliver(keywords=["todo"])
    do(store, lambda tx: tx.set_expunged(docid, 1000))
    before = facts(store, docid)
    number = do(store, lambda tx: tx.revive(docid))
    take_back(store, number)
    assert facts(store, docid) == before == Facts(0, 1000, frozenset({TODO}))


def test_other_changes_of_a_message_since_then_stay(store: Store, deliver: Deliver) -> None:
    docid = deliver()
    number = do(store, lambda tx: tx.edit_keywords(docid, add=[TODO]))
    do(store, lambda tx: tx.edit_flags(docid, SEEN, 0))
    do(store, lambda tx: tx.edit_keywords(docid, add=[DONE]))
    assert take_back(store, number) == UndoProgress(restored=1)
    assert facts(store, docid) == Facts(SEEN, 0, frozenset({DONE}))


def test_a_message_changed_since_in_the_same_thing_is_left_alone(
    store: Store, deliver: Deliver
) -> None:
    kept, restored = deliver(), deliver()

    def tag(tx: Transaction) -> None:
        for docid in (kept, restored):
            tx.edit_keywords(docid, add=[TODO, WORK])

    number = do(store, tag)
    do(store, lambda tx: tx.edit_keywords(kept, remove=[TODO]))
    assert take_back(store, number) == UndoProgress(restored=1, kept=1)
    assert facts(store, kept).keywords == {WORK}
    assert facts(store, restored).keywords == set()


def test_a_message_removed_since_is_left_alone(store: Store, deliver: Deliver) -> None:
    docid = deliver()
    number = do(store, lambda tx: tx.edit_flags(docid, FLAGGED, 0))
    do(store, lambda tx: tx.expunge(docid))
    progress = take_back(store, number)
    assert progress == UndoProgress(kept=1)
    assert progress.is_refused
    assert facts(store, docid).flags == FLAGGED


def test_a_mark_that_comes_back_is_said_of_the_message(store: Store, deliver: Deliver) -> None:
    docid = deliver()
    search_id = store.index.search("all").search_id

    def mark(tx: Transaction) -> None:
        tx.entries.put(search_id, docid, ChosenName(b"a", b"T"))
        tx.edit_flags(docid, DELETED | DELETED_BY_ENTRY, 0)

    marked = do(store, mark)

    def settle(tx: Transaction) -> None:
        tx.entries.remove(search_id, b"a")
        tx.settle_deleted(docid)

    settled = do(store, settle)
    assert facts(store, docid).flags == 0
    take_back(store, settled)
    assert facts(store, docid).flags == DELETED
    take_back(store, marked)
    assert facts(store, docid).flags == 0


# --- what was added


def test_what_was_added_is_expunged(store: Store, deliver: Deliver) -> None:
    before = deliver()
    added: list[Docid] = []

    def add(tx: Transaction) -> None:
        added.extend(tx.add(new_message(make_message(100 + n))).docid for n in range(4))

    number = do(store, add)
    do(store, lambda tx: tx.expunge(added[3]))
    do(store, lambda tx: tx.edit_flags(added[2], FLAGGED, 0))
    do(store, lambda tx: tx.edit_flags(added[1], SEEN, 0))
    assert take_back(store, number) == UndoProgress(expunged=2, kept=1)
    assert docids_of(store) == [before, added[2]]


def test_what_was_changed_and_changed_back_was_not_changed(store: Store) -> None:
    number = do(store, lambda tx: tx.add(new_message(make_message(1), SEEN)))
    tagged = do(store, lambda tx: tx.edit_keywords(Docid(1), add=[TODO]))
    take_back(store, tagged)
    assert take_back(store, number) == UndoProgress(expunged=1)


def test_an_undo_can_be_taken_back(store: Store) -> None:
    number = do(store, lambda tx: tx.add(new_message(make_message(1), SEEN)))
    take_back(store, number)
    undone = logged(store.index, number)
    assert undone.undone_by
    assert logged(store.index, undone.undone_by).undoes == number
    assert logged(store.index, undone.undone_by).reason == f"undo {number}"
    take_back(store, undone.undone_by)
    assert docids_of(store) == [1]
    assert logged(store.index, number).undone_by == 0


# --- slices


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message each."""
    monkeypatch.setattr(undo_module, "SLICE_S", 0.0)


@pytest.mark.usefixtures("small_slices")
def test_an_undo_in_slices_is_one_operation(store: Store, deliver: Deliver) -> None:
    docids = [deliver() for _ in range(3)]

    def work(tx: Transaction) -> None:
        for docid in docids:
            tx.edit_flags(docid, SEEN, 0)
        for number in range(3):
            tx.add(new_message(make_message(100 + number)))

    number = do(store, work)
    steps = sum(1 for _ in undo(store, logged(store.index, number)))
    assert steps == 1 + 3 + 3
    undone = logged(store.index, logged(store.index, number).undone_by)
    assert undone.counts == Counts(flagged=3, expunged=3)


@pytest.mark.usefixtures("small_slices")
def test_an_undo_cut_off_is_finished_by_the_next(store: Store, deliver: Deliver) -> None:
    docids = [deliver() for _ in range(3)]

    def work(tx: Transaction) -> None:
        tx.searches.save("work", "tag:work")
        for docid in docids:
            tx.edit_flags(docid, SEEN, 0)
        tx.add(new_message(make_message(100)))

    number = do(store, work)
    begun = undo(store, logged(store.index, number))
    next(begun), next(begun)
    del begun
    assert take_back(store, number) == UndoProgress(restored=2, expunged=1)
    assert docids_of(store, "is:unread") == docids
    assert [search.name for search in store.index.searches()].count("work") == 0


@pytest.mark.usefixtures("small_slices")
def test_what_somebody_changes_between_two_slices_is_kept(store: Store) -> None:
    def add(tx: Transaction) -> None:
        for number in range(4):
            tx.add(new_message(make_message(number)))

    begun = undo(store, logged(store.index, do(store, add)))
    next(begun), next(begun)
    do(store, lambda tx: tx.edit_keywords(Docid(3), add=[TODO]))
    *_, progress = begun
    assert progress == UndoProgress(expunged=3, kept=1)
    assert docids_of(store) == [3]


# --- searches


def searches(store: Store) -> list[tuple[int, str, str, str]]:
    def row(search: SavedSearch) -> tuple[int, str, str, str]:
        return search.search_id, search.name, search.query, search.on_rm

    return [row(search) for search in store.index.searches()]


def test_a_forgotten_search_is_back_with_its_number(store: Store) -> None:
    do(store, lambda tx: tx.searches.save("work", "tag:work", "refuse"))
    before = searches(store)
    number = do(store, lambda tx: tx.searches.forget("work"))
    assert take_back(store, number) == UndoProgress(searches=1)
    assert searches(store) == before


def test_a_saved_search_is_forgotten_unless_files_wait_in_it(store: Store) -> None:
    number = do(store, lambda tx: tx.searches.save("work", "tag:work"))
    spool = store.layout.spool / str(store.index.search("work").search_id)
    for folder in (store.layout.spool, spool):
        folder.mkdir(mode=0o700)
    (spool / "waits").touch(mode=0o600)
    progress = take_back(store, number)
    assert "not stored yet" in progress.refused
    assert progress.is_refused
    (spool / "waits").unlink()
    assert take_back(store, number) == UndoProgress(searches=1)
    with pytest.raises(NoSuchSearch):
        store.index.search("work")


def test_a_renamed_search_and_its_keyword_have_their_old_names(
    store: Store, deliver: Deliver
) -> None:
    live, expunged, both = deliver(keywords=["work"]), deliver(keywords=["job"]), deliver()
    do(store, lambda tx: tx.edit_keywords(both, add=[WORK, JOB]))
    do(store, lambda tx: (tx.expunge(expunged), tx.expunge(both)))
    do(store, lambda tx: tx.searches.save("work", "tag:work"))
    before = [facts(store, docid) for docid in (live, expunged, both)], searches(store)

    def rename(tx: Transaction) -> None:
        tx.rename_keyword(WORK, JOB)
        tx.searches.rename("work", "job", "tag:job")

    number = do(store, rename)
    after = [facts(store, docid) for docid in (live, expunged, both)], searches(store)
    take_back(store, number)
    assert ([facts(store, docid) for docid in (live, expunged, both)], searches(store)) == before
    take_back(store, logged(store.index, number).undone_by)
    assert ([facts(store, docid) for docid in (live, expunged, both)], searches(store)) == after


@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda tx: tx.searches.rename("job", "task", "tag:task"),
        lambda tx: tx.searches.forget("job"),
        lambda tx: tx.searches.save("work", "from:ann"),
        lambda tx: tx.edit_keywords(Docid(2), add=[WORK]),
    ],
)
def test_searches_changed_since_stay_and_their_keyword_with_them(
    store: Store, deliver: Deliver, meanwhile: Callable[[Transaction], object]
) -> None:
    docid = deliver(keywords=["work"])
    deliver()
    do(store, lambda tx: tx.searches.save("work", "tag:work"))

    def rename(tx: Transaction) -> None:
        tx.rename_keyword(WORK, JOB)
        tx.searches.rename("work", "job", "tag:job")

    number = do(store, rename)
    do(store, meanwhile)
    before = searches(store)
    progress = take_back(store, number)
    assert progress.is_refused
    assert progress.refused
    assert searches(store) == before
    assert facts(store, docid).keywords == {JOB}


# --- which


def test_the_newest_that_is_no_undo_and_was_not_undone_is_the_one(
    store: Store, deliver: Deliver
) -> None:
    first = do(store, lambda tx: tx.searches.save("a", "*"))
    docid = deliver()
    second = do(store, lambda tx: tx.edit_flags(docid, SEEN, 0))
    assert newest_to_undo(store.index).number == second
    take_back(store, second)
    take_back(store, newest_to_undo(store.index).number)
    assert newest_to_undo(store.index).number == first
    take_back(store, first)
    with pytest.raises(EditRefused, match="nothing"):
        newest_to_undo(store.index)


def test_what_was_reclaimed_is_gone(store: Store, deliver: Deliver) -> None:
    docid, other = deliver(), deliver()
    expunged = do(store, lambda tx: (tx.expunge(docid), tx.expunge(other)))
    reclaimed = do(store, lambda tx: tx.reclaim([docid]))
    assert newest_to_undo(store.index).number == expunged
    with pytest.raises(EditRefused, match="gone for good"):
        take_back(store, reclaimed)
    assert take_back(store, expunged) == UndoProgress(restored=1, gone=1)
    assert docids_of(store) == [other]


# --- everything, in any order

_WORDS = st.sets(st.sampled_from((TODO, DONE, WORK)), max_size=2)
_BITS = st.sampled_from((0, SEEN, FLAGGED, DELETED, RECENT, SEEN | FLAGGED))
_DOCID = st.integers(1, 6).map(Docid)
_NAME = st.sampled_from(("a", "b", "c"))
# What other writers change between, and no operation does.
_THEIRS = Keyword("theirs")
_THEIR_FLAG = ANSWERED


class Step(NamedTuple):
    """A method of Transaction, or of its searches, with what to call it with."""

    name: str
    arguments: tuple[object, ...]


_STEPS = st.one_of(
    st.tuples(_DOCID, _BITS, _BITS).map(lambda a: Step("edit_flags", a)),
    st.tuples(_DOCID, _WORDS, _WORDS).map(lambda a: Step("edit_keywords", a)),
    _DOCID.map(lambda docid: Step("expunge", (docid,))),
    _DOCID.map(lambda docid: Step("undelete", (docid,))),
    # It takes everything off, also what others put on: those others leave alone.
    st.integers(4, 6).map(lambda docid: Step("revive", (Docid(docid),))),
    st.integers(50, 55).map(lambda number: Step("add", (number,))),
    st.tuples(_NAME, _NAME).map(lambda a: Step("save", a)),
    _NAME.map(lambda name: Step("forget", (name,))),
    st.tuples(_NAME, _NAME).map(lambda a: Step("rename", a)),
)
_RENAMED = st.tuples(st.sampled_from((TODO, DONE, WORK)), st.sampled_from((TODO, DONE, WORK))).map(
    lambda a: Step("rename_keyword", a)
)
_SLICES = st.lists(st.lists(_STEPS, min_size=1, max_size=4), min_size=1, max_size=3)
# A keyword is renamed by an operation of its own, as by mv of a directory.
_OPERATIONS = st.lists(
    st.one_of(_SLICES, _RENAMED.map(lambda step: [[step]])), min_size=1, max_size=6
)


def take_step(tx: Transaction, step: Step) -> None:
    match step:
        case Step("add", (int(number),)):
            tx.add(new_message(make_message(number)))
        case Step("save", (str(name), str(query))):
            tx.searches.save(name, f"tag:{query}", replace=True)
        case Step("forget" | "rename" as what, (str(name), *rest)):
            if what == "forget":
                tx.searches.forget(name)
            else:
                tx.searches.rename(name, str(rest[0]), f"tag:{rest[0]}")
        case Step(name, arguments):
            getattr(tx, name)(*arguments)


def play(store: Store, slices: Iterable[list[Step]]) -> Modseq:
    """One operation; a slice that cannot be is left out, as by a client who is told so."""
    operation = Operation("test")
    for steps in slices:
        try:
            with store.writer.transaction("test", durable=True, operation=operation) as tx:
                for step in steps:
                    take_step(tx, step)
        except (SearchExists, NoSuchSearch, KeywordInUse):
            continue
    return operation.number


def touch(store: Store, docid: Docid) -> None:
    """Another writer, about a message of the beginning."""

    def change(tx: Transaction) -> None:
        tx.edit_flags(docid, _THEIR_FLAG, 0)
        tx.edit_keywords(docid, add=[_THEIRS])

    with Store.open(store.layout.root) as other:
        do(other, change)


def whole_state(store: Store) -> tuple[dict[Docid, Facts], list[tuple[int, str, str, str]]]:
    """Without what other writers change."""
    rows = store.index.changes_since(Modseq(0))
    found = {row.docid: facts(store, row.docid) for row in rows}
    messages = {
        docid: Facts(
            each.flags & ~_THEIR_FLAG & ~DELETED_BY_ENTRY, each.expunged, each.keywords - {_THEIRS}
        )
        for docid, each in found.items()
    }
    return messages, searches(store)


@given(
    operations=_OPERATIONS, touched=st.lists(st.integers(1, 3).map(Docid), min_size=6, max_size=6)
)
@settings(max_examples=60, deadline=None)
def test_operations_undone_in_reverse_leave_what_was_before(
    operations: list[list[list[Step]]], touched: list[Docid]
) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        Store.create(Path(folder) / "store") as store,
    ):
        with store.writer.transaction("test", durable=True) as tx:
            for number in range(1, 7):
                docid = tx.add(new_message(make_message(number), SEEN if number % 2 else 0)).docid
                tx.edit_keywords(docid, add=[(TODO, DONE, WORK)[number % 3]])
            tx.set_expunged(Docid(5), 1000)
            tx.set_expunged(Docid(6), 2000)
        before = whole_state(store)
        numbers = []
        for slices, docid in zip(operations, touched, strict=False):
            numbers.append(play(store, slices))
            touch(store, docid)
        for number in reversed(list(filter(None, numbers))):
            progress = take_back(store, number)
            assert (progress.kept, progress.gone, progress.refused) == (0, 0, "")
        messages, named = whole_state(store)
        assert {docid: messages[docid] for docid in before[0]} == before[0]
        assert all(messages[docid].expunged for docid in messages.keys() - before[0].keys())
        assert named == before[1]
        assert problems_of(store) == []
