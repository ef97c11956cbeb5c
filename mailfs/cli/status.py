"""mailfs status; and what any other command says of itself when it gets SIGUSR2."""

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from mailfs.cli.commands import Commands, Parser, add_command, plan_of
from mailfs.errors import EX_TEMPFAIL, ConfigError

if TYPE_CHECKING:
    from mailfs.store.health import HealthState
    from mailfs.store.index import Index
    from mailfs.store.layout import Layout
    from mailfs.store.lock import Owner, WriterLock
    from mailfs.store.upkeep.maintenance import Maintenance

# A mount that is well answers within a millisecond.
ANSWER_DEADLINE_S = 5.0


def add_commands(commands: "Commands[Parser]") -> None:
    status = add_command(commands, "status", run_status, "what the store and its mounts do now")
    status.add_argument("--json", action="store_true", help="print an object")


# --- the command


class ExpungedStatus(NamedTuple):
    """What can still be had back; `first_goes` is the local day on which expire takes the first, None: never."""

    messages: int
    bytes: int
    first_goes: str | None


class StoreStatus(NamedTuple):
    """What is known without asking any other process. What only a store of this program's format has is None in others.

    `waiting_files` lie in cur/ and new/ of views and are to become messages; `spool_files` are these and those in tmp/.
    `health` is how the disk looks to this process, which has not tried to write; `expunged` is what expire will take.
    """

    store: str
    format: int
    modseq: int | None
    messages: int | None
    searches: int | None
    holder: "Owner | None"
    waiting_files: int
    spool_files: int
    health: "HealthState"
    maintenance: "Maintenance | None"
    expunged: ExpungedStatus | None


class Question(threading.Thread):
    """Reads a control file of a mount, whose daemon may not answer; then the thread is left to itself."""

    def __init__(self, pid: int, mountpoint: Path, name: str) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.mountpoint = mountpoint
        self.answer: bytes | None = None
        self.problem = f"does not answer within {ANSWER_DEADLINE_S:g} s"
        self.is_mounted = True
        self._path = mountpoint / ".mailfs" / name

    def run(self) -> None:
        try:
            self.answer = self._path.read_bytes()
        except OSError as error:
            self.problem = f"does not answer: {error.strerror}"


