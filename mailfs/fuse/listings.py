"""readdir: what is in a directory, in pieces, each entry with its attributes (READDIRPLUS).

First all that is no message, as it was when the directory was opened or rewound; then messages, as they are, in docid
order: an entry's cookie says which message it is, so changes made meanwhile make none be skipped or repeated.
"""

import pyfuse3
from pyfuse3 import EntryAttributes

from mailfs.fuse.answers import CACHE_S, Answers
from mailfs.fuse.changes import Changes
from mailfs.fuse.echo import KnownDirectories
from mailfs.fuse.handles import AliasEntry, DirectoryHandle
from mailfs.fuse.ordinary import OrdinaryFiles
from mailfs.ids import Docid, Ino
from mailfs.views.files import FileEntry
from mailfs.views.tree import ROOT_INO, Directory, Entry, Kind, message_ino
from mailfs.views.view import View

# `.` and `..` have the cookies 1 and 2; what is no message has its place in the listing and _OTHERS; entry
# `number` of a message has docid * 256 + number.
_NUMBERS = 256
_OTHERS = 1 << 60
_LAST_DOCID = 1 << 40


class Listings:
    """Answers readdir. `listed_view` is the one whose messages were listed last."""

    def __init__(
        self, changes: Changes, ordinary: OrdinaryFiles, answers: Answers, known: KnownDirectories
    ) -> None:
        self._tree = changes.tree
        self._announcements = changes.announcements
        self._ordinary = ordinary
        self._answers = answers
        self._known = known
        self.listed_view: View | None = None

    def reply(self, handle: DirectoryHandle, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Entries from behind a cookie, as many as there is room for."""
        directory = handle.directory
        if start_id == 0:
            handle.listed.clear()
            handle.entries = self._entries(handle)
        for cookie, name in ((1, b"."), (2, b"..")):
            if start_id < cookie:
                answer = self._dots_answer(handle, is_parent=cookie == 2)
                if not pyfuse3.readdir_reply(token, name, answer, cookie):
                    return
        if not _NUMBERS <= start_id < _OTHERS:
            # By number, not from the start: a listing comes in some N/154 pieces.
            for number in range(max(start_id - _OTHERS, 0), len(handle.entries)):
                entry, cookie = handle.entries[number], _OTHERS + number + 1
                if not self._reply_other(handle, entry, cookie, token):
                    return
            start_id = 0
        if directory is not None and directory.holds_messages:
            self.listed_view = directory.view
            self._reply_messages(handle, directory, start_id, token)

    def _entries(self, handle: DirectoryHandle) -> tuple[Entry | FileEntry | AliasEntry, ...]:
        """Directories, ordinary files, links in tmp/. A directory of the tree hides a file of its name."""
        files = self._ordinary.files.entries(handle.place)
        directory, tree = handle.directory, self._tree
        if directory is None:
            return tuple(files)
        aliases = []
        if directory.kind == Kind.TMP:
            aliases = [
                AliasEntry(alias.name, docid)
                for alias, docid in tree.aliases.items()
                if alias.search_id == directory.search_id
            ]
        others = [entry for entry in files if tree.child_or_none(directory, entry.name) is None]
        return (*tree.entries(directory), *others, *aliases)

    def _dots_answer(self, handle: DirectoryHandle, *, is_parent: bool) -> EntryAttributes:
        directory = handle.directory
        if directory is not None:
            return self._directory_answer(self._tree.parent(directory) if is_parent else directory)
        assert isinstance(handle.place, int)
        files = self._ordinary.files
        place = files.place_of(handle.place)[0] if is_parent else handle.place
        if isinstance(place, int):
            return self._answers.file(files.attributes(Ino(place)))
        above = self._tree.directory_of_area_or_none(place)
        return self._directory_answer(self._tree.directory(ROOT_INO) if above is None else above)

    def _directory_answer(self, directory: Directory) -> EntryAttributes:
        return self._answers.attributes(self._tree.directory_attributes(directory))

    def _reply_other(
        self,
        handle: DirectoryHandle,
        entry: Entry | FileEntry | AliasEntry,
        cookie: int,
        token: pyfuse3.ReaddirToken,
    ) -> bool:
        directory = handle.directory
        if directory is not None and self._tree.find_message_or_none(directory, entry.name):
            return True  # taken in since: it comes with the messages
        if isinstance(entry, Entry):
            # Not kept: who goes in asks for it, and is heard of by that.
            answer = self._answers.not_kept(self._tree.directory_attributes(entry.directory))
        elif isinstance(entry, AliasEntry):
            answer = self._answers.not_kept(self._tree.held_attributes(entry.docid))
        else:
            answer = self._answers.file(entry.attributes)
        if not pyfuse3.readdir_reply(token, entry.name, answer, cookie):
            return False
        handle.listed.add(entry.name)
        if isinstance(entry, Entry):
            self._known.count(entry.directory.ino)
        elif isinstance(entry, FileEntry):
            self._ordinary.files.count_listed(handle.place, entry)
        return True

    def _reply_messages(
        self,
        handle: DirectoryHandle,
        directory: Directory,
        start_id: int,
        token: pyfuse3.ReaddirToken,
    ) -> None:
        """The hot loop: one reused object, the three fields that differ filled from the arrays.

        A file that was taken in since it was listed is not listed again.
        """
        view = directory.view
        assert view is not None
        facts, entry, reply = self._tree.facts, self._answers.message_to_fill, pyfuse3.readdir_reply
        size, received_ns, changed_ns = facts.size, facts.received_ns, facts.changed_ns
        base_ino = message_ino(0)
        is_plain = view.has_plain_names and not self._tree.aliases
        unannounced = self._announcements.unannounced(view)
        entry.st_nlink = 1
        entry.entry_timeout = CACHE_S
        listed = handle.listed
        after, skip = divmod(start_id, _NUMBERS)
        until = _LAST_DOCID
        for docid, number, name in self._tree.iter_messages(directory, Docid(after), skip):
            length = size[docid]
            entry.st_ino = base_ino + docid
            entry.st_size = length
            entry.st_blocks = (length + 511) >> 9
            entry.st_mtime_ns = entry.st_atime_ns = received_ns[docid]
            entry.st_ctime_ns = changed_ns[docid]
            if not is_plain:
                entry.st_nlink = self._tree.link_count(Docid(docid))
            if listed and name in listed:
                continue
            if unannounced:
                entry.entry_timeout = 0 if docid in unannounced else CACHE_S
            if not reply(token, name, entry, docid * _NUMBERS + number):
                until = docid
                break
        if unannounced:
            self._announcements.listed(view, after, until)
