"""A store of its own whose views are listed and watched, and what their watchers hear.

Times are of time.perf_counter(), in seconds.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from mailfs.ids import Docid, Keyword
from mailfs.search.plan import plan
from mailfs.search.query import parse_query
from mailfs.store.store import Store
from tests.bench.programs import mounted
from tests.bench.setting import Setting
from tests.stress.watching import Inotify

# Label views beside those a new store has, and which messages are in them: every third, and so on.
LABELS = {"work": 3, "play": 7, "lists/apples": 10, "lists/pears": 11}
VIEWS = ("inbox", "unread", "flagged", "all", *LABELS)
# inotify(7), sys/inotify.h
IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x80, 0x100, 0x200
# What is not heard in this time never comes.
DEADLINE_S = 20.0
# Events of one change follow each other closely. Pausing so long also keeps changes far below a storm's number.
_QUIET_S = 0.05


class Ear:
    """Watches cur/ and new/ of views, which are listed first."""

    def __init__(self, mountpoint: Path, views: tuple[str, ...] = VIEWS) -> None:
        self._inotify = Inotify()
        self._folders: dict[int, Path] = {}
        for folder in (mountpoint / view / part for view in views for part in ("cur", "new")):
            os.listdir(folder)
            self._folders[self._inotify.watch(folder)] = folder

    def close(self) -> None:
        """Stop watching."""
        os.close(self._inotify.fd)

    def hear(self, folder: Path, event: int) -> float:
        """When the next such event of a folder came; others are passed over. Raises RuntimeError after DEADLINE_S."""
        give_up = time.perf_counter() + DEADLINE_S
        while time.perf_counter() < give_up:
            events = self._inotify.events(DEADLINE_S)
            heard_s = time.perf_counter()
            if any(mask & event and self._folders[watch] == folder for watch, mask, _ in events):
                return heard_s
        raise RuntimeError(f"no event {event:#x} in {folder} within {DEADLINE_S:g} s")

    def count(self, wait_s: float) -> int:
        """How many events came, waiting so long for the first."""
        return len(self._inotify.events(wait_s))

    def settle(self) -> None:
        """Hear everything out."""
        while self._inotify.events(_QUIET_S):
            pass


def make_store(setting: Setting, name: str) -> Path:
    """A copy of the run's store, with label views."""
    setting.need_store()
    root = setting.work / name
    shutil.copytree(setting.store, root)
    with Store.open(root) as store, store.writer.transaction("bench", durable=True) as tx:
        for docid in find(store, "*"):
            tx.edit_keywords(
                docid, add=[Keyword(k) for k, nth in LABELS.items() if not docid % nth]
            )
        for keyword in LABELS:
            tx.searches.save(keyword, f"tag:{keyword}")
    return root


def find(store: Store, query: str) -> list[Docid]:
    """Which messages match."""
    return store.index.docids(plan(parse_query(query), time.time()))


def docid_of(name: str) -> Docid:
    """Whose canonical name this is: `TIME.M<docid>.STORE,S=SIZE:2,FLAGS`."""
    return Docid(int(name.split(".")[1].removeprefix("M")))


@contextlib.contextmanager
def listened(root: Path, mountpoint: Path) -> Iterator[tuple[int, Ear]]:
    """A mount of a store whose views are listed and watched: the daemon's pid, and who listens."""
    with mounted(root, mountpoint) as pid:
        ear = Ear(mountpoint)
        try:
            ear.settle()
            yield pid, ear
        finally:
            ear.close()
