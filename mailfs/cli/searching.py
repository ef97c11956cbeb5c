"""mailfs search, mailfs count, mailfs show."""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mailfs.cli.commands import (
    Commands,
    Parser,
    add_command,
    add_query,
    harmless,
    json_text,
    plan_of,
    whole_number,
)
from mailfs.errors import EX_NOINPUT, UsageError
from mailfs.ids import Docid
from mailfs.message.keywords import keywords_of_flags

if TYPE_CHECKING:
    from mailfs.store.index import Summary
    from mailfs.store.store import Store

SORTS = ("newest-first", "oldest-first", "docid")
OUTPUTS = ("summary", "messages", "files", "threads", "tags", "json")
FORMATS = ("text", "raw", "mbox")
_SUMMARY_SLICE = 500


def add_commands(commands: "Commands[Parser]") -> None:
    search = add_command(commands, "search", run_search, "list the messages that match")
    search.add_argument("--output", choices=OUTPUTS, default="summary", help="what to print")
    search.add_argument("--sort", choices=SORTS, default="newest-first", help="in which order")
    search.add_argument("--limit", type=whole_number, metavar="N", help="at most so many messages")
    _add_expunged(search)
    add_query(search)
    count = add_command(commands, "count", run_count, "print how many messages match")
    _add_expunged(count)
    add_query(count)
    show = add_command(commands, "show", run_show, "print the messages that match")
    show.add_argument("--format", choices=FORMATS, default="text", help="how to print them")
    show.add_argument("--limit", type=whole_number, metavar="N", help="at most so many messages")
    add_query(show)


def _add_expunged(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--expunged",
        action="store_true",
        help="of the messages that were expunged and can still be had back",
    )


