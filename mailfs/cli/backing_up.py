"""mailfs backup."""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mailfs.cli.commands import Commands, Parser, add_command
from mailfs.cli.status import progress_told_by
from mailfs.errors import UsageError

if TYPE_CHECKING:
    from mailfs.store.upkeep.backup import Progress


def add_commands(commands: "Commands[Parser]") -> None:
    parser = add_command(commands, "backup", run_backup, "make a snapshot of the store elsewhere")
    parser.add_argument(
        "--keep", type=_count, metavar="N", help="remove all snapshots there but the newest N"
    )
    parser.add_argument("destination", metavar="DEST", type=Path, help="a folder of its own")


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"not a number of snapshots: {text}")
    return int(text)


def run_backup(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.fuse.mounts import find_mounted_or_none
    from mailfs.store.store import Store
    from mailfs.store.upkeep.backup import backup

    destination = arguments.destination.expanduser().absolute()
    for folder in (destination, *destination.parents):
        if find_mounted_or_none(folder) is not None:
            raise UsageError(
                f"{destination} lies in the mailfs mounted at {folder}: name another place"
            )
    with Store.open(root) as store, ExitStack() as stack:
        progress = _telling(stack, destination)
        made = backup(store.layout, destination, keep=arguments.keep, progress=progress)
    print(
        f"{made.path}: {_megabytes(made.copied_bytes)} copied, "
        f"{made.linked_packs} packs ({_megabytes(made.linked_bytes)}) shared with the one before"
    )
    for path in made.removed:
        print(f"removed {path}")
    return 0


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def _telling(stack: ExitStack, destination: Path) -> "Progress":
    """Tells how far it has come: by a bar on a terminal, and whoever asks by a signal."""
    told = [0]
    stack.enter_context(
        progress_told_by(lambda: f"{destination}: {_megabytes(told[0])} copied so far")
    )
    if not sys.stderr.isatty():
        return lambda copied: told.__setitem__(0, copied)
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # its thread would only watch for a stall
    bar = stack.enter_context(tqdm(unit="B", unit_scale=True, dynamic_ncols=True, file=sys.stderr))

    def tell(copied: int) -> None:
        told[0] = copied
        bar.update(copied - bar.n)

    return tell
