"""Names that clients chose, one row each in table `entry`, as a write transaction reads and changes them.

A message that has rows in a view has exactly those names there; one that has none has its canonical name.
"""

from collections.abc import Iterable

import apsw

from mailfs.errors import EntryExists, NoSuchMessage, NoSuchSearch
from mailfs.ids import Docid, SearchId
from mailfs.message.maildir import ChosenName, Form
from mailfs.store.stamp import Stamp


class EntryRows:
    """The chosen names, uncommitted changes included. A write that changes a row stamps the message."""

    def __init__(self, connection: apsw.Connection, stamp: Stamp) -> None:
        self._sql = connection
        self._stamp = stamp

    def names(self, search_id: SearchId, docid: Docid) -> tuple[ChosenName, ...]:
        """The names chosen for a message in one view, by base."""
        return tuple(
            ChosenName(base, extra, Form(form), bool(is_copy))
            for base, extra, form, is_copy in self._sql.execute(
                # The plus keeps SQLite from going through all names of the view: 5 us instead of 660.
                "SELECT base, extra, form, is_copy FROM entry "
                "WHERE docid = ? AND +search_id = ? ORDER BY base",
                (docid, search_id),
            )
        )

    def docid_or_none(self, search_id: SearchId, base: bytes) -> Docid | None:
        """Whose name this is in one view."""
        row = self._sql.execute(
            "SELECT docid FROM entry WHERE search_id = ? AND base = ?", (search_id, base)
        ).fetchone()
        return None if row is None else Docid(row[0])

    def put(self, search_id: SearchId, docid: Docid, name: ChosenName) -> None:
        """Give a live message a name in a view, or change the row of that base.

        Raises EntryExists when the base is another message's, NoSuchMessage, NoSuchSearch.
        """
        self._check(search_id, docid)
        owner = self.docid_or_none(search_id, name.base)
        if owner is not None and owner != docid:
            raise EntryExists(f"the name {name.base!r} is that of another message here")
        self._sql.execute(
            "INSERT INTO entry(search_id, base, docid, extra, form, is_copy) "
            "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (search_id, base) DO UPDATE "
            "SET extra = excluded.extra, form = excluded.form, is_copy = excluded.is_copy "
            "WHERE (extra, form, is_copy) <> (excluded.extra, excluded.form, excluded.is_copy)",
            (search_id, name.base, docid, name.extra, int(name.form), int(name.is_copy)),
        )
        self._stamp_if_changed(docid)

    def _check(self, search_id: SearchId, docid: Docid) -> None:
        is_live, is_saved = self._sql.execute(
            "SELECT EXISTS (SELECT 1 FROM message WHERE docid = ? AND expunged = 0), "
            "EXISTS (SELECT 1 FROM search WHERE search_id = ?)",
            (docid, search_id),
        ).fetchone() or (0, 0)
        if not is_live:
            raise NoSuchMessage(f"no message {docid}")
        if not is_saved:
            raise NoSuchSearch("the search of this view has been forgotten")

    def remove(self, search_id: SearchId, base: bytes) -> None:
        """Take one name away; nothing happens where it is not there."""
        docid = self.docid_or_none(search_id, base)
        if docid is not None:
            self._sql.execute(
                "DELETE FROM entry WHERE search_id = ? AND base = ?", (search_id, base)
            )
            self._stamp_if_changed(docid)

    def remove_all(self, search_id: SearchId, docid: Docid) -> None:
        """Take away all names of a message in one view: it has its canonical one there again."""
        self._sql.execute(
            "DELETE FROM entry WHERE docid = ? AND +search_id = ?", (docid, search_id)
        )
        self._stamp_if_changed(docid)

    def remove_everywhere(self, docid: Docid) -> None:
        """Take away all names of a message in all views."""
        self._sql.execute("DELETE FROM entry WHERE docid = ?", (docid,))
        self._stamp_if_changed(docid)

    def remove_letter(self, docid: Docid, letter: bytes) -> None:
        """Take a letter out of the own letters of all of a message's rows."""
        self._sql.execute(
            "UPDATE entry SET extra = CAST(replace(extra, ?, '') AS BLOB) "
            "WHERE docid = ? AND instr(extra, ?)",
            (letter.decode(), docid, letter),
        )
        if self._sql.changes():
            self._stamp.put_on(docid)

    def copies(self, docid: Docid) -> frozenset[SearchId]:
        """The searches in whose views a client made a copy of this message."""
        return frozenset(
            SearchId(search_id)
            for (search_id,) in self._sql.execute(
                "SELECT DISTINCT search_id FROM entry WHERE docid = ? AND is_copy", (docid,)
            )
        )

    def end_copies(self, docid: Docid) -> None:
        """From now on none of its names counts as a copy."""
        self._sql.execute("UPDATE entry SET is_copy = 0 WHERE docid = ? AND is_copy", (docid,))
        self._stamp_if_changed(docid)

    def forget_stale(self, pairs: Iterable[tuple[SearchId, Docid]]) -> None:
        """Drop the names of messages that are not in these views any more.

        The messages are stamped: to a reader of another mount one may linger there under such a name.
        """
        for search_id, docid in pairs:
            self.remove_all(search_id, docid)

    def _stamp_if_changed(self, docid: Docid) -> None:
        if self._sql.changes():
            self._stamp.put_on(docid)
