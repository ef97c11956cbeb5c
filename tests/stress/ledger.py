"""What was acknowledged and what was taken away, written before anybody goes on, outside of the store.

Each process appends to a file of its own and syncs it; times are of the monotonic clock, which all processes share.
A message that was acknowledged and that nobody began to take away must be there, once. One that was expunged after its
only delivery had ended must be gone. All others may be there or not, but never in part.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Mark(StrEnum):
    """What a line says of its messages."""

    BRINGING = "bringing"  # from now on it may be there
    BROUGHT = "brought"  # acknowledged: it must be there
    REMOVING = "removing"  # from now on it may be gone
    EXPUNGED = "expunged"  # the command has said that it is gone


class Ledger:
    """The file of one process; those after it that have its name go on with it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, mark: Mark, digests: Iterable[str], note: str = "") -> None:
        """Synced when it returns. One write, so a kill leaves the whole line or nothing."""
        line = {"at_s": time.monotonic(), "mark": mark, "digests": list(digests), "note": note}
        os.write(self._fd, json.dumps(line).encode() + b"\n")
        os.fdatasync(self._fd)


@dataclass
class Fate:
    """The times of one message's lines."""

    bringing: list[float] = field(default_factory=list)
    brought: list[float] = field(default_factory=list)
    removing: list[float] = field(default_factory=list)
    expunged: list[float] = field(default_factory=list)

    @property
    def must_be_there(self) -> bool:
        return bool(self.brought) and not self.removing

    @property
    def must_be_gone(self) -> bool:
        """Expunged, and brought once before that was begun: a second delivery may have brought it back."""
        is_brought_once = len(self.bringing) == len(self.brought) == 1
        return is_brought_once and bool(self.expunged) and self.brought[0] < self.removing[0]


def read_fates(folder: Path) -> dict[str, Fate]:
    """The fates of all messages in all files, by digest."""
    fates: dict[str, Fate] = defaultdict(Fate)
    for path in folder.iterdir():
        for at_s, mark, digests, _ in read_lines(path):
            for digest in digests:
                times: list[float] = getattr(fates[digest], mark)
                times.append(at_s)
    for fate in fates.values():
        fate.removing.sort()
    return fates


def read_lines(path: Path) -> Iterator[tuple[float, Mark, list[str], str]]:
    """Time, mark, digests and note of each line."""
    if path.exists():
        for text in path.read_text().splitlines():
            line = json.loads(text)
            yield line["at_s"], Mark(line["mark"]), line["digests"], line["note"]
