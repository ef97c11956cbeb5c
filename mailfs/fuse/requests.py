"""Requests of clients: how many of each kind came, and which wait now, whose, since when, and for what.

Between two awaits a handler is alone, so what `name` and `arguments` say is true until it waits; a wait puts them aside,
and brings them back when it is over. Only who waits costs more than that.

A handler waits through here and in no other way. Each kind of wait has its own threads: changes that wait for the
writer lock, or a disk that is slow, take none from those who open a view. What waits holds one of pyfuse3's workers, of
which mount.py allows twice as many as changes may wait here; so there is always one that reads the next request.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol, TypeVar, TypeVarTuple

import trio
from pyfuse3 import RequestContext

from mailfs.errors import Busy
from mailfs.fuse.clients import Clients
from mailfs.ids import Fh
from mailfs.store.journal import Actor
from mailfs.store.lock import describe_owner

# Changes that may wait for the writer lock at once; the next is told to try again. They are committed one after the other
# in any case, but parsed and compressed in these threads.
MAX_COMMITS = 500
_COMMIT_THREADS = 4
# A disk takes some fsyncs at once; more wait for each other.
_SYNC_THREADS = 8
# Searches keep processors busy.
_SEARCH_THREADS = 8

R = TypeVar("R")
Arguments = TypeVarTuple("Arguments")


class Blocking(Protocol):
    """How a handler waits for something slow: Drain.blocking or drain.in_thread."""

    async def __call__(
        self,
        function: Callable[[*Arguments], R],
        *arguments: *Arguments,
        limiter: trio.CapacityLimiter | None = None,
        abandon_on_cancel: bool = False,
    ) -> R: ...


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that waits. `thread` is the client's, 0 where the kernel does not say; `fh` is what the request is about.

    `name` is the handler's, or `timer`; `since_s` is of the monotonic clock.
    """

    name: str
    thread: int
    fh: Fh | None
    since_s: float
    what: str


class Requests:
    """All of one mount. Only for the thread that serves requests."""

    def __init__(
        self, in_thread: Blocking, let_another_read: Callable[[], None], lock_path: Path
    ) -> None:
        self.counts: Counter[str] = Counter()
        # Set by the wrapper of the handlers.
        self.name = ""
        self.arguments: tuple[object, ...] = ()
        self.in_thread = in_thread
        self._let_another_read = let_another_read
        self._lock_path = lock_path
        self._waiting: dict[int, Waiting] = {}
        self._numbers = count()
        self._commits = trio.CapacityLimiter(_COMMIT_THREADS)
        self._syncs = trio.CapacityLimiter(_SYNC_THREADS)
        self._searches = trio.CapacityLimiter(_SEARCH_THREADS)
        self._committing = 0
        self._clients = Clients()

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        """Those that wait now, the oldest first."""
        return tuple(self._waiting.values())

    @property
    def thread(self) -> int:
        """The client's thread whose request is being answered; 0 where the kernel does not say."""
        context = self.arguments[-1] if self.arguments else None
        return context.pid if isinstance(context, RequestContext) else 0

    def actor_or_none(self) -> Actor | None:
        """The process whose request is being answered; None where nobody asked, or the kernel does not say who."""
        return self.actor_of_or_none(self.thread)

    def actor_of_or_none(self, thread: int) -> Actor | None:
        """The process of a client's thread, also for some time after it has ended."""
        return self._clients.actor_or_none(thread)

    @contextmanager
    def _noted(self, what: str) -> Iterator[None]:
        name, arguments = self.name, self.arguments
        thread = self.thread
        fh = None
        if arguments and not isinstance(arguments[-1], RequestContext):
            # Then it is about something open, and says so first.
            fh = Fh(arguments[0]) if isinstance(arguments[0], int) else None
        number = next(self._numbers)
        self._waiting[number] = Waiting(name or "timer", thread, fh, time.monotonic(), what)
        self.name, self.arguments = "", ()
        try:
            yield
        finally:
            del self._waiting[number]
            self.name, self.arguments = name, arguments

    async def blocking(
        self, function: Callable[[*Arguments], R], *arguments: *Arguments, what: str = ""
    ) -> R:
        """Run something slow in a thread while others are served."""
        with self._noted(what or function.__name__):
            return await self.in_thread(function, *arguments, limiter=self._searches)

    async def sync(self, function: Callable[[*Arguments], R], *arguments: *Arguments) -> R:
        """Run something in a thread that waits for the disk below the store."""
        with self._noted("the disk"):
            return await self.in_thread(function, *arguments, limiter=self._syncs)

    async def commit(self, work: Callable[[float], R], deadline_s: float) -> R:
        """Run a change in a thread; `work` is told how many seconds are left of the deadline, which counts from now.

        Raises Busy when the writer lock is not free in time, or too many changes wait for it already.
        """
        give_up = time.monotonic() + deadline_s
        if self._committing >= MAX_COMMITS:
            raise Busy(f"{MAX_COMMITS} changes wait already; {self._describe()}: try again")
        self._committing += 1
        try:
            with self._noted("the writer lock"), trio.move_on_after(deadline_s):
                return await self.in_thread(
                    lambda: self._work(work, give_up, deadline_s), limiter=self._commits
                )
        finally:
            self._committing -= 1
        raise self._too_late(deadline_s)

    def _work(self, work: Callable[[float], R], give_up: float, deadline_s: float) -> R:
        left_s = give_up - time.monotonic()
        if left_s <= 0:
            raise self._too_late(deadline_s)
        return work(left_s)

    def _too_late(self, deadline_s: float) -> Busy:
        return Busy(
            f"other changes came first; {self._describe()}; waited {deadline_s:g} s: try again"
        )

    def _describe(self) -> str:
        return f"the store is being written by {describe_owner(self._lock_path)}"

    async def until(self, event: trio.Event, deadline_s: float) -> bool:
        """Wait for what another request does; whether it came in time."""
        self._let_another_read()
        with self._noted("another request"), trio.move_on_after(deadline_s):
            await event.wait()
        return event.is_set()
