"""Which process a client's thread belongs to, by proc(5): for who asks, and for the journal.

The kernel gives a thread's number with most requests. A client may have ended before its request is answered, and close(2)
is told us later still; so who was looked at is remembered for a while.
"""

import os
import time
from contextlib import suppress
from typing import NamedTuple

from mailfs.store.journal import Actor

# A number may be another process's after it: thirty thousand later at the least.
_KNOWN_S = 1.0
_MOST_KNOWN = 1000
_BYTES = 4096

# What is said of a process that has gone, while somebody else, such as its child, goes on.
ENDED = "ended"


class _Known(NamedTuple):
    actor: Actor
    until_s: float


class Clients:
    """Those whose requests changed something lately. Only for the thread that serves requests."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}

    def actor_or_none(self, thread: int) -> Actor | None:
        """The process of a thread; None for 0. Some 20 us when it was not asked for within a second."""
        if not thread:
            return None
        now_s = time.monotonic()
        known = self._known.get(thread)
        if known is not None and now_s < known.until_s:
            return known.actor
        actor = _actor_or_none(thread)
        if actor is None:
            # It has ended. Its number, at least, or what it was.
            return Actor(thread, ENDED) if known is None else known.actor
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[thread] = _Known(actor, now_s + _KNOWN_S)
        return actor


def _actor_or_none(thread: int) -> Actor | None:
    pid = pid_of_or_none(thread)
    command = None if pid is None else command_of_or_none(pid)
    return None if pid is None or command is None else Actor(pid, command)


def pid_of_or_none(thread: int) -> int | None:
    """The process of a thread; None of one that has ended, or that another container hides."""
    for line in _read(thread, "status").splitlines():
        if line.startswith(b"Tgid:"):
            return int(line.split()[1])
    return None


def command_of_or_none(pid: int) -> str | None:
    """The name of a process; None of one that has ended."""
    return _read(pid, "comm").decode(errors="replace").strip() or None


def _read(pid: int, name: str) -> bytes:
    """With three system calls: pathlib takes four times as long."""
    with suppress(OSError):
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, _BYTES)
        finally:
            os.close(fd)
    return b""
