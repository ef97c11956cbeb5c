"""A sample of scripts/torture faults, and the proof that it loses what a failed fsync may lose."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import PROJECT
from tests.mount.conftest import why_not
from tests.torture import faults
from tests.torture.losing import lose
from tests.torture.report import Report
from tests.torture.tracing import Harm, Kind, Logged, Order, watched_environment

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
needs_mounts = pytest.mark.skipif(bool(why_not()), reason=why_not() or "mounts work")


@pytest.mark.slow
def test_commands_whose_calls_fail_lose_nothing_and_say_why(tmp_path: Path) -> None:
    names = ("deliver into an empty store", "tag", "save and forget")
    report = faults.run(1, 24, tmp_path, names)
    assert report.is_sound, "\n".join(report.lines())
    assert report.total >= 20


@needs_mounts
@pytest.mark.mount
@pytest.mark.slow
def test_a_mount_whose_calls_fail_stays_up_and_goes_on_when_they_do_not(tmp_path: Path) -> None:
    report = faults.run(1, 6, tmp_path, ("mount: deliver by link",))
    assert report.is_sound, "\n".join(report.lines())
    assert report.total >= 4


# Writes two files and syncs them, twice; the first fsync of all fails.
_PROGRAM = """
import os, sys
first, second = (os.open(name, os.O_RDWR | os.O_CREAT) for name in sys.argv[1:])
os.pwrite(first, b"a" * 9000, 0)
os.pwrite(second, b"b" * 9000, 0)
try:
    os.fsync(first)
except OSError as error:
    print(error.errno)
os.fsync(second)
os.pwrite(first, b"c" * 100, 5000)
os.fsync(first)
"""


def test_pages_of_a_failed_fsync_are_lost_but_for_those_written_again(tmp_path: Path) -> None:
    root = tmp_path / "files"
    root.mkdir()
    (root / "one").write_bytes(b"x" * 5000)
    order = Order(Harm.FAIL, 1, Kind.SYNC, 5)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(root / "one"), str(root / "two")],
        env=watched_environment(tmp_path, root, order, Logged.PAGES),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "5\n"
    assert (root / "one").read_bytes()[:5000] == b"a" * 5000
    assert lose(root, (tmp_path / "log").read_bytes()) == 2
    content = (root / "one").read_bytes()
    assert content[:4096] == b"x" * 4096
    assert content[4096:8192] == b"a" * 904 + b"c" * 100 + b"a" * 3092
    assert content[8192:] == bytes(808)
    assert (root / "two").read_bytes() == b"b" * 9000


def test_a_file_that_gets_the_number_of_a_removed_one_loses_nothing(tmp_path: Path) -> None:
    root = tmp_path / "files"
    root.mkdir()
    program = """
import os, sys
name = sys.argv[1]
fd = os.open(name, os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b"a" * 5000, 0)
try:
    os.fsync(fd)
except OSError:
    os.close(fd)
os.unlink(name)
fd = os.open(name, os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b"b" * 5000, 0)
"""
    subprocess.run(
        [sys.executable, "-c", program, str(root / "one")],
        env=watched_environment(tmp_path, root, Order(Harm.FAIL, 1, Kind.SYNC, 5), Logged.PAGES),
        check=True,
    )
    assert lose(root, (tmp_path / "log").read_bytes()) == 0
    assert (root / "one").read_bytes() == b"b" * 5000


def test_a_run_that_did_nothing_is_not_sound() -> None:
    assert not Report("faults", 7).is_sound


def test_a_failure_says_how_to_see_it_again() -> None:
    report = Report("faults", 7)
    with report.step(3, "a step"):
        pass
    with report.step(4, "a step"):
        os.stat("/nothing/is/here")
    assert not report.is_sound
    assert report.total == 2
    assert "seed 7, n 4: a step: FileNotFoundError" in report.lines()[-1]
