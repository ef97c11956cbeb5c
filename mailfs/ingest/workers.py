"""Reading and parsing in worker processes; results come back in the order asked.

Workers are forked before anything else has threads or an open database. Each has a pipe of its own and ends when
the other end closes, also when this process is killed. They ignore SIGINT: ^C is for the one who writes.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection
from types import TracebackType

from mailfs.errors import WorkersDied
from mailfs.ingest.importer import Labels, Prepared, prepare_ref
from mailfs.ingest.mailboxes import SourceProblem, SourceRef

BATCH_MESSAGES = 64
_BATCH_CHARS = 16 << 10
# One batch being worked on and one waiting: a worker is never idle.
_AHEAD = 2
# An answer is sent in pieces of about this size: the pipe makes a worker wait, so that 64 large attachments
# are never in memory at once.
_PIECE_BYTES = 4 << 20
_END_DEADLINE_S = 5.0
# A batch takes milliseconds; one that takes this long reads from a disk or a network that does not answer.
_ANSWER_DEADLINE_S = 600.0


class Workers:
    """A fixed number of processes that prepare messages. Use as a context manager."""

    def __init__(self, labels: Labels, processes: int | None = None) -> None:
        count = processes if processes is not None else os.cpu_count() or 1
        context = multiprocessing.get_context("fork")
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(max(count, 1)):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, ours, labels), name=f"parse-{number}", daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> "Workers":
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

    def prepare(
        self, refs: Iterator[SourceRef | SourceProblem]
    ) -> Iterator[list[Prepared | SourceProblem]]:
        """Prepare everything, in order, in lists. Raises WorkersDied."""
        turns = deque[Connection]()
        everyone = deque(self._pipes * _AHEAD)
        while True:
            while everyone:
                batch = _next_batch(refs)
                if not batch:
                    break
                pipe = everyone.popleft()
                pipe.send(batch)
                turns.append(pipe)
            if not turns:
                return
            pipe = turns.popleft()
            yield from _receive(pipe)
            everyone.append(pipe)


def _next_batch(refs: Iterator[SourceRef | SourceProblem]) -> list[SourceRef | SourceProblem]:
    """Short enough to fit a pipe's buffer with others: we must never wait for a worker that waits for us."""
    batch: list[SourceRef | SourceProblem] = []
    size = 0
    while len(batch) < BATCH_MESSAGES and size < _BATCH_CHARS:
        item = next(refs, None)
        if item is None:
            break
        batch.append(item)
        size += len(item.origin)
    return batch


def _receive(pipe: Connection) -> Iterator[list[Prepared | SourceProblem]]:
    is_last = False
    while not is_last:
        if not pipe.poll(_ANSWER_DEADLINE_S):
            raise WorkersDied(
                f"a process that reads mail has not answered for {_ANSWER_DEADLINE_S:g} s (a disk that "
                "hangs?); what was imported is safe: run the import again to go on"
            )
        try:
            piece, is_last = pipe.recv()
        except (EOFError, ConnectionResetError):
            raise WorkersDied(
                "a process that parses mail has died (out of memory?); what was imported is safe: "
                "run the import again to go on"
            ) from None
        yield piece


def _work(pipe: Connection, parents_end: Connection, labels: Labels) -> None:
    """A worker's life. Closes the parent's end, or it would never see that the parent has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parents_end.close()
    try:
        while True:
            _answer(pipe, pipe.recv(), labels)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)


def _answer(pipe: Connection, batch: list[SourceRef | SourceProblem], labels: Labels) -> None:
    piece: list[Prepared | SourceProblem] = []
    size_bytes = 0
    for item in batch:
        prepared = item if isinstance(item, SourceProblem) else prepare_ref(item, labels)
        piece.append(prepared)
        if isinstance(prepared, Prepared):
            size_bytes += prepared.new.record.stored
        if size_bytes >= _PIECE_BYTES:
            pipe.send((piece, False))
            piece, size_bytes = [], 0
    pipe.send((piece, True))
