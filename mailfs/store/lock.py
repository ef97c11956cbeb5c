"""The writer lock: flock(2) on STORE/lock, with a deadline and an owner that an error can name.

The kernel drops the lock when its holder dies, so there are no stale locks. Waiting is fair because a
waiter first takes the *gate*, an flock on the store's folder: a bulk writer that releases between two
slices cannot take the lock again before the one who stands at the gate has had it.
The files are opened for each acquisition and unlocked explicitly, so that a forked child never holds a lock it does not
know of.

Who holds it is written into the file when it is taken, and crossed out before it is let go: what stands there is the holder,
unless that process has died, which its number and the time it was started tell.
"""

import fcntl
import functools
import json
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mailfs.errors import BackPressure, Busy, DeadlinePassed, storage_error
from mailfs.store.layout import Layout

# How long a person waits before an error is better than patience.
DEFAULT_DEADLINE_S = 10.0
# Polling, because flock(2) itself has no deadline. The first tries are close together: a change of
# flags holds the lock for less than a millisecond.
_FIRST_WAIT_S = 0.0005
_LONGEST_WAIT_S = 0.005
_LOOKED_AT_S = 0.1
# A record of this length is written over the one before without changing the file's size, which costs four times as much.
_RECORD_BYTES = 512


class Owner(NamedTuple):
    """The process that holds the lock. `since` is local time, for people. What is not known is 0 or ''."""

    pid: int
    command: str
    purpose: str
    since: str

    def __str__(self) -> str:
        if not self.pid:
            return "another process"
        known = (self.command, self.purpose, self.since and f"since {self.since}")
        return f"pid {self.pid} ({', '.join(filter(None, known))})"


@dataclass(slots=True)
class _Turn:
    """One acquisition, from its beginning. Times are of the monotonic clock; `held_s` is None until the lock is ours.

    `deadline_s` is what the caller has set, if anything.
    """

    purpose: str
    since_s: float
    deadline_s: float | None
    held_s: float | None = None
    has_waited: bool = False

    @property
    def patience_s(self) -> float:
        """How long it may take, from its beginning."""
        return DEFAULT_DEADLINE_S if self.deadline_s is None else max(self.deadline_s, 0.0)

    def too_late(self, reason: str) -> Busy:
        """What to raise when it has taken so long."""
        kind = BackPressure if self.deadline_s is None else DeadlinePassed
        return kind(f"{reason}; waited {round(self.patience_s, 1):g} s: try again")


class Use(NamedTuple):
    """Who waits for the lock, or holds it, in this process, and for how long (s)."""

    purpose: str
    for_s: float


@dataclass(frozen=True, slots=True)
class LockState:
    """One WriterLock: what this process does with it now, and counts since it began.

    `waits` are acquisitions that did not get it at once, the ones given up included; a try without a deadline is no wait.
    """

    held: Use | None
    waiting: tuple[Use, ...]
    acquisitions: int
    waits: int
    given_up: int
    waited_s: float
    longest_wait_s: float


# Of this process, for whoever is asked by a signal what it waits for.
_locks: "weakref.WeakSet[WriterLock]" = weakref.WeakSet()


