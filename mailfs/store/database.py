"""Connections to the index: one function a setting, each with its reason.

Nothing but apsw writes the index: the SQLite of the system and of Python's own module may be one with the
WAL-reset race. `Any` stays here and in the modules that unpack rows of statements written beside them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EMFILE, ENFILE, ENOSPC, EROFS
from pathlib import Path
from typing import Any

import apsw

from mailfs.errors import (
    Busy,
    Corrupt,
    FormatTooNew,
    StoreError,
    StoreFailing,
    StoreFull,
    StoreReadOnly,
    storage_error,
)
from mailfs.store.checksums import lacks_checksums, reserve_checksums, use_checksums
from mailfs.store.frozen import (
    close_frozen,
    is_frozen,
    is_full,
    is_read_only,
    keep_files,
    may_freeze,
    must_freeze,
    open_frozen,
)
from mailfs.store.schema import FIRST_FORMAT_WITH_CHECKSUMS, FIRST_SEARCHES, TABLES

Row = tuple[Any, ...]

# sqlite.org/wal.html#walresetbug: several processes that commit and checkpoint lose pages before this.
OLDEST_SQLITE = (3, 51, 3)
# Writers hold our own lock before they begin, so SQLite is busy only for moments: a checkpoint, a recovery.
_BUSY_TIMEOUT_MS = 10_000
# For what is tried while clients wait, and done by the next if it cannot be done now.
_MOMENT_MS = 200
# 32 MiB of WAL between checkpoints: each one rewrites the hot pages of the indexes once.
_CHECKPOINT_PAGES = 8192
# 1 MiB where room is short.
_FEW_PAGES = 256
_PAGE_BYTES = 4096
# Of what is free the WAL takes so much at most, before it is written into the index and begun anew.
_WAL_SHARE = 1 / 4
_WRITER_CACHE_KIB = 65536
_READER_CACHE_KIB = 16384
_REBUILD = "run `mailfs reindex`, which makes a new one from the packs"


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
    if is_read_only(path.parent):
        raise StoreReadOnly(f"the index {path} cannot be written: its file system is read-only")
    if must_freeze(path):
        raise StoreFull(f"the index {path} can only be read: there is no room for more")
    connection = _open(path)
    connection.execute(f"PRAGMA cache_size = -{_WRITER_CACHE_KIB}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    set_durable(connection, durable=False)
    return connection


def open_reader(path: Path) -> apsw.Connection:
    """A connection that only reads. WAL: readers never wait, and see one snapshot a statement.

    Where nothing can be written it reads what there is, see frozen.py.
    """
    connection = _open_to_read(path)
    connection.execute(f"PRAGMA cache_size = -{_READER_CACHE_KIB}")
    connection.execute("PRAGMA query_only = ON")
    return connection


@contextmanager
def building(path: Path, *, is_new: bool) -> Iterator[apsw.Connection]:
    """A connection to an index nobody else knows of: fast, and of no use when the process ends before it is done.

    A new one is made, with all tables and no row; neither has files beside it. The caller syncs the file when it is
    closed. Raises StoreError, StoreFull.
    """
    use_checksums()
    try:
        if is_new:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(path, flags, 0o600))
    except OSError as error:
        raise storage_error(error, f"cannot make the index {path}") from error
    with translated(path):
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute(f"PRAGMA cache_size = -{_WRITER_CACHE_KIB}")
        _configure(connection)
        if is_new:
            reserve_checksums(connection)
            for statements in TABLES:
                connection.execute(statements)
        yield connection
    except apsw.Error as error:
        raise store_error(error, path, connection.system_errno) from error
    finally:
        connection.close()


def close(connection: apsw.Connection, path: Path) -> None:
    """The end of a connection that may be one of frozen.py."""
    if is_frozen(connection):
        close_frozen(connection, path)
    else:
        connection.close()


def _open_to_read(path: Path) -> apsw.Connection:
    if not must_freeze(path):
        try:
            return _open(path)
        except (StoreReadOnly, StoreFull):
            if not may_freeze(path):
                raise
    check_sqlite(apsw.sqlite_lib_version())
    use_checksums()
    with translated(path):
        return _configure(open_frozen(path))


def _open(path: Path) -> apsw.Connection:
    check_sqlite(apsw.sqlite_lib_version())
    use_checksums()
    connection = None
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        connection.execute("PRAGMA journal_mode = WAL")
        # The files stay for who reads when they cannot be made; what a checkpoint leaves of the WAL is room for later.
        connection.execute(f"PRAGMA journal_size_limit = {_CHECKPOINT_PAGES * _PAGE_BYTES}")
        keep_files(connection)
        _check_has_checksums(connection, path)
    except apsw.Error as error:
        code = 0 if connection is None else connection.system_errno
        raise store_error(error, path, code) from error
    return _configure(connection)


def _configure(connection: apsw.Connection) -> apsw.Connection:
    # A quoted word that is no column must be an error, not a string.
    connection.config(apsw.SQLITE_DBCONFIG_DQS_DML, 0)
    connection.config(apsw.SQLITE_DBCONFIG_DQS_DDL, 0)
    # A damaged or hostile schema must not run functions with side effects.
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def _check_has_checksums(connection: apsw.Connection, path: Path) -> None:
    """Damage to the one byte that says so would turn them off. Raises Corrupt."""
    if lacks_checksums(connection):
        row = connection.execute("PRAGMA user_version").fetchone()
        if row is not None and row[0] >= FIRST_FORMAT_WITH_CHECKSUMS:
            connection.close()
            raise Corrupt(f"the index {path} is damaged: it says that it has no checksums")


def fit_wal(connection: apsw.Connection, free_bytes: int | None) -> None:
    """How much is written before the next checkpoint: less where room is short."""
    pages = _CHECKPOINT_PAGES
    if free_bytes is not None:
        pages = max(_FEW_PAGES, min(pages, int(free_bytes * _WAL_SHARE) // _PAGE_BYTES))
    connection.wal_autocheckpoint(pages)


def restart_wal(connection: apsw.Connection) -> None:
    """Write the index itself and begin the WAL anew. Raises BusyError when somebody reads what it held, after a moment."""
    connection.set_busy_timeout(_MOMENT_MS)
    try:
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    finally:
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)


def free_cache(connection: apsw.Connection) -> int:
    """Let go of the pages a connection keeps in memory; how many bytes that is."""
    before = apsw.memory_used()
    connection.release_memory()
    # Of all connections of the process: others may have read meanwhile.
    return max(0, before - apsw.memory_used())


def set_durable(connection: apsw.Connection, *, durable: bool) -> None:
    """Whether the next commits survive power loss (FULL syncs the WAL at each commit, NORMAL does not)."""
    connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")


def create_tables(path: Path, now_ns: int) -> None:
    """Make the index of a new store, with its first searches."""
    use_checksums()
    connection = apsw.Connection(str(path))
    try:
        path.chmod(0o600)
        reserve_checksums(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # Not `with connection:`, whose rollback may fail and hide why; closing takes back as well.
        connection.execute("BEGIN")
        for statements in TABLES:
            connection.execute(statements)
        connection.execute("INSERT INTO state VALUES (1, 1, 1, 0)")
        connection.executemany(
            "INSERT INTO search(name, query, on_rm, changed_ns) VALUES (?, ?, '', ?)",
            [(name, query, now_ns) for name, query in FIRST_SEARCHES],
        )
        connection.execute("COMMIT")
    except apsw.Error as error:
        raise store_error(error, path, connection.system_errno) from error
    finally:
        connection.close()


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours, so that nobody above store/ needs to know them."""
    try:
        yield
    except apsw.Error as error:
        raise store_error(error, path) from error


