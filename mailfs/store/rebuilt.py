"""A rebuilt index on its way to its place: index.new while it is being built, index.ready when it is whole.

Whoever finds an `index.ready` finishes: the old index is complete until that name is durable, and given up from then on.
The caller has the store for itself (in_use.hold_alone).
"""

from pathlib import Path

from mailfs.store.layout import Layout, sync_directory

# What SQLite keeps beside an index. A write-ahead log says nothing of which index it belongs to: one left beside
# another index would be written over it.
_BESIDE = ("-wal", "-shm", "-journal")


def new_path(layout: Layout) -> Path:
    """Where an index is built. What is there was left by a process that died."""
    return layout.root / "index.new"


def _ready_path(layout: Layout) -> Path:
    return layout.root / "index.ready"


def is_rebuilt(layout: Layout) -> bool:
    """Whether a whole index waits to be put in place."""
    return _ready_path(layout).exists()


def remove_new(layout: Layout) -> None:
    """Remove what was built, whole or not, before it was ready."""
    _remove(new_path(layout), *_beside(new_path(layout)))


def make_ready(layout: Layout) -> None:
    """The new index, which is synced and closed, is the one from now on. Durable."""
    new_path(layout).rename(_ready_path(layout))
    sync_directory(layout.root)


def put_in_place(layout: Layout) -> None:
    """Put an index that is ready in the place of the old one, durably; nothing happens where there is none.

    Cut off at any moment, it is done again.
    """
    if not is_rebuilt(layout):
        return
    _remove(*_beside(layout.index))
    # Before the index has its place: the two removals must not come back beside it.
    sync_directory(layout.root)
    _ready_path(layout).rename(layout.index)
    sync_directory(layout.root)


def _beside(path: Path) -> list[Path]:
    return [Path(f"{path}{suffix}") for suffix in _BESIDE]


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
