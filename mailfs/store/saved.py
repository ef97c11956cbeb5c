"""Rows about views in a write transaction: saved searches, and the mtimes a mount leaves for the next one."""

from collections.abc import Iterable
from typing import NamedTuple

import apsw

from mailfs.errors import NoSuchSearch, SearchExists
from mailfs.ids import Modseq, SearchId
from mailfs.store.database import Row
from mailfs.store.stamp import Stamp


class SearchRows:
    """The saved searches, as a write transaction changes them. Each change moves state.searches_modseq."""

    def __init__(self, connection: apsw.Connection, stamp: Stamp) -> None:
        self._sql = connection
        self._stamp = stamp

    def save(self, name: str, query: str, on_rm: str = "", *, replace: bool = False) -> None:
        """Save a search. Raises SearchExists when the name is taken, unless `replace`."""
        self._sql.execute(
            "INSERT OR IGNORE INTO search(name, query, on_rm, changed_ns) VALUES (?, ?, ?, ?)",
            (name, query, on_rm, self._stamp.now_ns),
        )
        if not self._sql.changes():
            if not replace:
                raise SearchExists(f"a search named {name} is saved already")
            self._sql.execute(
                "UPDATE search SET query = ?, on_rm = ?, changed_ns = ? WHERE name = ?",
                (query, on_rm, self._stamp.now_ns, name),
            )
        self._changed()

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
        search_id = self._id(name)
        self._sql.execute("DELETE FROM entry WHERE search_id = ?", (search_id,))
        self._sql.execute("DELETE FROM search WHERE search_id = ?", (search_id,))
        self._changed()

    def rename(self, name: str, new_name: str, query: str) -> None:
        """Give a search another name and query; its number and the names chosen in its view stay.

        Raises NoSuchSearch, SearchExists when `new_name` is that of another search.
        """
        search_id = self._id(name)
        try:
            self._sql.execute(
                "UPDATE search SET name = ?, query = ?, changed_ns = ? WHERE search_id = ?",
                (new_name, query, self._stamp.now_ns, search_id),
            )
        except apsw.ConstraintError:
            raise SearchExists(f"a search named {new_name} is saved already") from None
        self._changed()

    def _id(self, name: str) -> SearchId:
        row = self._sql.execute("SELECT search_id FROM search WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise NoSuchSearch(f"no saved search named {name}: see `mailfs searches`")
        return SearchId(row[0])

    def _changed(self) -> None:
        self._sql.execute("UPDATE state SET searches_modseq = ?", (self._stamp.modseq,))
        self._stamp.is_used = True


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
