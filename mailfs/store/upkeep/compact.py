"""Rewriting packs that hold much that nothing needs any more, while clients read them.

    1. what an earlier run left to be removed is removed; packs that are full are sealed; a dictionary is made
    2. of each pack worth it: the records of messages go to the newest pack, in slices: each is checked against its hash and
       made smaller if it can be, without the lock; appended, synced, and `blob` changed in one transaction with it
    3. when no message is left in it, its row becomes one of `dead_pack`, durably; then its file is removed

Cut off at any moment nothing is lost, and the next run goes on: a record is in the old pack until it is durable in the new
one. Messages never change by it; who reads one finds it in either place.

A whole message that neither the index nor a tombstone knows, left by a writer that died, is moved as well: nobody was promised
it, but some other copy of the index may have it. A record that is damaged is not moved and keeps its pack; `verify` tells.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

from mailfs.errors import Corrupt
from mailfs.ids import BlobId, PackNumber
from mailfs.store.packfile import PackFile
from mailfs.store.packs import Location, PackReader
from mailfs.store.records import (
    CODEC_CHAIN,
    CODEC_TOMBSTONES,
    HEADER_BYTES,
    MESSAGE_CODECS,
    THOROUGH_LEVEL,
    Dictionary,
    RecordHeader,
    Tombstone,
    format_record,
    format_tombstones,
    parse_tombstones,
)
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from mailfs.store.unpacked import MemoryRecord, PackedRecord, Record
from mailfs.store.upkeep.disk_use import PackUse, disk_use
from mailfs.store.upkeep.removal import remove_dead_packs
from mailfs.store.upkeep.seal import seal_full_packs
from mailfs.store.upkeep.training import is_wanted, train
from mailfs.store.writer import SLICE_S

# A pack is rewritten when this share of it is dead.
DEAD_SHARE = 0.25
# Made ready at once, without the lock: some 50 ms of work.
_BATCH_RECORDS = 256
_BATCH_BYTES = 4 << 20
# A pack smaller than this part of a full one is joined with the newest.
_SMALL_PART = 16


@dataclass(slots=True)
class Compaction:
    """What has been done so far. Bytes are those of records."""

    sealed: int = 0
    made_dictionary: bool = False
    packs: int = 0  # rewritten
    removed: int = 0
    messages: int = 0  # moved
    unknown: int = 0  # moved too, which the index does not know
    read_bytes: int = 0
    written_bytes: int = 0
    freed_bytes: int = 0  # of the packs rewritten; what was written is not taken off
    kept: list[str] = field(default_factory=list)  # packs that stay as they are, and why


class _Blob(NamedTuple):
    """A record of a message; `blob_id` is None of one that the index does not know."""

    blob_id: BlobId | None
    hash: bytes
    here: Location


class _Ready(NamedTuple):
    """A record on its way from where it lies."""

    blob: _Blob
    record: Record


def worth_it(
    store: Store, dead_share: float = DEAD_SHARE, *, everything: bool = False
) -> list[PackUse]:
    """The packs that compact() would rewrite; with `everything` also all that lack the newest dictionary."""
    dictionary = store.newest_dictionary_or_none()
    wanted = dictionary.id if dictionary is not None else 0
    small_bytes = store.packs.pack_limit_bytes // _SMALL_PART
    return [
        use
        for use in disk_use(store).packs
        if use.size > use.own
        and (
            _has_dead(store, use, dead_share)
            or (not use.is_newest and use.size < small_bytes)
            or (everything and use.dictionary != wanted)
        )
    ]


def _has_dead(store: Store, use: PackUse, dead_share: float) -> bool:
    if use.dead_share < dead_share:
        return False
    return not use.is_newest or (use.dead - _carried_bytes(store, use)) / use.size >= dead_share


def _carried_bytes(store: Store, use: PackUse) -> int:
    """What would only go from the newest pack into the next one, again and again. Reads its headers.

    That is tombstones of other packs, and messages that nobody knows. Those of its own are all in it.
    """
    rows = store.index.rows("SELECT offset FROM blob WHERE pack = ?", (use.pack,))
    accounted_for = {offset for (offset,) in rows}
    tombstone_bytes, unknown = 0, {}
    with suppress(Corrupt):
        file = store.packs.file(use.pack)
        for offset, header in _headers(store.packs, file, use.size, is_sealed=use.is_sealed):
            if header.codec == CODEC_TOMBSTONES:
                said = parse_tombstones(file.record(offset, header))
                accounted_for |= {each.offset for each in said if each.pack == use.pack}
                if any(each.pack != use.pack for each in said):
                    tombstone_bytes += HEADER_BYTES + header.stored
            elif header.codec in MESSAGE_CODECS:
                unknown[offset] = HEADER_BYTES + header.stored
    return tombstone_bytes + sum(unknown[offset] for offset in unknown.keys() - accounted_for)


def compact(
    store: Store,
    dead_share: float = DEAD_SHARE,
    *,
    everything: bool = False,
    deadline_s: float | None = None,
    slice_s: float = SLICE_S,
) -> Iterator[Compaction]:
    """Do all of it; after each slice what has been done: the same object again. It waits for the lock for `deadline_s` at most.

    `everything`: also rewrite packs that lack the newest dictionary. Raises Busy, Unhealthy, StoreError; what earlier
    slices did stays.
    """
    done = Compaction()
    done.removed += remove_dead_packs(store, deadline_s)
    if is_wanted(store):
        done.made_dictionary = train(store, deadline_s) is not None
    done.sealed += len(seal_full_packs(store, deadline_s))
    yield done
    uses = worth_it(store, dead_share, everything=everything)
    if any(use.is_newest for use in uses):
        with store.writer.transaction("compact", durable=True, deadline_s=deadline_s) as tx:
            tx.begin_pack()
    tombstones = _Tombstones(store)
    for use in uses:
        yield from _PackRewriter(store, use, tombstones, done, deadline_s, slice_s).run()
        done.removed += remove_dead_packs(store, deadline_s)
        yield done
    done.sealed += len(seal_full_packs(store, deadline_s))
    yield done


class _Tombstones:
    """What all packs say was reclaimed. The packs that cannot change are read once: every header of them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._of_sealed: dict[PackNumber, list[Tombstone]] = {}

    def places_in(self, pack: PackNumber) -> set[int]:
        """Where in a pack."""
        return {
            tombstone.offset
            for number, size, sealed in self._store.index.rows(
                "SELECT pack, size, sealed FROM pack"
            )
            for tombstone in self._said_by(PackNumber(number), size, is_sealed=bool(sealed))
            if tombstone.pack == pack
        }

    def _said_by(self, pack: PackNumber, size: int, *, is_sealed: bool) -> list[Tombstone]:
        if pack in self._of_sealed:
            return self._of_sealed[pack]
        said: list[Tombstone] = []
        with suppress(Corrupt):  # then a record may look unknown, and its pack stays
            file = self._store.packs.file(pack)
            for offset, header in _headers(self._store.packs, file, size, is_sealed=is_sealed):
                if header.codec == CODEC_TOMBSTONES:
                    said += parse_tombstones(file.record(offset, header))
        if is_sealed:
            self._of_sealed[pack] = said
        return said


