"""A thread that goes through the mount of its own process, without keeping the process alive by that.

Who waits for an answer of a FUSE daemon that has begun to answer cannot be killed (fs/fuse/dev.c, request_wait_answer). A thread
of the daemon itself would wait for ever once the daemon is killed: by its descriptors, which all threads share, it would
keep /dev/fuse open, and so the connection would never be aborted. This thread has a table of descriptors of its own, with
nothing in it but standard input, output and error.
"""

import ctypes
import queue
import threading
from collections.abc import Callable

# close_range(2), linux/close_range.h: leave a shared table, taking along what is not closed.
_SYS_CLOSE_RANGE = 436
_CLOSE_RANGE_UNSHARE = 2
_LAST_FD = 0xFFFFFFFF
_START_DEADLINE_S = 5.0


class OwnThread:
    """One thread. `number` is what the kernel calls it, 0 until it runs."""

    def __init__(self, name: str) -> None:
        self.number = 0
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> bool:
        """Whether it runs, with descriptors of its own (Linux 5.9)."""
        self._thread.start()
        try:
            return self._done.get(timeout=_START_DEADLINE_S) is None
        except queue.Empty:
            return False

    def do(self, work: Callable[[], None]) -> None:
        """Have it do something, and wait for that. One caller at a time, who has a deadline. Raises what `work` raises."""
        self._work.put(work)
        error = self._done.get()
        if error is not None:
            raise error

    def _run(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(_SYS_CLOSE_RANGE, 3, _LAST_FD, _CLOSE_RANGE_UNSHARE) != 0:
            self._done.put(OSError(ctypes.get_errno(), "close_range"))
            return
        self.number = threading.get_native_id()
        self._done.put(None)
        while True:
            work = self._work.get()
            try:
                work()
            except BaseException as error:  # noqa: BLE001  # raised where it was asked for
                self._done.put(error)
            else:
                self._done.put(None)
