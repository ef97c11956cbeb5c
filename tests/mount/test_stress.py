"""scripts/stress for some seconds: the same code that runs for minutes, with fewer messages."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.fakes import PROJECT

SCRIPT = PROJECT / "scripts" / "stress"
# What everybody does is done at least once within these seconds, also on a slow machine.
SECONDS = 12
DEADLINE_S = 280
DONE = ("list", "read", "flags", "move", "deliver by link", "deliver by rename", "mailfs import")


def stress(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(SCRIPT), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@pytest.mark.slow
def test_everything_is_still_true_after_some_seconds_of_everybody_at_once(tmp_path: Path) -> None:
    settings = ("--seconds", str(SECONDS), "--seed", "1", "--messages", "300", "--dir", tmp_path)
    done = stress(*settings)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(
        re.findall(r"^(\S.*?) +(\d+) +[\d.]+ +[\d.]+ +[\d.]+$", done.stdout, re.MULTILINE)
    )
    assert {kind for kind in DONE if not int(counts.get(kind, 0))} == set()
    assert re.search(r"^kills: .*\bdaemon\b", done.stdout, re.MULTILINE), done.stdout
    for counted in ("requests", "echoes", "lock"):
        assert re.search(rf"^{counted}\b.*\d", done.stdout, re.MULTILINE), (counted, done.stdout)
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_a_run_of_no_time_is_a_usage_error() -> None:
    done = stress("--seconds", "0")
    assert done.returncode == 2
    assert "--seconds" in done.stderr
