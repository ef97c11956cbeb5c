"""A store of the first format is brought up to date when it is opened, wherever the work is cut off."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from mailfs.errors import Corrupt, MailfsError, StoreError, StoreFull
from mailfs.ids import Docid
from mailfs.message.maildir import ChosenName
from mailfs.store.database import open_writer
from mailfs.store.layout import open_layout
from mailfs.store.migrate import migrate
from mailfs.store.schema import FORMAT_VERSION
from mailfs.store.store import Store
from tests.fakes import PROJECT, make_message, new_message
from tests.oracle import contents_of, problems_of


@pytest.fixture
def old_store(tmp_path: Path) -> Path:
    """A store of format 1 with one message."""
    root = tmp_path / "store"
    with (
        Store.create(root) as store,
        store.writer.transaction("test", durable=True) as transaction,
    ):
        transaction.add(new_message(make_message(1)))
    connection = open_writer(root / "index.sqlite3")
    for table in ("entry", "dead_pack", "dictionary", "journal", "journal_change", "journal_event"):
        connection.execute(f"DROP TABLE {table}")
    connection.execute("DROP INDEX message_expunged")
    connection.execute("ALTER TABLE pack DROP COLUMN sealed")
    connection.execute("PRAGMA user_version = 0")
    connection.close()
    path = root / "format"
    path.write_text(path.read_text().replace(f"version {FORMAT_VERSION}", "version 1"))
    return root


def assert_works(root: Path) -> None:
    """It opens, holds what it held, and takes what the newest format takes."""
    with Store.open(root) as store:
        assert store.layout.version == FORMAT_VERSION
        assert contents_of(store) == {Docid(1): make_message(1)}
        inbox = store.index.search("inbox").search_id
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.entries.put(inbox, Docid(1), ChosenName(b"a"))
        assert list(store.index.chosen_names(inbox)) == [(1, ChosenName(b"a"))]
        assert problems_of(store) == []


def test_an_old_store_is_brought_up_to_date_by_opening_it(old_store: Path) -> None:
    store_id = open_layout(old_store).store_id
    assert open_layout(old_store).version == 1
    assert_works(old_store)
    assert open_layout(old_store) == migrate(open_layout(old_store))
    assert open_layout(old_store).store_id == store_id
    assert oct((old_store / "format").stat().st_mode & 0o777) == "0o600"


def test_an_old_and_a_new_store_have_the_same_tables(old_store: Path, tmp_path: Path) -> None:
    statements = []
    Store.open(old_store).close()
    Store.create(tmp_path / "new").close()
    for root in (old_store, tmp_path / "new"):
        connection = open_writer(root / "index.sqlite3")
        # What ALTER TABLE adds stands there with other blanks.
        found = connection.execute("SELECT name, sql FROM sqlite_schema").fetchall()
        statements.append({(name, "".join((sql or "").split())) for name, sql in found})
        connection.close()
    assert statements[0] == statements[1]


def test_who_comes_second_finds_the_work_done(old_store: Path) -> None:
    seen_before = open_layout(old_store)
    assert_works(old_store)
    content = (old_store / "format").stat()
    assert migrate(seen_before).version == FORMAT_VERSION
    assert (old_store / "format").stat().st_ino == content.st_ino


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("mailfs.store.migrate._change_tables", id="before the tables"),
        pytest.param("mailfs.store.migrate.write_format", id="before the format"),
        pytest.param("mailfs.store.layout.os.write", id="when format is empty"),
        pytest.param("mailfs.store.layout.Path.rename", id="when format has no name yet"),
        pytest.param("mailfs.store.layout.sync_directory", id="when all is written"),
    ],
)
def test_a_store_whose_process_was_killed_meanwhile_is_brought_up_to_date_by_the_next(
    old_store: Path, place: str
) -> None:
    killed = subprocess.run(
        [sys.executable, "-m", "tests.store.peer", "migrate", str(old_store), place],
        cwd=PROJECT,
        check=False,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    assert_works(old_store)
    assert not (old_store / "format.new").exists()


@pytest.mark.parametrize(
    ("code", "error"),
    [(errno.ENOSPC, StoreFull), (errno.EROFS, StoreError), (errno.EACCES, StoreError)],
    ids=["ENOSPC", "EROFS", "EACCES"],
)
@pytest.mark.parametrize("file", ["lock", "format.new"])
def test_a_store_that_cannot_be_written_says_what_it_needed_to(
    old_store: Path, monkeypatch: pytest.MonkeyPatch, file: str, code: int, error: type[MailfsError]
) -> None:
    real_open = os.open

    def refusing(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if Path(path).name == file and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(code, os.strerror(code))
        return real_open(path, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr("os.open", refusing)
        with pytest.raises(error, match=f"format 1 .* format {FORMAT_VERSION} .*") as told:
            Store.open(old_store)
    assert os.strerror(code) in str(told.value)
    assert_works(old_store)


def test_an_index_that_is_read_only_says_what_it_needed_to(
    old_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path) -> apsw.Connection:
        connection = open_writer(path)
        connection.execute("PRAGMA query_only = ON")
        return connection

    with monkeypatch.context() as patch:
        patch.setattr("mailfs.store.migrate.open_writer", read_only)
        with pytest.raises(StoreError, match=r"format 1 .* cannot be written: .*readonly"):
            Store.open(old_store)
    assert open_layout(old_store).version == 1
    assert_works(old_store)


def test_a_damaged_index_is_called_damaged_not_read_only(old_store: Path) -> None:
    (old_store / "index.sqlite3").write_bytes(b"no database" * 1000)
    with pytest.raises(Corrupt):
        Store.open(old_store)
    assert open_layout(old_store).version == 1
