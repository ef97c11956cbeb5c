"""What stands in for the kernel: asks the handlers, and takes what they say."""

import errno
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError

from mailfs.fuse.drain import in_thread
from mailfs.fuse.operations import Operations
from mailfs.fuse.requests import Requests
from mailfs.views.announce import Place
from tests.views.world import World

R = TypeVar("R")
Arguments = TypeVarTuple("Arguments")


class NothingSaid:
    """Instead of a daemon's view of itself."""

    def as_text(self) -> str:
        return "nothing\n"

    def as_dict(self) -> dict[str, object]:
        return {"said": "nothing"}


class Kernel:
    """Calls handlers one at a time, each in an event loop of its own."""

    def __init__(self, world: World) -> None:
        self.world = world
        requests = Requests(in_thread, lambda: None, world.tree.store.layout.lock)
        self.operations = Operations(world.tree, requests, NothingSaid)
        self.context = pyfuse3.RequestContext()
        self.pages: dict[int, bytes] = {}
        self._listed: list[tuple[bytes, int, int]] = []
        self._room = 0

    def store_pages(self, inode: int, offset: int, data: bytes) -> None:
        """Instead of pyfuse3.notify_store."""
        assert offset == 0
        self.pages[inode] = data

    def forgotten(self) -> set[Place]:
        """The names the kernel is told to forget since the last call; it has looked up all directories on the way."""
        announcements = self.operations.changes.announcements
        batch = announcements.take(time.monotonic())
        announcements.finish()
        return {*batch.forgotten, *(step.place for step in batch.steps)}

    def take_entry(
        self, token: pyfuse3.ReaddirToken, name: bytes, attr: EntryAttributes, next_id: int
    ) -> bool:
        """Instead of pyfuse3.readdir_reply: room for a few entries only, as in a page."""
        if not self._room:
            return False
        self._room -= 1
        self._listed.append((name, attr.st_ino, next_id))
        return True

    def ask(self, handler: Callable[[*Arguments], Awaitable[R]], *arguments: *Arguments) -> R:
        """The answer of a handler. Raises FUSEError and whatever else leaves it."""
        return trio.run(handler, *arguments)

    def errno_of(
        self, handler: Callable[[*Arguments], Awaitable[object]], *arguments: *Arguments
    ) -> int:
        """The errno a handler answers with; 0 when it does as it was asked."""
        try:
            trio.run(handler, *arguments)
        except FUSEError as error:
            return error.errno
        return 0

    def ino(self, path: str) -> int:
        """The inode of a directory, by lookups from the root."""
        inode = int(pyfuse3.ROOT_INODE)
        for part in path.split("/") if path else ():
            inode = self.lookup(inode, part.encode()).st_ino
        return inode

    def lookup(self, parent: int, name: bytes) -> EntryAttributes:
        return self.ask(self.operations.lookup, parent, name, self.context)

    def errno_of_lookup(self, path: str, name: bytes) -> int:
        return self.errno_of(self.operations.lookup, self.ino(path), name, self.context)

    def open_directory(self, path: str) -> int:
        return self.ask(self.operations.opendir, self.ino(path), self.context)

    def read_directory(
        self, fh: int, start: int = 0, room: int = 7
    ) -> list[tuple[bytes, int, int]]:
        """Name, inode and cookie of some entries behind a cookie."""
        self._listed, self._room = [], room
        self.ask(self.operations.readdir, fh, start, pyfuse3.ReaddirToken())
        return self._listed

    def names(self, path: str, room: int = 7) -> list[bytes]:
        """A whole listing, some entries at a time, without the dots."""
        fh = self.open_directory(path)
        names: list[bytes] = []
        start = 0
        while piece := self.read_directory(fh, start, room):
            names += [name for name, _, _ in piece]
            start = piece[-1][2]
        self.ask(self.operations.releasedir, fh)
        assert names[:2] == [b".", b".."]
        return names[2:]

    def open(self, inode: int, flags: int = os.O_RDONLY) -> FileInfo:
        return self.ask(self.operations.open, inode, flags, self.context)

    def rename(self, path: str, name: bytes, new_path: str, new_name: bytes, flags: int = 0) -> int:
        """The errno of a rename."""
        return self.errno_of(
            self.operations.rename,
            self.ino(path),
            name,
            self.ino(new_path),
            new_name,
            flags,
            self.context,
        )

    def unlink(self, path: str, name: bytes) -> int:
        return self.errno_of(self.operations.unlink, self.ino(path), name, self.context)


def name_of(code: int) -> str:
    """`EPERM` reads better in a failed test than 1."""
    return errno.errorcode.get(code, "no error")
