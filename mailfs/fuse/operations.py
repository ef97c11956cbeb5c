"""pyfuse3.Operations over the tree: ids, attributes and errnos in, answers out.

Handlers are short synchronous code, atomic until their next await; what may take longer goes through `blocking`, which
lets others be served. A handler that shows or changes names first brings the tree up to what other processes
committed. Only FUSEError leaves a handler: a MailfsError becomes its errno, anything else EIO and one line in the log, and the mount goes on.

What the kernel keeps: names and attributes of messages for 300 s (invalidated when they change), directories' attributes
not at all (their mtime is how clients learn of new mail), pages of a message until memory is short.
"""

import contextlib
import errno
import functools
import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Concatenate, ParamSpec, Protocol, TypeVar, TypeVarTuple

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from mailfs.errors import Busy, EditRefused, MailfsError, NotFound
from mailfs.fuse.handles import DirectoryHandle, Handles, MessageHandle
from mailfs.fuse.notify import Notifier
from mailfs.ids import Docid, Fh, Ino
from mailfs.message.maildir import split_name
from mailfs.store.records import FRAME_BYTES
from mailfs.views.edits import (
    Edit,
    FlagEdit,
    commit,
    plan_mkdir,
    plan_rename,
    plan_rmdir,
    plan_unlink,
)
from mailfs.views.refresh import (
    LINGER_S,
    end_lingering,
    evaluate,
    install,
    needs_evaluation,
    refresh,
)
from mailfs.views.tree import (
    Attributes,
    Directory,
    Invalidation,
    Kind,
    Tree,
    docid_of_or_none,
    message_ino,
)
from mailfs.views.view import View

log = logging.getLogger(__name__)

CACHE_S = 300.0
# How long a client's rename or unlink waits for a writer in another process before EAGAIN.
EDIT_DEADLINE_S = 10.0
# `.` and `..` have the cookies 1 and 2; a message has its docid and these added.
_DOTS = 2
# Up to this a message is put into the page cache while it is opened, and no READ follows.
_STORE_BYTES = FRAME_BYTES // 2

# Refusals are explained once each; a client that makes up names must not fill the log.
_MAX_EXPLAINED = 1000

P = ParamSpec("P")
R = TypeVar("R")
Arguments = TypeVarTuple("Arguments")


class Blocking(Protocol):
    """How a handler waits for something slow: Drain.blocking or drain.in_thread."""

    async def __call__(self, function: Callable[[*Arguments], R], *arguments: *Arguments) -> R: ...


