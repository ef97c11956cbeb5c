"""Connections: which SQLite may write, and whose errors are told."""

from pathlib import Path

import apsw
import pytest

from mailfs.errors import (
    Busy,
    Corrupt,
    FormatTooNew,
    StoreError,
    StoreFailing,
    StoreFull,
    StoreReadOnly,
)
from mailfs.store.database import (
    check_sqlite,
    open_reader,
    open_writer,
    set_durable,
    sqlite_version,
    translated,
)
from mailfs.store.store import Store
from tests.fakes import Deliver


@pytest.mark.parametrize("version", ["3.51.2", "3.40.1", "3.9.0", "2.8.17"])
def test_a_sqlite_that_can_damage_a_shared_index_is_refused(version: str) -> None:
    with pytest.raises(FormatTooNew, match=version):
        check_sqlite(version)


@pytest.mark.parametrize("version", ["3.51.3", "3.52.0", "3.100.0", "4.0.0", sqlite_version()])
def test_a_sqlite_without_the_fault_is_accepted(version: str) -> None:
    check_sqlite(version)


def test_a_store_is_not_opened_with_an_old_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store.create(tmp_path / "store").close()
    monkeypatch.setattr("apsw.sqlite_lib_version", lambda: "3.40.1")
    with pytest.raises(FormatTooNew):
        Store.open(tmp_path / "store")


def setting_of(connection: apsw.Connection, name: str) -> object:
    row = connection.execute(f"PRAGMA {name}").fetchone()
    assert row is not None
    return row[0]


def test_the_index_is_written_through_a_log_and_never_mapped(store: Store) -> None:
    for connection in (open_writer(store.layout.index), open_reader(store.layout.index)):
        assert setting_of(connection, "journal_mode") == "wal"
        assert setting_of(connection, "mmap_size") == 0
        connection.close()


def test_commits_survive_power_loss_only_while_that_is_asked(store: Store) -> None:
    connection = open_writer(store.layout.index)
    normal, full = 1, 2
    assert setting_of(connection, "synchronous") == normal
    set_durable(connection, durable=True)
    assert setting_of(connection, "synchronous") == full
    set_durable(connection, durable=False)
    assert setting_of(connection, "synchronous") == normal
    connection.close()


def test_a_misspelt_column_is_an_error_not_a_string(store: Store) -> None:
    with pytest.raises(StoreError, match="no such column"), translated(store.layout.index):
        open_reader(store.layout.index).execute('SELECT "docidd" FROM message')


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (apsw.FullError, StoreFull),
        (apsw.BusyError, Busy),
        (apsw.LockedError, Busy),
        (apsw.CorruptError, Corrupt),
        (apsw.NotADBError, Corrupt),
        (apsw.IOError, StoreFailing),
        (apsw.ReadOnlyError, StoreReadOnly),
        (apsw.CantOpenError, StoreError),
    ],
)
def test_errors_of_sqlite_become_errors_of_the_store(
    tmp_path: Path, error: type[apsw.Error], kind: type[Exception]
) -> None:
    index = tmp_path / "index.sqlite3"
    index.touch()
    with pytest.raises(kind) as caught, translated(index):
        raise error("what it says")
    assert type(caught.value) is kind
    assert str(index) in str(caught.value)


def test_an_index_that_cannot_be_opened_because_it_is_not_there_is_to_be_made_anew(
    tmp_path: Path,
) -> None:
    with pytest.raises(Corrupt, match="mailfs reindex"), translated(tmp_path / "index.sqlite3"):
        raise apsw.CantOpenError("what it says")


def test_an_index_that_is_missing_or_something_else_is_told(tmp_path: Path) -> None:
    Store.create(tmp_path / "store").close()
    index = tmp_path / "store" / "index.sqlite3"
    index.write_bytes(b"this is no database, and long enough to be looked at. " * 100)
    with pytest.raises(Corrupt):
        Store.open(tmp_path / "store")
    index.unlink()
    with pytest.raises(StoreError, match=r"index\.sqlite3"):
        Store.open(tmp_path / "store")


def test_an_index_that_somebody_else_locks_is_busy_not_a_wrong_answer(
    store: Store, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailfs.store.database._BUSY_TIMEOUT_MS", 50)
    deliver()
    other = apsw.Connection(str(store.layout.index))
    other.execute("BEGIN IMMEDIATE")
    with (
        Store.open(store.layout.root) as mine,
        pytest.raises(Busy, match="another program"),
        mine.writer.transaction("test", durable=True),
    ):
        pass
    other.close()
    deliver()
