"""Messages are added in a write transaction: bytes to the packs, rows to the index."""

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import apsw

from mailfs.errors import Corrupt, StoreError
from mailfs.ids import BlobId, Docid, PackNumber
from mailfs.store.keywords import KeywordRows
from mailfs.store.layout import Layout
from mailfs.store.packs import Location, PackAppender, PackReader
from mailfs.store.prepare import NewMessage
from mailfs.store.stamp import Stamp
from mailfs.store.texts import put_texts
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


class Additions:
    """What one write transaction adds. `first` and `next`: the docids it gives, half open."""

    def __init__(
        self,
        connection: apsw.Connection,
        layout: Layout,
        packs: PackReader,
        stamp: Stamp,
        keywords: KeywordRows,
        next_docid: Docid,
        admit: Callable[[int], None],
        *,
        durable: bool,
    ) -> None:
        """`admit` is asked before so many bytes are appended, and raises where they are not to be."""
        self._sql = connection
        self._layout = layout
        self._packs = packs
        self._stamp = stamp
        self._keywords = keywords
        self._admit = admit
        self._durable = durable
        self._appender: PackAppender | None = None
        self.first = self.next = next_docid

    def add(self, new: NewMessage, *, force_sync: bool) -> Added:
        """As Transaction.add."""
        if force_sync and not self._durable:
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
        for piece in record.raw_pieces(self._packs.dictionaries.find):
            try:
                if next(pieces, None) != piece:
                    return False
            except Corrupt:
                return False  # the copy we have cannot be read: a second one mends that
        return True

    def _put_blob(self, new: NewMessage) -> BlobId:
        self._admit(new.record.stored)
        where = self.appender().append(new.record)
        self._sql.execute(
            "INSERT INTO blob(hash, pack, offset, stored, raw) VALUES (?, ?, ?, ?, ?)",
            (new.digest, where.pack, where.offset, where.stored, where.raw),
        )
        return BlobId(self._sql.last_insert_rowid())

    def _insert_message(self, new: NewMessage, blob_id: BlobId) -> Docid:
        sql, parsed = self._sql, new.parsed
        date = parsed.date_s if parsed.date_s is not None else new.received_ns // 1_000_000_000
        docid = self.next
        self.next = Docid(docid + 1)
        message_ids = (
            (parsed.message_id, *parsed.references) if parsed.message_id else parsed.references
        )
        thread = assign_thread(sql, docid, message_ids, self._stamp.modseq, self._stamp.now_ns)
        sql.execute(
            "INSERT INTO message VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?)",
            (
                docid,
                self._stamp.modseq,
                new.flags,
                new.size,
                new.received_ns,
                self._stamp.now_ns,
                date,
                thread,
            ),
        )
        sql.execute("INSERT INTO message_blob VALUES (?, ?)", (docid, blob_id))
        put_texts(sql, docid, parsed)
        for keyword in new.keywords:
            self._keywords.link(docid, keyword)
        return docid

    # --- packs

    def append(self, record: Record) -> Location:
        """Put a whole record behind the newest pack. The index is to be told by who knows what it is."""
        if not self._durable:
            raise StoreError("packs can only be written durably")
        return self.appender().append(record)

    def begin_pack(self) -> None:
        """Go on in a new pack, with the dictionary that is the newest now."""
        appender = self.appender()
        self._packs.dictionaries.refresh(self._sql)
        appender.begin_pack()

    def appender(self) -> PackAppender:
        """The end of the newest pack; taken back when the transaction is."""
        if self._appender is None:
            newest = self._sql.execute(
                "SELECT pack, size, sealed FROM pack ORDER BY pack DESC LIMIT 1"
            ).fetchone()
            pack, size, sealed = newest or (0, 0, 0)
            # Who prepares messages in this process learns here of a dictionary another process has made.
            self._packs.dictionaries.refresh(self._sql)
            self._appender = PackAppender(
                self._layout, self._packs, self._packs.dictionaries.newest_or_none
            )
            self._appender.open(PackNumber(pack), size, is_sealed=bool(sealed))
        return self._appender

    def sync_packs(self) -> None:
        """Make what was appended durable, and say in the index where the packs end. On an error nothing is committed."""
        if self._appender is not None:
            self._appender.sync()
            self._sql.executemany(
                "INSERT INTO pack(pack, size) VALUES (?, ?) "
                "ON CONFLICT (pack) DO UPDATE SET size = excluded.size",
                self._appender.ends,
            )

    def is_acknowledged(self) -> bool:
        """Whether the index, as it is committed, has what was appended."""
        return (
            self._appender is not None
            and self._appender.has_grown
            and all(
                self._sql.execute("SELECT 1 FROM pack WHERE pack = ? AND size = ?", end).fetchone()
                for end in self._appender.ends
            )
        )

    def take_back_packs(self) -> None:
        if self._appender is not None:
            self._appender.rollback()

    def close(self) -> None:
        if self._appender is not None:
            self._appender.close()
