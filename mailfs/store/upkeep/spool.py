"""A store in the words of a mail system's spool: KumoMTA's trait `Spool` (crates/spool/src/lib.rs), word for word.

What it promises is the store's promise, said shorter: what store() has returned is there; what cannot be read is named and
stops nobody; what is left over goes; memory that is not needed is given back; and who asks is told at once whether
it is worth trying. Three errors are told apart: Unhealthy (the store's trouble), DeadlinePassed (the caller's), BackPressure (ours).
"""

import ctypes
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mailfs.errors import Corrupt, NoSuchMessage
from mailfs.ids import Docid, Keyword
from mailfs.message.keywords import split_keywords
from mailfs.store.layout import HALF, Layout
from mailfs.store.lock import is_held_for_writing
from mailfs.store.prepare import prepare_message
from mailfs.store.store import Store
from mailfs.store.upkeep.compact import Compaction, compact
from mailfs.store.upkeep.removal import remove_dead_packs

# maildir(5): a file in tmp/ that is older is of a delivery that failed.
LEFT_OVER_S = 36 * 3600.0
_DOCIDS_AHEAD = 500


class Loaded(NamedTuple):
    """A message that was enumerated."""

    docid: Docid
    raw: bytes


@dataclass(frozen=True, slots=True)
class CorruptItem:
    """A message that cannot be read, and why."""

    docid: Docid
    error: Corrupt


class Cleaned(NamedTuple):
    """What cleanup() removed, in bytes and files."""

    files: int
    bytes: int


class Spool:
    """One open store. For one thread, as Store.index is."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def store(
        self,
        raw: bytes,
        *,
        force_sync: bool,
        deadline_s: float | None = None,
        keywords: Iterable[Keyword] = (),
    ) -> Docid:
        """Keep a message; bytes that are here already are not kept twice, and are live again if they were removed.

        With `force_sync` it survives power loss on return; without, the death of any process, and power loss after
        Writer.sync() or a few seconds of a mount. Raises Unhealthy, DeadlinePassed, BackPressure, StoreFull, StoreError.
        """
        flags, own = split_keywords(keywords)
        new = prepare_message(raw, flags, tuple(sorted(own)), None)
        with self._store.writer.transaction(
            "store", durable=force_sync, deadline_s=deadline_s
        ) as transaction:
            docid = transaction.add(new, force_sync=force_sync).docid
            transaction.revive(docid)
            transaction.edit_keywords(docid, own)
            return docid

    def load(self, docid: Docid) -> bytes:
        """The bytes of a message, as they came. Raises NoSuchMessage, Corrupt."""
        return self._store.load(docid)

    def remove(self, docid: Docid, *, deadline_s: float | None = None) -> None:
        """Expunge a message; expire gives its room back. Raises NoSuchMessage, and what store() raises.

        Goes on while nothing can be added: it is how room is made.
        """
        with self._store.writer.transaction(
            "remove", durable=False, deadline_s=deadline_s
        ) as transaction:
            transaction.flags(docid)
            transaction.expunge(docid)

    def enumerate(self) -> Iterator[Loaded | CorruptItem]:
        """All live messages, by docid. One that cannot be read is told, and the next comes.

        What is added or removed meanwhile may be left out.
        """
        last = Docid(0)
        while docids := self._docids_after(last):
            for docid in docids:
                try:
                    yield Loaded(docid, self.load(docid))
                except Corrupt as error:
                    yield CorruptItem(docid, error)
                except NoSuchMessage:
                    continue
            last = docids[-1]

    def _docids_after(self, docid: Docid) -> list[Docid]:
        rows = self._store.index.rows(
            "SELECT docid FROM message WHERE docid > ? AND expunged = 0 ORDER BY docid LIMIT ?",
            (docid, _DOCIDS_AHEAD),
        )
        return [Docid(row[0]) for row in rows]

    def cleanup(self) -> Cleaned:
        """Remove what was left over: tmp/ files older than LEFT_OVER_S that no client is writing, half-made files.

        And packs that nothing refers to any more. What lies in cur/ and new/ is mail on its way, and stays.
        """
        remove_dead_packs(self._store)
        now_s = time.time()
        layout = self._store.layout
        removed = [
            size
            for path in (*_tmp_files(layout), *_half_made(layout))
            if (size := _remove_if_old(path, now_s)) is not None
        ]
        return Cleaned(len(removed), sum(removed))

    def compact(self) -> Compaction:
        """Rewrite packs that hold much that nothing needs any more; what came of it. Raises Busy, StoreError."""
        *_, done = compact(self._store)
        return done

    def advise_low_memory(self) -> int:
        """Let go of what is kept in memory only to be faster; about how many bytes that was. See give_back(), too."""
        store = self._store
        store.packs.forget_removed()  # room on the disk, not in memory
        return store.index.free_memory() + store.writer.free_memory()

    def unhealthy_reason(self) -> str | None:
        """Why nothing can be stored now, in words for anybody; None while it can. A statvfs(2) a second at most."""
        return self._store.writer.health.unhealthy_reason()


def give_back() -> None:
    """Give the system the memory back that was freed: malloc_trim(3), where the C library has it."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> "ctypes._NamedFuncPointer | None":
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def _tmp_files(layout: Layout) -> Iterator[Path]:
    """Files of deliveries: those of views' tmp/, and what has no folder because it was to have no name, either."""
    for folder, _, names in os.walk(layout.spool):
        parts = Path(folder).relative_to(layout.spool).parts
        if not parts or parts[1:2] == ("tmp",):
            # What a mount set aside may be somebody's only copy.
            yield from (Path(folder, name) for name in names if not name.endswith(HALF))


def _half_made(layout: Layout) -> Iterator[Path]:
    """Files that are renamed when they are complete."""
    for path in layout.root.iterdir():
        if path.name.endswith((".new", ".partial")):
            yield path


def _remove_if_old(path: Path, now_s: float) -> int | None:
    """How long the file was; None when it stays."""
    with suppress(OSError):
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or is_held_for_writing(os.fsencode(path)):
            return None
        # The mtime is the client's to set; the ctime is when it was last written, named or given that mtime.
        if now_s - max(found.st_mtime, found.st_ctime) > LEFT_OVER_S:
            path.unlink()
            return found.st_size
    return None
