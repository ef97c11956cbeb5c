"""A plain model of what the kernel does before a FUSE mount: its cache of names, and inotify(7).

It asks the real handlers, in the order and as often as Linux does (fs/namei.c, fs/fuse/dir.c, fs/fuse/readdir.c):

- a name it was told to keep is not asked for again, but where a call is to make it, or to rename to it (LOOKUP_EXCL,
  LOOKUP_RENAME_TARGET);
- a name that is not kept is asked for each time; that one is not there is never kept;
- rename(2) of two names of one inode does nothing; a renamed name is kept as long as the old one would have been;
- what is refused with ENOENT is forgotten; watchers hear of what was done through the mount and of nothing else.

Not modelled: the end of a kept name's time (300 s), links an inode has left, attributes. A call holds the lock of its
directory: `within` is called in the middle of one, `between` before one.
"""

import contextlib
import errno
import os
import stat
import time
import types
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar, TypeVarTuple
from unittest import mock

import pyfuse3
from pyfuse3 import EntryAttributes, FUSEError

from mailfs.errors import NotFound
from mailfs.fuse.operations import Operations
from mailfs.ids import Docid, Ino
from mailfs.store.store import Store
from mailfs.views.announce import Batch, Place
from mailfs.views.tree import ROOT_INO, message_ino
from tests.ops.kernel import NothingSaid
from tests.views.world import AtOnce, World, run

R = TypeVar("R")
Arguments = TypeVarTuple("Arguments")
# Entries a piece of a listing has room for.
ROOM = 4
# The number of the thread that tells.
_THREAD = 2
# So many batches, at least one a second of the model's time, must do.
_MOST_ROUNDS = 400


class Caller(pyfuse3.RequestContext):
    """A thread that asks."""

    def __init__(self, thread: int) -> None:
        super().__init__()
        self._thread = thread

    @property
    def pid(self) -> int:
        return self._thread


@dataclass
class Name:
    """What the kernel knows of a name. One that is not kept is asked for before it is used."""

    ino: Ino
    is_kept: bool
    is_directory: bool


@dataclass
class Watcher:
    """Somebody who listed a directory, and goes by events since. `last_event` is the moment of the last."""

    ino: Ino
    names: set[bytes] = field(default_factory=set)
    events: list[tuple[str, bytes]] = field(default_factory=list)
    last_event: int = 0
    _is_listing: bool = True

    def hear(self, event: str, name: bytes, moment: int) -> None:
        self.events.append((event, name))
        self.last_event = moment
        if not self._is_listing:
            self._apply(event, name)

    def begin(self, listed: set[bytes]) -> None:
        """The listing is there: what was heard meanwhile is read behind it."""
        self._is_listing, self.names = False, set(listed)
        for event, name in self.events:
            self._apply(event, name)

    def _apply(self, event: str, name: bytes) -> None:
        (self.names.add if event in ("CREATE", "MOVED_TO") else self.names.discard)(name)


def nothing() -> None:
    """Nobody comes between."""


