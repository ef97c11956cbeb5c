"""Changes the kernel does not know of are made once more, through the mount, by a thread whose requests change nothing.

inotify(7) on FUSE tells only of what is done through the mount. So the thread does before the kernel's eyes what happened: it
makes, renames and removes names (views/announce.py says which, replay.py does it), and the handlers answer it from the
batch it works on. Watchers get CREATE, MOVED_FROM, MOVED_TO and DELETE with the true names, and the kernel's names are
right afterwards. The handlers know the thread by RequestContext.pid, which is the number of the calling *thread*.

No handler ever waits for this thread; it may wait for any of them, as it holds the lock of a directory meanwhile.
Nothing it does can reach a file: a probe shows first that handlers know the thread (they might not in another pid
namespace), and replay.py looks where it is.
"""

import contextlib
import functools
import logging
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, RequestContext

from mailfs.errors import NotFound
from mailfs.fuse.answers import Answers
from mailfs.fuse.mounts import find_mounted_or_none
from mailfs.fuse.own_thread import OwnThread
from mailfs.fuse.replay import Mount, forget, perform
from mailfs.fuse.requests import Blocking
from mailfs.ids import Docid, Ino
from mailfs.views.announce import STIRRED_INO, Announcements, Batch, Place
from mailfs.views.tree import ROOT_INO, Attributes, Tree, docid_of_or_none

log = logging.getLogger(__name__)

# How long to wait for room in this second's events.
_ROOM_S = 0.2
# A batch takes milliseconds.
_DEADLINE_S = 30.0


class KnownDirectories(dict[int, int]):
    """Directories of the tree the kernel has looked up, by inode, and how often: nobody can watch another."""

    def __init__(self) -> None:
        super().__init__({ROOT_INO: 1})

    def count(self, ino: int) -> None:
        """An answer tells the kernel of a directory."""
        self[ino] = self.get(ino, 0) + 1

    def forget(self, ino: int, count: int) -> None:
        """The kernel takes back some of its lookups."""
        left = self.get(ino, 0) - count
        if left > 0:
            self[ino] = left
        elif ino != ROOT_INO:
            self.pop(ino, None)


