"""mailfs log, mailfs undo: what was changed, by whom and why; and taking it back."""

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mailfs.cli.commands import (
    Commands,
    Parser,
    add_command,
    harmless,
    json_text,
    plan_of,
    whole_number,
)
from mailfs.errors import EditRefused
from mailfs.ids import Docid, Modseq
from mailfs.message.keywords import DELETED_BY_ENTRY, RECENT, keywords_of_flags

if TYPE_CHECKING:
    from mailfs.store.index import Index
    from mailfs.store.upkeep.log import Counts, Event, LoggedOperation, NetChange
    from mailfs.store.upkeep.undo import UndoProgress

_MESSAGES_SLICE = 500


def add_commands(commands: "Commands[Parser]") -> None:
    log = add_command(commands, "log", run_log, "what was changed, by whom and why, newest first")
    log.add_argument("--limit", type=whole_number, metavar="N", help="at most so many operations")
    log.add_argument("-v", "--verbose", action="store_true", help="list the messages, too")
    log.add_argument("--json", action="store_true", help="print an array of objects")
    log.set_defaults(takes_words=True)
    log.add_argument(
        "query",
        metavar="QUERY",
        nargs="*",
        help="only what was done to messages that match, expunged ones included",
    )
    undo = add_command(commands, "undo", run_undo, "take back what an operation changed")
    undo.add_argument(
        "number",
        metavar="N",
        type=whole_number,
        nargs="?",
        help="as listed by log (default: the newest that was not undone)",
    )


# --- log