def run_status(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.store.layout import open_layout

    store = _store_status(open_layout(root))
    questions = _ask_mounts(root, "status.json" if arguments.json else "status")
    if arguments.json:
        mounts = [_as_dict(question) for question in questions]
        print(json.dumps(_store_dict(store) | {"mounts": mounts}, indent=1))
    else:
        for line in _lines(store):
            print(line)
        for question in questions:
            print(f"\n{_as_text(question)}")
    is_stuck = any(question.answer is None and question.is_mounted for question in questions)
    return EX_TEMPFAIL if is_stuck else 0


def _store_status(layout: "Layout") -> StoreStatus:
    from mailfs.store.health import Health
    from mailfs.store.index import Index
    from mailfs.store.lock import owner_or_none
    from mailfs.store.schema import FORMAT_VERSION
    from mailfs.store.upkeep.maintenance import last_maintenance_or_none

    modseq = messages = searches = expunged = None
    if layout.version == FORMAT_VERSION:
        index = Index(layout)
        try:
            with index.snapshot():
                modseq = index.state().modseq
                messages = index.count(plan_of(["*"]))
                searches = len(index.searches())
                expunged = _expunged(layout, index)
        finally:
            index.close()
    files = [path for path in layout.spool.rglob("*") if path.is_file()]
    return StoreStatus(
        store=str(layout.root),
        format=layout.version,
        modseq=modseq,
        messages=messages,
        searches=searches,
        holder=owner_or_none(layout.lock),
        waiting_files=sum(
            path.parent.name in ("cur", "new") and not path.name.startswith(".") for path in files
        ),
        spool_files=len(files),
        health=Health(layout).state(),
        maintenance=last_maintenance_or_none(layout),
        expunged=expunged,
    )


def _expunged(layout: "Layout", index: "Index") -> ExpungedStatus:
    from mailfs.search.dates import moment_ago
    from mailfs.store.config import Config, read_config
    from mailfs.store.upkeep.expire import expunged_by_time

    try:
        age = read_config(layout).expire
    except ConfigError:
        age = Config().expire  # `mount` tells of it
    found, now_s, first_goes = expunged_by_time(index), time.time(), None
    if found and age is not None:
        goes_s = max(now_s, found[0].expunged + now_s - moment_ago(age, now_s))
        first_goes = time.strftime("%Y-%m-%d", time.localtime(goes_s))
    return ExpungedStatus(
        sum(each.messages for each in found), sum(each.size for each in found), first_goes
    )


def _store_dict(store: StoreStatus) -> dict[str, object]:
    parts = (store.holder, store.health, store.expunged)
    holder, health, expunged = (None if part is None else part._asdict() for part in parts)
    last = None if store.maintenance is None else asdict(store.maintenance)
    return store._asdict() | {
        "holder": holder,
        "health": health,
        "expunged": expunged,
        "maintenance": last,
    }


def _ask_mounts(root: Path, name: str) -> list[Question]:
    """All at once, with one deadline for all of them."""
    from mailfs.fuse.mounts import find_mounted_or_none, living_records

    questions = []
    for pid, mountpoint in sorted(living_records(root).items()):
        question = Question(pid, mountpoint, name)
        questions.append(question)
        if find_mounted_or_none(mountpoint) is None:
            question.is_mounted = False
            question.problem = "is unmounted, and still serves who has files open"
        else:
            question.start()
    give_up = time.monotonic() + ANSWER_DEADLINE_S
    for question in questions:
        if question.is_mounted:
            question.join(max(0.0, give_up - time.monotonic()))
    return questions


def _as_dict(question: Question) -> dict[str, object]:
    if question.answer is None:
        return {
            "pid": question.pid,
            "mountpoint": str(question.mountpoint),
            "problem": question.problem,
        }
    found = json.loads(question.answer)
    assert isinstance(found, dict)
    return found


def _as_text(question: Question) -> str:
    if question.answer is None:
        return f"{question.mountpoint}, served by pid {question.pid}, {question.problem}"
    return question.answer.decode(errors="backslashreplace").rstrip("\n")


def _lines(status: StoreStatus) -> Iterator[str]:
    from mailfs.store.health import health_text
    from mailfs.store.sizes import size_text
    from mailfs.store.upkeep.maintenance import maintenance_text

    yield f"store      {status.store}, format {status.format}"
    if status.messages is None:
        yield "messages   not counted: the next command brings the store to the format of today"
    else:
        yield (
            f"messages   {status.messages}, modseq {status.modseq}, "
            f"{status.searches} saved searches"
        )
    if status.expunged is not None and status.expunged.messages:
        found = status.expunged
        goes = "they stay" if found.first_goes is None else f"the first goes on {found.first_goes}"
        yield f"expunged   {found.messages} messages, {size_text(found.bytes)}; {goes}"
    yield f"health     {health_text(status.health)}"
    yield f"maintained {maintenance_text(status.maintenance)}"
    yield f"writing    {status.holder or 'nobody'}"
    if status.spool_files:
        yield (
            f"files      {status.waiting_files} to be taken in, "
            f"{status.spool_files - status.waiting_files} in tmp"
        )


# --- signals

# What a long command is at, in words; asked by a signal.
_progress: list[Callable[[], str]] = []


@contextmanager
def progress_told_by(progress: Callable[[], str]) -> Iterator[None]:
    """Within the block, SIGUSR2 is answered with these words, too. They are asked for between any two steps of the program."""
    _progress.append(progress)
    try:
        yield
    finally:
        _progress.pop()


@contextmanager
def answering(command: str) -> Iterator[None]:
    """Within the block, SIGUSR2 makes this process say on standard error what it does and waits for. It goes on.

    Python runs it between two steps of the program: a statement of SQLite that takes long is finished first.
    """
    pid, since_s = os.getpid(), time.time()

    def answer(number: int, frame: FrameType | None) -> None:
        text = _paragraph(command, pid, since_s)
        # Not print(), which may be at work just now. Whoever reads this may be gone.
        with suppress(OSError):
            os.write(
                sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode(errors="replace")
            )

    before = signal.signal(signal.SIGUSR2, answer)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR2, before)


def _paragraph(command: str, pid: int, since_s: float) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since_s))
    if os.getpid() != pid:
        return f"mailfs {command}: pid {os.getpid()} works for pid {pid}\n"
    parts = [f"mailfs {command}: pid {pid}, since {since} ({time.time() - since_s:.1f} s)"]
    parts += [progress() for progress in _progress]
    # Not imported here: it may be in the middle of being imported, and then nobody has a lock yet.
    locks = getattr(sys.modules.get("mailfs.store.lock"), "locks_of_this_process", list)
    for lock in locks():
        parts += _lock_parts(lock)
    return "; ".join(parts) + "\n"


def _lock_parts(writer_lock: "WriterLock") -> Iterator[str]:
    lock = writer_lock.state()
    if lock.held is not None:
        yield f"has held the writer lock for {lock.held.for_s:.1f} s ({lock.held.purpose})"
    for use in lock.waiting:
        yield (
            f"has waited for the writer lock for {use.for_s:.1f} s ({use.purpose}), "
            f"which is held by {writer_lock.describe_owner()}"
        )
    if lock.acquisitions or lock.waits:
        yield (
            f"took the lock {lock.acquisitions} times, waited {lock.waits} times, "
            f"{lock.waited_s:.1f} s in all, {lock.longest_wait_s:.1f} s at most"
        )
