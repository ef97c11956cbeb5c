"""The users' own keywords, one row each in table `message_keyword`, as a write transaction reads and changes them."""

from collections.abc import Set as AbstractSet

import apsw

from mailfs.errors import KeywordInUse
from mailfs.ids import Docid, Keyword
from mailfs.store.database import Row
from mailfs.store.journal import KEYWORD, JournalRows
from mailfs.store.stamp import Stamp


class KeywordRows:
    """The keywords, uncommitted changes included. Nothing here stamps a message but rename."""

    def __init__(self, connection: apsw.Connection, stamp: Stamp, journal: JournalRows) -> None:
        self._sql = connection
        self._stamp = stamp
        self._journal = journal
        self._ids: dict[Keyword, int] = {}

    def of(self, docid: Docid) -> frozenset[Keyword]:
        """Those of a message."""
        return frozenset(
            Keyword(name)
            for (name,) in self._sql.execute(
                "SELECT name FROM message_keyword JOIN keyword USING (keyword_id) WHERE docid = ?",
                (docid,),
            )
        )

    def link(self, docid: Docid, keyword: Keyword) -> bool:
        """Put one on a message; False where it was there."""
        self._sql.execute(
            "INSERT OR IGNORE INTO message_keyword VALUES (?, ?)", (self._id(keyword), docid)
        )
        return self._sql.changes() > 0

    def unlink(self, docid: Docid, keyword: Keyword) -> bool:
        """Take one off a message; False where it was not there."""
        self._sql.execute(
            "DELETE FROM message_keyword WHERE docid = ? AND keyword_id = "
            "(SELECT keyword_id FROM keyword WHERE name = ?)",
            (docid, keyword),
        )
        return self._sql.changes() > 0

    def _id(self, keyword: Keyword) -> int:
        keyword_id = self._ids.get(keyword)
        if keyword_id is None:
            self._sql.execute("INSERT OR IGNORE INTO keyword(name) VALUES (?)", (keyword,))
            row = self._sql.execute(
                "SELECT keyword_id FROM keyword WHERE name = ?", (keyword,)
            ).fetchone()
            assert row is not None
            keyword_id = self._ids[keyword] = int(row[0])
        return keyword_id

    def rename(self, old: Keyword, new: Keyword, but: AbstractSet[Docid]) -> None:
        """As Transaction.rename_keyword."""
        if old == new:
            return
        if self._sql.execute(
            "SELECT 1 FROM message JOIN message_keyword USING (docid) JOIN keyword USING (keyword_id) "
            "WHERE name = ? AND expunged = 0 LIMIT 1",
            (new,),
        ).fetchone():
            raise KeywordInUse(f"messages have the keyword {new} already")
        old_id, new_id = self._id(old), self._id(new)
        # Expunged messages may have the new one, or both.
        had = self._docids(new_id)
        docids = self._docids(old_id) - but
        for docid in docids & had:
            self._lose(docid, old)
        for docid in docids - had:
            self._sql.execute(
                "UPDATE message_keyword SET keyword_id = ? WHERE keyword_id = ? AND docid = ?",
                (new_id, old_id, docid),
            )
            self._stamp.put_on(docid)
        if docids - had:
            facts = {"name": new, "had": " ".join(map(str, sorted(had)))}
            self._journal.add_event(KEYWORD, {"name": old}, facts)

    def _docids(self, keyword_id: int) -> set[Docid]:
        rows: list[Row] = self._sql.execute(
            "SELECT docid FROM message_keyword WHERE keyword_id = ?", (keyword_id,)
        ).fetchall()
        return {Docid(row[0]) for row in rows}

    def _lose(self, docid: Docid, keyword: Keyword) -> None:
        self.unlink(docid, keyword)
        row: Row | None = self._sql.execute(
            "SELECT flags, expunged FROM message WHERE docid = ?", (docid,)
        ).fetchone()
        if row is not None:
            self._journal.change_of(docid, *row).take_off(keyword)
            self._stamp.put_on(docid)
