"""Whether the store can be written just now: a latch that sheds writes while its disk is full, read-only or failing.

A write that fails for one of these trips it. For QUIET_S further writes are refused at once, with the errno of that failure and
without a system call; then one is let through to see. If that works the latch lets go, else it holds on for twice as
long, up to LONGEST_QUIET_S. Reading is never asked. After KumoMTA's spool (crates/spool) and the shedding latch of its readiness checks.

There are two of them. Additions need room, so before the disk is full they are refused: below `reserve` bytes free, and
when one has failed. What frees room or takes hardly any (flags, keywords, removal, expire, compact) goes on until it fails itself.

One object a process and store, for any thread. What it says is for anybody: no paths, nothing of any mail.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import ENOSPC
from typing import NamedTuple

from mailfs.errors import (
    ConfigError,
    StoreError,
    StoreFailing,
    StoreFull,
    StoreReadOnly,
    Unhealthy,
)
from mailfs.store.config import Config, config_path, read_config
from mailfs.store.layout import Layout
from mailfs.store.sizes import size_text

# Long enough that a client which tries again in a loop costs nothing, short enough that nobody waits for a remount.
QUIET_S = 5.0
LONGEST_QUIET_S = 60.0
# A disk of 100 MB would be useless with 16 MiB kept free: never more than this part of it.
_LARGEST_RESERVE = 1 / 16
_LOOK_S = 1.0

_WORDS: dict[type[StoreError], str] = {
    StoreFull: "the disk is full",
    StoreReadOnly: "the file system is read-only",
    StoreFailing: "the disk fails",
}


class HealthState(NamedTuple):
    """For people. `reason` is None while all is well; `sheds` is '', 'additions' or 'changes' (all of them).

    `since_s` is in seconds since 1970, `next_try_s` seconds from now, 0 when the next write is the try; None where nothing
    is waited for. Sizes in bytes, -1 where the file system does not say.
    """

    reason: str | None
    sheds: str
    since_s: float | None
    next_try_s: float | None
    free_bytes: int
    reserve_bytes: int


def health_text(state: HealthState) -> str:
    """For people: one line."""
    if state.reason is None:
        words = ["healthy"]
    else:
        since = "" if state.since_s is None else f" since {_local_time(state.since_s)}"
        words = [f"{state.sheds} are refused{since}: {state.reason}"]
    if state.next_try_s is not None:
        words.append(
            f"tried again in {state.next_try_s:.0f} s"
            if state.next_try_s
            else "tried again with the next"
        )
    if state.free_bytes >= 0:
        kept = size_text(state.reserve_bytes)
        words.append(
            f"{size_text(state.free_bytes)} of the disk are free, {kept} of it are kept so"
        )
    return "; ".join(words)


def _local_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


class Attempt:
    """One write that was let through.

    `adds`: it is an addition. `has_written`: it proves that writing works; without it there is no verdict.
    """

    __slots__ = ("adds", "has_written")

    def __init__(self) -> None:
        self.adds = False
        self.has_written = False


class _Latch:
    """Refuses while it is tripped. The caller holds the lock of Health."""

    def __init__(self, sheds: str) -> None:
        self._sheds = sheds
        self.cause: StoreError | None = None
        self.since_s = 0.0
        self.next_try_s = 0.0  # monotonic
        self._quiet_s = QUIET_S
        self._is_probed = False

    def enter(self, now_s: float) -> None:
        """Raises Unhealthy, unless nothing is wrong or this is the one that is let through."""
        if self.cause is None:
            return
        if now_s < self.next_try_s or self._is_probed:
            what = _WORDS[type(self.cause)]
            raise Unhealthy(
                f"{what}, so {self._sheds} are refused; that is tried again by itself, and all can be read",
                self.cause.errno,
            )
        self._is_probed = True

    def trip(self, error: StoreError, now_s: float) -> None:
        if self.cause is None:
            self.since_s = time.time()
            self._quiet_s = QUIET_S
        elif self._is_probed:
            self._quiet_s = min(self._quiet_s * 2, LONGEST_QUIET_S)
        self.cause = error
        self.next_try_s = now_s + self._quiet_s
        self._is_probed = False

    def leave(self, *, has_worked: bool) -> None:
        """The end of one that was let in. Without a verdict the next may."""
        if has_worked:
            self.cause = None
        self._is_probed = False


class Health:
    """The latches of one store in this process."""

    def __init__(self, layout: Layout, clock: Callable[[], float] = time.monotonic) -> None:
        self._layout = layout
        self._clock = clock
        self._lock = threading.Lock()
        self._changes = _Latch("changes")
        self._additions = _Latch("additions")
        self._reserve_bytes: int | None = None
        self._looked_s: float | None = None
        self._free_bytes = self._total_bytes = -1
        self._low_since_s: float | None = None
        self._is_read_only = False

    # --- writes

    @contextmanager
    def watch(self, *, only: type[StoreError] | None = None) -> Iterator[Attempt]:
        """Around a write. Raises Unhealthy at once while writes are shed; what the block raises is taken note of.

        `only`: there is nothing but this kind of trouble that matters.
        """
        attempt = Attempt()
        with self._lock:
            is_asked = only is None or isinstance(self._changes.cause, only)
            if is_asked:
                self._changes.enter(self._clock())
        try:
            yield attempt
        except (StoreFull, StoreReadOnly, StoreFailing) as error:
            self._trip(error, attempt)
            raise
        finally:
            with self._lock:
                for latch, was_used in (
                    (self._changes, is_asked),
                    (self._additions, attempt.adds),
                ):
                    if was_used:
                        latch.leave(has_worked=attempt.has_written)

    def admit(self, attempt: Attempt, count: int) -> None:
        """A write is going to add `count` bytes. Raises Unhealthy (ENOSPC) when they would leave less than the reserve."""
        with self._lock:
            if not attempt.adds:
                self._additions.enter(self._clock())
                attempt.adds = True
            self._take(count)

    def check_room(self, count: int = 0) -> None:
        """The same for what is written beside the store's own transactions: files that clients make."""
        with self._lock:
            if self._additions.cause is not None and self._clock() < self._additions.next_try_s:
                self._additions.enter(self._clock())
            self._take(count)

    def _take(self, count: int) -> None:
        """Count down what is free since the last look, and look again when that is a second ago."""
        self._look_now_and_then()
        if self._free_bytes < 0:
            return
        if self._free_bytes - count < self.reserve_bytes:
            raise Unhealthy(
                f"{self._low_text()}, so nothing is added; flags can be changed and messages removed",
                ENOSPC,
            )
        self._free_bytes -= count

    def _look_now_and_then(self) -> None:
        now_s = self._clock()
        if self._looked_s is None or now_s - self._looked_s >= _LOOK_S:
            self._look(now_s)

    def _look(self, now_s: float) -> None:
        self._looked_s = now_s
        try:
            found = os.statvfs(self._layout.root)
        except OSError:
            self._free_bytes = self._total_bytes = -1
            return
        self._is_read_only = bool(found.f_flag & os.ST_RDONLY)
        self._free_bytes = found.f_bavail * found.f_frsize
        self._total_bytes = found.f_blocks * found.f_frsize
        if self._free_bytes >= self.reserve_bytes:
            self._low_since_s = None
        elif self._low_since_s is None:
            self._low_since_s = time.time()

    def _low_text(self) -> str:
        return f"less than {self.reserve_bytes / 1e6:.1f} MB of the disk are free"

    def _trip(self, error: StoreError, attempt: Attempt) -> None:
        with self._lock:
            now_s = self._clock()
            if not (attempt.adds and isinstance(error, StoreFull)):
                self._changes.trip(error, now_s)
                return
            self._look(now_s)
            cause = error.__cause__
            is_disk = isinstance(cause, OSError) and cause.errno == ENOSPC
            if is_disk and self._free_bytes >= self.reserve_bytes:
                return  # one that was too large, and there is room for others again
            self._additions.trip(error, now_s)

    def free_bytes_or_none(self) -> int | None:
        """What is free, about; None where the file system does not say. A statvfs(2) a second at most."""
        with self._lock:
            self._look_now_and_then()
            return self._free_bytes if self._free_bytes >= 0 else None

    # --- what is told

    @property
    def reserve_bytes(self) -> int:
        """What additions leave free, as the configuration says, and the size of the disk allows."""
        if self._reserve_bytes is None:
            self._reserve_bytes = _configured_reserve(self._layout)
        if self._total_bytes < 0:
            return self._reserve_bytes
        return min(self._reserve_bytes, int(self._total_bytes * _LARGEST_RESERVE))

    @reserve_bytes.setter
    def reserve_bytes(self, count: int) -> None:
        self._reserve_bytes = count

    def unhealthy_reason(self) -> str | None:
        """Why changes or additions are refused now; None while they are not. A statvfs(2) a second at most."""
        return self.state().reason

    def state(self) -> HealthState:
        """All of it. A statvfs(2) a second at most."""
        with self._lock:
            now_s = self._clock()
            self._look_now_and_then()
            reason, sheds, since_s, next_try_s = None, "", None, None
            for latch, what in ((self._changes, "changes"), (self._additions, "additions")):
                if latch.cause is not None and reason is None:
                    reason, sheds, since_s = _WORDS[type(latch.cause)], what, latch.since_s
                    next_try_s = max(0.0, latch.next_try_s - now_s)
            if reason is None and self._is_read_only:
                reason, sheds = _WORDS[StoreReadOnly], "changes"
            if reason is None and 0 <= self._free_bytes < self.reserve_bytes:
                reason, sheds, since_s = self._low_text(), "additions", self._low_since_s
            free_bytes = self._free_bytes
            return HealthState(reason, sheds, since_s, next_try_s, free_bytes, self.reserve_bytes)


def _configured_reserve(layout: Layout) -> int:
    """Of a file with a slip of the pen the default: it is told by `mount`, and must not keep mail out."""
    # What only adds to a store need not be able to read TOML.
    if not config_path(layout).exists():
        return Config().reserve_bytes
    try:
        return read_config(layout).reserve_bytes
    except ConfigError:
        return Config().reserve_bytes
