"""A sync that fails: what was not acknowledged does not come back by halves, whatever a crash leaves of it."""

import shutil
from pathlib import Path

import pytest

from tests.torture.tracing import run_stage


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.parametrize("how", ["once", "on"])
def test_a_message_whose_sync_failed_is_there_whole_or_not_at_all_after_a_crash(
    tmp_path: Path, how: str
) -> None:
    """The commit is in the WAL although its fsync failed, and recovery would find it there."""
    said = run_stage("tests.store.failed_sync", [str(tmp_path), how], tmp_path).decode()
    *rounds, last = (line.split() for line in said.splitlines())
    assert len(rounds) >= 2, "the pack and the index are synced"
    for harmed, raised, recovered, problems, after, found in rounds:
        assert int(harmed) >= 1
        assert raised == "StoreFailing"
        assert recovered in ("1", "2")
        assert (problems, after, found) == ("0", "-", "2")
    assert last == ["0", "-", "2", "0", "-", "3"]
