"""Serve a mount until it is unmounted: session, signals, timers, and an orderly end.

SIGTERM and SIGINT unmount lazily, serve who still has files open for GRACE_S, and end; a second one ends at once. SIGUSR2
writes this process's view of itself to the log, as one line of JSON. After a crash the mount point stays dead and is
never an empty directory: a synchroniser would take that for an emptied account.
"""

import contextlib
import json
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import trio

from mailfs.errors import Busy, MailfsError, MountError, StoreError
from mailfs.fuse.changes import Blocking
from mailfs.fuse.drain import Drain, in_thread
from mailfs.fuse.mounts import run_fusermount, write_record
from mailfs.fuse.notify import Notifier
from mailfs.fuse.operations import Operations
from mailfs.store.store import Store
from mailfs.views.tree import Tree

log = logging.getLogger(__name__)

# Handlers that wait run beside others; more than this many at once wait for each other.
_MAX_TASKS = 32
TICK_S = 1.0
# A flag change that nobody fsyncs survives power loss after at most this.
SYNC_S = 3.0
GRACE_S = 5.0
# So long the timer takes in files that waited, before it looks after other things.
TAKE_IN_S = 1.0


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount. `ready_fd` is closed after one byte when the mount can be used; `options` go to libfuse."""

    mountpoint: Path
    options: tuple[str, ...] = ()
    is_drained: bool = True
    ready_fd: int | None = None


class Session:
    """One mount from init to close."""

    def __init__(self, store: Store, options: MountOptions) -> None:
        self._store = store
        self._options = options
        self._tree = self._make_tree()
        for name, problem in self._tree.problems.items():
            log.warning("the search %s is not shown: %s", name, problem)
        self._notifier = Notifier()
        self._drain: Drain | None = None
        blocking: Blocking = in_thread
        if options.is_drained:
            self._drain = Drain()
            self._drain.enable()
            blocking = self._drain.blocking
        self._operations = Operations(self._tree, self._notifier, blocking)
        self._operations.ordinary.find_waiting()

    def run(self) -> None:
        """Mount, serve, and return when unmounted. Raises MountError."""
        record = write_record(self._store.layout, self._options.mountpoint)
        try:
            try:
                self._init()
            except MountError:
                self._keep_states()
                raise
            try:
                trio.run(self._serve)
            except BaseException:
                log.error("the mount at %s is dead now", self._options.mountpoint)
                raise
            self._close()
        finally:
            record.unlink(missing_ok=True)

    def _init(self) -> None:
        fuse_options = {
            f"fsname={_escape(str(self._store.layout.root))}",
            "subtype=mailfs",
            *self._options.options,
        }
        if "allow_other" in fuse_options:
            fuse_options.add("default_permissions")
        try:
            pyfuse3.init(self._operations, str(self._options.mountpoint), fuse_options)
        except (RuntimeError, OSError) as error:
            hint = "are /dev/fuse and the mount point yours to use?"
            if self._options.options:
                hint = f"does FUSE know the options {','.join(self._options.options)}?"
            raise MountError(
                f"cannot mount at {self._options.mountpoint}: {error} ({hint} "
                f"fusermount3 may have said more in {self._store.layout.root / 'mount.log'})"
            ) from error

    async def _serve(self) -> None:
        self._notifier.start()
        # Before the first client: what a killed mount left must not come back after a client has removed it.
        await self._operations.ordinary.take_in_waiting(TAKE_IN_S)
        async with trio.open_nursery() as nursery:
            await nursery.start(self._handle_signals)
            nursery.start_soon(self._tick)
            self._report_ready()
            await pyfuse3.main(1, _MAX_TASKS)
            nursery.cancel_scope.cancel()
        # Closes that were still on their way: nobody has these files open any more.
        self._operations.ordinary.find_waiting()
        await self._operations.ordinary.take_in_waiting(GRACE_S)

    def _report_ready(self) -> None:
        log.info("mounted at %s", self._options.mountpoint)
        if self._options.ready_fd is not None:
            # Who started us may be gone (^C): a mount that serves is better than a dead one.
            with contextlib.suppress(BrokenPipeError):
                os.write(self._options.ready_fd, b"+")
            os.close(self._options.ready_fd)

    async def _handle_signals(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        ending = False
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGUSR2) as signals:
            task_status.started()
            async with trio.open_nursery() as nursery:
                async for number in signals:
                    if number == signal.SIGUSR2:
                        log.warning("status %s", json.dumps(self._status()))
                    elif ending:
                        pyfuse3.terminate()
                    else:
                        ending = True
                        nursery.start_soon(self._unmount)

    async def _unmount(self) -> None:
        try:
            await trio.to_thread.run_sync(
                lambda: run_fusermount(self._options.mountpoint, lazy=True)
            )
        except MountError as error:
            log.warning("%s", error)
        await trio.sleep(GRACE_S)
        pyfuse3.terminate()

    async def _tick(self) -> None:
        synced_s = trio.current_time()
        while True:
            await trio.sleep(TICK_S)
            if self._drain is not None:
                self._drain.tick()
            changes = self._operations.changes
            await self._attempt(changes.tick)
            await self._attempt(changes.forget_stale_names)
            await self._attempt(changes.settle_letters)
            await self._attempt(changes.evaluate_again)
            await self._attempt(self._take_in)
            if changes.is_dirty and trio.current_time() - synced_s >= SYNC_S:
                synced_s = trio.current_time()
                changes.is_dirty = False
                await self._attempt(self._sync)

    async def _attempt(self, work: Callable[[], Awaitable[None]]) -> None:
        """One thing the timer does; what goes wrong with it keeps neither the others from being done nor the mount."""
        try:
            await work()
        except Busy:
            log.debug("the timer comes back to this: the store is busy")
        except MailfsError as error:
            log.warning("%s", error)
        except Exception:  # as in the handlers
            log.exception("the timer failed")

    async def _take_in(self) -> None:
        await self._operations.ordinary.take_in_waiting(TAKE_IN_S)

    async def _sync(self) -> None:
        try:
            await trio.to_thread.run_sync(self._store.writer.sync)
        except MailfsError:
            self._operations.changes.is_dirty = True
            raise

    def _status(self) -> dict[str, object]:
        handles = self._operations.handles
        return {
            "pid": os.getpid(),
            "mountpoint": str(self._options.mountpoint),
            "modseq": self._tree.modseq,
            "requests": dict(self._operations.counts),
            "open_messages": len(handles.messages),
            "open_directories": len(handles.directories),
            "views": {
                name: len(view.docids) for name, view in self._tree.views.items() if view.is_loaded
            },
        }

    def _make_tree(self) -> Tree:
        try:
            # In the transaction, so that nothing changes between the times kept and the tree that shows them.
            with self._store.writer.transaction("mount", durable=False) as transaction:
                return Tree(self._store, transaction.take_view_states())
        except (Busy, StoreError) as error:
            # A disk that is full can still be read.
            log.warning("the folders' times of the last mount are lost: %s", error)
            return Tree(self._store, {})

    def _keep_states(self) -> None:
        states, modseq = self._tree.view_states()
        try:
            with self._store.writer.transaction("unmount", durable=True) as transaction:
                transaction.put_view_states(states, modseq)
        except MailfsError as error:
            log.warning("the folders' times are not kept for the next mount: %s", error)

    def _close(self) -> None:
        self._keep_states()
        if self._notifier.stop(GRACE_S):
            pyfuse3.close(unmount=True)
        log.info("unmounted")


def _escape(text: str) -> str:
    """libfuse cuts options at commas and reads backslashes as escapes."""
    return text.replace("\\", "\\\\").replace(",", "\\,")
