"""Reclaiming what was expunged long ago, and forgetting what the journal says of those times.

In slices, so that nobody waits long. What a slice reclaimed is gone for good; cut off, the next run goes on. The packs
get smaller only when they are compacted.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from mailfs.ids import Docid, Modseq
from mailfs.store.index import Index
from mailfs.store.journal import Operation
from mailfs.store.source import Rows
from mailfs.store.store import Store
from mailfs.store.writer import SLICE_S

# Deleted between two looks at the clock: some milliseconds.
_BATCH = 25
_NS = 1_000_000_000


@dataclass(slots=True)
class ExpireProgress:
    """What has been reclaimed so far. `stored_bytes` are those given up in the packs; `journal` transactions forgotten."""

    messages: int = 0
    stored_bytes: int = 0
    journal: int = 0


class Expunged(NamedTuple):
    """Messages that were expunged in the same second (since 1970), and their bytes."""

    expunged: int
    messages: int
    size: int


def expunged_by_time(index: Index) -> list[Expunged]:
    """What expire will reclaim some day, the oldest first."""
    return [
        Expunged(*row)
        for row in index.rows(
            "SELECT expunged, count(*), sum(size) FROM message INDEXED BY message_expunged "
            "WHERE expunged <> 0 GROUP BY expunged ORDER BY expunged"
        )
    ]


def expire(
    store: Store,
    until_s: float,
    *,
    deadline_s: float | None = None,
) -> Iterator[ExpireProgress]:
    """Reclaim what was expunged before a time (seconds since 1970); progress after each slice, and once at least.

    Each slice holds the writer lock for about SLICE_S, and waits for it for at most `deadline_s`. Raises Busy,
    StoreError; what earlier slices did stays.
    """
    progress = ExpireProgress()
    operation = Operation("expire")
    # Looked for without the lock: mostly there is nothing to do.
    while _due(store.index, until_s):
        with store.writer.transaction(
            "expire", durable=True, deadline_s=deadline_s, operation=operation
        ) as transaction:
            give_up = time.monotonic() + SLICE_S
            while docids := _due(transaction, until_s):
                reclaimed = transaction.reclaim(docids, until_s)
                progress.messages += reclaimed.messages
                progress.stored_bytes += reclaimed.stored_bytes
                if time.monotonic() >= give_up:
                    break
        yield progress
    yield progress
    yield from _forget_journal(store, until_s, progress, deadline_s)


def _due(index: Rows, until_s: float) -> list[Docid]:
    """Some of the messages to reclaim, those first that were expunged first."""
    return [
        Docid(row[0])
        for row in index.rows(
            "SELECT docid FROM message INDEXED BY message_expunged "
            "WHERE expunged <> 0 AND expunged < ? ORDER BY expunged LIMIT ?",
            (until_s, _BATCH),
        )
    ]


def _forget_journal(
    store: Store,
    until_s: float,
    progress: ExpireProgress,
    deadline_s: float | None,
) -> Iterator[ExpireProgress]:
    """An operation goes with its first transaction: from then on it is not in the log."""
    modseqs = [
        Modseq(row[0])
        for row in store.index.rows(
            "SELECT modseq FROM journal WHERE time_ns < ? ORDER BY modseq", (int(until_s * _NS),)
        )
    ]
    while progress.journal < len(modseqs):
        with store.writer.transaction(
            "expire", durable=False, deadline_s=deadline_s
        ) as transaction:
            give_up = time.monotonic() + SLICE_S
            while progress.journal < len(modseqs):
                transaction.forget_journal(modseqs[progress.journal])
                progress.journal += 1
                if time.monotonic() >= give_up:
                    break
        yield progress
