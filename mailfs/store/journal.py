"""The journal as a write transaction writes it: what changed, who wanted it, and why. store/upkeep/log.py reads it.

A row says what was before and after, so that it can be taken back. Names that clients chose are not journaled, and neither
are threads. What cannot be read from a row is no mail text: a reason names views, keywords and paths.
"""

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import apsw

from mailfs.ids import Docid, Keyword, Modseq
from mailfs.store.lock import command_of
from mailfs.store.stamp import Stamp

# What an event says of a saved search, or of the rest: by its keys.
Facts = Mapping[str, str | int]

SEARCH = "search"  # before or after is empty where it was made or forgotten
KEYWORD = "keyword"  # renamed on all messages
RECLAIMED = "reclaimed"  # expired; only after
REPAIRED = "repaired"  # by a verify; only after: where, what was wrong, and what was done

NO_OPERATION = Modseq(0)
_MAX_REASON_CHARS = 500


class Actor(NamedTuple):
    """The process that wanted a change. The pid is 0, and the command '', where that is not known."""

    pid: int
    command: str


def this_process() -> Actor:
    """Who acts where nobody else is named."""
    return _this_process(os.getpid())


@functools.lru_cache(maxsize=1)
def _this_process(pid: int) -> Actor:
    return Actor(pid, command_of(pid))


@dataclass(slots=True, eq=False)
class Operation:
    """One command of somebody, in however many transactions: one line of `mailfs log`. For one thread at a time.

    `undoes` is the operation it takes back, else 0. `number` is 0 until a transaction that changed something has been
    committed, then that one's modseq.
    """

    reason: str
    actor: Actor = field(default_factory=this_process)
    undoes: Modseq = NO_OPERATION
    number: Modseq = NO_OPERATION


class Change:
    """What a transaction does to one message that was there before."""

    __slots__ = (
        "added",
        "expunged_after",
        "expunged_before",
        "flags_after",
        "flags_before",
        "removed",
    )

    def __init__(self, flags: int, expunged: int) -> None:
        self.flags_before = self.flags_after = flags
        self.expunged_before = self.expunged_after = expunged
        self.added: set[Keyword] = set()
        self.removed: set[Keyword] = set()

    def put_on(self, keyword: Keyword) -> None:
        """The message got a keyword of the user's own."""
        if keyword in self.removed:
            self.removed.discard(keyword)
        else:
            self.added.add(keyword)

    def take_off(self, keyword: Keyword) -> None:
        """The message lost one."""
        if keyword in self.added:
            self.added.discard(keyword)
        else:
            self.removed.add(keyword)

    @property
    def is_none(self) -> bool:
        """Everything is as it was before."""
        return (
            self.flags_before == self.flags_after
            and self.expunged_before == self.expunged_after
            and not self.added
            and not self.removed
        )


class JournalRows:
    """The journal of one write transaction: kept in memory, written at its end."""

    def __init__(self, connection: apsw.Connection, stamp: Stamp, operation: Operation) -> None:
        self._sql = connection
        self._stamp = stamp
        self._operation = operation
        self._changes: dict[Docid, Change] = {}
        self._events: list[tuple[str, str, str]] = []
        self._has_row = False

    def change_of(self, docid: Docid, flags: int, expunged: int) -> Change:
        """The change of a message, whose flags and expunged are these so far."""
        change = self._changes.get(docid)
        if change is None:
            change = self._changes[docid] = Change(flags, expunged)
        return change

    def add_event(self, what: str, before: Facts | None, after: Facts | None) -> None:
        """Something happened that concerns no single message."""
        self._events.append((what, _text(before), _text(after)))

    def forget_messages(self, docids: frozenset[Docid]) -> None:
        """These messages are gone for good: no word of what this transaction did to them."""
        for docid in docids & self._changes.keys():
            del self._changes[docid]

    def forget(self, modseq: Modseq) -> None:
        """Drop what an old transaction wrote. No reader need notice."""
        for table in ("journal", "journal_change", "journal_event"):
            self._sql.execute(f"DELETE FROM {table} WHERE modseq = ?", (modseq,))
        self._stamp.must_commit = True

    def write(self, first_added: Docid, next_docid: Docid) -> None:
        """Put the rows in; none where nothing was changed that is journaled. The docids added are a half open range."""
        modseq, operation = self._stamp.modseq, self._operation
        rows = [
            (
                modseq,
                docid,
                change.flags_before,
                change.flags_after,
                change.expunged_before,
                change.expunged_after,
                " ".join(sorted(change.added)),
                " ".join(sorted(change.removed)),
            )
            for docid, change in self._changes.items()
            # One that was added in this very transaction was not there before.
            if docid < first_added and not change.is_none
        ]
        has_added = next_docid > first_added
        if not rows and not has_added and not self._events:
            return
        self._has_row = True
        self._sql.execute(
            "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                modseq,
                operation.number or modseq,
                self._stamp.now_ns,
                operation.actor.pid,
                operation.actor.command,
                _storable(operation.reason),
                first_added if has_added else 0,
                next_docid - 1 if has_added else 0,
                operation.undoes,
            ),
        )
        if rows:
            self._sql.executemany(
                "INSERT INTO journal_change VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows
            )
        if self._events:
            self._sql.executemany(
                "INSERT INTO journal_event VALUES (?, ?, ?, ?, ?)",
                [(modseq, number, *event) for number, event in enumerate(self._events)],
            )

    def committed(self) -> None:
        """The transaction has been committed: from now on the operation has a number, if it has a row."""
        if not self._operation.number and self._has_row:
            self._operation.number = self._stamp.modseq


def _text(facts: Facts | None) -> str:
    return "" if facts is None else json.dumps(facts, ensure_ascii=False)


def _storable(reason: str) -> str:
    """A path need not be UTF-8."""
    return reason[:_MAX_REASON_CHARS].encode(errors="backslashreplace").decode()