def store_error(error: apsw.Error, path: Path, system_errno: int = 0) -> StoreError | Busy:
    """Ours for one of SQLite's. `system_errno` is what the connection says of its last trouble with the disk."""
    if isinstance(error, apsw.FullError):
        return StoreFull(f"no room for the index {path}: free some and try again")
    if isinstance(error, (apsw.BusyError, apsw.LockedError)):
        return Busy(f"the index {path} is locked by another program: try again")
    if isinstance(error, apsw.InterruptError):
        return Busy(f"a question to the index {path} took too long: ask for less, or try again")
    if isinstance(error, apsw.CantOpenError) and not path.exists():
        return Corrupt(f"the index {path} is missing: {_REBUILD}")
    if isinstance(error, apsw.NotADBError):
        return Corrupt(f"the index {path} is no index any more ({error}): {_REBUILD}")
    if isinstance(error, apsw.CorruptError) or (
        getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_DATA
    ):
        return Corrupt(f"the index {path} is damaged ({error}): {_REBUILD}")
    if isinstance(error, (apsw.ReadOnlyError, apsw.IOError, apsw.CantOpenError)):
        return _disk_error(error, path, system_errno)
    return StoreError(f"the index {path}: {error}")


def _disk_error(error: apsw.Error, path: Path, code: int) -> StoreError:
    """What the disk is like, of which SQLite says little: it is asked again."""
    if code in (ENOSPC, EDQUOT, EROFS, EMFILE, ENFILE):
        return storage_error(OSError(code, os.strerror(code)), f"cannot write the index {path}")
    if isinstance(error, apsw.ReadOnlyError) or is_read_only(path.parent):
        return StoreReadOnly(f"the index {path} cannot be written: {error}")
    if is_full(path.parent):
        return StoreFull(f"no room for the index {path}: free some and try again")
    if isinstance(error, apsw.IOError):
        return StoreFailing(f"the index {path}: {error}")
    # Not asked by opening the index: closing that again would drop SQLite's locks on it (fcntl(2)).
    return StoreError(f"the index {path}: {error}")
