"""SQLite's race: processes that commit while others checkpoint and begin the log anew; no commit may get lost.

SQLite before 3.51.3 lost committed pages in just this (sqlite.org/wal.html#walresetbug). Half of the commits are made
under the store's writer lock, as all of the program's are, the others rely on SQLite's own locks; checkpoints of all kinds
are forced every few commits, by whoever has just committed. Each process knows what its rows must hold.
"""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from random import Random

import apsw

from mailfs.store.database import open_reader, open_writer, sqlite_version
from mailfs.store.layout import Layout, open_layout
from mailfs.store.lock import WriterLock
from mailfs.store.store import Store
from tests.fakes import PROJECT
from tests.mount.waiting import pause
from tests.torture.report import Report

PROCESSES = 4
# Rows a process writes again and again: a few hundred pages, so that a lost page shows.
_SLOTS = 2000
_LONGEST_FILLER_BYTES = 300
# So many commits lie between two checkpoints of a process at most, and between two looks at what it wrote.
_COMMITS_BETWEEN_CHECKPOINTS = 60
_COMMITS_BETWEEN_LOOKS = 200
_LOCK_DEADLINE_S = 120.0
# A hundred times as long as it takes here.
_COMMITS_A_SECOND = 50
_START_DEADLINE_S = 60.0
_LONGEST_WAIT_S = 0.0005
_MOST_TRIES = 4000
_MODES = {
    "passive": apsw.SQLITE_CHECKPOINT_PASSIVE,
    "full": apsw.SQLITE_CHECKPOINT_FULL,
    "restart": apsw.SQLITE_CHECKPOINT_RESTART,
    "truncate": apsw.SQLITE_CHECKPOINT_TRUNCATE,
}
_TABLES = """
CREATE TABLE race_count(process INTEGER PRIMARY KEY, commits INTEGER NOT NULL);
CREATE TABLE race_slot(
  process INTEGER, slot INTEGER, number INTEGER NOT NULL, filler TEXT NOT NULL,
  PRIMARY KEY (process, slot)
) WITHOUT ROWID;
"""


def run(seed: int, count: int, directory: Path) -> Report:
    """So many commits in all, on the index of a store in `directory`."""
    report = Report("race", seed)
    root = directory / "store"
    with Store.create(root) as store, closing(open_writer(store.layout.index)) as connection:
        connection.execute(_TABLES)
        connection.executemany(
            "INSERT INTO race_count VALUES (?, 0)", [(each,) for each in range(PROCESSES)]
        )
    start = time.monotonic()
    shares = [count // PROCESSES + (each < count % PROCESSES) for each in range(PROCESSES)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.torture.race", root, *map(str, (seed, process, share))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=PROJECT,
        )
        for process, share in enumerate(shares)
    ]
    try:
        give_up = start + _START_DEADLINE_S + count / _COMMITS_A_SECOND
        expected = [_said(report, each, give_up - time.monotonic(), count) for each in processes]
    finally:
        for each in processes:
            each.kill()
            each.wait()
    took_s = time.monotonic() - start
    report.note(f"SQLite {sqlite_version()}, {count / took_s:.0f} commits a second")
    for what in wrong(open_layout(root), shares, expected):
        report.fail(count, what)
    return report


def _said(
    report: Report, process: "subprocess.Popen[bytes]", deadline_s: float, count: int
) -> dict[int, int]:
    """The end of one process: what its slots must hold."""
    try:
        said, problems = process.communicate(timeout=max(deadline_s, 1.0))
    except subprocess.TimeoutExpired:
        report.fail(count, "a process does not get on")
        return {}
    if process.returncode:
        report.fail(count, f"a process ended with {process.returncode}: {problems.decode()}")
        return {}
    told = json.loads(said)
    for kind, times in told["counts"].items():
        if kind.startswith("commit"):
            report.did(kind, times)
        else:
            report.counts[kind] += times
    for what in told["wrong"]:
        report.fail(count, what)
    return {int(slot): number for slot, number in told["slots"].items()}


