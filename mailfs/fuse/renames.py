"""rename(2), by what is renamed and where to.

within cur/ and new/ of a view    flags, and the names clients choose
to cur/ or new/ of another view   mv: leave and enter
a file to cur/ or new/            delivery
out of .expunged to a view        it is undeleted
a directory of the tree           the search gets another name
ordinary files                    as on any disk
a message to anywhere else        EXDEV, so that mv(1) copies
"""

import errno

import pyfuse3

from mailfs.errors import EditRefused, NotFound
from mailfs.fuse.changes import Changes
from mailfs.fuse.ordinary import OrdinaryFiles, is_hidden
from mailfs.ids import Docid
from mailfs.views.arrivals import StoredMessage, plan_arrival, plan_move
from mailfs.views.edits import Removal, plan_rename
from mailfs.views.files import is_file_ino
from mailfs.views.searches import plan_rename_directory
from mailfs.views.tree import Alias, Directory, Kind


class Renames:
    """The handler's work; errors leave it as they are."""

    def __init__(self, changes: Changes, ordinary: OrdinaryFiles) -> None:
        self._changes = changes
        self._tree = changes.tree
        self._ordinary = ordinary

    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        """As renameat2(2) with RENAME_NOREPLACE or no flag; EINVAL for others."""
        is_exclusive = _is_exclusive(flags)
        new_directory = None if is_file_ino(new_parent) else self._changes.directory(new_parent)
        if not is_file_ino(parent):
            directory = self._changes.directory(parent)
            child = self._tree.child_or_none(directory, name)
            if child is not None:
                await self._rename_directory(child, new_directory, new_name)
                return
            with self._changes.as_known(directory, name):
                if self._tree.find_message_or_none(directory, name) is not None:
                    await self._rename_message(
                        directory, name, new_directory, new_name, is_exclusive
                    )
                    return
            docid = self._tree.alias_or_none(directory, name)
            if docid is not None:
                await self._rename_alias(
                    directory, name, docid, new_directory, new_name, is_exclusive
                )
                return
        if new_directory is None or not _takes_messages(new_directory, new_name):
            self._rename_file(parent, name, new_parent, new_name, flags)
        elif not await self._deliver(parent, name, new_directory, new_name, is_exclusive):
            self._rename_file(parent, name, new_parent, new_name, flags)
            await self._changes.sync_folder(self._tree.area(new_directory))

    async def _rename_directory(
        self, directory: Directory, new_parent: Directory | None, new_name: bytes
    ) -> None:
        if new_parent is None:
            raise EditRefused("a view cannot be put into an ordinary directory")
        if self._ordinary.has(self._tree.area(new_parent), new_name):
            raise EditRefused(f"an ordinary {new_name!r} is there already", errno.ENOTEMPTY)
        parent, name = self._tree.parent(directory).ino, directory.path.rpartition("/")[2].encode()
        await self._changes.edit(plan_rename_directory(self._tree, directory, new_parent, new_name))
        self._changes.announcements.told_directory(parent, name)
        self._changes.announcements.told_directory(new_parent.ino, new_name)

    async def _rename_message(
        self,
        directory: Directory,
        name: bytes,
        new_directory: Directory | None,
        new_name: bytes,
        is_exclusive: bool,
    ) -> None:
        tree = self._tree
        if new_directory is None or not _takes_messages(new_directory, new_name):
            raise EditRefused("a message can only be copied out of its view", errno.EXDEV)
        self._check_free(new_directory, new_name, is_exclusive)
        if new_directory.view is directory.view:
            edit = plan_rename(
                tree, directory, name, new_directory, new_name, is_exclusive=is_exclusive
            )
            docid = tree.find_message(directory, name).docid
            if edit is not None:
                await self._changes.edit_entry(edit)
                self._told_replaced(edit.replaced, new_directory, new_name)
        else:
            move = plan_move(
                tree, directory, name, new_directory, new_name, is_exclusive=is_exclusive
            )
            docid = await self._changes.arrive(move)
            self._told_replaced(move.replaced, new_directory, new_name)
        self._give_way(new_directory, new_name)
        self._changes.told(docid, gone=(directory, name))
        self._made(new_directory, new_name, docid)

    def _made(self, directory: Directory, name: bytes, docid: Docid) -> None:
        """After a rename the kernel believes in the client's name; when we show another, it is told of that."""
        self._tree.remember_written(directory, name, docid)
        self._changes.told(docid, made=(directory, name))

    def _told_replaced(self, replaced: Removal | None, directory: Directory, name: bytes) -> None:
        if replaced is not None:
            self._changes.told(replaced.docid, gone=(directory, name))

    async def _rename_alias(
        self,
        directory: Directory,
        name: bytes,
        docid: Docid,
        new_directory: Directory | None,
        new_name: bytes,
        is_exclusive: bool,
    ) -> None:
        tree = self._tree
        assert directory.search_id is not None
        if new_directory is not None and _takes_messages(new_directory, new_name):
            source = StoredMessage(docid, is_revived=True)
            await self._bring(source, new_directory, new_name, is_exclusive)
        elif new_directory is not None and new_directory.kind == Kind.TMP:
            assert new_directory.search_id is not None
            self._check_free(new_directory, new_name, is_exclusive)
            self._give_way(new_directory, new_name)
            tree.put_alias(Alias(new_directory.search_id, new_name), docid)
        else:
            raise EditRefused("a message can be linked into tmp, cur and new only", errno.EXDEV)
        tree.drop_alias(Alias(directory.search_id, name))

    async def _bring(
        self, source: StoredMessage, directory: Directory, name: bytes, is_exclusive: bool
    ) -> None:
        """A message that had no name in a view gets one."""
        self._check_free(directory, name, is_exclusive)
        arrival = plan_arrival(self._tree, source, directory, name, is_exclusive=is_exclusive)
        await self._changes.arrive(arrival)
        self._told_replaced(arrival.replaced, directory, name)
        self._give_way(directory, name)
        self._made(directory, name, source.docid)

    async def undelete(self, docid: Docid, new_parent: int, new_name: bytes, flags: int) -> None:
        """mv of an expunged message into a view: it is back, as it was, and there. EXDEV to anywhere else."""
        is_exclusive = _is_exclusive(flags)
        new_directory = None if is_file_ino(new_parent) else self._changes.directory(new_parent)
        if new_directory is None or not _takes_messages(new_directory, new_name):
            raise EditRefused("a message can only be copied to there", errno.EXDEV)
        source = StoredMessage(docid, is_undeleted=True)
        await self._bring(source, new_directory, new_name, is_exclusive)

    def _check_free(self, directory: Directory, name: bytes, is_exclusive: bool) -> None:
        """Raises EditRefused where an ordinary file has the name and must not be replaced."""
        if is_exclusive and self._ordinary.has(self._tree.area(directory), name):
            raise EditRefused(f"{name!r} is there already", errno.EEXIST)

    def _give_way(self, directory: Directory, name: bytes) -> None:
        """An ordinary file that had the name is replaced."""
        place = self._tree.area(directory)
        if self._ordinary.has(place, name):
            self._ordinary.files.unlink(place, name)

    async def _deliver(
        self,
        parent: int,
        name: bytes,
        new_directory: Directory,
        new_name: bytes,
        is_exclusive: bool,
    ) -> bool:
        """Whether the rename was a delivery."""
        place = self._ordinary.place(parent)
        source = self._ordinary.spooled(place, name)
        if source is None:
            raise EditRefused("only a regular file can become a message")
        is_taken = self._tree.find_message_or_none(new_directory, new_name) is not None
        if not self._ordinary.size(source):
            if is_taken:
                raise EditRefused("an empty file cannot replace a message")
            # Not yet a message: mblaze's mcom reserves a name in cur/ like this, and writes there afterwards.
            return False
        if self._ordinary.is_being_written(source) and not is_taken:
            # Not whole yet. What has been written survives power loss as an acknowledged delivery does.
            await self._changes.sync_path(source.path)
            self._ordinary.wait_for(self._tree.area(new_directory), new_name)
            return False
        self._check_free(new_directory, new_name, is_exclusive)
        arrival = plan_arrival(
            self._tree, source, new_directory, new_name, is_exclusive=is_exclusive
        )
        docid = await self._ordinary.deliver(arrival, source, place, name, is_kept=False)
        if (place, name) != (self._tree.area(new_directory), new_name):
            self._give_way(new_directory, new_name)
        self._told_replaced(arrival.replaced, new_directory, new_name)
        self._made(new_directory, new_name, docid)
        return True

    def _rename_file(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        place, new_place = self._ordinary.place(parent), self._ordinary.place(new_parent)
        found = self._ordinary.files.lookup_or_none(place, name)
        if found is None:
            raise NotFound(f"no file {name!r}")
        self._ordinary.files.forget(found.ino)
        self._ordinary.check_new(new_parent, new_name, found.stat.st_mode)
        if not is_file_ino(new_parent):
            directory = self._tree.directory(new_parent)
            if directory.kind == Kind.TMP and directory.search_id is not None:
                self._tree.drop_alias(Alias(directory.search_id, new_name))
        self._ordinary.files.rename(place, name, new_place, new_name, flags)
        self._ordinary.touch(parent)
        self._ordinary.touch(new_parent)


def _is_exclusive(flags: int) -> bool:
    """Of the flags of renameat2(2). Raises EditRefused for others than RENAME_NOREPLACE."""
    if flags & ~pyfuse3.RENAME_NOREPLACE:
        raise EditRefused("names cannot be exchanged here", errno.EINVAL)
    return bool(flags & pyfuse3.RENAME_NOREPLACE)


def _takes_messages(directory: Directory, name: bytes) -> bool:
    return directory.holds_messages and not is_hidden(name)
