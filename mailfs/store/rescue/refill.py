"""A dump, put into an index that is being rebuilt: what the old index does not tell any more.

What the old index tells is newer and comes first. Where it is damaged, a line of the dump with the modseq the message still
has says exactly what was so, because every change of a message gives it another modseq.
"""

from collections.abc import Iterable
from typing import Any

import apsw

from mailfs.errors import BadDump
from mailfs.ids import Docid
from mailfs.store.layout import Layout
from mailfs.store.rescue.old_index import OldIndex, raise_sequence
from mailfs.store.upkeep.dump_lines import (
    DumpedBlob,
    DumpedDictionary,
    DumpedKeyword,
    DumpedMessage,
    DumpedSearch,
    DumpedThread,
    DumpHeader,
    Line,
)

UNKNOWN_DATE = -1


class Refill:
    """Puts the lines of a dump into a new index, within a transaction. `messages` counts those only the dump knew."""

    def __init__(self, new: apsw.Connection, layout: Layout, old: OldIndex) -> None:
        self._new = new
        self._layout = layout
        self._old = old
        self._marks_damaged = bool(old.damaged & {"keyword", "message_keyword", "entry"})
        self._keyword_ids: dict[str, int] = {}
        # Not one that a message names whose blob is lost.
        row: Any = new.execute(
            "SELECT max((SELECT ifnull(max(blob_id), 0) FROM blob), "
            "(SELECT ifnull(max(blob_id), 0) FROM message_blob)) + 1"
        ).fetchone()
        self._next_blob_id = int(row[0])
        self.messages = 0

    def run(self, lines: Iterable[tuple[int, Line]]) -> None:
        """Raises BadDump, also for the dump of another store."""
        for _, line in lines:
            if isinstance(line, DumpedMessage):
                self._put_message(line)
            elif isinstance(line, DumpHeader):
                self._put_header(line)
            elif isinstance(line, DumpedKeyword):
                self._put_keyword(line)
            elif isinstance(line, DumpedSearch):
                self._put_search(line)
            elif isinstance(line, DumpedThread):
                self._put_thread(line)
            elif isinstance(line, DumpedDictionary):
                # Its bytes are found in a pack.
                self._new.execute(
                    "INSERT OR IGNORE INTO dictionary VALUES (?, x'', ?, ?, x'')", line
                )

    def _put_header(self, line: DumpHeader) -> None:
        if line.store_id.encode() != self._layout.store_id:
            raise BadDump(
                f"the dump is of another store ({line.store_id}, this one is "
                f"{self._layout.store_id.decode()}): `mailfs restore` brings its keywords here"
            )
        self._new.execute(
            "INSERT OR IGNORE INTO state VALUES (1, ?, ?, ?)",
            (line.modseq, line.searches_modseq, line.reclaimed_modseq),
        )
        raise_sequence(self._new, "message", line.last_docid)
        raise_sequence(self._new, "search", line.last_search_id)

    def _put_keyword(self, line: DumpedKeyword) -> None:
        if "keyword" in self._old.damaged:
            self._new.execute("INSERT OR IGNORE INTO keyword VALUES (?, ?)", line)

    def _put_search(self, line: DumpedSearch) -> None:
        if "search" not in self._old.damaged:
            return
        if line.search_id in self._old.doubtful.get("search", ()):
            # What cannot be trusted gives way to what was so then, unless it was changed since.
            self._new.execute(
                "DELETE FROM search WHERE search_id = ? AND changed_ns = ?",
                (line.search_id, line.changed_ns),
            )
        self._new.execute("INSERT OR IGNORE INTO search VALUES (?, ?, ?, ?, ?)", line)

    def _put_thread(self, line: DumpedThread) -> None:
        if "reference" in self._old.damaged:
            self._new.executemany(
                "INSERT OR IGNORE INTO reference VALUES (?, ?)",
                ((message_id, line.thread) for message_id in line.message_ids),
            )

    # --- messages

    def _put_message(self, line: DumpedMessage) -> None:
        old = self._old
        row = self._new.execute(
            "SELECT modseq FROM message WHERE docid = ?", (line.docid,)
        ).fetchone()
        if row is None:
            # What neither of two sound tables has was reclaimed since.
            if {"message", "message_blob"} <= old.damaged:
                self._put_row(line)
                self._put_marks(line)
                self._put_blobs(line)
                self.messages += 1
            return
        # Of one whose row is lost, not even that may be known.
        is_same = row[0] in (0, line.modseq)
        if is_same and self._is_in_doubt(line.docid):
            self._put_row(line)
            old.incomplete.discard(line.docid)
        elif line.docid in old.incomplete:
            self._new.execute(
                "UPDATE message SET received_ns = ?, flags = flags | ? WHERE docid = ?",
                (line.received_ns, line.flags, line.docid),
            )
        if self._marks_damaged:
            if is_same:
                self._remove_marks(line.docid)
            self._put_marks(line)
        if old.damaged & {"blob", "message_blob"}:
            self._put_blobs(line)

    def _is_in_doubt(self, docid: Docid) -> bool:
        return docid in self._old.incomplete or docid in self._old.doubtful.get("message", ())

    def _put_row(self, line: DumpedMessage) -> None:
        self._new.execute(
            "INSERT OR REPLACE INTO message VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                line.docid,
                line.modseq,
                line.flags,
                line.expunged,
                line.size,
                line.received_ns,
                line.changed_ns,
                UNKNOWN_DATE,
                line.thread,
            ),
        )

    def _remove_marks(self, docid: Docid) -> None:
        for table in ("message_keyword", "entry"):
            self._new.execute(f"DELETE FROM {table} WHERE docid = ?", (docid,))

    def _put_marks(self, line: DumpedMessage) -> None:
        """Keywords, and the names clients chose."""
        for keyword in line.keywords:
            self._new.execute(
                "INSERT OR IGNORE INTO message_keyword VALUES (?, ?)",
                (self._keyword_id(keyword), line.docid),
            )
        for search_id, name in line.names:
            self._new.execute(
                "INSERT OR IGNORE INTO entry VALUES (?, ?, ?, ?, ?, ?)",
                (search_id, name.base, line.docid, name.extra, int(name.form), name.is_copy),
            )

    def _keyword_id(self, keyword: str) -> int:
        if keyword not in self._keyword_ids:
            self._new.execute("INSERT OR IGNORE INTO keyword(name) VALUES (?)", (keyword,))
            row = self._new.execute(
                "SELECT keyword_id FROM keyword WHERE name = ?", (keyword,)
            ).fetchone()
            assert row is not None
            self._keyword_ids[keyword] = int(row[0])
        return self._keyword_ids[keyword]

    def _put_blobs(self, line: DumpedMessage) -> None:
        """Claims of a message that has none. The number its blob had is still known where only the blob's row is lost."""
        of_message: list[Any] = self._new.execute(
            "SELECT blob_id, blob_id IN (SELECT blob_id FROM blob) FROM message_blob "
            "WHERE docid = ?",
            (line.docid,),
        ).fetchall()
        doubtful = self._old.doubtful.get("blob", ())
        if any(is_there and blob_id not in doubtful for blob_id, is_there in of_message):
            return
        self._new.execute("DELETE FROM message_blob WHERE docid = ?", (line.docid,))
        # What cannot be trusted gives way; where it is right the dump says the same.
        self._new.executemany(
            "DELETE FROM blob WHERE blob_id = ? "
            "AND blob_id NOT IN (SELECT blob_id FROM message_blob)",
            [(blob_id,) for blob_id, is_there in of_message if is_there],
        )
        lost = [
            int(blob_id)
            for blob_id, _ in of_message
            if not self._new.execute("SELECT 1 FROM blob WHERE blob_id = ?", (blob_id,)).fetchone()
        ]
        for blob in line.blobs:
            self._new.execute(
                "INSERT OR IGNORE INTO message_blob VALUES (?, ?)",
                (line.docid, self._blob_id(blob, lost)),
            )

    def _blob_id(self, blob: DumpedBlob, lost: list[int]) -> int:
        row: Any = self._new.execute(
            "SELECT blob_id FROM blob WHERE pack = ? AND offset = ? AND hash = ?",
            (blob.pack, blob.offset, blob.hash),
        ).fetchone()
        if row is not None:
            return int(row[0])
        if lost:
            blob_id = lost.pop()
        else:
            blob_id = self._next_blob_id
            self._next_blob_id += 1
        self._new.execute(
            "INSERT INTO blob(blob_id, hash, pack, offset, stored, raw) VALUES (?, ?, ?, ?, 0, ?)",
            (blob_id, blob.hash, blob.pack, blob.offset, blob.size),
        )
        return blob_id
