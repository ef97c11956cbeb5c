"""A mount's view of itself: which clients it serves, who waits for what, what it keeps in memory, what it was asked.

For `.mailfs/status`, `mailfs status` and SIGUSR2. Numbers, paths of the store and names of searches; nothing of any mail. What
the system knows of clients is read here, when somebody asks, and not while they are served.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mailfs.fuse.clients import ENDED, command_of_or_none, pid_of_or_none
from mailfs.fuse.operations import Operations
from mailfs.fuse.requests import Waiting
from mailfs.fuse.upkeep import MemoryGiven, Upkeep
from mailfs.ids import Fh, Modseq
from mailfs.store.health import HealthState, health_text
from mailfs.store.lock import LockState, Owner
from mailfs.store.sizes import size_text
from mailfs.store.upkeep.maintenance import (
    Maintenance,
    last_maintenance_or_none,
    maintenance_text,
)
from mailfs.views.view import View

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Client:
    """A process with something open here. The pid is 0 where the kernel does not say it (another container).

    `command` is `ended` where the one who opened has gone and somebody else, such as its child, goes on.
    """

    pid: int
    command: str
    messages: int
    files: int
    directories: int


@dataclass(frozen=True, slots=True)
class InFlight:
    """A request that is being answered, and waits (s)."""

    name: str
    pid: int
    command: str
    for_s: float
    waits_for: str


@dataclass(frozen=True, slots=True)
class ViewInMemory:
    """A loaded view. `modseq` is the state its members are of.

    `bytes` are those of its own tables; what is known of each message is shared by all views.
    """

    name: str
    messages: int
    lingering: int
    open_handles: int
    modseq: Modseq
    bytes: int


@dataclass(frozen=True, slots=True)
class MaintenanceStatus:
    """When the store was taken care of, and when this mount will do so next. Times are local; None: not, never."""

    last: Maintenance | None
    running_since: str | None
    next: str | None


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """All of it. Times are local, for people; durations in seconds, sizes in bytes."""

    pid: int
    mountpoint: str
    store: str
    since: str
    modseq: Modseq
    memory_bytes: int
    facts_bytes: int
    clients: tuple[Client, ...]
    in_flight: tuple[InFlight, ...]
    holder: Owner | None
    lock: LockState
    health: HealthState
    maintenance: MaintenanceStatus
    memory_given: MemoryGiven
    views: tuple[ViewInMemory, ...]
    requests: Mapping[str, int]
    echoes: Mapping[str, int]

    def as_dict(self) -> dict[str, object]:
        """For JSON. Files whose opener is not known count in the sums `open_messages` and its like, too."""
        found = dataclasses.asdict(self)
        found["holder"] = None if self.holder is None else self.holder._asdict()
        found["lock"] |= {
            "held": None if self.lock.held is None else self.lock.held._asdict(),
            "waiting": [use._asdict() for use in self.lock.waiting],
        }
        found["health"] = self.health._asdict()
        for kind in ("messages", "files", "directories"):
            found[f"open_{kind}"] = sum(getattr(client, kind) for client in self.clients)
        return found

    def as_text(self) -> str:
        """For people; some lines for each of the parts."""
        return "".join(f"{line}\n" for line in _lines(self))


def daemon_status(
    operations: Operations,
    upkeep: Upkeep,
    mountpoint: Path,
    since_s: float,
    echoes: Mapping[str, int],
) -> DaemonStatus:
    """As it is now. `since_s` is when the mount began, in seconds since 1970."""
    tree = operations.tree
    processes = Processes()
    lock = tree.store.writer.lock
    facts = tree.facts
    return DaemonStatus(
        pid=os.getpid(),
        mountpoint=str(mountpoint),
        store=str(tree.store.layout.root),
        since=_local_time(since_s),
        modseq=tree.modseq,
        memory_bytes=int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES,
        facts_bytes=sum(
            len(column) * column.itemsize
            for column in (facts.flags, facts.size, facts.received_ns, facts.changed_ns)
        ),
        clients=tuple(_clients(operations, processes)),
        in_flight=tuple(
            _in_flight(operations, waiting, processes) for waiting in operations.requests.waiting
        ),
        holder=lock.owner_or_none(),
        lock=lock.state(),
        health=tree.store.writer.health.state(),
        maintenance=MaintenanceStatus(
            last=last_maintenance_or_none(tree.store.layout),
            running_since=_local_time_or_none(upkeep.running_since_s),
            next=_local_time_or_none(upkeep.next_s),
        ),
        memory_given=upkeep.memory,
        views=tuple(
            _in_memory(name, view) for name, view in sorted(tree.views.items()) if view.is_loaded
        ),
        requests=dict(operations.requests.counts),
        echoes=dict(echoes),
    )


def _local_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _local_time_or_none(seconds: float | None) -> str | None:
    return None if seconds is None else _local_time(seconds)


class Processes:
    """What proc(5) says of clients' threads, each looked at once."""

    def __init__(self) -> None:
        self._pids: dict[int, int] = {}
        self._commands: dict[int, str] = {}

    def pid_of(self, thread: int) -> int:
        """The process of a thread; the thread's own number, when it has ended."""
        if thread not in self._pids:
            self._pids[thread] = (pid_of_or_none(thread) if thread else None) or thread
        return self._pids[thread]

    def command_of(self, pid: int) -> str:
        """The name of a process; `ended`, or '' where the kernel did not say which it was."""
        if pid not in self._commands:
            self._commands[pid] = (command_of_or_none(pid) or ENDED) if pid else ""
        return self._commands[pid]


