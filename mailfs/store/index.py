"""Reading the index. One Index is one connection: use it from one thread at a time, and make another for another.

Every method is one SQL statement unless it says otherwise, so what it returns is one snapshot.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple

from mailfs.errors import Corrupt, NoSuchMessage, NoSuchSearch
from mailfs.ids import Docid, Keyword, Modseq, PackNumber, SearchId, ThreadId
from mailfs.message.maildir import ChosenName, Form
from mailfs.search.dates import Span, span_ns
from mailfs.search.plan import Plan
from mailfs.store.database import Row, close, free_cache, open_reader, translated
from mailfs.store.frozen import is_frozen, may_thaw
from mailfs.store.layout import Layout
from mailfs.store.packs import Location
from mailfs.store.source import chunks, marks

_ENTRY_COLUMNS = "docid, flags, expunged, size, received_ns, changed_ns"
_LAST_MODSEQ = 2**63 - 1
_NAME_COLUMNS = "base, extra, form, is_copy"
_LOCATIONS_AHEAD = 64
# Of a Location, with its numbers and its place in the table.
_LOCATION_BYTES = 300
# SQLite counts instructions of its virtual machine; this many take about a tenth of a millisecond.
_STEPS_A_LOOK = 10_000


class EntryRow(NamedTuple):
    """What a directory entry is made of. `expunged` is 0 for a live message."""

    docid: Docid
    flags: int
    expunged: int
    size: int
    received_ns: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class SavedSearch:
    """A row of `search`. `on_rm` is '' where the query's kind decides."""

    search_id: SearchId
    name: str
    query: str
    on_rm: str
    changed_ns: int


@dataclass(frozen=True, slots=True)
class Summary:
    """One message in a list of results."""

    docid: Docid
    message_id: str
    date: int
    sender: str
    recipient: str
    subject: str
    flags: int
    keywords: tuple[Keyword, ...]
    size: int
    thread: ThreadId
    blobs: int


class State(NamedTuple):
    modseq: Modseq
    searches_modseq: Modseq
    reclaimed_modseq: Modseq


class Which(Enum):
    """Of all messages, which are asked for; the value is a condition."""

    LIVE = "expunged = 0"
    EXPUNGED = "expunged <> 0"
    ALL = "1"


class Sort(NamedTuple):
    """An order of results."""

    sql: str


SORTS: dict[str, Sort] = {
    "newest-first": Sort("message.date DESC, message.docid DESC"),
    "oldest-first": Sort("message.date, message.docid"),
    "docid": Sort("message.docid"),
}


