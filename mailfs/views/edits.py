"""What rename within a view and unlink mean for messages: planned on the tree, committed to the store.

plan_* run on the thread that serves requests and change nothing; they give an Edit, or raise. commit() may run in any
thread. The caller then refreshes the tree, which is how a change made here reaches this view and all others.

User keywords are links. A *label view* (a conjunction that names user keywords) loses a message when they are taken
off, and with its last keyword the message is expunged, as a file with its last link. Any other view expunges, unless
a client made a copy of the message in another view before: a copy outlives what it was copied from.
"""

import contextlib
import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from mailfs.errors import EditRefused, NotFound, QuerySyntaxError
from mailfs.ids import Docid, Keyword
from mailfs.message.keywords import DELETED, DELETED_BY_ENTRY, DELETED_LETTER, RECENT, is_mark
from mailfs.message.maildir import MAX_NAME_BYTES, ChosenName, form_of, split_name
from mailfs.search.query import parse_query
from mailfs.search.tree import Query, label_rule
from mailfs.store.journal import Actor, Operation, this_process
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from mailfs.views.entries import ViewEntries
from mailfs.views.names import read_chosen
from mailfs.views.searches import SearchEdit, commit_search
from mailfs.views.tree import Directory, Kind, Tree
from mailfs.views.view import View

# A base leaves room for `:2,`, the six letters and two more (features of clients: `,U=` is part of the base).
MAX_BASE_BYTES = MAX_NAME_BYTES - len(b":2,DFPRSTab")


@dataclass(frozen=True, slots=True)
class EntryEdit:
    """Change one message as one view shows it: bits, its own keywords, and one of its names there.

    `base` says which entry gets `name`; None where its name stays.
    """

    docid: Docid
    view: View
    add: int = 0
    remove: int = 0
    add_keywords: frozenset[Keyword] = frozenset()
    remove_keywords: frozenset[Keyword] = frozenset()
    base: bytes | None = None
    name: ChosenName | None = None
    replaced: "Removal | None" = None

    @property
    def reason(self) -> str:
        """What the journal says."""
        return f"rename in {self.view.search.name}"


class Leaving(Enum):
    """What rm does in a view; the values are what `save --on-rm` takes."""

    UNLINK = "unlink"  # take the view's keywords off; without any left, expunge
    UNTAG = "untag"  # take the view's keywords off, never expunge
    EXPUNGE = "expunge"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Removal:
    """Take an entry of a message out of a view; with the last one the message leaves it."""

    docid: Docid
    view: View
    base: bytes
    leaving: Leaving

    @property
    def keywords(self) -> frozenset[Keyword]:
        """What leaving this view takes off."""
        return frozenset() if self.view.rule is None else self.view.rule.adds

    @property
    def reason(self) -> str:
        """What the journal says."""
        return f"rm in {self.view.search.name}"


Edit = EntryEdit | Removal | SearchEdit


def plan_rename(
    tree: Tree,
    directory: Directory,
    name: bytes,
    new_directory: Directory,
    new_name: bytes,
    *,
    is_exclusive: bool = False,
) -> EntryEdit | None:
    """A rename within a view: the letters are the message's flags, new/ or cur/ whether it is recent.

    None when nothing changes. Raises NotFound when the old name is not true any more (another client was
    faster), EditRefused with EEXIST where the new name belongs to another message.
    """
    found = tree.find_message(directory, name)
    view = directory.view
    assert view is not None
    base, letters = split_name(new_name)
    in_new = new_directory.kind == Kind.NEW
    check_base(base)
    replaced = plan_replacement(
        tree, new_directory, new_name, found.docid, is_exclusive=is_exclusive
    )
    # Letters are compared, not what they mean: $forwarded may have two, P and one of Dovecot's, who takes off its own.
    # What an entry has for itself was not said of the message: a letter may have got its meaning since.
    before_letters = set(found.letters) - set(found.entry.extra)
    before = view.letters.meaning(bytes(before_letters - set(letters or b"")))
    added = view.letters.meaning(bytes(set(letters or b"") - before_letters))
    after = view.letters.meaning(letters or b"")
    flags = tree.facts.flags_of(found.docid)
    add, remove = added.flags, before.flags & ~added.flags
    extra = after.extra
    is_ours = DELETED_LETTER in found.entry.extra
    if add & DELETED or (is_ours and after.flags & DELETED):
        add |= DELETED | DELETED_BY_ENTRY
        extra = with_deleted(extra)
    elif is_ours:
        remove &= ~DELETED  # settle_deleted sees whether another entry still has it
    if in_new != bool(flags & RECENT):
        add, remove = (add | RECENT, remove) if in_new else (add, remove | RECENT)
    row = ChosenName(base, extra, form_of(letters, in_new=in_new), found.entry.is_copy)
    is_renamed = row != found.entry
    edit = EntryEdit(
        found.docid,
        view,
        add,
        remove,
        added.keywords,
        before.keywords - added.keywords,
        found.entry.base if is_renamed else None,
        row if is_renamed else None,
        replaced,
    )
    is_change = is_renamed or replaced is not None or _changes_message(edit, flags)
    return edit if is_change else None


