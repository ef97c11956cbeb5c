"""What was measured: figures, what they are held against, and the table for people."""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

# With fewer samples a 95th percentile is the largest of them, or made up.
_ENOUGH_FOR_P95 = 20


class Skip(Exception):
    """A part cannot be measured here; the message says why."""


class Aim(NamedTuple):
    """What a figure's median is held against, in the figure's unit."""

    text: str
    value: float
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result. `p95` is None where there are too few samples for it."""

    part: str
    name: str
    unit: str
    samples: list[float]
    median: float
    p95: float | None = None
    aim: str | None = None
    aim_value: float | None = None
    ratio: float | None = None
    met: bool | None = None


@dataclass(slots=True)
class Report:
    """What was measured so far."""

    figures: list[Figure] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def add(
        self, part: str, name: str, unit: str, samples: Sequence[float], aim: Aim | None = None
    ) -> float:
        """Record a figure; its median."""
        rounded = [round(sample, 6) for sample in samples]
        median = round(statistics.median(samples), 6)
        p95 = None
        if len(samples) >= _ENOUGH_FOR_P95:
            p95 = round(statistics.quantiles(samples, n=20, method="inclusive")[-1], 6)
        figure = Figure(part, name, unit, rounded, median, p95)
        if aim is not None:
            met = median >= aim.value if aim.at_least else median <= aim.value
            ratio = round(median / aim.value, 4)
            value = round(aim.value, 6)
            figure = Figure(part, name, unit, rounded, median, p95, aim.text, value, ratio, met)
        self.figures.append(figure)
        return median

    def print_table(self) -> None:
        """The table, to standard error."""
        say(
            f"{'part':12} {'figure':36} {'median':>12} {'95 %':>10} {'longest':>10} "
            f"{'unit':12} {'aim':>12} {'ratio':>6}"
        )
        for row in self.figures:
            line = f"{row.part:12} {row.name:36} {row.median:12.3f} "
            if row.p95 is not None:
                line += f"{row.p95:10.3f} {max(row.samples):10.3f} "
            else:
                line += f"{'':10} {'':10} "
            line += f"{row.unit:12}"
            if row.aim_value is not None and row.ratio is not None:
                line += f" {row.aim_value:12.3f} {row.ratio:6.2f} {'met' if row.met else 'MISSED'}"
                line += f" ({row.aim})"
            say(line)
        for skip in self.skipped:
            say(f"{skip['part']:12} skipped: {skip['reason']}")
        aims = [row for row in self.figures if row.met is not None]
        say(f"aims met: {sum(bool(row.met) for row in aims)} of {len(aims)}")


def say(text: str) -> None:
    """To people."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