def _headers(
    packs: PackReader, file: PackFile, size: int, *, is_sealed: bool
) -> Iterable[tuple[int, RecordHeader]]:
    """All of a pack, by its footer where it has one. Raises Corrupt."""
    footer = file.footer_or_none() if is_sealed else None
    return file.iter_records(end=packs.promised_end(file, size)) if footer is None else footer


class _PackRewriter:
    """One pack, which nobody appends to any more."""

    def __init__(
        self,
        store: Store,
        use: PackUse,
        tombstones: _Tombstones,
        done: Compaction,
        deadline_s: float | None,
        slice_s: float,
    ) -> None:
        self._store = store
        self._use = use
        self._tombstones = tombstones
        self._done = done
        self._deadline_s = deadline_s
        self._slice_s = slice_s
        newest = store.newest_dictionary_or_none()
        self._dictionary = None if newest is None else Dictionary(newest.raw, THOROUGH_LEVEL)
        self._moved: list[Tombstone] = []
        self._damaged = 0

    @property
    def _pack(self) -> PackNumber:
        return self._use.pack

    def run(self) -> Iterator[Compaction]:
        """Rewrite it; progress after each slice."""
        blobs = self._blobs()
        try:
            file = self._store.packs.file(self._pack)
            tombstones, unknown = self._look_through(file, {blob.here.offset for blob in blobs})
        except Corrupt as error:
            self._done.kept.append(f"pack {self._pack} is damaged: {error}")
            return
        for batch in self._iter_batches(file, [*blobs, *unknown]):
            start = 0
            while start < len(batch):
                start = self._move(batch, start)
                yield self._done
        self._finish(tombstones)

    def _blobs(self) -> list[_Blob]:
        return [
            _Blob(BlobId(blob_id), digest, Location(self._pack, offset, stored, raw))
            for blob_id, digest, offset, stored, raw in self._store.index.rows(
                "SELECT blob_id, hash, offset, stored, raw FROM blob WHERE pack = ? ORDER BY offset",
                (self._pack,),
            )
        ]

    def _look_through(self, file: PackFile, known: set[int]) -> tuple[list[Tombstone], list[_Blob]]:
        """Tombstones in this pack that are still needed, and messages in it that nobody knows of."""
        rows = self._store.index.rows("SELECT pack, size, sealed FROM pack")
        ends = {PackNumber(pack): (int(size), bool(sealed)) for pack, size, sealed in rows}
        size, is_sealed = ends.get(self._pack, (0, False))
        # After the index was asked: what has been reclaimed since is known by that.
        accounted_for = known | self._tombstones.places_in(self._pack)
        tombstones: list[Tombstone] = []
        unknown: list[_Blob] = []
        for offset, header in _headers(self._store.packs, file, size, is_sealed=is_sealed):
            if header.codec == CODEC_TOMBSTONES:
                found = parse_tombstones(file.record(offset, header))
                tombstones += [
                    each for each in found if each.pack in ends and each.pack != self._pack
                ]
            elif (
                header.codec in MESSAGE_CODECS
                and offset not in accounted_for
                and not self._is_elsewhere(file, offset, header)
            ):
                here = Location(self._pack, offset, HEADER_BYTES + header.stored, header.raw)
                unknown.append(_Blob(None, header.hash, here))
        return tombstones, unknown

    def _is_elsewhere(self, file: PackFile, offset: int, header: RecordHeader) -> bool:
        """Whether the index knows the same bytes in another place: left by a run that was cut off."""
        packs = self._store.packs
        for pack, there, stored, raw in self._store.index.rows(
            "SELECT pack, offset, stored, raw FROM blob WHERE hash = ? AND raw = ?",
            (header.hash, header.raw),
        ):
            here = PackedRecord(file, offset, header).raw_pieces(
                lambda wanted: packs.dictionaries.find(wanted, file)
            )
            copy = packs.raw_pieces(Location(PackNumber(pack), there, stored, raw))
            with suppress(Corrupt):
                if all(one == other for one, other in zip_longest(here, copy)):
                    return True
        return False

    def _iter_batches(self, file: PackFile, blobs: list[_Blob]) -> Iterator[list[_Ready]]:
        """All that can be read, made ready without the lock."""
        batch: list[_Ready] = []
        for blob in blobs:
            try:
                batch.append(_Ready(blob, self._record(file, blob.here)))
            except Corrupt:
                self._damaged += 1  # it stays, and its pack with it
            if len(batch) >= _BATCH_RECORDS or _bytes_of(batch) >= _BATCH_BYTES:
                yield batch
                batch = []
        if batch:
            yield batch

    def _record(self, file: PackFile, here: Location) -> Record:
        """The record there, checked, as small as it can be. Raises Corrupt."""
        header = file.header(here.offset)
        if HEADER_BYTES + header.stored != here.stored or header.raw != here.raw:
            raise Corrupt("this is not the record the index describes")
        packed = PackedRecord(file, here.offset, header)
        pieces = packed.raw_pieces(lambda wanted: self._store.packs.dictionaries.find(wanted, file))
        if header.codec == CODEC_CHAIN:
            for _ in pieces:  # checked piece by piece, and copied as it is
                pass
            return packed
        raw = b"".join(pieces)
        if self._dictionary is None and not header.dictionary:
            return packed
        smaller = format_record(raw, header.hash, self._dictionary)
        if not header.dictionary and packed.stored <= len(smaller):
            return packed
        return MemoryRecord(smaller)

    def _move(self, batch: list[_Ready], start: int) -> int:
        """Move from `start` on until the slice is over; the number of the first that was not."""
        # What is moved needs room before anything is given back.
        self._store.writer.health.check_room(_bytes_of(batch[start:]))
        moved: list[tuple[_Blob, Location]] = []
        with self._store.writer.transaction(
            "compact", durable=True, deadline_s=self._deadline_s
        ) as transaction:
            give_up = time.monotonic() + self._slice_s
            for blob, record in batch[start:]:
                start += 1
                there = _move_one(transaction, blob, record)
                if there is not None:
                    moved.append((blob, there))
                if time.monotonic() >= give_up:
                    break
        for (blob_id, digest, here), there in moved:
            self._moved.append(Tombstone(here.pack, here.offset, digest))
            self._done.messages += blob_id is not None
            self._done.unknown += blob_id is None
            self._done.read_bytes += here.stored
            self._done.written_bytes += there.stored
        return start

    def _finish(self, tombstones: list[Tombstone]) -> None:
        """The pack is dead; or what is left in it keeps it, and what was moved is reclaimed there."""
        with self._store.writer.transaction(
            "compact", durable=True, deadline_s=self._deadline_s
        ) as transaction:
            ((left,),) = transaction.rows("SELECT count(*) FROM blob WHERE pack = ?", (self._pack,))
            left = max(left, self._damaged)
            if left:
                tombstones = self._moved
            else:
                transaction.write("DELETE FROM pack WHERE pack = ?", (self._pack,))
                transaction.write("INSERT OR IGNORE INTO dead_pack VALUES (?)", (self._pack,))
            if tombstones:
                transaction.append(MemoryRecord(format_tombstones(tombstones)))
        if left:
            self._done.kept.append(
                f"pack {self._pack} holds {left} messages that are damaged: see `mailfs verify`"
            )
        else:
            self._done.packs += 1
            self._done.freed_bytes += self._use.size


def _move_one(transaction: Transaction, blob: _Blob, record: Record) -> Location | None:
    """Where it lies now; None of one that has been reclaimed, or moved by another process, since the index was asked."""
    blob_id, _, here = blob
    if blob_id is None:
        return transaction.append(record)  # for `verify --repair`, which may find out whose it is
    if not transaction.rows(
        "SELECT 1 FROM blob WHERE blob_id = ? AND pack = ? AND offset = ?",
        (blob_id, here.pack, here.offset),
    ):
        return None
    there = transaction.append(record)
    transaction.write(
        "UPDATE blob SET pack = ?, offset = ?, stored = ? WHERE blob_id = ?",
        (there.pack, there.offset, there.stored, blob_id),
    )
    return there


def _bytes_of(batch: Iterable[_Ready]) -> int:
    return sum(ready.record.stored for ready in batch)
