"""mailfs expire: the end of what was expunged long ago."""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mailfs.cli.commands import Commands, Parser, add_command
from mailfs.errors import UsageError

if TYPE_CHECKING:
    from mailfs.store.upkeep.expire import Expunged

_DAY_S = 86_400
DEFAULT_OLDER = "30d"


def add_commands(commands: "Commands[Parser]") -> None:
    expire = add_command(
        commands, "expire", run_expire, "reclaim messages that were expunged long ago"
    )
    expire.add_argument(
        "--older",
        metavar="AGE",
        default=DEFAULT_OLDER,
        help=f"longer ago than this: 30d, 2w, 6m, 1y (default: {DEFAULT_OLDER})",
    )
    expire.add_argument(
        "--dry-run", action="store_true", help="only say what would be reclaimed, and what when"
    )


def run_expire(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.search.dates import moment_ago
    from mailfs.store.sizes import size_text
    from mailfs.store.store import Store
    from mailfs.store.upkeep.expire import expire, expunged_by_time

    now_s = time.time()
    try:
        until_s = moment_ago(arguments.older, now_s)
    except ValueError as error:
        raise UsageError(f"--older {arguments.older}: {error}") from None
    with Store.open(root) as store:
        if arguments.dry_run:
            for line in _plan_lines(expunged_by_time(store.index), now_s - until_s, now_s):
                print(line)
            return 0
        *_, progress = expire(store, until_s)
        store.writer.sync()
    if progress.messages:
        freed = size_text(progress.stored_bytes)
        print(f"{progress.messages} reclaimed; compact can free {freed}")
    else:
        print("nothing to reclaim")
    return 0


def _plan_lines(expunged: list["Expunged"], older_s: float, now_s: float) -> Iterator[str]:
    """What goes when, a line a day."""
    from mailfs.store.sizes import size_text

    days: dict[str, tuple[int, int]] = {}
    for each in expunged:
        goes_s = each.expunged + older_s
        day = "now" if goes_s < now_s else time.strftime("%Y-%m-%d", time.localtime(goes_s))
        messages, size = days.get(day, (0, 0))
        days[day] = (messages + each.messages, size + each.size)
    if not days:
        yield "nothing is expunged"
    for day, (messages, size) in days.items():
        yield f"{day:<10}  {messages:>7} messages  {size_text(size):>8}"
