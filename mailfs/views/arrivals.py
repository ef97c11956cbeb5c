"""A message enters a view: by delivery (link or rename of a file, or of bytes), by link, cp, or mv from another view.

Entering makes the view's query true: keywords it names are put on or taken off, flags it names set or cleared; then
the query is asked, inside the transaction, and a message that would not be shown is refused, the file still where it
was. A message whose bytes are known is not stored again: it gets one more entry and the union of the flags, and does
not go back to new/. One that was expunged comes back as if new.
"""

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mailfs.errors import EditRefused, NoSuchMessage, NotFound
from mailfs.ids import Docid, Ino, Keyword
from mailfs.message.keywords import (
    DELETED,
    DELETED_BY_ENTRY,
    LETTER_BITS,
    RECENT,
    split_keywords,
)
from mailfs.message.maildir import ChosenName, Form, form_of, split_name
from mailfs.search.tree import flag_rule
from mailfs.store.adding import Outcome
from mailfs.store.index import SavedSearch
from mailfs.store.journal import Actor, Operation, this_process
from mailfs.store.prepare import NewMessage, prepare_file
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from mailfs.views.edits import (
    Removal,
    check_base,
    plan_removal,
    plan_replacement,
    remove_entry,
    with_deleted,
)
from mailfs.views.entries import ViewEntries
from mailfs.views.letters import Meaning
from mailfs.views.tree import Directory, Kind, Tree
from mailfs.views.view import View


@dataclass(frozen=True, slots=True)
class SpooledFile:
    """An ordinary file that is to become a message. Its mtime will be the message's."""

    ino: Ino
    path: bytes


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message that is here already.

    is_revived    also when it has been expunged meanwhile: then it comes back as new
    is_undeleted  also when it has been expunged: then it comes back as it was
    """

    docid: Docid
    is_revived: bool = False
    is_undeleted: bool = False


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message enters a view under a name.

    base        None: nobody chose a name, it gets its canonical one, or keeps those it has there
    departure   what it leaves in the same transaction: a label view, or one of its names
    replaced    whose name it takes, as rename(2) over an existing name
    is_lenient  a name that belongs to another message is replaced by the canonical one
    lingering   who has the name in this mount only, where a reader still has it
    moved_from  mv: the view from which the client moves the message itself, as within a view; '' where it does not
    """

    source: SpooledFile | NewMessage | StoredMessage
    view: View
    base: bytes | None
    meaning: Meaning
    form: Form
    in_new: bool
    departure: Removal | None = None
    replaced: Removal | None = None
    is_lenient: bool = False
    moved_from: str = ""
    lingering: Docid | None = None

    @property
    def reason(self) -> str:
        """What the journal says."""
        name, source = self.view.search.name, self.source
        if self.moved_from:
            return f"mv from {self.moved_from} to {name}"
        if not isinstance(source, StoredMessage):
            return f"delivery into {name}"
        return f"from .expunged to {name}" if source.is_undeleted else f"ln into {name}"

    @property
    def is_durable(self) -> bool:
        """What link and rename from tmp/ acknowledge survives power loss; mv between views loses nothing without."""
        source = self.source
        return not isinstance(source, StoredMessage) or source.is_revived or source.is_undeleted


