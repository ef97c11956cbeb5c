"""What a program hears that watches folders by inotify(7), and that it hears exactly what happened.

What is heard is written in lines, so that two lists of them can be compared:

    CREATE inbox/new/NAME      DELETE inbox/cur/NAME      MOVE inbox/new/NAME -> inbox/cur/OTHER

A move is MOVED_FROM and MOVED_TO with the same cookie; a half without its other half is written by its own name. What is
done to a directory has `ISDIR` behind.
"""

import ctypes
import ctypes.util
import errno
import json
import os
import select
import stat
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from mailfs.ids import Docid, Keyword
from mailfs.message.keywords import RECENT, letters_of_flags
from mailfs.message.maildir import Base, format_base, format_name
from mailfs.search.plan import plan
from mailfs.search.query import parse_query
from mailfs.store.index import EntryRow
from mailfs.store.prepare import prepare_message
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from tests.fakes import make_message
from tests.mount.calls import Listing, check, refused
from tests.mount.mounting import Mailfs
from tests.mount.waiting import DEADLINE_S, wait_until

# sys/inotify.h
_NAMES = {
    0x2: "MODIFY",
    0x4: "ATTRIB",
    0x8: "CLOSE_WRITE",
    0x40: "MOVED_FROM",
    0x80: "MOVED_TO",
    0x100: "CREATE",
    0x200: "DELETE",
    0x400: "DELETE_SELF",
    0x800: "MOVE_SELF",
    0x2000: "UNMOUNT",
    0x4000: "Q_OVERFLOW",
    0x8000: "IGNORED",
    0x40000000: "ISDIR",
}
# Without reading (ACCESS, OPEN, CLOSE_NOWRITE), which the tests themselves do, and ATTRIB, which may come behind CREATE.
WANTED = 0xFCA
ATTRIB = 0x4
_ONLYDIR = 0x1000000
_EVENT = struct.Struct("iIII")
# When what is added here was received.
RECEIVED_NS = 1_600_000_000 * 10**9
# Who hears nothing for so long will hear nothing more: a batch of events takes some milliseconds.
QUIET_S = 0.15

_libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)


class Event(NamedTuple):
    """One event of inotify(7). `folder` is as the watcher was told it; empty for the whole queue's overflow."""

    folder: str
    kinds: frozenset[str]
    cookie: int
    name: str

    @property
    def place(self) -> str:
        return str(Path(self.folder, self.name))

    @property
    def mark(self) -> str:
        return " ISDIR" if "ISDIR" in self.kinds else ""


def lines_of(events: Sequence[Event]) -> list[str]:
    """Events as lines, in their order; a move stands where its first half was."""
    goals = {event.cookie: event for event in events if "MOVED_TO" in event.kinds}
    starts = {event.cookie for event in events if "MOVED_FROM" in event.kinds}
    lines = []
    for event in events:
        if "MOVED_FROM" in event.kinds and event.cookie in goals:
            lines.append(f"MOVE {event.place} -> {goals[event.cookie].place}{event.mark}")
        elif "MOVED_TO" not in event.kinds or event.cookie not in starts:
            lines.append(f"{','.join(sorted(event.kinds - {'ISDIR'}))} {event.place}{event.mark}")
    return lines


