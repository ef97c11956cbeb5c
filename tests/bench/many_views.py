"""What loaded views cost: one more flag change with hundreds of them, and a mount where nothing happens."""

import contextlib
import itertools
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from mailfs.ids import Keyword
from mailfs.store.store import Store
from tests.bench.crowds import flag_changes, seen_names
from tests.bench.programs import mounted, timed
from tests.bench.report import Aim
from tests.bench.setting import Setting
from tests.bench.watched import find, listened, make_store
from tests.mount.waiting import pause

FEW = ("inbox", "unread", "all")
LABEL_VIEWS = 300
TEXT_VIEWS = 20
LABELS_A_MESSAGE = 2
# What a rename leaves to be done is done behind it.
_PAUSE_S = 0.03
# The smallest time the system has a word for: a clock tick.
IDLE_MS = 10.0
_SETTLED_S = 2.0


def measure_many_views(setting: Setting) -> None:
    """The same renames with 3 views loaded and with hundreds, of labels and of words."""
    root = make_store(setting, "store-views")
    names = _save_views(root)
    add = setting.report.add
    for views in (FEW, (*FEW, *names)):
        with mounted(root, setting.mountpoint) as pid:
            for view in views:
                os.listdir(setting.mountpoint / view / "cur")
            found = json.loads((setting.mountpoint / ".mailfs/status.json").read_bytes())["views"]
            if len(found) != len(views):
                raise RuntimeError(f"{len(found)} views are in memory of {len(views)} listed")
            before = Effort.of(pid)
            took = _flag(setting.mountpoint / "inbox/cur", setting.samples)
            worked_ms = Effort.of(pid).ran_ms_since(before) / setting.samples
        add("many_views", f"flag change, {len(views)} views loaded", "ms", took)
        add("many_views", f"processor for it, {len(views)} views", "ms", [worked_ms])


def _save_views(root: Path) -> list[str]:
    """Label views with some messages each, and views of words; their names."""
    labels = [Keyword(f"label-{number}") for number in range(LABEL_VIEWS)]
    with Store.open(root) as store, store.writer.transaction("bench", durable=True) as tx:
        for docid in find(store, "*"):
            mine = [labels[docid * (each + 1) % LABEL_VIEWS] for each in range(LABELS_A_MESSAGE)]
            tx.edit_keywords(docid, add=mine)
        queries = {str(label): f"tag:{label}" for label in labels}
        queries |= {f"text-{number}": _text_query(number) for number in range(TEXT_VIEWS)}
        for name, query in queries.items():
            tx.searches.save(name, query)
    return list(queries)


def _text_query(number: int) -> str:
    """Words of many messages, of few and of none, in some of the ways to ask for them."""
    words = (
        "the",
        "linux",
        "list",
        "please",
        "patch",
        "money",
        "kernel",
        "sent",
        "account",
        "week",
    )
    word = words[number % len(words)]
    return word if number < len(words) else f"body:{word} and not subject:{words[number - 10 - 1]}"


def _flag(folder: Path, samples: int) -> list[float]:
    """Milliseconds that renames take, one after the other with time to hear of each."""
    took = []
    for _, change in itertools.islice(flag_changes(folder, seen_names(folder)), samples):
        took.append(1e3 * timed(change))
        pause(_PAUSE_S)
    return took


class Effort(NamedTuple):
    """What a process has used, by thread: processor time, and how often it was let or made to wait."""

    ran_ns: dict[str, int]
    switches: dict[str, int]

    @classmethod
    def of(cls, pid: int) -> "Effort":
        """Of its living threads. From proc(5): schedstat counts nanoseconds, where stat counts ticks."""
        effort = cls({}, {})
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                effort.ran_ns[task.name] = int((task / "schedstat").read_text().split()[0])
                counts = re.findall(r"ctxt_switches:\s+(\d+)", (task / "status").read_text())
                effort.switches[task.name] = sum(map(int, counts))
        return effort

    def ran_ms_since(self, before: "Effort") -> float:
        """Milliseconds of processor time between two looks. A thread that ended meanwhile did next to nothing else."""
        return _grown(before.ran_ns, self.ran_ns) / 1e6

    def switches_since(self, before: "Effort") -> int:
        """Context switches between two looks."""
        return _grown(before.switches, self.switches)


def _grown(before: dict[str, int], after: dict[str, int]) -> int:
    return sum(count - before.get(thread, 0) for thread, count in after.items())


def measure_idle(setting: Setting) -> None:
    """A mount whose views are watched, and nothing happens."""
    root = make_store(setting, "store-idle")
    with listened(root, setting.mountpoint) as (pid, ear):
        while ear.count(_SETTLED_S):
            pass
        before = Effort.of(pid)
        pause(setting.idle_s)
        after = Effort.of(pid)
    per_10_s = 10 / setting.idle_s
    ran_ms = after.ran_ms_since(before) * per_10_s
    aim = Aim(f"<= {IDLE_MS:g} ms", IDLE_MS)
    setting.report.add("idle", "processor time in 10 s", "ms", [ran_ms], aim)
    switches = after.switches_since(before) * per_10_s
    setting.report.add("idle", "context switches in 10 s", "switches", [switches])
