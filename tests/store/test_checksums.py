"""Every page of the index carries a checksum: a flipped bit in a row is an error, and no row that was never written."""

import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from mailfs.errors import Busy, Corrupt, FormatTooNew
from mailfs.ids import Docid
from mailfs.store import checksums
from mailfs.store.checksums import (
    add_checksums,
    lacks_checksums,
    reserve_checksums,
    use_checksums,
)
from mailfs.store.database import open_reader, open_writer, translated
from mailfs.store.store import Store
from tests.fakes import PROJECT, make_message, new_message
from tests.oracle import assert_sound

PAGE_BYTES = 4096
RESERVED_AT = 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A closed store of 40 messages."""
    path = tmp_path / "store"
    with (
        Store.create(path) as store,
        store.writer.transaction("test", durable=True) as transaction,
    ):
        for number in range(40):
            transaction.add(new_message(make_message(number)))
    return path


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_new_index_carries_checksums(root: Path) -> None:
    assert (root / "index.sqlite3").read_bytes()[RESERVED_AT] == 8
    connection = open_reader(root / "index.sqlite3")
    assert not lacks_checksums(connection)
    connection.close()


def test_a_flipped_bit_in_any_page_is_an_error_to_who_reads_it(root: Path) -> None:
    path = root / "index.sqlite3"
    before = path.read_bytes()
    for page in range(1, len(before) // PAGE_BYTES):
        # The middle of a page is mostly free: SQLite alone would never look there.
        flip(path, page * PAGE_BYTES + PAGE_BYTES // 2)
        try:
            connection = open_reader(path)
            ((found,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
            connection.close()
            assert found != "ok", page
        except (Corrupt, apsw.IOError):
            pass  # the page is needed to open it, or a table
        path.write_bytes(before)
    assert_sound(root)


def test_who_reads_a_damaged_row_is_told_that_the_index_is_damaged(root: Path) -> None:
    path = root / "index.sqlite3"
    at = path.read_bytes().index(b"7@example.org")
    flip(path, at)
    with Store.open(root) as store, pytest.raises(Corrupt, match="damaged"):
        store.index.summaries([Docid(number) for number in range(1, 41)])


def test_damage_to_the_byte_that_turns_them_on_does_not_turn_them_off(root: Path) -> None:
    flip(root / "index.sqlite3", RESERVED_AT)
    with pytest.raises(Corrupt, match="says that it has no checksums"):
        Store.open(root)


def test_an_empty_index_has_its_first_page_before_any_other_can_be_written(tmp_path: Path) -> None:
    use_checksums()
    connection = apsw.Connection(str(tmp_path / "index"))
    reserve_checksums(connection)
    assert (tmp_path / "index").read_bytes()[RESERVED_AT] == 8
    assert not lacks_checksums(connection)
    connection.close()


@pytest.fixture
def without(root: Path) -> Path:
    """The index of an older mailfs, which carries none, and large enough that it is not written in one piece."""
    path = root / "index.sqlite3"
    use_checksums()
    old = apsw.Connection(str(root / "old"))
    connection = open_reader(path)
    old.execute("PRAGMA journal_mode = WAL")
    for sql in connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'envelope'"):
        old.execute(sql[0])
    connection.close()
    old.executemany(
        "INSERT INTO envelope VALUES (?, ?, '', '', '')",
        [(number, f"{number * 7919 % 100_003}@example.org" * 3) for number in range(20_000)],
    )
    old.close()
    return root / "old"


def test_an_index_that_has_none_gets_them(without: Path) -> None:
    for _ in range(2):  # done again, when it was cut off
        connection = open_writer(without)
        connection.execute("PRAGMA cache_size = 10")
        with translated(without):
            add_checksums(connection)
        connection.close()
    connection = open_reader(without)
    assert not lacks_checksums(connection)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("SELECT count(*) FROM envelope").fetchall() == [(20_000,)]
    connection.close()


def test_an_index_that_another_program_has_open_is_left_alone(
    without: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailfs.store.database._BUSY_TIMEOUT_MS", 10)
    other = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import apsw, sys; c = apsw.Connection(sys.argv[1]); "
            "c.execute('SELECT count(*) FROM envelope').fetchall(); print(1, flush=True); sys.stdin.read()",
            str(without),
        ],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdin is not None
    assert other.stdout is not None
    other.stdout.readline()
    connection = open_writer(without)
    with pytest.raises(Busy), translated(without):
        add_checksums(connection)
    connection.close()
    other.communicate(timeout=30)
    assert without.read_bytes()[RESERVED_AT] == 0


def test_without_the_library_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without a checksum would look damaged to everybody else."""
    monkeypatch.setattr(checksums, "apsw", _WithoutLibrary)
    use_checksums.cache_clear()
    try:
        with pytest.raises(FormatTooNew, match="install apsw from PyPI"):
            use_checksums()
    finally:
        use_checksums.cache_clear()


class _WithoutLibrary:
    """An apsw that was built without SQLite's extensions."""

    __file__ = "/nowhere/apsw/__init__.py"
    Connection = apsw.Connection
    ExtensionLoadingError = apsw.ExtensionLoadingError
    SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION = apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION
