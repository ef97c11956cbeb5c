"""A checksum on every page of the index: SQLite's own, from cksumvfs (sqlite.org/cksumvfs.html), which apsw brings along.

SQLite alone finds damage to the structure of a page, and hands out a flipped bit in a row as if it had been written so.
With this a page that is read from the file and does not match its checksum is an error, SQLITE_IOERR_DATA. The sums
are made when pages go from the WAL into the file, so a commit costs the same; what is in the WAL has the WAL's own, which
SQLite looks at only after a crash (see wal.py).

Measured, 8,200 pages: a commit 8.4 us with and without, a checkpoint 6 % longer, a page not in the cache 2.0 us
instead of 1.7.
"""

import functools
from pathlib import Path

import apsw

from mailfs.errors import FormatTooNew

# cksumvfs works on files whose pages have exactly so many bytes kept free at their end.
_RESERVED_BYTES = 8


@functools.cache
def use_checksums() -> None:
    """Have all connections opened from now on make and look at checksums. Raises FormatTooNew where apsw has no cksumvfs.

    The library is found by its path: importing apsw.sqlite_extra, which finds it, costs 15 ms.
    """
    folder = Path(apsw.__file__).parent / "sqlite_extra_binaries"
    connection = apsw.Connection(":memory:")
    try:
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1)
        connection.load_extension(str(folder / "cksumvfs"))
    except apsw.ExtensionLoadingError as error:
        raise FormatTooNew(
            f"this apsw has no cksumvfs, so the checksums of an index cannot be kept ({error}): "
            "install apsw from PyPI"
        ) from error
    finally:
        connection.close()


def lacks_checksums(connection: apsw.Connection) -> bool:
    """Whether the first page of an open index says that its pages carry none.

    Not where they are not looked at, because the index was opened past cksumvfs (frozen.py).
    """
    return connection.execute("PRAGMA checksum_verification").fetchone() == ("0",)


def reserve_checksums(connection: apsw.Connection) -> None:
    """Have an index that is still empty carry checksums.

    Its first page is written now: from that cksumvfs learns that all that are written are to have one.
    """
    connection.reserve_bytes(None, _RESERVED_BYTES)
    connection.execute("PRAGMA user_version = 0")


def add_checksums(connection: apsw.Connection) -> None:
    """Rewrite an index that has none, or not everywhere; close the connection then. Raises BusyError while it is in use.

    An older mailfs that went on writing would leave pages without. May be done twice.
    """
    connection.execute("PRAGMA checksum_verification = OFF")
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    # Refused while any other process has the index open.
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.reserve_bytes(None, _RESERVED_BYTES)
    # In WAL mode the pages are written by a checkpoint: the first page first, and with it cksumvfs learns that there are
    # to be checksums. VACUUM without a WAL writes others before.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("VACUUM")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
