"""The command line: parser, dispatch, and the place where errors become messages and exit codes."""

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mailfs import __version__
from mailfs.cli import (
    backing_up,
    compacting,
    delivering,
    dumping,
    expiring,
    importing,
    journal,
    maintaining,
    mounting,
    rebuilding,
    saving,
    searching,
    status,
    storing,
    tagging,
)
from mailfs.cli.commands import Commands, Parser, harmless
from mailfs.errors import EX_OSERR, MailfsError

EX_INTERRUPTED = 128 + signal.SIGINT


def default_store(environment: dict[str, str]) -> Path:
    """$MAILFS_STORE, else mailfs in $XDG_DATA_HOME, else ~/.local/share/mailfs."""
    if named := environment.get("MAILFS_STORE"):
        return Path(named)
    if data_home := environment.get("XDG_DATA_HOME"):
        return Path(data_home) / "mailfs"
    return Path(environment.get("HOME", "~")) / ".local/share/mailfs"


class VersionAction(argparse.Action):
    """--version: what a bug report needs. Imports late, because nothing else needs all of it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> NoReturn:
        print(f"mailfs {__version__}")
        for line in mounting.versions():
            print(line)
        parser.exit()


def build_parser() -> Parser:
    """The whole command line; man/mailfs.1 is held against it by a test."""
    parser = Parser(
        prog="mailfs",
        description="A deduplicated mail store that shows every saved search as a live Maildir.",
        epilog="See mailfs(1), and mailfs-search(7) for the query language.",
    )
    parser.add_argument(
        "--store",
        metavar="DIR",
        type=Path,
        help="the store (default: $MAILFS_STORE or the XDG one)",
    )
    parser.add_argument("--version", action=VersionAction, nargs=0, help="show versions and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (
        storing,
        importing,
        delivering,
        mounting,
        searching,
        tagging,
        saving,
        journal,
        expiring,
        compacting,
        dumping,
        rebuilding,
        backing_up,
        maintaining,
        status,
    ):
        module.add_commands(commands)
    return parser


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments parsed; `-spam` in a query is a word of it, no option."""
    parser = build_parser()
    start = 0
    while start < len(arguments) and (length := parser.option_length(arguments[start:])):
        start += length
    command = command_parsers(parser).get(arguments[start]) if start < len(arguments) else None
    if command is None or not command.get_default("takes_words"):
        return parser.parse_args(arguments)
    options, words = _split_words(command, arguments[start + 1 :])
    return parser.parse_args([*arguments[: start + 1], *options, "--", *words])


def _split_words(command: Parser, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command's options, wherever they stand before a `--`, and its words. Only `tag` needs to see the `--`."""
    options: list[str] = []
    words: list[str] = []
    position = 0
    while position < len(arguments):
        if arguments[position] == "--":
            words += arguments[position + (0 if command.get_default("takes_marks") else 1) :]
            break
        length = command.option_length(arguments[position:])
        (options if length else words).extend(arguments[position : position + max(length, 1)])
        position += max(length, 1)
    return options, words


def command_parsers(parser: Parser) -> dict[str, Parser]:
    """The parsers of the commands, by name."""
    for action in parser._actions:
        if isinstance(action, Commands):
            return dict(action.choices)
    return {}


def main(arguments: Sequence[str]) -> int:
    """Run one command; its exit code, of sysexits.h."""
    # The store is nobody else's business, whatever the shell's umask.
    os.umask(0o077)
    parsed = parse_arguments(arguments)
    # Not Path.expanduser(), which fails for a user without a home: the command says then which store is missing.
    named = parsed.store or default_store(dict(os.environ))
    store = Path(os.path.expanduser(named)).absolute()
    # A name that is no UTF-8 is shown, not a reason to fail.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with status.answering(parsed.command):
            code: int = parsed.run(parsed, store)
        sys.stdout.flush()
    except MailfsError as error:
        print(harmless(f"mailfs {parsed.command}: {error}"), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader (head, less) has had enough; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        print(harmless(f"mailfs {parsed.command}: {error}"), file=sys.stderr)
        return EX_OSERR
    except KeyboardInterrupt:
        print(f"mailfs {parsed.command}: interrupted", file=sys.stderr)
        return EX_INTERRUPTED
    return code


def console() -> NoReturn:
    """The entry point of the command `mailfs`."""
    sys.exit(main(sys.argv[1:]))
