"""The trees of an index, read without SQLite: all rows of a sound one, and all but the damaged of a damaged one."""

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from mailfs.errors import StoreError
from mailfs.store.checksums import reserve_checksums, use_checksums
from mailfs.store.rescue.btree import Cell, Trees

_ROWS = 1000
_PAGE_BYTES = 4096
_TABLES = """
CREATE TABLE plain(id INTEGER PRIMARY KEY, number, text TEXT, raw BLOB);
CREATE TABLE keyed(a INTEGER, b TEXT, c, PRIMARY KEY (b, a)) WITHOUT ROWID;
CREATE INDEX by_text ON plain(text);
"""
NUMBERS = (
    0,
    1,
    -1,
    127,
    -128,
    2**15,
    -(2**15),
    2**23,
    2**31,
    2**47,
    -(2**63),
    2**63 - 1,
    1.5,
    None,
)


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copy(sound, tmp_path / "db"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with numbers and texts of all lengths, some of which go over many pages."""
    chance = random.Random(7)
    path = tmp_path_factory.mktemp("sound") / "db"
    use_checksums()
    with closing(apsw.Connection(str(path))) as connection:
        reserve_checksums(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(_TABLES)
        with connection:
            for number in range(_ROWS):
                length = chance.choice((0, 3, 40, 400, 5000)) if number % 100 else 50_000
                text = "größe " * (length // 6)
                values = (number * 7 - 100, chance.choice(NUMBERS), text, chance.randbytes(length))
                connection.execute("INSERT INTO plain VALUES (?, ?, ?, ?)", values)
                connection.execute(
                    "INSERT INTO keyed VALUES (?, ?, ?)", (number, text[:300], length)
                )
            connection.execute("DELETE FROM plain WHERE id % 5 = 0")
    return path


def roots_of(path: Path) -> dict[str, int]:
    with closing(apsw.Connection(str(path))) as connection:
        rows = connection.execute("SELECT name, rootpage FROM sqlite_schema").fetchall()
    return {str(name): root for name, root in rows if isinstance(root, int)}


def rows_of(path: Path, statement: str) -> set[tuple[object, ...]]:
    with closing(apsw.Connection(str(path))) as connection:
        return set(connection.execute(statement).fetchall())


def plain_rows(cells: Iterator[Cell]) -> set[tuple[object, ...]]:
    return {(cell.rowid, *cell.values[1:]) for cell in cells}


def pages_of(path: Path, name: str) -> list[int]:
    with closing(apsw.Connection(str(path))) as connection:
        rows = connection.execute(
            "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf'", (name,)
        ).fetchall()
    return [int(number) for (number,) in rows if isinstance(number, int)]


def test_all_rows_of_a_sound_file_are_read(path: Path) -> None:
    roots, problems = roots_of(path), list[str]()
    expected = rows_of(path, "SELECT * FROM plain")
    keys = rows_of(path, "SELECT b, a, c FROM keyed")
    texts = rows_of(path, "SELECT text, id FROM plain")
    with closing(Trees(path)) as trees:
        assert plain_rows(trees.cells(roots["plain"], problems)) == expected
        assert {cell.values for cell in trees.cells(roots["keyed"], problems)} == keys
        assert {cell.values for cell in trees.cells(roots["by_text"], problems)} == texts
        assert {cell.values[1] for cell in trees.cells(1, problems)} >= {"plain", "by_text"}
    assert problems == []
    assert len(expected) == _ROWS - _ROWS // 5


def test_what_is_in_the_log_counts_up_to_the_last_commit(path: Path, tmp_path: Path) -> None:
    roots = roots_of(path)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        for number in range(5):
            connection.execute("UPDATE plain SET number = ? WHERE id % 3 = 1", (1000 + number,))
        expected = set(connection.execute("SELECT * FROM plain").fetchall())
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", tmp_path / f"copy{suffix}")
    problems: list[str] = []
    with closing(Trees(tmp_path / "copy")) as trees:
        assert plain_rows(trees.cells(roots["plain"], problems)) == expected
    # The log's last frames are cut off in the middle of the last transaction.
    os.truncate(tmp_path / "copy-wal", (tmp_path / "copy-wal").stat().st_size - 5000)
    with closing(Trees(tmp_path / "copy")) as trees:
        found = plain_rows(trees.cells(roots["plain"], problems))
    assert problems == []
    assert {row[1] for row in found if row[1] in range(1000, 1005)} == {1003}


def test_a_damaged_leaf_loses_its_own_rows_alone(path: Path) -> None:
    roots = roots_of(path)
    expected = rows_of(path, "SELECT * FROM plain")
    leaf = pages_of(path, "plain")[3]
    with path.open("r+b") as file:
        file.seek((leaf - 1) * _PAGE_BYTES)
        file.write(bytes(_PAGE_BYTES))
    problems: list[str] = []
    with closing(Trees(path)) as trees:
        found = plain_rows(trees.cells(roots["plain"], problems))
    assert found < expected
    assert len(expected - found) < 60
    assert [problem for problem in problems if f"page {leaf}:" in problem]


def test_a_flipped_bit_makes_the_rows_of_its_page_doubtful(path: Path) -> None:
    roots = roots_of(path)
    leaf = pages_of(path, "plain")[3]
    with path.open("r+b") as file:
        file.seek(leaf * _PAGE_BYTES - 20)
        byte = file.read(1)[0]
        file.seek(leaf * _PAGE_BYTES - 20)
        file.write(bytes([byte ^ 4]))
    problems: list[str] = []
    with closing(Trees(path)) as trees:
        doubtful = [cell for cell in trees.cells(roots["plain"], problems) if cell.is_doubtful]
    assert 0 < len(doubtful) < 60
    assert problems == [f"page {leaf} does not match its checksum"]


def test_the_leaves_below_a_lost_root_are_found(path: Path) -> None:
    roots = roots_of(path)
    expected = rows_of(path, "SELECT * FROM plain")
    with path.open("r+b") as file:
        file.seek((roots["plain"] - 1) * _PAGE_BYTES)
        file.write(bytes(_PAGE_BYTES))
    problems: list[str] = []
    with closing(Trees(path)) as trees:
        for root in roots.values():
            for _ in trees.cells(root, problems):
                pass
        lost = [
            cell
            for is_table, cells in trees.lost_leaves()
            if is_table
            for cell in cells
            if len(cell.values) == 4
        ]
    assert plain_rows(iter(lost)) == expected


@pytest.mark.parametrize("seed", range(40))
def test_any_damage_ends_in_rows_and_problems(path: Path, seed: int) -> None:
    """No other error, no endless loop, and nothing is allocated for a length that cannot be."""
    chance, roots = random.Random(seed), roots_of(path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        for _ in range(times := chance.choice((1, 10, 500))):
            file.seek(chance.randrange(size))
            file.write(chance.randbytes(chance.choice((1, 2, 8, 700))))
    problems: list[str] = []
    with closing(Trees(path)) as trees:
        for root in roots.values():
            assert sum(1 for _ in trees.cells(root, problems)) <= 2 * _ROWS
        for _, cells in trees.lost_leaves():
            assert len(cells) < _PAGE_BYTES
    # A few may have hit what is free.
    assert problems or times < 500


@pytest.mark.parametrize("content", [b"", b"x", b"no database\n" * 1000, bytes(9000)])
def test_what_is_no_database_has_no_trees(tmp_path: Path, content: bytes) -> None:
    path, problems = tmp_path / "db", list[str]()
    path.write_bytes(content)
    with closing(Trees(path)) as trees:
        assert list(trees.cells(1, problems)) == []
        assert list(trees.lost_leaves()) == []
    assert problems


def test_a_file_that_is_not_there_has_none_and_a_folder_cannot_be_read(tmp_path: Path) -> None:
    with closing(Trees(tmp_path / "none")) as trees:
        assert trees.is_empty
    with pytest.raises(StoreError), closing(Trees(tmp_path)):
        pass
