"""A sample of scripts/torture rebuild."""

from pathlib import Path

import pytest

from tests.torture import rebuild


@pytest.mark.slow
@pytest.mark.parametrize("name", rebuild.WAYS)
def test_an_index_that_is_lost_is_made_anew_as_it_was(tmp_path: Path, name: str) -> None:
    ways = {name: rebuild.WAYS[name]}
    report = rebuild.run(1, 150, tmp_path, kills=1, ways=ways)
    assert report.is_sound, "\n".join(report.lines())
    assert report.total == 150


def test_what_is_not_the_same_is_seen() -> None:
    """The comparison of the runs above can fail."""
    before: rebuild.Rows = {"message": {(1, 2), (3, 4)}, "journal": {(1,)}}
    assert rebuild.differences(before, before) == []
    after: rebuild.Rows = {"message": {(1, 2), (3, 5)}, "journal": set()}
    assert len(rebuild.differences(before, after)) == 2
    (told,) = rebuild.differences(before, after, rebuild.JOURNAL)
    assert told.startswith("message: 1 rows lost, 1 new")