def handler(
    method: Callable[Concatenate["Operations", P], Coroutine[object, None, R]],
) -> Callable[Concatenate["Operations", P], Coroutine[object, None, R]]:
    """Count the request, and let only FUSEError out."""
    name = method.__name__

    @functools.wraps(method)
    async def wrapped(self: "Operations", /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.counts[name] += 1
        try:
            return await method(self, *args, **kwargs)
        except FUSEError:
            raise
        except MailfsError as error:
            self.explain(name, error)
            raise FUSEError(error.errno) from None
        except OSError as error:
            log.warning("%s: %s", name, error)
            raise FUSEError(error.errno or errno.EIO) from None
        except Exception:  # the last line of defence: one client's trouble never ends the mount
            log.exception("%s failed", name)
            raise FUSEError(errno.EIO) from None

    return wrapped


class Operations(pyfuse3.Operations):
    """The handlers of one mount."""

    # False: we need no lookup of `.` and `..`, which only an NFS export would use.
    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, tree: Tree, notifier: Notifier, blocking: Blocking) -> None:
        super().__init__()
        self.tree = tree
        self.handles = Handles()
        self.counts: Counter[str] = Counter()
        self.is_dirty = False  # committed, but not yet made to survive power loss
        self._notifier = notifier
        self._blocking = blocking
        self._explained: set[str] = set()
        # Messages whose pages were put into the kernel, until it forgets the inode.
        self._stored: set[int] = set()
        # The view listed last, and what a client that opens its messages in order will open next.
        self._listed: View | None = None
        self._next_docid: Docid | None = None
        # One object each, filled anew for every answer: pyfuse3 copies it before the next await.
        self._entry = self._new_entry(stat.S_IFREG | 0o600, CACHE_S)
        self._directory_entry = self._new_entry(stat.S_IFDIR | 0o700, 0)
        self._file_info = FileInfo(keep_cache=True)

    def _new_entry(self, mode: int, attribute_cache_s: float) -> EntryAttributes:
        entry = EntryAttributes()
        entry.generation = 0  # docids are never reused
        entry.st_mode = mode
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.st_blksize = 4096
        entry.entry_timeout = CACHE_S
        entry.attr_timeout = attribute_cache_s
        return entry

    # --- between the tree and pyfuse3

    def explain(self, name: str, error: MailfsError) -> None:
        """Say once in the log why a client was refused; a name that is not there needs no word."""
        text = str(error)
        is_known = text in self._explained or len(self._explained) >= _MAX_EXPLAINED
        if not isinstance(error, NotFound) and not is_known:
            self._explained.add(text)
            log.warning("%s refused: %s", name, text)

    def publish(self, invalidations: Sequence[Invalidation]) -> None:
        if invalidations:
            self._notifier.publish(invalidations)

    def sync_tree(self) -> None:
        """Bring the tree up to what is committed, by whatever process."""
        self.publish(refresh(self.tree))

    def tick(self) -> None:
        """What time brings: other processes' changes while nobody asks, and the end of lingering."""
        self.sync_tree()
        self.publish(end_lingering(self.tree, time.monotonic()))

    async def evaluate_again(self) -> None:
        """Move views that somebody looks at with the clock and with their threads, so that their mtimes do."""
        for view in list(self.tree.views.values()):
            if view.is_loaded and time.monotonic() - view.last_used_s < LINGER_S:
                await self._load(view)

    def _fill(self, attributes: Attributes) -> EntryAttributes:
        entry = self._directory_entry if attributes.is_directory else self._entry
        entry.entry_timeout = CACHE_S
        entry.st_ino = attributes.ino
        entry.st_nlink = attributes.nlink
        entry.st_size = attributes.size
        entry.st_blocks = (attributes.size + 511) // 512
        entry.st_mtime_ns = entry.st_atime_ns = attributes.mtime_ns
        entry.st_ctime_ns = attributes.ctime_ns
        return entry

    def _directory_answer(self, directory: Directory) -> EntryAttributes:
        return self._fill(self.tree.directory_attributes(directory))

    async def _edit_flags(self, edit: FlagEdit) -> None:
        view = edit.view
        view.use()
        view.being_edited.add(edit.docid)
        try:
            await self._edit(edit)
        finally:
            view.being_edited.discard(edit.docid)

    async def _edit(self, edit: Edit) -> None:
        """Commit an edit and show it. Without waiting when the writer lock is free, which it nearly always is."""
        try:
            commit(self.tree.store, edit, 0)
        except Busy:
            await self._blocking(commit, self.tree.store, edit, EDIT_DEADLINE_S)
        self.is_dirty = True
        self.sync_tree()

    async def _load(self, view: View) -> None:
        if needs_evaluation(self.tree, view):
            tree = self.tree
            evaluation = await self._blocking(evaluate, tree.store.layout, view, tree.facts)
            self.publish(install(tree, view, evaluation))

    # --- names and attributes

    @handler
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        self.sync_tree()
        directory = self.tree.directory(parent_inode)
        child = self.tree.child_or_none(directory, name)
        if child is not None:
            return self._directory_answer(child)
        docid = self.tree.lookup_message(directory, name)
        view = directory.view
        assert view is not None
        view.use()
        answer = self._fill(self.tree.message_attributes(docid))
        # The kernel keeps a name only if it will be told when it is gone: not in a view that is not
        # followed yet, and not one that we only understand.
        will_be_told = view.is_loaded and name == self.tree.current_name(docid)
        answer.entry_timeout = CACHE_S if will_be_told else 0
        return answer

    @handler
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        self.sync_tree()
        docid = docid_of_or_none(inode)
        if docid is not None:
            if docid not in self.tree.facts and self.handles.open_counts.get(Ino(inode)):
                return self._fill(self.tree.expunged_attributes(docid))
            return self._fill(self.tree.message_attributes(docid))
        directory = self.tree.directory(inode)
        if directory.kind == Kind.CUR and directory.view is not None:
            directory.view.use()
        return self._directory_answer(directory)

    @handler
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """utime, chmod and chown are accepted and change nothing; a message cannot be cut."""
        docid = docid_of_or_none(inode)
        if docid is None:
            return self._directory_answer(self.tree.directory(inode))
        if fields.update_size:
            raise EditRefused("a message cannot be changed, only replaced")
        return self._fill(self.tree.message_attributes(docid))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """No lookup counts are kept: every inode number can be made a node again."""
        for inode, _ in inode_list:
            self._stored.discard(inode)

    # --- directories

    @handler
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        self.sync_tree()
        directory = self.tree.directory(inode)
        view = directory.view
        if view is not None and directory.holds_messages:
            view.open_handles += 1  # before the await: what lingers must not leave meanwhile
            view.use()
            try:
                await self._load(view)
            except BaseException:
                view.open_handles -= 1
                raise
        entries = tuple(self.tree.entries(directory))
        return self.handles.open_directory(DirectoryHandle(directory, entries))

    @handler
    async def releasedir(self, fh: int) -> None:
        directory = self.handles.close_directory(Fh(fh)).directory
        if directory.view is not None and directory.holds_messages:
            directory.view.open_handles -= 1
            directory.view.use()

    @handler
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        handle = self.handles.directories[Fh(fh)]
        directory = handle.directory
        for cookie, name in ((1, b"."), (2, b"..")):
            if start_id < cookie:
                named = directory if cookie == 1 else self.tree.parent(directory)
                if not pyfuse3.readdir_reply(token, name, self._directory_answer(named), cookie):
                    return
                start_id = cookie
        if directory.holds_messages:
            self._listed = directory.view
            self._reply_messages(directory, Docid(start_id - _DOTS), token)
            return
        for cookie, entry in enumerate(handle.entries, _DOTS + 1):
            if cookie > start_id and not pyfuse3.readdir_reply(
                token, entry.name, self._directory_answer(entry.directory), cookie
            ):
                return

    def _reply_messages(
        self, directory: Directory, after: Docid, token: pyfuse3.ReaddirToken
    ) -> None:
        """The hot loop: one reused object, the three fields that differ filled from the arrays."""
        facts, entry, reply = self.tree.facts, self._entry, pyfuse3.readdir_reply
        size, received_ns, changed_ns = facts.size, facts.received_ns, facts.changed_ns
        base_ino = message_ino(0)
        entry.st_nlink = 1
        entry.entry_timeout = CACHE_S
        for docid, name in self.tree.iter_messages(directory, after):
            length = size[docid]
            entry.st_ino = base_ino + docid
            entry.st_size = length
            entry.st_blocks = (length + 511) >> 9
            entry.st_mtime_ns = entry.st_atime_ns = received_ns[docid]
            entry.st_ctime_ns = changed_ns[docid]
            if not reply(token, name, entry, docid + _DOTS):
                return

    # --- messages

    @handler
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        docid = docid_of_or_none(inode)
        if docid is None:
            raise NotFound(f"no message has inode {inode}")
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            raise EditRefused("a message cannot be changed, only replaced")
        handle = MessageHandle(docid, Ino(inode), is_in_order=docid == self._next_docid)
        self._store_pages(docid)
        self._next_docid = None if self._listed is None else self._listed.next_or_none(docid)
        self._file_info.fh = self.handles.open_message(handle)
        return self._file_info

    def _store_pages(self, docid: Docid) -> None:
        """Put a small message into the page cache, so that no READ follows.

        Only while nobody has it open: with a READ under way its pages are locked until we answer, and
        storing into them would wait for ourselves.
        """
        ino = message_ino(docid)
        if ino in self._stored or ino in self.handles.open_counts:
            return
        location = self.tree.store.index.location(docid)
        if 0 < location.raw <= _STORE_BYTES:
            pyfuse3.notify_store(ino, 0, self.tree.store.packs.load(location))
            self._stored.add(ino)

    @handler
    async def read(self, fh: int, off: int, size: int) -> bytes:
        handle = self.handles.messages[Fh(fh)]
        if handle.location is None:
            handle.location = self.tree.store.index.location(handle.docid)
        return handle.read(self.tree.store.packs, handle.location, off, size)

    @handler
    async def release(self, fh: int) -> None:
        """No client waits for this answer: time to put the next message of one who reads in order into place."""
        handle = self.handles.close_message(Fh(fh))
        if handle.is_in_order and self._next_docid is not None:
            # Not in the kernel, damaged or gone: whoever opens it will hear of it.
            with contextlib.suppress(OSError, MailfsError):
                self._store_pages(self._next_docid)

    # --- edits

    @handler
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        self.sync_tree()
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise EditRefused("names cannot be exchanged here", errno.EINVAL)
        tree = self.tree
        directory = tree.directory(parent_inode_old)
        new_directory = tree.directory(parent_inode_new)
        if tree.child_or_none(directory, name_old) is not None:
            raise EditRefused("a view is renamed with `mailfs save` and `mailfs forget`")
        edit: FlagEdit | None = plan_rename(tree, directory, name_old, new_directory, name_new)
        if edit is not None:
            await self._edit_flags(edit)
        self._take_back(new_directory, name_new)

    def _take_back(self, directory: Directory, name: bytes) -> None:
        """After a rename the kernel believes in the client's name; when we show another, it must forget it."""
        docid = self.tree.docid_of_base_or_none(split_name(name).base)
        if docid is None or name != self.tree.current_name(docid):
            self.publish([Invalidation(directory.ino, name)])

    @handler
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self.sync_tree()
        directory = self.tree.directory(parent_inode)
        await self._edit(plan_unlink(self.tree, directory, name))

    @handler
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        self.sync_tree()
        await self._edit(plan_mkdir(self.tree, self.tree.directory(parent_inode), name))
        child = self.tree.child_or_none(self.tree.directory(parent_inode), name)
        if child is None:
            raise NotFound("the new search was forgotten again by another process")
        return self._directory_answer(child)

    @handler
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self.sync_tree()
        await self._edit(plan_rmdir(self.tree, self.tree.directory(parent_inode), name))

    @handler
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        raise EditRefused("new files are not taken yet; use `mailfs import`")

    @handler
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        raise EditRefused("new files are not taken yet; use `mailfs import`")

    @handler
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        raise EditRefused("a message cannot be linked yet; use `mailfs tag`")

    @handler
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        raise EditRefused("there are no symbolic links here")

    # --- durability and space

    @handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._blocking(self.tree.store.writer.sync)

    @handler
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._blocking(self.tree.store.writer.sync)

    @handler
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """The file system the store lies on."""
        found = os.statvfs(self.tree.store.layout.root)
        answer = pyfuse3.StatvfsData()
        for field in (
            "f_bsize",
            "f_frsize",
            "f_blocks",
            "f_bfree",
            "f_bavail",
            "f_files",
            "f_ffree",
            "f_favail",
            "f_namemax",
        ):
            setattr(answer, field, getattr(found, field))
        return answer