def wrong(layout: Layout, shares: list[int], expected: list[dict[int, int]]) -> Iterator[str]:
    """What the index should hold, and does not."""
    with closing(open_reader(layout.index)) as connection:
        for (text,) in connection.execute("PRAGMA integrity_check"):
            if text != "ok":
                yield f"integrity_check: {text}"
        counts: dict[object, object] = dict(connection.execute("SELECT * FROM race_count"))
        for process, share in enumerate(shares):
            if counts.get(process) != share:
                yield f"process {process} made {share} commits, the index knows {counts.get(process)}"
            rows = connection.execute(
                "SELECT slot, number FROM race_slot WHERE process = ?", (process,)
            )
            if dict(rows) != expected[process]:
                yield f"the rows of process {process} are not what it wrote last"


class _Racer:
    """One of the processes."""

    def __init__(self, layout: Layout, seed: int, process: int) -> None:
        self._process = process
        self._random = Random(f"race {seed} {process}")
        self._lock = WriterLock(layout)
        self._connection = open_writer(layout.index)
        # Whoever checkpoints has a connection of its own, as a daemon, a command and a delivery have.
        self._checkpointer = open_writer(layout.index)
        self._reader = open_reader(layout.index)
        for connection in (self._connection, self._checkpointer):
            # SQLite's own handler sleeps for up to 100 ms: nobody would meet anybody.
            connection.set_busy_handler(_wait_a_little)
        self.slots: dict[int, int] = {}
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def race(self, count: int) -> None:
        """So many commits."""
        checkpoint_in = look_in = 1
        for number in range(1, count + 1):
            self._commit(number)
            checkpoint_in -= 1
            if not checkpoint_in:
                self._checkpoint()
                checkpoint_in = self._random.randint(1, _COMMITS_BETWEEN_CHECKPOINTS)
            look_in -= 1
            if not look_in:
                self._look(number)
                look_in = self._random.randint(1, _COMMITS_BETWEEN_LOOKS)

    def _commit(self, number: int) -> None:
        slot = self._random.randrange(_SLOTS)
        filler = "x" * self._random.randrange(_LONGEST_FILLER_BYTES)
        is_locked = self._random.random() < 0.5
        with self._lock.hold("race", _LOCK_DEADLINE_S) if is_locked else nullcontext():
            sql = self._connection
            self._begin(sql)
            sql.execute(
                "UPDATE race_count SET commits = commits + 1 WHERE process = ?", (self._process,)
            )
            sql.execute(
                "INSERT OR REPLACE INTO race_slot VALUES (?, ?, ?, ?)",
                (self._process, slot, number, filler),
            )
            sql.execute("COMMIT")
        self.slots[slot] = number
        self.counts["commits under the lock" if is_locked else "commits without it"] += 1

    def _begin(self, sql: apsw.Connection) -> None:
        """SQLite's busy handler is not fair: who waited long enough tries again."""
        while True:
            try:
                sql.execute("BEGIN IMMEDIATE")
            except apsw.BusyError:
                self.counts["busy"] += 1
            else:
                return

    def _checkpoint(self) -> None:
        kind = self._random.choice(tuple(_MODES))
        try:
            self._checkpointer.wal_checkpoint(mode=_MODES[kind])
        except apsw.BusyError:
            kind = "busy"
        self.counts[f"checkpoints, {kind}"] += 1

    def _look(self, number: int) -> None:
        """Nobody but us writes our rows, so a reader must see what we wrote last."""
        slot = self._random.choice(tuple(self.slots))
        row = self._reader.execute(
            "SELECT commits, (SELECT number FROM race_slot WHERE process = ?1 AND slot = ?2) "
            "FROM race_count WHERE process = ?1",
            (self._process, slot),
        ).fetchone()
        if row != (number, self.slots[slot]):
            self.wrong.append(
                f"process {self._process} reads {row} behind its commit {number}, "
                f"and should read {(number, self.slots[slot])}"
            )


def _wait_a_little(tries: int) -> bool:
    """Whether to try again: for some seconds, very often."""
    pause(_LONGEST_WAIT_S * min(tries, 10) / 10)
    return tries < _MOST_TRIES


def main(root: Path, seed: int, process: int, count: int) -> None:
    """One of the processes; says what it did, as JSON."""
    racer = _Racer(open_layout(root), seed, process)
    racer.race(count)
    said = {"counts": racer.counts, "slots": racer.slots, "wrong": racer.wrong[:10]}
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