def run_count(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.store.index import Which
    from mailfs.store.store import Store

    which = Which.EXPUNGED if arguments.expunged else Which.LIVE
    with Store.open(root) as store:
        print(store.index.count(plan_of(arguments.query), which=which))
    return 0


def run_search(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.store.index import Which
    from mailfs.store.store import Store

    which = Which.EXPUNGED if arguments.expunged else Which.LIVE
    with Store.open(root) as store:
        docids = store.index.docids(
            plan_of(arguments.query), arguments.sort, arguments.limit, which=which
        )
        if arguments.output == "files" and arguments.expunged:
            _print_expunged_files(store, docids)
        elif arguments.output == "files":
            _print_files(store, docids)
        elif arguments.output == "json":
            _print_json(store, docids)
        else:
            seen: set[str] = set()
            for summary in _summaries(store, docids):
                for line in _lines(summary, arguments.output):
                    if line not in seen:
                        print(line)
                    if arguments.output in ("threads", "tags"):
                        seen.add(line)
    return 0


def _summaries(store: "Store", docids: Sequence[Docid]) -> Iterator["Summary"]:
    for start in range(0, len(docids), _SUMMARY_SLICE):
        yield from store.index.summaries(docids[start : start + _SUMMARY_SLICE])


def _words(summary: "Summary") -> list[str]:
    """All keywords of a message, the system's first."""
    return [*keywords_of_flags(summary.flags), *summary.keywords]


def _lines(summary: "Summary", output: str) -> list[str]:
    if output == "threads":
        return [f"thread:{summary.thread}"]
    if output == "tags":
        return _words(summary)
    if output == "messages":
        return [harmless(f"id:{summary.message_id}")] if summary.message_id else []
    day = time.strftime("%Y-%m-%d", time.localtime(summary.date))
    sender = summary.sender.partition("<")[0].strip().strip('"') or summary.sender
    words = " ".join(_words(summary))
    line = f"{summary.docid:>7}  {day}  {sender[:24]:<24}  {summary.subject}  ({words})"
    return [harmless(line)]


def _print_files(store: "Store", docids: Sequence[Docid]) -> None:
    """Paths below the mount point, in the first view that shows everything."""
    from mailfs.message.keywords import RECENT
    from mailfs.search.tree import matches_everything
    from mailfs.views.refresh import sync_letters
    from mailfs.views.tree import Tree

    tree = Tree(store, {})
    everything = [view for view in tree.views.values() if matches_everything(view.query)]
    if not everything:
        raise UsageError("no saved search shows every message: mailfs save all '*'")
    view = everything[0]
    sync_letters(tree, view)
    for docid in docids:
        if not tree.names.know(docid):
            continue  # expunged since it was found
        flags = tree.facts.flags_of(docid)
        part = "new" if flags & RECENT else "cur"
        for name in tree.names.names(view, docid, flags):
            _print_path(f"{view.search.name}/{part}/{os.fsdecode(name)}")


def _print_path(path: str) -> None:
    """As it is for programs; a client may have put anything into a name."""
    print(harmless(path) if sys.stdout.isatty() else path)


def _print_expunged_files(store: "Store", docids: Sequence[Docid]) -> None:
    """Paths below the mount point."""
    from mailfs.errors import NoSuchMessage
    from mailfs.views.expunged import EXPUNGED_NAME, ExpungedTree
    from mailfs.views.tree import Tree

    tree = ExpungedTree(Tree(store, {}))
    for docid in docids:
        with suppress(NoSuchMessage):  # brought back since it was found
            print(os.fsdecode(EXPUNGED_NAME + b"/cur/" + tree.message(docid).name))


def _print_json(store: "Store", docids: Sequence[Docid]) -> None:
    rows = [
        {
            "docid": summary.docid,
            "message_id": summary.message_id,
            "date": summary.date,
            "from": summary.sender,
            "to": summary.recipient,
            "subject": summary.subject,
            "keywords": _words(summary),
            "size": summary.size,
            "blobs": summary.blobs,
            "thread": summary.thread,
        }
        for summary in _summaries(store, docids)
    ]
    print(json_text(rows))


def run_show(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.store.store import Store

    with Store.open(root) as store:
        docids = store.index.docids(plan_of(arguments.query), "oldest-first", arguments.limit)
        if not docids:
            print("mailfs show: no message matches", file=sys.stderr)
            return EX_NOINPUT
        if arguments.format == "raw" and len(docids) > 1:
            raise UsageError(f"--format=raw prints one message; {len(docids)} match")
        for summary in _summaries(store, docids):
            raw = store.load(summary.docid)
            if arguments.format == "text":
                print(_as_text(raw, summary))
            else:
                sys.stdout.buffer.write(
                    raw if arguments.format == "raw" else _as_mbox(raw, summary)
                )
        sys.stdout.buffer.flush()
    return 0


def _as_text(raw: bytes, summary: "Summary") -> str:
    from mailfs.message.parse import parse_message

    parsed = parse_message(raw)
    date = time.strftime("%a, %d %b %Y %H:%M:%S %z", time.localtime(summary.date))
    fields = {
        "From": parsed.sender,
        "To": parsed.recipient,
        "Cc": parsed.cc,
        "Date": date,
        "Subject": parsed.subject,
        "Message-ID": f"<{parsed.message_id}>" if parsed.message_id else "",
        "Keywords": " ".join(_words(summary)),
        "Attachments": parsed.attachment.replace("\n", ", "),
    }
    head = "\n".join(f"{name}: {value}" for name, value in fields.items() if value)
    return harmless(f"{head}\n\n{parsed.body.rstrip()}\n\n")


def _as_mbox(raw: bytes, summary: "Summary") -> bytes:
    """mboxrd: one `>` more before every `From `, whatever stands before it."""
    import re

    moment = time.strftime("%a %b %d %H:%M:%S %Y", time.gmtime(summary.date))
    quoted = re.sub(rb"^(>*From )", rb">\1", raw, flags=re.MULTILINE)
    end = b"\n" if quoted.endswith(b"\n") else b"\n\n"
    return f"From mailfs@localhost {moment}\n".encode() + quoted + end
