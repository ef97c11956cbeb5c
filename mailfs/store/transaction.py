"""One write transaction: what can be changed, and the order in which it becomes true.

Made and ended by Writer.transaction. Changes are seen by this transaction's own reads at once, by others when it
is committed.
"""

import time
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

import apsw

from mailfs.errors import Corrupt, KeywordInUse, NoSuchMessage, StoreError
from mailfs.ids import BlobId, Docid, Keyword, Modseq, PackNumber, SearchId
from mailfs.message.keywords import ATTACHMENT, DELETED, DELETED_BY_ENTRY, DELETED_LETTER
from mailfs.message.maildir import Base, format_base
from mailfs.search.match import matching
from mailfs.search.tree import Query
from mailfs.store.database import Row
from mailfs.store.entries import EntryRows
from mailfs.store.layout import Layout
from mailfs.store.packs import Location, PackAppender, PackReader
from mailfs.store.prepare import NewMessage
from mailfs.store.saved import SearchRows, ViewState, ViewStateRows
from mailfs.store.source import IndexSource
from mailfs.store.stamp import Stamp
from mailfs.store.threads import assign_thread
from mailfs.store.unpacked import Record


class Outcome(Enum):
    """What became of a message that was to be added."""

    ADDED = "added"
    KNOWN = "known"  # the same bytes are a live message
    EXPUNGED = "expunged"  # the same bytes were a message, and somebody removed it


class Added(NamedTuple):
    docid: Docid
    outcome: Outcome


