"""A store, put together: layout, index, packs and the writer's door."""

import time
from pathlib import Path
from types import TracebackType

from mailfs.ids import Docid
from mailfs.store.database import create_tables
from mailfs.store.index import Index
from mailfs.store.layout import Layout, new_layout, open_layout, sync_directory, write_format
from mailfs.store.migrate import migrate
from mailfs.store.packs import PackReader
from mailfs.store.writer import Writer


class Store:
    """An open store. `index` and `load` are for one thread; `writer` and `packs` for any."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.packs = PackReader(layout)
        self.index = Index(layout)
        self.writer = Writer(layout, self.packs)

    @classmethod
    def create(cls, root: Path) -> "Store":
        """Make a store, durably, and open it. Raises StoreExists when something else is there."""
        layout = new_layout(root)
        create_tables(layout.index, time.time_ns())
        sync_directory(layout.root)
        write_format(layout)
        sync_directory(layout.root.parent)
        return cls(layout)

    @classmethod
    def open(cls, root: Path) -> "Store":
        """Open a store, brought to this program's format. Raises StoreMissing, FormatTooNew, StoreError, Busy."""
        return cls(migrate(open_layout(root)))

    def close(self) -> None:
        self.writer.close()
        self.index.close()
        self.packs.close()

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
        return self.packs.load(self.index.location(docid))
