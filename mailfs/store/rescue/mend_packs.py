"""What a pack has besides its messages: head, dictionary, tombstones, footer, its end; and bytes that are no record."""

import os
from pathlib import Path

from mailfs.errors import Corrupt, StoreError, storage_error
from mailfs.ids import PackNumber
from mailfs.store.layout import sync_directory
from mailfs.store.packfile import PACK_HEAD, PackFile
from mailfs.store.packs import Location
from mailfs.store.records import (
    CODEC_FOOTER,
    CODEC_TOMBSTONES,
    Dictionary,
    RecordHeader,
    format_dictionary,
    format_footer,
    format_tombstones,
)
from mailfs.store.rescue.checks_packs import sound_tombstones
from mailfs.store.rescue.findings import Finding, Kind, Severity
from mailfs.store.rescue.mend_records import NO_HASH, bury, save_rest, write_in_place
from mailfs.store.rescue.mending import Outcome, Repair, kept, mended, say_mended
from mailfs.store.rescue.resync import Found, Gap, resync
from mailfs.store.transaction import Transaction
from mailfs.store.unpacked import MemoryRecord
from mailfs.store.upkeep.removal import remove_dead_packs


def begin_pack_if_needed(repair: Repair) -> None:
    """Nothing can be written while the newest pack is missing: go on in another."""
    rows = repair.store.index.rows("SELECT max(pack) FROM pack WHERE sealed = 0")
    newest = rows[0][0]
    if newest is None or repair.store.layout.pack(PackNumber(newest)).is_file():
        return
    with repair.transaction() as transaction:
        number = PackNumber(newest + 1)
        while (path := repair.store.layout.pack(number)).exists():
            number = PackNumber(number + 1)
        _make_pack(path)
        transaction.write("INSERT INTO pack(pack, size) VALUES (?, ?)", (number, len(PACK_HEAD)))
        transaction.say_repaired(f"pack {newest}", "is missing", f"pack {number} was begun")


def _make_pack(path: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o600)
        try:
            os.write(fd, PACK_HEAD)
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_directory(path.parent)
    except OSError as error:
        raise storage_error(error, f"cannot make {path}") from error


def mend_head(repair: Repair, finding: Finding) -> Outcome:
    """The line a pack begins with is the same in all."""
    write_in_place(repair, PackNumber(finding.number), 0, [PACK_HEAD])
    say_mended(repair, finding, "written anew")
    return mended(finding, "written anew")


def mend_dictionary_row(repair: Repair, finding: Finding) -> Outcome:
    """The copy in the index, from that in a pack."""
    wanted = finding.number
    for (pack,) in repair.store.index.rows("SELECT pack FROM pack ORDER BY pack"):
        found = _of_pack(repair, PackNumber(pack))
        if found is not None and found.id == wanted:
            with repair.transaction() as transaction:
                transaction.write(
                    "INSERT INTO dictionary(dictionary_id, hash, made_ns, messages, bytes) "
                    "VALUES (?, ?, ?, 0, ?) ON CONFLICT (dictionary_id) "
                    "DO UPDATE SET hash = excluded.hash, bytes = excluded.bytes",
                    (found.id, found.hash, transaction.now_ns, found.raw),
                )
                how = f"copied from pack {pack}"
                transaction.say_repaired(finding.where, finding.what, how)
            return mended(finding, how)
    if _is_needed(repair, wanted):
        return kept(finding, "no pack has it: messages that need it cannot be read")
    with repair.transaction() as transaction:
        transaction.write("DELETE FROM dictionary WHERE dictionary_id = ?", (wanted,))
        transaction.say_repaired(finding.where, finding.what, "forgotten: nothing needs it")
    return mended(finding, "forgotten: nothing needs it")


def _of_pack(repair: Repair, pack: PackNumber) -> Dictionary | None:
    try:
        return repair.store.packs.file(pack).dictionary_or_none()
    except (Corrupt, StoreError):
        return None


def _is_needed(repair: Repair, wanted: int) -> bool:
    for (pack,) in repair.store.index.rows("SELECT pack FROM pack"):
        try:
            for found in resync(repair.store.packs.file(PackNumber(pack))):
                if isinstance(found, Found) and found.header.dictionary == wanted:
                    return True
        except (Corrupt, StoreError):
            return True
    return False


def mend_pack_dictionary(repair: Repair, finding: Finding) -> Outcome | None:
    """The copy in a pack, from that in the index; None where the finding is not one of a dictionary."""
    pack = PackNumber(finding.number)
    file = repair.store.packs.file(pack)
    room, wanted = _dictionary_place(repair, file)
    for (raw,) in repair.store.index.rows(
        "SELECT bytes FROM dictionary WHERE dictionary_id = ?", (wanted,)
    ):
        try:
            record = format_dictionary(Dictionary(raw))
        except Corrupt:
            continue
        if len(record) == room:
            write_in_place(repair, pack, len(PACK_HEAD), [record])
            say_mended(repair, finding, "copied from the index")
            return mended(finding, "copied from the index")
    return None


