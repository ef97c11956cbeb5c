"""Sealing packs: one that is full gets a footer and never changes again.

A pack is full when another has been begun behind it. Its footer is made without the lock, because nobody appends to it any
more; only to write it takes the lock, for some milliseconds.
"""

import os

from mailfs.errors import Corrupt, storage_error
from mailfs.ids import PackNumber
from mailfs.store.packfile import PackFile
from mailfs.store.records import format_footer
from mailfs.store.store import Store

_FULL = "sealed = 0 AND pack < (SELECT max(pack) FROM pack)"


def seal_full_packs(store: Store, deadline_s: float | None = None) -> list[PackNumber]:
    """Seal every pack that is full; those that were. One that is damaged is left out: `verify` tells of it.

    Done again after a crash: what is behind the acknowledged end of a pack is written over. Raises Busy, StoreError.
    """
    sealed = []
    for pack, size in store.index.rows(f"SELECT pack, size FROM pack WHERE {_FULL} ORDER BY pack"):
        try:
            if _seal(store, PackNumber(pack), size, deadline_s):
                sealed.append(PackNumber(pack))
        except Corrupt:
            continue
    return sealed


def _seal(store: Store, pack: PackNumber, size: int, deadline_s: float | None) -> bool:
    file = PackFile(store.layout.pack(pack), pack)
    end = store.packs.promised_end(file, size)
    footer = format_footer(end, (header for _, header in file.iter_records(end=end)))
    with store.writer.transaction("seal", durable=True, deadline_s=deadline_s) as transaction:
        # Another process may have been faster, or found more of it to be whole.
        if not transaction.rows(
            f"SELECT 1 FROM pack WHERE pack = ? AND size = ? AND {_FULL}", (pack, size)
        ):
            return False
        _write_behind(store, pack, end, footer)
        transaction.write(
            "UPDATE pack SET size = ?, sealed = 1 WHERE pack = ?", (end + len(footer), pack)
        )
    return True


def _write_behind(store: Store, pack: PackNumber, end: int, footer: bytes) -> None:
    """Make this the end of a pack, durably."""
    try:
        fd = os.open(store.layout.pack(pack), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.ftruncate(fd, end)
            view = memoryview(footer)
            while view:
                written = os.pwrite(fd, view, end)
                view = view[written:]
                end += written
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise storage_error(error, f"cannot seal pack {pack}") from error