class ModelKernel:
    """One mount's. Calls are answered as system calls are: a result, or OSError."""

    def __init__(self, operations: Operations) -> None:
        self.names: dict[Place, Name] = {}
        self.watchers: list[Watcher] = []
        self.lookups: Counter[int] = Counter()
        # Grows with every event and, by who looks, with every change.
        self.moment = 0
        self.between: Callable[[], None] = nothing
        self.within: Callable[[], None] = nothing
        self._operations = operations
        self._open: Counter[int] = Counter()
        self._listed: list[tuple[bytes, Name, int]] = []

    def _ask(self, answer: Coroutine[object, None, R], caller: Caller | None = None) -> R:
        """What a handler says. The thread that tells must change nothing by asking."""
        index = self._operations.tree.store.index
        is_told = caller is not None and self._operations.echo.is_asking(caller)
        before = index.state().modseq if is_told else None
        try:
            answer.send(None)
            raise AssertionError("it waits")
        except StopIteration as end:
            result: R = end.value
            return result
        except FUSEError as error:
            if error.errno == errno.EIO:
                raise AssertionError("a handler failed: see the log") from error
            raise OSError(error.errno, os.strerror(error.errno)) from None
        finally:
            assert not is_told or index.state().modseq == before

    # --- the cache

    def enter(self, place: Place, answer: EntryAttributes) -> Name:
        """An answer makes a name known."""
        known = self.names.get(place)
        if known is not None and known.ino != answer.st_ino:
            self.drop(place)
        name = Name(Ino(answer.st_ino), answer.entry_timeout > 0, stat.S_ISDIR(answer.st_mode))
        if name.is_directory:
            self.lookups[name.ino] += 1
            for other in [each for each, its in self.names.items() if its.ino == name.ino]:
                if other != place:  # a directory has one name
                    del self.names[other]
        self.names[place] = name
        return name

    def drop(self, place: Place) -> None:
        """d_invalidate(): a name, and with a directory all that is in it."""
        dropped = self.names.pop(place, None)
        if dropped is None or not dropped.is_directory:
            return
        for below in [each for each in self.names if each[0] == dropped.ino]:
            self.drop(below)
        self._forget_unused(dropped.ino)

    def _forget_unused(self, ino: Ino) -> None:
        is_named = any(name.ino == ino for name in self.names.values())
        is_watched = any(watcher.ino == ino for watcher in self.watchers)
        count = self.lookups.pop(ino, 0) if not (is_named or is_watched or self._open[ino]) else 0
        if count:
            run(self._operations.forget([(ino, count)]))

    def evict(self) -> None:
        """The kernel needs the memory: it forgets what is not in use."""
        for place in [each for each in self.names if each[0] == ROOT_INO]:
            self.drop(place)

    def invalidate(self, ino: int, name: bytes) -> None:
        """Instead of pyfuse3.invalidate_entry."""
        self.between()
        if (Ino(ino), name) not in self.names:
            raise FileNotFoundError(errno.ENOENT, "the kernel does not know it")
        self.drop((Ino(ino), name))

    def look(self, place: Place, caller: Caller, *, is_target: bool = False) -> Name | None:
        """One component of a path. A target is asked for even if it is kept."""
        known = self.names.get(place)
        if known is not None and known.is_kept and not is_target:
            return known
        if known is not None:
            answer = self._lookup(place, caller)
            if answer is not None and answer.st_ino == known.ino:
                return self.enter(place, answer)
            self.drop(place)
        answer = self._lookup(place, caller)
        return None if answer is None else self.enter(place, answer)

    def revalidate(self, place: Place, caller: Caller) -> None:
        """A client goes by a name it knows; for that no lock is taken."""
        if place in self.names:
            self.look(place, caller)

    def _lookup(self, place: Place, caller: Caller) -> EntryAttributes | None:
        try:
            return self._ask(self._operations.lookup(*place, caller), caller)
        except FileNotFoundError:
            return None

    def walk(self, path: bytes, caller: Caller) -> Ino:
        """A directory by its path. Raises FileNotFoundError."""
        ino = ROOT_INO
        for part in path.split(b"/") if path else ():
            ino = self._known((ino, part), caller).ino
        return ino

    def _known(self, place: Place, caller: Caller) -> Name:
        found = self.look(place, caller)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no such name", place)
        return found

    def _free(self, place: Place, caller: Caller) -> None:
        if self.look(place, caller, is_target=True) is not None:
            raise FileExistsError(errno.EEXIST, "is there already", place)

    def _emit(self, event: str, place: Place) -> None:
        self.moment += 1
        for watcher in self.watchers:
            if watcher.ino == place[0]:
                watcher.hear(event, place[1], self.moment)

    # --- calls

    def mknod(self, place: Place, caller: Caller) -> None:
        self._free(place, caller)
        self.within()
        mode = stat.S_IFREG | 0o600
        self.enter(place, self._ask(self._operations.mknod(*place, mode, 0, caller), caller))
        self._emit("CREATE", place)

    def mkdir(self, place: Place, caller: Caller) -> None:
        self._free(place, caller)
        self.within()
        self.enter(place, self._ask(self._operations.mkdir(*place, 0o700, caller), caller))
        self._emit("CREATE", place)

    def link(self, old: Place, place: Place, caller: Caller) -> None:
        found = self._known(old, caller)
        self._free(place, caller)
        self.within()
        self.enter(place, self._ask(self._operations.link(found.ino, *place, caller), caller))
        self._emit("CREATE", place)

    def rename(self, place: Place, new_place: Place, caller: Caller) -> None:
        source = self._known(place, caller)
        target = self.look(new_place, caller, is_target=True)
        if target is not None and target.ino == source.ino:
            return
        if target is not None and target.is_directory:
            raise OSError(errno.ENOTEMPTY, "a directory is there", new_place)
        self.within()
        try:
            self._ask(self._operations.rename(*place, *new_place, 0, caller), caller)
        except FileNotFoundError:
            self.drop(place)
            self.drop(new_place)
            raise
        self.names.pop(place, None)
        self.names[new_place] = source
        self._emit("MOVED_FROM", place)
        self._emit("MOVED_TO", new_place)

    def unlink(self, place: Place, caller: Caller, *, is_directory: bool = False) -> None:
        """unlink(2) and rmdir(2)."""
        found = self._known(place, caller)
        if found.is_directory != is_directory:
            raise OSError(errno.ENOTDIR if is_directory else errno.EISDIR, "the other kind", place)
        self.within()
        handler = self._operations.rmdir if is_directory else self._operations.unlink
        try:
            self._ask(handler(*place, caller), caller)
        except FileNotFoundError:
            self.drop(place)
            raise
        self.drop(place)
        self._emit("DELETE", place)

    def list_all(self, ino: Ino, caller: Caller) -> set[bytes]:
        """A whole listing, piece by piece; others may come between the pieces."""
        fh = self._ask(self._operations.opendir(ino, caller), caller)
        names: set[bytes] = set()
        cookie = 0
        while piece := self._read(fh, cookie):
            cookie = piece[-1][2]
            for name, known, _ in piece:
                if name not in (b".", b".."):
                    names.add(name)
                    self._enter_listed((ino, name), known)
            self.between()
        self._ask(self._operations.releasedir(fh))
        return names

    def _enter_listed(self, place: Place, known: Name) -> None:
        answer = EntryAttributes()
        answer.st_ino = known.ino
        answer.st_mode = stat.S_IFDIR if known.is_directory else stat.S_IFREG
        answer.entry_timeout = 300 if known.is_kept else 0
        self.enter(place, answer)

    def _read(self, fh: int, cookie: int) -> list[tuple[bytes, Name, int]]:
        self._listed = []
        with mock.patch.object(pyfuse3, "readdir_reply", self._take_entry):
            self._ask(self._operations.readdir(fh, cookie, pyfuse3.ReaddirToken()))
        return self._listed

    def _take_entry(
        self, token: pyfuse3.ReaddirToken, name: bytes, attr: EntryAttributes, next_id: int
    ) -> bool:
        if len(self._listed) == ROOM:
            return False
        is_directory = stat.S_ISDIR(attr.st_mode)
        known = Name(Ino(attr.st_ino), attr.entry_timeout > 0, is_directory)
        self._listed.append((name, known, next_id))
        return True

    def watch(self, path: bytes, caller: Caller) -> Watcher:
        """inotify_add_watch(2), then a listing. Raises FileNotFoundError."""
        watcher = Watcher(self.walk(path, caller))
        self.watchers.append(watcher)
        watcher.begin(self.list_all(watcher.ino, caller))
        return watcher

    # --- open files, of the thread that tells

    def pin(self, ino: Ino) -> None:
        self._open[ino] += 1

    def unpin(self, ino: Ino) -> None:
        self._open[ino] -= 1
        if not any(name.ino == ino for name in self.names.values()):
            self._forget_unused(ino)

    def touch(self, place: Place, caller: Caller) -> None:
        """utime(2)."""
        ino = self._known(place, caller).ino
        fields = pyfuse3.SetattrFields()
        self._ask(self._operations.setattr(ino, EntryAttributes(), fields, None, caller), caller)

    def stat(self, ino: Ino, caller: Caller) -> None:
        self._ask(self._operations.getattr(ino, caller), caller)


