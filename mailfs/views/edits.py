"""What rename within a view and unlink mean for messages: planned on the tree, committed to the store.

plan_* run on the thread that serves requests and change nothing; they give an Edit, or raise. commit() may run in any
thread. The caller then refreshes the tree, which is how a change made here reaches this view and all others.

User keywords are links. A *label view* (a conjunction that names user keywords) loses a message when they are taken
off, and with its last keyword the message is expunged, as a file with its last link. Any other view expunges, unless
a client made a copy of the message in another view before: a copy outlives what it was copied from.
"""

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from mailfs.errors import EditRefused
from mailfs.ids import Docid, Keyword, SearchId
from mailfs.message.keywords import DELETED, DELETED_BY_ENTRY, DELETED_LETTER, RECENT
from mailfs.message.maildir import MAX_NAME_BYTES, ChosenName, form_of, split_name
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from mailfs.store.writer import DEFAULT_DEADLINE_S
from mailfs.views.names import read_chosen
from mailfs.views.searches import SearchEdit, commit_search
from mailfs.views.tree import Directory, Kind, Tree
from mailfs.views.view import View

# A base leaves room for `:2,`, the six letters and two more (features of clients: `,U=` is part of the base).
MAX_BASE_BYTES = MAX_NAME_BYTES - len(b":2,DFPRSTab")


@dataclass(frozen=True, slots=True)
class EntryEdit:
    """Change one message as one view shows it: bits, its own keywords, and its names there.

    `names` are all of them afterwards, () for the canonical one; None where they stay as they are.
    """

    docid: Docid
    view: View
    add: int = 0
    remove: int = 0
    add_keywords: frozenset[Keyword] = frozenset()
    remove_keywords: frozenset[Keyword] = frozenset()
    names: tuple[ChosenName, ...] | None = None
    replaced: "Removal | EntryEdit | None" = None


class Leaving(Enum):
    """What rm does in a view; the values are what `save --on-rm` takes."""

    UNLINK = "unlink"  # take the view's keywords off; without any left, expunge
    UNTAG = "untag"  # take the view's keywords off, never expunge
    EXPUNGE = "expunge"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Removal:
    """Take a message out of a view.

    `kept`: a client has made a copy in another view, which these keywords hold there, so nothing is
    expunged; None where there is no copy.
    """

    docid: Docid
    search_id: SearchId
    leaving: Leaving
    keywords: frozenset[Keyword]
    kept: frozenset[Keyword] | None = None


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
    # What an entry has for itself was not said of the message: a letter may have got its meaning since.
    before = view.letters.meaning(bytes(set(found.letters) - set(found.entry.extra)))
    after = view.letters.meaning(letters or b"")
    flags = tree.facts.flags_of(found.docid)
    add, remove = after.flags & ~before.flags, before.flags & ~after.flags
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
    rows = tree.names.rows(view, found.docid)
    others = [each for each in rows if each.base not in (found.entry.base, base)]
    names = tree.names.normalised(found.docid, (*others, row))
    edit = EntryEdit(
        found.docid,
        view,
        add,
        remove,
        after.keywords - before.keywords,
        before.keywords - after.keywords,
        None if names == rows else names,
        replaced,
    )
    is_change = names != rows or edit.replaced is not None or _changes_message(edit, flags)
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
    edits = []
    for docid, rows in chosen.items():
        letters = b"".join(row.extra for row in rows)
        if meant.isdisjoint(letters) or not tree.names.know(docid):
            continue
        after = view.letters.meaning(letters)
        names = (
            row._replace(extra=bytes(each for each in row.extra if each not in meant))
            for row in rows
        )
        edits.append(
            EntryEdit(
                docid,
                view,
                add=after.flags & ~DELETED,
                add_keywords=after.keywords,
                names=tree.names.normalised(docid, names),
            )
        )
    return edits


def check_base(base: bytes) -> None:
    """Raises EditRefused for no base at all, and for one that leaves no room for letters."""
    if not base:
        raise EditRefused("a message's name begins with something before its letters", errno.EINVAL)
    if len(base) > MAX_BASE_BYTES:
        raise EditRefused(
            f"a message's name has at most {MAX_BASE_BYTES} bytes before its letters",
            errno.ENAMETOOLONG,
        )


def plan_replacement(
    tree: Tree, directory: Directory, name: bytes, docid: Docid | None, *, is_exclusive: bool
) -> Removal | EntryEdit | None:
    """Who has to go for this name to be `docid`'s (None: not stored yet): whose name is exactly this, as in rename(2).

    Raises EditRefused (EEXIST) where nobody may be replaced, or only the base is another message's.
    """
    view = directory.view
    assert view is not None
    owner = tree.names.owner_or_none(view, split_name(name).base)
    if owner is None or owner[0] == docid or not tree.is_member(view, owner[0]):
        return None
    if is_exclusive or tree.find_message_or_none(directory, name) is None:
        raise EditRefused(f"{name!r} is the name of another message", errno.EEXIST)
    return _plan_name_removal(tree, view, *owner)


