"""Calls that fail: each call of the store gives an error, once or from then on, or writes less than it was told to.

After each a step was either acknowledged, and then it is true when the store is opened without faults, or it failed with an
error of mailfs (no traceback, `deliver` with 75), and then it is done or not begun for each message; verify finds nothing
wrong, and when the faults have gone and the steps are taken again the store holds what it should. Through a mount: the daemon
stays up, gives an errno that says what is so, and the reason in `.mailfs/errors`; later requests succeed.

Where fsync fails, what was written since the last one is lost when everybody has gone, as on a disk.
"""

import errno
import re
from collections.abc import Sequence
from pathlib import Path

from mailfs.errors import EX_TEMPFAIL
from tests.mount.waiting import pause
from tests.torture.losing import lose
from tests.torture.oracle import Content, differences, strangers
from tests.torture.points import Choice, Harming, Point, perform, play_in_stage
from tests.torture.report import Report
from tests.torture.rig import Golden, Played, Rig
from tests.torture.tracing import CHANGES, Ended, Harm, Hit, Kind, Logged

PART = "faults"
_ALL = Kind(sum(Kind))
_OPENS = Kind.OPEN_READ | Kind.OPEN_WRITE | Kind.OPEN_MAKE
_FILLS = Kind.OPEN_MAKE | Kind.WRITE | Kind.RESIZE | Kind.MAKE_NAME
_NEEDS_WRITABLE = (CHANGES | Kind.OPEN_WRITE) & ~Kind.SYNC
_RESTARTS = _OPENS | Kind.READ | Kind.WRITE | Kind.RESIZE


def _failing(name: str, kinds: Kind, error: int) -> tuple[Harming, Harming]:
    return (
        Harming(name, Harm.FAIL, kinds, error),
        Harming(f"{name} for good", Harm.FAIL, kinds, error, for_good=True),
    )


_HARMINGS = (
    *_failing("EIO", _ALL, errno.EIO),
    Harming("EIO of changes for good", Harm.FAIL, CHANGES, errno.EIO, for_good=True),
    *_failing("ENOSPC", _FILLS, errno.ENOSPC),
    *_failing("EDQUOT", _FILLS, errno.EDQUOT),
    *_failing("EROFS", _NEEDS_WRITABLE, errno.EROFS),
    *_failing("EMFILE", _OPENS, errno.EMFILE),
    Harming("EINTR", Harm.FAIL, _RESTARTS, errno.EINTR),
    Harming("short write", Harm.CUT_SHORT, Kind.WRITE),
    Harming("short writes", Harm.CUT_SHORT, Kind.WRITE, for_good=True),
    Harming("lost by fsync", Harm.FAIL, Kind.SYNC, errno.EIO, logged=Logged.PAGES),
    Harming("lost by each fsync", Harm.FAIL, Kind.SYNC, errno.EIO, True, Logged.PAGES),
)
# Errors no program needs to notice: the call is made again, or the rest is written.
_HARMLESS = frozenset({"EINTR", "short write", "short writes"})
# What a client may be told, of sysexits(3) and of errno(3).
_EXIT_CODES = frozenset({69, 71, 73, 74, 75})
_ERRNOS = frozenset(
    {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EAGAIN, errno.EMFILE}
)
# So long a mount may refuse after a fault has gone.
_QUIET_S = 20.0


def run(seed: int, count: int, directory: Path, names: Sequence[str] = ()) -> Report:
    """Let `count` calls fail, of all there are or of those of the scenarios named."""
    return play_in_stage(Choice(PART, seed, count, names), directory)


def _fail(rig: Rig, point: Point, golden: Golden, report: Report) -> None:
    scenario, harming = point.scenario, point.harming
    rig.fresh(scenario)
    with rig.read_by(scenario):
        played, hit = rig.play_harmed(scenario, point.order, harming.logged)
        if not hit.harmed:
            report.note(f"{point} was not reached this time")
            rig.end()
            return
        report.did(harming.name)
        _judge_answers(played, point, hit)
        if rig.has_daemon:
            _judge_daemon(rig, played, hit)
        elif scenario.is_harmed_throughout:
            _judge_end(rig.last, hit)
    if harming.logged is Logged.PAGES:
        rig.lose(lose)
    if not scenario.is_broken:
        found = rig.look()
        assert not found.problems, f"behind {hit}: {found.problems}"
        sure = played.durable if harming.logged is Logged.PAGES else played.acknowledged
        _judge_content(found.content, played, golden, hit, sure)
        wrong = rig.look_beside(scenario)
        assert not wrong, f"behind {hit}: {wrong}"
    _judge_again(rig, played, golden, hit)


