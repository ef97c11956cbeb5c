"""Packs: every record against its hash, the index against the packs, and the packs against the index.

Read once from end to end, with the index held still. What lies behind a pack's acknowledged end was never promised, and
neither was a record whose place no row of the index names; whole messages there are notes, for a repair to take in.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from mailfs.errors import Corrupt, StoreError
from mailfs.ids import PackNumber
from mailfs.store.database import Row
from mailfs.store.layout import Layout
from mailfs.store.packfile import PACK_HEAD, PackFile
from mailfs.store.packs import Location, PackReader
from mailfs.store.records import (
    CODEC_CHAIN,
    CODEC_DICTIONARY,
    CODEC_TOMBSTONES,
    HEADER_BYTES,
    MESSAGE_CODECS,
    RecordHeader,
    Tombstone,
    blob_hash,
    format_header,
    iter_chain,
    parse_dictionary,
    parse_footer,
    parse_record,
    parse_tombstones,
)
from mailfs.store.rescue.findings import Finding, Kind, Severity, Step, note, problem
from mailfs.store.rescue.resync import Found, Gap, resync

# So many records between two signs of life.
_STEP_RECORDS = 200


@dataclass(frozen=True, slots=True)
class BlobRow:
    """A row of `blob` in one pack."""

    blob_id: int
    hash: bytes
    offset: int
    stored: int
    raw: int


@dataclass
class PackWalk:
    """What is known of one pack while it is read. `size` is its acknowledged end, 0 where the index does not know it."""

    file: PackFile
    size: int
    is_sealed: bool
    rows: dict[int, BlobRow]
    footer: int | None = None
    seen: set[int] = field(default_factory=set)

    @property
    def where(self) -> str:
        return f"pack {self.file.number}"


class PackChecks:
    """All packs of a store. Without a connection (the index cannot be read) they are only held against their hashes."""

    def __init__(
        self, connection: apsw.Connection | None, layout: Layout, packs: PackReader
    ) -> None:
        self._sql = connection
        self._layout = layout
        self._packs = packs
        self._dead: set[tuple[int, int]] = set()
        self._failed: apsw.Error | None = None

    # --- what the index says

    def _rows(self, statement: str, parameters: tuple[object, ...] = ()) -> list[Row]:
        """None of an index that cannot be read: from then on packs are only held against their hashes."""
        try:
            if self._sql is not None:
                return self._sql.execute(statement, parameters).fetchall()
        except apsw.Error as error:
            self._sql, self._failed = None, error
        return []

    def _blob_rows(self, pack: PackNumber) -> dict[int, BlobRow]:
        rows = self._rows(
            "SELECT offset, blob_id, hash, stored, raw FROM blob WHERE pack = ? ORDER BY offset",
            (pack,),
        )
        return {row[0]: BlobRow(row[1], row[2], row[0], row[3], row[4]) for row in rows}

    def _place(self, pack: PackNumber, row: BlobRow) -> str:
        docids = self._rows("SELECT docid FROM message_blob WHERE blob_id = ?", (row.blob_id,))
        messages = ", ".join(f"message {docid}" for (docid,) in docids) or "no message"
        return f"pack {pack} at {row.offset} ({messages}, blob {row.blob_id})"

    def _blob_problem(self, pack: PackNumber, row: BlobRow, what: object) -> Finding:
        severity = Severity.LOST if self._is_given_up(pack, row) else Severity.PROBLEM
        said = _without_place(what)
        if severity is Severity.LOST:
            said += f"; what is left is in damaged/{damaged_name(pack, row.offset)}"
        return Finding(severity, self._place(pack, row), said, Kind.BLOB, row.blob_id, row.offset)

    def _is_given_up(self, pack: PackNumber, row: BlobRow) -> bool:
        """A repair has kept what is left of it, and no live message shows it."""
        live = self._rows(
            "SELECT 1 FROM message_blob JOIN message USING (docid) "
            "WHERE blob_id = ? AND expunged = 0 LIMIT 1",
            (row.blob_id,),
        )
        return not live and (self._layout.damaged / damaged_name(pack, row.offset)).exists()

    # --- all packs

    def check(self) -> Iterator[Finding | Step]:
        """Everything wrong with the packs, and how far it is."""
        known = {
            PackNumber(pack): (int(size), bool(sealed))
            for pack, size, sealed in self._rows("SELECT pack, size, sealed FROM pack")
        }
        dead = {PackNumber(pack) for (pack,) in self._rows("SELECT pack FROM dead_pack")} - {*known}
        named = {PackNumber(pack) for (pack,) in self._rows("SELECT DISTINCT pack FROM blob")}
        there: dict[PackNumber, int] = {}
        for path in self._pack_files():
            if path.suffix != ".pack" or not path.stem.isdigit():
                yield note(f"packs/{path.name}", "is no pack", Kind.FILE)
                continue
            number = PackNumber(int(path.stem))
            there[number] = path.lstat().st_size
            if number in dead:
                yield note(f"pack {number}", "is left to be removed", Kind.DEAD_PACK, number)
            elif number not in known and self._sql is not None:
                yield note(f"pack {number}", "is not known to the index", Kind.PACK_FILE, number)
        # Begun before a power cut that came before its first bytes: nothing in it was ever promised.
        begun = {
            number
            for number, length in there.items()
            if length < len(PACK_HEAD) and number not in known and number not in named
        }
        walked = sorted((there.keys() | known.keys() | named) - dead - begun)
        for number in walked:
            self._read_tombstones(number)
        done, total = 0, sum(there.get(number, 0) for number in walked)
        for number in walked:
            size, is_sealed = known.get(number, (0, False))
            for found in self._check_pack(number, size, is_sealed):
                yield found if isinstance(found, Finding) else Step(done + found.done, total)
            done += there.get(number, 0)
        if self._failed is not None:
            yield problem("index", self._failed, Kind.INDEX)

    def _pack_files(self) -> list[Path]:
        try:
            return sorted(self._layout.packs.iterdir())
        except OSError:
            return []  # told of already

    def _read_tombstones(self, number: PackNumber) -> None:
        try:
            file = self._packs.file(number)
            for found in resync(file, _ends(self._blob_rows(number))):
                if isinstance(found, Found) and found.header.codec == CODEC_TOMBSTONES:
                    self._add_tombstones(file, found)
        except (Corrupt, StoreError, OSError):
            pass  # said when the pack is read again

    def _add_tombstones(self, file: PackFile, found: Found) -> None:
        if found.is_certain:
            tombstones = sound_tombstones(self._packs, file, found)
            self._dead |= {(tombstone.pack, tombstone.offset) for tombstone in tombstones}

    # --- one pack

    def _check_pack(
        self, number: PackNumber, size: int, is_sealed: bool
    ) -> Iterator[Finding | Step]:
        rows = self._blob_rows(number)
        try:
            walk = PackWalk(self._packs.file(number), size, is_sealed, rows)
            if walk.file.head != PACK_HEAD:
                yield problem(walk.where, "does not begin as a pack does", Kind.PACK_HEAD, number)
            yield from self._walk(walk)
        except (Corrupt, StoreError, OSError) as error:
            of_rows = [found for row in rows.values() for found in self._check_alone(number, row)]
            is_known = of_rows and all(found.severity is Severity.LOST for found in of_rows)
            severity = Severity.LOST if is_known else Severity.PROBLEM
            what = _without_place(error)
            yield Finding(severity, f"pack {number}", what, Kind.PACK_FILE, number)
            yield from of_rows
            return
        yield from self._check_rest(walk)

    def _walk(self, walk: PackWalk) -> Iterator[Finding | Step]:
        known = [
            *_ends(walk.rows),
            *_sealed_places(walk),
            *(offset for pack, offset in self._dead if pack == walk.file.number),
        ]
        for count, found in enumerate(resync(walk.file, known)):
            if isinstance(found, Gap):
                yield from self._check_gap(walk, found)
            else:
                yield from self._check_found(walk, found)
            if count % _STEP_RECORDS == 0:
                yield Step(found.end, 0)

    def _check_found(self, walk: PackWalk, found: Found) -> Iterator[Finding]:
        walk.seen.add(found.offset)
        codec, number = found.header.codec, walk.file.number
        if found.offset < walk.size < found.end:
            what = f"the index says that it ends at {walk.size}, within a record"
            yield problem(walk.where, what, Kind.PACK_SIZE, number, found.end)
        row = walk.rows.get(found.offset)
        try:
            if row is not None and codec not in MESSAGE_CODECS:
                yield self._blob_problem(number, row, "is a record about the pack")
            elif codec in MESSAGE_CODECS:
                yield from self._check_message(walk, found, row)
            elif codec == CODEC_TOMBSTONES:
                parse_tombstones(walk.file.record(found.offset, found.header))
            elif codec == CODEC_DICTIONARY:
                yield from self._check_dictionary(walk, found)
            else:
                self._check_footer(walk, found)
        except Corrupt as error:
            if (number, found.offset) not in self._dead:
                where = f"{walk.where} at {found.offset}"
                yield problem(where, _without_place(error), Kind.RECORD, number, found.offset)

    def _check_footer(self, walk: PackWalk, found: Found) -> None:
        """Raises Corrupt for one that seals nothing; that of a sealed pack is looked at from its end."""
        if found.end != walk.file.size:
            raise Corrupt("is a footer, but not at the end")
        if not walk.is_sealed:
            parse_footer(walk.file.record(found.offset, found.header))
        walk.footer = found.offset

    def _check_message(
        self, walk: PackWalk, found: Found, row: BlobRow | None
    ) -> Iterator[Finding]:
        number, header = walk.file.number, found.header
        if row is not None:
            try:
                self._check_payload(walk.file, found)
            except Corrupt as error:
                yield self._blob_problem(number, row, error)
                return
            said = (row.hash, row.stored, row.raw)
            if said != (header.hash, HEADER_BYTES + header.stored, header.raw):
                yield self._blob_problem(number, row, "is not the record the index describes")
        elif (number, found.offset) not in self._dead:
            self._check_payload(walk.file, found)
            if not self._is_copy(number, found):
                where = f"{walk.where} at {found.offset}"
                what = "is a whole message that the index does not know"
                yield note(where, what, Kind.ORPHAN, number, found.offset)

    def _check_payload(self, file: PackFile, found: Found) -> None:
        """Raises Corrupt where the bytes of a record do not match its hash."""
        if found.header.codec == CODEC_CHAIN:
            base = found.offset + HEADER_BYTES
            for _ in iter_chain(
                found.header, lambda start, length: file.read(length, base + start)
            ):
                pass
        else:
            record = file.record(found.offset, found.header)
            parse_record(record, lambda wanted: self._packs.dictionaries.find(wanted, file))

    def _is_copy(self, number: PackNumber, found: Found) -> bool:
        """Whether the index has the same bytes elsewhere, where they can be read."""
        mine = Location(number, found.offset, HEADER_BYTES + found.header.stored, found.header.raw)
        for place in self._rows(
            "SELECT pack, offset, stored, raw FROM blob WHERE hash = ? AND raw = ?",
            (found.header.hash, found.header.raw),
        ):
            try:
                pieces = self._packs.raw_pieces(Location(*place))
                if all(next(pieces, None) == piece for piece in self._packs.raw_pieces(mine)):
                    return True
            except (Corrupt, StoreError):
                continue
        return self._sql is None

    def _check_dictionary(self, walk: PackWalk, found: Found) -> Iterator[Finding]:
        number = walk.file.number
        try:
            parse_dictionary(walk.file.record(found.offset, found.header))
        except Corrupt as error:
            yield problem(f"{walk.where} at {found.offset}", error, Kind.PACK_DICTIONARY, number)
            return
        wanted = found.header.dictionary
        # One in a pack whose writer died before its commit was never introduced.
        if (
            walk.size
            and self._sql is not None
            and not self._rows("SELECT 1 FROM dictionary WHERE dictionary_id = ?", (wanted,))
        ):
            yield problem(f"dictionary {wanted}", "is not in the index", Kind.DICTIONARY, wanted)

    def _check_gap(self, walk: PackWalk, gap: Gap) -> Iterator[Finding]:
        """Bytes that are no record: of messages the index has there, of something dead, or of nothing known."""
        number, position = walk.file.number, gap.start
        for row in [row for row in walk.rows.values() if gap.start <= row.offset < gap.end]:
            walk.seen.add(row.offset)
            if position < row.offset:
                yield from self._check_unknown(walk, Gap(position, row.offset))
            yield self._blob_problem(number, row, "no record header here")
            position = max(position, row.offset + row.stored)
        if position < gap.end:
            yield from self._check_unknown(walk, Gap(position, gap.end))

    def _check_unknown(self, walk: PackWalk, gap: Gap) -> Iterator[Finding]:
        number = walk.file.number
        if gap.start >= walk.size:
            what = f"{gap.end - gap.start} bytes that were never promised are torn"
            yield note(f"{walk.where} at {gap.start}", what, Kind.PACK_TAIL, number, gap.start)
        elif (number, gap.start) not in self._dead:
            what = f"{gap.end - gap.start} bytes are no record"
            if walk.is_sealed and self._is_footer_damaged(walk, gap):
                yield problem(walk.where, "its footer is damaged", Kind.SEAL, number, gap.start)
            else:
                yield problem(f"{walk.where} at {gap.start}", what, Kind.GAP, number, gap.start)

    def _is_footer_damaged(self, walk: PackWalk, gap: Gap) -> bool:
        return gap.end == walk.file.size

    # --- behind the last record

    def _check_rest(self, walk: PackWalk) -> Iterator[Finding]:
        number, length = walk.file.number, walk.file.size
        for row in walk.rows.values():
            if row.offset not in walk.seen:
                yield self._blob_problem(number, row, "no record begins there")
        if length < walk.size:
            yield problem(
                walk.where, f"ends at {length}, the index knows {walk.size}", Kind.PACK_SIZE, number
            )
        yield from self._check_seal(walk)

    def _check_seal(self, walk: PackWalk) -> Iterator[Finding]:
        number = walk.file.number
        if not walk.is_sealed:
            if walk.footer is not None and walk.footer < walk.size:
                yield problem(
                    walk.where, "is sealed, which the index does not know", Kind.SEAL, number
                )
            return
        try:
            footer = walk.file.footer_or_none()
        except Corrupt as error:
            yield problem(walk.where, _without_place(error), Kind.SEAL, number)
            return
        if footer is None:
            yield problem(
                walk.where, "is sealed, but does not end with a footer", Kind.SEAL, number
            )
        elif walk.size != walk.file.size:
            yield problem(
                walk.where, f"is sealed, but does not end at {walk.size}", Kind.PACK_SIZE, number
            )

    def _check_alone(self, number: PackNumber, row: BlobRow) -> Iterator[Finding]:
        """A message of a pack that cannot be read from end to end."""
        location = Location(number, row.offset, row.stored, row.raw)
        try:
            for _ in self._packs.raw_pieces(location):
                pass
        except (Corrupt, StoreError, OSError) as error:
            yield self._blob_problem(number, row, error)


def _ends(rows: dict[int, BlobRow]) -> Iterator[int]:
    """Where records begin by the rows of a pack: their own, and those behind them."""
    for row in rows.values():
        yield row.offset
        yield row.offset + row.stored


def _sealed_places(walk: PackWalk) -> list[int]:
    """Where records begin by the footer of a pack of which the index says that it has one."""
    with suppress(Corrupt):
        if walk.is_sealed:
            return [offset for offset, _ in walk.file.footer_or_none() or ()]
    return []


def sound_tombstones(packs: PackReader, file: PackFile, found: Found) -> list[Tombstone]:
    """All of a record; of a damaged one those that name the hash of a record where one begins. Raises StoreError."""
    record = file.record(found.offset, found.header)
    try:
        return parse_tombstones(record)
    except Corrupt:
        payload = record[HEADER_BYTES:]
        header = RecordHeader(CODEC_TOMBSTONES, 0, len(payload), len(payload), blob_hash(payload))
        believed = []
        for tombstone in parse_tombstones(format_header(header) + payload):
            with suppress(Corrupt):
                if packs.file(tombstone.pack).header(tombstone.offset).hash == tombstone.hash:
                    believed.append(tombstone)
        return believed


def damaged_name(pack: int, offset: int) -> str:
    """What a repair calls the file with what is left of a record."""
    return f"{pack:08d}-{offset}"


def _without_place(what: object) -> str:
    """The words of an error behind its place."""
    return re.sub(r"^pack \d+( at \d+)?:? ", "", str(what))
