"""Removing packs that nothing refers to any more, and keeping them while somebody reads by an older state of the index.

Whoever copies or checks packs by a snapshot of the index holds an flock(2) on STORE/packs, shared; a pack is unlinked only by
who holds it alone. Clients need no lock: what they have open they read on, and else they ask the index again.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mailfs.errors import Busy, storage_error
from mailfs.ids import PackNumber
from mailfs.store.layout import Layout, sync_directory
from mailfs.store.lock import flock_until
from mailfs.store.store import Store

# Packs are unlinked in a moment, so who wants to keep them never waits long.
KEEP_DEADLINE_S = 10.0


@contextmanager
def keep_packs(layout: Layout, deadline_s: float = KEEP_DEADLINE_S) -> Iterator[None]:
    """Within the block no pack is removed. Take it before the snapshot of the index. Raises Busy."""
    with _held(layout, fcntl.LOCK_SH, deadline_s) as is_held:
        if not is_held:
            raise Busy(f"packs are just being removed from {layout.packs}: try again")
        yield


@contextmanager
def _held(layout: Layout, kind: int, deadline_s: float) -> Iterator[bool]:
    try:
        fd = os.open(layout.packs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise storage_error(error, f"cannot open {layout.packs}") from error
    try:
        yield flock_until(fd, time.monotonic() + deadline_s, kind)
    finally:
        # Closing is not enough: a child forked meanwhile has the same open file.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def remove_dead_packs(store: Store, deadline_s: float | None = None) -> int:
    """Remove what waits for it; how many packs. None while a backup or a check runs: the next time does it.

    Cut off anywhere, it is done again: a row of `dead_pack` goes after its file. Raises Busy, StoreError.
    """
    if not _dead_packs(store):
        return 0
    with (
        store.writer.lock.hold("compact", deadline_s),
        _held(store.layout, fcntl.LOCK_EX, 0.0) as is_held,
    ):
        if not is_held:
            return 0
        # Asked again while nobody writes: another process may have removed one, and a third begun one of its number.
        dead = _dead_packs(store)
        try:
            for pack in dead:
                store.layout.pack(pack).unlink(missing_ok=True)
            sync_directory(store.layout.packs)
        except OSError as error:
            raise storage_error(error, f"cannot remove a pack from {store.layout.packs}") from error
    for pack in dead:
        store.packs.forget(pack)
    with store.writer.transaction("compact", durable=False, deadline_s=deadline_s) as transaction:
        for pack in dead:
            transaction.write("DELETE FROM dead_pack WHERE pack = ?", (pack,))
    return len(dead)


def _dead_packs(store: Store) -> list[PackNumber]:
    """Those to be removed. Never one that something refers to, whatever `dead_pack` says."""
    rows = store.index.rows(
        "SELECT pack FROM dead_pack WHERE pack NOT IN (SELECT pack FROM pack) "
        "AND pack NOT IN (SELECT pack FROM blob)"
    )
    return [PackNumber(pack) for (pack,) in rows]
