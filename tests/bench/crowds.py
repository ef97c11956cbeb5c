"""Requests of clients while very many messages come or change in views that are listed and watched.

Under `mailfs import`: three imports of the same mail into copies of one store take turns: with nothing mounted, with a mount
whose views are watched, and with such a mount and clients that change flags and look at a view the import does not
touch. A storm: one `mailfs tag` changes most messages.
"""

import contextlib
import functools
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.bench.notice import Running
from tests.bench.programs import in_turn, mailfs
from tests.bench.report import Aim
from tests.bench.setting import Setting, make_corpus
from tests.bench.watched import LABELS, Ear, docid_of, listened, make_store

_PART = "under_import"
FLAG_MS = 200.0
_AIM = Aim(f"<= {FLAG_MS:g} ms", FLAG_MS)
# A person's fastest hand; and a client that looks at one thing after the other.
_FLAG_EVERY_S = 0.1
_LOOK_EVERY_S = 0.02
_STORM_LOOK_EVERY_S = 0.002
# No events for so long: the last of the storm was heard.
_SILENCE_S = 2.0
# A view that nothing is imported into, and whose messages nobody flags.
_LOOKED_AT = "work"

# Kinds of requests, and what makes them.
Asks = Iterator[tuple[str, Callable[[], object]]]


class Clients:
    """Threads that ask again and again until they are stopped; milliseconds of each request, by kind."""

    def __init__(self) -> None:
        self.took: dict[str, list[float]] = {}
        self._end = threading.Event()
        self._threads = ThreadPoolExecutor()
        self._asking: list[Future[None]] = []

    def start(self, every_s: float, asks: Asks) -> None:
        """One more thread, that takes from `asks` what to do next."""
        self._asking.append(self._threads.submit(self._ask, every_s, asks))

    def _ask(self, every_s: float, asks: Asks) -> None:
        while not self._end.wait(every_s):
            kind, ask = next(asks)
            start_s = time.perf_counter()
            ask()
            self.took.setdefault(kind, []).append(1e3 * (time.perf_counter() - start_s))

    def stop(self) -> None:
        """End all. Raises what went wrong in one of them."""
        self._end.set()
        self._threads.shutdown()
        for asking in self._asking:
            asking.result()


def flag_changes(folder: Path, names: list[str]) -> Asks:
    """Renames that flag one message after the other, and then take the flags off again. The names end with `S`."""
    flagged = [f"{name[:-1]}FS" for name in names]
    there, back = list(zip(names, flagged, strict=True)), list(zip(flagged, names, strict=True))
    for before, after in itertools.cycle((*there, *back)):
        yield "flag change", functools.partial(os.rename, folder / before, folder / after)


def looks(folder: Path) -> Asks:
    """Requests that read; each one reaches the daemon."""
    names = os.listdir(folder)
    for number in itertools.count():
        name = names[number * 7 % len(names)]
        yield "stat in another view", (folder / f"absent-{number}").exists
        yield "open and read in another view", (folder / name).read_bytes
        yield "readdir of another view", functools.partial(os.listdir, folder)


def seen_names(folder: Path) -> list[str]:
    """Of messages of a folder that are seen and nothing else, and not in the view that is looked at meanwhile."""
    nth = LABELS[_LOOKED_AT]
    return [name for name in os.listdir(folder) if name.endswith(":2,S") and docid_of(name) % nth]


@dataclass(slots=True)
class Storm:
    """Events heard. `last_s` is when the last of them came, on the clock of time.perf_counter()."""

    events: int = 0
    last_s: float = 0.0


@contextlib.contextmanager
def counting(ear: Ear) -> Iterator[Storm]:
    """Counts the events heard in the block and until it is silent; complete right behind the block."""
    storm = Storm(last_s=time.perf_counter())
    is_over = threading.Event()

    def count() -> None:
        while not is_over.is_set() or time.perf_counter() - storm.last_s < _SILENCE_S:
            if found := ear.count(_SILENCE_S / 4):
                storm.events += found
                storm.last_s = time.perf_counter()

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield storm
    finally:
        is_over.set()
        thread.join()


