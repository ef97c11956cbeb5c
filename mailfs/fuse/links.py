"""link(2): a file or a message gets one more name.

a message, or a file, to cur/ or new/     it enters the view; a name of the file in tmp/ is one of the message then
a message to tmp/                         a name on its way to another folder
ordinary files                            as on any disk
a message to anywhere else                EXDEV, so that cp -l copies
"""

import errno

from pyfuse3 import EntryAttributes

from mailfs.errors import EditRefused
from mailfs.fuse.answers import Answers
from mailfs.fuse.changes import Changes
from mailfs.fuse.ordinary import OrdinaryFiles, is_hidden
from mailfs.ids import Docid, Ino
from mailfs.views.arrivals import StoredMessage, plan_arrival, plan_link
from mailfs.views.files import is_file_ino
from mailfs.views.tree import Alias, Directory, Kind, docid_of_or_none


class Links:
    """The handler's work; errors leave it as they are."""

    def __init__(self, changes: Changes, ordinary: OrdinaryFiles, answers: Answers) -> None:
        self._changes = changes
        self._tree = changes.tree
        self._ordinary = ordinary
        self._answers = answers

    async def link(
        self, inode: int, new_parent: int, new_name: bytes, *, is_undeleted: bool
    ) -> EntryAttributes | Directory:
        """The new name's attributes; or, where it is an entry of a view now, the folder it is in.

        `is_undeleted`: a message that is expunged comes back.
        """
        docid = docid_of_or_none(inode)
        if docid is None and is_file_ino(new_parent):
            return self._ordinary.link(inode, new_parent, new_name)
        if is_file_ino(new_parent):
            raise EditRefused("a message can be linked into tmp, cur and new only", errno.EXDEV)
        directory = self._changes.directory(new_parent)
        if docid is None:
            docid = self._ordinary.message_or_none(inode)
        if not directory.holds_messages or is_hidden(new_name):
            if docid is None:
                return self._ordinary.link(inode, new_parent, new_name)
            if directory.kind != Kind.TMP or directory.search_id is None:
                raise EditRefused("a message can be linked into tmp, cur and new only", errno.EXDEV)
            self._tree.put_alias(Alias(directory.search_id, new_name), docid)
            return self._answers.not_kept(self._tree.held_attributes(docid))
        if docid is None and await self._is_unfinished(Ino(inode)):
            answer = self._ordinary.link(inode, new_parent, new_name)
            self._ordinary.wait_for(self._tree.area(directory), new_name)
            await self._changes.sync_folder(self._tree.area(directory))
            return self._ordinary.attributes(answer.st_ino)
        if docid is None:
            docid = await self._link_file(Ino(inode), directory, new_name)
        else:
            is_held = docid in self._tree.aliases.values()
            source = StoredMessage(docid, is_revived=is_held, is_undeleted=is_undeleted)
            await self._changes.arrive(plan_link(self._tree, source, directory, new_name))
        self._tree.remember_written(directory, new_name, docid)
        self._changes.told(docid, made=(directory, new_name))
        return directory

    async def _is_unfinished(self, ino: Ino) -> bool:
        """Whether a file is no message yet: empty, or still being written; then what is there is made durable."""
        source = self._ordinary.spooled(*self._ordinary.files.place_of(ino))
        if source is None:
            return False
        if not self._ordinary.size(source):
            return True
        if not self._ordinary.is_being_written(source):
            return False
        await self._changes.sync_path(source.path)
        return True

    async def _link_file(self, ino: Ino, directory: Directory, name: bytes) -> Docid:
        place, source_name = self._ordinary.files.place_of(ino)
        source = self._ordinary.spooled(place, source_name)
        if source is None:
            raise EditRefused("only a regular file can become a message")
        if self._ordinary.has(self._tree.area(directory), name):
            raise EditRefused(f"{name!r} is there already", errno.EEXIST)
        arrival = plan_arrival(self._tree, source, directory, name, is_exclusive=True)
        # A name in tmp/ is a name of the message from now on; any other file is a client's own, and stays.
        alias = self._ordinary.alias_of(place, source_name)
        docid = await self._ordinary.deliver(
            arrival, source, place, source_name, is_kept=alias is None
        )
        if alias is not None:
            self._tree.put_alias(alias, docid)
        return docid