class Echo:
    """The thread, and what handlers answer it. Of the methods only tell() and prove() wait."""

    def __init__(self, tree: Tree, announcements: Announcements, answers: Answers) -> None:
        self.counts: Counter[str] = Counter()
        self._tree = tree
        self._announcements = announcements
        self._answers = answers
        self._mount = Mount(Path(), -1)
        self._thread = OwnThread("echo")
        self._probe: bytes | None = None
        # Whether handlers know the thread, and it has not got stuck.
        self.is_usable = False
        self._is_forgetting = threading.Lock()

    # --- the task that starts the thread

    async def prove(self, mountpoint: Path, in_thread: Blocking) -> None:
        """Whether there is such a thread, and handlers know it: it looks up a name that nobody else knows."""
        mounted = find_mounted_or_none(mountpoint)
        if mounted is None or not self._thread.start():
            log.warning(
                "watchers hear only of what is done through the mount: no thread can tell them"
            )
            return
        self._mount = Mount(mountpoint, mounted.device)
        probe = self._probe = f".mailfs-{secrets.token_hex(8)}".encode()
        await self._do(functools.partial(_look_for, self._mount, probe), in_thread)
        self.is_usable = self._probe is None
        self._probe = None
        if not self.is_usable:
            self._thread.number = 0  # what the kernel calls it may be what it calls a client
            log.warning(
                "watchers hear only of what is done through the mount: the kernel hides who calls"
            )

    async def _do(self, work: Callable[[], None], in_thread: Blocking) -> None:
        with trio.move_on_after(_DEADLINE_S) as waiting:
            await in_thread(self._thread.do, work, abandon_on_cancel=True)
        if waiting.cancelled_caught:
            # Something above the mount point does not answer. The thread is left to itself.
            self.is_usable = self._announcements.is_echoing = False
            log.warning(
                "watchers hear only of what is done through the mount from now on: %s hangs",
                self._mount.mountpoint,
            )

    async def tell(self, in_thread: Blocking) -> None:
        """Tell the kernel all there is to be told, in batches."""
        while self._announcements:
            batch = self._announcements.take(time.monotonic())
            try:
                await self._forget(batch, batch.forgotten, in_thread)
                if batch.steps:
                    work = functools.partial(perform, batch, self._mount, self.counts)
                    await self._do(work, in_thread)
                await self._forget(batch, batch.unheard, in_thread)
            finally:
                self._announcements.finish()
            await trio.sleep(_ROOM_S if batch.is_empty else 0)

    async def _forget(self, batch: Batch, places: Sequence[Place], in_thread: Blocking) -> None:
        if not places:
            return
        self.counts["forget"] += len(places)
        unreached = places
        if self.is_usable:
            batch.hidden.update(places)
            await self._do(functools.partial(forget, batch, places, self._mount), in_thread)
            batch.hidden.clear()
            unreached, batch.unreached = batch.unreached, []
        if unreached:
            await in_thread(self._invalidate, unreached, abandon_on_cancel=True)

    def _invalidate(self, places: Sequence[Place]) -> None:
        """In a thread: invalidate_entry waits for a directory's lock, which a client may hold that waits for a handler.

        A daemon killed meanwhile leaves clients that hang: it holds /dev/fuse, and they hold the lock.
        """
        with self._is_forgetting:
            for place in places:
                try:
                    pyfuse3.invalidate_entry(*place)
                except FileNotFoundError:
                    pass  # the kernel does not know it
                except OSError as error:
                    log.warning("cannot tell the kernel that a name is gone: %s", error)

    def has_ended(self, deadline_s: float) -> bool:
        """Whether nobody uses the session beside the handlers any more; if not, it must not be destroyed."""
        return self._is_forgetting.acquire(timeout=deadline_s)

    # --- what handlers answer it

    def is_asking(self, context: RequestContext) -> bool:
        """Whether a request comes from the thread, also from one that got stuck and goes on: it must never change mail.

        0 is what the kernel says of callers in another pid namespace.
        """
        return context.pid == self._thread.number != 0

    def is_probe(self, name: bytes, context: RequestContext) -> bool:
        """Whether this is the name that is looked for; then it is known now who looks."""
        if name != self._probe:
            return False
        if self.is_asking(context):
            self._probe = None
        return True

    def lookup_or_none(self, place: Place) -> EntryAttributes | None:
        """A name as it is for the thread. None where the batch does not speak of it. Raises NotFound."""
        batch = self._announcements.in_flight
        found = batch.present.get(place)
        if place in batch.hidden:
            raise NotFound(f"{place[1]!r} is to be forgotten")
        if found is not None:
            return self._answers.not_kept(self._attributes(found))
        if place in batch.awaited:
            raise NotFound(f"{place[1]!r} is still to be made")
        return None

    def make(self, place: Place) -> EntryAttributes:
        """mknod(2) or mkdir(2) of what is there already. Raises NotFound."""
        ino = self._announcements.in_flight.make(place)
        if ino is None:
            raise NotFound(f"there is no {place[1]!r}")
        attributes = self._attributes(ino)
        if attributes.is_directory:
            return self._answers.attributes(attributes)
        if ino != STIRRED_INO and self._is_last_word(place, ino):
            return self._answers.attributes(attributes)
        return self._answers.not_kept(attributes)

    def _is_last_word(self, place: Place, ino: Ino) -> bool:
        directory = self._tree.directory(place[0])
        found = self._tree.find_message_or_none(directory, place[1])
        view = directory.view
        if found is None or view is None or not view.is_loaded:
            return False
        return (
            found.is_exact
            and found.docid == docid_of_or_none(ino)
            and not self._announcements.has_changed(view, found.docid)
        )

    def touch(self, ino: Ino) -> EntryAttributes:
        """utime(2), which is only to be heard."""
        return self._answers.not_kept(self._attributes(ino))

    def attributes_before_removal(self, docid: Docid) -> EntryAttributes:
        """The kernel counts one link less with each name that is removed: it is told one more before (replay.py)."""
        answer = self._answers.not_kept(self._tree.held_attributes(docid))
        answer.st_nlink += 1
        return answer

    def move(self, place: Place, new_place: Place) -> None:
        """rename(2) of what has been renamed already. Raises NotFound."""
        if not self._announcements.in_flight.move(place, new_place):
            raise NotFound(f"there is no {place[1]!r}")

    def remove(self, place: Place) -> None:
        """unlink(2) or rmdir(2) of what has gone already. Raises NotFound."""
        if not self._announcements.in_flight.remove(place):
            raise NotFound(f"there is no {place[1]!r}")

    def _attributes(self, ino: Ino) -> Attributes:
        if ino == STIRRED_INO:
            now_ns = time.time_ns()
            return Attributes(ino, False, 1, 0, now_ns, now_ns)
        docid = docid_of_or_none(ino)
        if docid is not None:
            return self._tree.held_attributes(docid)
        try:
            return self._tree.directory_attributes(self._tree.directory(ino))
        except NotFound:  # forgotten: it is about to be removed
            now_ns = time.time_ns()
            return Attributes(ino, True, 2, 4096, now_ns, now_ns)


def _look_for(mount: Mount, name: bytes) -> None:
    with contextlib.suppress(OSError):
        os.lstat(os.path.join(os.fsencode(mount.mountpoint), name))