def _judge_answers(played: Played, point: Point, hit: Hit) -> None:
    has_failed = False
    for step, ended in zip(played.scenario.steps, played.ended, strict=False):
        where = f"{hit}: {step.what}"
        assert not ended.is_late, f"{where} hangs"
        assert ended.code is not None, f"{where} died: {ended}"
        assert "Traceback" not in ended.errors, f"{where}: {ended.errors}"
        if ended.code in step.done:
            continue
        assert point.harming.name not in _HARMLESS, f"{where}: {ended}"
        allowed = _ERRNOS if played.scenario.is_mounted else _EXIT_CODES
        if not played.scenario.is_mounted:
            _judge_exit(step.what, ended, point, where)
        elif has_failed:
            allowed |= {errno.ENOENT}  # what the step before should have made
        assert ended.code in allowed, f"{where}: {ended}"
        has_failed = True


def _judge_exit(what: str, ended: Ended, point: Point, where: str) -> None:
    assert re.search("^mailfs ", ended.errors, re.MULTILINE), f"{where} says nothing: {ended}"
    must_wait = what.startswith("deliver") or point.harming.error in (errno.ENOSPC, errno.EDQUOT)
    assert not must_wait or ended.code == EX_TEMPFAIL, f"{where}: {ended}"


def _judge_daemon(rig: Rig, played: Played, hit: Hit) -> None:
    assert rig.is_served, f"{hit}: the daemon has ended: {rig.log}"
    assert "Traceback" not in rig.log, f"{hit}: {rig.log}"
    codes = [ended.code for ended in played.ended if ended.code in _ERRNOS]
    assert not codes or rig.errors(), f"{hit}: {codes}, and .mailfs/errors says nothing"


def _judge_end(ended: Ended | None, hit: Hit) -> None:
    """Of a daemon that may not have been able to mount, or to keep its folders' times."""
    assert ended is not None
    assert ended.code == 0 or ended.code in _EXIT_CODES, f"{hit}: the daemon: {ended}"
    assert "Traceback" not in ended.errors, f"{hit}: the daemon: {ended}"


def _judge_content(content: Content, played: Played, golden: Golden, hit: Hit, sure: int) -> None:
    """`sure`: how many steps, from the first on, must be there."""
    later = played.ended[played.acknowledged + 1 :]
    steps = played.scenario.steps[played.acknowledged + 1 :]
    if all(ended.code not in step.done for step, ended in zip(steps, later, strict=False)):
        wrong = strangers(content, golden.states[sure:])
        assert not wrong, f"behind {hit}, {sure} steps acknowledged: {wrong}"
        return
    known = set().union(*(state.messages for state in golden.states))
    assert content.messages.keys() <= known, f"behind {hit}: {content.messages.keys() - known}"
    for number, (step, ended) in enumerate(zip(played.scenario.steps, played.ended, strict=False)):
        if ended.code in step.done:
            before, after = golden.states[number : number + 2]
            brought = after.live - before.live & golden.states[-1].live
            missing = brought - content.live
            assert not missing, f"behind {hit}: {step.what} was acknowledged: {missing} missing"


def _judge_again(rig: Rig, played: Played, golden: Golden, hit: Hit) -> None:
    scenario = played.scenario
    if not rig.has_daemon:
        rig.begin(scenario, is_harmed=False)
    waited_s = 0.0
    again = rig.play(scenario)
    while scenario.is_mounted and again.acknowledged < len(scenario.steps) and waited_s < _QUIET_S:
        pause(0.5)
        waited_s += 0.5
        again = rig.play(scenario)
    ended = rig.end()
    assert again.acknowledged == len(scenario.steps), (
        f"behind {hit}, again: {again.ended[again.acknowledged]}"
    )
    assert ended is None or ended.code == 0, f"behind {hit}, the daemon: {ended}"
    assert ended is None or "Traceback" not in ended.errors, f"behind {hit}: {ended}"
    found = rig.look()
    assert not found.problems, f"behind {hit} and again: {found.problems}"
    wrong = differences(found.content, golden.states[-1]) + rig.look_beside(scenario)
    assert not wrong, f"behind {hit} and again: {wrong}"


if __name__ == "__main__":
    perform(_HARMINGS, _fail)
