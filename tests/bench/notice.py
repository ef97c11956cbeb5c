"""How soon a change is noticed in a view that is listed and watched: heard by inotify(7), and seen by listing it.

Two ways to make a change. *Command*: counted from when the program is started, which then reads its modules, waits for
the lock and the disk, and commits. *Commit*: made by this very process, counted from when its transaction has returned,
which is behind the commit by the microseconds it takes to let go of the lock. A client's rename(2) is counted from its
call, so its commit is in it. Each sample is of one change of one message, alone; all events of it are heard out before
the next. Listings follow each other from the moment counting begins, and the time is that at which the first that
shows the change has ended; of commands only once they have ended, which is behind the commit by the milliseconds Python takes
to leave.
"""

import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from mailfs.ids import Keyword
from mailfs.message.keywords import RECENT
from mailfs.store.prepare import prepare_message
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from tests.bench.programs import COMMAND_DEADLINE_S, MAILFS, mailfs
from tests.bench.report import Aim, Skip
from tests.bench.setting import Setting
from tests.bench.watched import (
    DEADLINE_S,
    IN_CREATE,
    IN_DELETE,
    IN_MOVED_TO,
    Ear,
    docid_of,
    find,
    listened,
    make_store,
)
from tests.fakes import PROJECT, make_message

NOTICE_MS = 100.0
_AIM = Aim(f"<= {NOTICE_MS:g} ms", NOTICE_MS)
# Each is changed once: four figures of two kinds, and those of a client's renames.
_MESSAGES_A_SAMPLE = 12


class Kind(NamedTuple):
    """A kind of change, and where it is noticed. `command` and `commit` make the next one."""

    name: str
    folder: str
    event: int
    command: Callable[[], "Running"]
    commit: Callable[[Transaction], object]


