"""What the command modules share: how a command is declared, and how a query is taken from its words."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mailfs.errors import EX_USAGE

if TYPE_CHECKING:
    from mailfs.search.plan import Plan

Commands = argparse._SubParsersAction  # argparse gives the type no public name
Run = Callable[[argparse.Namespace, Path], int]
_PIECE_CHARS = 1 << 16


class Parser(argparse.ArgumentParser):
    """argparse, with the exit code of sysexits.h and no guessing at cut-off options."""

    def __init__(
        self,
        prog: str | None = None,
        *,
        description: str | None = None,
        epilog: str | None = None,
    ) -> None:
        super().__init__(prog, description=description, epilog=epilog, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {harmless(message)}\n")

    def option_length(self, arguments: Sequence[str]) -> int:
        """How many words an option at the start takes with its value; 0 where none stands there."""
        word = arguments[0]
        name, is_joined, _ = word.partition("=") if word[:2] == "--" else (word, "", "")
        action = self._option_string_actions.get(name)
        if action is not None:
            return 1 if is_joined or action.nargs == 0 else 2
        # A long option that is none is left for argparse to complain of.
        return 1 if word[:2] == "--" and word != "--" else 0


def add_command(
    commands: "Commands[Parser]", name: str, run: Run, summary: str
) -> argparse.ArgumentParser:
    """Declare a command; `summary` is its line in --help."""
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run=run, takes_words=False)
    return parser


def add_query(parser: argparse.ArgumentParser) -> None:
    """The rest of the line is a query, also words that begin with `-`."""
    parser.set_defaults(takes_words=True)
    parser.add_argument("query", metavar="QUERY", nargs="+", help="see mailfs-search(7)")


def plan_of(words: list[str]) -> "Plan":
    """The plan of a query given as words. Raises QuerySyntaxError."""
    from mailfs.search.plan import plan
    from mailfs.search.query import parse_query

    return plan(parse_query(" ".join(words)), time.time())


def harmless(text: str) -> str:
    """Without the signs a terminal obeys, bidirectional overrides among them: mail must not command it."""
    return "\n".join("\t".join(map(_printable, line.split("\t"))) for line in text.split("\n"))


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    # Piece by piece: a million signs one by one take a hundred times their bytes.
    return "".join(
        "".join(filter(str.isprintable, text[start : start + _PIECE_CHARS]))
        for start in range(0, len(text), _PIECE_CHARS)
    )


def json_text(value: object) -> str:
    """JSON for people and programs: letters as they are, what a terminal obeys as JSON's escapes."""
    lines = json.dumps(value, ensure_ascii=False, indent=1).split("\n")
    return "\n".join(line if line.isprintable() else _escaped(line) for line in lines)


def _escaped(line: str) -> str:
    return "".join(sign if sign.isprintable() else json.dumps(sign)[1:-1] for sign in line)


def whole_number(text: str) -> int:
    """What an option such as --limit takes."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"not a number: {text}")
    return int(text)
