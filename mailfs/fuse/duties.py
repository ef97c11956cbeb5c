"""What a mount does besides answering requests: follows the store, tells the kernel, and what time brings.

Nothing here runs while nothing happens, but for one look every IDLE_S.
"""

import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from mailfs.errors import Busy, MailfsError, StoreError, Unhealthy
from mailfs.fuse.logfile import limit_log
from mailfs.fuse.operations import Operations
from mailfs.fuse.upkeep import Upkeep
from mailfs.store.config import Config
from mailfs.store.feed import Feed
from mailfs.store.store import Store

log = logging.getLogger(__name__)

# While something waits for the clock, and while nothing does: then only changes on a file system that tells nobody of
# them (NFS) are found like this, and workers whose wake-up came to nothing.
TICK_S = 1.0
IDLE_S = 5.0
# So long the timer takes in files that waited, before it looks after other things.
TAKE_IN_S = 1.0
LOG_CHECK_S = 60.0


class Duties:
    """The tasks beside the one that serves requests. Each goes on whatever goes wrong with one round of it."""

    def __init__(
        self,
        store: Store,
        operations: Operations,
        mountpoint: Path,
        let_another_read: Callable[[], None],
        maintain_command: tuple[str, ...] = (),
        log_path: Path | None = None,
    ) -> None:
        self._store = store
        self._mountpoint = mountpoint
        self._operations = operations
        self._changes = operations.changes
        self._let_another_read = let_another_read
        self._sync_s = 0.0
        self._is_echo_wanted = False
        self.upkeep = Upkeep(store, operations.tree, operations.known, maintain_command)
        self._log_path = log_path
        self._log_checked_s = 0.0
        self._unhealthy: str | None = None
        self._is_deaf = False  # nobody says when the store changes
        self._is_dozing = False

    def apply(self, config: Config) -> None:
        """Do as the configuration says, from now on."""
        self._operations.tree.linger_s = config.linger_s
        self._changes.edit_deadline_s = config.lock_deadline_s
        self._sync_s = config.sync_s
        self._is_echo_wanted = config.echo
        self._use_echo()
        self._store.writer.health.reserve_bytes = config.reserve_bytes
        self.upkeep.apply(config)

    def _use_echo(self) -> None:
        is_echoing = self._operations.echo.is_usable and self._is_echo_wanted
        self._changes.announcements.is_echoing = is_echoing

    async def _prove_echo(self) -> None:
        await self._operations.echo.prove(self._mountpoint, self._operations.requests.in_thread)
        self._use_echo()

    # --- tasks

    async def follow(self) -> None:
        """Bring the tree up to what other processes commit, as they do; waits for nothing else."""
        try:
            with contextlib.closing(Feed(self._store.layout)) as feed:
                while True:
                    await trio.lowlevel.wait_readable(feed.fileno())
                    feed.take()
                    await self._attempt(self._sync_tree)
                    if self._is_dozing and not self._changes.is_idle:
                        self._changes.rouse()
        except StoreError as error:
            log.warning("changes of other processes are noticed late: %s", error)
            self._is_deaf = True

    async def tell(self) -> None:
        """Tell the kernel and its watchers what changed without them."""
        await self._attempt(self._prove_echo)
        while True:
            await self._changes.has_news.wait()
            self._changes.has_news = trio.Event()
            await self._attempt(self._tell)

    async def load(self) -> None:
        """Evaluate views for those who may watch them."""
        while True:
            await self._changes.has_wanted.wait()
            self._changes.has_wanted = trio.Event()
            await self._attempt(self._changes.load_wanted)

    async def tick(self) -> None:
        """What time brings."""
        synced_s = trio.current_time()
        changes = self._changes
        while True:
            await self._pause()
            self._let_another_read()
            for duty in (
                changes.tick,
                changes.forget_stale_names,
                changes.settle_letters,
                self._take_in,
                self._forget_packs,
                self._look_at_health,
                self._limit_log,
                self._forget_removed_packs,
            ):
                await self._attempt(duty)
            if changes.is_dirty and trio.current_time() - synced_s >= self._sync_s:
                synced_s = trio.current_time()
                changes.is_dirty = False
                await self._attempt(self._sync)

    async def _pause(self) -> None:
        changes = self._changes
        is_idle = changes.is_idle and not self._operations.ordinary.has_waiting
        self._is_dozing = is_idle and not self._is_deaf
        with trio.move_on_after(IDLE_S if self._is_dozing else TICK_S):
            await changes.has_duties.wait()
        self._is_dozing = False
        changes.has_duties = trio.Event()

    # --- one round of each

    async def _sync_tree(self) -> None:
        self._changes.sync_tree()

    async def _tell(self) -> None:
        await self._operations.echo.tell(self._operations.requests.in_thread)
        self._use_echo()

    async def _take_in(self) -> None:
        await self._operations.ordinary.take_in_waiting(TAKE_IN_S)

    async def _forget_packs(self) -> None:
        """Give back the room of packs that were compacted."""
        self._store.packs.forget_removed()

    async def _look_at_health(self) -> None:
        """Say once that the store cannot be written, and once that it can."""
        before = self._unhealthy
        self._unhealthy = self._store.writer.health.unhealthy_reason()
        if self._unhealthy == before:
            return
        if self._unhealthy is None:
            log.info("the store can be written again")
        else:
            log.warning("changes are refused: %s; all can be read", self._unhealthy)
            self._changes.problems.add("store", self._unhealthy)

    async def _forget_removed_packs(self) -> None:
        """Else the disk does not get back what another process has compacted."""
        self._store.packs.forget_removed()

    async def _limit_log(self) -> None:
        now_s = trio.current_time()
        if self._log_path is not None and now_s - self._log_checked_s > LOG_CHECK_S:
            self._log_checked_s = now_s
            with contextlib.suppress(OSError):  # then it grows, as before
                limit_log(self._log_path)

    async def _sync(self) -> None:
        try:
            await trio.to_thread.run_sync(self._store.writer.sync)
        except MailfsError:
            self._changes.is_dirty = True
            raise

    async def _attempt(self, work: Callable[[], Awaitable[None]]) -> None:
        """What goes wrong with one thing keeps neither the others from being done nor the mount."""
        try:
            await work()
        except Busy:
            log.debug("put off: the store is busy")
        except Unhealthy as error:
            log.debug("put off: %s", error)
        except MailfsError as error:
            log.warning("%s", error)
        except Exception:  # as in the handlers
            log.exception("%s failed", work.__name__)