class Running:
    """A command that was started just now."""

    def __init__(self, root: Path, words: tuple[str, ...], given: bytes = b"") -> None:
        self.started_s = time.perf_counter()
        self._process = subprocess.Popen(
            [*MAILFS, "--store", root, *words],
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(given)
        self._process.stdin.close()

    def end(self) -> None:
        """Wait for it. Raises RuntimeError where it failed."""
        # Popen.wait() with a deadline looks every 50 ms.
        fd = os.pidfd_open(self._process.pid)
        try:
            if not select.select([fd], [], [], COMMAND_DEADLINE_S)[0]:
                self._process.kill()
        finally:
            os.close(fd)
        if code := self._process.wait():
            raise RuntimeError(f"{self._process.args!r} ended with {code}")


class _Notice:
    """A store, its mount, and messages nobody has changed yet."""

    def __init__(self, setting: Setting, store: Store, ear: Ear) -> None:
        self.setting = setting
        self.root = store.layout.root
        self.mountpoint = setting.mountpoint
        self.store = store
        self.ear = ear
        # New ones have names in new/; what is watched is in cur/.
        self._untouched = find(store, "tag:inbox is:seen not is:flagged not tag:play")
        if len(self._untouched) < _MESSAGES_A_SAMPLE * setting.samples:
            raise Skip(f"{setting.samples} samples of each kind take more messages")
        self._numbers = iter(range(1, 1 << 30))

    # --- changes

    def kinds(self) -> tuple[Kind, ...]:
        return (
            Kind("deliver", "inbox/new", IN_CREATE, self._deliver, self._add),
            Kind(
                *("tag", "play/cur", IN_CREATE),
                lambda: Running(self.root, ("tag", "+play", "--", self._id())),
                lambda tx: tx.edit_keywords(self._untouched.pop(), add=(Keyword("play"),)),
            ),
            Kind(
                *("expunge", "inbox/cur", IN_DELETE),
                lambda: Running(self.root, ("expunge", self._id())),
                lambda tx: tx.expunge(self._untouched.pop()),
            ),
        )

    def _deliver(self) -> Running:
        return Running(self.root, ("deliver",), self._message())

    def _add(self, transaction: Transaction) -> object:
        keywords = (Keyword("inbox"),)
        return transaction.add(prepare_message(self._message(), RECENT, keywords, time.time_ns()))

    def _message(self) -> bytes:
        return make_message(next(self._numbers), subject="news", body="some text\n" * 30)

    def _id(self) -> str:
        (summary,) = self.store.index.summaries([self._untouched.pop()])
        return f"id:{summary.message_id}"

    def flags(self) -> Iterator[tuple[Path, Path]]:
        """Renames that flag messages, in the view of all of them."""
        docids = set(self._untouched)
        folder = self.setting.view / "cur"
        for name in os.listdir(folder):
            letters = name.rpartition(":2,")[2]
            if letters == "S" and docid_of(name) in docids:
                yield folder / name, folder / f"{name[:-1]}FS"

    # --- how they are noticed

    def samples(self, once: Callable[[], float], ear: Ear | None = None) -> list[float]:
        """Milliseconds; each time when everything has been heard."""
        found = []
        for _ in range(self.setting.samples):
            (ear or self.ear).settle()
            found.append(1e3 * once())
        return found

    def measure(self, kind: Kind) -> None:
        """All four figures of a kind, and what its command takes."""
        folder = self.mountpoint / kind.folder
        took: list[float] = []

        def heard_from_start() -> float:
            running = kind.command()
            heard_s = self.ear.hear(folder, kind.event)
            running.end()
            took.append(1e3 * (time.perf_counter() - running.started_s))
            return heard_s - running.started_s

        def listed_from_start() -> float:
            before = set(os.listdir(folder))
            running = kind.command()
            running.end()
            return listed(folder, before) - running.started_s

        def heard_from_commit() -> float:
            committed_s = self._commit(kind)
            return self.ear.hear(folder, kind.event) - committed_s

        def listed_from_commit() -> float:
            before = set(os.listdir(folder))
            committed_s = self._commit(kind)
            return listed(folder, before) - committed_s

        for name, once, aim in (
            ("heard, from the command's start", heard_from_start, _AIM),
            ("listed, from the command's start", listed_from_start, _AIM),
            ("heard, from the commit", heard_from_commit, _AIM),
            ("listed, from the commit", listed_from_commit, _AIM),
        ):
            self.add(f"{kind.name} {name}", self.samples(once), aim)
        self.add(f"{kind.name} command, start to end", took, None)

    def _commit(self, kind: Kind) -> float:
        with self.store.writer.transaction("bench", durable=True) as transaction:
            kind.commit(transaction)
        return time.perf_counter()

    def measure_renames(self, name: str, ear: Ear, mountpoint: Path) -> None:
        """A client's rename in `all`, noticed in `inbox` of a mount."""
        renames = self.flags()
        folder = mountpoint / "inbox/cur"

        def heard() -> float:
            before, after = next(renames)
            start_s = time.perf_counter()
            before.rename(after)
            return ear.hear(folder, IN_MOVED_TO) - start_s

        def seen() -> float:
            known = set(os.listdir(folder))
            before, after = next(renames)
            start_s = time.perf_counter()
            before.rename(after)
            return listed(folder, known) - start_s

        self.add(f"{name} heard", self.samples(heard, ear), _AIM)
        self.add(f"{name} listed", self.samples(seen, ear), _AIM)

    def measure_deliveries_elsewhere(self, ear: Ear, mountpoint: Path) -> None:
        """A commit by nobody's mount, heard at a second one."""
        kind = self.kinds()[0]

        def heard() -> float:
            committed_s = self._commit(kind)
            return ear.hear(mountpoint / kind.folder, kind.event) - committed_s

        self.add("deliver heard at a second mount", self.samples(heard, ear), _AIM)

    def add(self, name: str, samples: list[float], aim: Aim | None) -> None:
        self.setting.report.add("notice", name, "ms", samples, aim)


def listed(folder: Path, before: set[str]) -> float:
    """When a listing that differs from the one before had ended. Raises RuntimeError after DEADLINE_S."""
    give_up = time.perf_counter() + DEADLINE_S
    while time.perf_counter() < give_up:
        names = os.listdir(folder)
        listed_s = time.perf_counter()
        if set(names) != before:
            return listed_s
    raise RuntimeError(f"nothing changed in {folder} within {DEADLINE_S:g} s")


def measure_notice(setting: Setting) -> None:
    """Deliveries, keywords, removals, a client's renames; with one mount, and at a second one."""
    root = make_store(setting, "store-notice")
    with ExitStack() as stack:
        store = stack.enter_context(Store.open(root))
        _, ear = stack.enter_context(listened(root, setting.mountpoint))
        notice = _Notice(setting, store, ear)
        for kind in notice.kinds():
            notice.measure(kind)
        notice.measure_renames("rename in another view", ear, setting.mountpoint)
        second = setting.work / "second"
        _, second_ear = stack.enter_context(listened(root, second))
        notice.measure_renames("rename at a second mount", second_ear, second)
        notice.measure_deliveries_elsewhere(second_ear, second)
    mailfs(root, "verify", "--quiet")
