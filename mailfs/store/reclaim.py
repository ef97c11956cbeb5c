"""Expunged messages end: their rows go, and bytes that no other message has are given up to `compact`.

A tombstone is left in the packs for each record given up, so that an index rebuilt from them does not bring it back.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import apsw

from mailfs.ids import BlobId, Docid
from mailfs.store.records import Tombstone, format_tombstones
from mailfs.store.source import chunks, marks
from mailfs.store.unpacked import MemoryRecord

# What a message has besides its row, and the column that names it.
_ROWS_OF_A_MESSAGE = (
    ("message_blob", "docid"),
    ("message_keyword", "docid"),
    ("entry", "docid"),
    ("envelope", "docid"),
    ("message_text", "rowid"),
    ("message", "docid"),
)


class Reclaimed(NamedTuple):
    """What became of expunged messages: rows deleted, blobs given up, and the bytes of their records."""

    messages: int
    blobs: int
    stored_bytes: int


def expunged_among(
    connection: apsw.Connection, docids: Sequence[Docid], until_s: float
) -> list[Docid]:
    """Those of these messages that were expunged before `until_s`."""
    return [
        Docid(docid)
        for chunk in chunks(docids)
        for (docid,) in connection.execute(
            "SELECT docid FROM message WHERE expunged <> 0 AND expunged < ? "
            f"AND docid IN ({marks(chunk)})",
            (until_s, *chunk),
        )
    ]


def reclaim(
    connection: apsw.Connection, docids: Sequence[Docid], append: Callable[[MemoryRecord], object]
) -> Reclaimed:
    """Delete these messages, which are expunged.

    `append` puts a record into the newest pack, within the same transaction.
    """
    stored_bytes = 0
    tombstones: list[Tombstone] = []
    for chunk in chunks(docids):
        blobs = _blobs_of(connection, chunk)
        connection.execute(
            "UPDATE state SET reclaimed_modseq = max(reclaimed_modseq, "
            f"(SELECT max(modseq) FROM message WHERE docid IN ({marks(chunk)})))",
            tuple(chunk),
        )
        for table, column in _ROWS_OF_A_MESSAGE:
            statement = f"DELETE FROM {table} WHERE {column} IN ({marks(chunk)})"
            connection.execute(statement, tuple(chunk))
        for blob_id in blobs:
            row = connection.execute(
                "DELETE FROM blob WHERE blob_id = ? AND NOT EXISTS "
                "(SELECT 1 FROM message_blob WHERE blob_id = blob.blob_id) "
                "RETURNING pack, offset, hash, stored",
                (blob_id,),
            ).fetchone()
            if row is not None:
                tombstones.append(Tombstone(*row[:3]))
                stored_bytes += row[3]
    if tombstones:
        append(MemoryRecord(format_tombstones(tombstones)))
    return Reclaimed(len(docids), len(tombstones), stored_bytes)


def _blobs_of(connection: apsw.Connection, docids: Sequence[Docid]) -> list[BlobId]:
    return [
        BlobId(blob_id)
        for (blob_id,) in connection.execute(
            f"SELECT DISTINCT blob_id FROM message_blob WHERE docid IN ({marks(docids)}) "
            "ORDER BY blob_id",
            tuple(docids),
        )
    ]
