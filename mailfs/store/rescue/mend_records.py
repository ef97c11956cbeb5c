"""Records that are damaged: put right where they lie, had from a copy, or given up with what is left of them kept aside.

What is written into a pack in its place are the very bytes that were there, so it may be cut off and done again, and
copies by hard link are mended with it.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from mailfs.errors import Corrupt, StoreError, StoreFailing, storage_error
from mailfs.ids import BlobId, Docid, PackNumber
from mailfs.message.parse import ParsedMessage
from mailfs.store.layout import sync_directory
from mailfs.store.packfile import PACK_HEAD, PackFile
from mailfs.store.packs import Location
from mailfs.store.prepare import PARSED_BYTES, parse_start
from mailfs.store.records import (
    CODEC_CHAIN,
    CODEC_RAW,
    CODEC_ZSTD,
    FRAME_BYTES,
    HEADER_BYTES,
    LEVEL,
    MESSAGE_CODECS,
    THOROUGH_LEVEL,
    Chain,
    Dictionary,
    RecordHeader,
    Tombstone,
    format_header,
    format_record,
    format_tombstones,
    iter_chain,
    parse_record,
    unpack_record,
)
from mailfs.store.rescue.checks_packs import damaged_name
from mailfs.store.rescue.copies import Copy
from mailfs.store.rescue.findings import Finding, Kind, Severity
from mailfs.store.rescue.mending import Fate, Outcome, Repair, kept, mended, say_mended
from mailfs.store.rescue.resync import Found, resync
from mailfs.store.transaction import Transaction
from mailfs.store.unpacked import MemoryRecord

# In the place of a hash: what lies there is dead, whatever it is.
NO_HASH = bytes(16)
_CHUNK_BYTES = 1024 * 1024


def mend_blob(repair: Repair, finding: Finding) -> Outcome | None:
    """A record of messages; None where nothing is wrong with it any more."""
    blob_id = BlobId(finding.number)
    rows = repair.store.index.rows(
        "SELECT hash, pack, offset, stored, raw FROM blob WHERE blob_id = ?", (blob_id,)
    )
    if not rows:
        return None
    digest, *place = rows[0]
    location = Location(*place)
    if not repair.store.layout.pack(location.pack).exists():
        return _mend_missing(repair, finding, digest, location)
    try:
        if _is_sound(repair, location, digest):
            return None
    except StoreFailing as error:
        return kept(finding, f"{error}: look after the disk, and try again")
    how = _trust_record(repair, blob_id, location) or _mend_header(repair, location, digest)
    copies = repair.copies.sound(digest, location.raw)
    good = [copy for copy in copies if _is_the_message(repair, blob_id, copy)]
    for copy in good:
        how = how or _put_back(repair, location, copy)
    for copy in good:
        how = how or _point_at(repair, blob_id, copy)
    for copy in good:
        how = how or _append(repair, blob_id, location, copy)
    if not how:
        # Of what is given up already only a copy is news.
        is_news = finding.severity is Severity.PROBLEM
        return _give_up(repair, finding, blob_id, location) if is_news else None
    say_mended(repair, finding, how)
    return mended(finding, how)


def _mend_missing(
    repair: Repair, finding: Finding, digest: bytes, location: Location
) -> Outcome | None:
    """A record whose pack is missing: had from a copy, or waited for, because the pack may be on a disk not mounted.

    Given up, its message would be reclaimed some weeks later, and the pack be dead when it comes back.
    """
    blob_id = BlobId(finding.number)
    copies = repair.copies.sound(digest, location.raw)
    good = [copy for copy in copies if _is_the_message(repair, blob_id, copy)]
    how = ""
    for copy in good:
        how = how or _point_at(repair, blob_id, copy)
    for copy in good:
        how = how or _append(repair, blob_id, location, copy)
    if how:
        say_mended(repair, finding, how)
        return mended(finding, how)
    return kept(
        finding,
        f"put {repair.store.layout.pack(location.pack).name} back, or name a backup that has it with "
        "--from (to give up what was in it, make an empty file of its name)",
    )


def _is_sound(repair: Repair, location: Location, digest: bytes) -> bool:
    """Whether the record the index describes lies there. Raises StoreFailing where the disk does not say."""
    packs = repair.store.packs
    packs.forget(location.pack)
    try:
        header = packs.header(location)
        for _ in packs.raw_pieces(location):
            pass
    except Corrupt:
        return False
    return (header.hash, HEADER_BYTES + header.stored, header.raw) == (
        digest,
        location.stored,
        location.raw,
    )


def _trust_record(repair: Repair, blob_id: BlobId, location: Location) -> str:
    """The record may be sound, and what the index says of it wrong."""
    packs = repair.store.packs
    try:
        file = packs.file(location.pack)
        header = file.header(location.offset)
        found = Copy(packs, repair.store.layout.root, file, location.offset, header)
        is_ours = found.is_sound() and _is_the_message(repair, blob_id, found)
    except (Corrupt, StoreError):
        return ""
    place = (location.pack, location.offset)
    rows = repair.store.index.rows("SELECT 1 FROM blob WHERE pack = ? AND offset = ?", place)
    if not is_ours or len(rows) != 1 or header.codec not in MESSAGE_CODECS:
        return ""
    with repair.transaction() as transaction:
        transaction.write(
            "UPDATE blob SET hash = ?, stored = ?, raw = ? WHERE blob_id = ?",
            (header.hash, HEADER_BYTES + header.stored, header.raw, blob_id),
        )
        _touch_messages(transaction, blob_id)
    return "the index says now what lies there"


def _is_the_message(repair: Repair, blob_id: BlobId, copy: Copy) -> bool:
    """The hash is not cryptographic: what a copy says must be what the index says of the messages of this record."""
    rows = repair.store.index.rows(
        "SELECT message_id, sender, recipient, subject FROM message_blob JOIN envelope USING (docid) "
        "WHERE blob_id = ?",
        (blob_id,),
    )
    return all(tuple(row) == _envelope(_parse(copy)) for row in rows)


def _parse(copy: Copy) -> ParsedMessage:
    start = b"".join(islice(copy.pieces(), PARSED_BYTES // FRAME_BYTES))
    return parse_start(start, copy.header.raw)


def _envelope(parsed: ParsedMessage) -> tuple[str, str, str, str]:
    return (parsed.message_id, parsed.sender, parsed.recipient, parsed.subject)


# --- where it lies


def _mend_header(repair: Repair, location: Location, digest: bytes) -> str:
    """What is missing may be only the header, which the index knows but for two fields."""
    packs = repair.store.packs
    try:
        file = packs.file(location.pack)
        for header in _possible_headers(file, location, digest):
            with suppress(Corrupt):
                if _fits(repair, file, location, header):
                    write_in_place(repair, location.pack, location.offset, [format_header(header)])
                    return "its header was made anew"
    except (Corrupt, StoreError):
        pass
    return ""


def _possible_headers(file: PackFile, location: Location, digest: bytes) -> Iterator[RecordHeader]:
    stored = location.stored - HEADER_BYTES
    if location.raw > FRAME_BYTES:
        yield RecordHeader(CODEC_CHAIN, 0, location.raw, stored, digest)
        return
    if location.raw == stored:
        yield RecordHeader(CODEC_RAW, 0, location.raw, stored, digest)
    yield RecordHeader(CODEC_ZSTD, 0, location.raw, stored, digest)
    dictionary = _dictionary_of(file)
    if dictionary is not None:
        yield RecordHeader(CODEC_ZSTD, dictionary.id, location.raw, stored, digest)


def _dictionary_of(file: PackFile) -> Dictionary | None:
    with suppress(Corrupt):
        return file.dictionary_or_none()
    return None


def _fits(repair: Repair, file: PackFile, location: Location, header: RecordHeader) -> bool:
    """Whether the payload there is that of this header. Raises Corrupt where it is not."""
    base = location.offset + HEADER_BYTES
    if header.codec == CODEC_CHAIN:
        for _ in iter_chain(header, lambda start, length: file.read(length, base + start)):
            pass
        return True
    payload = file.read(header.stored, base)
    find = repair.store.packs.dictionaries.find
    parse_record(format_header(header) + payload, lambda wanted: find(wanted, file))
    return True


def _put_back(repair: Repair, location: Location, copy: Copy) -> str:
    """Write the very bytes that were there, if they can be had from a copy."""
    try:
        file = repair.store.packs.file(location.pack)
        if not _is_free(file, location) or _is_another(repair, file, location):
            return ""
        dictionary = _dictionary_of(file)
        for chunks in _same_length(copy, location.stored, dictionary):
            write_in_place(repair, location.pack, location.offset, chunks)
            if _is_sound(repair, location, copy.header.hash):
                return f"put back from {copy}"
    except (Corrupt, StoreError):
        pass
    return ""


def _is_free(file: PackFile, location: Location) -> bool:
    """Whether no other record lies there: the row may be what is wrong."""
    end = location.offset + location.stored
    if location.offset < len(PACK_HEAD) or end > file.size:
        return False
    return not any(
        isinstance(found, Found)
        and found.offset < end
        and found.end > location.offset
        and (found.offset, found.end) != (location.offset, end)
        for found in resync(file)
    )


def _is_another(repair: Repair, file: PackFile, location: Location) -> bool:
    """Whether a sound record of something else lies there: it may be the only copy of that."""
    try:
        header = file.header(location.offset)
    except Corrupt:
        return False
    root = repair.store.layout.root
    return Copy(repair.store.packs, root, file, location.offset, header).is_sound()


def _same_length(
    copy: Copy, stored: int, dictionary: Dictionary | None
) -> Iterator[Iterator[bytes]]:
    known = (0, dictionary.id) if dictionary else (0,)
    if HEADER_BYTES + copy.header.stored == stored and copy.header.dictionary in known:
        yield copy.record.chunks()
    if copy.header.raw > FRAME_BYTES:
        return
    raw = b"".join(copy.pieces())
    used: list[Dictionary | None] = [None]
    if dictionary is not None:
        used += [Dictionary(dictionary.raw, level) for level in (LEVEL, THOROUGH_LEVEL)]
    for each in used:
        record = format_record(raw, copy.header.hash, each)
        if len(record) == stored:
            yield iter((record,))


def write_in_place(
    repair: Repair, pack: PackNumber, offset: int, chunks: Iterator[bytes] | list[bytes]
) -> None:
    """Write bytes into a pack, durably, under the writer lock. Raises StoreError."""
    path = repair.store.layout.pack(pack)
    with repair.store.writer.lock.hold("repair"):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                for chunk in chunks:
                    view = memoryview(chunk)
                    while view:
                        written = os.pwrite(fd, view, offset)
                        view, offset = view[written:], offset + written
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise storage_error(error, f"cannot mend {path}") from error
    repair.store.packs.forget(pack)


# --- in another place


def _point_at(repair: Repair, blob_id: BlobId, copy: Copy) -> str:
    """Take a record of our own packs that no row names and that was not reclaimed."""
    if copy.packs is not repair.store.packs:
        return ""
    pack = copy.file.number
    stored = HEADER_BYTES + copy.header.stored
    if not any(
        finding.kind is Kind.ORPHAN and (finding.number, finding.place) == (pack, copy.offset)
        for finding in repair.findings
    ):
        return ""
    with repair.transaction() as transaction:
        if transaction.rows(
            "SELECT 1 FROM blob WHERE pack = ? AND offset = ?", (pack, copy.offset)
        ) or not transaction.rows(
            "SELECT 1 FROM pack WHERE pack = ? AND size >= ?", (pack, copy.offset + stored)
        ):
            return ""
        transaction.write(
            "UPDATE blob SET pack = ?, offset = ?, stored = ?, raw = ? WHERE blob_id = ?",
            (pack, copy.offset, stored, copy.header.raw, blob_id),
        )
        _touch_messages(transaction, blob_id)
    return f"the index names the record at {copy.offset} of pack {pack} now"


def _append(repair: Repair, blob_id: BlobId, location: Location, copy: Copy) -> str:
    """Put a copy behind the newest pack; the damaged record is dead from now on."""
    with repair.transaction() as transaction:
        there = transaction.append(copy.record)
        transaction.write(
            "UPDATE blob SET pack = ?, offset = ?, stored = ?, raw = ? WHERE blob_id = ?",
            (*there, blob_id),
        )
        _touch_messages(transaction, blob_id)
        bury(transaction, location.pack, location.offset, copy.header.hash)
    return f"copied from {copy}"


def bury(transaction: Transaction, pack: PackNumber, offset: int, digest: bytes) -> None:
    """Say in the packs that what lies there is dead.

    In a pack of its own where it would come behind it: what follows on damage is not known to be a record.
    """
    ((newest,),) = transaction.rows("SELECT max(pack) FROM pack")
    if pack == newest:
        transaction.begin_pack()
    tombstone = Tombstone(pack, offset, digest)
    transaction.append(MemoryRecord(format_tombstones([tombstone])))


def _touch_messages(transaction: Transaction, blob_id: BlobId) -> None:
    for (docid,) in transaction.rows(
        "SELECT docid FROM message_blob WHERE blob_id = ?", (blob_id,)
    ):
        transaction.touch(Docid(docid))


# --- what is left


def _give_up(repair: Repair, finding: Finding, blob_id: BlobId, location: Location) -> Outcome:
    """Keep aside what there is, and expunge the messages, so that no client chokes on them."""
    path = save_rest(repair, location)
    messages: list[str] = []
    with repair.transaction() as transaction:
        for docid, message_id, sender, subject in transaction.rows(
            "SELECT docid, message_id, sender, subject FROM message_blob "
            "LEFT JOIN envelope USING (docid) WHERE blob_id = ?",
            (blob_id,),
        ):
            messages.append(f"message {docid} <{message_id}> from {sender}: {subject}")
            if transaction.expunge(Docid(docid)):
                transaction.say_repaired(
                    f"message {docid}", "its bytes are lost", f"what is left is in {path.name}"
                )
    how = f"there is no second copy; expunged, and what is left is in {path}"
    return Outcome(Fate.LOST, finding, how, "; ".join(messages))


def save_rest(repair: Repair, location: Location) -> Path:
    """Copy what lies there into STORE/damaged, as it is and, where some can be read, as text. Durable."""
    folder = repair.store.layout.damaged
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / damaged_name(location.pack, location.offset)
        _write_file(path, _raw_chunks(repair, location))
        readable = b"".join(_readable_pieces(repair, location))
        if readable:
            _write_file(path.with_name(f"{path.name}.eml"), [readable])
        sync_directory(folder)
        sync_directory(folder.parent)
    except OSError as error:
        raise storage_error(error, f"cannot write into {folder}") from error
    return path


def _write_file(path: Path, chunks: Iterator[bytes] | list[bytes]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(fd)


def _raw_chunks(repair: Repair, location: Location) -> Iterator[bytes]:
    with suppress(Corrupt, StoreError):
        file = repair.store.packs.file(location.pack)
        for start in range(0, location.stored, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, location.stored - start)
            yield file.read(length, location.offset + start)


def _readable_pieces(repair: Repair, location: Location) -> Iterator[bytes]:
    """The frames of a chain that can be read; of a short message what zstd makes of it, which may be wrong in places."""
    packs = repair.store.packs
    try:
        file = packs.file(location.pack)
        header = file.header(location.offset)
        if header.codec == CODEC_CHAIN:
            base = location.offset + HEADER_BYTES
            chain = Chain(header, lambda start, length: file.read(length, base + start))
            for number in range(chain.count):
                with suppress(Corrupt):
                    yield chain.frame(number)
        elif header.raw <= FRAME_BYTES:
            yield unpack_record(
                file.record(location.offset, header),
                lambda wanted: packs.dictionaries.find(wanted, file),
            )
    except (Corrupt, StoreError):
        return