class ModelOs:
    """What fuse/replay.py calls of `os`, done to a model. The mount has the device number -1."""

    def __init__(self, kernel: ModelKernel, caller: Caller) -> None:
        self._kernel = kernel
        self._caller = caller
        self._fds: dict[int, tuple[Ino, bool]] = {}
        self.fsdecode = os.fsdecode
        self.O_PATH, self.O_NOFOLLOW, self.O_CLOEXEC = os.O_PATH, os.O_NOFOLLOW, os.O_CLOEXEC

    def open(self, path: bytes | Path, flags: int, *, dir_fd: int | None = None) -> int:
        self._kernel.between()
        above = ROOT_INO if dir_fd is None else self._fds[dir_fd][0]
        is_directory = bool(flags & os.O_DIRECTORY)
        ino = above
        for part in path.split(b"/") if isinstance(path, bytes) else ():
            found = self._kernel.look((ino, part), self._caller)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, "no such name", path)
            ino = found.ino
        fd = 1000 + len(self._fds)
        self._fds[fd] = ino, is_directory
        self._kernel.pin(ino)
        return fd

    def close(self, fd: int) -> None:
        self._kernel.unpin(self._fds[fd][0])

    def fstat(self, fd: int) -> SimpleNamespace:
        ino, is_directory = self._fds[fd]
        if not is_directory:
            self._kernel.stat(ino, self._caller)
        return SimpleNamespace(st_dev=-1)

    def mknod(self, name: bytes, mode: int, *, dir_fd: int) -> None:
        self._kernel.between()
        self._kernel.mknod((self._fds[dir_fd][0], name), self._caller)

    def mkdir(self, name: bytes, mode: int, *, dir_fd: int) -> None:
        self._kernel.between()
        self._kernel.mkdir((self._fds[dir_fd][0], name), self._caller)

    def rename(self, name: bytes, new_name: bytes, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        self._kernel.between()
        place, new_place = (self._fds[src_dir_fd][0], name), (self._fds[dst_dir_fd][0], new_name)
        self._kernel.rename(place, new_place, self._caller)

    def unlink(self, name: bytes, *, dir_fd: int) -> None:
        self._kernel.between()
        self._kernel.unlink((self._fds[dir_fd][0], name), self._caller)

    def utime(self, name: bytes, *, dir_fd: int, follow_symlinks: bool) -> None:
        self._kernel.between()
        self._kernel.touch((self._fds[dir_fd][0], name), self._caller)

    def rmdir(self, name: bytes, *, dir_fd: int) -> None:
        self._kernel.between()
        self._kernel.unlink((self._fds[dir_fd][0], name), self._caller, is_directory=True)


@contextmanager
def told_by(kernel: ModelKernel, caller: Caller) -> Iterator[None]:
    """The thread that tells goes through the model."""
    with (
        mock.patch("mailfs.fuse.replay.os", ModelOs(kernel, caller)),
        mock.patch("mailfs.fuse.echo.pyfuse3.invalidate_entry", kernel.invalidate),
    ):
        yield


@types.coroutine
def _pause() -> Generator[None, None, None]:
    yield


class Teller:
    """The task that tells, and its thread: Echo.tell(), done bit by bit, by a clock of its own."""

    def __init__(self, kernel: ModelKernel, operations: Operations) -> None:
        self.now_s = 1000.0
        self._kernel = kernel
        self._operations = operations
        self._caller = Caller(_THREAD)
        thread = SimpleNamespace(number=_THREAD, do=lambda work: work())
        vars(operations.echo)["_thread"] = thread
        operations.echo.is_usable = True
        self._telling: Coroutine[None, None, None] | None = None
        self._work: Callable[[], object] | None = None

    def step(self) -> bool:
        """Take a batch, or do the one that was taken; False where there is nothing to do."""
        work, self._work = self._work, None
        if work is not None:
            with told_by(self._kernel, self._caller):
                work()
        if self._telling is None:
            if not self._operations.changes.announcements:
                return False
            self._telling = self._operations.echo.tell(self._in_thread)
        clock = SimpleNamespace(monotonic=lambda: self.now_s, time_ns=time.time_ns)
        with (
            mock.patch("mailfs.fuse.echo.time", clock),
            mock.patch("mailfs.fuse.echo.trio", self._trio()),
        ):
            try:
                self._telling.send(None)
            except StopIteration:
                self._telling = None
        return True

    async def _in_thread(
        self,
        function: Callable[[*Arguments], R],
        *arguments: *Arguments,
        limiter: object = None,
        abandon_on_cancel: bool = False,
    ) -> R:
        done: list[R] = []
        self._work = lambda: done.append(function(*arguments))
        await _pause()
        return done[0]

    def _trio(self) -> SimpleNamespace:
        """Nothing hangs here, and waiting moves the clock."""
        in_time = contextlib.nullcontext(SimpleNamespace(cancelled_caught=False))
        return SimpleNamespace(sleep=self._sleep, move_on_after=lambda _: in_time)

    async def _sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await _pause()


class Mounted:
    """A mount of a store without FUSE: the handlers, the model before them, the thread that tells, and a client."""

    def __init__(self, store: Store) -> None:
        self.world = World(store)
        self.operations = Operations(self.world.tree, AtOnce(self.world.tree), NothingSaid)
        self.changes = self.operations.changes
        self.changes.announcements.is_echoing = True
        self.kernel = ModelKernel(self.operations)
        self.teller = Teller(self.kernel, self.operations)
        self.client = Caller(1)
        self._listings: dict[Ino, set[bytes]] = {}
        self._changed: dict[Ino, int] = {}

    def ino(self, path: bytes) -> Ino:
        """A directory, as the client finds it."""
        return self.kernel.walk(path, self.client)

    def watch(self, path: bytes) -> Watcher:
        return self.kernel.watch(path, self.client)

    def begin_telling(self) -> None:
        """Notice what others did; a batch is taken, and not yet done."""
        self.changes.sync_tree()
        self.notice()
        self.teller.step()

    def true_names(self, ino: Ino) -> set[bytes]:
        """What a listing gives now; nothing for a search that was forgotten."""
        tree = self.world.tree
        try:
            directory = tree.directory(ino)
        except NotFound:
            return set()
        if not directory.holds_messages:
            return {entry.name for entry in tree.entries(directory)}
        if directory.view is None or not directory.view.is_loaded:
            return set()
        return {name for _, _, name in tree.iter_messages(directory, Docid(0))}

    def notice(self) -> None:
        """Remember which listings have changed since the last call."""
        self.kernel.moment += 1
        for ino in {watcher.ino for watcher in self.kernel.watchers}:
            names = self.true_names(ino)
            if self._listings.get(ino) != names:
                self._listings[ino] = names
                self._changed[ino] = self.kernel.moment

    def settle(self, *, is_coarse: bool = False) -> None:
        """All is told; then all is right. `is_coarse`: there was too much for each name to be told."""
        for _ in range(_MOST_ROUNDS):
            self.changes.sync_tree()
            for ino in [ino for ino in self.operations.known if self._holds_messages(Ino(ino))]:
                self.changes.directory(ino)  # letters are read when somebody looks
            run(self.changes.load_wanted())
            self.notice()
            if not self.teller.step():
                break
        else:
            raise AssertionError("the telling never ends")
        self._kernel_is_right()
        self._watchers_are_right(is_coarse=is_coarse)
        self._nothing_is_left()

    def _holds_messages(self, ino: Ino) -> bool:
        return self._is_there(ino) and self.world.tree.directory(ino).holds_messages

    def _kernel_is_right(self) -> None:
        for (parent, name), known in self.kernel.names.items():
            if known.is_kept and (self._is_there(parent) or self._is_reached(parent)):
                assert known.ino == self._true_ino_or_none(parent, name), (parent, name, known)
        for ino, count in self.kernel.lookups.items():
            assert not count or ino in self.operations.known, ino

    def _is_reached(self, ino: Ino) -> bool:
        """Whether a directory is found without asking; one that is gone is dropped with all in it when it is asked for."""
        places = [each for each, its in self.kernel.names.items() if its.ino == ino and its.is_kept]
        return ino == ROOT_INO or any(self._is_reached(parent) for parent, _ in places)

    def _true_ino_or_none(self, parent: Ino, name: bytes) -> Ino | None:
        tree = self.world.tree
        try:
            directory = tree.directory(parent)
        except NotFound:
            return None
        child = tree.child_or_none(directory, name)
        if child is not None:
            return child.ino
        found = tree.find_message_or_none(directory, name)
        return None if found is None else message_ino(found.docid)

    def _watchers_are_right(self, *, is_coarse: bool) -> None:
        for watcher in self.kernel.watchers:
            truth = self.true_names(watcher.ino)
            is_late = watcher.last_event > self._changed.get(watcher.ino, 0)
            if not (is_coarse and is_late) and self._is_there(watcher.ino):
                assert watcher.names == truth, (watcher, truth)

    def _is_there(self, ino: Ino) -> bool:
        try:
            self.world.tree.directory(ino)
        except NotFound:
            return False
        return True

    def _nothing_is_left(self) -> None:
        tree, announcements = self.world.tree, self.changes.announcements
        assert not announcements
        assert announcements.in_flight == Batch()
        for view in tree.views.values():
            assert not announcements.unannounced(view)
        for directory in tree.iter_directories():
            # What is made before the kernel's eyes only becomes no file.
            if directory.holds_messages:
                assert not self.operations.ordinary.files.entries(tree.area(directory))
