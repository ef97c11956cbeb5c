"""A view of a million messages: what the daemon keeps of it, and how long it takes to list."""

import os
import shutil
from pathlib import Path

from mailfs.store.database import open_writer
from tests.bench.programs import mailfs, memory_mb, mounted, timed
from tests.bench.report import Aim
from tests.bench.setting import Setting

MEMORY_MB = 300.0
MEMORY_MESSAGES = 1_000_000


def measure_memory(setting: Setting) -> None:
    """A view of a million messages: rows of the index alone, listed once."""
    store = setting.work / "million"
    mailfs(store, "init")
    fill_index(store / "index.sqlite3", MEMORY_MESSAGES)
    took: list[float] = []
    with mounted(store, setting.mountpoint) as pid:
        before_mb = memory_mb(pid, "VmRSS")
        found: list[str] = []
        took.append(timed(lambda: found.extend(os.listdir(setting.view / "cur"))))
        took.append(timed(lambda: os.listdir(setting.view / "cur")))
        after_mb, peak_mb = memory_mb(pid, "VmRSS"), memory_mb(pid, "VmHWM")
    shutil.rmtree(store)
    if len(set(found)) != MEMORY_MESSAGES:
        raise RuntimeError(f"{len(set(found))} names of {MEMORY_MESSAGES} were listed")
    add = setting.report.add
    aim = Aim(f"< {MEMORY_MB:g} MB", MEMORY_MB)
    add("memory", "daemon, fresh", "MB", [before_mb])
    add("memory", "daemon, 1,000,000 listed", "MB", [after_mb], aim)
    add("memory", "daemon, peak", "MB", [peak_mb])
    add("memory", "first listing of 1,000,000", "s", took[:1])
    add("memory", "second listing of 1,000,000", "s", took[1:])


def fill_index(index: Path, count: int) -> None:
    """Rows of `message` without bytes: enough to list. All seen, so all in cur/."""
    connection = open_writer(index)
    with connection:
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "INSERT INTO message SELECT i, 2, 1, 0, 2000 + i % 20000, (1400000000 + i) * 1000000000, "
            "(1400000000 + i) * 1000000000, 1400000000 + i, i FROM n",
            (count,),
        )
        connection.execute("UPDATE state SET modseq = 2")
    connection.close()
