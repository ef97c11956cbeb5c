"""mailfs import."""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mailfs.cli.commands import Commands, Parser, add_command
from mailfs.cli.status import progress_told_by
from mailfs.errors import EX_IOERR, UsageError

if TYPE_CHECKING:
    from mailfs.ingest.importer import Importer, Labels, Prepared, Progress
    from mailfs.ingest.mailboxes import Format, SourceProblem

FORMATS = ("auto", "maildir", "mbox", "mboxo", "mboxrd", "mboxcl2", "mh", "file")
# Folders that are a whole mail account, not one mailbox of it: their own messages are the inbox.
_ACCOUNT_NAMES = frozenset({"maildir", ".maildir", "mail", ".mail", "inbox", "mbox", "-"})
_PROBLEMS_SHOWN = 20


def add_commands(commands: "Commands[Parser]") -> None:
    parser = add_command(
        commands, "import", run_import, "add the mail of Maildirs, mbox files, MH folders and files"
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="auto", help="what the sources are (default: look)"
    )
    parser.add_argument(
        "-k",
        "--keyword",
        dest="keywords",
        metavar="KW",
        action="append",
        default=[],
        help="put this keyword on every message",
    )
    parser.add_argument(
        "--no-folders", action="store_true", help="no keywords and searches for the folders"
    )
    parser.add_argument(
        "sources", metavar="SOURCE", nargs="+", help="a path, or - for standard input"
    )


def run_import(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.ingest.importer import Labels
    from mailfs.ingest.mailboxes import Format, detect
    from mailfs.message.keywords import parse_keyword
    from mailfs.store.layout import open_layout

    keywords = tuple(map(parse_keyword, arguments.keywords))
    format = Format(arguments.format)
    if "" in arguments.sources:
        raise UsageError("a source has an empty name")
    if "-" in arguments.sources and len(arguments.sources) > 1:
        raise UsageError("standard input cannot be imported beside other sources")
    open_layout(root)  # what is missing is told before anything is read
    for source in arguments.sources:
        if source != "-":
            detect(Path(source))
    unread = 0
    for source in arguments.sources:
        folder = root_folder(source)
        if source != "-" and detect(Path(source)) is Format.FILE:
            folder = "inbox"  # one message is no folder
        labels = Labels(folder, keywords, folders=not arguments.no_folders)
        progress = (
            _import_stream(root, labels, format)
            if source == "-"
            else _import_path(root, Path(source), labels, format)
        )
        unread += len(progress.problems)
    return EX_IOERR if unread else 0


def root_folder(source: str) -> str:
    """The folder of a source's own messages: `inbox` for an account, else the source's name."""
    name = Path(source).expanduser().absolute().name if source != "-" else source
    for suffix in (".mbox", ".mbx"):
        name = name.removesuffix(suffix)
    return "inbox" if name.lower() in _ACCOUNT_NAMES or not name.strip(".") else name.lstrip(".")


def _import_path(root: Path, source: Path, labels: "Labels", format: "Format") -> "Progress":
    from mailfs.ingest.importer import Importer
    from mailfs.ingest.mailboxes import iter_source
    from mailfs.ingest.workers import Workers
    from mailfs.store.store import Store

    refs = iter_source(source, format)
    with Workers(labels) as workers, Store.open(root) as store:
        importer = Importer(store, labels, str(source))
        return _run(importer, workers.prepare_for(store, refs), str(source), format)


def _import_stream(root: Path, labels: "Labels", format: "Format") -> "Progress":
    from mailfs.ingest.importer import Importer, prepare_source
    from mailfs.ingest.mailboxes import SourceProblem, iter_stream
    from mailfs.store.store import Store

    def batches(store: Store) -> "Iterator[list[Prepared | SourceProblem]]":
        for item in iter_stream(sys.stdin.buffer, format):
            if isinstance(item, SourceProblem):
                yield [item]
            else:
                yield [prepare_source(item, labels, store.newest_dictionary_or_none())]

    with Store.open(root) as store:
        return _run(Importer(store, labels, "-"), batches(store), "standard input", format)


def _run(
    importer: "Importer",
    batches: "Iterable[list[Prepared | SourceProblem]]",
    source: str,
    format: "Format",
) -> "Progress":
    started = time.monotonic()
    progress = importer.progress
    try:
        with progress_told_by(lambda: f"{source}: {', '.join(_counts(progress))} so far"):
            if sys.stderr.isatty():
                _add_with_bar(importer, batches, source, format)
            else:
                for _ in importer.add_all(batches):
                    pass
    except KeyboardInterrupt:
        print(
            f"\n{source}: {progress.added} messages are in and safe; run the import again to go on",
            file=sys.stderr,
        )
        raise
    _report(progress, source, time.monotonic() - started)
    return progress


def _add_with_bar(
    importer: "Importer",
    batches: "Iterable[list[Prepared | SourceProblem]]",
    source: str,
    format: "Format",
) -> None:
    """Messages, or bytes where messages cannot be counted beforehand: either way with the time left."""
    from tqdm import tqdm

    from mailfs.ingest.mailboxes import count_estimate, size_estimate

    tqdm.monitor_interval = 0  # its thread would only watch for a stall
    messages = count_estimate(Path(source), format)
    size_bytes = size_estimate(Path(source)) if messages is None else 0
    with tqdm(
        total=messages if messages is not None else size_bytes or None,
        unit=" messages" if messages is not None else "B",
        unit_scale=messages is None,
        dynamic_ncols=True,
        file=sys.stderr,
    ) as bar:
        for progress in importer.add_all(batches):
            if messages is None:
                bar.set_postfix_str(f"{progress.seen} messages", refresh=False)
                bar.update(progress.seen_bytes - bar.n)
            else:
                bar.update(progress.seen - bar.n)


def _report(progress: "Progress", source: str, took_s: float) -> None:
    for problem in progress.problems[:_PROBLEMS_SHOWN]:
        print(f"{problem.origin}: not read: {problem.reason}", file=sys.stderr)
    if len(progress.problems) > _PROBLEMS_SHOWN:
        print(f"and {len(progress.problems) - _PROBLEMS_SHOWN} more", file=sys.stderr)
    size = progress.raw_bytes / 1e6
    figures = [f"{size:.1f} MB" if size >= 1 else f"{size * 1000:.0f} kB", f"{took_s:.1f} s"]
    if took_s >= 1:
        figures.append(f"{progress.seen / took_s:.0f} messages/s")
    print(f"{source}: {', '.join(_counts(progress))} ({', '.join(figures)})")


def _counts(progress: "Progress") -> list[str]:
    parts = [f"{progress.added} added" if progress.added else "nothing new"]
    if progress.known:
        parts.append(f"{progress.known} here already")
    if progress.labelled:
        parts.append(f"{progress.labelled} of these got a keyword")
    if progress.expunged:
        parts.append(f"{progress.expunged} were expunged here and stay so")
    if progress.problems:
        parts.append(f"{len(progress.problems)} not read")
    return parts
