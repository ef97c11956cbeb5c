"""Reading and parsing in worker processes; results come back in the order asked.

Workers are forked before anything else has threads or an open database. Each has a pipe of its own and ends when
the other end closes, also when this process is killed. They ignore SIGINT: ^C is for the one who writes.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Generic, Self, TypeVar

from mailfs.errors import WorkersDied
from mailfs.ingest.importer import Labels, Prepared, prepare_ref
from mailfs.ingest.mailboxes import SourceProblem, SourceRef
from mailfs.ingest.shared_dictionary import SharedDictionary
from mailfs.store.store import Store

BATCH_ITEMS = 64
_BATCH_CHARS = 16 << 10
# One batch being worked on and one waiting: a worker is never idle.
_AHEAD = 2
# An answer is sent in pieces of about this size: the pipe makes a worker wait, so that 64 large attachments
# are never in memory at once.
_PIECE_BYTES = 4 << 20
_END_DEADLINE_S = 5.0
# A batch takes milliseconds; one that takes this long reads from a disk or a network that does not answer.
_ANSWER_DEADLINE_S = 600.0

Item = TypeVar("Item")
Done = TypeVar("Done")


class Processes(Generic[Item, Done]):
    """A fixed number of processes that do one thing with each item. Use as a context manager."""

    def __init__(
        self,
        work: Callable[[Item], Done],
        *,
        item_chars: Callable[[Item], int],
        done_bytes: Callable[[Done], int],
        safe: str,
        processes: int | None = None,
    ) -> None:
        """`item_chars`, `done_bytes`: how much goes through the pipe. `safe`: what to tell a person when one dies."""
        count = processes if processes is not None else os.cpu_count() or 1
        context = multiprocessing.get_context("fork")
        self._item_chars = item_chars
        self._safe = safe
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(max(count, 1)):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work,
                args=(theirs, ours, work, done_bytes),
                name=f"parse-{number}",
                daemon=True,
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_END_DEADLINE_S if error is None else 0.1)
            if process.is_alive():
                process.kill()
                process.join(_END_DEADLINE_S)

    def prepare(self, items: Iterator[Item]) -> Iterator[list[Done]]:
        """Do everything, in order, in lists. Raises WorkersDied."""
        turns = deque[Connection]()
        everyone = deque(self._pipes * _AHEAD)
        while True:
            while everyone:
                batch = self._next_batch(items)
                if not batch:
                    break
                pipe = everyone.popleft()
                pipe.send(batch)
                turns.append(pipe)
            if not turns:
                return
            pipe = turns.popleft()
            yield from self._receive(pipe)
            everyone.append(pipe)

    def _next_batch(self, items: Iterator[Item]) -> list[Item]:
        """Short enough to fit a pipe's buffer with others: we must never wait for a worker that waits for us."""
        batch: list[Item] = []
        size = 0
        while len(batch) < BATCH_ITEMS and size < _BATCH_CHARS:
            item = next(items, None)
            if item is None:
                break
            batch.append(item)
            size += self._item_chars(item)
        return batch

    def _receive(self, pipe: Connection) -> Iterator[list[Done]]:
        is_last = False
        while not is_last:
            if not pipe.poll(_ANSWER_DEADLINE_S):
                raise WorkersDied(
                    f"a process that reads mail has not answered for {_ANSWER_DEADLINE_S:g} s (a disk that "
                    f"hangs?); {self._safe}"
                )
            try:
                piece, is_last = pipe.recv()
            except (EOFError, ConnectionResetError):
                raise WorkersDied(
                    f"a process that parses mail has died (out of memory?); {self._safe}"
                ) from None
            yield piece


class Workers(Processes["SourceRef | SourceProblem", "Prepared | SourceProblem"]):
    """Those of an import: from what is found in a source to what can be added."""

    def __init__(self, labels: Labels, processes: int | None = None) -> None:
        self._dictionary = SharedDictionary()
        super().__init__(
            partial(_prepare, labels, self._dictionary),
            item_chars=lambda item: len(item.origin),
            done_bytes=_stored_bytes,
            safe="what was imported is safe: run the import again to go on",
            processes=processes,
        )

    def prepare_for(
        self, store: Store, refs: Iterator[SourceRef | SourceProblem]
    ) -> Iterator[list[Prepared | SourceProblem]]:
        """As prepare(), with the dictionary that is the newest of a store at the time."""
        self._dictionary.put(store.newest_dictionary_or_none())
        for done in self.prepare(refs):
            yield done
            self._dictionary.put(store.newest_dictionary_or_none())


def _prepare(
    labels: Labels, dictionary: SharedDictionary, item: SourceRef | SourceProblem
) -> Prepared | SourceProblem:
    return item if isinstance(item, SourceProblem) else prepare_ref(item, labels, dictionary.get())


def _stored_bytes(done: Prepared | SourceProblem) -> int:
    return done.new.record.stored if isinstance(done, Prepared) else 0


def _work(
    pipe: Connection,
    parents_end: Connection,
    work: Callable[[Item], Done],
    done_bytes: Callable[[Done], int],
) -> None:
    """A worker's life. Closes the parent's end, or it would never see that the parent has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parents_end.close()
    try:
        while True:
            _answer(pipe, pipe.recv(), work, done_bytes)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)


def _answer(
    pipe: Connection,
    batch: list[Item],
    work: Callable[[Item], Done],
    done_bytes: Callable[[Done], int],
) -> None:
    piece: list[Done] = []
    size_bytes = 0
    for item in batch:
        done = work(item)
        piece.append(done)
        size_bytes += done_bytes(done)
        if size_bytes >= _PIECE_BYTES:
            pipe.send((piece, False))
            piece, size_bytes = [], 0
    pipe.send((piece, True))
