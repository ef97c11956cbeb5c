"""Starts them all, kills some of them again and again, and ends them: actors, their commands, and the mounts' daemons.

Each actor is a process group of its own, so that at the end also a command whose actor was killed is found. Whatever is
killed here was started here; the daemons are those that the store of this run names.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.fakes import PROJECT
from tests.mount.waiting import pause, wait_until
from tests.stress.commands import (
    Hangs,
    abort,
    children_of,
    connection_or_none,
    daemons,
    is_alive,
    run_mailfs,
    status_or_none,
    where_is,
)
from tests.stress.settings import Settings
from tests.stress.tally import Tally

WATCHERS = ("watcher-1", "watcher-2")
ACTORS = (
    *("reader-1", "reader-2", "filer-1", "filer-2", "deliverer-1", "deliverer-2"),
    *("importer-1", "remover-2", "orderer-1", *WATCHERS),
)
# Between two kills.
_KILL_EVERY_S = (0.5, 2.5)
# Every fifth kill, the third being the first, is that of a daemon.
_DAEMON_EVERY, _DAEMON_FIRST = 5, 2
_LOOK_EVERY_S = 0.1
_STATUS_EVERY_S = 2.0
# No step takes this long; who says nothing for so long hangs.
_STUCK_S = 90.0
_END_DEADLINE_S = 90.0


class Broken(Exception):
    """The run cannot go on: nothing can be said of what is left of it."""


@dataclass
class Running:
    """An actor that was started, the number of times it was, and what it has said last."""

    process: "subprocess.Popen[bytes]"
    number: int
    said_bytes: int = 0
    said_s: float = field(default_factory=time.monotonic)


class Stage:
    """All processes of one run."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._file = settings.folder / "settings.json"
        self._random = Random(f"{settings.seed} stage")
        self._tally = Tally(settings.tally / "stage", "stage")
        self._running: dict[str, Running] = {}
        self._groups: list[int] = []
        self._status_s = 0.0
        self.kills: Counter[str] = Counter()
        # What each daemon said last of itself: a killed one says nothing more.
        self.statuses: dict[int, dict[str, object]] = {}

    # --- mounts

    def mount(self, mountpoint: Path) -> None:
        """Mount, also over a dead mount. Raises Broken."""
        try:
            done = run_mailfs(self._settings.store, "mount", mountpoint)
        except Hangs as error:
            pids = map(int, os.listdir(self._settings.store / "mounts"))
            raise Broken("\n".join([str(error), *map(where_is, pids)])) from None
        if done.returncode:
            raise Broken(f"mount ended with {done.returncode}: {done.stderr.decode()}")

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Both mounts. Afterwards nothing is mounted and no daemon is left, whatever happens."""
        try:
            for mountpoint in self._settings.mounts:
                self.mount(mountpoint)
            yield
        finally:
            self._end_mounts()

    def _end_mounts(self) -> None:
        pids = [int(record.name) for record in (self._settings.store / "mounts").iterdir()]
        for mountpoint in self._settings.mounts:
            while connection_or_none(mountpoint) is not None:
                abort(mountpoint)
                subprocess.run(["fusermount3", "-u", "-z", mountpoint], check=True)
        with suppress(AssertionError):
            wait_until(lambda: not any(map(is_alive, pids)), "the daemons' end")
        for pid in filter(is_alive, pids):
            self._tally.fault(f"the daemon did not end when it was unmounted: {where_is(pid)}")
            os.kill(pid, signal.SIGKILL)
        self._tally.flush()

    @contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """The mounts are taken away if the block takes longer: who waits in one of them then gets an error."""

        def end() -> None:
            pids = daemons(self._settings.store).values()
            self._tally.fault("\n".join([f"not judged in {seconds:g} s", *map(where_is, pids)]))
            for mountpoint in self._settings.mounts:
                abort(mountpoint)

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    # --- actors

    @contextmanager
    def acting(self) -> Iterator[None]:
        """All actors. Afterwards none of them is left, nor any command one of them ran."""
        self._settings.write(self._file)
        try:
            for name in ACTORS:
                self._start(name, 0)
            yield
        finally:
            for group in self._groups:
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            for running in self._running.values():
                running.process.wait(10)

    def _start(self, name: str, number: int) -> None:
        words = (sys.executable, "-m", "tests.stress.actor", str(self._file), name, str(number))
        with (self._settings.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stderr=log, cwd=PROJECT, start_new_session=True
            )
        self._running[name] = Running(process, number)
        # Numbers of groups that are gone may be given to others.
        self._groups = [*filter(has_group, self._groups), process.pid]

    def direct(self) -> None:
        """Until the deadline: kill, start again, and see that nobody hangs or ends by itself."""
        kill_s = self._next_kill_s()
        while not self._settings.is_over():
            pause(_LOOK_EVERY_S)
            for name, running in list(self._running.items()):
                self._look_after(name, running)
            if time.monotonic() > kill_s:
                self._kill_somebody()
                kill_s = self._next_kill_s()
            if time.monotonic() - self._status_s > _STATUS_EVERY_S:
                self.note_statuses()

    def _next_kill_s(self) -> float:
        return time.monotonic() + self._random.uniform(*_KILL_EVERY_S)

    def _look_after(self, name: str, running: Running) -> None:
        code = running.process.poll()
        if code is not None and not self._settings.is_over():
            if code != -signal.SIGKILL:
                log = (self._settings.folder / f"{name}.log").read_text()
                self._tally.fault(f"{name} ended with {code}: {log[-4000:]}")
            self._start(name, running.number + 1)
            return
        said = self._settings.tally / name
        size = said.stat().st_size if said.exists() else 0
        if size != running.said_bytes:
            running.said_bytes, running.said_s = size, time.monotonic()
        elif time.monotonic() - running.said_s > _STUCK_S:
            self._tally.fault(
                f"{name} has not got on for {_STUCK_S:g} s: {where_is(running.process.pid)}"
            )
            self._kill(name, running)
            running.said_s = time.monotonic()

    # --- kills

    def _kill_somebody(self) -> None:
        if self.kills.total() % _DAEMON_EVERY == _DAEMON_FIRST:
            self._kill_daemon(self._random.choice(self._settings.mounts))
            return
        name = self._random.choice(ACTORS)
        running = self._running[name]
        commands = children_of(running.process.pid)
        if commands and self._random.random() < 0.5:
            self.kills[f"command of {name}"] += 1
            with suppress(ProcessLookupError):
                os.kill(self._random.choice(commands), signal.SIGKILL)
        elif running.process.poll() is None:
            self._kill(name, running)

    def _kill(self, name: str, running: Running) -> None:
        self.kills[name.partition("-")[0]] += 1
        running.process.kill()

    def _kill_daemon(self, mountpoint: Path) -> None:
        self.note_statuses()
        pid = daemons(self._settings.store).get(mountpoint)
        if pid is None:
            self._tally.fault(f"nobody says that he serves {mountpoint}")
        else:
            self.kills["daemon"] += 1
            os.kill(pid, signal.SIGKILL)
            try:
                wait_until(lambda: not is_alive(pid), "the killed daemon's end")
            except AssertionError:
                raise Broken(f"SIGKILL does not end the daemon:\n{where_is(pid)}") from None
            # For a moment clients see a dead mount, as they do until somebody looks.
            pause(self._random.uniform(0, 0.3))
        self.mount(mountpoint)

    def note_statuses(self) -> None:
        """Keep what the daemons say of themselves now."""
        self._status_s = time.monotonic()
        for mountpoint, pid in daemons(self._settings.store).items():
            status = status_or_none(mountpoint)
            if status is not None:
                self.statuses[pid] = status

    # --- the end

    def end_writers(self) -> None:
        """Wait until all but the watchers have ended, and the commands whose actors were killed."""
        writers = [self._running[name] for name in ACTORS if name not in WATCHERS]
        watching = {self._running[name].process.pid for name in WATCHERS}
        groups = [group for group in self._groups if group not in watching]
        give_up = time.monotonic() + _END_DEADLINE_S
        while any(each.process.poll() is None for each in writers) or any(map(has_group, groups)):
            if time.monotonic() > give_up:
                left = [each.process for each in writers if each.process.poll() is None]
                told = (
                    "\n".join(where_is(each.pid) for each in left)
                    or "a command whose actor was killed"
                )
                self._tally.fault(f"not ended {_END_DEADLINE_S:g} s after the deadline: {told}")
                for group in groups:
                    with suppress(ProcessLookupError):
                        os.killpg(group, signal.SIGKILL)
                return
            pause(_LOOK_EVERY_S)
        for name in WATCHERS:
            if self._running[name].process.poll() is not None:
                self._start(name, self._running[name].number + 1)

    def end_watchers(self) -> None:
        """Ask the watchers for their pictures and wait for these."""
        for name in WATCHERS:
            (self._settings.pictures / f"{name}.end").touch()
            running = self._running[name]
            try:
                running.process.wait(_END_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self._tally.fault(f"{name} does not end: {where_is(running.process.pid)}")
        self._tally.flush()


def has_group(group: int) -> bool:
    """Whether a process of this group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