def _changes_message(edit: EntryEdit, flags: int) -> bool:
    return bool(
        edit.add & ~flags or edit.remove & flags or edit.add_keywords or edit.remove_keywords
    )


def with_deleted(extra: bytes) -> bytes:
    """An entry's own letters with T."""
    return bytes(sorted({*extra, *DELETED_LETTER}))


def plan_meanings(tree: Tree, view: View) -> list[EntryEdit]:
    """Letters that entries had for themselves, and that mean a keyword now: Dovecot writes its file after the names."""
    meant = {*view.letters.flags, *view.letters.keywords}
    chosen = view.chosen
    if not view.is_loaded:
        chosen = read_chosen(tree.store.index, view.search.search_id)
    return [
        EntryEdit(
            docid,
            view,
            add=view.letters.meaning(row.extra).flags & ~DELETED,
            add_keywords=view.letters.meaning(row.extra).keywords,
            base=row.base,
            name=row._replace(extra=bytes(each for each in row.extra if each not in meant)),
        )
        for docid, rows in chosen.items()
        for row in rows
        if not meant.isdisjoint(row.extra)
    ]


def check_base(base: bytes) -> None:
    """Raises EditRefused for no base at all, one that leaves no room for letters, or ends in some itself."""
    if not base or split_name(base).letters is not None:
        raise EditRefused("a message's name is something, then `:2,` and its letters", errno.EINVAL)
    if len(base) > MAX_BASE_BYTES:
        raise EditRefused(
            f"a message's name has at most {MAX_BASE_BYTES} bytes before its letters",
            errno.ENAMETOOLONG,
        )


def plan_replacement(
    tree: Tree, directory: Directory, name: bytes, docid: Docid | None, *, is_exclusive: bool
) -> Removal | None:
    """Who has to go for this name to be `docid`'s (None: not stored yet): whose name is exactly this, as in rename(2).

    Raises EditRefused (EEXIST) where nobody may be replaced, or only the base is another message's.
    """
    view = directory.view
    assert view is not None
    owner = tree.names.owner_or_none(view, split_name(name).base)
    if owner is None or owner[0] == docid or not tree.is_member(view, owner[0]):
        return None
    if not is_exclusive and tree.find_message_or_none(directory, name) is not None:
        return plan_removal(tree, view, *owner)
    if docid is None:
        return None  # what is stored yet to be may turn out to be this very message
    raise EditRefused(f"{name!r} is the name of another message", errno.EEXIST)


def leaving_of(view: View) -> Leaving:
    """What rm means in a view: as it was saved, else by the kind of its query."""
    if view.search.on_rm:
        return Leaving(view.search.on_rm)
    return Leaving.EXPUNGE if view.rule is None else Leaving.UNLINK


def plan_unlink(tree: Tree, directory: Directory, name: bytes) -> Removal:
    """rm of a message: of one of its names, while it has others in this view. Raises NotFound, EditRefused."""
    found = tree.find_message(directory, name)
    view = directory.view
    assert view is not None
    return plan_removal(tree, view, found.docid, found.entry)


