"""mailfs maintain: what a mount does for its store by itself, for stores that are seldom mounted, and for cron(8)."""

import argparse
import os
import sys
from pathlib import Path

from mailfs.cli.commands import Commands, Parser, add_command
from mailfs.errors import EX_IOERR

# Others come first: nobody waits for this.
_NICENESS = 10


def add_commands(commands: "Commands[Parser]") -> None:
    parser = add_command(
        commands, "maintain", run_maintain, "expire, compact, dump and clean up, as configured"
    )
    parser.add_argument(
        "--due", action="store_true", help="only when the last time was long enough ago"
    )


def run_maintain(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.store.config import read_config
    from mailfs.store.sizes import size_text
    from mailfs.store.store import Store
    from mailfs.store.upkeep.maintenance import maintain

    os.nice(_NICENESS)
    with Store.open(root) as store:
        found = maintain(store, read_config(store.layout), only_if_due=arguments.due)
    if found is None:
        print("not due yet")
        return 0
    for problem in found.problems:
        print(f"mailfs maintain: {problem}", file=sys.stderr)
    for note in found.notes:
        print(f"kept: {note}")
    print(
        f"{found.expired} messages reclaimed, {found.rewritten_packs} packs rewritten, "
        f"{found.removed_files} leftovers removed, {size_text(found.freed_bytes)} freed"
    )
    return EX_IOERR if found.problems else 0


def maintain_command(root: Path) -> tuple[str, ...]:
    """How a mount starts it, as a process of its own: also one that runs from a folder that is not installed."""
    source = str(Path(__file__).resolve().parents[2])
    start = f"import sys; sys.path.insert(0, {source!r}); from mailfs.cli.main import console; console()"
    return (sys.executable, "-c", start, "--store", str(root), "maintain", "--due")