class _Imports:
    """What came of the imports of all rounds, by way."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.maildir = setting.work / "bulk" / "maildir"
        self.maildir.parent.mkdir()
        make_corpus(self.maildir, setting.imported, 2)
        self.base = make_store(setting, "store-bulk")
        self.rates: dict[str, list[float]] = {"nothing mounted": [], "watched": [], "busy": []}
        self.events: dict[str, list[float]] = {"watched": [], "busy": []}
        self.behind: dict[str, list[float]] = {"watched": [], "busy": []}
        self.took: dict[str, list[float]] = {}

    def run(self, way: str) -> None:
        """One import."""
        root = self.setting.work / "store-import"
        shutil.copytree(self.base, root)
        os.sync()
        if way == "nothing mounted":
            self._import(way, root)
        else:
            with listened(root, self.setting.mountpoint) as (_, ear):
                with counting(ear) as storm:
                    self._import_beside(way, root)
                    ended_s = time.perf_counter()
                self.events[way].append(storm.events)
                self.behind[way].append(max(0.0, storm.last_s - ended_s))
            mailfs(root, "verify", "--quiet")
        shutil.rmtree(root)

    def _import_beside(self, way: str, root: Path) -> None:
        clients = Clients()
        if way == "busy":
            inbox = self.setting.mountpoint / "inbox/cur"
            clients.start(_FLAG_EVERY_S, flag_changes(inbox, seen_names(inbox)))
            clients.start(_LOOK_EVERY_S, looks(self.setting.mountpoint / _LOOKED_AT / "cur"))
        try:
            self._import(way, root)
        finally:
            clients.stop()
        for kind, took in clients.took.items():
            self.took.setdefault(kind, []).extend(took)

    def _import(self, way: str, root: Path) -> None:
        running = Running(root, ("import", str(self.maildir)))
        running.end()
        took_s = time.perf_counter() - running.started_s
        self.rates[way].append(self.setting.imported / took_s)


def measure_under_import(setting: Setting) -> None:
    """How long a flag change takes meanwhile, and how much slower the import is."""
    imports = _Imports(setting)
    for number in range(setting.rounds):
        for way in in_turn(list(imports.rates), number):
            imports.run(way)
    add = setting.report.add
    for way, rates in imports.rates.items():
        add(_PART, f"import, {way}", "messages/s", rates)
    for way, events in imports.events.items():
        add(_PART, f"events heard, {way}", "events", events)
        add(_PART, f"last event after the end, {way}", "s", imports.behind[way])
    for kind, took in sorted(imports.took.items()):
        aim = _AIM if kind == "flag change" else None
        add(_PART, kind, "ms", took, aim)
        add(_PART, f"{kind}, longest", "ms", [max(took)], aim)


def measure_storm(setting: Setting) -> None:
    """Requests while one command changes the flags of two thirds of all messages, in views that are watched."""
    root = make_store(setting, "store-storm")
    query = f"tag:inbox and not tag:{_LOOKED_AT}"
    took_s: list[float] = []
    events: list[float] = []
    behind_s: list[float] = []
    longest_ms: list[float] = []
    with listened(root, setting.mountpoint) as (_, ear):
        looked_at = setting.mountpoint / _LOOKED_AT / "cur"
        for keyword in ("+flagged", "-flagged") * setting.rounds:
            clients = Clients()
            with counting(ear) as storm:
                clients.start(_STORM_LOOK_EVERY_S, looks(looked_at))
                running = Running(root, ("tag", keyword, "--", query))
                running.end()
                ended_s = time.perf_counter()
                # Behind the last of the changes.
                os.listdir(looked_at)
                clients.stop()
            took_s.append(ended_s - running.started_s)
            events.append(storm.events)
            behind_s.append(max(0.0, storm.last_s - ended_s))
            longest_ms.append(max(itertools.chain(*clients.took.values())))
    add = setting.report.add
    add("storm", "command, start to end", "s", took_s)
    add("storm", "longest request meanwhile", "ms", longest_ms, _AIM)
    add("storm", "events heard", "events", events)
    add("storm", "last event after the end", "s", behind_s)
