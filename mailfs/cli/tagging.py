"""mailfs tag, expunge, undelete: what is done to all messages that match, in slices, so that nobody waits long."""

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
    from mailfs.store.journal import Operation
    from mailfs.store.store import Store
    from mailfs.store.transaction import Transaction

# The lock is let go after so many messages, too, so that mounts follow while others are served.
SLICE_MESSAGES = 1000

# Changes one message; False where nothing changed.
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
    undelete = add_command(commands, "undelete", run_undelete, "bring expunged messages back")
    undelete.add_argument(
        "--dry-run", action="store_true", help="only say how many would be brought back"
    )
    add_query(undelete)


def run_tag(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.store.journal import Operation
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
        signs = (*(f"+{word}" for word in add), *(f"-{word}" for word in remove))
        edit_matching(store, query, Operation(f"tag {' '.join(signs)}"), edit)
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
    from mailfs.store.journal import Operation
    from mailfs.store.store import Store

    with Store.open(root) as store:
        if arguments.dry_run:
            print(f"{store.index.count(plan_of(arguments.query))} would be expunged")
        else:
            count = edit_matching(
                store, arguments.query, Operation("expunge"), lambda tx, docid: tx.expunge(docid)
            )
            print(f"{count} expunged")
    return 0


def run_undelete(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.store.index import Which
    from mailfs.store.journal import Operation
    from mailfs.store.store import Store

    with Store.open(root) as store:
        if arguments.dry_run:
            count = store.index.count(plan_of(arguments.query), which=Which.EXPUNGED)
            print(f"{count} would be brought back")
        else:
            count = edit_matching(
                store,
                arguments.query,
                Operation("undelete"),
                lambda tx, docid: tx.undelete(docid),
                is_expunged=True,
            )
            print(f"{count} brought back")
    return 0


def edit_matching(
    store: "Store",
    words: list[str],
    operation: "Operation",
    edit: Edit,
    *,
    is_expunged: bool = False,
) -> int:
    """Edit the live messages that match now, or the expunged ones, durably, in a transaction a slice; how many were changed.

    One that somebody else changes between two slices is asked again when its turn comes. Those edited already are
    not: `-todo` on the first message of a thread must not keep the rest of `thread:{tag:todo}` as it was. Raises
    QuerySyntaxError, Busy, StoreError; what earlier slices did stays.
    """
    from mailfs.search.plan import plan
    from mailfs.search.query import parse_query
    from mailfs.store.index import Which
    from mailfs.store.writer import SLICE_S

    query = parse_query(" ".join(words))
    which = Which.EXPUNGED if is_expunged else Which.LIVE
    seen = store.index.state().modseq
    docids = store.index.docids(plan(query, time.time()), which=which)
    changed_by_others: set[Docid] = set()
    position = count = 0
    while position < len(docids):
        with store.writer.transaction(
            operation.reason.split()[0], durable=False, operation=operation
        ) as transaction:
            give_up = time.monotonic() + SLICE_S
            before = Modseq(transaction.modseq - 1)
            if before != seen:
                changed_by_others |= {row.docid for row in store.index.changes_since(seen)}
            for docid in islice(docids, position, position + SLICE_MESSAGES):
                position += 1
                if docid not in changed_by_others or (
                    _is_so(transaction, docid, is_expunged=is_expunged)
                    and transaction.matches(query, docid)
                ):
                    count += edit(transaction, docid)
                if time.monotonic() >= give_up:
                    break
            seen = transaction.modseq if transaction.changed else before
    store.writer.sync()
    return count


def _is_so(transaction: "Transaction", docid: Docid, *, is_expunged: bool) -> bool:
    """Whether a message is still there, live or expunged as asked."""
    state = transaction.state_or_none(docid)
    return state is not None and bool(state[1]) == is_expunged
