"""A store, put together: layout, index, packs and the writer's door."""

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from mailfs.errors import Corrupt, storage_error
from mailfs.ids import Docid
from mailfs.store.database import create_tables
from mailfs.store.in_use import InUse
from mailfs.store.index import Index
from mailfs.store.layout import Layout, new_layout, sync_directory, write_format
from mailfs.store.migrate import open_up_to_date
from mailfs.store.packs import Location, PackReader
from mailfs.store.records import Dictionary
from mailfs.store.writer import Writer

Read = TypeVar("Read")


class Store:
    """An open store. `index`, `load` and `read` are for one thread; `writer` and `packs` for any."""

    def __init__(self, layout: Layout, in_use: InUse) -> None:
        """Takes over the share in the use of the store."""
        self.layout = layout
        self._in_use = in_use
        try:
            self.packs = PackReader(layout)
            self.index = Index(layout)
            self.writer = Writer(layout, self.packs)
        except BaseException:
            in_use.close()
            raise

    @classmethod
    def create(cls, root: Path) -> "Store":
        """Make a store, durably, and open it. Raises StoreExists when something else is there, StoreError."""
        try:
            layout = new_layout(root)
            create_tables(layout.index, time.time_ns())
            sync_directory(layout.root)
            write_format(layout)
            sync_directory(layout.root.parent)
        except OSError as error:
            raise storage_error(error, f"cannot make a store at {root}") from error
        return cls(layout, InUse(layout))

    @classmethod
    def open(cls, root: Path) -> "Store":
        """Open a store, brought to this program's format. Raises StoreMissing, FormatTooNew, StoreError, Busy."""
        return cls(*open_up_to_date(root))

    def close(self) -> None:
        self.writer.close()
        self.index.close()
        self.packs.close()
        self._in_use.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def load(self, docid: Docid) -> bytes:
        """The bytes of a message, as they came. Raises NoSuchMessage, Corrupt."""
        return self.read(docid, self.packs.load)

    def read(self, docid: Docid, read: Callable[[Location], Read]) -> Read:
        """What `read` finds where the message lies. Called again where its bytes have moved meanwhile (compact).

        Raises NoSuchMessage, and what `read` raises.
        """
        location = self.index.location(docid)
        try:
            return read(location)
        except Corrupt:
            self.index.forget_locations()
            moved = self.index.location(docid)
            if moved == location:
                raise
            self.packs.forget_removed()
            return read(moved)

    def newest_dictionary_or_none(self) -> Dictionary | None:
        """What new messages are to be compressed with. For any thread."""
        return self.packs.dictionaries.newest_or_none()
