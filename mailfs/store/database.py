"""Connections to the index: one function a setting, each with its reason.

Nothing but apsw writes the index: the SQLite of the system and of Python's own module may be one with the
WAL-reset race. `Any` stays here and in the modules that unpack rows of statements written beside them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from mailfs.errors import Busy, Corrupt, FormatTooNew, StoreError, StoreFull
from mailfs.store.schema import FIRST_SEARCHES, TABLES

Row = tuple[Any, ...]

# sqlite.org/wal.html#walresetbug: several processes that commit and checkpoint lose pages before this.
OLDEST_SQLITE = (3, 51, 3)
# Writers hold our own lock before they begin, so SQLite is busy only for moments: a checkpoint, a recovery.
_BUSY_TIMEOUT_MS = 10_000
# 32 MiB of WAL between checkpoints: each one rewrites the hot pages of the indexes once.
_CHECKPOINT_PAGES = 8192
_WRITER_CACHE_KIB = 65536
_READER_CACHE_KIB = 16384


def sqlite_version() -> str:
    """The version of the SQLite library that apsw carries."""
    return apsw.sqlite_lib_version()


def check_sqlite(version: str) -> None:
    """Raises FormatTooNew when this SQLite must not write a store that several processes share."""
    if tuple(int(part) for part in version.split(".")[:3]) < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise FormatTooNew(
            f"SQLite {version} can damage an index that several processes write "
            f"(fixed in {oldest}): install a newer apsw"
        )


def open_writer(path: Path) -> apsw.Connection:
    """A connection for write transactions. Commits are durable only between durable(True) and (False)."""
    connection = _open(path)
    connection.execute(f"PRAGMA cache_size = -{_WRITER_CACHE_KIB}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    set_durable(connection, durable=False)
    return connection


def open_reader(path: Path) -> apsw.Connection:
    """A connection that only reads. WAL: readers never wait, and see one snapshot a statement."""
    connection = _open(path)
    connection.execute(f"PRAGMA cache_size = -{_READER_CACHE_KIB}")
    connection.execute("PRAGMA query_only = ON")
    return connection


def _open(path: Path) -> apsw.Connection:
    check_sqlite(apsw.sqlite_lib_version())
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        connection.execute("PRAGMA journal_mode = WAL")
    except apsw.Error as error:
        raise _store_error(error, path) from error
    # A quoted word that is no column must be an error, not a string.
    connection.config(apsw.SQLITE_DBCONFIG_DQS_DML, 0)
    connection.config(apsw.SQLITE_DBCONFIG_DQS_DDL, 0)
    # A damaged or hostile schema must not run functions with side effects.
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def set_durable(connection: apsw.Connection, *, durable: bool) -> None:
    """Whether the next commits survive power loss (FULL syncs the WAL at each commit, NORMAL does not)."""
    connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")


def create_tables(path: Path, now_ns: int) -> None:
    """Make the index of a new store, with its first searches."""
    connection = apsw.Connection(str(path))
    try:
        path.chmod(0o600)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        with connection:
            for statements in TABLES:
                connection.execute(statements)
            connection.execute("INSERT INTO state VALUES (1, 1, 1)")
            connection.executemany(
                "INSERT INTO search(name, query, on_rm, changed_ns) VALUES (?, ?, '', ?)",
                [(name, query, now_ns) for name, query in FIRST_SEARCHES],
            )
    except apsw.Error as error:
        raise _store_error(error, path) from error
    finally:
        connection.close()


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours, so that nobody above store/ needs to know them."""
    try:
        yield
    except apsw.Error as error:
        raise _store_error(error, path) from error


def _store_error(error: apsw.Error, path: Path) -> StoreError | Busy:
    if isinstance(error, apsw.FullError):
        return StoreFull(f"no room for the index {path}: free some and try again")
    if isinstance(error, (apsw.BusyError, apsw.LockedError)):
        return Busy(f"the index {path} is locked by another program: try again")
    if isinstance(error, apsw.InterruptError):
        return Busy(f"a question to the index {path} took too long: ask for less, or try again")
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError)):
        return Corrupt(f"the index {path} is damaged: {error}")
    return StoreError(f"the index {path}: {error}")
