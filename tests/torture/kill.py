"""Kill points: whoever changes the store is killed before each of its state-changing calls, and in the middle of each write.

After each: the next program opens the store, verify finds nothing wrong, every step that was acknowledged is there, the one
that was under way is done or not begun for each message, and when the steps are taken again the store holds what it holds
when nobody was killed. A mount point left dead is mounted again.
"""

from collections.abc import Sequence
from pathlib import Path

from tests.torture.oracle import differences, strangers
from tests.torture.points import Choice, Harming, Point, perform, play_in_stage
from tests.torture.report import Report
from tests.torture.rig import Golden, Played, Rig
from tests.torture.tracing import CHANGES, Harm, Hit, Kind

PART = "kill"
_HARMINGS = (
    Harming("killed", Harm.KILL, CHANGES),
    Harming("killed half-way", Harm.KILL_HALF_WAY, Kind.WRITE),
)


def run(seed: int, count: int, directory: Path, names: Sequence[str] = ()) -> Report:
    """Kill at `count` points of all there are, or of the scenarios named; at each where there are not more."""
    return play_in_stage(Choice(PART, seed, count, names), directory)


def _kill(rig: Rig, point: Point, golden: Golden, report: Report) -> None:
    scenario = point.scenario
    rig.fresh(scenario)
    with rig.read_by(scenario):
        played, hit = rig.play_harmed(scenario, point.order)
        if not hit.harmed:
            # Timers make a call more or less.
            report.note(f"{point} was not reached this time")
            rig.end()
            return
        report.did(f"{scenario.name}, {point.harming.name}")
        _judge(rig, played, golden, hit)


def _judge(rig: Rig, played: Played, golden: Golden, hit: Hit) -> None:
    scenario, sure = played.scenario, played.acknowledged
    if not scenario.is_mounted:
        assert played.ended[-1].code is None, f"{hit}: nobody was killed: {played.ended[-1]}"
    shown = rig.shown() if scenario.has_mount else None
    rig.end()
    if not scenario.is_broken:
        found = rig.look()
        assert shown in (None, found.content.live), (
            f"behind {hit}: the mount does not show the store"
        )
        assert not found.problems, f"behind {hit}: {found.problems}"
        wrong = strangers(found.content, golden.states[sure : sure + 2])
        wrong += rig.look_beside(scenario)
        assert not wrong, f"behind {hit}, {sure} steps acknowledged: {wrong}"
    rig.begin(scenario, is_harmed=False)
    again = rig.play(scenario)
    ended = rig.end()
    assert again.acknowledged == len(scenario.steps), f"behind {hit}, again: {again.ended[-1]}"
    assert ended is None or ended.code == 0, f"behind {hit}, the second daemon: {ended}"
    found = rig.look()
    assert not found.problems, f"behind {hit} and again: {found.problems}"
    wrong = differences(found.content, golden.states[-1]) + rig.look_beside(scenario)
    assert not wrong, f"behind {hit} and again: {wrong}"


if __name__ == "__main__":
    perform(_HARMINGS, _kill)
