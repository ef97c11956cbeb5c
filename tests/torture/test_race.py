"""A sample of scripts/torture race, and the proof that it sees a commit that is lost."""

from contextlib import closing
from pathlib import Path

import pytest

from mailfs.store.database import open_writer
from mailfs.store.layout import open_layout
from tests.torture import race


@pytest.mark.slow
def test_no_commit_is_lost_between_checkpoints(tmp_path: Path) -> None:
    report = race.run(1, 2000, tmp_path)
    assert report.is_sound, "\n".join(report.lines())
    assert report.total == 2000
    assert sum(times for kind, times in report.counts.items() if "checkpoint" in kind) > 20


@pytest.mark.slow
def test_a_lost_commit_is_seen(tmp_path: Path) -> None:
    shares = [3, 2, 2, 2]
    report = race.run(2, sum(shares), tmp_path)
    assert report.is_sound, "\n".join(report.lines())
    layout = open_layout(tmp_path / "store")
    with closing(open_writer(layout.index)) as connection:
        expected = [
            dict(
                connection.execute("SELECT slot, number FROM race_slot WHERE process = ?", (each,))
            )
            for each in range(race.PROCESSES)
        ]
        assert list(race.wrong(layout, shares, expected)) == []
        connection.execute("UPDATE race_count SET commits = commits - 1 WHERE process = 0")
        connection.execute("DELETE FROM race_slot WHERE process = 1 AND number = 1")
    found = "\n".join(race.wrong(layout, shares, expected))
    assert "process 0 made 3 commits, the index knows 2" in found
    assert "the rows of process 1" in found
