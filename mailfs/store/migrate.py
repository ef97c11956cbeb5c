"""What is done to a store before it is opened: a rebuilt index is put in place, an older format is brought up to date.

By the one process that has the store for itself, and under the writer lock, which older programs know too: tables first,
durably and in one transaction with their version, then the file `format`. Cut off at any moment, the store still opens,
and the next open goes on. What each format brought is in schema.py.
"""

from contextlib import closing
from pathlib import Path

from mailfs.errors import (
    Busy,
    Corrupt,
    FormatTooNew,
    StoreError,
    StoreFull,
    StoreMissing,
    storage_error,
)
from mailfs.store.checksums import add_checksums
from mailfs.store.database import open_writer, set_durable, translated
from mailfs.store.in_use import InUse, hold_alone, living_mounts
from mailfs.store.layout import Layout, open_layout, write_format
from mailfs.store.lock import WriterLock
from mailfs.store.rebuilt import is_rebuilt, put_in_place
from mailfs.store.schema import CHANGES, FIRST_FORMAT_WITH_CHECKSUMS, FORMAT_VERSION

# A bulk writer of the old program lets go of the lock many times in this time.
_DEADLINE_S = 60.0


def open_up_to_date(root: Path) -> tuple[Layout, InUse]:
    """A store ready to be used: the layout as it is now, and a share in its use, to be closed with the store.

    Raises StoreMissing, FormatTooNew (then nothing was touched), Busy, Corrupt, StoreFull, and StoreError for a store
    that must be written before it can be used, but cannot.
    """
    while True:
        layout = open_layout(root)
        in_use = InUse(layout)
        try:
            # What was read before may have been changed by the one who had the store for itself.
            layout = open_layout(root)
            if layout.version == FORMAT_VERSION and not is_rebuilt(layout):
                return layout, in_use
        except BaseException:
            in_use.close()
            raise
        in_use.close()
        _finish(layout)


def _finish(layout: Layout) -> None:
    """Do what keeps a store from being opened. Another process may be faster: then there is nothing left to do."""
    what = (
        f"the store at {layout.root} has format {layout.version} and must be brought to format "
        f"{FORMAT_VERSION} before it can be used, but it cannot be written"
    )
    if layout.version == FORMAT_VERSION:
        what = f"the rebuilt index of the store at {layout.root} cannot be put in place"
    try:
        with (
            hold_alone(layout, "bringing it up to date", _DEADLINE_S),
            WriterLock(layout).hold("migrate", _DEADLINE_S),
        ):
            put_in_place(layout)
            migrate(layout)
    except OSError as error:
        raise storage_error(error, what) from error
    except StoreFull as error:
        raise StoreFull(f"{what}: {error}") from error
    except (Corrupt, FormatTooNew, StoreMissing):
        raise
    except StoreError as error:
        raise StoreError(f"{what}: {error}") from error


def migrate(layout: Layout) -> None:
    """Give a store the format of this program. The caller has the store for itself, and the writer lock."""
    version = open_layout(layout.root).version
    if version == FORMAT_VERSION:
        return
    check_older_users(layout)
    if version < FIRST_FORMAT_WITH_CHECKSUMS:
        _add_checksums(layout)
    _change_tables(layout, version)
    write_format(layout)


def check_older_users(layout: Layout) -> None:
    """Raises Busy while an older mailfs has a store of an older format mounted.

    The caller has the store for itself; one of this program would hold its share in the use, these do not know of it.
    """
    if layout.version < FORMAT_VERSION and (mounts := living_mounts(layout)):
        raise Busy(
            f"the store at {layout.root} has format {layout.version} and is used by an older mailfs, "
            f"{', '.join(mounts)}: unmount it first"
        )


def _add_checksums(layout: Layout) -> None:
    """Raises Busy while any process has the index open: an older mailfs would go on writing pages without."""
    try:
        with (
            translated(layout.index),
            closing(open_writer(layout.index)) as connection,
        ):
            add_checksums(connection)
    except Busy as error:
        raise Busy(
            f"the store at {layout.root} must be brought to format {FORMAT_VERSION}, and another program uses it: "
            "unmount it (`mailfs umount`), end what else uses it, and try again"
        ) from error


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
