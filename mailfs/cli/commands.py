"""What the command modules share: how a command is declared, and how a query is taken from its words."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailfs.search.plan import Plan

Commands = argparse._SubParsersAction  # argparse gives the type no public name
Run = Callable[[argparse.Namespace, Path], int]


def add_command(
    commands: "Commands[argparse.ArgumentParser]", name: str, run: Run, summary: str
) -> argparse.ArgumentParser:
    """Declare a command; `summary` is its line in --help."""
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run=run)
    return parser


def add_query(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", metavar="QUERY", nargs="+", help="see mailfs-search(7)")


def plan_of(words: list[str]) -> "Plan":
    """The plan of a query given as words. Raises QuerySyntaxError."""
    from mailfs.search.plan import plan
    from mailfs.search.query import parse_query

    return plan(parse_query(" ".join(words)), time.time())
