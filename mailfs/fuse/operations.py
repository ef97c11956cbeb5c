"""pyfuse3.Operations over the tree: ids, attributes and errnos in, answers out.

Handlers are short synchronous code, atomic until their next await; what may take longer goes through `blocking`, which
lets others be served. A handler that shows or changes names first brings the tree up to what other processes
committed. An inode number says what it is: a message, a directory of the tree, or an ordinary file (ordinary.py). Only FUSEError leaves a
handler: a MailfsError becomes its errno, anything else EIO and one line in the log, and the mount goes on.
"""

import contextlib
import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from typing import Concatenate, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from mailfs.errors import EditRefused, MailfsError, NotFound, storage_error
from mailfs.fuse.answers import Answers
from mailfs.fuse.changes import Changes
from mailfs.fuse.control import ControlFiles, Status
from mailfs.fuse.echo import Echo, KnownDirectories
from mailfs.fuse.expunged import ExpungedFiles
from mailfs.fuse.handles import DirectoryHandle, Handles, MessageHandle
from mailfs.fuse.links import Links
from mailfs.fuse.listings import Listings
from mailfs.fuse.ordinary import OrdinaryFiles, is_hidden
from mailfs.fuse.renames import Renames
from mailfs.fuse.requests import Requests
from mailfs.ids import Docid, Fh, Ino
from mailfs.store.records import FRAME_BYTES
from mailfs.views.announce import Announcements
from mailfs.views.control import is_control_ino, is_control_name
from mailfs.views.edits import plan_unlink
from mailfs.views.expunged import is_expunged_ino, is_expunged_name
from mailfs.views.files import is_file_ino
from mailfs.views.searches import plan_mkdir, plan_remove_part, plan_rmdir
from mailfs.views.tree import (
    Alias,
    Directory,
    Kind,
    Tree,
    docid_of_or_none,
    message_ino,
)

log = logging.getLogger(__name__)

# Up to this a message is put into the page cache while it is opened, and no READ follows.
_STORE_BYTES = FRAME_BYTES // 2

# What the disk below the store does, not what a client asked wrongly.
_STORAGE_ERRORS = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE})

P = ParamSpec("P")
R = TypeVar("R")


def handler(
    method: Callable[Concatenate["Operations", P], Coroutine[object, None, R]],
) -> Callable[Concatenate["Operations", P], Coroutine[object, None, R]]:
    """Count the request, and let only FUSEError out."""
    name = method.__name__

    @functools.wraps(method)
    async def wrapped(self: "Operations", /, *args: P.args, **kwargs: P.kwargs) -> R:
        requests = self.requests
        requests.counts[name] += 1
        requests.name, requests.arguments = name, args
        try:
            return await method(self, *args, **kwargs)
        except FUSEError:
            raise
        except MailfsError as error:
            self.changes.explain(name, error)
            raise FUSEError(error.errno) from None
        except OSError as error:
            # Of an ordinary file: what the real file system says, as on any disk.
            if error.errno in _STORAGE_ERRORS:
                self.changes.explain(name, storage_error(error, "a file beside the messages"))
            raise FUSEError(error.errno or errno.EIO) from None
        except Exception:  # the last line of defence: one client's trouble never ends the mount
            log.exception("%s failed", name)
            raise FUSEError(errno.EIO) from None
        finally:
            requests.name, requests.arguments = "", ()

    return wrapped


