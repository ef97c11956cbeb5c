"""Bringing a store of an older format up to date, when it is opened.

Under the writer lock: tables first, durably and in one transaction with their version, then the file `format`. Cut off at
any moment, the store still opens, and the next open goes on. What each format brought is in schema.py.
"""

from contextlib import closing

from mailfs.errors import (
    Corrupt,
    FormatTooNew,
    StoreError,
    StoreFull,
    StoreMissing,
    storage_error,
)
from mailfs.store.database import open_writer, set_durable, translated
from mailfs.store.layout import Layout, open_layout, write_format
from mailfs.store.lock import WriterLock
from mailfs.store.schema import CHANGES, FORMAT_VERSION

# A bulk writer of the old program lets go of the lock many times in this time.
_DEADLINE_S = 60.0


def migrate(layout: Layout) -> Layout:
    """Give a store the format of this program; nothing is done to one that has it. The layout as it is now.

    Raises Busy, Corrupt, StoreFull, and StoreError for a store that cannot be written.
    """
    if layout.version == FORMAT_VERSION:
        return layout
    what = (
        f"the store at {layout.root} has format {layout.version} and must be brought to format "
        f"{FORMAT_VERSION} before it can be used, but it cannot be written"
    )
    try:
        with WriterLock(layout).hold("migrate", _DEADLINE_S):
            # Another process may have been faster.
            if (found := open_layout(layout.root).version) < FORMAT_VERSION:
                _change_tables(layout, found)
                write_format(layout)
    except OSError as error:
        raise storage_error(error, what) from error
    except StoreFull as error:
        raise StoreFull(f"{what}: {error}") from error
    except (Corrupt, FormatTooNew, StoreMissing):
        raise
    except StoreError as error:
        raise StoreError(f"{what}: {error}") from error
    return open_layout(layout.root)


def _change_tables(layout: Layout, version: int) -> None:
    with (
        translated(layout.index),
        closing(open_writer(layout.index)) as connection,
    ):
        set_durable(connection, durable=True)
        connection.execute("BEGIN IMMEDIATE")
        # 0 in the formats before 3, and later when an earlier attempt was cut off before it wrote `format`.
        row = connection.execute("PRAGMA user_version").fetchone()
        assert row is not None
        for number in range(max(version, row[0]) + 1, FORMAT_VERSION + 1):
            for statements in CHANGES[number]:
                connection.execute(statements)
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        connection.execute("COMMIT")
