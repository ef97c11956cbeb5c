"""That some process changed the store: heard by inotify(7), without asking again and again.

Every write transaction opens STORE/lock for writing and closes it behind its commit, or the kernel does when the process is
killed: IN_CLOSE_WRITE. What changed is then read from the index. On a file system whose changes other machines make
(NFS) nothing is heard of those: who follows the store looks now and then all the same.
"""

import ctypes
import os
import struct

from mailfs.errors import StoreError
from mailfs.store.layout import Layout

# inotify(7), sys/inotify.h
_IN_CLOSE_WRITE = 0x8
_IN_IGNORED = 0x8000
_EVENT = struct.Struct("iIII")
_EVENTS_BYTES = 4096


class Feed:
    """An inotify descriptor on one store. For one thread; close() it."""

    def __init__(self, layout: Layout) -> None:
        """Raises StoreError where the kernel gives no descriptor (fs.inotify.max_user_instances)."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._lock = os.fsencode(layout.lock)
        self._fd: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise StoreError(f"cannot watch {layout.root}: {os.strerror(ctypes.get_errno())}")
        try:
            self._watch()
        except StoreError:
            self.close()
            raise

    def _watch(self) -> None:
        """The file is made by the first write transaction, or by us."""
        try:
            os.close(os.open(self._lock, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            if self._libc.inotify_add_watch(self._fd, self._lock, _IN_CLOSE_WRITE) < 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        except OSError as error:
            where = os.fsdecode(self._lock)
            raise StoreError(f"cannot watch {where}: {error.strerror}") from error

    def fileno(self) -> int:
        """Readable when something may have changed."""
        return self._fd

    def take(self) -> bool:
        """Whether some process has ended a write transaction since the last call, which may have changed nothing.

        Raises StoreError when the file was removed and cannot be watched again.
        """
        heard = False
        while True:
            try:
                events = os.read(self._fd, _EVENTS_BYTES)
            except BlockingIOError:
                return heard
            heard = True
            for _, mask, _, _ in _EVENT.iter_unpack(events[: len(events) // 16 * 16]):
                if mask & _IN_IGNORED:  # somebody removed the file
                    self._watch()

    def close(self) -> None:
        os.close(self._fd)
