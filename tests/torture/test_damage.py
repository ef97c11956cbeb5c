"""Some damages of the many that scripts/torture does: each kind of file, and what must be noticed of each."""

import random
import shutil
from pathlib import Path

import pytest

from tests.torture.damage import damage, held_by, run, staged

COUNT = 25


@pytest.mark.slow
def test_damage_is_noticed_harms_one_message_and_is_mended(tmp_path: Path) -> None:
    report = run(5, COUNT, tmp_path)
    assert report.is_sound, "\n".join(report.lines())
    assert report.total == COUNT


def test_every_damage_changes_something_and_says_where(tmp_path: Path) -> None:
    with staged() as stage:
        for n in range(30):
            root = stage.take(stage.closed)
            done = damage(random.Random(n), root, stage.boundaries, is_crashed=False)
            before, after = ((base / done.file).read_bytes() for base in (stage.closed, root))
            assert before != after
            changed = [
                at
                for at in range(max(len(before), len(after)))
                if before[at : at + 1] != after[at : at + 1]
            ]
            assert all(any(s.start <= at < s.end for s in done.spans) for at in changed), done


def test_the_oracle_sees_a_flag_a_keyword_and_a_word(tmp_path: Path) -> None:
    """What it compares when nothing was noticed: it must be able to fail."""
    from mailfs.store.database import open_writer

    with staged() as stage:
        right = stage.held[stage.closed]
        for statement in (
            "UPDATE message SET flags = flags + 1 WHERE docid = 40",
            "UPDATE keyword SET name = 'k9' WHERE name = 'k1'",
            "DELETE FROM message_text WHERE rowid = 20",
            "UPDATE message SET received_ns = received_ns + 1 WHERE docid = 40",
        ):
            root = stage.take(stage.closed)
            connection = open_writer(root / "index.sqlite3")
            connection.execute(statement)
            connection.close()
            assert held_by(root).rows != right.rows, statement
        shutil.rmtree(stage.work)