def plan_removal(tree: Tree, view: View, docid: Docid, entry: ChosenName) -> Removal:
    """An entry leaves a view by the view's rule. Raises EditRefused."""
    leaving = leaving_of(view)
    removal = Removal(docid, view, entry.base, leaving)
    if len(tree.names.rows(view, docid)) > 1:
        return removal
    if leaving is Leaving.REFUSE:
        raise EditRefused(f"the search {view.search.name} refuses rm (on-rm = refuse)")
    if not removal.keywords and leaving is not Leaving.EXPUNGE:
        raise EditRefused(
            f"the search {view.search.name} names no keyword that rm could take off "
            f"(on-rm = {leaving.value})"
        )
    return removal


def commit(
    store: Store, edit: Edit, deadline_s: float | None = None, *, actor: Actor | None = None
) -> None:
    """Write an edit to the store: one transaction. Raises Busy when the writer lock is not free in time.

    `actor` is who asked for it, this process where that is None. Survives the death of any process; survives power loss after Writer.sync().
    """
    operation = Operation(edit.reason, actor or this_process())
    with store.writer.transaction(
        "a change in a view", durable=False, deadline_s=deadline_s, operation=operation
    ) as tx:
        match edit:
            case EntryEdit():
                _edit_entry(tx, edit)
            case Removal():
                remove_entry(tx, edit)
            case _:
                commit_search(tx, edit)


def commit_entries(store: Store, edits: Sequence[EntryEdit], deadline_s: float) -> None:
    """The same for several edits of messages, in one transaction."""
    operation = Operation("letters that mean a keyword now")
    with store.writer.transaction(
        "letters", durable=False, deadline_s=deadline_s, operation=operation
    ) as tx:
        for edit in edits:
            if tx.is_live(edit.docid):
                _edit_entry(tx, edit)


def _is_held(tx: Transaction, keywords: frozenset[Keyword]) -> bool:
    """Whether one of these is a link: also a mark, where a label view names it."""
    if not all(map(is_mark, keywords)):
        return True
    return bool(keywords) and any(
        rule is not None and rule.adds <= keywords for rule in map(label_rule, _saved_queries(tx))
    )


def _saved_queries(tx: Transaction) -> Iterator[Query]:
    for query in tx.searches.queries().values():
        with contextlib.suppress(QuerySyntaxError):
            yield parse_query(query)


def _edit_entry(tx: Transaction, edit: EntryEdit) -> None:
    if edit.replaced is not None:
        remove_entry(tx, edit.replaced)
    tx.edit_flags(edit.docid, edit.add, edit.remove)
    tx.edit_keywords(edit.docid, edit.add_keywords, edit.remove_keywords)
    if edit.base is not None and edit.name is not None:
        ViewEntries(tx, edit.view).rename(edit.docid, edit.base, edit.name)


def remove_entry(tx: Transaction, removal: Removal) -> None:
    """Take an entry out of a view, within a transaction. Raises NotFound when it is not there any more."""
    docid, entries = removal.docid, ViewEntries(tx, removal.view)
    if not entries.is_shown(docid) and docid not in removal.view.lingering:
        raise NotFound(f"message {docid} has left {removal.view.search.name}")
    if not entries.drop(docid, removal.base):
        return
    tx.settle_deleted(docid)
    kept = entries.kept_by_copies(docid)
    if kept is not None:
        tx.entries.end_copies(docid)
    match removal.leaving:
        case Leaving.EXPUNGE:
            if kept is None:
                tx.expunge(docid)
            elif kept:
                tx.edit_keywords(docid, remove=tx.keywords(docid) - kept)
        case Leaving.UNLINK | Leaving.UNTAG:
            is_unlink = removal.leaving is Leaving.UNLINK and kept is None
            if is_unlink and not _is_held(tx, tx.keywords(docid) - removal.keywords):
                # With its keywords: it comes back to where it was.
                tx.expunge(docid)
            else:
                tx.edit_keywords(docid, remove=removal.keywords)
        case Leaving.REFUSE:
            raise EditRefused(f"the search {removal.view.search.name} refuses rm (on-rm = refuse)")
        case _:
            assert_never(removal.leaving)