class WriterLock:
    """One process's door to the lock. Threads of the process wait for each other here too."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.lock
        self._gate_path = layout.root
        self._within_process = threading.Lock()
        # The thread that is through the door: it holds the lock, or waits for other processes.
        self._turn: _Turn | None = None
        # Those that wait for it.
        self._queue: dict[int, _Turn] = {}
        self._counting = threading.Lock()
        self._acquisitions = self._waits = self._given_up = 0
        self._waited_s = self._longest_wait_s = 0.0
        _locks.add(self)

    @contextmanager
    def hold(self, purpose: str, deadline_s: float | None = None) -> Iterator[None]:
        """Hold the lock. Raises DeadlinePassed, naming the holder, when it is not free within `deadline_s` seconds.

        Without a deadline BackPressure after DEFAULT_DEADLINE_S. Raises StoreError where the file cannot be opened.
        """
        turn = _Turn(purpose, time.monotonic(), deadline_s)
        self._enter(turn)
        try:
            fd = _open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
            try:
                self._acquire(fd, turn)
                # Without a name in it a lock is one all the same.
                with suppress(OSError):
                    write_owner(fd, purpose)
                yield
            finally:
                if turn.held_s is not None:
                    cross_out(fd)
                # Closing is not enough: a child forked meanwhile has the same open file.
                fcntl.flock(fd, fcntl.LOCK_UN)
                os.close(fd)
        finally:
            self._turn = None
            self._within_process.release()

    def _enter(self, turn: _Turn) -> None:
        """Past the other threads of this process. Raises Busy."""
        if not self._within_process.acquire(blocking=False):
            turn.has_waited = True
            self._queue[id(turn)] = turn
            try:
                is_ours = self._within_process.acquire(timeout=turn.patience_s)
            finally:
                del self._queue[id(turn)]
            if not is_ours:
                self._count(turn)
                raise turn.too_late(self._describe_thread())
        self._turn = turn

    def _acquire(self, fd: int, turn: _Turn) -> None:
        """Past the other processes. Raises Busy."""
        # To the store itself a symbolic link may lead, as to the newest backup.
        gate = _open(self._gate_path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for waited_for in (gate, fd):
                if _flock_at_once(waited_for):
                    continue
                turn.has_waited = True
                if not flock_until(waited_for, turn.since_s + turn.patience_s):
                    self._count(turn)
                    raise turn.too_late(
                        f"the store is being written by {describe_owner(self._path)}"
                    )
        finally:
            os.close(gate)
        turn.held_s = time.monotonic()
        self._count(turn)

    def _count(self, turn: _Turn) -> None:
        with self._counting:
            self._acquisitions += turn.held_s is not None
            if not turn.has_waited or turn.patience_s <= 0:
                return
            waited_s = (turn.held_s or time.monotonic()) - turn.since_s
            self._waits += 1
            self._given_up += turn.held_s is None
            self._waited_s += waited_s
            self._longest_wait_s = max(self._longest_wait_s, waited_s)

    def _describe_thread(self) -> str:
        turn = self._turn
        if turn is None:
            return "another thread of this process is writing"
        if turn.held_s is None:
            return (
                f"another thread of this process ({turn.purpose}) waits for the store, which is being "
                f"written by {describe_owner(self._path)}"
            )
        return f"another thread of this process is writing ({turn.purpose})"

    @contextmanager
    def kept_idle(self) -> Iterator[bool]:
        """Whether no thread of this process holds the lock or waits for it; within the block none begins then."""
        is_idle = self._within_process.acquire(blocking=False)
        try:
            yield is_idle
        finally:
            if is_idle:
                self._within_process.release()

    def owner_or_none(self) -> Owner | None:
        """Who holds the lock now, this process included."""
        return owner_or_none(self._path)

    def describe_owner(self) -> str:
        """The same in words."""
        return describe_owner(self._path)

    def state(self) -> LockState:
        """A snapshot. Takes no lock: from any thread, and from a signal handler."""
        now_s = time.monotonic()
        turn = self._turn
        queue = [] if turn is None or turn.held_s is not None else [turn]
        queue += tuple(self._queue.values())
        held = None
        if turn is not None and turn.held_s is not None:
            held = Use(turn.purpose, now_s - turn.held_s)
        return LockState(
            held=held,
            waiting=tuple(Use(each.purpose, now_s - each.since_s) for each in queue),
            acquisitions=self._acquisitions,
            waits=self._waits,
            given_up=self._given_up,
            waited_s=self._waited_s,
            longest_wait_s=self._longest_wait_s,
        )


def locks_of_this_process() -> list[WriterLock]:
    """Those of the stores that are open."""
    return list(_locks)


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise storage_error(error, f"cannot open {path} to write the store") from error


def _flock_at_once(fd: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def flock_until(fd: int, give_up: float, kind: int = fcntl.LOCK_EX) -> bool:
    """flock(2), until `give_up` on the monotonic clock; whether it was had. Tried once at least."""
    wait_s = _FIRST_WAIT_S
    while not _flock_at_once(fd, kind):
        if time.monotonic() >= give_up:
            return False
        time.sleep(wait_s)
        wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
    return True


def write_owner(fd: int, purpose: str) -> None:
    """Say in a file that is locked who has locked it, for owner_or_none()."""
    pid = os.getpid()
    command, started = _identity(pid)
    owner = {
        "pid": pid,
        "command": command,
        "purpose": purpose,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "started": started,
    }
    os.pwrite(fd, json.dumps(owner).encode().ljust(_RECORD_BYTES - 1) + b"\n", 0)


def cross_out(fd: int) -> None:
    """Take the name of the owner away, before the lock is let go."""
    # A disk that is full does not matter: the block is there.
    with suppress(OSError):
        os.pwrite(fd, b"\n", 0)


@functools.lru_cache(maxsize=1)
def _identity(pid: int) -> tuple[str, int]:
    """Our command, and when we were started. Asked once; a forked child has another pid."""
    return command_of(pid), _start_of_or_none(pid) or 0


def command_of(pid: int) -> str:
    """The name of a process, by proc(5). Raises OSError of one that has ended."""
    return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()


def _start_of_or_none(pid: int) -> int | None:
    """When a process was started, in ticks since boot: field 22 of proc(5)'s stat. None of one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def owner_or_none(path: Path) -> Owner | None:
    """Who holds the lock of this path now; None when nobody does. Never one that held it before.

    Opened for reading, because a close after writing says that something was committed.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if _flock_at_once(fd, fcntl.LOCK_SH):
            return None
        # The one before has crossed itself out, or is dead.
        record = json.loads(os.pread(fd, _RECORD_BYTES, 0))
        if _start_of_or_none(record["pid"]) == record["started"]:
            return Owner(record["pid"], record["command"], record["purpose"], record["since"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    finally:
        os.close(fd)
    # It has not written yet, or lives in another container.
    return _owner_by_kernel(path) or Owner(0, "", "", "")


def describe_owner(path: Path) -> str:
    """Who keeps others from writing, for an error message; `another process` where that cannot be told."""
    owner = owner_or_none(path)
    if owner is not None:
        return str(owner)
    owner = _owner_by_kernel(path.parent)
    if owner is None or owner.pid == os.getpid():
        return "another process"
    return f"{owner}, which is the next to write"


def _owner_by_kernel(path: Path) -> Owner | None:
    """Who holds an exclusive flock on a file or folder."""
    for pid in pids_by_kernel(path, "WRITE"):
        with suppress(OSError):
            return Owner(pid, command_of(pid), "", "")
    return None


def pids_by_kernel(path: Path, access: str) -> list[int]:
    """Who holds an flock on a file or folder, exclusive (WRITE) or shared (READ), by proc_locks(5).

    Empty also where the disk has other numbers there (btrfs), and 0 for a process of another container.
    """
    try:
        found = path.stat()
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return []
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    locks = (line.split() for line in lines if "->" not in line)  # these wait
    return [
        int(pid)
        for _, kind, _, how, pid, where, *_ in locks
        if (kind, how, where) == ("FLOCK", access, place)
    ]


def hold_for_writing(fd: int) -> None:
    """Say that a client may be writing a file: seen by every mount of the store until the descriptor is closed."""
    # Who looks whether it is held, holds it for some microseconds.
    with suppress(OSError):
        flock_until(fd, time.monotonic() + _LOOKED_AT_S, fcntl.LOCK_SH)


def is_held_for_writing(path: bytes) -> bool:
    """Whether some client of some mount may be writing a file. The kernel drops what a dead mount held."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False
