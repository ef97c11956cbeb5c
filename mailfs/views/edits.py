"""What rename, unlink, mkdir and rmdir mean: planned on the tree, committed to the store.

plan_* run on the thread that serves requests and change nothing; they give an Edit, or raise. commit() may run in any
thread. The caller then refreshes the tree, which is how a change made here reaches this view and all others.

User keywords are links. A *label view* (a conjunction that names user keywords) loses a message when they are taken
off, and with its last keyword the message is expunged, as a file with its last link. Any other view expunges.
"""

import errno
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from mailfs.errors import EditRefused, NotFound, QuerySyntaxError
from mailfs.ids import Docid, Keyword
from mailfs.message.keywords import (
    LETTER_BITS,
    RECENT,
    SYSTEM_KEYWORDS,
    UNREAD,
    flags_of_letters,
    keyword_for_folder,
)
from mailfs.message.maildir import split_name
from mailfs.search.names import check_search_name
from mailfs.search.query import parse_query
from mailfs.store.store import Store
from mailfs.store.writer import DEFAULT_DEADLINE_S
from mailfs.views.tree import Directory, Kind, Tree
from mailfs.views.view import View


@dataclass(frozen=True, slots=True)
class FlagEdit:
    """Set and clear bits of one message."""

    docid: Docid
    add: int
    remove: int
    view: View


class Leaving(Enum):
    """What rm does in a view; the values are what `save --on-rm` takes."""

    UNLINK = "unlink"  # take the view's keywords off; without any left, expunge
    UNTAG = "untag"  # take the view's keywords off, never expunge
    EXPUNGE = "expunge"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Removal:
    """Take a message out of a view."""

    docid: Docid
    leaving: Leaving
    keywords: frozenset[Keyword]


@dataclass(frozen=True, slots=True)
class NewSearch:
    """Save a search."""

    name: str
    query: str


@dataclass(frozen=True, slots=True)
class ForgottenSearch:
    """Forget a search, no message."""

    name: str


Edit = FlagEdit | Removal | NewSearch | ForgottenSearch


def plan_rename(
    tree: Tree, directory: Directory, name: bytes, new_directory: Directory, new_name: bytes
) -> FlagEdit | None:
    """A rename within a view: its letters are the message's flags, and new/ or cur/ whether it is recent.

    None when nothing changes. Raises NotFound when the old name is not true any more (another client was
    faster), EditRefused for what has no meaning.
    """
    docid = tree.lookup_message(directory, name)
    view = directory.view
    assert view is not None
    if new_directory.view is not view or not new_directory.holds_messages:
        raise EditRefused("a message can be renamed within its view only")
    base, letters = split_name(new_name)
    if base != tree.base_of(docid):
        raise EditRefused("a message keeps the part of its name before the colon")
    flags = tree.facts.flags_of(docid)
    wanted = flags_of_letters(letters or b"")
    if new_directory.kind == Kind.NEW:
        wanted |= RECENT
    before = flags & (LETTER_BITS | RECENT)
    if wanted == before:
        return None
    return FlagEdit(docid, wanted & ~before, before & ~wanted, view)


def leaving_of(view: View) -> Leaving:
    """What rm means in a view: as it was saved, else by the kind of its query."""
    if view.search.on_rm:
        return Leaving(view.search.on_rm)
    return Leaving.EXPUNGE if view.rule is None else Leaving.UNLINK


def plan_unlink(tree: Tree, directory: Directory, name: bytes) -> Removal:
    """rm of a message. Raises NotFound, EditRefused."""
    docid = tree.lookup_message(directory, name)
    view = directory.view
    assert view is not None
    leaving = leaving_of(view)
    keywords = frozenset[Keyword]() if view.rule is None else view.rule.adds
    if leaving is Leaving.REFUSE:
        raise EditRefused(f"the search {view.search.name} refuses rm (on-rm = refuse)")
    if not keywords and leaving is not Leaving.EXPUNGE:
        raise EditRefused(
            f"the search {view.search.name} names no keyword that rm could take off "
            f"(on-rm = {leaving.value})"
        )
    return Removal(docid, leaving, keywords)


def plan_mkdir(tree: Tree, parent: Directory, name: bytes) -> NewSearch:
    """mkdir saves a search: `work` is `tag:work`, `flagged` is `is:flagged`, and what reads like a query is it."""
    if tree.child_or_none(parent, name) is not None:
        raise EditRefused(f"{name!r} is there already", errno.EEXIST)
    if parent.kind not in (Kind.VIEW, Kind.FOLDER):
        raise EditRefused("a search is saved beside or below others, not in cur, new or tmp")
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise EditRefused(f"the name {name!r} is not valid UTF-8", errno.EILSEQ) from None
    path = check_search_name(f"{parent.path}/{text}" if parent.path else text)
    query = _query_of_folder(path, text)
    try:
        parse_query(query)
    except QuerySyntaxError as error:
        raise EditRefused(f"mkdir {text}: {error}", errno.EINVAL) from None
    return NewSearch(path, query)


def _query_of_folder(path: str, text: str) -> str:
    if any(sign in ':*"()' for sign in text):
        return text
    if path == text and (text.lower() == UNREAD or f"${text.lower()}" in SYSTEM_KEYWORDS):
        return f"is:{text.lower()}"
    return f"tag:{keyword_for_folder(path)}"


def plan_rmdir(tree: Tree, parent: Directory, name: bytes) -> ForgottenSearch:
    """rmdir forgets a search, however many messages it shows. Raises NotFound, EditRefused."""
    directory = tree.child_or_none(parent, name)
    if directory is None:
        raise NotFound(f"no directory {name!r}")
    if directory.kind == Kind.FOLDER:
        raise EditRefused(f"{directory.path} holds searches", errno.ENOTEMPTY)
    if directory.kind != Kind.VIEW:
        raise EditRefused("a view always has cur, new and tmp; rmdir the view to forget it")
    if len(tree.entries(directory)) > len((Kind.CUR, Kind.NEW, Kind.TMP)):
        raise EditRefused(f"{directory.path} holds other searches", errno.ENOTEMPTY)
    return ForgottenSearch(directory.path)


def commit(store: Store, edit: Edit, deadline_s: float = DEFAULT_DEADLINE_S) -> None:
    """Write an edit to the store: one transaction. Raises Busy when the writer lock is not free in time.

    Survives the death of any process; survives power loss after Writer.sync().
    """
    with store.writer.transaction("a change in a view", durable=False, deadline_s=deadline_s) as tx:
        match edit:
            case FlagEdit(docid, add, remove):
                tx.edit_flags(docid, add, remove)
            case Removal(docid, leaving, keywords):
                if leaving is Leaving.EXPUNGE:
                    tx.expunge(docid)
                else:
                    tx.edit_keywords(docid, remove=keywords)
                    if leaving is Leaving.UNLINK and not tx.keywords(docid):
                        tx.expunge(docid)
            case NewSearch(name, query):
                tx.save_search(name, query)
            case ForgottenSearch(name):
                tx.forget_search(name)
            case _:
                assert_never(edit)
