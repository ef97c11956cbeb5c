"""The writer lock: flock(2) on STORE/lock, with a deadline and an owner that an error can name.

The kernel drops the lock when its holder dies, so there are no stale locks. Waiting is fair because a
waiter first takes the *gate*, an flock on the store's folder: a bulk writer that releases between two
slices cannot take the lock again before the one who stands at the gate has had it.
The files are opened for each acquisition and unlocked explicitly, so that a forked child never holds a lock it does not
know of.
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mailfs.errors import Busy
from mailfs.store.layout import Layout

# Polling, because flock(2) itself has no deadline. The first tries are close together: a change of
# flags holds the lock for less than a millisecond.
_FIRST_WAIT_S = 0.0005
_LONGEST_WAIT_S = 0.005
_LOOKED_AT_S = 0.1


class WriterLock:
    """One process's door to the lock. Threads of the process wait for each other here too."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.lock
        self._gate_path = layout.root
        self._within_process = threading.Lock()

    @contextmanager
    def hold(self, purpose: str, deadline_s: float) -> Iterator[None]:
        """Hold the lock. Raises Busy, naming the holder, when it is not free within `deadline_s` seconds."""
        give_up = time.monotonic() + deadline_s
        if not self._within_process.acquire(timeout=max(deadline_s, 0)):
            raise Busy(f"another thread of this process is writing; waited {deadline_s:g} s")
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                self._acquire(fd, give_up, deadline_s)
                _write_owner(fd, purpose)
                yield
            finally:
                # Closing is not enough: a child forked meanwhile has the same open file.
                fcntl.flock(fd, fcntl.LOCK_UN)
                os.close(fd)
        finally:
            self._within_process.release()

    def _acquire(self, fd: int, give_up: float, deadline_s: float) -> None:
        gate = os.open(self._gate_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for waited_for in (gate, fd):
                if not _flock_until(waited_for, give_up):
                    raise Busy(
                        f"the store is being written by {describe_owner(self._path)}; "
                        f"waited {deadline_s:g} s: try again"
                    )
        finally:
            os.close(gate)


def _flock_until(fd: int, give_up: float, kind: int = fcntl.LOCK_EX) -> bool:
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up:
                return False
            time.sleep(wait_s)
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
        else:
            return True


def _write_owner(fd: int, purpose: str) -> None:
    owner = {
        "pid": os.getpid(),
        "command": Path("/proc/self/comm").read_text(errors="replace").strip(),
        "purpose": purpose,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    text = json.dumps(owner).encode() + b"\n"
    os.pwrite(fd, text, 0)
    os.ftruncate(fd, len(text))


def describe_owner(path: Path) -> str:
    """Who wrote the lock file last, for an error message; `another process` where it cannot be read."""
    try:
        owner = json.loads(path.read_bytes())
        return (
            f"pid {owner['pid']} ({owner['command']}, {owner['purpose']}, since {owner['since']})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def hold_for_writing(fd: int) -> None:
    """Say that a client may be writing a file: seen by every mount of the store until the descriptor is closed."""
    # Who looks whether it is held, holds it for some microseconds.
    with suppress(OSError):
        _flock_until(fd, time.monotonic() + _LOOKED_AT_S, fcntl.LOCK_SH)


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