class Index:
    """Reads of one store's index, through one connection of its own."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.index
        self._locations: dict[Docid, Location] = {}
        self._thaws = 0
        with translated(self._path):
            self._sql = open_reader(layout.index)

    def close(self) -> None:
        close(self._sql, self._path)

    def rows(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        """All rows of one statement on this connection. For the modules of store/ only."""
        with translated(self._path):
            return self._sql.execute(statement, tuple(parameters)).fetchall()

    def iter_rows(self, statement: str) -> Iterator[Row]:
        """The rows of one statement, streamed. For the modules of store/ only."""
        with translated(self._path):
            yield from self._sql.execute(statement)

    def give_up_after(self, deadline_s: float) -> None:
        """From now on a statement that still runs in `deadline_s` seconds ends with Busy."""
        give_up = time.monotonic() + deadline_s
        self._sql.set_progress_handler(lambda: time.monotonic() > give_up, _STEPS_A_LOOK)

    def free_memory(self) -> int:
        """Forget what was read ahead. How many bytes that is, about."""
        kept = len(self._locations) * _LOCATION_BYTES
        self._locations = {}
        return free_cache(self._sql) + kept

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All reads in this block see one state of the index."""
        with translated(self._path):
            self._sql.execute("BEGIN")
            try:
                yield
            finally:
                self._sql.execute("COMMIT")

    # --- what changed

    def data_version(self) -> int:
        """A number that differs after any other connection committed. A few microseconds.

        The PRAGMA, not Connection.data_version(): that one moves only after a read. An index that could only be read when
        it was opened is opened anew when somebody can write it.
        """
        if is_frozen(self._sql) and may_thaw(self._path):
            close(self._sql, self._path)
            self._sql = open_reader(self._path)
            self._thaws += 1
        return int(self.rows("PRAGMA data_version")[0][0]) + (self._thaws << 32)

    def state(self) -> State:
        """The last modseqs given. Raises Corrupt when the index has no state."""
        rows = self.rows("SELECT modseq, searches_modseq, reclaimed_modseq FROM state")
        if not rows:
            raise Corrupt(f"the index {self._path} has no state row")
        return State(*map(Modseq, rows[0]))

    def changes_since(self, modseq: Modseq, until: Modseq | None = None) -> list[EntryRow]:
        """Messages changed last after `modseq`, and not after `until`, expunged ones included, by docid."""
        return [
            EntryRow(*row)
            for row in self.rows(
                f"SELECT {_ENTRY_COLUMNS} FROM message WHERE modseq > ? AND modseq <= ? ORDER BY docid",
                (modseq, _LAST_MODSEQ if until is None else until),
            )
        ]

    # --- messages

    def iter_entries(self, plan: Plan) -> Iterator[EntryRow]:
        """Live messages that match, by docid: one snapshot, streamed."""
        with translated(self._path):
            for row in self._sql.execute(
                f"SELECT {_ENTRY_COLUMNS} FROM message WHERE expunged = 0 AND ({plan.where}) "
                "ORDER BY docid",
                plan.parameters,
            ):
                yield EntryRow(*row)

    def entry(self, docid: Docid, *, live: bool = True) -> EntryRow:
        """One message, alive unless `live` is False. Raises NoSuchMessage."""
        rows = self.rows(f"SELECT {_ENTRY_COLUMNS} FROM message WHERE docid = ?", (docid,))
        if not rows or (live and rows[0][2]):
            raise NoSuchMessage(f"no message {docid}")
        return EntryRow(*rows[0])

    def entries(self, docids: Sequence[Docid]) -> list[EntryRow]:
        """These messages, expunged ones included, by docid within each 500: one statement for those."""
        return [
            EntryRow(*row)
            for chunk in chunks(docids)
            for row in self.rows(
                f"SELECT {_ENTRY_COLUMNS} FROM message WHERE docid IN ({marks(chunk)}) "
                "ORDER BY docid",
                chunk,
            )
        ]

    def expunged_docids(self) -> list[Docid]:
        """All expunged messages, by docid. Reads an index that holds these alone."""
        rows = self.rows(
            "SELECT docid FROM message INDEXED BY message_expunged WHERE expunged <> 0"
        )
        return sorted(Docid(row[0]) for row in rows)

    def docids_of_threads_of(self, docids: Sequence[Docid]) -> set[Docid]:
        """All live messages of the conversations these messages, live or expunged, belong to."""
        return {
            Docid(docid)
            for chunk in chunks(docids)
            for (docid,) in self.rows(
                "SELECT docid FROM message WHERE expunged = 0 AND thread IN "
                f"(SELECT thread FROM message WHERE docid IN ({marks(chunk)}))",
                chunk,
            )
        }

    def docids_dated(self, field: Literal["date", "received"], span: Span) -> list[Docid]:
        """Live messages whose Date, or whose time of reception, lies in a span. `received` reads the whole table."""
        column, within = ("date", span) if field == "date" else ("received_ns", span_ns(span))
        rows = self.rows(
            f"SELECT docid FROM message WHERE expunged = 0 AND {column} >= ? AND {column} < ?",
            within,
        )
        return [Docid(row[0]) for row in rows]

    def location(self, docid: Docid) -> Location:
        """Where a message's bytes lie, also of an expunged one. Raises NoSuchMessage.

        Clients read in docid order, so those of the next messages are fetched with it: 0.4 us a message
        instead of 5. `compact` moves messages, so it may be out of date: see Store.read.
        """
        location = self._locations.get(docid)
        if location is None:
            self._locations = self._next_locations(docid)
            location = self._locations.get(docid)
        if location is None:
            raise NoSuchMessage(f"no message {docid}")
        return location

    def forget_locations(self) -> None:
        """The next location() asks the index."""
        self._locations = {}

    def _next_locations(self, docid: Docid) -> dict[Docid, Location]:
        found: dict[Docid, Location] = {}
        for next_docid, pack, offset, stored, raw in self.rows(
            "SELECT docid, pack, offset, stored, raw FROM message_blob JOIN blob USING (blob_id) "
            "WHERE docid >= ? ORDER BY docid, blob_id LIMIT ?",
            (docid, _LOCATIONS_AHEAD),
        ):
            found.setdefault(Docid(next_docid), Location(PackNumber(pack), offset, stored, raw))
        return found

    def docids(
        self,
        plan: Plan,
        sort: str = "docid",
        limit: int | None = None,
        *,
        which: Which = Which.LIVE,
    ) -> list[Docid]:
        """Messages that match, in one of the orders of SORTS."""
        rows = self.rows(
            f"SELECT docid FROM message WHERE {which.value} AND ({plan.where}) "
            f"ORDER BY {SORTS[sort].sql} LIMIT ?",
            (*plan.parameters, -1 if limit is None else limit),
        )
        return [Docid(row[0]) for row in rows]

    def count(self, plan: Plan, *, which: Which = Which.LIVE) -> int:
        """How many messages match."""
        return int(
            self.rows(
                f"SELECT count(*) FROM message WHERE {which.value} AND ({plan.where})",
                plan.parameters,
            )[0][0]
        )

    def summaries(self, docids: Sequence[Docid]) -> list[Summary]:
        """Summaries in the order asked; messages that are gone are left out. Two statements per 500."""
        found: dict[int, Summary] = {}
        for chunk in chunks(docids):
            places = marks(chunk)
            keywords: dict[int, list[Keyword]] = {}
            for docid, name in self.rows(
                "SELECT docid, name FROM message_keyword JOIN keyword USING (keyword_id) "
                f"WHERE docid IN ({places}) ORDER BY name",
                chunk,
            ):
                keywords.setdefault(docid, []).append(Keyword(name))
            for row in self.rows(
                "SELECT docid, message_id, date, sender, recipient, subject, flags, size, thread, "
                "(SELECT count(*) FROM message_blob WHERE docid = message.docid) "
                f"FROM message JOIN envelope USING (docid) WHERE docid IN ({places})",
                chunk,
            ):
                docid, message_id, date, sender, recipient, subject, flags, size, thread, blobs = (
                    row
                )
                found[docid] = Summary(
                    docid=Docid(docid),
                    message_id=message_id,
                    date=date,
                    sender=sender,
                    recipient=recipient,
                    subject=subject,
                    flags=flags,
                    keywords=tuple(keywords.get(docid, ())),
                    size=size,
                    thread=ThreadId(thread),
                    blobs=blobs,
                )
        return [found[docid] for docid in docids if docid in found]

    def docids_with_keyword(
        self, keyword: Keyword, docids: Sequence[Docid] | None = None
    ) -> list[Docid]:
        """Messages with this keyword of the user's own, expunged ones too, or those among `docids`; sorted.

        One statement, or one per 500 docids.
        """
        statement = (
            "SELECT docid FROM message_keyword WHERE keyword_id = "
            "(SELECT keyword_id FROM keyword WHERE name = ?)"
        )
        if docids is None:
            rows = self.rows(f"{statement} ORDER BY docid", (keyword,))
        else:
            rows = [
                row
                for chunk in chunks(docids)
                for row in self.rows(
                    f"{statement} AND docid IN ({marks(chunk)})", (keyword, *chunk)
                )
            ]
        return sorted(Docid(row[0]) for row in rows)

    # --- names that clients chose

    def chosen_names(self, search_id: SearchId) -> Iterator[tuple[Docid, ChosenName]]:
        """All of a view, by docid, then base: one snapshot, streamed.

        A message that has left the view by a change of keywords may still have some.
        """
        with translated(self._path):
            for docid, *name in self._sql.execute(
                f"SELECT docid, {_NAME_COLUMNS} FROM entry WHERE search_id = ? ORDER BY docid, base",
                (search_id,),
            ):
                yield Docid(docid), _chosen_name(*name)

    def chosen_names_of(self, docids: Sequence[Docid]) -> list[tuple[SearchId, Docid, ChosenName]]:
        """All of these messages in all views, by docid, view and base within each 500: one statement for those."""
        return [
            (SearchId(search_id), Docid(docid), _chosen_name(*name))
            for chunk in chunks(docids)
            for search_id, docid, *name in self.rows(
                f"SELECT search_id, docid, {_NAME_COLUMNS} FROM entry "
                f"WHERE docid IN ({marks(chunk)}) ORDER BY docid, search_id, base",
                chunk,
            )
        ]

    def docid_of_base_or_none(self, search_id: SearchId, base: bytes) -> Docid | None:
        """The message for which a client chose this name in a view."""
        rows = self.rows(
            "SELECT docid FROM entry WHERE search_id = ? AND base = ?", (search_id, base)
        )
        return Docid(rows[0][0]) if rows else None

    # --- saved searches

    def searches(self) -> list[SavedSearch]:
        """All of them, by name."""
        return [
            SavedSearch(SearchId(search_id), name, query, on_rm, changed_ns)
            for search_id, name, query, on_rm, changed_ns in self.rows(
                "SELECT search_id, name, query, on_rm, changed_ns FROM search ORDER BY name"
            )
        ]

    def search(self, name: str) -> SavedSearch:
        """The saved search of this name. Raises NoSuchSearch."""
        for search in self.searches():
            if search.name == name:
                return search
        raise NoSuchSearch(f"no saved search named {name}: see `mailfs searches`")


def _chosen_name(base: bytes, extra: bytes, form: int, is_copy: int) -> ChosenName:
    return ChosenName(base, extra, Form(form), bool(is_copy))
