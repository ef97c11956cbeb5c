"""The only door for change: one write transaction under the writer lock.

    with writer.transaction("import", durable=True) as transaction:
        transaction.add(message)

Order of a durable transaction: records appended, pack synced, index committed and synced, lock dropped; when the
block is left without an exception everything in it survives power loss. A transaction that is not durable
survives the death of any process, and power loss after sync() or the next durable one. An exception
takes everything back, packs included. A transaction in which nothing changed takes no modseq.
"""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import apsw

from mailfs.errors import StoreError, StoreFailing, storage_error
from mailfs.store.database import (
    fit_wal,
    free_cache,
    open_writer,
    restart_wal,
    set_durable,
    store_error,
    translated,
)
from mailfs.store.health import Health
from mailfs.store.journal import Operation
from mailfs.store.layout import Layout
from mailfs.store.lock import WriterLock
from mailfs.store.packs import PackReader
from mailfs.store.transaction import Transaction

# Who has much to do lets go of the lock after this long, so that a flag changed meanwhile does not wait longer.
SLICE_S = 0.08


class Writer:
    """Write transactions, one at a time in all processes. May be used by several threads."""

    def __init__(self, layout: Layout, packs: PackReader) -> None:
        self._layout = layout
        self._packs = packs
        self._lock = WriterLock(layout)
        self.health = Health(layout)
        self._connection: apsw.Connection | None = None
        self._must_restart_wal = False

    @property
    def lock(self) -> WriterLock:
        """For those who want to know who writes and who waits."""
        return self._lock

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def transaction(
        self,
        purpose: str,
        *,
        durable: bool,
        deadline_s: float | None = None,
        operation: Operation | None = None,
    ) -> Iterator[Transaction]:
        """A write transaction, committed when the block ends.

        `purpose` is what others are told who wait meanwhile. In the journal all transactions of one `operation` are one;
        where none is given it is this process that acts, for this purpose. Raises Busy (DeadlinePassed, or BackPressure
        without a deadline), StoreFull, StoreReadOnly, StoreFailing, other StoreErrors, and Unhealthy at once while one
        of those is expected.
        """
        with (
            self.health.watch() as attempt,
            self._lock.hold(purpose, deadline_s),
            translated(self._layout.index),
        ):
            connection = self._connect(durable=durable)
            transaction = None
            try:
                connection.execute("BEGIN IMMEDIATE")
                transaction = Transaction(
                    connection,
                    self._layout,
                    self._packs,
                    durable,
                    operation or Operation(purpose),
                    partial(self.health.admit, attempt),
                )
                yield transaction
                transaction.commit()
            except BaseException as error:
                code = connection.system_errno
                self._take_back(connection, transaction, error)
                if isinstance(error, apsw.Error):
                    raise store_error(error, self._layout.index, code) from error
                raise
            finally:
                if transaction is not None:
                    transaction.close()
            attempt.has_written = transaction.has_written
            if durable and not transaction.has_written:
                # What it found in place is promised, too, and may be of a transaction that was not durable.
                self._sync_wal()

    def _connect(self, *, durable: bool) -> apsw.Connection:
        """The connection, ready for a transaction. The caller holds the lock."""
        if self._connection is None:
            self._connection = open_writer(self._layout.index)
        if self._must_restart_wal:
            try:
                self._restart_wal(self._connection)
            except apsw.BusyError:
                if durable:
                    raise
        set_durable(self._connection, durable=durable)
        fit_wal(self._connection, self.health.free_bytes_or_none())
        return self._connection

    def _take_back(
        self,
        connection: apsw.Connection,
        transaction: Transaction | None,
        error: BaseException,
    ) -> None:
        """The end of a transaction that failed. Raises nothing: it is `error` that is told.

        A commit that could not be synced is in the WAL all the same, and a crash could bring it back; so as long as the
        WAL has not been begun anew its messages keep their bytes.
        """
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if isinstance(error, apsw.IOError):
                self._must_restart_wal = True
                self._restart_wal(connection)
            if transaction is not None and not transaction.is_committed():
                with suppress(OSError, StoreError):  # what stays there was promised to nobody
                    transaction.take_back_packs()
        except apsw.Error:
            self.close()
        if isinstance(error, (apsw.IOError, apsw.ReadOnlyError, apsw.CorruptError)):
            # A connection that was opened while nothing could be written stays one for reading.
            self.close()

    def free_memory(self) -> int:
        """Forget the pages that are kept for the next transaction; about how many bytes that is. Nothing while one runs."""
        with self._lock.kept_idle() as is_idle:
            if not is_idle or self._connection is None:
                return 0
            return free_cache(self._connection)

    def sync(self) -> None:
        """Make every commit so far survive power loss.

        Raises StoreError, StoreFailing, and after that only a checkpoint will do; Unhealthy at once while it is expected.
        """
        with self.health.watch(only=StoreFailing) as attempt:
            if self._must_restart_wal:
                self._checkpoint()
            else:
                self._sync_wal()
            attempt.has_written = True

    def _sync_wal(self) -> None:
        """fsync by name: SQLite holds its locks on the -shm file, so closing this descriptor drops none."""
        wal = Path(f"{self._layout.index}-wal")
        try:
            fd = os.open(wal, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # checkpointed and removed by the last to close: already in the index, and synced
        except OSError as error:
            raise storage_error(error, f"cannot open {wal}") from error
        try:
            os.fsync(fd)
        except OSError as error:
            # A second fsync would succeed without having written (the kernel marks lost pages clean). What
            # the WAL holds is still to be read, so the next try writes it to the index itself.
            self._must_restart_wal = True
            raise storage_error(error, f"cannot sync {wal}") from error
        finally:
            os.close(fd)

    def _checkpoint(self) -> None:
        with (
            self._lock.hold("checkpoint"),
            translated(self._layout.index),
            closing(open_writer(self._layout.index)) as connection,
        ):
            self._restart_wal(connection)

    def _restart_wal(self, connection: apsw.Connection) -> None:
        """Write the index itself and begin the WAL anew: behind a frame that was lost no later one would be found.

        The caller holds the lock. Raises apsw.Error, BusyError when somebody goes on reading.
        """
        restart_wal(connection)
        self._must_restart_wal = False