def _clients(operations: Operations, processes: Processes) -> Iterator[Client]:
    handles = operations.handles
    openers = (
        [handle.opener for handle in handles.messages.values()],
        [handle.opener for handle in handles.files.values()],
        [handle.opener for handle in handles.directories.values()],
    )
    counts: dict[int, list[int]] = {}
    for number, threads in enumerate(openers):
        for thread in threads:
            counts.setdefault(processes.pid_of(thread), [0, 0, 0])[number] += 1
    for pid, (messages, files, directories) in sorted(counts.items()):
        yield Client(pid, processes.command_of(pid), messages, files, directories)


def _in_flight(operations: Operations, waiting: Waiting, processes: Processes) -> InFlight:
    thread = waiting.thread or _opener(operations, waiting.fh)
    pid = processes.pid_of(thread)
    return InFlight(
        name=waiting.name,
        pid=pid,
        command=processes.command_of(pid),
        for_s=round(time.monotonic() - waiting.since_s, 3),
        waits_for=waiting.what,
    )


def _opener(operations: Operations, fh: Fh | None) -> int:
    """The thread that opened a handle; 0 of one that is closed."""
    if fh is None:
        return 0
    handles = operations.handles
    handle = handles.files.get(fh) or handles.messages.get(fh) or handles.directories.get(fh)
    return 0 if handle is None else handle.opener


def _in_memory(name: str, view: View) -> ViewInMemory:
    return ViewInMemory(
        name=name,
        messages=len(view.docids),
        lingering=len(view.lingering),
        open_handles=view.open_handles,
        modseq=view.modseq or Modseq(0),
        bytes=view.memory_bytes,
    )


# --- for people


def _lines(status: DaemonStatus) -> Iterator[str]:
    yield f"{status.mountpoint}, served by pid {status.pid} since {status.since}"
    yield f"store      {status.store}, modseq {status.modseq}"
    yield (
        f"memory     {size_text(status.memory_bytes)}, of that {size_text(status.facts_bytes)} "
        "facts that all views share"
    )
    for part in (
        _upkeep_lines,
        _lock_lines,
        _in_flight_lines,
        _client_lines,
        _view_lines,
        _count_lines,
    ):
        yield from part(status)


def _upkeep_lines(status: DaemonStatus) -> Iterator[str]:
    yield f"health     {health_text(status.health)}"
    found, given = status.maintenance, status.memory_given
    now = "" if found.running_since is None else f"; it is under way since {found.running_since}"
    yield f"maintained {maintenance_text(found.last)}{now}; next: {found.next or 'never'}"
    if given.times:
        yield f"short      of memory {given.times} times, {size_text(given.bytes)} let go"


def _lock_lines(status: DaemonStatus) -> Iterator[str]:
    lock = status.lock
    yield f"writing    {status.holder or 'nobody'}"
    yield (
        f"the lock   taken {lock.acquisitions} times, waited for {lock.waits} times, "
        f"{lock.waited_s:.1f} s in all and {lock.longest_wait_s:.1f} s at most, "
        f"given up {lock.given_up} times"
    )


def _in_flight_lines(status: DaemonStatus) -> Iterator[str]:
    if status.in_flight:
        yield "requests that wait"
    for request in status.in_flight:
        yield (
            f"    {request.name} of {request.command or 'unknown'} (pid {request.pid}): "
            f"for {request.for_s:.1f} s, for {request.waits_for}"
        )


def _table(
    title: str, rows: list[tuple[str, ...]], is_left: Callable[[int], bool]
) -> Iterator[str]:
    """Columns as wide as they must be. The first row is their names."""
    if len(rows) == 1:
        return
    yield title
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            text.ljust(width) if is_left(number) else text.rjust(width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        yield f"    {'  '.join(cells)}".rstrip()


def _client_lines(status: DaemonStatus) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("command", "pid", "messages", "files", "directories")]
    for client in status.clients:
        numbers = (client.pid, client.messages, client.files, client.directories)
        rows.append((client.command or "unknown", *map(str, numbers)))
    yield from _table("clients, and what they have open", rows, lambda column: column == 0)


def _view_lines(status: DaemonStatus) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("view", "messages", "lingering", "open", "modseq", "size")]
    for view in status.views:
        numbers = (view.messages, view.lingering, view.open_handles, view.modseq)
        rows.append((view.name, *map(str, numbers), size_text(view.bytes)))
    yield from _table("views in memory", rows, lambda column: column == 0)


def _count_lines(status: DaemonStatus) -> Iterator[str]:
    for title, counts in (("requests", status.requests), ("echoes", status.echoes)):
        if counts:
            pairs = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
            yield f"{title:<10} {', '.join(f'{count} {name}' for name, count in pairs)}"