def _dictionary_place(repair: Repair, file: PackFile) -> tuple[int, int]:
    """How long what stands first in a pack is, and which dictionary the records behind it need; 0 for none."""
    room = wanted = 0
    known = known_places(repair, file.number)
    for found in resync(file, known):
        start = found.offset if isinstance(found, Found) else found.start
        if start == len(PACK_HEAD):
            room = min([place for place in known if place > start], default=found.end) - start
        if isinstance(found, Found) and found.header.dictionary:
            return room, found.header.dictionary
    return room, wanted


def known_places(repair: Repair, pack: PackNumber) -> list[int]:
    """Where records begin by the index."""
    rows = repair.store.index.rows("SELECT offset, stored FROM blob WHERE pack = ?", (pack,))
    return [place for offset, stored in rows for place in (offset, offset + stored)]


# --- bytes of no message


def mend_gap(repair: Repair, finding: Finding) -> Outcome:
    """What is no record, or one that cannot be read: kept aside, and dead from now on."""
    pack, offset = PackNumber(finding.number), finding.place
    if offset == len(PACK_HEAD):
        outcome = mend_pack_dictionary(repair, finding)
        if outcome is not None:
            return outcome
    length, tombstones = _what_lies_there(repair, pack, offset)
    path = save_rest(repair, Location(pack, offset, length, 0))
    with repair.transaction() as transaction:
        if tombstones:
            transaction.append(MemoryRecord(tombstones))
        bury(transaction, pack, offset, NO_HASH)
        how = f"given up; no message of the index lies there; what there is is in {path.name}"
        transaction.say_repaired(finding.where, finding.what, how)
    return mended(finding, how)


def _what_lies_there(repair: Repair, pack: PackNumber, offset: int) -> tuple[int, bytes]:
    """Its length, and the record of what can still be believed of damaged tombstones."""
    file = repair.store.packs.file(pack)
    known = known_places(repair, pack)
    for found in resync(file, [*known, offset]):
        if isinstance(found, Gap) and found.start <= offset < found.end:
            ends = [place for place in (*known, found.end) if place > offset]
            return min(ends) - offset, b""
        if isinstance(found, Found) and found.offset == offset:
            if found.header.codec != CODEC_TOMBSTONES or not found.is_certain:
                return found.end - offset, b""
            believed = sound_tombstones(repair.store.packs, file, found)
            return found.end - offset, format_tombstones(believed) if believed else b""
    return file.size - offset, b""


def mend_tail(repair: Repair, finding: Finding) -> Outcome:
    """What was never promised is cut off, as the next writer would."""
    pack = PackNumber(finding.number)
    with repair.transaction() as transaction:
        rows = transaction.rows("SELECT size FROM pack WHERE pack = ?", (pack,))
        if not rows or rows[0][0] > finding.place:
            return kept(finding, "it is no tail any more")
        _truncate(repair, pack, finding.place)
        transaction.say_repaired(finding.where, finding.what, "cut off")
    return mended(finding, "cut off")


def _truncate(repair: Repair, pack: PackNumber, size: int) -> None:
    """Cut a pack, or lengthen it with zeros, durably."""
    path = repair.store.layout.pack(pack)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.ftruncate(fd, size)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise storage_error(error, f"cannot mend {path}") from error
    repair.store.packs.forget(pack)


# --- the end of a pack


def mend_size(repair: Repair, finding: Finding) -> Outcome | None:
    """The acknowledged end of a pack. Where bytes are missing zeros take their place, so that nothing else lies there."""
    pack = PackNumber(finding.number)
    with repair.transaction() as transaction:
        rows = transaction.rows("SELECT size FROM pack WHERE pack = ?", (pack,))
        length = repair.store.packs.file(pack).size
        if not rows:
            return None
        size = int(rows[0][0])
        if finding.place:
            if finding.place <= size:
                return (
                    None  # a delivery has moved it since, and a smaller one would be written over
                )
            transaction.write("UPDATE pack SET size = ? WHERE pack = ?", (finding.place, pack))
            how = f"it ends at {finding.place}"
        elif length < size and not _has_records(transaction, pack, length):
            transaction.write("UPDATE pack SET size = ? WHERE pack = ?", (length, pack))
            how = f"it ends at {length}"
        elif length < size:
            _truncate(repair, pack, size)
            how = f"{size - length} bytes are missing; zeros in their place"
        else:
            return None
        transaction.say_repaired(finding.where, finding.what, how)
    return mended(finding, how)


def _has_records(transaction: Transaction, pack: PackNumber, offset: int) -> bool:
    """Whether records of a pack lie behind an offset, as the index says."""
    statement = "SELECT 1 FROM blob WHERE pack = ? AND offset + stored > ? LIMIT 1"
    is_sealed = "SELECT 1 FROM pack WHERE pack = ? AND sealed = 1"
    return bool(transaction.rows(statement, (pack, offset)) or transaction.rows(is_sealed, (pack,)))


