"""The only door for change: one write transaction under the writer lock.

    with writer.transaction("import", durable=True) as transaction:
        transaction.add(message)

Order of a durable transaction: records appended, pack synced, index committed and synced, lock dropped; when the
block is left without an exception everything in it survives power loss. A transaction that is not durable
survives the death of any process, and power loss after sync() or the next durable one. An exception
takes everything back, packs included. A transaction in which nothing changed takes no modseq.
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import apsw

from mailfs.errors import Corrupt, NoSuchMessage, NoSuchSearch, SearchExists, StoreError
from mailfs.ids import BlobId, Docid, Keyword, Modseq, PackNumber, SearchId
from mailfs.store.database import Row, open_writer, set_durable, translated
from mailfs.store.layout import Layout
from mailfs.store.lock import WriterLock
from mailfs.store.packs import Location, PackAppender, PackReader
from mailfs.store.prepare import NewMessage
from mailfs.store.records import parse_record
from mailfs.store.threads import assign_thread

# How long a person waits before an error is better than patience.
DEFAULT_DEADLINE_S = 10.0


class Outcome(Enum):
    """What became of a message that was to be added."""

    ADDED = "added"
    KNOWN = "known"  # the same bytes are a live message
    EXPUNGED = "expunged"  # the same bytes were a message, and somebody removed it


class Added(NamedTuple):
    docid: Docid
    outcome: Outcome


class ViewState(NamedTuple):
    """The mtimes of a view's folders at a clean unmount."""

    search_id: SearchId
    new_mtime_ns: int
    cur_mtime_ns: int


