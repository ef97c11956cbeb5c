"""Reading an index beside which nothing can be written: on a read-only file system, or on a disk without room for 32 kB.

Who reads an index in WAL mode writes, too: its marks in the -shm file. That file is kept when the last connection closes,
so that a full disk is no hindrance (database.py). Where it cannot be written or is missing, the index is opened here: without it,
and without locks (sqlite.org/wal.html#noshm, sqlite.org/c3ref/open.html).

That is right while nobody writes, and who reads for long looks each time whether somebody can, and opens the index
anew. SQLite's own way to read on a read-only file system needs the -shm file, and has all connections of a process stay
read-only until the last of them is closed. Closing a file that was opened without locks drops those the process has on it (fcntl(2)):
so no connection that takes locks is opened while there are any of these.
"""

import os
import threading
from array import array
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import apsw

# SQLite makes the file in pieces of this size; it is shorter where that could not be done.
_SHM_BYTES = 32768

_counting = threading.Lock()
# The connections of this process that were opened here, by index.
_frozen: Counter[Path] = Counter()


def keep_files(connection: apsw.Connection) -> None:
    """Have the -wal and -shm files stay when the last connection is closed; the WAL is emptied then."""
    one = array("i", [1])
    connection.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, one.buffer_info()[0])


def must_freeze(index: Path) -> bool:
    """Whether an index can be opened here only: also while others of this process have it open so."""
    return _frozen[index] > 0 or is_read_only(index.parent)


def may_freeze(index: Path) -> bool:
    """Whether nobody writes an index that could not be opened otherwise: whoever does has made the -shm file."""
    return is_read_only(index.parent) or _size(f"{index}-shm") < _SHM_BYTES


def open_frozen(index: Path) -> apsw.Connection:
    """A connection that reads an index nobody writes; close it with close_frozen(). Raises apsw.Error."""
    with _counting:
        _frozen[index] += 1
    try:
        if _size(f"{index}-wal") <= 0:
            uri = f"file:{quote(str(index))}?immutable=1"
            return apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        # What is in the WAL is read, too, with its directory in memory: SQLite does so for who has the index for himself.
        connection = apsw.Connection(str(index), flags=apsw.SQLITE_OPEN_READONLY, vfs="unix-none")
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        return connection
    except BaseException:
        with _counting:
            _frozen[index] -= 1
        raise


def is_frozen(connection: apsw.Connection) -> bool:
    """Whether it was opened here."""
    return bool(connection.open_flags & apsw.SQLITE_OPEN_READONLY)


def close_frozen(connection: apsw.Connection, index: Path) -> None:
    connection.close()
    with _counting:
        _frozen[index] -= 1


def may_thaw(index: Path) -> bool:
    """Whether the only one that is left may be closed, because the index can be written again. Two system calls."""
    if _frozen[index] > 1 or is_read_only(index.parent):
        return False
    return _size(f"{index}-shm") >= _SHM_BYTES or not is_full(index.parent)


def is_read_only(folder: Path) -> bool:
    """Whether a file system takes no changes, by statvfs(3)."""
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def is_full(folder: Path) -> bool:
    """Whether a file system has no room for the smallest file SQLite makes."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < 2 * _SHM_BYTES


def _size(path: str | Path) -> int:
    """-1 where there is nothing."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
