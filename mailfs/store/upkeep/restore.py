"""A dump, put back into a store that has the messages: keywords, flags, searches, and the names clients chose.

Messages are told by their bytes: by hash and length, and where two have the same, by docid. A dump that is not sound from
its first line to its last changes nothing. In slices, each of which survives the death of any process; a restore that was
cut off is finished when it is run again.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from mailfs.errors import EntryExists, NotFound, QuerySyntaxError
from mailfs.ids import Docid, SearchId
from mailfs.message.keywords import ATTACHMENT, RECENT
from mailfs.message.maildir import ChosenName
from mailfs.search.query import parse_query
from mailfs.search.tree import label_rule
from mailfs.store.journal import Operation
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from mailfs.store.upkeep.dump import opened_dump
from mailfs.store.upkeep.dump_lines import DumpedMessage, DumpedSearch, Line
from mailfs.store.writer import SLICE_S

SLICE_MESSAGES = 1000


@dataclass(slots=True)
class Restored:
    """What came of it. `missing` are docids, in the dump, of messages that are not here."""

    messages: int = 0
    changed: int = 0
    searches: int = 0
    missing: list[Docid] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def restore(
    store: Store, file: BinaryIO, name: str, done: Restored, *, accumulate: bool
) -> Iterator[None]:
    """Make the messages and searches of a dump what they are there, and leave all others alone; in `done`, slice by slice.

    With `accumulate` only add: keywords, flags, searches and names that are not there yet. `file` can seek. Raises
    BadDump before anything is changed; Busy, StoreError: what earlier slices did stays.
    """
    with opened_dump(file, name) as lines:
        for _ in lines:
            pass
    with opened_dump(file, name) as lines:
        restoring = _Restore(store, name, done, accumulate=accumulate)
        yield from restoring.run(line for _, line in lines)
    store.writer.sync()


class _Restore:
    def __init__(self, store: Store, name: str, done: Restored, *, accumulate: bool) -> None:
        self._store = store
        self._accumulate = accumulate
        self._operation = Operation(f"restore {name}")
        self._search_ids: dict[SearchId, SearchId] = {}
        # Names that another message had when their turn came; by then it may have given them up.
        self._taken: list[tuple[SearchId, Docid, ChosenName]] = []
        self._result = done

    def run(self, lines: Iterable[Line]) -> Iterator[None]:
        searches: list[DumpedSearch] = []
        messages = _Held(lines, searches)
        first = messages.take()
        self._put_searches(searches)
        while first is not None:
            with self._store.writer.transaction(
                "restore", durable=False, operation=self._operation
            ) as transaction:
                give_up = time.monotonic() + SLICE_S
                for _ in range(SLICE_MESSAGES):
                    self._put_message(transaction, first)
                    first = messages.take()
                    if first is None or time.monotonic() >= give_up:
                        break
            yield
        self._put_taken()

    # --- searches

    def _put_searches(self, searches: list[DumpedSearch]) -> None:
        with self._store.writer.transaction(
            "restore", durable=False, operation=self._operation
        ) as transaction:
            for search in searches:
                self._put_search(transaction, search)
        here = {search.name: search.search_id for search in self._store.index.searches()}
        self._search_ids = {
            search.search_id: here[search.name] for search in searches if search.name in here
        }

    def _put_search(self, transaction: Transaction, search: DumpedSearch) -> None:
        known = transaction.searches.by_name_or_none(search.name)
        if known is not None and (
            self._accumulate or (known.query, known.on_rm) == (search.query, search.on_rm)
        ):
            return
        try:
            query = parse_query(search.query)
        except QuerySyntaxError as error:
            self._result.problems.append(f"the search {search.name} is not restored: {error}")
            return
        on_rm = search.on_rm
        if on_rm in ("unlink", "untag") and label_rule(query) is None:
            on_rm = ""
        transaction.searches.save(search.name, search.query, on_rm, replace=True)
        self._result.searches += 1

    # --- messages

    def _put_message(self, transaction: Transaction, line: DumpedMessage) -> None:
        docid = _find_or_none(transaction, line)
        if docid is None:
            self._result.missing.append(line.docid)
            return
        self._result.messages += 1
        if self._accumulate:
            # What a mail program has seen here is not new again.
            changed = transaction.edit_flags(docid, line.flags & ~(ATTACHMENT | RECENT), 0)
            changed |= transaction.edit_keywords(docid, add=line.keywords)
        else:
            changed = self._put_life(transaction, docid, line)
            changed |= transaction.edit_flags(
                docid, line.flags & ~ATTACHMENT, ~(line.flags | ATTACHMENT)
            )
            here = transaction.keywords(docid)
            changed |= transaction.edit_keywords(
                docid, add=line.keywords, remove=here.difference(line.keywords)
            )
        if transaction.is_live(docid):
            changed |= self._put_names(transaction, docid, line)
        self._result.changed += changed

    def _put_life(self, transaction: Transaction, docid: Docid, line: DumpedMessage) -> bool:
        """Live or expunged as in the dump; expunged now, so that `expire` leaves it for as long as any other."""
        if transaction.is_live(docid) == (not line.expunged):
            return False
        if line.expunged:
            transaction.expunge(docid)
        else:
            transaction.undelete(docid)
        return True

    def _put_names(self, transaction: Transaction, docid: Docid, line: DumpedMessage) -> bool:
        """In the views of the dump; in others the names stay."""
        wanted: dict[SearchId, list[ChosenName]] = {}
        for dumped_id, name in line.names:
            if dumped_id in self._search_ids:
                wanted.setdefault(self._search_ids[dumped_id], []).append(name)
        changed = False
        for search_id in self._search_ids.values():
            here = transaction.entries.names(search_id, docid)
            for name in here:
                if not self._accumulate and name.base not in {
                    each.base for each in wanted.get(search_id, ())
                }:
                    transaction.entries.remove(search_id, name.base)
                    changed = True
            for name in wanted.get(search_id, ()):
                changed |= self._put_name(transaction, search_id, docid, name, here)
        return changed

    def _put_name(
        self,
        transaction: Transaction,
        search_id: SearchId,
        docid: Docid,
        name: ChosenName,
        here: tuple[ChosenName, ...],
    ) -> bool:
        if name in here or (self._accumulate and here):
            return False
        try:
            transaction.entries.put(search_id, docid, name)
        except EntryExists:
            self._taken.append((search_id, docid, name))
            return False
        return True

    def _put_taken(self) -> None:
        if not self._taken:
            return
        with self._store.writer.transaction(
            "restore", durable=False, operation=self._operation
        ) as transaction:
            for search_id, docid, name in self._taken:
                try:
                    transaction.entries.put(search_id, docid, name)
                except (EntryExists, NotFound) as error:
                    self._result.problems.append(f"message {docid}: {error}")


class _Held:
    """The messages of a dump, one by one; the searches that come before them are put aside."""

    def __init__(self, lines: Iterable[Line], searches: list[DumpedSearch]) -> None:
        self._lines = iter(lines)
        self._searches = searches

    def take(self) -> DumpedMessage | None:
        for line in self._lines:
            if isinstance(line, DumpedMessage):
                return line
            if isinstance(line, DumpedSearch):
                self._searches.append(line)
        return None


def _find_or_none(transaction: Transaction, line: DumpedMessage) -> Docid | None:
    """The message with these bytes; of several of the same hash and length the one with that docid, or the only one left."""
    found: set[int] = set()
    for blob in line.blobs:
        found |= {
            docid
            for (docid,) in transaction.rows(
                "SELECT docid FROM message_blob JOIN blob USING (blob_id) WHERE hash = ? AND raw = ?",
                (blob.hash, blob.size),
            )
        }
    if line.docid in found:
        return line.docid
    return Docid(min(found)) if len(found) == 1 else None