class Transaction:
    """Changes to the store; made by Writer.transaction, good until its block ends."""

    def __init__(
        self, connection: apsw.Connection, layout: Layout, packs: PackReader, durable: bool
    ) -> None:
        self._sql = connection
        self._layout = layout
        self._packs = packs
        self._durable = durable
        self._appender: PackAppender | None = None
        self._keyword_ids: dict[Keyword, int] = {}
        self.changed = False  # something a reader must notice: takes a modseq
        self._wrote_view_states = False
        self.now_ns = time.time_ns()
        row = connection.execute(
            "SELECT modseq + 1, (SELECT max(seq) + 1 FROM sqlite_sequence WHERE name = 'message') "
            "FROM state"
        ).fetchone()
        if row is None:
            raise Corrupt(f"the index {layout.index} has no state row")
        self.modseq = Modseq(row[0])
        self._next_docid = row[1] or 1

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
        self.changed = True
        return Added(self._insert_message(new, blob_id), Outcome.ADDED)

    def _find_blob_or_none(self, new: NewMessage) -> BlobId | None:
        raw: bytes | None = None
        for blob_id, pack, offset, stored, size in self._sql.execute(
            "SELECT blob_id, pack, offset, stored, raw FROM blob WHERE hash = ?", (new.digest,)
        ):
            if size != new.size:
                continue
            raw = parse_record(new.record) if raw is None else raw
            try:
                stored_raw = self._packs.load(Location(pack, offset, stored, size))
            except Corrupt:
                continue  # the copy we have cannot be read: a second one mends that
            if stored_raw == raw:
                return BlobId(blob_id)
        return None

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

    def edit_flags(self, docid: Docid, add: int, remove: int) -> bool:
        """Set and clear bits of a message; False where nothing changed. Raises NoSuchMessage."""
        before = self._sql.execute("SELECT flags FROM message WHERE docid = ?", (docid,)).fetchone()
        if before is None:
            raise NoSuchMessage(f"no message {docid}")
        flags = (int(before[0]) & ~remove) | add
        if flags == before[0]:
            return False
        self._sql.execute(
            "UPDATE message SET flags = ?, modseq = ?, changed_ns = ? WHERE docid = ?",
            (flags, self.modseq, self.now_ns, docid),
        )
        self.changed = True
        return True

    def edit_keywords(
        self, docid: Docid, add: Iterable[Keyword] = (), remove: Iterable[Keyword] = ()
    ) -> bool:
        """Put the user's own keywords on a message and take others off; False where nothing changed.

        Raises NoSuchMessage.
        """
        if not self._sql.execute("SELECT 1 FROM message WHERE docid = ?", (docid,)).fetchone():
            raise NoSuchMessage(f"no message {docid}")
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
            self._stamp(docid)
        return changed

    def _link(self, docid: Docid, keyword: Keyword) -> bool:
        keyword_id = self._keyword_ids.get(keyword)
        if keyword_id is None:
            self._sql.execute("INSERT OR IGNORE INTO keyword(name) VALUES (?)", (keyword,))
            found = self._sql.execute(
                "SELECT keyword_id FROM keyword WHERE name = ?", (keyword,)
            ).fetchone()
            keyword_id = self._keyword_ids[keyword] = found[0] if found else 0
        self._sql.execute(
            "INSERT OR IGNORE INTO message_keyword VALUES (?, ?)", (keyword_id, docid)
        )
        return self._sql.changes() > 0

    def keywords(self, docid: Docid) -> frozenset[Keyword]:
        """The user's own keywords of a message, as this transaction has left them."""
        return frozenset(
            Keyword(name)
            for (name,) in self._sql.execute(
                "SELECT name FROM message_keyword JOIN keyword USING (keyword_id) WHERE docid = ?",
                (docid,),
            )
        )

    def expunge(self, docid: Docid) -> None:
        """Mark a message expunged. Its row and bytes stay until they are reclaimed."""
        self._sql.execute(
            "UPDATE message SET expunged = ? WHERE docid = ? AND expunged = 0",
            (self.now_ns // 1_000_000_000, docid),
        )
        if self._sql.changes():
            self._stamp(docid)

    def _stamp(self, docid: Docid) -> None:
        self._sql.execute(
            "UPDATE message SET modseq = ?, changed_ns = ? WHERE docid = ?",
            (self.modseq, self.now_ns, docid),
        )
        self.changed = True

    # --- saved searches

    def save_search(self, name: str, query: str, on_rm: str = "", *, replace: bool = False) -> None:
        """Save a search. Raises SearchExists when the name is taken, unless `replace`."""
        self._sql.execute(
            "INSERT OR IGNORE INTO search(name, query, on_rm, changed_ns) VALUES (?, ?, ?, ?)",
            (name, query, on_rm, self.now_ns),
        )
        if not self._sql.changes():
            if not replace:
                raise SearchExists(f"a search named {name} is saved already")
            self._sql.execute(
                "UPDATE search SET query = ?, on_rm = ?, changed_ns = ? WHERE name = ?",
                (query, on_rm, self.now_ns, name),
            )
        self._searches_changed()

    def save_search_if_absent(self, name: str, query: str) -> bool:
        """Save a search unless it is there already; False when the name is taken by another query."""
        taken = self._sql.execute("SELECT query FROM search WHERE name = ?", (name,)).fetchone()
        if taken is None:
            self.save_search(name, query)
        return taken is None or taken[0] == query

    def forget_search(self, name: str) -> None:
        """Forget a search, never a message. Raises NoSuchSearch."""
        self._sql.execute("DELETE FROM search WHERE name = ?", (name,))
        if not self._sql.changes():
            raise NoSuchSearch(f"no saved search named {name}: see `mailfs searches`")
        self._searches_changed()

    def _searches_changed(self) -> None:
        self._sql.execute("UPDATE state SET searches_modseq = ?", (self.modseq,))
        self.changed = True

    # --- what a mount leaves for the next one

    def put_view_states(self, states: Iterable[ViewState], modseq: Modseq) -> None:
        """Keep the mtimes shown last; they hold while the store stays at `modseq`."""
        self._sql.executemany(
            "INSERT OR REPLACE INTO view_state VALUES (?, ?, ?, ?)",
            [(state[0], modseq, state[1], state[2]) for state in states],
        )
        self._wrote_view_states = True

    def take_view_states(self) -> dict[SearchId, ViewState]:
        """The mtimes of the last clean unmount that still hold, taken away: a crash must not find them again."""
        found: list[Row] = self._sql.execute(
            "SELECT search_id, new_mtime_ns, cur_mtime_ns FROM view_state WHERE modseq = ?",
            (self.modseq - 1,),
        ).fetchall()
        self._sql.execute("DELETE FROM view_state")
        self._wrote_view_states = True
        return {SearchId(row[0]): ViewState(SearchId(row[0]), row[1], row[2]) for row in found}

    # --- the end

    def commit(self) -> None:
        """Sync the packs, then commit the index. On an error nothing is committed."""
        if self._appender is not None:
            self._appender.sync()
            ends = [*self._appender.finished, (self._appender.pack, self._appender.size)]
            self._sql.executemany("INSERT OR REPLACE INTO pack VALUES (?, ?)", ends)
        if self.changed:
            self._sql.execute("UPDATE state SET modseq = ?", (self.modseq,))
        self._sql.execute("COMMIT" if self.changed or self._wrote_view_states else "ROLLBACK")

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


class Writer:
    """Write transactions, one at a time in all processes. May be used by several threads."""

    def __init__(self, layout: Layout, packs: PackReader) -> None:
        self._layout = layout
        self._packs = packs
        self._lock = WriterLock(layout)
        self._connection: apsw.Connection | None = None
        self._must_checkpoint = False

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def transaction(
        self, purpose: str, *, durable: bool, deadline_s: float = DEFAULT_DEADLINE_S
    ) -> Iterator[Transaction]:
        """A write transaction, committed when the block ends. Raises Busy, StoreFull, StoreError."""
        with self._lock.hold(purpose, deadline_s), translated(self._layout.index):
            if self._connection is None:
                self._connection = open_writer(self._layout.index)
            connection = self._connection
            set_durable(connection, durable=durable)
            connection.execute("BEGIN IMMEDIATE")
            transaction = None
            try:
                transaction = Transaction(connection, self._layout, self._packs, durable)
                yield transaction
                transaction.commit()
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if transaction is not None and not transaction.is_committed():
                    transaction.take_back_packs()
                raise
            finally:
                if transaction is not None:
                    transaction.close()

    def sync(self) -> None:
        """Make every commit so far survive power loss. Raises StoreError, and after that only a checkpoint will do."""
        if self._must_checkpoint:
            self._checkpoint()
            return
        try:
            self._sync_wal()
        except StoreError:
            # A second fsync would succeed without having written (the kernel marks lost pages clean). What
            # the WAL holds is still to be read, so the next try writes it to the index itself.
            self._must_checkpoint = True
            raise

    def _sync_wal(self) -> None:
        """fsync by name: SQLite holds its locks on the -shm file, so closing this descriptor drops none."""
        wal = Path(f"{self._layout.index}-wal")
        try:
            fd = os.open(wal, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # checkpointed and removed by the last to close: already in the index, and synced
        try:
            os.fsync(fd)
        except OSError as error:
            raise StoreError(f"cannot sync {wal}: {error.strerror}") from error
        finally:
            os.close(fd)

    def _checkpoint(self) -> None:
        with (
            self._lock.hold("checkpoint", DEFAULT_DEADLINE_S),
            translated(self._layout.index),
            closing(open_writer(self._layout.index)) as connection,
        ):
            frames, moved = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_FULL)
        if moved < frames:
            raise StoreError(f"the index {self._layout.index} could not be written whole")
        self._must_checkpoint = False
