"""Names that are not true any more -> the kernel, from a thread of its own.

invalidate_entry may wait for the directory's lock, which a client holds while it waits for one of our handlers: so no
handler ever waits for this thread. A name the kernel does not know is no error.
"""

import logging
import queue
import threading
from collections.abc import Iterable

import pyfuse3

from mailfs.views.tree import Invalidation

log = logging.getLogger(__name__)


class Notifier:
    """Sends invalidations in order. Start it after pyfuse3.init(), stop it before pyfuse3.close()."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Invalidation | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def publish(self, invalidations: Iterable[Invalidation]) -> None:
        """Hand over, without waiting."""
        for invalidation in invalidations:
            self._queue.put(invalidation)

    def stop(self, deadline_s: float) -> bool:
        """Whether the thread has ended within the deadline; if not, the session must not be destroyed."""
        self._queue.put(None)
        self._thread.join(deadline_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (invalidation := self._queue.get()) is not None:
            try:
                pyfuse3.invalidate_entry(invalidation.parent, invalidation.name)
            except FileNotFoundError:
                pass
            except OSError as error:
                log.warning("cannot tell the kernel that a name is gone: %s", error)