def run_log(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.store.store import Store
    from mailfs.store.upkeep.log import iter_log

    plan = plan_of(arguments.query) if arguments.query else None
    with Store.open(root) as store:
        found = islice(iter_log(store.index, plan), arguments.limit)
        if arguments.json:
            rows = [_as_dict(store.index, each, arguments.verbose) for each in found]
            print(json_text(rows))
            return 0
        for operation in found:
            print(harmless(_line(operation)))
            if arguments.verbose:
                for line in _details(store.index, operation.number):
                    print(f"        {harmless(line)}")
    return 0


def _line(operation: "LoggedOperation") -> str:
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(operation.time_ns // 10**9))
    command, pid = operation.actor.command or "unknown", operation.actor.pid
    undone = f" (undone by {operation.undone_by})" if operation.undone_by else ""
    counts = ", ".join(_count_words(operation.counts)) or "nothing"
    return (
        f"{operation.number:>6}  {moment}  {command}({pid})  {operation.reason}: {counts}{undone}"
    )


def _count_words(counts: "Counts") -> Iterator[str]:
    words = {
        "added": counts.added,
        "expunged": counts.expunged,
        "brought back": counts.undeleted,
        "flagged": counts.flagged,
        "tagged": counts.tagged,
        "reclaimed": counts.reclaimed,
    }
    for word, count in words.items():
        if count:
            yield f"{count} {word}"
    if counts.searches:
        yield f"{counts.searches} {'search' if counts.searches == 1 else 'searches'} changed"


def _details(index: "Index", number: Modseq) -> Iterator[str]:
    """What an operation did, a line for each search and message, with their subjects."""
    from mailfs.store.upkeep.log import changes, events, ranges

    yield from map(_event_words, events(index, number))
    added = [
        (Docid(docid), "added")
        for each in ranges(index, number)
        for docid in range(each.first, each.last + 1)
    ]
    found = [(each.docid, " ".join(_change_words(each))) for each in changes(index, number)]
    whole = found + added
    for start in range(0, len(whole), _MESSAGES_SLICE):
        part = whole[start : start + _MESSAGES_SLICE]
        summaries = {each.docid: each for each in index.summaries([docid for docid, _ in part])}
        for docid, words in part:
            summary = summaries.get(docid)
            subject = "(reclaimed)" if summary is None else summary.subject
            yield f"{docid:>7}  {words}  {subject}"


def _change_words(change: "NetChange") -> Iterator[str]:
    if change.expunged_before and not change.expunged_after:
        yield "brought back"
    elif change.expunged_after and not change.expunged_before:
        yield "expunged"
    put_on, taken_off = _flags(change)
    yield from (f"+{word}" for word in (*put_on, *sorted(change.added)))
    yield from (f"-{word}" for word in (*taken_off, *sorted(change.removed)))


def _flags(change: "NetChange") -> tuple[list[str], list[str]]:
    """Those set and cleared; `new` for a message that is in new/."""
    changed = (change.flags_before ^ change.flags_after) & ~DELETED_BY_ENTRY
    return _flag_words(changed & change.flags_after), _flag_words(changed & change.flags_before)


def _flag_words(bits: int) -> list[str]:
    return [*keywords_of_flags(bits & ~RECENT), *(["new"] if bits & RECENT else [])]


def _event_words(event: "Event") -> str:
    from mailfs.store.journal import KEYWORD, RECLAIMED, REPAIRED

    before, after = event.before, event.after
    if event.what == RECLAIMED:
        return f"{after['messages']} messages reclaimed, {after['bytes']} bytes"
    if event.what == REPAIRED:
        return f"{after['where']}: {after['what']}: {after['how']}"
    if event.what == KEYWORD:
        return f"keyword {before['name']} renamed to {after['name']}"
    if not before:
        return f"search {after['name']} saved: {after['query']}"
    if not after:
        return f"search {before['name']} forgotten: {before['query']}"
    if before["name"] != after["name"]:
        return f"search {before['name']} renamed to {after['name']}: {after['query']}"
    return f"search {after['name']} changed from {before['query']} to {after['query']}"


def _as_dict(index: "Index", operation: "LoggedOperation", is_verbose: bool) -> dict[str, object]:
    from mailfs.store.upkeep.log import changes, events, ranges

    number = operation.number
    found: dict[str, object] = {
        "operation": number,
        "time": operation.time_ns // 10**9,
        "pid": operation.actor.pid,
        "command": operation.actor.command,
        "reason": operation.reason,
        "undoes": operation.undoes or None,
        "undone_by": operation.undone_by or None,
        "counts": operation.counts._asdict(),
        "added": [[each.first, each.last] for each in ranges(index, number)],
        "events": [event._asdict() for event in events(index, number)],
    }
    if is_verbose:
        found["messages"] = [_change_as_dict(change) for change in changes(index, number)]
    return found


def _change_as_dict(change: "NetChange") -> dict[str, object]:
    put_on, taken_off = _flags(change)
    return {
        "docid": change.docid,
        "expunged_before": change.expunged_before,
        "expunged_after": change.expunged_after,
        "added": [*put_on, *sorted(change.added)],
        "removed": [*taken_off, *sorted(change.removed)],
    }


# --- undo


def run_undo(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.store.store import Store
    from mailfs.store.upkeep.log import logged
    from mailfs.store.upkeep.undo import newest_to_undo, undo

    with Store.open(root) as store:
        if arguments.number is None:
            operation = newest_to_undo(store.index)
        else:
            operation = logged(store.index, Modseq(arguments.number))
        *_, progress = undo(store, operation)
    if progress.is_refused:
        raise EditRefused(f"operation {operation.number} is left as it is: {_kept(progress)}")
    parts = [", ".join(_done_words(progress)) or "everything is as it was before already"]
    if kept := _kept(progress):
        parts.append(kept)
    print(harmless(f"undid {_line(operation).lstrip()}"))
    print(harmless("; ".join(parts)))
    return 0


def _done_words(progress: "UndoProgress") -> Iterator[str]:
    if progress.restored:
        yield f"{_messages(progress.restored)} as before"
    if progress.expunged:
        yield f"{progress.expunged} of those it added expunged"
    if progress.searches:
        yield f"{progress.searches} {'search' if progress.searches == 1 else 'searches'} as before"


def _kept(progress: "UndoProgress") -> str:
    parts = []
    if progress.kept:
        verb = (
            "was changed since and stays as it is"
            if progress.kept == 1
            else "were changed since and stay as they are"
        )
        parts.append(f"{progress.kept} {verb}")
    if progress.gone:
        parts.append(f"{progress.gone} reclaimed, and gone for good")
    if progress.refused:
        parts.append(progress.refused)
    return ", ".join(parts)


def _messages(count: int) -> str:
    return f"{count} message{'' if count == 1 else 's'}"
