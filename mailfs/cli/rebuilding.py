"""mailfs reindex."""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mailfs.cli.commands import Commands, Parser, add_command
from mailfs.cli.dumping import cannot_read
from mailfs.cli.status import progress_told_by
from mailfs.errors import EX_DATAERR

if TYPE_CHECKING:
    from mailfs.store.rescue.new_index import Rebuilt

_SHOWN = 50


def add_commands(commands: "Commands[Parser]") -> None:
    parser = add_command(
        commands, "reindex", run_reindex, "make the index anew, from the packs and a dump"
    )
    parser.add_argument(
        "--dump", metavar="FILE", help="what to look at instead of the store's own dump"
    )


def run_reindex(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.ingest.workers import Processes
    from mailfs.store.layout import open_layout
    from mailfs.store.rescue.reindex import Parser as MailParser
    from mailfs.store.rescue.reindex import done_bytes, reindex

    layout = open_layout(root)
    started = time.monotonic()
    with ExitStack() as stack:
        dump: BinaryIO | None = None
        if arguments.dump is not None:
            try:
                dump = stack.enter_context(open(arguments.dump, "rb"))
            except OSError as error:
                raise cannot_read(arguments.dump, error) from None
        workers = stack.enter_context(
            Processes(
                MailParser(layout),
                # Six numbers.
                item_chars=lambda _: 64,
                done_bytes=done_bytes,
                safe="the store has its old index: run it again",
            )
        )
        progress = _telling(stack)
        rebuilt = reindex(layout, workers.prepare, dump, progress)
    _report(rebuilt, time.monotonic() - started)
    return EX_DATAERR if rebuilt.problems else 0


def _telling(stack: ExitStack) -> Callable[[int, int], None]:
    """Tells how far it has come: by a bar on a terminal, and whoever asks by a signal."""
    told = [0, 0]
    stack.enter_context(progress_told_by(lambda: f"{told[0]} of {told[1]} messages so far"))
    if not sys.stderr.isatty():
        return lambda done, total: told.__setitem__(slice(None), [done, total])
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # its thread would only watch for a stall
    bar = stack.enter_context(tqdm(unit=" messages", dynamic_ncols=True, file=sys.stderr))

    def tell(done: int, total: int) -> None:
        told[:] = [done, total]
        bar.total = total
        bar.update(done - bar.n)

    return tell


def _report(rebuilt: "Rebuilt", took_s: float) -> None:
    for kind, lines in (("note", rebuilt.notes), ("problem", rebuilt.problems)):
        for line in lines[:_SHOWN]:
            print(f"{kind}: {line}", file=sys.stderr)
        if len(lines) > _SHOWN:
            print(f"and {len(lines) - _SHOWN} {kind}s more", file=sys.stderr)
    parts = [f"{rebuilt.messages} messages", f"{rebuilt.expunged} expunged"]
    if rebuilt.from_dump:
        parts.append(f"{rebuilt.from_dump} by the dump alone")
    if rebuilt.recovered:
        parts.append(f"{rebuilt.recovered} recovered that nothing knew of (tag:recovered)")
    parts.append(f"{took_s:.1f} s")
    print(", ".join(parts))