class Watcher:
    """Watches folders below `root`. One inotify descriptor; for one thread."""

    def __init__(self, root: Path, *folders: str, wanted: int = WANTED) -> None:
        self._root = root
        self._wanted = wanted
        self._folders: dict[int, str] = {}
        self._fd = check(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        self._heard: list[Event] = []
        self.watch(*folders)

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def watch(self, *folders: str) -> None:
        """As inotifywait(1) does: nothing is listed."""
        for folder in folders:
            path = os.fsencode(self._root / folder)
            watch = check(_libc.inotify_add_watch(self._fd, path, self._wanted | _ONLYDIR))
            self._folders[watch] = folder

    def take(self, wait_s: float = 0.0) -> list[Event]:
        """What has come since the last call, or comes first within `wait_s`."""
        if select.select([self._fd], [], [], wait_s)[0]:
            data, start = os.read(self._fd, 1 << 20), 0
            while start < len(data):
                watch, mask, cookie, length = _EVENT.unpack_from(data, start)
                start += _EVENT.size
                name = os.fsdecode(data[start : start + length].rstrip(b"\0"))
                start += length
                kinds = frozenset(text for bit, text in _NAMES.items() if mask & bit)
                self._heard.append(Event(self._folders.get(watch, ""), kinds, cookie, name))
        heard, self._heard = self._heard, []
        return heard

    def hear(self, until_quiet_s: float = QUIET_S) -> list[Event]:
        """Everything until nothing comes for so long. Fails the test when it does not end."""
        give_up = time.monotonic() + DEADLINE_S
        heard: list[Event] = []
        while more := self.take(until_quiet_s):
            heard += more
            assert time.monotonic() < give_up, f"it does not end: {len(heard)} events"
        return heard

    def expect(self, *lines: str, deadline_s: float = DEADLINE_S) -> list[Event]:
        """These come within the deadline, in any order, each of them once, and nothing else."""
        give_up = time.monotonic() + deadline_s
        wanted, heard = Counter(lines), list[Event]()
        while wanted - Counter(lines_of(heard)) and time.monotonic() < give_up:
            heard += self.take(max(0.0, give_up - time.monotonic()))
        heard += self.hear()
        told = Counter(lines_of(heard))
        missing, surplus = sorted((wanted - told).elements()), sorted((told - wanted).elements())
        assert not missing, f"missing {missing}, but {surplus}"
        assert not surplus, f"not expected: {surplus}"
        return heard

    def await_line(self, line: str, deadline_s: float = DEADLINE_S) -> None:
        """This comes within the deadline, whatever else does."""
        give_up = time.monotonic() + deadline_s
        heard = list[Event]()
        while line not in lines_of(heard):
            assert time.monotonic() < give_up, f"not heard: {line}, but {lines_of(heard)}"
            heard += self.take(max(0.0, give_up - time.monotonic()))


# --- what is true


def name_of(store: Store, row: EntryRow) -> str:
    """The canonical name of a message."""
    base = Base(row.received_ns // 10**9, row.docid, store.layout.store_id, row.size)
    letters = letters_of_flags(row.flags)
    return format_name(format_base(base), letters, in_new=bool(row.flags & RECENT)).decode()


def place_of(store: Store, docid: int) -> str:
    """The same with its folder: `cur/NAME`."""
    row = store.index.entry(Docid(docid), live=False)
    return f"{'new' if row.flags & RECENT else 'cur'}/{name_of(store, row)}"


def true_names(store: Store, query: str) -> dict[str, dict[str, EntryRow]]:
    """What the store, asked anew, says is in cur/ and new/; for messages that have their canonical names."""
    found: dict[str, dict[str, EntryRow]] = {"cur": {}, "new": {}}
    for docid in store.index.docids(plan(parse_query(query), time.time())):
        row = store.index.entry(docid)
        found["new" if row.flags & RECENT else "cur"][name_of(store, row)] = row
    return found


class Truth:
    """Holds what the kernel shows of folders against the store, and remembers names that were there."""

    def __init__(self, root: Path, store: Store) -> None:
        self._root = root
        self._store = store
        self._former: dict[Path, set[str]] = {}

    def check(self, *views: str) -> None:
        """Listings, attributes and contents are right, and every name of an earlier check that is not listed is gone."""
        queries = {search.name: search.query for search in self._store.index.searches()}
        for view in views:
            for part, rows in true_names(self._store, queries[view]).items():
                self._check_folder(self._root / view / part, rows)

    def _check_folder(self, folder: Path, rows: dict[str, EntryRow]) -> None:
        former = self._former.setdefault(folder, set())
        # By name first, as the kernel has it from what was told: a listing would bring it up to date.
        for name in former - rows.keys():
            assert_gone(folder / name)
        for name, row in rows.items():
            self._check_message(folder / name, row)
        with Listing(folder) as listing:
            listed = {os.fsdecode(entry.name): entry.ino for entry in listing.rest()}
        assert sorted(listed) == sorted(rows), folder
        for name, ino in listed.items():
            assert os.lstat(folder / name).st_ino == ino
        former |= rows.keys()

    def _check_message(self, path: Path, row: EntryRow) -> None:
        raw = path.read_bytes()
        found = path.lstat()
        assert stat.S_ISREG(found.st_mode), path
        assert found.st_mode & 0o777 == 0o600, path
        assert (found.st_size, found.st_mtime_ns) == (row.size, row.received_ns), path
        assert found.st_nlink >= 1, path
        assert raw == self._store.load(row.docid), path


def assert_gone(path: Path) -> None:
    """At once, not after a while: whoever heard that a name has gone must not find it."""
    with refused(errno.ENOENT):
        path.lstat()
    with refused(errno.ENOENT):
        path.open("rb")


# --- a mount and who changes and watches it


class World(NamedTuple):
    """A mount, the store as another process has it, and who watches the folders of some views, and the root."""

    mailfs: Mailfs
    store: Store
    watcher: Watcher
    truth: Truth
    views: tuple[str, ...]

    def place(self, docid: int) -> str:
        return place_of(self.store, docid)

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        with self.store.writer.transaction("test", durable=True) as transaction:
            yield transaction

    def flag(self, docid: int, add: int = 0, remove: int = 0) -> None:
        with self.writing() as transaction:
            transaction.edit_flags(Docid(docid), add, remove)

    def label(self, docid: int, *words: str) -> None:
        with self.writing() as transaction:
            transaction.edit_keywords(Docid(docid), map(Keyword, words))

    def unlabel(self, docid: int, *words: str) -> None:
        with self.writing() as transaction:
            transaction.edit_keywords(Docid(docid), (), map(Keyword, words))

    def add(self, number: int, *words: str, flags: int = 0, received_ns: int = RECEIVED_NS) -> int:
        raw = make_message(number, subject=f"message {number}")
        message = prepare_message(raw, flags, tuple(map(Keyword, words)), received_ns)
        with self.writing() as transaction:
            return transaction.add(message).docid

    def expect(self, *lines: str) -> None:
        """Heard, and true; nothing else, nor by looking."""
        self.watcher.expect(*lines)
        self.truth.check(*self.views)
        assert self.watcher.take() == []


def loaded(mailfs: Mailfs) -> set[str]:
    """The views the daemon has in memory."""
    status = json.loads(mailfs.path(".mailfs/status.json").read_text())
    return {view["name"] for view in status["views"]}


@contextmanager
def watching(mailfs: Mailfs, *views: str) -> Iterator[World]:
    """Watch cur/ and new/ of views, and the root, that nobody has listed; they are followed when the block begins."""
    with Store.open(mailfs.store) as store, Watcher(mailfs.mountpoint) as watcher:
        watcher.watch(".", *(f"{view}/{part}" for view in views for part in ("cur", "new")))
        wait_until(lambda: loaded(mailfs) >= set(views), "watched views are followed")
        yield World(mailfs, store, watcher, Truth(mailfs.mountpoint, store), views)
