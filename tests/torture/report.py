"""What one run of a part did and what it found; each failure says how to see it again."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

# A bug that every point shows would bury all others.
_SHOWN = 50
_LONGEST_LINE_CHARS = 2000


class Failure(NamedTuple):
    """Something that must not be: `n` is the number of the step within the run of `seed`."""

    part: str
    seed: int
    n: int
    what: str

    def __str__(self) -> str:
        what = self.what
        if len(what) > _LONGEST_LINE_CHARS:
            what = what[:_LONGEST_LINE_CHARS] + " ..."
        return f"{self.part}: seed {self.seed}, n {self.n}: {what}"


@dataclass
class Report:
    """One run of one part. `counts` are what was done, by kind; `total` is what the part's goal is counted in."""

    part: str
    seed: int
    total: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Nothing was wrong, and something was done: a run that did nothing shows nothing."""
        return not self.failures and self.total > 0

    def did(self, kind: str, times: int = 1) -> None:
        """So many steps of this kind were done; they count for the goal."""
        self.counts[kind] += times
        self.total += times

    def fail(self, n: int, what: object) -> None:
        """Step `n` showed something that must not be. A seed and an `n` are all that is needed to see it again."""
        self.failures.append(Failure(self.part, self.seed, n, str(what)))

    def note(self, text: str) -> None:
        """Worth a line in the report, and no failure: a measurement, or a step left out and why."""
        self.notes.append(text)

    @contextmanager
    def step(self, n: int, kind: str) -> Iterator[None]:
        """One step: counted; an assertion that does not hold in it, or any other exception, is a failure of it."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # whatever it is, it goes into the report, and the run goes on
            self.fail(n, f"{kind}: {type(error).__name__}: {error}")
        self.did(kind)

    def add(self, other: "Report") -> None:
        """Take in what a run beside this one did, which may have been of another part or seed."""
        self.total += other.total
        self.counts += other.counts
        self.failures += other.failures
        self.notes += other.notes

    def lines(self) -> list[str]:
        """For people."""
        kinds = sorted(self.counts.items())
        width = max((len(kind) for kind, _ in kinds), default=0)
        lines = [f"{self.part}: seed {self.seed}: {self.total} in all, {len(self.failures)} failed"]
        lines += [f"  {kind:{width}} {count:9}" for kind, count in kinds]
        lines += [f"  {note}" for note in self.notes]
        lines += [f"FAILED {failure}" for failure in self.failures[:_SHOWN]]
        if len(self.failures) > _SHOWN:
            lines.append(f"... and {len(self.failures) - _SHOWN} more")
        return lines
