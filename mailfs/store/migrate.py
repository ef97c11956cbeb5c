"""Bringing a store of an older format up to date, when it is opened.

Under the writer lock: tables first, durably, then the file `format`. Cut off at any moment, the store still opens, and
the next open does it again. Every step can be done twice.

Format 2 adds table `entry`.
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
from mailfs.store.schema import ENTRY, FORMAT_VERSION

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
            if open_layout(layout.root).version < FORMAT_VERSION:
                _add_tables(layout)
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


def _add_tables(layout: Layout) -> None:
    with (
        translated(layout.index),
        closing(open_writer(layout.index)) as connection,
    ):
        set_durable(connection, durable=True)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(ENTRY)
        connection.execute("COMMIT")
