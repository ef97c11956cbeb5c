"""What the journal says: operations, what each did, and whether it has been taken back."""

import json
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from mailfs.errors import NotFound
from mailfs.ids import Docid, Keyword, Modseq
from mailfs.search.plan import Plan
from mailfs.store.database import Row
from mailfs.store.index import Index, Which
from mailfs.store.journal import RECLAIMED, REPAIRED, Actor
from mailfs.store.source import Rows


class Counts(NamedTuple):
    """How many messages an operation did something to; one may be in several. Searches made, changed or forgotten, too."""

    added: int = 0
    expunged: int = 0
    undeleted: int = 0
    flagged: int = 0  # a flag set or cleared
    tagged: int = 0  # a keyword of the user's own put on or taken off
    searches: int = 0
    reclaimed: int = 0

    @property
    def has_undoable(self) -> bool:
        """Something that could be taken back: not what was reclaimed or repaired."""
        return any(self._replace(reclaimed=0))


class LoggedOperation(NamedTuple):
    """One command of somebody. `number` is the modseq of its first transaction, at `time_ns`.

    `undoes` is the operation it took back, `undone_by` the one that took it back and was not taken back itself; else 0.
    """

    number: Modseq
    time_ns: int
    actor: Actor
    reason: str
    undoes: Modseq
    undone_by: Modseq
    counts: Counts


class NetChange(NamedTuple):
    """What all slices of an operation did to one message that was there before."""

    docid: Docid
    flags_before: int
    flags_after: int
    expunged_before: int
    expunged_after: int
    added: frozenset[Keyword]
    removed: frozenset[Keyword]


class Event(NamedTuple):
    """What an operation did to no single message, by the names of journal.py; both are empty where there was nothing."""

    what: str
    before: dict[str, str | int]
    after: dict[str, str | int]


class Range(NamedTuple):
    """Docids of messages that were added, both included."""

    first: Docid
    last: Docid


# The transactions of an operation.
_OF_OPERATION = (
    "modseq IN (SELECT ?1 UNION ALL "
    "SELECT modseq FROM journal WHERE operation = ?1 AND operation <> modseq)"
)


def iter_log(index: Index, plan: Plan | None = None) -> Iterator[LoggedOperation]:
    """All operations, newest first; with a plan those that touched messages, live or expunged, that match now."""
    touched = None if plan is None else _operations_of(index, plan)
    undone = _undone(index)
    numbers = [
        Modseq(row[0])
        for row in index.rows(
            "SELECT modseq FROM journal WHERE operation = modseq ORDER BY modseq DESC"
        )
    ]
    for number in numbers:
        if touched is None or number in touched:
            yield _operation(index, number, undone)


def logged(index: Index, number: Modseq) -> LoggedOperation:
    """One operation by its number. Raises NotFound."""
    if not index.rows("SELECT 1 FROM journal WHERE modseq = ? AND operation = modseq", (number,)):
        raise NotFound(f"no operation {number} in the journal: see `mailfs log`")
    return _operation(index, number, _undone(index))


def _operation(index: Rows, number: Modseq, undone: dict[Modseq, Modseq]) -> LoggedOperation:
    time_ns, pid, command, reason, undoes = index.rows(
        "SELECT time_ns, pid, command, reason, undoes FROM journal WHERE modseq = ?", (number,)
    )[0]
    return LoggedOperation(
        number,
        time_ns,
        Actor(pid, command),
        reason,
        Modseq(undoes),
        undone.get(number, Modseq(0)),
        _counts(index, number),
    )


def _counts(index: Rows, number: Modseq) -> Counts:
    expunged, undeleted, flagged, tagged = index.rows(
        "SELECT count(DISTINCT CASE WHEN expunged_before = 0 AND expunged_after <> 0 THEN docid END), "
        "count(DISTINCT CASE WHEN expunged_before <> 0 AND expunged_after = 0 THEN docid END), "
        "count(DISTINCT CASE WHEN flags_before <> flags_after THEN docid END), "
        "count(DISTINCT CASE WHEN added <> '' OR removed <> '' THEN docid END) "
        f"FROM journal_change WHERE {_OF_OPERATION}",
        (number,),
    )[0]
    found = events(index, number)
    return Counts(
        added=sum(each.last - each.first + 1 for each in ranges(index, number)),
        expunged=expunged,
        undeleted=undeleted,
        flagged=flagged,
        tagged=tagged,
        searches=sum(event.what not in (RECLAIMED, REPAIRED) for event in found),
        reclaimed=sum(int(e.after["messages"]) for e in found if e.what == RECLAIMED),
    )


