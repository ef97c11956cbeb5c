"""Serve a mount until it is unmounted: session, signals, timers, and an orderly end.

SIGTERM and SIGINT unmount lazily, serve who still has files open for GRACE_S, and end; a second one ends at once. SIGHUP
reads the configuration again; where it means that the terminal has gone, it is as SIGTERM. SIGUSR2
writes this process's view of itself to the log, as one line of JSON. After a crash the mount point stays dead and is
never an empty directory: a synchroniser would take that for an emptied account.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import time
from pathlib import Path
from typing import NamedTuple

import pyfuse3
import trio

from mailfs.errors import Busy, ConfigError, MailfsError, MountError, StoreError
from mailfs.fuse.drain import Drain, in_thread
from mailfs.fuse.duties import TAKE_IN_S, Duties
from mailfs.fuse.mounts import find_mounted_or_none, record_path, run_fusermount, write_record
from mailfs.fuse.operations import Operations
from mailfs.fuse.requests import MAX_COMMITS, Requests
from mailfs.fuse.status import DaemonStatus, daemon_status
from mailfs.fuse.systemd import ServiceManager
from mailfs.store.config import Config, read_config
from mailfs.store.store import Store
from mailfs.views.tree import Tree

log = logging.getLogger(__name__)
# Said because somebody asked, whatever the configuration says of the rest.
status_log = logging.getLogger(f"{__name__}.status")
status_log.setLevel(logging.INFO)

# Handlers that wait run beside others, and one must be left to read on. A worker's buffer is 1 MiB of address space,
# of which it uses as much as the requests it has read.
_MAX_TASKS = 2 * MAX_COMMITS
GRACE_S = 5.0


class MountOptions(NamedTuple):
    """How to mount. `ready_fd` is closed after one byte when the mount can be used; `options` go to libfuse.

    `notify_socket` is where a service manager listens, see systemd.py. `terminal_fd` is the terminal the mount ends with.
    `maintain_command` starts maintenance, see upkeep.py. `log_path` is where the log is kept short, see logfile.py.
    """

    mountpoint: Path
    options: tuple[str, ...] = ()
    is_drained: bool = True
    ready_fd: int | None = None
    config: Config = Config()
    notify_socket: str | None = None
    terminal_fd: int | None = None
    maintain_command: tuple[str, ...] = ()
    log_path: Path | None = None


class Session:
    """One mount from init to close."""

    def __init__(self, store: Store, options: MountOptions) -> None:
        self._store = store
        self._options = options
        # Each file that a client has open beside the messages takes one: all that the system grants.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._tree = self._make_tree()
        for name, problem in self._tree.problems.items():
            log.warning("the search %s is not shown: %s", name, problem)
        self._since_s = time.time()
        self._is_cut_off = False
        lock_path = store.layout.lock
        if options.is_drained:
            drain = Drain()
            drain.enable()
            let_another_read = drain.let_another_read
            requests = Requests(drain.blocking, let_another_read, lock_path)
        else:
            let_another_read = _nothing
            requests = Requests(in_thread, let_another_read, lock_path)
        self._operations = Operations(self._tree, requests, self._status)
        self._duties = Duties(
            store,
            self._operations,
            options.mountpoint,
            let_another_read,
            options.maintain_command,
            options.log_path,
        )
        self._operations.ordinary.find_waiting()
        self._manager = ServiceManager(options.notify_socket)
        self._apply(options.config)

    def _apply(self, config: Config) -> None:
        self._config = config
        self._duties.apply(config)

    def _reload(self) -> None:
        """Read the configuration again; one that cannot be used changes nothing."""
        self._manager.reloading()
        status = self._serving
        try:
            config = read_config(self._store.layout)
        except ConfigError as error:
            log.error("the configuration stays as it was: %s", error)
            self._operations.changes.problems.add("SIGHUP", str(error))
            status = f"{status}; the configuration stays as it was: {error}"
        else:
            self._apply(config)
            logging.getLogger().setLevel(config.log_level.upper())
            log.info("the configuration is: %s", config)
        self._manager.ready(status)

    @property
    def _serving(self) -> str:
        return f"serving {self._options.mountpoint}"

    def run(self) -> None:
        """Mount, serve, and return when unmounted. Raises MountError."""
        record = self._write_record()
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
            with contextlib.suppress(OSError):  # the next to look sees that its process has ended
                record.unlink(missing_ok=True)

    def _write_record(self) -> Path:
        try:
            return write_record(self._store.layout, self._options.mountpoint)
        except OSError as error:
            # Nothing can be written there, and all can be read.
            log.warning("`umount` will not wait for this mount: %s", error.strerror)
            return record_path(self._store.layout, os.getpid())

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
        # Before the first client: what a killed mount left must not come back after a client has removed it.
        await self._operations.ordinary.take_in_waiting(TAKE_IN_S)
        async with trio.open_nursery() as nursery:
            await nursery.start(self._handle_signals)
            duties = self._duties
            upkeep = (duties.upkeep.maintain, duties.upkeep.watch_memory)
            for duty in (duties.follow, duties.tell, duties.load, duties.tick, *upkeep):
                nursery.start_soon(duty)
            self._report_ready()
            await pyfuse3.main(1, _MAX_TASKS)
            nursery.cancel_scope.cancel()
        self._manager.stopping(f"unmounted {self._options.mountpoint}")
        if not self._is_cut_off and find_mounted_or_none(self._options.mountpoint) is None:
            # Closes that were still on their way: a mount with open files does not go.
            self._operations.ordinary.close_all()
        self._operations.ordinary.find_waiting(is_end=True)
        await self._operations.ordinary.take_in_waiting(GRACE_S)

    def _report_ready(self) -> None:
        log.info("mounted at %s", self._options.mountpoint)
        if self._options.ready_fd is not None:
            # Who started us may be gone (^C): a mount that serves is better than a dead one.
            with contextlib.suppress(BrokenPipeError):
                os.write(self._options.ready_fd, b"+")
            os.close(self._options.ready_fd)
        self._manager.ready(self._serving)

    async def _handle_signals(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        ending = False
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
        with trio.open_signal_receiver(*numbers) as signals:
            task_status.started()
            async with trio.open_nursery() as nursery:
                async for number in signals:
                    if number == signal.SIGUSR2:
                        status_log.info("status %s", json.dumps(self._status().as_dict()))
                    elif number == signal.SIGHUP and not self._has_lost_terminal():
                        self._reload()
                    elif not ending:
                        ending = True
                        nursery.start_soon(self._unmount)
                    elif number != signal.SIGHUP:
                        self._terminate()

    def _has_lost_terminal(self) -> bool:
        """Whether the terminal has gone; what is logged from then on is for nobody, and is no error."""
        terminal_fd = self._options.terminal_fd
        if terminal_fd is None or os.isatty(terminal_fd):
            return False
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), terminal_fd)
        return True

    async def _unmount(self) -> None:
        try:
            await trio.to_thread.run_sync(
                lambda: run_fusermount(self._options.mountpoint, lazy=True)
            )
        except MountError as error:
            log.warning("%s", error)
        await trio.sleep(GRACE_S)
        self._terminate()

    def _terminate(self) -> None:
        """End although clients may still have files open."""
        self._is_cut_off = True
        pyfuse3.terminate()

    def _status(self) -> DaemonStatus:
        return daemon_status(
            self._operations,
            self._duties.upkeep,
            self._options.mountpoint,
            self._since_s,
            self._operations.echo.counts,
        )

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
        if self._operations.echo.has_ended(GRACE_S):
            pyfuse3.close(unmount=True)
        log.info("unmounted")


def _nothing() -> None:
    """pyfuse3's own loop wakes its workers itself."""


def _escape(text: str) -> str:
    """libfuse cuts options at commas and reads backslashes as escapes."""
    return text.replace("\\", "\\\\").replace(",", "\\,")
