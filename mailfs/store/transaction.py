"""One write transaction: what can be changed, and the order in which it becomes true.

Made and ended by Writer.transaction. Changes are seen by this transaction's own reads at once, by others when it
is committed.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet

import apsw

from mailfs.errors import Corrupt, NoSuchMessage
from mailfs.ids import Docid, Keyword, Modseq, SearchId
from mailfs.message.keywords import ATTACHMENT, DELETED, DELETED_BY_ENTRY, DELETED_LETTER
from mailfs.message.maildir import Base, format_base
from mailfs.message.parse import ParsedMessage
from mailfs.search.match import matching
from mailfs.search.tree import Query
from mailfs.store.adding import Added, Additions
from mailfs.store.database import Row
from mailfs.store.entries import EntryRows
from mailfs.store.journal import RECLAIMED, REPAIRED, JournalRows, Operation
from mailfs.store.keywords import KeywordRows
from mailfs.store.layout import Layout
from mailfs.store.packs import Location, PackReader
from mailfs.store.prepare import NewMessage
from mailfs.store.reclaim import Reclaimed, expunged_among, reclaim
from mailfs.store.remake import remake
from mailfs.store.saved import SearchRows, ViewState, ViewStateRows
from mailfs.store.source import IndexSource
from mailfs.store.stamp import Stamp
from mailfs.store.unpacked import Record


class Transaction:
    """Changes to the store; made by Writer.transaction, good until its block ends.

    `entries`: the names clients chose. `searches`: the saved searches.
    """

    def __init__(
        self,
        connection: apsw.Connection,
        layout: Layout,
        packs: PackReader,
        durable: bool,
        operation: Operation,
        admit: Callable[[int], None],
    ) -> None:
        self._sql = connection
        self._layout = layout
        row = connection.execute(
            "SELECT modseq + 1, (SELECT max(seq) + 1 FROM sqlite_sequence WHERE name = 'message') "
            "FROM state"
        ).fetchone()
        if row is None:
            raise Corrupt(f"the index {layout.index} has no state row")
        self._stamp = Stamp(connection, Modseq(row[0]), time.time_ns())
        self._journal = JournalRows(connection, self._stamp, operation)
        self._keywords = KeywordRows(connection, self._stamp, self._journal)
        self._additions = Additions(
            connection,
            layout,
            packs,
            self._stamp,
            self._keywords,
            Docid(row[1] or 1),
            admit,
            durable=durable,
        )
        self.entries = EntryRows(connection, self._stamp)
        self.searches = SearchRows(connection, self._stamp, self._journal)
        self._view_states = ViewStateRows(connection, self._stamp)

    @property
    def modseq(self) -> Modseq:
        """What this transaction stamps rows with."""
        return self._stamp.modseq

    @property
    def now_ns(self) -> int:
        """When this transaction began: one time for all it writes."""
        return self._stamp.now_ns

    @property
    def changed(self) -> bool:
        """Something a reader must notice has changed: the modseq is taken at the end."""
        return self._stamp.is_used

    @property
    def has_written(self) -> bool:
        """Something was written, whether readers must notice it or not."""
        return self._stamp.is_used or self._stamp.must_commit

    def rows(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        """All rows of one statement on this connection. For the modules of store/ only."""
        return self._sql.execute(statement, tuple(parameters)).fetchall()

    # --- for the modules of store/ only

    def write(self, statement: str, parameters: Sequence[object] = ()) -> int:
        """Change rows in a way that no reader need notice; how many there were."""
        self._sql.execute(statement, tuple(parameters))
        self._stamp.must_commit = True
        return self._sql.changes()

    def touch(self, docid: Docid) -> None:
        """Stamp a message whose rows were changed by write(): the change feed tells of it."""
        self._stamp.put_on(docid)

    def remake(self, docid: Docid, parsed: ParsedMessage) -> None:
        """Make anew all that the index says of a message by its bytes."""
        remake(self._sql, self._stamp, docid, parsed)

    def say_repaired(self, where: str, what: str, how: str) -> None:
        """Put into the journal that this transaction repairs something."""
        self._journal.add_event(REPAIRED, None, {"where": where, "what": what, "how": how})
        self._stamp.is_used = True

    def append(self, record: Record) -> Location:
        """Put a whole record behind the newest pack; rows that name it are the caller's. Needs a durable transaction."""
        self._stamp.must_commit = True
        return self._additions.append(record)

    def begin_pack(self) -> None:
        """Go on in a new pack, with the newest dictionary; nothing is appended to the one before any more."""
        self._additions.begin_pack()
        self._stamp.must_commit = True

    # --- messages

    def add(self, new: NewMessage, *, force_sync: bool = True) -> Added:
        """Add a message unless its bytes are known. Needs a durable transaction, unless without `force_sync`.

        Its thread, words and keywords are indexed. A known message is left as it is. Its bytes are synced before the
        index names them in any case.
        """
        return self._additions.add(new, force_sync=force_sync)

    # --- what is so

    def is_live(self, docid: Docid) -> bool:
        """Whether there is such a message and it is not expunged."""
        return bool(self.rows("SELECT 1 FROM message WHERE docid = ? AND expunged = 0", (docid,)))

    def flags(self, docid: Docid) -> int:
        """The bits of a message, live or expunged. Raises NoSuchMessage."""
        return self._state_of(docid)[0]

    def state_or_none(self, docid: Docid) -> tuple[int, int] | None:
        """Flags of a message, and when it was expunged, 0 for a live one."""
        found = self.rows("SELECT flags, expunged FROM message WHERE docid = ?", (docid,))
        return (int(found[0][0]), int(found[0][1])) if found else None

    def _state_of(self, docid: Docid) -> tuple[int, int]:
        """The same. Raises NoSuchMessage."""
        state = self.state_or_none(docid)
        if state is None:
            raise NoSuchMessage(f"no message {docid}")
        return state

    def base_of(self, docid: Docid) -> bytes:
        """The canonical base name of a message, live or expunged. Raises NoSuchMessage."""
        found = self.rows("SELECT received_ns, size FROM message WHERE docid = ?", (docid,))
        if not found:
            raise NoSuchMessage(f"no message {docid}")
        received_ns, size = found[0]
        return format_base(Base(received_ns // 1_000_000_000, docid, self._layout.store_id, size))

    def keywords(self, docid: Docid) -> frozenset[Keyword]:
        """The user's own keywords of a message."""
        return self._keywords.of(docid)

    def matches(self, query: Query, docid: Docid) -> bool:
        """Whether a message matches, live or expunged, with the changes made so far."""
        now_s = self._stamp.now_ns / 1_000_000_000
        return bool(matching(query, [docid], IndexSource(self), now_s))

    # --- changes of a message

    def edit_flags(self, docid: Docid, add: int, remove: int) -> bool:
        """Set and clear bits of a message; False where nothing changed. Raises NoSuchMessage."""
        before, expunged = self._state_of(docid)
        flags = (before & ~remove) | add
        if flags == before:
            return False
        self._journal.change_of(docid, before, expunged).flags_after = flags
        self._sql.execute("UPDATE message SET flags = ? WHERE docid = ?", (flags, docid))
        self._stamp.put_on(docid)
        if before & ~flags & DELETED_BY_ENTRY:
            # Said of the message itself now, or of nothing: an entry's old T must not come back with a later one.
            self.entries.remove_letter(docid, DELETED_LETTER)
        return True

    def edit_keywords(
        self, docid: Docid, add: Iterable[Keyword] = (), remove: Iterable[Keyword] = ()
    ) -> bool:
        """Put the user's own keywords on a message and take others off; False where nothing changed.

        Raises NoSuchMessage.
        """
        state = self._state_of(docid)
        added = [keyword for keyword in add if self._keywords.link(docid, keyword)]
        removed = [keyword for keyword in remove if self._keywords.unlink(docid, keyword)]
        if not added and not removed:
            return False
        change = self._journal.change_of(docid, *state)
        for keyword in added:
            change.put_on(keyword)
        for keyword in removed:
            change.take_off(keyword)
        self._stamp.put_on(docid)
        return True

    def rename_keyword(
        self, old: Keyword, new: Keyword, but: AbstractSet[Docid] = frozenset()
    ) -> None:
        """Put `new` in the place of `old` on all messages but these.

        Raises KeywordInUse when a live one has `new`.
        """
        self._keywords.rename(old, new, but)

    def expunge(self, docid: Docid) -> bool:
        """Mark a message expunged; its chosen names go. Its row, keywords and bytes stay until they are reclaimed.

        False, and nothing happens, to one that is expunged already or not there.
        """
        if not self.is_live(docid):
            return False
        self.set_expunged(docid, self.now_ns // 1_000_000_000)
        return True

    def set_expunged(self, docid: Docid, expunged: int) -> None:
        """Make a message one that was expunged at this second, or with 0 a live one; all else of it stays.

        Raises NoSuchMessage.
        """
        flags, before = self._state_of(docid)
        if before == expunged:
            return
        self._journal.change_of(docid, flags, before).expunged_after = expunged
        self._sql.execute("UPDATE message SET expunged = ? WHERE docid = ?", (expunged, docid))
        self._stamp.put_on(docid)
        if expunged:
            self.entries.remove_everywhere(docid)

    def undelete(self, docid: Docid) -> bool:
        """Make an expunged message live again, as it was, but for a mark that it is to be deleted.

        False for a live one. Raises NoSuchMessage.
        """
        if not self._state_of(docid)[1]:
            return False
        self.set_expunged(docid, 0)
        self.edit_flags(docid, 0, DELETED | DELETED_BY_ENTRY)
        return True

    def revive(self, docid: Docid) -> None:
        """Make an expunged message live again, as if it had just come: no keywords of the user's own, no flags.

        Nothing happens to a live one. Raises NoSuchMessage.
        """
        flags, expunged = self._state_of(docid)
        if expunged:
            self.set_expunged(docid, 0)
            self.edit_keywords(docid, remove=self.keywords(docid))
            self.edit_flags(docid, 0, flags & ~ATTACHMENT)

    def reclaim(self, docids: Sequence[Docid], until_s: float = math.inf) -> Reclaimed:
        """Delete messages that were expunged before `until_s`, and give up their bytes where no other message has them.

        Others, live ones and unknown ones are left out. Needs a durable transaction.
        """
        gone = expunged_among(self._sql, docids, until_s)
        if not gone:
            return Reclaimed(0, 0, 0)
        reclaimed = reclaim(self._sql, gone, self._additions.append)
        self._journal.forget_messages(frozenset(gone))
        self._journal.add_event(
            RECLAIMED,
            None,
            {"messages": reclaimed.messages, "bytes": reclaimed.stored_bytes},
        )
        self._stamp.is_used = True
        return reclaimed

    def forget_journal(self, modseq: Modseq) -> None:
        """Drop what the journal says of an old transaction. No reader need notice."""
        self._journal.forget(modseq)

    def settle_deleted(self, docid: Docid) -> None:
        """Take $deleted off a message that had it from entries, when none of them says so any more."""
        flags = self.flags(docid)
        if flags & DELETED_BY_ENTRY and not self.rows(
            "SELECT 1 FROM entry WHERE docid = ? AND instr(extra, ?)", (docid, DELETED_LETTER)
        ):
            self.edit_flags(docid, 0, DELETED | DELETED_BY_ENTRY)

    # --- what a mount leaves for the next one

    def put_view_states(self, states: Iterable[ViewState], modseq: Modseq) -> None:
        """As ViewStateRows.put."""
        self._view_states.put(states, modseq)

    def take_view_states(self) -> dict[SearchId, ViewState]:
        """As ViewStateRows.take."""
        return self._view_states.take()

    # --- the end

    def commit(self) -> None:
        """Sync the packs, then commit the index. On an error nothing is committed."""
        self._additions.sync_packs()
        if self.changed:
            self._journal.write(self._additions.first, self._additions.next)
            self._sql.execute("UPDATE state SET modseq = ?", (self.modseq,))
        self._sql.execute("COMMIT" if self.has_written else "ROLLBACK")
        self._journal.committed()

    def is_committed(self) -> bool:
        """What the index says, which knows best: an interrupt may come right behind the COMMIT."""
        if not self.changed:
            return self._additions.is_acknowledged()
        row = self._sql.execute("SELECT modseq FROM state").fetchone()
        return row is None or row[0] == self.modseq

    def take_back_packs(self) -> None:
        self._additions.take_back_packs()

    def close(self) -> None:
        self._additions.close()
