"""Rows of the index: put right, made anew from the bytes of their message; and messages that no row knows, taken in."""

from collections.abc import Iterator
from itertools import islice

from mailfs.errors import Corrupt, StoreError
from mailfs.ids import BlobId, Docid, PackNumber
from mailfs.message.parse import ParsedMessage
from mailfs.store.packs import Location
from mailfs.store.prepare import PARSED_BYTES, RECOVERED, prepare_record
from mailfs.store.records import FRAME_BYTES, HEADER_BYTES
from mailfs.store.rescue.checks_words import parse_record_at
from mailfs.store.rescue.findings import Finding, Kind
from mailfs.store.rescue.mending import Fate, Outcome, Repair, mended, say_mended
from mailfs.store.transaction import Transaction
from mailfs.store.unpacked import PackedRecord
from mailfs.store.upkeep.dump import save_own_dump


def mend_rows(repair: Repair, finding: Finding) -> Outcome:
    """By the statements that the finding brings along."""
    with repair.transaction() as transaction:
        for statement in finding.mend.split("; "):
            transaction.write(statement, (finding.number,) if "?1" in statement else ())
        if finding.where.startswith("message "):
            transaction.touch(Docid(finding.number))
        transaction.say_repaired(finding.where, finding.what, "put right")
    return mended(finding, "put right")


def mend_texts(repair: Repair, finding: Finding) -> Outcome | None:
    """Envelope, date, words and thread of a message, from its bytes."""
    docid = Docid(finding.number)
    rows = repair.store.index.rows(
        "SELECT pack, offset, stored, raw FROM message_blob JOIN blob USING (blob_id) "
        "WHERE docid = ? ORDER BY blob_id LIMIT 1",
        (docid,),
    )
    try:
        parsed = parse_record_at(repair.store.packs, Location(*rows[0])) if rows else None
    except (Corrupt, StoreError):
        parsed = None
    if parsed is None:
        parsed = _parsed_by_envelope(repair, docid)
    with repair.transaction() as transaction:
        if transaction.state_or_none(docid) is None:
            return None
        transaction.remake(docid, parsed)
        transaction.say_repaired(finding.where, finding.what, "made anew")
    return mended(finding, "made anew")


def _parsed_by_envelope(repair: Repair, docid: Docid) -> ParsedMessage:
    """What is still known of a message whose bytes are lost."""
    rows = repair.store.index.rows(
        "SELECT message_id, sender, recipient, subject, date FROM message "
        "LEFT JOIN envelope USING (docid) WHERE docid = ?",
        (docid,),
    )
    message_id, sender, recipient, subject, date = rows[0] if rows else ("", "", "", "", None)
    return ParsedMessage(
        message_id=message_id or "",
        references=(),
        date_s=date,
        received_s=None,
        subject=subject or "",
        sender=sender or "",
        recipient=recipient or "",
        cc="",
        list_id="",
        body="",
        attachment="",
        has_attachment=False,
        is_partial=True,
    )


def mend_dump(repair: Repair, finding: Finding) -> Outcome:
    """The dump a store keeps of itself, from the index, which is sound by now."""
    count = save_own_dump(repair.store.layout)
    how = f"written anew, with {count} messages"
    say_mended(repair, finding, how)
    return mended(finding, how)


# --- messages that no row knows