class Operations(pyfuse3.Operations):
    """The handlers of one mount."""

    # False: we need no lookup of `.` and `..`, which only an NFS export would use.
    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, tree: Tree, requests: Requests, status: Callable[[], Status]) -> None:
        super().__init__()
        self.tree = tree
        self.requests = requests
        self.handles = Handles(requests)
        self._answers = Answers()
        self.known = KnownDirectories()
        announcements = Announcements(tree, self.known)
        self.changes = Changes(tree, announcements, requests)
        self.echo = Echo(tree, announcements, self._answers)
        self.ordinary = OrdinaryFiles(self.changes, self.handles, self._answers)
        self._listings = Listings(self.changes, self.ordinary, self._answers, self.known)
        self._links = Links(self.changes, self.ordinary, self._answers)
        self._renames = Renames(self.changes, self.ordinary)
        self.control = ControlFiles(self.changes, status)
        self.expunged = ExpungedFiles(self.changes, self._answers)
        # Messages whose pages were put into the kernel, until it forgets the inode.
        self._stored: set[int] = set()
        # What a client that opens messages in the order of the last listing will open next.
        self._next_docid: Docid | None = None
        # One object, filled anew for every answer: pyfuse3 copies it before the next await.
        self._file_info = FileInfo(keep_cache=True)

    def _check_ordinary(self, parent: int, name: bytes) -> None:
        """Raises EditRefused where nothing can be made, moved or removed."""
        self.control.check_outside(parent, name)
        self.expunged.check_outside(parent, name)

    def _directory_answer(self, directory: Directory) -> EntryAttributes:
        return self._answers.attributes(self.tree.directory_attributes(directory))

    def _count_directory(self, answer: EntryAttributes) -> None:
        if stat.S_ISDIR(answer.st_mode):
            self.known.count(answer.st_ino)

    def _made_answer(self, directory: Directory) -> EntryAttributes:
        """Of a directory the kernel learns of by this."""
        self.known.count(directory.ino)
        return self._directory_answer(directory)

    def _message_answer(self, directory: Directory, name: bytes) -> EntryAttributes:
        """Of an entry. Raises NotFound unless the name is true now."""
        found = self.tree.find_message(directory, name)
        view = directory.view
        assert view is not None
        view.use()
        attributes = self.tree.message_attributes(found.docid)
        # The kernel keeps a name only if it will be told when it is gone: not in a view that is not
        # followed yet, and not one that we only understand, or that watchers have still to be told of.
        is_told = found.docid not in self.changes.announcements.unannounced(view)
        if view.is_loaded and found.is_exact and is_told:
            return self._answers.attributes(attributes)
        return self._answers.not_kept(attributes)

    # --- names and attributes

    @handler
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if self.echo.is_asking(ctx):
            answer = self.echo.lookup_or_none((Ino(parent_inode), name))
            if answer is not None:
                self._count_directory(answer)
                return answer
        if self.echo.is_probe(name, ctx):
            raise NotFound("nobody has this name")
        if is_control_name(parent_inode, name) or is_expunged_name(parent_inode, name):
            return self._own_answer(Ino(parent_inode), name)
        if not is_file_ino(parent_inode):
            directory = self.changes.directory(parent_inode)
            child = self.tree.child_or_none(directory, name)
            if child is not None:
                return self._child_answer(directory, child, name, ctx)
            if directory.holds_messages:
                with contextlib.suppress(NotFound):
                    return self._entry_answer(directory, name, ctx)
            docid = self.tree.alias_or_none(directory, name)
            if docid is not None:
                return self._answers.not_kept(self.tree.held_attributes(docid))
        found = self.ordinary.files.lookup_or_none(self.ordinary.place(parent_inode), name)
        if found is None:
            raise NotFound(f"no entry {name!r}")
        return self.ordinary.answer(found)

    def _own_answer(self, parent: Ino, name: bytes) -> EntryAttributes:
        """Of something that is neither mail in a view nor a client's. Raises NotFound."""
        if is_control_name(parent, name):
            return self.control.lookup(parent, name)
        return self.expunged.lookup(parent, name)

    def _entry_answer(
        self, directory: Directory, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Of a message by its name, also one that this client's own request has just changed. Raises NotFound."""
        known = self.changes.known_or_none(directory, name, ctx.pid)
        if known is not None and self.tree.find_message_or_none(directory, name) is None:
            return self._answers.not_kept(self.tree.held_attributes(known))
        return self._message_answer(directory, name)

    def _child_answer(
        self, directory: Directory, child: Directory, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        if child.holds_messages and child.view is not None and not self.echo.is_asking(ctx):
            self.changes.want(child.view)
        making = None if directory.view is None else directory.view.making
        is_making = making is not None and directory.kind == Kind.VIEW
        if making is not None and is_making and making.hides(name, ctx.pid):
            raise NotFound(f"{name!r} is still to be made")
        announcements = self.changes.announcements
        if not is_making and not announcements.is_directory_unannounced(directory.ino, name):
            return self._made_answer(child)
        self.known.count(child.ino)
        return self._answers.not_kept(self.tree.directory_attributes(child))

    @handler
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        if is_file_ino(inode):
            return self.ordinary.attributes(inode)
        self.changes.sync_tree()
        docid = docid_of_or_none(inode)
        if docid is not None:
            is_held = Ino(inode) in self.handles.open_counts or docid in self.tree.aliases.values()
            if self.echo.is_asking(ctx):
                return self.echo.attributes_before_removal(docid)
            if is_held:
                return self._answers.attributes(self.tree.held_attributes(docid))
            return self.expunged.message_attributes_or_none(docid) or self._answers.attributes(
                self.tree.message_attributes(docid)
            )
        if is_control_ino(inode):
            return self.control.attributes(inode)
        if is_expunged_ino(inode):
            return self.expunged.attributes(Ino(inode))
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
        """utime, chmod and chown of messages and views are accepted and change nothing; a message cannot be cut."""
        if self.echo.is_asking(ctx):
            return self.echo.touch(Ino(inode))
        if is_file_ino(inode):
            await self.ordinary.settle_ino(inode)
            return self.ordinary.set_attributes(inode, attr, fields, fh)
        if is_control_ino(inode):
            return self.control.set_attributes(inode, attr, fields, fh)
        if is_expunged_ino(inode):
            return self.expunged.attributes(Ino(inode))
        docid = docid_of_or_none(inode)
        if docid is None:
            return self._directory_answer(self.tree.directory(inode))
        if fields.update_size:
            raise EditRefused("a message cannot be changed, only replaced")
        return self._answers.attributes(self.tree.held_attributes(docid))

    @handler
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        """access(2). Not asked with default_permissions, where the kernel looks at the modes itself."""
        if is_file_ino(inode) and self.ordinary.message_or_none(inode) is None:
            return self.ordinary.is_allowed(inode, mode, is_root=ctx.uid == 0)
        if is_control_ino(inode):
            return self.control.is_allowed(inode, mode)
        return docid_of_or_none(inode) is None or not mode & os.X_OK

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Messages and views need no lookup counts: every inode number can be made a node again."""
        for inode, count in inode_list:
            docid = docid_of_or_none(inode)
            if is_file_ino(inode):
                self.ordinary.forget(inode, count)
            elif docid is None:
                self.known.forget(inode, count)
            else:
                self._stored.discard(inode)

    # --- directories

    @handler
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        if is_file_ino(inode):
            return self.handles.open_directory(DirectoryHandle(None, Ino(inode)))
        if is_control_ino(inode):
            return self.control.open_directory(inode)
        if is_expunged_ino(inode):
            return self.expunged.open_directory(Ino(inode))
        directory = self.changes.directory(inode)
        view = directory.view
        if view is not None and directory.holds_messages:
            view.open_handles += 1  # before the await: what lingers must not leave meanwhile
            view.use()
            try:
                await self.changes.load(view)
            except BaseException:
                view.open_handles -= 1
                raise
        return self.handles.open_directory(DirectoryHandle(directory, self.tree.area(directory)))

    @handler
    async def releasedir(self, fh: int) -> None:
        if self.control.is_directory(fh):
            self.control.close_directory(fh)
            return
        if self.expunged.is_directory(fh):
            self.expunged.close_directory(fh)
            return
        directory = self.handles.close_directory(Fh(fh)).directory
        if directory is not None and directory.view is not None and directory.holds_messages:
            directory.view.open_handles -= 1
            directory.view.use()

    @handler
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if self.control.is_directory(fh):
            self.control.list(fh, start_id, token)
            return
        if self.expunged.is_directory(fh):
            self.expunged.list(fh, start_id, token)
            return
        self._listings.reply(self.handles.directories[Fh(fh)], start_id, token)

    # --- open files

    @handler
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        docid = docid_of_or_none(inode)
        if docid is None:
            if is_control_ino(inode):
                return await self.control.open(inode, flags)
            if flags & os.O_ACCMODE:
                await self.ordinary.settle_ino(inode)
            docid = self.ordinary.message_or_none(inode)
            if docid is None:
                return self.ordinary.open(inode, flags)
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            raise EditRefused("a message cannot be changed, only replaced")
        handle = MessageHandle(docid, Ino(inode), is_in_order=docid == self._next_docid)
        if not is_file_ino(inode):
            self._store_pages(docid)
        listed = self._listings.listed_view
        self._next_docid = None if listed is None else listed.next_or_none(docid)
        self._file_info.fh = self.handles.open_message(handle)
        return self._file_info

    @handler
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        self._check_ordinary(parent_inode, name)
        await self.ordinary.settle(parent_inode, name)
        return self.ordinary.create(parent_inode, name, flags, mode)

    def _store_pages(self, docid: Docid) -> None:
        """Put a small message into the page cache, so that no READ follows.

        Only while nobody has it open: with a READ under way its pages are locked until we answer, and
        storing into them would wait for ourselves.
        """
        ino = message_ino(docid)
        if ino in self._stored or ino in self.handles.open_counts:
            return
        if 0 < self.tree.store.index.location(docid).raw <= _STORE_BYTES:
            pyfuse3.notify_store(ino, 0, self.tree.store.load(docid))
            self._stored.add(ino)

    @handler
    async def read(self, fh: int, off: int, size: int) -> bytes:
        handle = self.handles.messages.get(Fh(fh))
        if handle is None and self.control.is_file(fh):
            return self.control.read(fh, off, size)
        if handle is None:
            return self.ordinary.read(self.handles.file(fh), off, size)
        return handle.read(self.tree.store, off, size)

    @handler
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        if self.control.is_file(fh):
            return await self.control.write(fh, off, buf)
        handle = self.handles.file(fh)
        await self.ordinary.settle_ino(handle.ino)
        return self.ordinary.write(handle, off, buf)

    @handler
    async def release(self, fh: int) -> None:
        """No client waits for this answer: time to put the next message of one who reads in order into place."""
        if self.control.is_file(fh):
            self.control.close(fh)
            return
        if Fh(fh) in self.handles.files:
            await self.ordinary.release(Fh(fh))
            return
        handle = self.handles.close_message(Fh(fh))
        if handle.is_in_order and self._next_docid is not None:
            # Not in the kernel, damaged or gone: whoever opens it will hear of it.
            with contextlib.suppress(OSError, MailfsError):
                self._store_pages(self._next_docid)

    # --- making names

    @handler
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        if self.echo.is_asking(ctx):
            return self.echo.make((Ino(parent_inode), name))
        self._check_ordinary(parent_inode, name)
        return self.ordinary.mknod(parent_inode, name, mode)

    @handler
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        self._check_ordinary(parent_inode, name)
        return self.ordinary.symlink(parent_inode, name, target)

    @handler
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self.ordinary.files.readlink(Ino(inode))

    @handler
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        self._check_ordinary(new_parent_inode, new_name)
        self._check_ordinary(inode, b"")
        await self.ordinary.settle_ino(inode)
        docid = docid_of_or_none(inode)
        is_expunged = docid is not None and self.expunged.is_shown(docid)
        made = await self._links.link(inode, new_parent_inode, new_name, is_undeleted=is_expunged)
        if isinstance(made, EntryAttributes):
            return made
        return self._message_answer(made, new_name)

    @handler
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        if self.echo.is_asking(ctx):
            answer = self.echo.make((Ino(parent_inode), name))
            self._count_directory(answer)
            return answer
        if is_file_ino(parent_inode):
            return self.ordinary.mkdir(parent_inode, name, mode)
        self._check_ordinary(parent_inode, name)
        directory = self.changes.directory(parent_inode)
        view = directory.view
        making = None if view is None else view.making
        if view is not None and directory.kind == Kind.VIEW and name in view.removed_parts:
            view.removed_parts.discard(name)
        elif making is not None and making.hides(name, ctx.pid):
            making.unmade.discard(name)
        elif directory.kind == Kind.TMP or directory.holds_messages or is_hidden(name):
            return self.ordinary.mkdir(parent_inode, name, mode)
        else:
            await self.changes.edit(plan_mkdir(self.tree, directory, name))
            self.changes.announcements.told_directory(directory.ino, name)
            made = self.tree.child_or_none(self.tree.directory(parent_inode), name)
            if made is not None and made.view is not None:
                made.view.begin_making(ctx.pid)
        child = self.tree.child_or_none(self.tree.directory(parent_inode), name)
        if child is None:
            raise NotFound("the new search was forgotten again by another process")
        return self._made_answer(child)

    # --- removing and changing names

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
        if self.echo.is_asking(ctx):
            self.echo.move((Ino(parent_inode_old), name_old), (Ino(parent_inode_new), name_new))
            return
        self._check_ordinary(parent_inode_new, name_new)
        if is_expunged_ino(parent_inode_old):
            docid = self.expunged.find(Ino(parent_inode_old), name_old)
            await self._renames.undelete(docid, parent_inode_new, name_new, flags)
            return
        self._check_ordinary(parent_inode_old, name_old)
        await self.ordinary.settle(parent_inode_old, name_old)
        await self._renames.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @handler
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        if self.echo.is_asking(ctx):
            self.echo.remove((Ino(parent_inode), name))
            return
        self._check_ordinary(parent_inode, name)
        await self.ordinary.settle(parent_inode, name)
        if not is_file_ino(parent_inode):
            directory = self.changes.directory(parent_inode)
            with self.changes.as_known(directory, name):
                found = self.tree.find_message_or_none(directory, name)
                if found is not None:
                    await self.changes.edit_entry(plan_unlink(self.tree, directory, name))
                    self.changes.told(found.docid, gone=(directory, name))
                    return
            if self.tree.alias_or_none(directory, name) is not None:
                assert directory.search_id is not None
                self.tree.drop_alias(Alias(directory.search_id, name))
                return
        self.ordinary.unlink(parent_inode, name)

    @handler
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        if self.echo.is_asking(ctx):
            self.echo.remove((Ino(parent_inode), name))
            return
        if is_file_ino(parent_inode):
            self.ordinary.rmdir(parent_inode, name)
            return
        self._check_ordinary(parent_inode, name)
        directory = self.changes.directory(parent_inode)
        child = self.tree.child_or_none(directory, name)
        if child is None:
            self.ordinary.rmdir(parent_inode, name)
        elif child.kind in (Kind.CUR, Kind.NEW, Kind.TMP):
            assert child.view is not None
            await self.changes.load(child.view)
            plan_remove_part(self.tree, child)
            child.view.removed_parts.add(name)
            # The kernel forgets the name by itself.
        else:
            await self.changes.edit(plan_rmdir(self.tree, directory, name))
            self.changes.announcements.told_directory(directory.ino, name)

    # --- durability and space

    @handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        handle = self.handles.files.get(Fh(fh))
        if handle is None:
            await self.changes.sync()
        else:
            await self.changes.sync_file(handle.fd)

    @handler
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self.changes.sync()
        if self.control.is_directory(fh) or self.expunged.is_directory(fh):
            return
        handle = self.handles.directories[Fh(fh)]
        await self.changes.sync_folder(self.ordinary.files.folder(handle.place))

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
