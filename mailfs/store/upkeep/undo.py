"""Taking an operation back: whatever it did is made as it was before, and what others changed since is kept.

A message is taken back as a whole or not at all: when all that the operation changed of it is still as the operation
left it. Other changes of the same message stay. Messages it added are expunged, unless somebody has changed more of
them since than that they were seen. Searches and keywords renamed with them are taken back all together or not at all,
and first: an operation that renames a keyword puts none on and takes none off.

In slices, each of which survives the death of any process; an undo that was cut off is finished when it is run again.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from mailfs.errors import EditRefused, KeywordInUse, NoSuchSearch, SearchExists
from mailfs.ids import Docid, Keyword, Modseq, SearchId
from mailfs.message.keywords import DELETED, DELETED_BY_ENTRY, RECENT, SEEN
from mailfs.store.index import Index
from mailfs.store.journal import KEYWORD, RECLAIMED, REPAIRED, SEARCH, Operation
from mailfs.store.saved import SearchRow, check_nothing_spooled
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from mailfs.store.upkeep.log import (
    Event,
    LoggedOperation,
    NetChange,
    Range,
    changes_by_others,
    events,
    iter_changes,
    iter_log,
    ranges,
)
from mailfs.store.writer import SLICE_S

# An entry's T is not journaled: a mark that comes back is said of the message itself.
_IGNORED = DELETED_BY_ENTRY
# To have been seen is not to have been changed.
_LOOKED_AT = SEEN | RECENT | DELETED_BY_ENTRY


@dataclass(slots=True)
class UndoProgress:
    """What has been taken back so far, and what is left as it is.

    kept     messages that somebody changed since
    gone     messages that have been reclaimed
    refused  why the searches are left as they are; '' where they are not
    """

    restored: int = 0
    expunged: int = 0
    searches: int = 0
    kept: int = 0
    gone: int = 0
    refused: str = ""

    @property
    def is_refused(self) -> bool:
        """Nothing has been taken back, because nothing could be."""
        done = self.restored or self.expunged or self.searches
        return not done and bool(self.kept or self.gone or self.refused)


def newest_to_undo(index: Index) -> LoggedOperation:
    """The newest operation that is no undo, was not undone, and can be. Raises EditRefused where there is none."""
    for operation in iter_log(index):
        if operation.counts.has_undoable and not operation.undoes and not operation.undone_by:
            return operation
    raise EditRefused("the journal has nothing that could be undone: see `mailfs log`")


def undo(store: Store, operation: LoggedOperation) -> Iterator[UndoProgress]:
    """Take an operation back; progress after each slice. `store` is used by nobody else meanwhile.

    Raises EditRefused for one that only reclaimed, Busy, StoreError; what earlier slices did stays.
    """
    if operation.counts.reclaimed and not operation.counts.has_undoable:
        raise EditRefused(f"what operation {operation.number} reclaimed is gone for good")
    undoing = Operation(f"undo {operation.number}", undoes=operation.number)
    progress = UndoProgress()
    _undo_events(store, operation.number, undoing, progress)
    yield progress
    yield from _undo_changes(store, operation.number, undoing, progress)
    for added in ranges(store.index, operation.number):
        yield from _expunge_added(store, operation.number, added, undoing, progress)
    store.writer.sync()


# --- searches


def _undo_events(store: Store, number: Modseq, undoing: Operation, progress: UndoProgress) -> None:
    found = [
        event for event in events(store.index, number) if event.what not in (RECLAIMED, REPAIRED)
    ]
    if not found:
        return
    try:
        with store.writer.transaction("undo", durable=True, operation=undoing) as transaction:
            if _are_as_before(transaction, found):
                return
            _check_unchanged(transaction, found)
            for event in reversed(found):
                _undo_event(store, transaction, event)
    except (SearchExists, NoSuchSearch, KeywordInUse, EditRefused) as error:
        progress.refused = str(error)
    else:
        progress.searches = len({event_id(event) for event in found if event.what == SEARCH})


def event_id(event: Event) -> tuple[str, str | int]:
    """Which search an event is about, or which keyword."""
    facts = event.before or event.after
    return event.what, facts["search_id"] if event.what == SEARCH else facts["name"]


def _row_or_none(facts: dict[str, str | int]) -> SearchRow | None:
    if not facts:
        return None
    return SearchRow(
        SearchId(int(facts["search_id"])),
        str(facts["name"]),
        str(facts["query"]),
        str(facts["on_rm"]),
    )


def _ends(found: list[Event]) -> dict[SearchId, tuple[SearchRow | None, SearchRow | None]]:
    """Each search as it was before all of these events, and after."""
    ends: dict[SearchId, tuple[SearchRow | None, SearchRow | None]] = {}
    for event in found:
        if event.what == SEARCH:
            before, after = _row_or_none(event.before), _row_or_none(event.after)
            search_id = SearchId(int(event_id(event)[1]))
            first = ends.get(search_id, (before, None))[0]
            ends[search_id] = (first, after)
    return ends


def _are_as_before(transaction: Transaction, found: list[Event]) -> bool:
    """An undo that was cut off behind this has done it already."""
    ends = _ends(found)
    return bool(ends) and all(
        transaction.searches.by_number_or_none(search_id) == before
        for search_id, (before, _) in ends.items()
    )


def _check_unchanged(transaction: Transaction, found: list[Event]) -> None:
    """Raises EditRefused where somebody has changed one of the searches since."""
    for search_id, (before, after) in _ends(found).items():
        if transaction.searches.by_number_or_none(search_id) != after:
            named = after or before
            assert named is not None
            raise EditRefused(f"the search {named.name} was changed since")


def _undo_event(store: Store, transaction: Transaction, event: Event) -> None:
    if event.what == KEYWORD:
        old, new = str(event.before["name"]), str(event.after["name"])
        had = frozenset(Docid(int(docid)) for docid in str(event.after["had"]).split())
        transaction.rename_keyword(Keyword(new), Keyword(old), had)
        return
    before, after = _row_or_none(event.before), _row_or_none(event.after)
    if before is not None:
        transaction.searches.put_back(before)
    elif after is not None:
        check_nothing_spooled(store.layout, after.search_id)
        transaction.searches.forget(after.name)


# --- messages


def _undo_changes(
    store: Store, number: Modseq, undoing: Operation, progress: UndoProgress
) -> Iterator[UndoProgress]:
    left = iter_changes(store.index, number)
    change = next(left, None)
    while change is not None:
        with store.writer.transaction("undo", durable=False, operation=undoing) as transaction:
            give_up = time.monotonic() + SLICE_S
            while change is not None:
                _undo_change(transaction, change, progress)
                change = next(left, None)
                if time.monotonic() >= give_up:
                    break
        yield progress


def _undo_change(transaction: Transaction, change: NetChange, progress: UndoProgress) -> None:
    docid = change.docid
    state = transaction.state_or_none(docid)
    if state is None:
        progress.gone += 1
        return
    flags, expunged = state
    bits = (change.flags_before ^ change.flags_after) & ~_IGNORED
    concerned = transaction.keywords(docid) & (change.added | change.removed)
    now = (flags & bits, expunged, concerned)
    if now == (change.flags_before & bits, change.expunged_before, change.removed):
        return  # as it was before already
    if now != (change.flags_after & bits, change.expunged_after, change.added):
        progress.kept += 1
        return
    transaction.set_expunged(docid, change.expunged_before)
    transaction.edit_keywords(docid, change.removed, change.added)
    cleared = bits & ~change.flags_before
    if cleared & DELETED:
        cleared |= DELETED_BY_ENTRY
    transaction.edit_flags(docid, bits & change.flags_before, cleared)
    progress.restored += 1


def _expunge_added(
    store: Store, number: Modseq, added: Range, undoing: Operation, progress: UndoProgress
) -> Iterator[UndoProgress]:
    docid = added.first
    changed: set[Docid] = set()
    seen: Modseq | None = None
    while docid <= added.last:
        with store.writer.transaction("undo", durable=False, operation=undoing) as transaction:
            give_up = time.monotonic() + SLICE_S
            before = Modseq(transaction.modseq - 1)
            if before != seen:  # somebody else was here
                changed = _changed_since(transaction, number, added)
            while docid <= added.last:
                if docid in changed and transaction.is_live(docid):
                    progress.kept += 1
                elif transaction.expunge(docid):
                    progress.expunged += 1
                docid = Docid(docid + 1)
                if time.monotonic() >= give_up:
                    break
            seen = transaction.modseq if transaction.changed else before
        yield progress


def _changed_since(transaction: Transaction, number: Modseq, added: Range) -> set[Docid]:
    return {
        change.docid
        for change in changes_by_others(transaction, number, added)
        if change.added
        or change.removed
        or change.expunged_before != change.expunged_after
        or (change.flags_before ^ change.flags_after) & ~_LOOKED_AT
    }
