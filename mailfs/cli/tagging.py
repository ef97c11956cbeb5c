"""mailfs tag, mailfs expunge: what is done to all messages that match, in slices, so that nobody waits long."""

import argparse
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mailfs.cli.commands import Commands, Parser, add_command, add_query, plan_of
from mailfs.errors import UsageError
from mailfs.ids import Docid, Keyword, Modseq
from mailfs.message.keywords import (
    DELETED,
    DELETED_BY_ENTRY,
    SEEN,
    UNREAD,
    keywords_of_flags,
    parse_keyword,
    split_keywords,
)

if TYPE_CHECKING:
    from mailfs.store.store import Store
    from mailfs.store.transaction import Transaction

# The lock is let go after this long, as by an import, so that a flag changed meanwhile does not wait longer; and after so
# many messages, so that mounts follow while others are served.
SLICE_S = 0.08
SLICE_MESSAGES = 1000

# Changes one live message; False where nothing changed.
Edit = Callable[["Transaction", Docid], bool]


def add_commands(commands: "Commands[Parser]") -> None:
    tag = add_command(commands, "tag", run_tag, "put keywords on messages and take them off")
    tag.usage = "mailfs tag +KEYWORD|-KEYWORD ... [--] QUERY ..."
    tag.set_defaults(takes_words=True, takes_marks=True)
    tag.add_argument(
        "words",
        metavar="+KEYWORD|-KEYWORD ... [--] QUERY",
        nargs="+",
        help="keywords to put on (+) and take off (-), then the query",
    )
    expunge = add_command(commands, "expunge", run_expunge, "remove the messages that match")
    expunge.add_argument(
        "--dry-run", action="store_true", help="only say how many would be expunged"
    )
    add_query(expunge)


def run_tag(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.store.store import Store

    add, remove, query = split_tag_words(arguments.words)
    add_flags, add_keywords = split_keywords(add)
    remove_flags, remove_keywords = split_keywords(remove)
    if (add_flags | remove_flags) & DELETED:
        remove_flags |= DELETED_BY_ENTRY  # said of the message itself now, in all its folders

    def edit(transaction: "Transaction", docid: Docid) -> bool:
        is_changed = transaction.edit_flags(docid, add_flags, remove_flags)
        return transaction.edit_keywords(docid, add_keywords, remove_keywords) or is_changed

    with Store.open(root) as store:
        edit_matching(store, query, "tag", edit)
    return 0


def split_tag_words(words: list[str]) -> tuple[list[Keyword], list[Keyword], list[str]]:
    """What to put on, what to take off, and the query. +unread is -seen."""
    add: list[Keyword] = []
    remove: list[Keyword] = []
    rest = list(words)
    while rest and rest[0][:1] in ("+", "-") and rest[0] != "--":
        word = rest.pop(0)
        on = word[0] == "+"
        if word[1:].lower() == UNREAD:
            (remove if on else add).append(next(iter(keywords_of_flags(SEEN))))
        else:
            (add if on else remove).append(parse_keyword(word[1:]))
    if rest and rest[0] == "--":
        rest.pop(0)
    if not add and not remove:
        raise UsageError("name at least one +KEYWORD or -KEYWORD before the query")
    if not rest:
        raise UsageError("name the messages: a query, or * for all")
    return add, remove, rest


def run_expunge(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.store.store import Store

    def edit(transaction: "Transaction", docid: Docid) -> bool:
        transaction.expunge(docid)
        return True

    with Store.open(root) as store:
        if arguments.dry_run:
            print(f"{store.index.count(plan_of(arguments.query))} would be expunged")
        else:
            print(f"{edit_matching(store, arguments.query, 'expunge', edit)} expunged")
    return 0


def edit_matching(store: "Store", words: list[str], purpose: str, edit: Edit) -> int:
    """Edit the messages that match now, durably, in a transaction a slice; how many were changed.

    One that somebody else changes between two slices is asked again when its turn comes. Those edited already are
    not: `-todo` on the first message of a thread must not keep the rest of `thread:{tag:todo}` as it was. Raises
    QuerySyntaxError, Busy, StoreError; what earlier slices did stays.
    """
    from mailfs.search.plan import plan
    from mailfs.search.query import parse_query

    query = parse_query(" ".join(words))
    seen = store.index.state().modseq
    docids = store.index.docids(plan(query, time.time()))
    changed_by_others: set[Docid] = set()
    position = count = 0
    while position < len(docids):
        with store.writer.transaction(purpose, durable=False) as transaction:
            give_up = time.monotonic() + SLICE_S
            before = Modseq(transaction.modseq - 1)
            if before != seen:
                changed_by_others |= {row.docid for row in store.index.changes_since(seen)}
            for docid in islice(docids, position, position + SLICE_MESSAGES):
                position += 1
                if docid not in changed_by_others or (
                    transaction.is_live(docid) and transaction.matches(query, docid)
                ):
                    count += edit(transaction, docid)
                if time.monotonic() >= give_up:
                    break
            seen = transaction.modseq if transaction.changed else before
    store.writer.sync()
    return count