def adopt_orphan(repair: Repair, finding: Finding) -> Outcome | None:
    """A whole message in the packs: that of a message whose bytes the index does not know, or a new one."""
    place = _orphan(repair, finding)
    if place is None:
        return None
    location, record = place
    find = repair.store.packs.dictionaries.find
    file = repair.store.packs.file(location.pack)
    start = b"".join(
        islice(record.raw_pieces(lambda wanted: find(wanted, file)), PARSED_BYTES // FRAME_BYTES)
    )
    new = prepare_record(record, record.header, start)
    with repair.transaction() as transaction:
        docid = _without_bytes_or_none(transaction, new.parsed, new.size)
        if docid is not None:
            there = transaction.append(record)
            transaction.write(
                "INSERT INTO blob(hash, pack, offset, stored, raw) VALUES (?, ?, ?, ?, ?)",
                (new.digest, *there),
            )
            blob_id = transaction.rows("SELECT last_insert_rowid()")[0][0]
            _give_bytes(transaction, docid, BlobId(blob_id))
            how = f"it is message {docid}"
        else:
            added = transaction.add(new)
            how = f"taken in as message {added.docid} with the keyword {RECOVERED}"
        transaction.say_repaired(finding.where, finding.what, how)
    return mended(finding, how)


def _orphan(repair: Repair, finding: Finding) -> tuple[Location, PackedRecord] | None:
    pack, offset = PackNumber(finding.number), finding.place
    if repair.store.index.rows("SELECT 1 FROM blob WHERE pack = ? AND offset = ?", (pack, offset)):
        return None
    file = repair.store.packs.file(pack)
    header = file.header(offset)
    location = Location(pack, offset, HEADER_BYTES + header.stored, header.raw)
    return location, PackedRecord(file, offset, header)


def adopt_blob(repair: Repair, finding: Finding) -> Outcome | None:
    """Bytes that the index knows and of no message: they get their message back, or a new one."""
    blob_id = BlobId(finding.number)
    rows = repair.store.index.rows(
        "SELECT pack, offset, stored, raw FROM blob WHERE blob_id = ?", (blob_id,)
    )
    if not rows:
        return None
    location = Location(*rows[0])
    try:
        file = repair.store.packs.file(location.pack)
        record = PackedRecord(file, location.offset, file.header(location.offset))
        start = b"".join(_start_of(repair, location))
        new = prepare_record(record, record.header, start)
    except (Corrupt, StoreError):
        return _forget_blob(repair, finding, blob_id)
    with repair.transaction() as transaction:
        docid = _without_bytes_or_none(transaction, new.parsed, new.size)
        if docid is not None:
            _give_bytes(transaction, docid, blob_id)
            how = f"it is message {docid}"
        else:
            added = transaction.add(new)
            how = f"taken in as message {added.docid} with the keyword {RECOVERED}"
        transaction.say_repaired(finding.where, finding.what, how)
    return mended(finding, how)


def _start_of(repair: Repair, location: Location) -> Iterator[bytes]:
    return islice(repair.store.packs.raw_pieces(location), PARSED_BYTES // FRAME_BYTES)


def _forget_blob(repair: Repair, finding: Finding, blob_id: BlobId) -> Outcome:
    """A damaged record of no message: the packs' check tells of it, without a row, in the next round."""
    with repair.transaction() as transaction:
        transaction.write("DELETE FROM blob WHERE blob_id = ?", (blob_id,))
        transaction.say_repaired(finding.where, finding.what, "forgotten: it cannot be read")
    return mended(finding, "forgotten: it cannot be read")


def _without_bytes_or_none(
    transaction: Transaction, parsed: ParsedMessage, size: int
) -> Docid | None:
    """The message these bytes must be of: the only one without any of this size and with this envelope."""
    rows = transaction.rows(
        "SELECT docid FROM message JOIN envelope USING (docid) WHERE size = ? "
        "AND message_id = ? AND sender = ? AND recipient = ? AND subject = ? AND NOT EXISTS "
        "(SELECT 1 FROM message_blob JOIN blob USING (blob_id) WHERE docid = message.docid)",
        (size, parsed.message_id, parsed.sender, parsed.recipient, parsed.subject),
    )
    return Docid(rows[0][0]) if len(rows) == 1 else None


def _give_bytes(transaction: Transaction, docid: Docid, blob_id: BlobId) -> None:
    transaction.write("DELETE FROM message_blob WHERE docid = ?", (docid,))
    transaction.write("INSERT INTO message_blob VALUES (?, ?)", (docid, blob_id))
    transaction.touch(docid)


def give_up_message(repair: Repair, finding: Finding) -> Outcome | None:
    """A message without bytes, after all that could be its own were looked at: expunged."""
    docid = Docid(finding.number)
    if any(each.kind in (Kind.ORPHAN, Kind.UNOWNED) for each in repair.findings):
        return None  # in the next round
    with repair.transaction() as transaction:
        if not transaction.rows(
            "SELECT 1 FROM message WHERE docid = ? AND expunged = 0 AND NOT EXISTS "
            "(SELECT 1 FROM message_blob JOIN blob USING (blob_id) WHERE docid = message.docid)",
            (docid,),
        ):
            return None
        transaction.expunge(docid)
        transaction.say_repaired(finding.where, finding.what, "expunged: nothing of it is left")
        rows = transaction.rows(
            "SELECT message_id, sender, subject FROM envelope WHERE docid = ?", (docid,)
        )
    message = "; ".join(f"<{row[0]}> from {row[1]}: {row[2]}" for row in rows)
    return Outcome(Fate.LOST, finding, "expunged: nothing of it is left", message)
