"""mailfs init, mailfs verify."""

import argparse
import sys
from pathlib import Path

from mailfs.cli.commands import Commands, Parser, add_command
from mailfs.errors import EX_DATAERR


def add_commands(commands: "Commands[Parser]") -> None:
    add_command(commands, "init", run_init, "make a store")
    parser = add_command(commands, "verify", run_verify, "check the store, reading all of it")
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print problems only, no counts and no notes"
    )


def run_init(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.store.store import Store

    Store.create(root).close()
    print(f"made a store at {root}")
    return 0


def run_verify(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.store.store import Store
    from mailfs.store.verify import Severity, counts, verify

    problems = 0
    with Store.open(root) as store:
        for finding in verify(store):
            if finding.severity is Severity.PROBLEM:
                problems += 1
                print(finding, file=sys.stderr)
            elif not arguments.quiet:
                print(finding)
        found = counts(store)
    if not arguments.quiet:
        print(
            f"{found.messages} messages, {found.expunged} expunged, {found.blobs} blobs "
            f"in {found.packs} packs: {problems or 'no'} problems"
        )
    return EX_DATAERR if problems else 0
