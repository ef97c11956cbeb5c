"""What a mount does for its store and for the machine beside serving: maintenance when it is due, memory when it is short.

Maintenance runs in a process of its own, `mailfs maintain --due`: compressing and sorting keep the interpreter lock for
milliseconds at a time, which every client would feel, and whatever goes wrong there (memory, a fault in a library) is not
the end of a mount. It holds the writer lock in slices, as any other writer. When it was done last stands in the store
(store/upkeep/maintenance.py), so two mounts do it once, and a laptop that is seldom on does it when it is.
"""

import logging
import subprocess
import time
from dataclasses import dataclass
from typing import Protocol

import trio

from mailfs.errors import EX_TEMPFAIL
from mailfs.fuse.pressure import Pressure
from mailfs.store.config import Config
from mailfs.store.sizes import size_text
from mailfs.store.store import Store
from mailfs.store.upkeep.maintenance import due_in_s
from mailfs.store.upkeep.spool import Spool, give_back
from mailfs.views.evaluation import unload_unknown
from mailfs.views.tree import Tree

log = logging.getLogger(__name__)

# After the store was busy, and after it failed: a disk that is full is not better a minute later.
BUSY_S = 600.0
FAILED_S = 3600.0
# Sleep and a clock that was set are found by looking now and then.
_LONGEST_SLEEP_S = 3600.0
# What was just let go is not yet to be had again: the next word of the kernel counts after this.
_REST_S = 10.0


class KnownDirectories(Protocol):
    """Directories of the tree that the kernel knows, by inode number."""

    def __contains__(self, ino: object, /) -> bool: ...


@dataclass(frozen=True, slots=True)
class MemoryGiven:
    """How often memory was short, and how many bytes were let go in all."""

    times: int = 0
    bytes: int = 0


class Upkeep:
    """Two tasks beside the one that serves requests. `running_since_s` and `next_s` are in seconds since 1970."""

    def __init__(
        self, store: Store, tree: Tree, known: KnownDirectories, command: tuple[str, ...]
    ) -> None:
        """`command` starts maintenance if it is due; without one none is done."""
        self._store = store
        self._tree = tree
        self._known = known
        self._command = command
        self._config = Config()
        self._began_s = time.time()
        self._not_before_s = 0.0
        self._has_changed = trio.Event()
        self.running_since_s: float | None = None
        self.memory = MemoryGiven()

    def apply(self, config: Config) -> None:
        """Do as the configuration says, from now on."""
        self._config = config
        self._has_changed.set()

    # --- maintenance

    @property
    def next_s(self) -> float | None:
        """When it will be done next; None: never."""
        interval_s = self._config.maintenance_s
        if interval_s is None or not self._command:
            return None
        now_s = time.time()
        due_s = now_s + due_in_s(self._store.layout, interval_s, now_s)
        return max(due_s, self._not_before_s, self._began_s + self._config.maintenance_delay_s)

    async def maintain(self) -> None:
        """Whenever it is due."""
        while True:
            next_s = self.next_s
            wait_s = _LONGEST_SLEEP_S if next_s is None else next_s - time.time()
            if wait_s <= 0:
                await self._maintain()
                continue
            with trio.move_on_after(min(wait_s, _LONGEST_SLEEP_S)):
                await self._has_changed.wait()
                self._has_changed = trio.Event()

    async def _maintain(self) -> None:
        self.running_since_s = time.time()
        try:
            done = await trio.run_process(
                self._command,
                stdin=subprocess.DEVNULL,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        except OSError as error:
            log.warning("maintenance cannot be started: %s", error.strerror)
            self._not_before_s = time.time() + FAILED_S
            return
        finally:
            self.running_since_s = None
        if done.returncode == 0:
            log.info("maintenance: %s", done.stdout.decode(errors="replace").strip())
            # Whatever the record says: what was done is not begun again at once.
            self._not_before_s = time.time() + 1.0
        elif done.returncode == EX_TEMPFAIL:
            self._not_before_s = time.time() + BUSY_S
        else:
            reason = done.stderr.decode(errors="replace").strip().replace("\n", "; ")
            log.warning("maintenance ended with %d: %s", done.returncode, reason)
            self._not_before_s = time.time() + FAILED_S

    # --- memory

    async def watch_memory(self) -> None:
        """Let go of what can be had again, whenever the kernel says that memory is short."""
        pressure = Pressure.open_or_none()
        if pressure is None:
            return
        # Not one of the threads that requests wait in: while one of those is at work nobody spins for requests.
        limiter = trio.CapacityLimiter(1)
        try:
            while await trio.to_thread.run_sync(
                pressure.wait, abandon_on_cancel=True, limiter=limiter
            ):
                await self.free_memory()
                await trio.sleep(_REST_S)
        except trio.Cancelled:
            pressure.stop()
            raise
        pressure.close()

    async def free_memory(self) -> None:
        """Caches of SQLite, views that no client has looked up, and what the C library keeps."""
        freed = unload_unknown(self._tree, self._known) + Spool(self._store).advise_low_memory()
        self.memory = MemoryGiven(self.memory.times + 1, self.memory.bytes + freed)
        log.info("memory is short: let go of %s", size_text(freed))
        await trio.to_thread.run_sync(give_back)
