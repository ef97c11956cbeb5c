"""What each process did, how long it took, and what went wrong: appended to a file of its own, which a kill leaves.

Allowed errors are counted by what was done and by their name; anything else is a fault and is written at once.
"""

import errno
import json
import os
import statistics
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# What any program must expect while others work in the same folders and the daemon may be dead.
ALLOWED = frozenset(
    {
        errno.ENOENT,
        errno.EEXIST,
        errno.EAGAIN,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ECONNABORTED,
    }
)
_FLUSH_S = 0.5
# Who fails always has said enough.
_MAX_FAULTS = 20


class Given(Exception):
    """A step was given up, for an error that is allowed; it has been counted."""


class Tally:
    """Counts of one process. A kill loses at most the last half second of them."""

    def __init__(self, path: Path, who: str) -> None:
        self._who = who
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._errors: Counter[str] = Counter()
        self._flushed_s = 0.0
        self._faults = 0

    @contextmanager
    def doing(self, kind: str, *allowed: int) -> Iterator[None]:
        """Count and time what is done in the block. Raises Given for an error that is allowed."""
        start = time.monotonic()
        try:
            yield
        except OSError as error:
            if error.errno not in ALLOWED and error.errno not in allowed:
                raise
            self.error(kind, errno.errorcode[error.errno or 0])
            raise Given from None
        self.took(kind, time.monotonic() - start)

    def took(self, kind: str, seconds: float) -> None:
        """Something was done."""
        self._seconds[kind].append(seconds)

    def error(self, kind: str, name: str) -> None:
        self._errors[f"{kind} {name}"] += 1

    def fault(self, text: str) -> None:
        """Something that must not be. The first of a process's faults are kept."""
        self._faults += 1
        if self._faults <= _MAX_FAULTS:
            self._write({"fault": f"{self._who}: {text}"})

    def fault_now(self) -> None:
        """The exception that is being handled is a fault."""
        self.fault(traceback.format_exc())

    def beat(self) -> None:
        """Say that this process gets on; now and then write what was counted."""
        if time.monotonic() - self._flushed_s >= _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        self._flushed_s = time.monotonic()
        self._write({"seconds": self._seconds, "errors": self._errors})
        self._seconds.clear()
        self._errors.clear()

    def _write(self, line: dict[str, object]) -> None:
        os.write(self._fd, json.dumps(line).encode() + b"\n")


@dataclass
class Total:
    """All tallies together."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def count(self, kind: str) -> int:
        return len(self.seconds.get(kind, ()))

    def table(self) -> list[str]:
        """A line for each kind of operation: how many, median, the slowest of a hundred, the slowest; milliseconds."""
        lines = [f"{'done':24} {'count':>8} {'median':>9} {'99 %':>9} {'most':>9}  ms"]
        for kind, seconds in sorted(self.seconds.items()):
            found = sorted(seconds)
            times = (statistics.median(found), found[len(found) * 99 // 100], found[-1])
            shown = " ".join(f"{1000 * each:9.1f}" for each in times)
            lines.append(f"{kind:24} {len(found):8} {shown}")
        return lines


def read_total(folder: Path) -> Total:
    """What all processes wrote."""
    total = Total()
    for path in sorted(folder.iterdir()):
        for text in path.read_text().splitlines():
            line = json.loads(text)
            for kind, seconds in line.get("seconds", {}).items():
                total.seconds[kind] += seconds
            total.errors.update(line.get("errors", {}))
            if "fault" in line:
                total.faults.append(line["fault"])
    return total
