"""mailfs compact, and the table of what takes the disk."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mailfs.cli.commands import Commands, Parser, add_command
from mailfs.cli.status import progress_told_by
from mailfs.errors import EX_DATAERR, UsageError

if TYPE_CHECKING:
    from mailfs.ids import PackNumber
    from mailfs.store.store import Store
    from mailfs.store.upkeep.compact import Compaction
    from mailfs.store.upkeep.disk_use import DiskUse, PackUse

DEFAULT_DEAD = 25


def add_commands(commands: "Commands[Parser]") -> None:
    parser = add_command(
        commands, "compact", run_compact, "give back the room of messages that were reclaimed"
    )
    parser.add_argument(
        "--dead",
        metavar="PERCENT",
        default=str(DEFAULT_DEAD),
        help=f"rewrite packs of which so much is not needed any more (default: {DEFAULT_DEAD})",
    )
    parser.add_argument(
        "--all",
        dest="everything",
        action="store_true",
        help="rewrite packs that lack the newest dictionary as well",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only show what takes the disk, and what would be done",
    )
    parser.add_argument("--json", action="store_true", help="print an object")


def run_compact(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.store.store import Store
    from mailfs.store.upkeep.compact import worth_it
    from mailfs.store.upkeep.disk_use import disk_use

    dead_share = _dead_share(arguments.dead)
    with Store.open(root) as store:
        uses = worth_it(store, dead_share, everything=arguments.everything)
        if arguments.dry_run:
            return _show(disk_use(store), uses, as_json=arguments.json)
        done = _compact(store, dead_share, arguments.everything, sum(use.live for use in uses))
        waiting = disk_use(store).removable
    if arguments.json:
        print(json.dumps(asdict(done) | {"waiting": waiting}, indent=1))
    else:
        for line in _result_lines(done, waiting):
            print(line)
    for text in done.kept:
        print(f"kept: {text}", file=sys.stderr)
    return EX_DATAERR if done.kept else 0


def _dead_share(text: str) -> float:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 100:
        raise UsageError(f"--dead {text}: this must be a whole number from 1 to 100")
    return int(text) / 100


def _compact(store: "Store", dead_share: float, everything: bool, total_bytes: int) -> "Compaction":
    from mailfs.store.upkeep.compact import compact

    steps = compact(store, dead_share, everything=everything)
    done = next(steps)
    with progress_told_by(lambda: f"{done.messages} messages moved so far"):
        if not sys.stderr.isatty():
            for _ in steps:
                pass
            return done
        from tqdm import tqdm

        tqdm.monitor_interval = 0  # its thread would only watch for a stall
        with tqdm(
            total=total_bytes or None,
            unit="B",
            unit_scale=True,
            dynamic_ncols=True,
            file=sys.stderr,
        ) as bar:
            for _ in steps:
                bar.update(done.read_bytes - bar.n)
    return done


def _result_lines(done: "Compaction", waiting: int) -> Iterator[str]:
    from mailfs.store.sizes import size_text

    if done.made_dictionary:
        yield "made a dictionary for new messages"
    if done.packs:
        freed = size_text(max(done.freed_bytes - done.written_bytes, 0))
        yield f"{done.messages} messages moved out of {done.packs} packs: {freed} freed"
    elif not done.made_dictionary:
        yield "nothing to compact"
    if waiting:
        yield f"{waiting} packs are removed the next time: a backup or a check still needs them"


def _show(use: "DiskUse", uses: list["PackUse"], *, as_json: bool) -> int:
    wanted = {each.pack for each in uses}
    if as_json:
        packs = [
            asdict(each) | {"dead": each.dead, "rewrite": each.pack in wanted} for each in use.packs
        ]
        print(json.dumps(asdict(use) | {"packs": packs}, indent=1))
        return 0
    for line in _table_lines(use, wanted):
        print(line)
    return 0


def _table_lines(use: "DiskUse", wanted: set["PackNumber"]) -> Iterator[str]:
    """A line a pack, then the sums, then what is not in packs."""
    from mailfs.store.sizes import size_text

    yield f"{'pack':8}  {'size':>8}  {'live':>8}  {'dead':>8}  {'messages':>8}"
    for each in use.packs:
        sizes = "  ".join(f"{size_text(size):>8}" for size in (each.size, each.live, each.dead))
        state = "sealed" if each.is_sealed else "newest" if each.is_newest else "full"
        words = [state, *(["to be rewritten"] if each.pack in wanted else [])]
        yield f"{each.pack:08d}  {sizes}  {each.messages:>8}  {', '.join(words)}"
    totals = (use.pack_bytes, use.live_bytes, use.dead_bytes)
    sizes = "  ".join(f"{size_text(size):>8}" for size in totals)
    yield f"{'total':8}  {sizes}  {sum(each.messages for each in use.packs):>8}"
    yield f"dictionaries: {use.dictionaries}, {size_text(use.dictionary_bytes)}"
    yield f"index: {size_text(use.index_bytes)}"
    if use.removable:
        yield f"packs that wait for their removal: {use.removable}"
