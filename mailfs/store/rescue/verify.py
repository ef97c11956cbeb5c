"""The invariants of a store, each a check that yields what breaks it. The oracle of every test that writes.

Takes no lock: one read transaction holds the index still, and acknowledged pack bytes never change. Costs one read of
all packs. What is damaged is said, whatever it is: no check may end the others.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import apsw

from mailfs.errors import (
    Busy,
    Corrupt,
    FormatTooNew,
    NoDescriptors,
    StoreError,
    StoreFull,
    StoreMissing,
    StoreReadOnly,
)
from mailfs.store.database import open_reader, translated
from mailfs.store.layout import Layout
from mailfs.store.packs import PackReader
from mailfs.store.rescue.checks_files import (
    check_config,
    check_dump,
    check_files,
    check_waiting,
    check_wal,
    find_layout,
)
from mailfs.store.rescue.checks_index import (
    check_dictionaries,
    check_names,
    check_rows,
    check_searches,
    check_structure,
)
from mailfs.store.rescue.checks_packs import PackChecks
from mailfs.store.rescue.checks_words import WordChecks
from mailfs.store.rescue.findings import Finding, Kind, Severity, Step, problem
from mailfs.store.store import Store
from mailfs.store.upkeep.removal import keep_packs

__all__ = ["Counts", "Finding", "Kind", "Severity", "Step", "counts", "examine", "verify"]

# What keeps a store from being looked at, and says nothing about it.
_NOT_DAMAGE = (Busy, FormatTooNew, NoDescriptors, StoreFull, StoreMissing, StoreReadOnly)


@dataclass(frozen=True, slots=True)
class Counts:
    """What verify looked at."""

    messages: int
    expunged: int
    blobs: int
    packs: int


def counts(store: Store) -> Counts:
    """How much there is to verify. Raises Corrupt, StoreError."""
    return _counts(store.layout)


def counts_or_none(root: Path) -> Counts | None:
    """The same of a store that may be so damaged that nobody knows."""
    if any(check_waiting(root)):
        return None
    try:
        layout, _ = find_layout(root)
        return None if layout is None else _counts(layout)
    except StoreError:
        return None


def _counts(layout: Layout) -> Counts:
    with translated(layout.index):
        connection = open_reader(layout.index)
        try:
            row = connection.execute(
                "SELECT (SELECT count(*) FROM message WHERE expunged = 0), "
                "(SELECT count(*) FROM message WHERE expunged <> 0), "
                "(SELECT count(*) FROM blob), (SELECT count(*) FROM pack)"
            ).fetchone()
            assert row is not None
            return Counts(*row)
        finally:
            connection.close()


def verify(store: Store, *, full: bool = False) -> Iterator[Finding]:
    """Everything wrong with an open store; nothing when all is well. `full`: the words of all messages, not of some."""
    for found in _examine(store.layout, store.packs, full=full):
        if isinstance(found, Finding):
            yield found


def examine(root: Path, *, full: bool = False) -> Iterator[Finding | Step]:
    """The same of a store that may be so damaged that it cannot be opened, and how far it is.

    Raises StoreMissing, FormatTooNew and Busy: then there is nothing to be looked at.
    """
    if waiting := list(check_waiting(root)):
        yield from waiting
        return
    layout, findings = find_layout(root)
    yield from findings
    if layout is None:
        # Its name is all that is not known of it.
        layout = Layout(root, b"")
    # SQLite empties the log when it closes the index: this must be looked at first.
    yield from check_wal(layout)
    try:
        if not findings:
            Store.open(root).close()
    except _NOT_DAMAGE:
        raise
    except StoreError as error:
        kind = Kind.INDEX if isinstance(error, Corrupt) else Kind.FILE
        yield problem("store", error, kind)
    packs = PackReader(layout)
    try:
        yield from _examine(layout, packs, full=full)
    finally:
        packs.close()


def _examine(layout: Layout, packs: PackReader, *, full: bool) -> Iterator[Finding | Step]:
    yield from check_files(layout.root)
    yield from check_config(layout)
    yield from check_dump(layout)
    with ExitStack() as stack:
        try:
            stack.enter_context(keep_packs(layout))
        except _NOT_DAMAGE:
            raise
        except StoreError as error:
            yield problem("packs", error, Kind.FILE)
        connection: apsw.Connection | None = None
        try:
            with translated(layout.index):
                connection = open_reader(layout.index)
                stack.callback(connection.close)
                connection.execute("BEGIN")
                connection.execute("SELECT * FROM state").fetchall()
        except _NOT_DAMAGE:
            raise
        except StoreError as error:
            yield problem("index", error, Kind.INDEX)
        if connection is not None:
            yield from _check_index(connection, layout)
        yield from PackChecks(connection, layout, packs).check()
        if connection is not None:
            words = WordChecks(connection, packs, full=full)
            yield from _guarded(layout, words.check)


def _check_index(connection: apsw.Connection, layout: Layout) -> Iterator[Finding]:
    for check in (
        check_structure,
        check_rows,
        check_names,
        check_searches,
        check_dictionaries,
    ):
        yield from _guarded(layout, partial(check, connection))


def _guarded(layout: Layout, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check, to the end or to where the index cannot be read."""
    try:
        with translated(layout.index):
            yield from check()
    except _NOT_DAMAGE:
        raise
    except StoreError as error:
        yield problem("index", error, Kind.INDEX)