def mend_place(repair: Repair, finding: Finding) -> Outcome | None:
    """A sound record behind the end of its pack: the end is what is wrong."""
    rows = repair.store.index.rows(
        "SELECT pack, offset, stored, raw FROM blob WHERE blob_id = ?", (finding.number,)
    )
    if not rows:
        return None
    location = Location(*rows[0])
    end = location.offset + location.stored
    try:
        if end > repair.store.packs.file(location.pack).size:
            return None  # told of as damaged
    except Corrupt:
        return None
    with repair.transaction() as transaction:
        changed = transaction.write(
            "INSERT INTO pack(pack, size) VALUES (?, ?) ON CONFLICT (pack) "
            "DO UPDATE SET size = max(size, excluded.size)",
            (location.pack, end),
        )
        how = f"pack {location.pack} ends behind it"
        transaction.say_repaired(finding.where, finding.what, how)
    return mended(finding, how) if changed else None


def mend_seal(repair: Repair, finding: Finding) -> Outcome:
    """The footer of a pack: written anew where all before it is there, else the pack is sealed no more."""
    pack = PackNumber(finding.number)
    ((size,),) = repair.store.index.rows("SELECT size FROM pack WHERE pack = ?", (pack,))
    file = repair.store.packs.file(pack)
    headers, start = _records_of(repair, file)
    footer = format_footer(start, headers)
    if _has_footer(file):
        how = "the index knows its footer now"
        size = file.size
    elif start + len(footer) == size:
        if file.size > size:
            save_rest(repair, Location(pack, size, file.size - size, 0))
        write_in_place(repair, pack, start, [footer])
        how = "its footer was made anew"
    else:
        with repair.transaction() as transaction:
            transaction.write("UPDATE pack SET sealed = 0 WHERE pack = ?", (pack,))
            how = "it is sealed no more, because not all that was in it is there"
            transaction.say_repaired(finding.where, finding.what, how)
        return mended(finding, how)
    with repair.transaction() as transaction:
        _truncate(repair, pack, size)
        transaction.write("UPDATE pack SET sealed = 1, size = ? WHERE pack = ?", (size, pack))
        transaction.say_repaired(finding.where, finding.what, how)
    return mended(finding, how)


def _has_footer(file: PackFile) -> bool:
    """A sound one, whatever became of the records before it."""
    try:
        return file.footer_or_none() is not None
    except Corrupt:
        return False


def _records_of(repair: Repair, file: PackFile) -> tuple[list[RecordHeader], int]:
    """The headers of all records before the first gap or footer, and where they end."""
    headers: list[RecordHeader] = []
    end = len(PACK_HEAD)
    for found in resync(file, known_places(repair, file.number)):
        if isinstance(found, Gap) or (
            found.header.codec == CODEC_FOOTER and found.end == file.size
        ):
            break
        headers.append(found.header)
        end = found.end
    return headers, end


# --- whole packs


def mend_unknown_pack(repair: Repair, finding: Finding) -> Outcome | None:
    """A pack of no row, all of whose messages are elsewhere by now, is removed; a missing one is told of by its messages."""
    pack = PackNumber(finding.number)
    if not repair.store.layout.pack(pack).exists():
        return _forget_missing(repair, finding, pack)
    of_it = [
        each
        for each in repair.findings
        if each.number == pack
        # One that could not be read may hold anything.
        and (each.kind in _CONTENTS or _is_unread(each))
    ]
    if of_it or repair.store.index.rows("SELECT 1 FROM pack WHERE pack = ?", (pack,)):
        return None
    with repair.transaction() as transaction:
        transaction.write("INSERT OR IGNORE INTO dead_pack VALUES (?)", (pack,))
        transaction.say_repaired(finding.where, finding.what, "nothing is in it: removed")
    remove_dead_packs(repair.store)
    return mended(finding, "nothing is in it: removed")


def _is_unread(finding: Finding) -> bool:
    return finding.kind is Kind.PACK_FILE and finding.severity is Severity.PROBLEM


# What a pack may hold that nothing else does.
_CONTENTS = (Kind.ORPHAN, Kind.GAP, Kind.RECORD, Kind.PACK_TAIL)


def _forget_missing(repair: Repair, finding: Finding, pack: PackNumber) -> Outcome | None:
    """Once no message is in it, a pack that is missing is not missed."""
    if repair.store.index.rows("SELECT 1 FROM blob WHERE pack = ?", (pack,)):
        return None
    with repair.transaction() as transaction:
        transaction.write("DELETE FROM pack WHERE pack = ?", (pack,))
        transaction.say_repaired(finding.where, finding.what, "forgotten: no message is in it")
    return mended(finding, "forgotten: no message is in it")


def mend_dead_pack(repair: Repair, finding: Finding) -> Outcome | None:
    """What a compact left to be removed."""
    return mended(finding, "removed") if remove_dead_packs(repair.store) else None
