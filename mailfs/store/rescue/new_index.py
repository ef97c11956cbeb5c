"""Building a new index: rows of the old one and of a dump, the records of the packs, and what the messages say.

What the tables must be like is so at the end whatever was lost; what could not be kept is told.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, NamedTuple

from mailfs.errors import BadDump
from mailfs.ids import Docid, Modseq, PackNumber
from mailfs.message.keywords import ATTACHMENT
from mailfs.message.parse import ParsedMessage, parse_message
from mailfs.store.database import building
from mailfs.store.journal import this_process
from mailfs.store.layout import Layout
from mailfs.store.packs import Location, PackReader
from mailfs.store.prepare import RECOVERED, received_of
from mailfs.store.rebuilt import new_path
from mailfs.store.rescue.checks_index import check_names, check_rows
from mailfs.store.rescue.old_index import OldIndex, raise_sequence
from mailfs.store.rescue.reconcile import Claims, PackScan, Reconciled
from mailfs.store.rescue.refill import UNKNOWN_DATE, Refill
from mailfs.store.schema import FIRST_SEARCHES
from mailfs.store.texts import put_texts
from mailfs.store.threads import assign_thread
from mailfs.store.upkeep.dump import dump_path, opened_dump

# One thing put right may be another that is wrong.
_ROUNDS = 3


class ToRead(NamedTuple):
    """A message to be parsed: its docid, and where its bytes lie."""

    docid: Docid
    location: Location


class WasRead(NamedTuple):
    """What was found there. With a `problem` it is only what could be read; None: nothing."""

    docid: Docid
    parsed: ParsedMessage | None
    problem: str


# Reads messages, in order, in lists: in this process, or in several.
Prepare = Callable[[Iterator[ToRead]], Iterator[list[WasRead]]]


@dataclass(slots=True)
class Rebuilt:
    """What a new index holds, and where it is from.

    A line each, for a person: `notes` tell what had to be done without, `problems` what is not as it should be.
    """

    messages: int = 0
    expunged: int = 0
    from_dump: int = 0
    recovered: int = 0
    reclaimed: int = 0
    has_bad_dump: bool = False
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class NewIndex:
    """One rebuild, up to the closed file."""

    def __init__(
        self, layout: Layout, prepare: Prepare, progress: Callable[[int, int], None]
    ) -> None:
        self._layout = layout
        self._prepare = prepare
        self._progress = progress
        self._packs = PackReader(layout)
        self._result = Rebuilt()
        self._now_ns = time.time_ns()
        # Messages whose thread is found by their references: nobody said what it is.
        self._threadless: list[tuple[Docid, tuple[str, ...]]] = []

    def build(self, dump: BinaryIO | None) -> Rebuilt:
        """Write the file index.new. Raises BadDump, StoreFull, StoreError."""
        with (
            closing(OldIndex(self._layout.index)) as old,
            building(new_path(self._layout), is_new=True) as new,
        ):
            self._new, self._old = new, old
            new.execute("BEGIN")
            old.copy_into(new)
            self._refill(dump)
            reconciled = self._reconcile()
            self._settle_state(reconciled)
            self._read_all()
            self._assign_threads()
            self._put_right()
            self._count()
            new.execute("COMMIT")
        self._result.notes[:0] = old.problems
        return self._result

    def _refill(self, dump: BinaryIO | None) -> None:
        """From the dump, where the old index is damaged."""
        if not self._old.damaged:
            return
        if dump is None:
            path = dump_path(self._layout)
            if not path.exists():
                self._result.notes.append(f"there is no dump {path} to look at")
                return
            known = len(self._result.notes)
            try:
                with path.open("rb") as own:
                    self._refill_from(own, str(path))
            except (BadDump, OSError) as error:
                # Nobody asked for it: what it would have told is done without.
                self._result.notes.append(f"{path}: {error}")
            self._result.has_bad_dump = len(self._result.notes) > known
        else:
            self._refill_from(dump, "the dump given")

    def _refill_from(self, file: BinaryIO, name: str) -> None:
        refill = Refill(self._new, self._layout, self._old)
        with opened_dump(file, name, self._result.notes) as lines:
            refill.run(lines)
        self._result.from_dump = refill.messages

    # --- rows

    def _reconcile(self) -> Reconciled:
        self._drop_dangling(
            "message_blob",
            "docid NOT IN (SELECT docid FROM message) OR blob_id NOT IN (SELECT blob_id FROM blob)",
        )
        self._drop_dangling("blob", "blob_id NOT IN (SELECT blob_id FROM message_blob)")
        scan = PackScan(self._new, self._layout, self._packs)
        scan.run()
        self._drop_dangling("dictionary", "bytes = x''")
        reconciled = Claims(self._new, self._packs).meet()
        self._result.reclaimed = reconciled.reclaimed
        self._result.problems += [*scan.problems, *reconciled.problems]
        return reconciled

    def _drop_dangling(self, table: str, condition: str) -> None:
        self._new.execute(f"DELETE FROM {table} WHERE {condition}")

    def _settle_state(self, reconciled: Reconciled) -> None:
        """What the tables must be like, whatever was lost."""
        new = self._new
        if not new.execute("SELECT 1 FROM search LIMIT 1").fetchone() and (
            "search" in self._old.damaged
        ):
            new.executemany(
                "INSERT INTO search(name, query, on_rm, changed_ns) VALUES (?, ?, '', ?)",
                [(*search, self._now_ns) for search in FIRST_SEARCHES],
            )
        if not new.execute("SELECT 1 FROM state").fetchone():
            # Who remembers an earlier state is to think that everything has changed.
            last = "SELECT ifnull(max(modseq), 1) FROM message"
            new.execute(f"INSERT INTO state VALUES (1, ({last}), ({last}), ({last}))")
        self._drop_lost(reconciled.missing)
        # What only indexes know has no size.
        new.execute(
            "UPDATE message SET size = (SELECT raw FROM message_blob JOIN blob USING (blob_id) "
            "WHERE message_blob.docid = message.docid ORDER BY blob_id LIMIT 1) "
            "WHERE size = 0 AND docid IN (SELECT docid FROM message_blob)"
        )
        new.execute(
            "INSERT OR IGNORE INTO keyword SELECT DISTINCT keyword_id, 'lost-' || keyword_id "
            "FROM message_keyword WHERE keyword_id NOT IN (SELECT keyword_id FROM keyword)"
        )
        for table in ("message_keyword", "message_blob"):
            self._drop_dangling(table, "docid NOT IN (SELECT docid FROM message)")
        self._drop_dangling(
            "entry",
            "docid NOT IN (SELECT docid FROM message WHERE expunged = 0) "
            "OR search_id NOT IN (SELECT search_id FROM search)",
        )
        for table in ("journal_change", "journal_event"):
            self._drop_dangling(table, "modseq NOT IN (SELECT modseq FROM journal)")
        # An operation whose first transaction is lost falls apart into its slices.
        new.execute(
            "UPDATE journal SET operation = modseq "
            "WHERE operation NOT IN (SELECT modseq FROM journal)"
        )
        new.execute(
            "UPDATE state SET modseq = max(modseq, (SELECT ifnull(max(modseq), 0) FROM message), "
            "(SELECT ifnull(max(modseq), 0) FROM journal))"
        )
        for table, key, others in (
            ("message", "docid", "SELECT ifnull(max(last_added), 0) FROM journal"),
            ("search", "search_id", "SELECT ifnull(max(search_id), 0) FROM entry"),
        ):
            row = new.execute(f"SELECT max(ifnull(max({key}), 0), ({others})) FROM {table}")
            raise_sequence(new, table, _number(row))
        self._adopt(reconciled.unknown)

    def _drop_lost(self, missing: list[int]) -> None:
        """Messages that have no bytes any more: expunged ones are gone, others keep their place."""
        new = self._new
        for blob_id in missing:
            row = new.execute(
                "SELECT docid, expunged, modseq, pack, offset FROM message_blob "
                "JOIN message USING (docid) JOIN blob USING (blob_id) WHERE blob_id = ?",
                (blob_id,),
            ).fetchone()
            if row is None:
                continue
            docid, expunged, modseq, pack, offset = row
            if expunged:
                new.execute(
                    "UPDATE state SET reclaimed_modseq = max(reclaimed_modseq, ?)", (modseq,)
                )
                new.execute("DELETE FROM message WHERE docid = ?", (docid,))
                new.execute("DELETE FROM blob WHERE blob_id = ?", (blob_id,))
                continue
            self._result.problems.append(
                f"message {docid}: its bytes are in no pack (they were in pack {pack} at {offset})"
            )
            # Sealed, so that nobody looks for its end to go on there.
            new.execute("INSERT OR IGNORE INTO pack VALUES (?, ?, 1)", (pack, offset))
        for docid, size in new.execute(
            "SELECT docid, size FROM message WHERE docid NOT IN (SELECT docid FROM message_blob)"
        ).fetchall():
            self._result.notes.append(
                f"message {docid} of {size} bytes: nothing tells which bytes are its own; what nobody "
                f"claims has the keyword {RECOVERED}"
            )
            new.execute("DELETE FROM message WHERE docid = ?", (docid,))

    def _adopt(self, unknown: list[tuple[Location, bytes]]) -> None:
        """Give each record nobody knows of a message; what it says is read with all others."""
        if not unknown:
            return
        new = self._new
        new.execute("UPDATE state SET modseq = modseq + 1")
        modseq = _number(new.execute("SELECT modseq FROM state"))
        first = docid = (
            _number(new.execute("SELECT seq FROM sqlite_sequence WHERE name = 'message'")) + 1
        )
        new.execute("INSERT OR IGNORE INTO keyword(name) VALUES (?)", (RECOVERED,))
        keyword_id = _number(
            new.execute("SELECT keyword_id FROM keyword WHERE name = ?", (RECOVERED,))
        )
        for docid, (where, digest) in enumerate(unknown, first):
            new.execute(
                "INSERT INTO blob(hash, pack, offset, stored, raw) VALUES (?, ?, ?, ?, ?)",
                (digest, *where),
            )
            new.execute("INSERT INTO message_blob VALUES (?, ?)", (docid, new.last_insert_rowid()))
            new.execute(
                "INSERT INTO message VALUES (?, ?, 0, 0, ?, 0, ?, ?, 0)",
                (docid, modseq, where.raw, self._now_ns, UNKNOWN_DATE),
            )
            new.execute("INSERT INTO message_keyword VALUES (?, ?)", (keyword_id, docid))
        actor = this_process()
        new.execute(
            "INSERT INTO journal VALUES (?, ?, ?, ?, ?, 'reindex', ?, ?, 0)",
            (modseq, modseq, self._now_ns, actor.pid, actor.command, first, docid),
        )
        self._result.recovered = len(unknown)

    # --- what the messages say

    def _read_all(self) -> None:
        total = _number(self._new.execute("SELECT count(*) FROM message"))
        done = 0
        unread: list[WasRead] = []
        for batch in self._prepare(self._to_read()):
            for item in batch:
                if item.problem:
                    unread.append(item)
                else:
                    assert item.parsed is not None
                    self._put(item.docid, item.parsed)
            done += len(batch)
            self._progress(done, total)
        self._put_unread(unread)

    def _to_read(self) -> Iterator[ToRead]:
        last = None
        for docid, pack, offset, stored, raw in self._new.execute(
            "SELECT docid, pack, offset, stored, raw FROM message_blob JOIN blob USING (blob_id) "
            "ORDER BY docid, blob_id"
        ):
            if docid != last:
                yield ToRead(Docid(docid), Location(PackNumber(pack), offset, stored, raw))
            last = docid

    def _put(self, docid: Docid, parsed: ParsedMessage) -> None:
        """The words of a message, and what of its row follows from its bytes."""
        put_texts(self._new, docid, parsed)
        row: Any = self._new.execute(
            "SELECT flags, received_ns, date, thread, modseq FROM message WHERE docid = ?", (docid,)
        ).fetchone()
        flags, received_ns, date, thread, modseq = row
        received_ns = received_ns or received_of(parsed, None)
        expected = (
            (flags & ~ATTACHMENT) | (ATTACHMENT if parsed.has_attachment else 0),
            received_ns,
            received_ns // 1_000_000_000 if parsed.date_s is None else parsed.date_s,
            modseq or _number(self._new.execute("SELECT modseq FROM state")),
        )
        if expected != (flags, row[1], date, modseq):
            self._new.execute(
                "UPDATE message SET flags = ?, received_ns = ?, date = ?, modseq = ?, "
                "changed_ns = iif(changed_ns, changed_ns, ?) WHERE docid = ?",
                (*expected, self._now_ns, docid),
            )
        message_ids = (
            (parsed.message_id, *parsed.references) if parsed.message_id else parsed.references
        )
        if not thread:
            self._threadless.append((docid, message_ids))
        elif "reference" in self._old.damaged:
            self._new.executemany(
                "INSERT OR IGNORE INTO reference VALUES (?, ?)",
                ((message_id, thread) for message_id in message_ids),
            )

    def _put_unread(self, unread: list[WasRead]) -> None:
        """Messages that are damaged keep what the old index said of them; of the ones it did not know nothing is kept."""
        envelopes = {row[0]: row for row in self._old.envelopes({item.docid for item in unread})}
        for item in unread:
            self._result.problems.append(f"message {item.docid}: {item.problem}")
            parsed = item.parsed or parse_message(b"")
            if (row := envelopes.get(item.docid)) is not None:
                _, message_id, sender, recipient, subject = map(str, row)
                parsed = replace(
                    parsed,
                    message_id=message_id,
                    sender=sender,
                    recipient=recipient,
                    subject=subject,
                )
            self._put(item.docid, parsed)

    def _assign_threads(self) -> None:
        modseq = Modseq(_number(self._new.execute("SELECT modseq FROM state")))
        for docid, message_ids in self._threadless:
            thread = assign_thread(self._new, docid, message_ids, modseq, self._now_ns)
            self._new.execute("UPDATE message SET thread = ? WHERE docid = ?", (thread, docid))

    def _put_right(self) -> None:
        """What was read from damaged pages may be nonsense: what a check would find is mended here already."""
        if not self._old.damaged:
            return
        for _ in range(_ROUNDS):
            findings = [
                finding
                for check in (check_rows, check_names)
                for finding in check(self._new)
                if finding.mend
            ]
            for finding in findings:
                for statement in finding.mend.split("; "):
                    number = (finding.number,) if "?1" in statement else ()
                    self._new.execute(statement, number)
            if not findings:
                return

    def _count(self) -> None:
        counts: Any = self._new.execute(
            "SELECT count(*) FILTER (WHERE expunged = 0), count(*) FILTER (WHERE expunged) "
            "FROM message"
        ).fetchone()
        self._result.messages, self._result.expunged = counts


def _number(rows: Iterable[Any]) -> int:
    """The one number a statement gives."""
    for (number,) in rows:
        return int(number)
    return 0
