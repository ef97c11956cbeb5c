"""A message enters a view: by delivery (link or rename of a file), by link, cp, or mv from another view.

Entering makes the view's query true: keywords it names are put on or taken off, flags it names set or cleared; then
the query is asked, inside the transaction, and a message that would not be shown is refused, the file still where it
was. A message whose bytes are known is not stored again: it gets one more entry, the union of the flags, and stands in
new/ or cur/ where it was put last. One that was expunged comes back as if new.
"""

import errno
import os
from dataclasses import dataclass

from mailfs.errors import EditRefused, NoSuchMessage, NotFound
from mailfs.ids import Docid, Ino, SearchId
from mailfs.message.keywords import DELETED, DELETED_BY_ENTRY, LETTER_BITS, RECENT
from mailfs.message.maildir import ChosenName, Form, form_of, parse_base_or_none, split_name
from mailfs.search.query import parse_query
from mailfs.search.tree import flag_rule, label_rule
from mailfs.store.prepare import NewMessage, prepare_file
from mailfs.store.store import Store
from mailfs.store.transaction import Outcome, Transaction
from mailfs.store.writer import DEFAULT_DEADLINE_S
from mailfs.views.edits import (
    EntryEdit,
    Removal,
    check_base,
    plan_removal,
    plan_replacement,
    put_names,
    replace_message,
    with_deleted,
)
from mailfs.views.letters import Meaning
from mailfs.views.tree import Directory, Kind, Tree

# Entries of one message in one view: a listing numbers them in eight bits.
MAX_NAMES = 200


@dataclass(frozen=True, slots=True)
class SpooledFile:
    """An ordinary file that is to become a message. Its mtime will be the message's."""

    ino: Ino
    path: bytes


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message that is here already. `is_revived`: also when it has been expunged meanwhile."""

    docid: Docid
    is_revived: bool = False


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message enters a view under a name.

    departure   what it leaves in the same transaction: a label view, or one of its names
    replaced    whose name it takes, as rename(2) over an existing name
    is_lenient  a name that belongs to another message is replaced by the canonical one
    """

    source: SpooledFile | StoredMessage
    search_id: SearchId
    view_name: str
    query: str
    base: bytes
    meaning: Meaning
    form: Form
    in_new: bool
    departure: Removal | EntryEdit | None = None
    replaced: Removal | EntryEdit | None = None
    is_lenient: bool = False

    @property
    def is_durable(self) -> bool:
        """What link and rename from tmp/ acknowledge survives power loss; mv between views loses nothing without."""
        return isinstance(self.source, SpooledFile) or self.source.is_revived


def plan_arrival(
    tree: Tree,
    source: SpooledFile | StoredMessage,
    directory: Directory,
    name: bytes,
    *,
    is_exclusive: bool,
    is_lenient: bool = False,
    departure: Removal | EntryEdit | None = None,
) -> Arrival:
    """A file or message gets this name in cur/ or new/. Raises EditRefused (EEXIST, ENAMETOOLONG)."""
    view = directory.view
    if view is None or not directory.holds_messages:
        raise EditRefused("messages live in cur and new")
    base, letters = split_name(name)
    replaced = None
    if not is_lenient:
        check_base(base)
        docid = source.docid if isinstance(source, StoredMessage) else None
        replaced = plan_replacement(tree, directory, name, docid, is_exclusive=is_exclusive)
    in_new = directory.kind == Kind.NEW
    return Arrival(
        source=source,
        search_id=view.search.search_id,
        view_name=view.search.name,
        query=view.search.query,
        base=base,
        meaning=view.letters.meaning(letters or b""),
        form=form_of(letters, in_new=in_new),
        in_new=in_new,
        departure=departure,
        replaced=replaced,
        is_lenient=is_lenient,
    )


def plan_move(
    tree: Tree,
    directory: Directory,
    name: bytes,
    new_directory: Directory,
    new_name: bytes,
    *,
    is_exclusive: bool,
) -> Arrival:
    """mv of a message to another view. Out of a query view it only enters: it stays where it still matches."""
    found = tree.find_message(directory, name)
    view = directory.view
    assert view is not None
    departure: Removal | EntryEdit | None = None
    others = tuple(row for row in tree.names.rows(view, found.docid) if row != found.entry)
    if others:
        departure = EntryEdit(found.docid, view, names=others)
    elif view.rule is not None or view.search.on_rm:
        departure = plan_removal(tree, view, found.docid)
    return plan_arrival(
        tree,
        StoredMessage(found.docid),
        new_directory,
        new_name,
        is_exclusive=is_exclusive,
        departure=departure,
    )


def commit_arrival(store: Store, arrival: Arrival, deadline_s: float = DEFAULT_DEADLINE_S) -> Docid:
    """Store what is new and make it a member. For any thread; the file itself is left where it is.

    On return the message survives power loss where `is_durable`. Raises EditRefused, Busy, StoreError, StoreFull.
    """
    new = _prepare(store, arrival)
    with store.writer.transaction(
        "delivery", durable=arrival.is_durable, deadline_s=deadline_s
    ) as tx:
        return _Entering(tx, arrival).run(new)


def _prepare(store: Store, arrival: Arrival) -> NewMessage | None:
    if not isinstance(arrival.source, SpooledFile):
        return None
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(arrival.source.path, flags)
    except FileNotFoundError:
        raise NotFound("the file was removed before it could be delivered") from None
    try:
        found = os.fstat(fd)
        return prepare_file(fd, found.st_size, 0, (), found.st_mtime_ns, store.layout)
    finally:
        os.close(fd)


class _Entering:
    """One arrival within its transaction."""

    def __init__(self, tx: Transaction, arrival: Arrival) -> None:
        self._tx = tx
        self._arrival = arrival
        self._query = parse_query(arrival.query)

    def run(self, new: NewMessage | None) -> Docid:
        tx, arrival = self._tx, self._arrival
        docid, is_new = self._take(new)
        had_entry = not is_new and self._is_shown(docid)
        names: set[ChosenName] = set()
        if had_entry:  # rows of a message that has left are of the past
            names = set(tx.entries.names(arrival.search_id, docid))
            names = names or {ChosenName(tx.base_of(docid))}
        self._free_name(docid)
        self._leave(docid)
        self._enter(docid, is_new=is_new)
        is_moved = arrival.departure is not None
        names |= self._new_name(docid, is_copy=not is_new and not is_moved, names=names)
        if len(names) > MAX_NAMES:
            raise EditRefused(
                f"{arrival.view_name} has {MAX_NAMES} copies of this message", errno.EMLINK
            )
        canonical = {ChosenName(tx.base_of(docid))}
        put_names(tx, arrival.search_id, docid, () if names == canonical else tuple(sorted(names)))
        tx.settle_deleted(docid)
        return docid

    def _take(self, new: NewMessage | None) -> tuple[Docid, bool]:
        """The message, and whether it is new here (or back)."""
        tx, source = self._tx, self._arrival.source
        if new is not None:
            docid, outcome = tx.add(new)
            if outcome is Outcome.EXPUNGED:
                tx.revive(docid)
            return docid, outcome is not Outcome.KNOWN
        assert isinstance(source, StoredMessage)
        if tx.is_live(source.docid):
            return source.docid, False
        if not source.is_revived:
            raise NoSuchMessage(f"message {source.docid} has been removed")
        tx.revive(source.docid)
        return source.docid, True

    def _is_shown(self, docid: Docid) -> bool:
        return self._tx.is_live(docid) and self._tx.matches(self._query, docid)

    def _owner_or_none(self, docid: Docid) -> Docid | None:
        """Another message that has this name in the view: by a row, or because it is its canonical one."""
        tx, arrival = self._tx, self._arrival
        owner = tx.entries.docid_or_none(arrival.search_id, arrival.base)
        if owner is not None and not self._is_shown(owner):
            tx.entries.remove(arrival.search_id, arrival.base)  # of a message that has left
            owner = None
        if owner is None:
            parsed = parse_base_or_none(arrival.base)
            if (
                parsed is not None
                and tx.is_live(parsed.docid)
                and tx.base_of(parsed.docid) == arrival.base
                and not tx.entries.names(arrival.search_id, parsed.docid)
                and self._is_shown(parsed.docid)
            ):
                owner = parsed.docid
        return None if owner == docid else owner

    def _free_name(self, docid: Docid) -> None:
        """Take the name from whom it may be taken. What a replaced message loses by it, the new one gets."""
        tx, replaced = self._tx, self._arrival.replaced
        owner = self._owner_or_none(docid)
        if owner is None or self._arrival.is_lenient:
            return
        if replaced is None or replaced.docid != owner:
            raise EditRefused(
                f"{self._arrival.base!r} is the name of another message", errno.EEXIST
            )
        before = tx.keywords(owner)
        replace_message(tx, replaced)
        lost = before if not tx.is_live(owner) else before - tx.keywords(owner)
        tx.edit_keywords(docid, add=lost)

    def _leave(self, docid: Docid) -> None:
        tx, departure = self._tx, self._arrival.departure
        if isinstance(departure, EntryEdit) and departure.names is not None:
            put_names(tx, departure.view.search.search_id, docid, departure.names)
        elif isinstance(departure, Removal):
            tx.entries.remove_all(departure.search_id, docid)
            tx.edit_keywords(docid, remove=departure.keywords)

    def _enter(self, docid: Docid, *, is_new: bool) -> None:
        tx, arrival = self._tx, self._arrival
        labels, flags = label_rule(self._query), flag_rule(self._query)
        add = arrival.meaning.flags | (RECENT if arrival.in_new else 0)
        if add & DELETED:
            add |= DELETED_BY_ENTRY
        remove = 0 if arrival.in_new else RECENT
        if arrival.departure is not None and not is_new:
            # The same file under a new name: its letters are the flags, as in a rename.
            remove |= LETTER_BITS & ~arrival.meaning.flags & ~DELETED
        tx.edit_flags(docid, (add | flags.sets) & ~flags.clears, remove | flags.clears)
        if labels is not None:
            tx.edit_keywords(docid, labels.adds, labels.removes)
        tx.edit_keywords(docid, arrival.meaning.keywords)
        if not self._is_shown(docid):
            raise EditRefused(
                f"{arrival.view_name} ({arrival.query}) would not show this message, so it is not taken in"
            )

    def _new_name(self, docid: Docid, *, is_copy: bool, names: set[ChosenName]) -> set[ChosenName]:
        arrival = self._arrival
        if arrival.is_lenient and self._owner_or_none(docid) is not None:
            return set() if names else {ChosenName(self._tx.base_of(docid))}
        same = [name for name in names if name.base == arrival.base]
        if same:
            return set()
        extra = arrival.meaning.extra
        if arrival.meaning.flags & DELETED:
            extra = with_deleted(extra)
        return {ChosenName(arrival.base, extra, arrival.form, is_copy)}


def plan_link(
    tree: Tree, docid: Docid, directory: Directory, name: bytes, *, is_revived: bool = False
) -> Arrival:
    """link(2) of a message into a view. Raises EditRefused (EEXIST)."""
    return plan_arrival(tree, StoredMessage(docid, is_revived), directory, name, is_exclusive=True)
