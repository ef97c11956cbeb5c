"""The kernel's word that memory is short: a trigger of pressure stall information (Documentation/accounting/psi.rst).

Of our own control group, where there is one, else of the whole machine. Anybody may have one if its window is a multiple of two
seconds (Linux 6.5); where it is refused, or the kernel was built without, memory is kept as before.
"""

import logging
import os
import select
from pathlib import Path

log = logging.getLogger(__name__)

# Some task waited for memory for a tenth of the last two seconds: long before anybody is killed for it. In microseconds.
TRIGGER = b"some 200000 2000000\0"
_MACHINE = Path("/proc/pressure/memory")
_GROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


class Pressure:
    """A trigger. `fd` has POLLPRI when memory is short; it is closed with close(), from another thread than waits."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._end = os.eventfd(0, os.EFD_CLOEXEC)

    @classmethod
    def open_or_none(cls) -> "Pressure | None":
        """A trigger that the kernel has taken."""
        for path in pressure_files(Path("/proc/self/cgroup").read_text()):
            try:
                fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                os.write(fd, TRIGGER)
            except OSError as error:
                log.debug("no word of memory pressure from %s: %s", path, error.strerror)
                os.close(fd)
                continue
            return cls(fd)
        return None

    def wait(self) -> bool:
        """Until memory is short; False when there will be no more word of it. Without a deadline: for a thread."""
        poll = select.poll()
        poll.register(self._fd, select.POLLPRI)
        poll.register(self._end, select.POLLIN)
        events = dict(poll.poll())
        return self._end not in events and not events.get(self._fd, 0) & (
            select.POLLERR | select.POLLNVAL
        )

    def stop(self) -> None:
        """Whoever waits is told that there will be no more."""
        os.eventfd_write(self._end, 1)

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._end)


def pressure_files(groups: str) -> list[Path]:
    """Where to ask, the best first. `groups` is /proc/self/cgroup (cgroups(7)); of version 2 the line begins with `0::`."""
    found = []
    for line in groups.splitlines():
        number, _, name = line.split(":", 2)
        if number == "0" and name != "/":
            found = [root / name.lstrip("/") / "memory.pressure" for root in _GROUPS]
    return [*found, _MACHINE]
