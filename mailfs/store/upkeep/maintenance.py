"""Taking care of a store: what nobody waits for, now and then. Expire, compact, a dump, what was left over.

STORE/maintained says when that was last done, and what came of it; who does it holds an flock(2) on it, so that no
two do at once. It is in the store and not in a process, so that a store that is mounted for an hour a day has it, too.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mailfs.errors import Busy, MailfsError, storage_error
from mailfs.search.dates import moment_ago
from mailfs.store.config import Config
from mailfs.store.layout import Layout
from mailfs.store.lock import flock_until
from mailfs.store.sizes import size_text
from mailfs.store.store import Store
from mailfs.store.upkeep.compact import Compaction, compact
from mailfs.store.upkeep.dump import save_own_dump
from mailfs.store.upkeep.expire import ExpireProgress, expire
from mailfs.store.upkeep.spool import Cleaned, Spool

_MOST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Maintenance:
    """What came of it the last time. Times in seconds since 1970, sizes in bytes; `problems` in words.

    `notes` are what is as it should be and may be told: packs that stay as they are.
    """

    began_s: float
    took_s: float
    expired: int = 0
    removed_files: int = 0
    rewritten_packs: int = 0
    freed_bytes: int = 0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def maintenance_text(last: Maintenance | None) -> str:
    """For people: one line."""
    if last is None:
        return "never"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last.began_s))
    words = [
        f"{when}, in {last.took_s:.1f} s: {last.expired} messages reclaimed",
        f"{last.rewritten_packs} packs rewritten",
        f"{size_text(last.freed_bytes)} freed",
    ]
    if last.problems:
        words.append(f"not all went well ({'; '.join(last.problems)})")
    return ", ".join(words)


def maintained_path(layout: Layout) -> Path:
    return layout.root / "maintained"


def last_maintenance_or_none(layout: Layout) -> Maintenance | None:
    """What the store says of the last time; None when there was none, or that cannot be read."""
    try:
        with maintained_path(layout).open("rb") as file:
            found = json.loads(file.read(_MOST_BYTES))
        words = {name: tuple(found.get(name, ())) for name in ("problems", "notes")}
        return Maintenance(**{**found, **words})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def due_in_s(layout: Layout, interval_s: float, now_s: float) -> float:
    """Seconds until it is to be done again, 0 when it is due. A clock that was set back makes nobody wait for years."""
    last = last_maintenance_or_none(layout)
    if last is None or last.began_s > now_s:
        return 0.0
    return max(0.0, last.began_s + interval_s - now_s)


def maintain(store: Store, config: Config, *, only_if_due: bool = False) -> Maintenance | None:
    """Do it now; None when it was not due. What goes wrong with one thing is told, and the others are done.

    In slices of the writer lock, so that nobody waits long. Raises Busy while another process is at it, StoreError where
    the store cannot be written at all.
    """
    interval_s = config.maintenance_s
    with _held(store.layout) as fd:
        now_s = time.time()
        if only_if_due and (interval_s is None or due_in_s(store.layout, interval_s, now_s)):
            return None
        found = _Round(store, config, now_s).run()
        _write(fd, store.layout, found)
        return found


class _Round:
    """One time all is done."""

    def __init__(self, store: Store, config: Config, now_s: float) -> None:
        self._store = store
        self._config = config
        self._now_s = now_s
        self._cleaned = Cleaned(0, 0)
        self._expired = ExpireProgress()
        self._compaction = Compaction()

    def run(self) -> Maintenance:
        started = time.monotonic()
        problems = []
        for duty in (self._clean, self._expire, self._compact, self._dump, self._store.writer.sync):
            try:
                duty()
            except MailfsError as error:
                problems.append(f"{duty.__name__.strip('_')}: {error}")
        done = self._compaction
        return Maintenance(
            began_s=self._now_s,
            took_s=round(time.monotonic() - started, 3),
            expired=self._expired.messages,
            removed_files=self._cleaned.files,
            rewritten_packs=done.packs,
            freed_bytes=self._cleaned.bytes + max(0, done.freed_bytes - done.written_bytes),
            problems=tuple(problems),
            notes=tuple(done.kept),
        )

    def _clean(self) -> None:
        self._cleaned = Spool(self._store).cleanup()

    def _expire(self) -> None:
        if self._config.expire is not None:
            for progress in expire(self._store, moment_ago(self._config.expire, self._now_s)):
                self._expired = progress

    def _compact(self) -> None:
        if self._config.compacts:
            for progress in compact(self._store):
                self._compaction = progress

    def _dump(self) -> None:
        if self._config.dumps:
            save_own_dump(self._store.layout)


@contextmanager
def _held(layout: Layout) -> Iterator[int]:
    path = maintained_path(layout)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise storage_error(error, f"cannot open {path}") from error
    try:
        if not flock_until(fd, time.monotonic()):
            raise Busy("another process takes care of the store just now")
        yield fd
    finally:
        # Closing is not enough: a child forked meanwhile has the same open file.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _write(fd: int, layout: Layout, found: Maintenance) -> None:
    """In place, because the lock is on this file. One that is cut off counts as none."""
    text = json.dumps(asdict(found)).encode() + b"\n"
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, text, 0)
    except OSError as error:
        raise storage_error(error, f"cannot write {maintained_path(layout)}") from error
