"""The records of the packs, and the messages a rebuilt index is to have: which bytes are whose.

An old index or a dump claims where the bytes of a message lie (tables `blob` and `message_blob` of the new index); the packs
say what there is. A claim is met by the record at its place with its hash, else by one with its hash and length elsewhere:
bytes move when packs are compacted. What nobody claims and no tombstone says was reclaimed is a message nobody knows of.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import apsw

from mailfs.errors import Corrupt, StoreError
from mailfs.ids import PackNumber
from mailfs.store.layout import Layout
from mailfs.store.packfile import PACK_HEAD, PackFile
from mailfs.store.packs import Location, PackReader
from mailfs.store.records import (
    CODEC_DICTIONARY,
    CODEC_FOOTER,
    CODEC_TOMBSTONES,
    HEADER_BYTES,
    MESSAGE_CODECS,
    parse_dictionary,
    parse_tombstones,
)
from mailfs.store.rescue.resync import Found, Gap, resync

_TABLES = """
CREATE TEMP TABLE record(
  pack INTEGER NOT NULL,
  offset INTEGER NOT NULL,
  stored INTEGER NOT NULL,
  raw INTEGER NOT NULL,
  hash BLOB NOT NULL,
  blob_id INTEGER, -- whose it is
  PRIMARY KEY (pack, offset)
) WITHOUT ROWID;
CREATE INDEX temp.record_hash ON record(hash);
CREATE TEMP TABLE tombstone(
  pack INTEGER NOT NULL,
  offset INTEGER NOT NULL,
  hash BLOB NOT NULL
);
"""


@dataclass(slots=True)
class Reconciled:
    """What came of it. `missing`: blobs whose bytes lie nowhere; their rows stay. `unknown`: records to be adopted."""

    missing: list[int] = field(default_factory=list)
    unknown: list[tuple[Location, bytes]] = field(default_factory=list)
    moved: int = 0
    reclaimed: int = 0
    problems: list[str] = field(default_factory=list)


class PackScan:
    """Reads all packs of a store into the tables of an index that is being built."""

    def __init__(self, new: apsw.Connection, layout: Layout, packs: PackReader) -> None:
        self._new = new
        self._layout = layout
        self._packs = packs
        self.problems: list[str] = []
        new.execute(_TABLES)

    def run(self) -> None:
        """Fill `record`, `tombstone`, `pack` and `dictionary`. A pack that cannot be read is a problem."""
        ends: dict[int, int] = dict(self._rows("SELECT pack, size FROM pack"))
        dead = {pack for (pack,) in self._rows("SELECT pack FROM dead_pack")}
        for path in sorted(self._layout.packs.glob("*.pack")):
            if not path.stem.isdigit() or int(path.stem) in dead:
                continue
            pack = PackNumber(int(path.stem))
            try:
                self._scan(pack, ends.get(pack))
            except (Corrupt, StoreError) as error:
                self.problems.append(str(error))

    def _rows(self, statement: str, *parameters: int) -> list[Any]:
        return self._new.execute(statement, parameters).fetchall()

    def _scan(self, pack: PackNumber, promised_end: int | None) -> None:
        file = self._packs.file(pack)
        known = [offset for (offset,) in self._rows("SELECT offset FROM blob WHERE pack = ?", pack)]
        if file.head != PACK_HEAD:
            self.problems.append(f"pack {pack} does not begin as a pack does")
        end, is_sealed, gap = len(PACK_HEAD), False, None
        for item in resync(file, known):
            if gap is not None:
                self.problems.append(f"pack {pack}: {gap.start} to {gap.end} is no record")
            gap = item if isinstance(item, Gap) else None
            if isinstance(item, Gap):
                continue
            is_promised = promised_end is None or item.offset < promised_end
            if not is_promised and item.header.codec not in MESSAGE_CODECS:
                continue  # what it says of the pack has not come to be; messages behind it have
            end = item.end
            is_sealed = item.header.codec == CODEC_FOOTER and end == file.size and item.is_certain
            self._note(pack, file, item)
        if gap is not None and gap.start < (promised_end or 0):
            self.problems.append(f"pack {pack}: {gap.start} to {gap.end} is no record")
        self._new.execute(
            "INSERT OR REPLACE INTO pack(pack, size, sealed) VALUES (?, ?, ?)",
            (pack, end, is_sealed),
        )

    def _note(self, pack: PackNumber, file: PackFile, found: Found) -> None:
        header = found.header
        if header.codec in MESSAGE_CODECS:
            if found.is_certain or self._is_sound(pack, found):
                self._new.execute(
                    "INSERT INTO record VALUES (?, ?, ?, ?, ?, NULL)",
                    (pack, found.offset, HEADER_BYTES + header.stored, header.raw, header.hash),
                )
            return
        if not found.is_certain:
            return  # perhaps the writer of a mail wrote it
        try:
            if header.codec == CODEC_TOMBSTONES:
                tombstones = parse_tombstones(file.record(found.offset, header))
                self._new.executemany("INSERT INTO tombstone VALUES (?, ?, ?)", tombstones)
            elif header.codec == CODEC_DICTIONARY:
                dictionary = parse_dictionary(file.record(found.offset, header))
                self._new.execute(
                    "INSERT INTO dictionary(dictionary_id, hash, made_ns, messages, bytes) "
                    "VALUES (?, ?, ?, 0, ?) ON CONFLICT (dictionary_id) DO UPDATE "
                    "SET hash = excluded.hash, bytes = excluded.bytes",
                    (dictionary.id, dictionary.hash, pack, dictionary.raw),
                )
        except Corrupt as error:
            self.problems.append(str(error))

    def _is_sound(self, pack: PackNumber, found: Found) -> bool:
        where = Location(pack, found.offset, HEADER_BYTES + found.header.stored, found.header.raw)
        try:
            for _ in self._packs.raw_pieces(where):
                pass
        except (Corrupt, StoreError):
            return False
        return True


class Claims:
    """Meets the claims of a new index with the records of a PackScan."""

    def __init__(self, new: apsw.Connection, packs: PackReader) -> None:
        self._new = new
        self._packs = packs
        self._result = Reconciled()

    def meet(self) -> Reconciled:
        """Correct `blob`, and say what is left over on both sides."""
        new = self._new
        new.execute(
            "UPDATE record SET blob_id = (SELECT blob_id FROM blob WHERE blob.pack = record.pack "
            "AND blob.offset = record.offset AND (blob.hash = record.hash OR blob.hash = x''))"
        )
        new.execute("CREATE INDEX temp.record_blob ON record(blob_id)")
        new.execute(
            "UPDATE blob SET (hash, stored, raw) = (SELECT hash, stored, raw FROM record "
            "WHERE record.blob_id = blob.blob_id) WHERE EXISTS (SELECT 1 FROM record "
            "WHERE record.blob_id = blob.blob_id AND "
            "(record.hash, record.stored, record.raw) <> (blob.hash, blob.stored, blob.raw))"
        )
        unmet: list[Any] = new.execute(
            "SELECT blob_id, hash, pack, offset, raw FROM blob "
            "WHERE blob_id NOT IN (SELECT blob_id FROM record WHERE blob_id IS NOT NULL) "
            "ORDER BY blob_id"
        ).fetchall()
        for row in unmet:
            self._meet_elsewhere(*row)
        self._drop_reclaimed()
        for location, digest in list(self._free()):
            if not self._is_copy(location, digest):
                self._result.unknown.append((location, digest))
        return self._result

    def _meet_elsewhere(
        self, blob_id: int, digest: bytes, pack: int, offset: int, raw: int
    ) -> None:
        """By its hash, the first that is free: the oldest blob has the first record. Else by its place alone."""
        found = (
            self._new.execute(
                "SELECT pack, offset, stored FROM record "
                "WHERE hash = ? AND raw = ? AND blob_id IS NULL ORDER BY pack, offset LIMIT 1",
                (digest, raw),
            ).fetchone()
            or self._new.execute(
                "SELECT pack, offset, stored FROM record "
                "WHERE pack = ? AND offset = ? AND raw = ? AND blob_id IS NULL",
                (pack, offset, raw),
            ).fetchone()
        )
        if found is None:
            self._result.missing.append(blob_id)
            return
        self._give(blob_id, *found)
        self._result.moved += 1

    def _give(self, blob_id: int, pack: int, offset: int, stored: int) -> None:
        self._new.execute(
            "UPDATE record SET blob_id = ? WHERE pack = ? AND offset = ?", (blob_id, pack, offset)
        )
        self._new.execute(
            "UPDATE blob SET pack = ?, offset = ?, stored = ?, "
            "hash = (SELECT hash FROM record WHERE record.blob_id = blob.blob_id) "
            "WHERE blob_id = ?",
            (pack, offset, stored, blob_id),
        )

    def _drop_reclaimed(self) -> None:
        """A tombstone of a message that somebody claims was written by a transaction that did not come to its end."""
        self._new.execute(
            "DELETE FROM record WHERE blob_id IS NULL AND EXISTS (SELECT 1 FROM tombstone "
            "WHERE tombstone.pack = record.pack AND tombstone.offset = record.offset "
            "AND tombstone.hash IN (record.hash, zeroblob(16)))"
        )
        self._result.reclaimed = self._new.changes()

    def _free(self) -> Iterator[tuple[Location, bytes]]:
        rows: Iterator[Any] = self._new.execute(
            "SELECT pack, offset, stored, raw, hash FROM record WHERE blob_id IS NULL "
            "ORDER BY pack, offset"
        )
        for pack, offset, stored, raw, digest in rows:
            yield Location(PackNumber(pack), offset, stored, raw), digest

    def _is_copy(self, location: Location, digest: bytes) -> bool:
        """Whether it is a second copy of a message we have, as a compaction that was cut off leaves them.

        Where the first cannot be read, the second takes its place.
        """
        rows: list[Any] = self._new.execute(
            "SELECT blob_id, pack, offset, stored, raw FROM blob WHERE hash = ? AND raw = ? "
            "AND EXISTS (SELECT 1 FROM record WHERE record.blob_id = blob.blob_id)",
            (digest, location.raw),
        ).fetchall()
        for blob_id, pack, offset, stored, raw in rows:
            first = Location(PackNumber(pack), offset, stored, raw)
            if not self._can_be_read(first):
                self._new.execute("UPDATE record SET blob_id = NULL WHERE blob_id = ?", (blob_id,))
                self._give(blob_id, location.pack, location.offset, location.stored)
                return True
            if self._are_equal(first, location):
                return True
        return False

    def _can_be_read(self, location: Location) -> bool:
        try:
            for _ in self._packs.raw_pieces(location):
                pass
        except (Corrupt, StoreError):
            return False
        return True

    def _are_equal(self, one: Location, other: Location) -> bool:
        pieces = self._packs.raw_pieces(other)
        try:
            return all(piece == next(pieces, None) for piece in self._packs.raw_pieces(one))
        except (Corrupt, StoreError):
            return False
