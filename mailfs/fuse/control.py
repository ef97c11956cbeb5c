"""`.mailfs` for the handlers: attributes, listings, contents made when a file is opened, and queries written.

Nothing is kept by the kernel: no names, no attributes, and no pages (direct_io), so each open(2) sees what is true
then, and reads on in that whatever happens to the search. A write(2) of a query takes effect before it returns, or is
refused and nothing has changed.
"""

import errno
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, Protocol

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo

from mailfs.errors import EditRefused, NotFound
from mailfs.fuse.changes import Changes
from mailfs.fuse.problems import errors_content
from mailfs.store.journal import Actor
from mailfs.views.control import (
    ROOT,
    Control,
    ControlKind,
    ControlTree,
    count_in_index,
    count_in_memory_or_none,
    explain,
    is_control_name,
    query_content,
    query_of_content,
)
from mailfs.views.searches import plan_query
from mailfs.views.tree import ROOT_INO

# Handles of these files are told from all others by their numbers.
_FIRST_FH = 1 << 48

# Cookies of a listing: `.` and `..` are 1 and 2.
_DOTS = 2


class Status(Protocol):
    """What the daemon says of itself."""

    def as_text(self) -> str: ...

    def as_dict(self) -> dict[str, object]: ...


@dataclass(slots=True)
class _FileHandle:
    """An open file: what it says, where the next write goes, and who opened it."""

    node: Control
    content: bytes
    is_appending: bool = False
    opener: Actor | None = None


@dataclass(slots=True)
class _DirectoryHandle:
    """An open directory. `entries` is what it held when it was first read or rewound."""

    node: Control
    entries: tuple[tuple[bytes, Control], ...] = ()