def plan_arrival(
    tree: Tree,
    source: SpooledFile | StoredMessage,
    directory: Directory,
    name: bytes,
    *,
    is_exclusive: bool,
    is_lenient: bool = False,
    departure: Removal | None = None,
) -> Arrival:
    """A file or message gets this name in cur/ or new/. Raises EditRefused (EEXIST, ENAMETOOLONG)."""
    view = directory.view
    if view is None or not directory.holds_messages:
        raise EditRefused("messages live in cur and new")
    base, letters = split_name(name)
    replaced = lingering = None
    if is_lenient:
        owner = tree.names.owner_or_none(view, base)
        lingering = owner[0] if owner is not None and owner[0] in view.lingering else None
    else:
        check_base(base)
        docid = source.docid if isinstance(source, StoredMessage) else None
        replaced = plan_replacement(tree, directory, name, docid, is_exclusive=is_exclusive)
    in_new = directory.kind == Kind.NEW
    return Arrival(
        source=source,
        view=view,
        base=base,
        meaning=view.letters.meaning(letters or b""),
        form=form_of(letters, in_new=in_new),
        in_new=in_new,
        departure=departure,
        replaced=replaced,
        is_lenient=is_lenient,
        lingering=lingering,
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
    departure = None
    if view.rule is not None or view.search.on_rm or len(tree.names.rows(view, found.docid)) > 1:
        departure = plan_removal(tree, view, found.docid, found.entry)
    arrival = plan_arrival(
        tree,
        StoredMessage(found.docid),
        new_directory,
        new_name,
        is_exclusive=is_exclusive,
        departure=departure,
    )
    return replace(arrival, moved_from=view.search.name)


def plan_delivery(search: SavedSearch, new: NewMessage, keywords: Iterable[Keyword]) -> Arrival:
    """A message is delivered into a view without a file and a name: it stands in new/, with these keywords too.

    Raises QuerySyntaxError for a search that cannot be asked.
    """
    flags, own = split_keywords(keywords)
    return Arrival(
        source=new,
        view=View.of(search, 0),
        base=None,
        meaning=Meaning(flags, own, b""),
        form=Form.USUAL,
        in_new=True,
    )


def commit_arrival(
    store: Store, arrival: Arrival, deadline_s: float | None = None, *, actor: Actor | None = None
) -> Docid:
    """Store what is new and make it a member. For any thread; the file itself is left where it is.

    `actor` is who asked for it, this process where that is None.
    On return the message survives power loss where `is_durable`. Raises EditRefused, Busy, StoreError, StoreFull.
    """
    new = _prepare(store, arrival)
    with store.writer.transaction(
        "delivery",
        durable=arrival.is_durable,
        deadline_s=deadline_s,
        operation=Operation(arrival.reason, actor or this_process()),
    ) as tx:
        return _Entering(tx, arrival).run(new)


def _prepare(store: Store, arrival: Arrival) -> NewMessage | None:
    if isinstance(arrival.source, NewMessage):
        return arrival.source
    if isinstance(arrival.source, StoredMessage):
        return None
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(arrival.source.path, flags)
    except FileNotFoundError:
        raise NotFound("the file was removed before it could be delivered") from None
    try:
        found = os.fstat(fd)
        dictionary = store.newest_dictionary_or_none()
        return prepare_file(fd, found.st_size, 0, (), found.st_mtime_ns, store.layout, dictionary)
    finally:
        os.close(fd)


class _Entering:
    """One arrival within its transaction."""

    def __init__(self, tx: Transaction, arrival: Arrival) -> None:
        self._tx = tx
        self._arrival = arrival
        self._entries = ViewEntries(tx, arrival.view)

    def run(self, new: NewMessage | None) -> Docid:
        arrival, entries = self._arrival, self._entries
        docid, is_new = self._take(new)
        is_member = not is_new and entries.is_shown(docid)
        # Rows of a message that has left are of the past.
        names: set[ChosenName] = entries.names(docid) if is_member else set()
        if arrival.base is not None:
            self._free_name(docid, arrival.base)
        self._leave(docid)
        self._enter(docid, is_new=is_new)
        if arrival.base is not None:
            is_copy = not is_new and arrival.departure is None
            names = self._with_new_name(docid, arrival.base, names, is_copy=is_copy)
        if arrival.base is not None or not is_member:
            entries.put(docid, names)
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
        if source.is_undeleted:
            tx.undelete(source.docid)
        elif source.is_revived:
            tx.revive(source.docid)
        else:
            raise NoSuchMessage(f"message {source.docid} has been removed")
        return source.docid, True

    def _free_name(self, docid: Docid, base: bytes) -> None:
        """Take the name from whom it may be taken. What a replaced message loses by it, the new one gets."""
        tx, replaced = self._tx, self._arrival.replaced
        if replaced is not None and replaced.docid != docid and tx.is_live(replaced.docid):
            before = tx.keywords(replaced.docid)
            remove_entry(tx, replaced)
            is_live = tx.is_live(replaced.docid)
            tx.edit_keywords(docid, before - tx.keywords(replaced.docid) if is_live else before)
        owner = self._entries.owner_or_none(base)
        may_be = (None, docid, None if replaced is None else replaced.docid)
        if owner not in may_be and not self._arrival.is_lenient:
            raise EditRefused(f"{base!r} is the name of another message", errno.EEXIST)

    def _leave(self, docid: Docid) -> None:
        """mv out of a view: the entry goes, and with the last one what held the message there."""
        departure = self._arrival.departure
        if departure is not None and ViewEntries(self._tx, departure.view).drop(
            docid, departure.base
        ):
            self._tx.edit_keywords(docid, remove=departure.keywords)

    def _enter(self, docid: Docid, *, is_new: bool) -> None:
        tx, arrival, view = self._tx, self._arrival, self._arrival.view
        flags = flag_rule(view.query)
        add, remove = arrival.meaning.flags & ~DELETED, 0
        if not arrival.in_new:
            remove |= RECENT
        elif is_new or arrival.moved_from:
            # A copy of a known message does not take it back to new/: who is listing new/ and then cur/ of some
            # view would miss it, and a synchroniser take it for expunged.
            add |= RECENT
        if self._is_marked:
            add |= DELETED
            before = tx.flags(docid)
            if arrival.base is None:
                remove |= DELETED_BY_ENTRY  # said of the message itself now, in all its folders
            elif not before & DELETED or before & DELETED_BY_ENTRY:
                add |= DELETED_BY_ENTRY
        if arrival.departure is not None and not is_new:
            # The same file under a new name: its letters are the flags, as in a rename.
            remove |= LETTER_BITS & ~arrival.meaning.flags & ~DELETED
        tx.edit_flags(docid, (add | flags.sets) & ~flags.clears, remove | flags.clears)
        if view.rule is not None:
            tx.edit_keywords(docid, view.rule.adds, view.rule.removes)
        tx.edit_keywords(docid, arrival.meaning.keywords)
        if not self._entries.is_shown(docid):
            raise EditRefused(
                f"{view.search.name} ({view.search.query}) would not show this message, "
                "so it is not taken in"
            )

    @property
    def _is_marked(self) -> bool:
        return bool(self._arrival.meaning.flags & DELETED)

    def _with_new_name(
        self, docid: Docid, base: bytes, names: set[ChosenName], *, is_copy: bool
    ) -> set[ChosenName]:
        arrival = self._arrival
        owners = {self._entries.owner_or_none(base), arrival.lingering}
        if arrival.is_lenient and owners - {None, docid}:
            return names or {ChosenName(self._tx.base_of(docid))}
        for name in names:
            if name.base == base:
                extra = with_deleted(name.extra) if self._is_marked else name.extra
                return names - {name} | {name._replace(extra=extra)}
        extra = arrival.meaning.extra
        if self._is_marked:
            extra = with_deleted(extra)
        return names | {ChosenName(base, extra, arrival.form, is_copy)}


def plan_link(tree: Tree, source: StoredMessage, directory: Directory, name: bytes) -> Arrival:
    """link(2) of a message into a view. Raises EditRefused (EEXIST)."""
    return plan_arrival(tree, source, directory, name, is_exclusive=True)
