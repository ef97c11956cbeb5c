"""Where harm is done: every call of every scenario, for each kind of harm, numbered so that a number finds it again."""

import ctypes
import json
import pickle
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.torture.report import Report
from tests.torture.rig import Golden, Rig
from tests.torture.scenarios import Scenario, all_scenarios
from tests.torture.tracing import Harm, Kind, Logged, Order, Shim, run_stage

# Numbers of points: so many for each scenario, and within it for each kind of harm.
_A_SCENARIO, _A_HARM = 1_000_000, 20_000
_TOLD_EVERY = 100
# linux/prctl.h
_PR_SET_PDEATHSIG = 1


class Harming(NamedTuple):
    """One kind of harm, done at each call of these kinds."""

    name: str
    harm: Harm
    kinds: Kind
    error: int = 0
    for_good: bool = False
    logged: Logged = Logged.NOTHING


class Point(NamedTuple):
    """One harm at call `at`, from 1. `n` says the same in one number."""

    n: int
    scenario: Scenario
    harming: Harming
    at: int

    @property
    def order(self) -> Order:
        _, harm, kinds, error, for_good, _ = self.harming
        return Order(harm, self.at, kinds, error, for_good)

    def __str__(self) -> str:
        return f"{self.scenario.name}, {self.harming.name} at {self.at}"


Try = Callable[[Rig, Point, Golden, Report], None]


class Choice(NamedTuple):
    """What a stage is asked to do. `times`: how many points. `names` of scenarios, all where there are none; `only` one point."""

    part: str
    seed: int
    times: int
    names: Sequence[str] = ()
    only: int | None = None


def play_in_stage(choice: Choice, directory: Path) -> Report:
    """Run the part's module as a stage; its `main` calls perform()."""
    module = f"tests.torture.{choice.part}"
    found: Report = pickle.loads(run_stage(module, [json.dumps(choice)], directory))
    return found


def perform(harmings: Sequence[Harming], attempt: Try) -> None:
    """In the stage: do what argv asks, and write the report to stdout. Nothing stays mounted."""
    choice = Choice(*json.loads(sys.argv[1]))
    report = Report(choice.part, choice.seed)
    # Who has asked may be killed; who has had enough gets what has been done.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    shim = Shim()
    rig = Rig(shim, shim.log.parent, choice.seed)
    try:
        _perform(choice, rig, harmings, attempt, report)
    except SystemExit:
        report.note("ended before everything was done")
    finally:
        rig.clear()
    sys.stdout.buffer.write(pickle.dumps(report))


def _perform(
    choice: Choice, rig: Rig, harmings: Sequence[Harming], attempt: Try, report: Report
) -> None:
    groups = _groups(choice, harmings)
    sizes: dict[tuple[str, Kind], int] = {}
    for scenario, harming, _ in groups:
        if (scenario.name, harming.kinds) not in sizes:
            sizes[scenario.name, harming.kinds] = rig.count(scenario, harming.kinds)
    points = _draw(choice, groups, sizes)
    report.note(f"{len(points)} of {_total(groups, sizes)} points, {len(groups)} kinds of them")
    goldens: dict[str, Golden] = {}
    slowest = (0.0, "")
    for number, point in enumerate(points):
        if number % _TOLD_EVERY == 0:
            told = (
                f"{choice.part}: {number} of {len(points)}, {len(report.failures)} failed, {point}"
            )
            sys.stderr.write(f"{told}\n")
        begun_s = time.monotonic()
        try:
            if point.scenario.name not in goldens:
                goldens[point.scenario.name] = rig.golden(point.scenario)
            attempt(rig, point, goldens[point.scenario.name], report)
        except Exception as error:  # noqa: BLE001  # whatever it is, it goes into the report
            hit = rig.disarm()
            report.fail(point.n, f"{point} ({hit}): {type(error).__name__}: {error}")
            rig.clear()
        slowest = max(slowest, (time.monotonic() - begun_s, str(point)))
    report.note(f"the slowest took {slowest[0]:.1f} s: {slowest[1]}")


def _groups(choice: Choice, harmings: Sequence[Harming]) -> list[tuple[Scenario, Harming, int]]:
    """Scenarios and harms, with the number before their first point."""
    groups = [
        (scenario, harming, number * _A_SCENARIO + place * _A_HARM)
        for number, scenario in enumerate(all_scenarios())
        for place, harming in enumerate(harmings)
        if not choice.names or scenario.name in choice.names
    ]
    if choice.only is not None:
        return [each for each in groups if each[2] < choice.only <= each[2] + _A_HARM]
    # Fewer points than kinds of them: most are not even counted.
    return sorted(
        Random(choice.seed).sample(groups, min(choice.times, len(groups))), key=lambda each: each[2]
    )


def _total(groups: list[tuple[Scenario, Harming, int]], sizes: dict[tuple[str, Kind], int]) -> int:
    return sum(sizes[scenario.name, harming.kinds] for scenario, harming, _ in groups)


def _draw(
    choice: Choice,
    groups: list[tuple[Scenario, Harming, int]],
    sizes: dict[tuple[str, Kind], int],
) -> list[Point]:
    """As many points as were asked for, from each kind as many as from the others; those with few give all."""
    random = Random(f"{choice.seed} points")
    waiting = {
        first: random.sample(range(1, size + 1), size)
        for scenario, harming, first in groups
        if (size := sizes[scenario.name, harming.kinds])
    }
    found = {first: (scenario, harming) for scenario, harming, first in groups}
    if choice.only is not None:
        first = groups[0][2]
        return [Point(choice.only, *found[first], choice.only - first)]
    points: list[Point] = []
    while waiting and len(points) < choice.times:
        for first in list(waiting)[: choice.times - len(points)]:
            at = waiting[first].pop()
            points.append(Point(first + at, *found[first], at))
            if not waiting[first]:
                del waiting[first]
    return sorted(points)