class ControlFiles:
    """The handlers' work. Raises MailfsError."""

    def __init__(self, changes: Changes, status: Callable[[], Status]) -> None:
        self._changes = changes
        self._tree = changes.tree
        self._controls = ControlTree(changes.tree)
        self._status = status
        self._files: dict[int, _FileHandle] = {}
        self._directories: dict[int, _DirectoryHandle] = {}
        self._last_fh = _FIRST_FH
        self._info = FileInfo(direct_io=True, keep_cache=False)
        self._entry = EntryAttributes()
        self._entry.st_uid, self._entry.st_gid = os.getuid(), os.getgid()
        self._entry.st_blksize = 4096
        self._entry.entry_timeout = self._entry.attr_timeout = 0

    # --- whose it is

    def is_file(self, fh: int) -> bool:
        """Whether a file handle is that of an open file in `.mailfs`."""
        return fh in self._files

    def is_directory(self, fh: int) -> bool:
        """The same for directories."""
        return fh in self._directories

    def check_outside(self, parent: int, name: bytes) -> None:
        """Raises EditRefused for a name in `.mailfs`, and that name itself: nothing is made, moved or removed there."""
        if is_control_name(parent, name):
            self._refuse("nothing in .mailfs can be made, moved or removed")

    def _refuse(self, reason: str) -> NoReturn:
        raise EditRefused(f"{reason}: only the query of a search can be written")

    # --- names and attributes

    def lookup(self, parent: int, name: bytes) -> EntryAttributes:
        """Raises NotFound."""
        self._changes.sync_tree()
        if parent == ROOT_INO:
            return self._answer(ROOT)
        return self._answer(self._controls.child(self._controls.node(parent), name))

    def attributes(self, inode: int) -> EntryAttributes:
        """Raises NotFound."""
        self._changes.sync_tree()
        return self._answer(self._controls.node(inode))

    def _answer(self, node: Control) -> EntryAttributes:
        """One object, filled anew for every answer: pyfuse3 copies it before the next await."""
        found, entry = self._controls.attributes(node), self._entry
        entry.st_ino = found.ino
        entry.st_mode = node.mode | (stat.S_IFDIR if node.is_directory else stat.S_IFREG)
        entry.st_nlink = found.nlink
        entry.st_size = found.size
        entry.st_blocks = (found.size + 511) // 512
        entry.st_mtime_ns = entry.st_atime_ns = entry.st_ctime_ns = found.mtime_ns
        return entry

    def set_attributes(
        self, inode: int, attr: EntryAttributes, fields: pyfuse3.SetattrFields, fh: int | None
    ) -> EntryAttributes:
        """Times are accepted and change nothing. Cutting a query only says where the next write goes."""
        node = self._controls.node(inode)
        if fields.update_size and node.kind != ControlKind.QUERY:
            self._refuse(f"{node.title} cannot be cut")
        if fields.update_size and fh in self._files:
            handle = self._files[fh]
            handle.content = handle.content[: attr.st_size]
        is_other_mode = fields.update_mode and stat.S_IMODE(attr.st_mode) != node.mode
        is_other_owner = (fields.update_uid and attr.st_uid != self._entry.st_uid) or (
            fields.update_gid and attr.st_gid != self._entry.st_gid
        )
        if is_other_mode or is_other_owner:
            self._refuse(f"the mode and the owner of {node.title} are fixed")
        return self.attributes(inode)

    def is_allowed(self, inode: int, mode: int) -> bool:
        """access(2). Not more to root: writing would be refused."""
        return not mode & ~(self._controls.node(inode).mode >> 6)

    # --- directories

    def open_directory(self, inode: int) -> int:
        """A file handle. Raises NotFound."""
        self._changes.sync_tree()
        fh = self._next_fh()
        self._directories[fh] = _DirectoryHandle(self._controls.node(inode))
        return fh

    def close_directory(self, fh: int) -> None:
        del self._directories[fh]

    def list(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Entries from behind a cookie, as many as there is room for; all of one moment."""
        handle = self._directories[fh]
        if start_id == 0:
            self._changes.sync_tree()
            handle.entries = tuple(self._controls.entries(handle.node))
        dots = ((b".", handle.node), (b"..", self._controls.parent(handle.node)))
        for number in range(start_id, _DOTS + len(handle.entries)):
            name, node = dots[number] if number < _DOTS else handle.entries[number - _DOTS]
            if not pyfuse3.readdir_reply(token, name, self._answer(node), number + 1):
                return

    # --- open files

    async def open(self, inode: int, flags: int) -> FileInfo:
        """open(2). Raises NotFound, EditRefused, and Busy where the index does not count in time."""
        self._changes.sync_tree()
        node = self._controls.node(inode)
        is_written = bool(flags & (os.O_ACCMODE | os.O_TRUNC))
        if is_written and node.kind != ControlKind.QUERY:
            self._refuse(f"{node.title} cannot be written")
        # A write does not say whose it is.
        opener = self._changes.requests.actor_or_none() if is_written else None
        content = b"" if flags & os.O_TRUNC else await self._content(node)
        fh = self._next_fh()
        is_appending = bool(flags & os.O_APPEND)
        self._files[fh] = _FileHandle(node, content, is_appending, opener)
        self._info.fh = fh
        return self._info

    def _next_fh(self) -> int:
        self._last_fh += 1
        return self._last_fh

    async def _content(self, node: Control) -> bytes:
        search = node.search
        match node.kind:
            case ControlKind.STATUS:
                return self._status().as_text().encode(errors="backslashreplace")
            case ControlKind.STATUS_JSON:
                said = json.dumps(self._status().as_dict(), indent=1)
                return f"{said}\n".encode(errors="backslashreplace")
            case ControlKind.ERRORS:
                return errors_content(self._changes.problems, self._tree.problems)
            case ControlKind.QUERY if search is not None:
                return query_content(search)
            case ControlKind.EXPLAIN if search is not None:
                return explain(self._tree, search)
            case _:
                return await self._count(node)

    async def _count(self, node: Control) -> bytes:
        view = None
        if node.search is not None:
            view = self._tree.view_of_or_none(node.search.search_id)
        if view is None:
            raise NotFound("the search was forgotten")
        is_unread = node.kind == ControlKind.UNREAD
        count = count_in_memory_or_none(self._tree, view, is_unread=is_unread)
        if count is None:
            layout = self._tree.store.layout
            count = await self._changes.blocking(
                count_in_index, layout, view.query, is_unread, what="a count of messages"
            )
        return b"%d\n" % count

    def read(self, fh: int, offset: int, size: int) -> bytes:
        return self._files[fh].content[offset : offset + size]

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        """One write is one query; one that goes on where another ended makes it longer.

        Raises EditRefused (EINVAL) with the place in the query, NotFound when the search was forgotten, Busy.
        """
        handle = self._files[fh]
        before = handle.content if handle.is_appending else handle.content[:offset]
        if len(before) < offset and not handle.is_appending:
            raise EditRefused("a query has no gaps", errno.EINVAL)
        content = before + data
        self._changes.sync_tree()
        opened = handle.node.search
        search = None if opened is None else self._controls.search_or_none(opened.search_id)
        if search is None:
            raise NotFound("the search was forgotten")
        edit = plan_query(search, query_of_content(content))
        if edit is not None:
            await self._changes.edit(edit, handle.opener)
        handle.content = content
        return len(data)

    def close(self, fh: int) -> None:
        del self._files[fh]
