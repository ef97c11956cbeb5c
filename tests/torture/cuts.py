"""Power cuts: a store on a disk that loses power again and again, under everybody at work; nothing acknowledged is lost.

The controller runs in namespaces of its own: when it ends, however it ends, the kernel ends all it started and unmounts
all it mounted. It tells what it did line by line, in JSON.
"""

import ctypes
import json
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

from tests.fakes import PROJECT
from tests.torture.loopdisk import drop_foreign_mounts, why_not
from tests.torture.report import Report

_ALONE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_SILENCE_DEADLINE_S = 300.0
_PR_SET_PDEATHSIG = 1


def run(seed: int, count: int, directory: Path, *, undone: tuple[str, ...] = ()) -> Report:
    """So many power cuts. `directory` is empty, and what is made in it can be removed.

    `undone`: functions that do nothing in this run, by their full names: what they are for must be found missing, and
    the run ends when it is.
    """
    report = Report("cuts", seed)
    if reason := why_not():
        report.note(f"not done: {reason}")
        return report
    start = time.monotonic()
    arguments = (str(seed), str(count), str(directory), *undone)
    words = (sys.executable, "-m", "tests.torture.cuts", *arguments)
    controller = subprocess.Popen(
        [*_ALONE, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd=PROJECT,
        preexec_fn=_end_with_parent,  # no thread of ours holds a lock here
    )
    with controller:
        try:
            for told in _lines(controller):
                _take(report, told)
        except TimeoutError as error:
            report.fail(report.total, str(error))
        finally:
            controller.kill()
    if report.total < count and not (undone and report.failures):
        report.fail(report.total, "the controller ended early; what it said is on stderr")
    report.note(f"{(time.monotonic() - start) / max(report.total, 1):.2f} s a cut")
    return report


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _lines(controller: "subprocess.Popen[bytes]") -> Iterator[dict[str, str]]:
    """What the controller says. Raises TimeoutError when it says nothing for long."""
    assert controller.stdout is not None
    while select.select([controller.stdout], [], [], _SILENCE_DEADLINE_S)[0]:
        line = controller.stdout.readline()
        if not line:
            return
        yield json.loads(line)
    raise TimeoutError(f"the controller has said nothing for {_SILENCE_DEADLINE_S:g} s")


def _take(report: Report, told: dict[str, str]) -> None:
    if "note" in told:
        report.note(told["note"])
        return
    if "failed" in told:
        report.fail(report.total, told["failed"])
    report.did(told["kind"])


def control(seed: int, count: int, directory: Path, undone: Sequence[str]) -> None:
    """The controller's life."""
    from tests.torture.cuts_stage import Failed, Stage

    drop_foreign_mounts()
    for name in undone:
        patch(name, _nothing).start()
    stage = Stage(seed, directory)
    for n in range(count):
        told = {"kind": "failed"}
        try:
            told["kind"] = stage.cut_once(n)
        except Failed as error:
            told["failed"] = f"{stage.how}: {error}"
        _say(told)
        if undone and "failed" in told:
            break
    stage.close()
    for note in stage.notes():
        _say({"note": note})


def _say(line: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _nothing(*_: object, **__: object) -> None:
    """Stands for a function that is not to be called."""


if __name__ == "__main__":
    control(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
