"""A program that watches folders by inotify(7) and keeps two pictures of each, which at the end are held against listings.

listed      as mail programs do it: whatever event comes, the folder is listed anew. It must be right
told        from one listing and the events alone. In a storm a mount tells of a few names for many, so this one
            may be wrong; how often is counted
"""

import ctypes
import ctypes.util
import json
import os
import select
import struct
import time
from contextlib import suppress
from pathlib import Path

from tests.stress.actor import Actor
from tests.stress.settings import STANDING, Settings
from tests.stress.tally import Given

_IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x40, 0x80, 0x100, 0x200
_IN_Q_OVERFLOW, _IN_IGNORED = 0x4000, 0x8000
_IN_ONLYDIR = 0x1000000
_WANTED = _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE
_EVENT = struct.Struct("iIII")
_WAIT_S = 0.2
_VIEWS = 4
_FINISH_DEADLINE_S = 180.0

_libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)


class Inotify:
    """An inotify descriptor; watches are numbers."""

    def __init__(self) -> None:
        self.fd = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))

    def watch(self, folder: Path) -> int:
        """Raises OSError."""
        path = os.fsencode(folder)
        return _checked(_libc.inotify_add_watch(self.fd, path, _WANTED | _IN_ONLYDIR))

    def events(self, wait_s: float) -> list[tuple[int, int, str]]:
        """Watch, mask and name of what came within `wait_s` seconds."""
        if not select.select([self.fd], [], [], wait_s)[0]:
            return []
        data = os.read(self.fd, 1 << 18)
        found, start = [], 0
        while start < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, start)
            start += _EVENT.size
            found.append((watch, mask, os.fsdecode(data[start : start + length].rstrip(b"\0"))))
            start += length
        return found


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


class Watcher(Actor):
    """Watches cur/ and new/ of some views of one mount."""

    def __init__(self, settings: Settings, name: str, number: int) -> None:
        super().__init__(settings, name, number)
        self._inotify = Inotify()
        views = self.random.sample(STANDING, _VIEWS)
        self._unwatched = {self.mount / view / part for view in views for part in ("cur", "new")}
        self._folders: dict[int, Path] = {}
        self._told: dict[Path, set[str]] = {}
        self._last_listed: dict[Path, list[str]] = {}
        self._dirty: set[Path] = set()

    def step(self) -> None:
        self._watch_all()
        for event in self._inotify.events(_WAIT_S):
            self._take(*event)
        for folder in sorted(self._dirty):
            self._last_listed[folder] = self.listed(folder)
            self._dirty.discard(folder)

    def _watch_all(self) -> None:
        """First the watch, then the listing: what comes in between is an event, and known twice does no harm."""
        for folder in sorted(self._unwatched):
            with self.tally.doing("watch"):
                watch = self._inotify.watch(folder)
            self._last_listed[folder] = self.listed(folder)
            self._told[folder] = set(self._last_listed[folder])
            self._folders[watch] = folder
            self._unwatched.discard(folder)

    def _take(self, watch: int, mask: int, name: str) -> None:
        if mask & _IN_Q_OVERFLOW:
            self.tally.error("watch", "IN_Q_OVERFLOW")
            self._unwatched |= set(self._folders.values())
            return
        folder = self._folders.get(watch)
        if folder is None:
            return
        if mask & _IN_IGNORED:
            self.tally.error("watch", "IN_IGNORED")
            del self._folders[watch]
            self._unwatched.add(folder)
            return
        self.tally.took("event", 0.0)
        self._dirty.add(folder)
        if mask & (_IN_CREATE | _IN_MOVED_TO):
            self._told[folder].add(name)
        else:
            self._told[folder].discard(name)

    def finish(self) -> None:
        """Hear what is still said until the judge has made a file of our name; then write down what we believe."""
        end = self.settings.pictures / f"{self.name}.end"
        give_up = time.monotonic() + _FINISH_DEADLINE_S
        while not end.exists() and time.monotonic() < give_up:
            self.tally.beat()
            with suppress(Given):
                self.step()
        pictures = {
            str(folder.relative_to(self.mount)): {
                "listed": sorted(self._last_listed[folder]),
                "told": sorted(self._told[folder]),
            }
            for folder in self._folders.values()
        }
        waiting = self.settings.pictures / f"{self.name}.waiting"
        waiting.write_text(json.dumps({"mount": self.mount.name, "folders": pictures}))
        waiting.rename(self.settings.pictures / f"{self.name}.json")
