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
from contextlib import closing, contextmanager
from pathlib import Path

import apsw

from mailfs.errors import StoreError
from mailfs.store.database import open_writer, set_durable, translated
from mailfs.store.layout import Layout
from mailfs.store.lock import WriterLock
from mailfs.store.packs import PackReader
from mailfs.store.transaction import Transaction

# How long a person waits before an error is better than patience.
DEFAULT_DEADLINE_S = 10.0


class Writer:
    """Write transactions, one at a time in all processes. May be used by several threads."""

    def __init__(self, layout: Layout, packs: PackReader) -> None:
        self._layout = layout
        self._packs = packs
        self._lock = WriterLock(layout)
        self._connection: apsw.Connection | None = None
        self._must_checkpoint = False

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
        self, purpose: str, *, durable: bool, deadline_s: float = DEFAULT_DEADLINE_S
    ) -> Iterator[Transaction]:
        """A write transaction, committed when the block ends. Raises Busy, StoreFull, StoreError."""
        with self._lock.hold(purpose, deadline_s), translated(self._layout.index):
            if self._connection is None:
                self._connection = open_writer(self._layout.index)
            connection = self._connection
            set_durable(connection, durable=durable)
            connection.execute("BEGIN IMMEDIATE")
            transaction = None
            try:
                transaction = Transaction(connection, self._layout, self._packs, durable)
                yield transaction
                transaction.commit()
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if transaction is not None and not transaction.is_committed():
                    transaction.take_back_packs()
                raise
            finally:
                if transaction is not None:
                    transaction.close()

    def sync(self) -> None:
        """Make every commit so far survive power loss. Raises StoreError, and after that only a checkpoint will do."""
        if self._must_checkpoint:
            self._checkpoint()
            return
        try:
            self._sync_wal()
        except StoreError:
            # A second fsync would succeed without having written (the kernel marks lost pages clean). What
            # the WAL holds is still to be read, so the next try writes it to the index itself.
            self._must_checkpoint = True
            raise

    def _sync_wal(self) -> None:
        """fsync by name: SQLite holds its locks on the -shm file, so closing this descriptor drops none."""
        wal = Path(f"{self._layout.index}-wal")
        try:
            fd = os.open(wal, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # checkpointed and removed by the last to close: already in the index, and synced
        try:
            os.fsync(fd)
        except OSError as error:
            raise StoreError(f"cannot sync {wal}: {error.strerror}") from error
        finally:
            os.close(fd)

    def _checkpoint(self) -> None:
        with (
            self._lock.hold("checkpoint", DEFAULT_DEADLINE_S),
            translated(self._layout.index),
            closing(open_writer(self._layout.index)) as connection,
        ):
            frames, moved = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_FULL)
        if moved < frames:
            raise StoreError(f"the index {self._layout.index} could not be written whole")
        self._must_checkpoint = False