def _undone(index: Rows) -> dict[Modseq, Modseq]:
    """What has been taken back, and by which operation."""
    found: dict[Modseq, Modseq] = {}
    # An undo may have been taken back itself, by a later one.
    for number, undoes in index.rows(
        "SELECT modseq, undoes FROM journal WHERE undoes <> 0 AND operation = modseq "
        "ORDER BY modseq DESC"
    ):
        if number not in found:
            found.setdefault(undoes, number)
    return found


def _operations_of(index: Index, plan: Plan) -> set[Modseq]:
    """Those that touched a message that matches."""
    docids = index.docids(plan, which=Which.ALL)
    found = {
        Modseq(row[0])
        for row in index.rows(
            "SELECT DISTINCT operation FROM journal JOIN journal_change USING (modseq) "
            f"WHERE docid IN (SELECT docid FROM message WHERE {plan.where})",
            plan.parameters,
        )
    }
    for operation, first, last in index.rows(
        "SELECT operation, first_added, last_added FROM journal WHERE first_added <> 0"
    ):
        position = bisect_left(docids, first)
        if position < len(docids) and docids[position] <= last:
            found.add(Modseq(operation))
    return found


# Some hundred kB of memory, and milliseconds, at a time.
_PIECE_DOCIDS = 2000
_CHANGE_COLUMNS = (
    "docid, flags_before, flags_after, expunged_before, expunged_after, added, removed"
)


def iter_changes(index: Rows, number: Modseq) -> Iterator[NetChange]:
    """What an operation did to messages that were there before, by docid. Read piece by piece, in as many statements."""
    first, last = index.rows(
        f"SELECT min(docid), max(docid) FROM journal_change WHERE {_OF_OPERATION}", (number,)
    )[0]
    if first is None:
        return
    for start in range(first, last + 1, _PIECE_DOCIDS):
        yield from _joined_by_docid(
            index.rows(
                f"SELECT {_CHANGE_COLUMNS} FROM journal_change WHERE {_OF_OPERATION} "
                "AND docid >= ?2 AND docid < ?3 ORDER BY docid, modseq",
                (number, start, start + _PIECE_DOCIDS),
            )
        )


def changes(index: Rows, number: Modseq) -> list[NetChange]:
    """The same, all at once."""
    return list(iter_changes(index, number))


def changes_by_others(index: Rows, number: Modseq, within: Range) -> list[NetChange]:
    """What later operations did to messages, by docid."""
    return _joined_by_docid(
        index.rows(
            f"SELECT {_CHANGE_COLUMNS} FROM journal_change JOIN journal USING (modseq) "
            "WHERE modseq > ? AND operation <> ? AND docid BETWEEN ? AND ? ORDER BY docid, modseq",
            (number, number, *within),
        )
    )


def _joined_by_docid(rows: list[Row]) -> list[NetChange]:
    found: dict[Docid, NetChange] = {}
    for change in map(_net_change, rows):
        before = found.get(change.docid)
        found[change.docid] = change if before is None else _joined(before, change)
    return list(found.values())


def _net_change(row: Row) -> NetChange:
    docid, flags_before, flags_after, expunged_before, expunged_after, added, removed = row
    return NetChange(
        Docid(docid),
        flags_before,
        flags_after,
        expunged_before,
        expunged_after,
        frozenset(map(Keyword, added.split())),
        frozenset(map(Keyword, removed.split())),
    )


def _joined(first: NetChange, then: NetChange) -> NetChange:
    """Two slices changed the same message."""
    return first._replace(
        flags_after=then.flags_after,
        expunged_after=then.expunged_after,
        added=(first.added - then.removed) | (then.added - first.removed),
        removed=(first.removed - then.added) | (then.removed - first.added),
    )


def ranges(index: Rows, number: Modseq) -> list[Range]:
    """The messages an operation added, in order."""
    return [
        Range(Docid(first), Docid(last))
        for first, last in index.rows(
            "SELECT first_added, last_added FROM journal "
            f"WHERE {_OF_OPERATION} AND first_added <> 0 ORDER BY modseq",
            (number,),
        )
    ]


def events(index: Rows, number: Modseq) -> list[Event]:
    """What an operation did besides, in order."""
    return [
        Event(what, json.loads(before or "{}"), json.loads(after or "{}"))
        for what, before, after in index.rows(
            f"SELECT what, before, after FROM journal_event WHERE {_OF_OPERATION} "
            "ORDER BY modseq, number",
            (number,),
        )
    ]
