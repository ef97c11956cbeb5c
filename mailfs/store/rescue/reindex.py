"""A new index, from the packs and what the old one and a dump still tell.

The packs tell the messages and their words; flags, keywords, searches, chosen names, docids and the journal are taken from
the old index as far as it can be read, then from the dump. A message that neither knows is kept: it gets a docid, and the
keyword `recovered`. One whose bytes are nowhere keeps its row, so that it is whole again when a lost pack comes back.

The new index is built beside the old one and put in its place when it is complete and synced: killed at any moment, the
store has the one or the other, and the work can be begun again.
"""

import os
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any, BinaryIO

from mailfs.errors import Corrupt, StoreError, storage_error
from mailfs.store.database import building, translated
from mailfs.store.in_use import hold_alone
from mailfs.store.layout import Layout, write_format
from mailfs.store.lock import WriterLock
from mailfs.store.migrate import check_older_users
from mailfs.store.packs import PackReader
from mailfs.store.prepare import PARSED_BYTES, parse_start
from mailfs.store.rebuilt import make_ready, new_path, put_in_place, remove_new
from mailfs.store.rescue.new_index import NewIndex, Prepare, Rebuilt, ToRead, WasRead
from mailfs.store.schema import FORMAT_VERSION
from mailfs.store.upkeep.dump import dump_path, save_own_dump

DEADLINE_S = 10.0
_BATCH = 64
_PIECE_BYTES = 1 << 20


class Parser:
    """Reads and parses messages; for one process. Messages are checked against their hash, whatever their size."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    @cached_property
    def _packs(self) -> PackReader:
        return PackReader(self._layout)

    def __call__(self, item: ToRead) -> WasRead:
        start: list[bytes] = []
        kept_bytes, problem = 0, ""
        try:
            for piece in self._packs.raw_pieces(item.location):
                if kept_bytes < PARSED_BYTES:
                    start.append(piece)
                    kept_bytes += len(piece)
        except (Corrupt, StoreError) as error:
            problem = str(error)
        if problem and not start:
            return WasRead(item.docid, None, problem)
        return WasRead(item.docid, parse_start(b"".join(start), item.location.raw), problem)

    def prepare(self, items: Iterator[ToRead]) -> Iterator[list[WasRead]]:
        """All of them, in this process."""
        while batch := list(islice(items, _BATCH)):
            yield [self(item) for item in batch]


def done_bytes(done: WasRead) -> int:
    """How much an answer of a Parser is, some 2 bytes a sign."""
    return 2 * len(done.parsed.body) if done.parsed else 0


def reindex(
    layout: Layout,
    prepare: Prepare,
    dump: BinaryIO | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rebuilt:
    """Give a store a new index. Nobody else has the store open meanwhile.

    A dump of its own that is not sound is written anew. `dump` is looked at instead of STORE/dump, where the old index is damaged. `progress` hears how many messages of
    how many are in. Raises Busy, BadDump, StoreFull, StoreError; then the store has its old index.
    """
    with (
        hold_alone(layout, "rebuilding the index", DEADLINE_S),
        WriterLock(layout).hold("reindex", DEADLINE_S),
    ):
        check_older_users(layout)
        put_in_place(layout)
        remove_new(layout)
        try:
            # What is read without a file of its own (the old index) has trouble, too, where descriptors are short.
            with translated(layout.index):
                rebuilt = NewIndex(layout, prepare, progress).build(dump)
            _sync(layout)
            make_ready(layout)
        except BaseException:
            remove_new(layout)
            raise
        put_in_place(layout)
        if layout.version < FORMAT_VERSION:
            write_format(layout)
        _mend_dump(layout, rebuilt)
    return rebuilt


def _mend_dump(layout: Layout, rebuilt: Rebuilt) -> None:
    """What the index says is more than the dump does that was read as far as it could be."""
    if not rebuilt.has_bad_dump:
        return
    try:
        # Where the disk cannot read it now it may read it the next time.
        with dump_path(layout).open("rb") as file:
            while file.read(_PIECE_BYTES):
                pass
        save_own_dump(layout)
    except (OSError, StoreError) as error:
        rebuilt.notes.append(f"the dump {dump_path(layout)} is left as it is: {error}")


def _sync(layout: Layout) -> None:
    """Look the new index over, and make it durable. Raises StoreError."""
    path = new_path(layout)
    with building(path, is_new=False) as connection:
        found: list[Any] = connection.execute("PRAGMA quick_check(1)").fetchall()
        # Said in the file, so that those who open it first need not change it.
        connection.execute("PRAGMA journal_mode = WAL")
    if found != [("ok",)]:
        raise StoreError(f"the new index is damaged already ({found[0][0]}): is the disk sound?")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise storage_error(error, f"cannot sync the new index {path}") from error