class Transaction:
    """Changes to the store; made by Writer.transaction, good until its block ends.

    `entries`: the names clients chose. `searches`: the saved searches.
    """

    def __init__(
        self, connection: apsw.Connection, layout: Layout, packs: PackReader, durable: bool
    ) -> None:
        self._sql = connection
        self._layout = layout
        self._packs = packs
        self._durable = durable
        self._appender: PackAppender | None = None
        self._keyword_ids: dict[Keyword, int] = {}
        row = connection.execute(
            "SELECT modseq + 1, (SELECT max(seq) + 1 FROM sqlite_sequence WHERE name = 'message') "
            "FROM state"
        ).fetchone()
        if row is None:
            raise Corrupt(f"the index {layout.index} has no state row")
        self._stamp = Stamp(connection, Modseq(row[0]), time.time_ns())
        self._next_docid = row[1] or 1
        self.entries = EntryRows(connection, self._stamp)
        self.searches = SearchRows(connection, self._stamp)
        self._view_states = ViewStateRows(connection, self._stamp)

    @property
    def modseq(self) -> Modseq:
        """What this transaction stamps rows with."""
        return self._stamp.modseq

    @property
    def now_ns(self) -> int:
        """When this transaction began: one time for all it writes."""
        return self._stamp.now_ns

    @property
    def changed(self) -> bool:
        """Something a reader must notice has changed: the modseq is taken at the end."""
        return self._stamp.is_used

    def rows(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        """All rows of one statement on this connection. For the modules of store/ only."""
        return self._sql.execute(statement, tuple(parameters)).fetchall()

    # --- messages

    def add(self, new: NewMessage) -> Added:
        """Add a message unless its bytes are known. Needs a durable transaction.

        Its thread, words and keywords are indexed. A known message is left as it is.
        """
        if not self._durable:
            raise StoreError("a message can only be added durably")
        blob_id = self._find_blob_or_none(new)
        if blob_id is not None:
            known = self._sql.execute(
                "SELECT message.docid, expunged FROM message_blob JOIN message USING (docid) "
                "WHERE blob_id = ? ORDER BY expunged LIMIT 1",
                (blob_id,),
            ).fetchone()
            if known is not None:
                outcome = Outcome.EXPUNGED if known[1] else Outcome.KNOWN
                return Added(Docid(known[0]), outcome)
        else:
            blob_id = self._put_blob(new)
        self._stamp.is_used = True
        return Added(self._insert_message(new, blob_id), Outcome.ADDED)

    def _find_blob_or_none(self, new: NewMessage) -> BlobId | None:
        for blob_id, pack, offset, stored, size in self._sql.execute(
            "SELECT blob_id, pack, offset, stored, raw FROM blob WHERE hash = ?", (new.digest,)
        ):
            if size == new.size and self._holds(Location(pack, offset, stored, size), new.record):
                return BlobId(blob_id)
        return None

    def _holds(self, location: Location, record: Record) -> bool:
        """Whether the same bytes lie there, compared piece by piece."""
        pieces = self._packs.raw_pieces(location)
        for piece in record.raw_pieces():
            try:
                if next(pieces, None) != piece:
                    return False
            except Corrupt:
                return False  # the copy we have cannot be read: a second one mends that
        return True

    def _put_blob(self, new: NewMessage) -> BlobId:
        if self._appender is None:
            newest = self._sql.execute(
                "SELECT pack, size FROM pack ORDER BY pack DESC LIMIT 1"
            ).fetchone()
            pack, size = newest or (0, 0)
            self._appender = PackAppender(self._layout, self._packs)
            self._appender.open(PackNumber(pack), size)
        where = self._appender.append(new.record)
        self._sql.execute(
            "INSERT INTO blob(hash, pack, offset, stored, raw) VALUES (?, ?, ?, ?, ?)",
            (new.digest, where.pack, where.offset, where.stored, where.raw),
        )
        return BlobId(self._sql.last_insert_rowid())

    def _insert_message(self, new: NewMessage, blob_id: BlobId) -> Docid:
        sql, parsed = self._sql, new.parsed
        date = parsed.date_s if parsed.date_s is not None else new.received_ns // 1_000_000_000
        docid = Docid(self._next_docid)
        self._next_docid += 1
        message_ids = (
            (parsed.message_id, *parsed.references) if parsed.message_id else parsed.references
        )
        thread = assign_thread(sql, docid, message_ids, self.modseq, self.now_ns)
        sql.execute(
            "INSERT INTO message VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?)",
            (
                docid,
                self.modseq,
                new.flags,
                new.size,
                new.received_ns,
                self.now_ns,
                date,
                thread,
            ),
        )
        sql.execute("INSERT INTO message_blob VALUES (?, ?)", (docid, blob_id))
        sql.execute(
            "INSERT INTO envelope VALUES (?, ?, ?, ?, ?)",
            (docid, parsed.message_id, parsed.sender, parsed.recipient, parsed.subject),
        )
        sql.execute(
            "INSERT INTO message_text"
            "(rowid, sender, recipient, cc, subject, body, attachment, list) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                docid,
                parsed.sender,
                parsed.recipient,
                parsed.cc,
                parsed.subject,
                parsed.body,
                parsed.attachment,
                parsed.list_id,
            ),
        )
        for keyword in new.keywords:
            self._link(docid, keyword)
        return docid

    # --- what is so

    def is_live(self, docid: Docid) -> bool:
        """Whether there is such a message and it is not expunged."""
        return bool(self.rows("SELECT 1 FROM message WHERE docid = ? AND expunged = 0", (docid,)))

    def flags(self, docid: Docid) -> int:
        """The bits of a message, live or expunged. Raises NoSuchMessage."""
        found = self.rows("SELECT flags FROM message WHERE docid = ?", (docid,))
        if not found:
            raise NoSuchMessage(f"no message {docid}")
        return int(found[0][0])

    def base_of(self, docid: Docid) -> bytes:
        """The canonical base name of a message, live or expunged. Raises NoSuchMessage."""
        found = self.rows("SELECT received_ns, size FROM message WHERE docid = ?", (docid,))
        if not found:
            raise NoSuchMessage(f"no message {docid}")
        received_ns, size = found[0]
        return format_base(Base(received_ns // 1_000_000_000, docid, self._layout.store_id, size))

    def keywords(self, docid: Docid) -> frozenset[Keyword]:
        """The user's own keywords of a message."""
        return frozenset(
            Keyword(name)
            for (name,) in self._sql.execute(
                "SELECT name FROM message_keyword JOIN keyword USING (keyword_id) WHERE docid = ?",
                (docid,),
            )
        )

    def matches(self, query: Query, docid: Docid) -> bool:
        """Whether a message matches, live or expunged, with the changes made so far."""
        now_s = self._stamp.now_ns / 1_000_000_000
        return bool(matching(query, [docid], IndexSource(self), now_s))

    # --- changes of a message

    def edit_flags(self, docid: Docid, add: int, remove: int) -> bool:
        """Set and clear bits of a message; False where nothing changed. Raises NoSuchMessage."""
        before = self.flags(docid)
        flags = (before & ~remove) | add
        if flags == before:
            return False
        self._sql.execute("UPDATE message SET flags = ? WHERE docid = ?", (flags, docid))
        self._stamp.put_on(docid)
        if before & ~flags & DELETED_BY_ENTRY:
            # Said of the message itself now, or of nothing: an entry's old T must not come back with a later one.
            self.entries.remove_letter(docid, DELETED_LETTER)
        return True

    def edit_keywords(
        self, docid: Docid, add: Iterable[Keyword] = (), remove: Iterable[Keyword] = ()
    ) -> bool:
        """Put the user's own keywords on a message and take others off; False where nothing changed.

        Raises NoSuchMessage.
        """
        self.flags(docid)
        changed = False
        for keyword in add:
            changed |= self._link(docid, keyword)
        for keyword in remove:
            self._sql.execute(
                "DELETE FROM message_keyword WHERE docid = ? AND keyword_id = "
                "(SELECT keyword_id FROM keyword WHERE name = ?)",
                (docid, keyword),
            )
            changed |= self._sql.changes() > 0
        if changed:
            self._stamp.put_on(docid)
        return changed

    def _link(self, docid: Docid, keyword: Keyword) -> bool:
        self._sql.execute(
            "INSERT OR IGNORE INTO message_keyword VALUES (?, ?)",
            (self._keyword_id(keyword), docid),
        )
        return self._sql.changes() > 0

    def _keyword_id(self, keyword: Keyword) -> int:
        keyword_id = self._keyword_ids.get(keyword)
        if keyword_id is None:
            self._sql.execute("INSERT OR IGNORE INTO keyword(name) VALUES (?)", (keyword,))
            found = self.rows("SELECT keyword_id FROM keyword WHERE name = ?", (keyword,))
            keyword_id = self._keyword_ids[keyword] = int(found[0][0])
        return keyword_id

    def rename_keyword(self, old: Keyword, new: Keyword) -> None:
        """Put `new` in the place of `old` on all messages. Raises KeywordInUse when a live one has `new`."""
        if old == new:
            return
        if self.rows(
            "SELECT 1 FROM message JOIN message_keyword USING (docid) JOIN keyword USING (keyword_id) "
            "WHERE name = ? AND expunged = 0 LIMIT 1",
            (new,),
        ):
            raise KeywordInUse(f"messages have the keyword {new} already")
        old_id, new_id = self._keyword_id(old), self._keyword_id(new)
        for (docid,) in self.rows(
            "SELECT docid FROM message_keyword WHERE keyword_id = ?", (old_id,)
        ):
            self._stamp.put_on(Docid(docid))
        # An expunged message may have both.
        self._sql.execute(
            "UPDATE OR REPLACE message_keyword SET keyword_id = ? WHERE keyword_id = ?",
            (new_id, old_id),
        )

    def expunge(self, docid: Docid) -> None:
        """Mark a message expunged; its chosen names go. Its row and bytes stay until they are reclaimed."""
        self._sql.execute(
            "UPDATE message SET expunged = ? WHERE docid = ? AND expunged = 0",
            (self.now_ns // 1_000_000_000, docid),
        )
        if self._sql.changes():
            self._stamp.put_on(docid)
            self.entries.remove_everywhere(docid)

    def revive(self, docid: Docid) -> None:
        """Make an expunged message live again, as if it had just come: no keywords of the user's own, no flags.

        Nothing happens to a live one. Raises NoSuchMessage.
        """
        flags = self.flags(docid)
        if self.is_live(docid):
            return
        self._sql.execute("DELETE FROM message_keyword WHERE docid = ?", (docid,))
        self._sql.execute(
            "UPDATE message SET expunged = 0, flags = ? WHERE docid = ?",
            (flags & ATTACHMENT, docid),
        )
        self._stamp.put_on(docid)

    def settle_deleted(self, docid: Docid) -> None:
        """Take $deleted off a message that had it from entries, when none of them says so any more."""
        flags = self.flags(docid)
        if flags & DELETED_BY_ENTRY and not self.rows(
            "SELECT 1 FROM entry WHERE docid = ? AND instr(extra, ?)", (docid, DELETED_LETTER)
        ):
            self.edit_flags(docid, 0, DELETED | DELETED_BY_ENTRY)

    # --- what a mount leaves for the next one

    def put_view_states(self, states: Iterable[ViewState], modseq: Modseq) -> None:
        """As ViewStateRows.put."""
        self._view_states.put(states, modseq)

    def take_view_states(self) -> dict[SearchId, ViewState]:
        """As ViewStateRows.take."""
        return self._view_states.take()

    # --- the end

    def commit(self) -> None:
        """Sync the packs, then commit the index. On an error nothing is committed."""
        if self._appender is not None:
            self._appender.sync()
            ends = [*self._appender.finished, (self._appender.pack, self._appender.size)]
            self._sql.executemany(
                "INSERT INTO pack(pack, size) VALUES (?, ?) "
                "ON CONFLICT (pack) DO UPDATE SET size = excluded.size",
                ends,
            )
        if self.changed:
            self._sql.execute("UPDATE state SET modseq = ?", (self.modseq,))
        self._sql.execute("COMMIT" if self.changed or self._stamp.must_commit else "ROLLBACK")

    def is_committed(self) -> bool:
        """What the index says, which knows best: an interrupt may come right behind the COMMIT."""
        row = self._sql.execute("SELECT modseq FROM state").fetchone()
        return row is None or row[0] == self.modseq

    def take_back_packs(self) -> None:
        if self._appender is not None:
            self._appender.rollback()

    def close(self) -> None:
        if self._appender is not None:
            self._appender.close()