def leaving_of(view: View) -> Leaving:
    """What rm means in a view: as it was saved, else by the kind of its query."""
    if view.search.on_rm:
        return Leaving(view.search.on_rm)
    return Leaving.EXPUNGE if view.rule is None else Leaving.UNLINK


def plan_unlink(tree: Tree, directory: Directory, name: bytes) -> EntryEdit | Removal:
    """rm of a message: of one of its names, while it has others in this view. Raises NotFound, EditRefused."""
    found = tree.find_message(directory, name)
    view = directory.view
    assert view is not None
    return _plan_name_removal(tree, view, found.docid, found.entry)


def _plan_name_removal(
    tree: Tree, view: View, docid: Docid, entry: ChosenName
) -> EntryEdit | Removal:
    others = tuple(row for row in tree.names.rows(view, docid) if row.base != entry.base)
    if others:
        return EntryEdit(docid, view, names=others)
    return plan_removal(tree, view, docid)


def plan_removal(tree: Tree, view: View, docid: Docid) -> Removal:
    """A message leaves a view by the view's rule. Raises EditRefused."""
    leaving = leaving_of(view)
    keywords = frozenset[Keyword]() if view.rule is None else view.rule.adds
    if leaving is Leaving.REFUSE:
        raise EditRefused(f"the search {view.search.name} refuses rm (on-rm = refuse)")
    if not keywords and leaving is not Leaving.EXPUNGE:
        raise EditRefused(
            f"the search {view.search.name} names no keyword that rm could take off "
            f"(on-rm = {leaving.value})"
        )
    search_id = view.search.search_id
    return Removal(docid, search_id, leaving, keywords, _kept_by_copies(tree, search_id, docid))


def _kept_by_copies(tree: Tree, search_id: SearchId, docid: Docid) -> frozenset[Keyword] | None:
    copied_to = {
        search
        for search, _, row in tree.store.index.chosen_names_of([docid])
        if row.is_copy and search != search_id
    }
    if not copied_to:
        return None
    return frozenset(
        keyword
        for view in tree.views.values()
        if view.search.search_id in copied_to and view.rule is not None
        for keyword in view.rule.adds
    )


def commit(store: Store, edit: Edit, deadline_s: float = DEFAULT_DEADLINE_S) -> None:
    """Write an edit to the store: one transaction. Raises Busy when the writer lock is not free in time.

    Survives the death of any process; survives power loss after Writer.sync().
    """
    with store.writer.transaction("a change in a view", durable=False, deadline_s=deadline_s) as tx:
        match edit:
            case EntryEdit():
                _edit_entry(tx, edit)
            case Removal():
                remove_message(tx, edit)
            case _:
                commit_search(tx, edit)


def commit_entries(store: Store, edits: Sequence[EntryEdit], deadline_s: float) -> None:
    """The same for several edits of messages, in one transaction."""
    with store.writer.transaction("letters", durable=False, deadline_s=deadline_s) as tx:
        for edit in edits:
            if tx.is_live(edit.docid):
                _edit_entry(tx, edit)


def _edit_entry(tx: Transaction, edit: EntryEdit) -> None:
    if edit.replaced is not None:
        replace_message(tx, edit.replaced)
    tx.edit_flags(edit.docid, edit.add, edit.remove)
    tx.edit_keywords(edit.docid, edit.add_keywords, edit.remove_keywords)
    if edit.names is not None:
        put_names(tx, edit.view.search.search_id, edit.docid, edit.names)
        tx.settle_deleted(edit.docid)


def replace_message(tx: Transaction, replaced: Removal | EntryEdit) -> None:
    """Take the name from a message: one of its names, or the last, and then it leaves the view."""
    if isinstance(replaced, Removal):
        remove_message(tx, replaced)
    else:
        _edit_entry(tx, replaced)


def put_names(
    tx: Transaction, search_id: SearchId, docid: Docid, names: tuple[ChosenName, ...]
) -> None:
    """Make these a message's rows in a view. Raises EntryExists where another message has one of the bases."""
    before = tx.entries.names(search_id, docid)
    bases = {name.base for name in names}
    for row in before:
        if row.base not in bases:
            tx.entries.remove(search_id, row.base)
    for name in names:
        if name not in before:
            tx.entries.put(search_id, docid, name)


def remove_message(tx: Transaction, removal: Removal) -> None:
    """Take a message out of a view, within a transaction."""
    docid, kept = removal.docid, removal.kept
    tx.entries.remove_all(removal.search_id, docid)
    tx.settle_deleted(docid)
    if kept is not None:
        tx.entries.end_copies(docid)
    match removal.leaving:
        case Leaving.EXPUNGE:
            if kept is None:
                tx.expunge(docid)
            elif kept:
                tx.edit_keywords(docid, remove=tx.keywords(docid) - kept)
        case Leaving.UNLINK | Leaving.UNTAG:
            tx.edit_keywords(docid, remove=removal.keywords)
            last = removal.leaving is Leaving.UNLINK and kept is None and not tx.keywords(docid)
            if last:
                tx.expunge(docid)
        case Leaving.REFUSE:
            raise AssertionError("plan_removal refuses")
        case _:
            assert_never(removal.leaving)
