"""Rows about views in a write transaction: saved searches, and the mtimes a mount leaves for the next one."""

from collections.abc import Iterable
from typing import NamedTuple

import apsw

from mailfs.errors import EditRefused, NoSuchSearch, SearchExists
from mailfs.ids import Modseq, SearchId
from mailfs.store.database import Row
from mailfs.store.journal import SEARCH, JournalRows
from mailfs.store.layout import Layout
from mailfs.store.stamp import Stamp


class SearchRow(NamedTuple):
    """A saved search, as an event of the journal has it. `on_rm` is '' where the query's kind decides."""

    search_id: SearchId
    name: str
    query: str
    on_rm: str


class SearchRows:
    """The saved searches, as a write transaction changes them. Each change moves state.searches_modseq."""

    def __init__(self, connection: apsw.Connection, stamp: Stamp, journal: JournalRows) -> None:
        self._sql = connection
        self._stamp = stamp
        self._journal = journal

    def save(self, name: str, query: str, on_rm: str = "", *, replace: bool = False) -> None:
        """Save a search. Raises SearchExists when the name is taken, unless `replace`."""
        before = self.by_name_or_none(name)
        if before is None:
            self._sql.execute(
                "INSERT INTO search(name, query, on_rm, changed_ns) VALUES (?, ?, ?, ?)",
                (name, query, on_rm, self._stamp.now_ns),
            )
            search_id = SearchId(self._sql.last_insert_rowid())
            self._changed(None, SearchRow(search_id, name, query, on_rm))
        elif replace:
            self._update(before, before._replace(query=query, on_rm=on_rm))
        else:
            raise SearchExists(f"a search named {name} is saved already")

    def put_back(self, search: SearchRow) -> None:
        """Make a search what it was, saved anew with its number where it has been forgotten. Raises SearchExists."""
        before = self.by_number_or_none(search.search_id)
        if before is not None:
            self._update(before, search)
        elif self.by_name_or_none(search.name) is not None:
            raise SearchExists(f"a search named {search.name} is saved already")
        else:
            self._sql.execute(
                "INSERT INTO search(search_id, name, query, on_rm, changed_ns) VALUES (?, ?, ?, ?, ?)",
                (*search, self._stamp.now_ns),
            )
            self._changed(None, search)

    def save_if_absent(self, name: str, query: str) -> bool:
        """Save a search unless it is there already; False when the name is taken by another query."""
        taken = self._sql.execute("SELECT query FROM search WHERE name = ?", (name,)).fetchone()
        if taken is None:
            self.save(name, query)
        return taken is None or taken[0] == query

    def query(self, search_id: SearchId) -> str:
        """The query of a search by its number. Raises NoSuchSearch."""
        row = self._sql.execute(
            "SELECT query FROM search WHERE search_id = ?", (search_id,)
        ).fetchone()
        if row is None:
            raise NoSuchSearch(f"no saved search has number {search_id}")
        return str(row[0])

    def queries(self) -> dict[str, str]:
        """The query of every search, by name."""
        return {
            str(name): str(query)
            for name, query in self._sql.execute("SELECT name, query FROM search ORDER BY name")
        }

    def forget(self, name: str) -> None:
        """Forget a search and the names chosen in its view, never a message. Raises NoSuchSearch.

        The messages are not stamped: nobody is left to whom those names were shown.
        """
        search = self._search(name)
        self._sql.execute("DELETE FROM entry WHERE search_id = ?", (search.search_id,))
        self._sql.execute("DELETE FROM search WHERE search_id = ?", (search.search_id,))
        self._changed(search, None)

    def rename(self, name: str, new_name: str, query: str) -> None:
        """Give a search another name and query; its number and the names chosen in its view stay.

        Raises NoSuchSearch, SearchExists when `new_name` is that of another search.
        """
        search = self._search(name)
        self._update(search, search._replace(name=new_name, query=query))

    def by_number_or_none(self, search_id: SearchId) -> SearchRow | None:
        """A search by its number; None where it has been forgotten."""
        row: Row | None = self._sql.execute(
            "SELECT search_id, name, query, on_rm FROM search WHERE search_id = ?", (search_id,)
        ).fetchone()
        return None if row is None else SearchRow(*row)

    def _search(self, name: str) -> SearchRow:
        search = self.by_name_or_none(name)
        if search is None:
            raise NoSuchSearch(f"no saved search named {name}: see `mailfs searches`")
        return search

    def by_name_or_none(self, name: str) -> SearchRow | None:
        """A search by its name."""
        row: Row | None = self._sql.execute(
            "SELECT search_id, name, query, on_rm FROM search WHERE name = ?", (name,)
        ).fetchone()
        return None if row is None else SearchRow(*row)

    def _update(self, before: SearchRow, after: SearchRow) -> None:
        try:
            self._sql.execute(
                "UPDATE search SET name = ?, query = ?, on_rm = ?, changed_ns = ? WHERE search_id = ?",
                (after.name, after.query, after.on_rm, self._stamp.now_ns, after.search_id),
            )
        except apsw.ConstraintError:
            raise SearchExists(f"a search named {after.name} is saved already") from None
        self._changed(before, after)

    def _changed(self, before: SearchRow | None, after: SearchRow | None) -> None:
        self._sql.execute("UPDATE state SET searches_modseq = ?", (self._stamp.modseq,))
        self._stamp.is_used = True
        self._journal.add_event(
            SEARCH,
            None if before is None else before._asdict(),
            None if after is None else after._asdict(),
        )


def check_nothing_spooled(layout: Layout, search_id: SearchId) -> None:
    """Raises EditRefused where files lie in a search's folders that are not stored yet: it must not be forgotten."""
    spool = layout.spool / str(search_id)
    if any(path.is_file() for path in spool.rglob("*")):
        raise EditRefused(
            f"{spool} holds files that are not stored yet: mount the store and see to these first"
        )


class ViewState(NamedTuple):
    """The mtimes of a view's folders at a clean unmount."""

    search_id: SearchId
    new_mtime_ns: int
    cur_mtime_ns: int


class ViewStateRows:
    """What a mount leaves for the next one. No reader need notice, so it takes no modseq."""

    def __init__(self, connection: apsw.Connection, stamp: Stamp) -> None:
        self._sql = connection
        self._stamp = stamp

    def put(self, states: Iterable[ViewState], modseq: Modseq) -> None:
        """Keep the mtimes shown last; they hold while the store stays at `modseq`."""
        self._sql.executemany(
            "INSERT OR REPLACE INTO view_state VALUES (?, ?, ?, ?)",
            [(state[0], modseq, state[1], state[2]) for state in states],
        )
        self._stamp.must_commit = True

    def take(self) -> dict[SearchId, ViewState]:
        """The mtimes of the last clean unmount that still hold, taken away: a crash must not find them again."""
        found: list[Row] = self._sql.execute(
            "SELECT search_id, new_mtime_ns, cur_mtime_ns FROM view_state WHERE modseq = ?",
            (self._stamp.modseq - 1,),
        ).fetchall()
        self._sql.execute("DELETE FROM view_state")
        self._stamp.must_commit = True
        return {SearchId(row[0]): ViewState(SearchId(row[0]), row[1], row[2]) for row in found}
