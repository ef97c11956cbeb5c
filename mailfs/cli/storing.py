"""mailfs init, mailfs verify."""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from mailfs.cli.commands import Commands, Parser, add_command, harmless
from mailfs.errors import EX_DATAERR, UsageError

if TYPE_CHECKING:
    from tqdm import tqdm

    from mailfs.store.rescue.findings import Finding, Step
    from mailfs.store.rescue.mending import Outcome

# Of one kind so many lines are shown, unless a program reads them: a pack that is missing may be that of 30,000 messages.
_SHOWN = 200


def add_commands(commands: "Commands[Parser]") -> None:
    add_command(commands, "init", run_init, "make a store")
    parser = add_command(commands, "verify", run_verify, "check the store, reading all of it")
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print problems only, no counts and no notes"
    )
    parser.add_argument("--json", action="store_true", help="print an array of objects")
    parser.add_argument(
        "--full", action="store_true", help="hold the words of all messages against their bytes"
    )
    parser.add_argument("--repair", action="store_true", help="mend what can be mended")
    parser.add_argument(
        "--from",
        dest="backups",
        metavar="BACKUP",
        type=Path,
        action="append",
        default=[],
        help="with --repair: take what is lost from this backup or other store",
    )


def run_init(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.store.store import Store

    Store.create(root).close()
    print(f"made a store at {root}")
    return 0


def run_verify(arguments: argparse.Namespace, root: Path) -> int:
    if arguments.backups and not arguments.repair:
        raise UsageError("--from BACKUP needs --repair")
    if arguments.repair:
        return _repair(arguments, root)
    from mailfs.store.rescue.verify import Severity, Step, counts_or_none, examine

    shown = _Shown(arguments)
    for found in examine(root, full=arguments.full):
        if isinstance(found, Step):
            shown.step(found)
            continue
        is_note = found.severity is Severity.NOTE
        shown.say(found, found.kind.value, found.severity.value, is_minor=is_note)
    problems, lost = shown.counted["problem"], shown.counted["lost"]
    shown.end()
    known = counts_or_none(root)
    if known is not None and not arguments.quiet and not arguments.json:
        print(
            f"{known.messages} messages, {known.expunged} expunged, {known.blobs} blobs "
            f"in {known.packs} packs: {problems or 'no'} problems"
            + (f", {lost} lost" if lost else "")
        )
    if problems and not arguments.json:
        print("`mailfs verify --repair` mends what can be mended", file=sys.stderr)
    return EX_DATAERR if problems else 0


def _repair(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.store.rescue.findings import Step
    from mailfs.store.rescue.mending import Fate
    from mailfs.store.rescue.repair import repair

    shown = _Shown(arguments)
    for found in repair(root, backups=arguments.backups, full=arguments.full):
        if isinstance(found, Step):
            shown.step(found)
        else:
            is_minor = found.fate is Fate.MENDED
            shown.say(found, found.finding.kind.value, found.fate.value, is_minor=is_minor)
    mended, lost, kept = (shown.counted[fate.value] for fate in Fate)
    shown.end()
    if not arguments.quiet and not arguments.json:
        print(f"{mended} mended, {lost} lost, {kept} not mended")
    return EX_DATAERR if kept or lost else 0


class _Shown:
    """What is printed: a line each as it comes, or an array at the end; and how far it is, on a terminal."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._is_json = arguments.json
        self._is_quiet = arguments.quiet
        self._as_dicts: list[dict[str, object]] = []
        self._by_kind: Counter[str] = Counter()
        self._bar: tqdm[NoReturn] | None = None
        self.counted: Counter[str] = Counter()

    def say(self, found: "Finding | Outcome", kind: str, word: str, *, is_minor: bool) -> None:
        """A finding, or what became of it. Minor ones go to standard output, and `--quiet` leaves them out."""
        self.counted[word] += 1
        if self._is_json:
            self._as_dicts.append(_as_dict(found))
        elif not (is_minor and self._is_quiet):
            self._by_kind[kind] += 1
            if self._by_kind[kind] <= _SHOWN:
                self._print(harmless(str(found)), sys.stdout if is_minor else sys.stderr)

    def _print(self, line: str, file: TextIO) -> None:
        if self._bar is not None:
            self._bar.clear()
        print(line, file=file)

    def step(self, step: "Step") -> None:
        """How far it is."""
        if self._is_quiet or self._is_json or not sys.stderr.isatty():
            return
        if self._bar is None:
            from tqdm import tqdm

            tqdm.monitor_interval = 0  # its thread would only watch for a stall
            self._bar = tqdm(unit="B", unit_scale=True, dynamic_ncols=True, file=sys.stderr)
        self._bar.total = step.total
        self._bar.update(step.done - self._bar.n)

    def end(self) -> None:
        """Nothing more comes."""
        if self._bar is not None:
            self._bar.close()
        if self._is_json:
            print(json.dumps(self._as_dicts, ensure_ascii=False))
        for kind, count in self._by_kind.items():
            if count > _SHOWN:
                print(f"and {count - _SHOWN} more about {kind}: see --json", file=sys.stderr)


def _as_dict(found: "Finding | Outcome") -> dict[str, object]:
    from mailfs.store.rescue.mending import Outcome

    finding = found.finding if isinstance(found, Outcome) else found
    said: dict[str, object] = {
        "severity": finding.severity.value,
        "kind": finding.kind.value,
        "where": finding.where,
        "what": finding.what,
        "number": finding.number,
        "place": finding.place,
    }
    if isinstance(found, Outcome):
        said |= {"fate": found.fate.value, "how": found.how, "message": found.message}
    return said
