"""`.expunged` for the handlers: attributes, listings, and the way back into a view.

The kernel keeps none of its names, so each lookup is answered by what is true then.
"""

from bisect import bisect_right
from dataclasses import dataclass, field

import pyfuse3
from pyfuse3 import EntryAttributes

from mailfs.errors import EditRefused, NoSuchMessage
from mailfs.fuse.answers import Answers
from mailfs.fuse.changes import Changes
from mailfs.ids import Docid, Ino
from mailfs.views.expunged import ExpungedTree, expunged_ino, is_expunged_name

# Handles of these directories are told from all others by their numbers.
_FIRST_FH = 1 << 49
# Entries read from the index at once; a page of READDIRPLUS has room for some 150.
_PIECE = 256
# Cookies: `.` and `..` are 1 and 2, directories follow, a message has its docid and this.
_MESSAGES = 1 << 8
# Those the kernel was told of last; it asks again for names, and so for messages, whenever they are used.
_MAX_SHOWN = 100_000


@dataclass(slots=True)
class _DirectoryHandle:
    """An open directory. `docids` is what it held when it was first read or rewound."""

    ino: Ino
    docids: list[Docid] = field(default_factory=list)


class ExpungedFiles:
    """The handlers' work. Raises MailfsError."""

    def __init__(self, changes: Changes, answers: Answers) -> None:
        self._changes = changes
        self._tree = ExpungedTree(changes.tree)
        self._answers = answers
        self._directories: dict[int, _DirectoryHandle] = {}
        self._last_fh = _FIRST_FH
        # Messages whose inodes the kernel may have from here: to it they have a name. Not ended by FORGET, which comes
        # late: it may be meant for what the kernel knew of the message before.
        self._shown: dict[Docid, None] = {}

    def check_outside(self, parent: int, name: bytes) -> None:
        """Raises EditRefused for `.expunged` and names in it: one can only take messages out."""
        if is_expunged_name(parent, name):
            raise EditRefused(
                "messages can only be moved or copied out of .expunged, back into a folder; "
                "what is in it goes by itself (mailfs expire)"
            )

    # --- names and attributes

    def lookup(self, parent: Ino, name: bytes) -> EntryAttributes:
        """Raises NotFound."""
        self._changes.sync_tree()
        kind = self._tree.kind_of(parent, name)
        if kind is not None:
            return self._directory_answer(expunged_ino(kind))
        found = self._tree.find(parent, name)
        self._show(found.docid)
        return self._answers.not_kept(found.attributes)

    def attributes(self, inode: Ino) -> EntryAttributes:
        """Of one of the directories."""
        self._changes.sync_tree()
        return self._directory_answer(inode)

    def message_attributes_or_none(self, docid: Docid) -> EntryAttributes | None:
        """Of a message the kernel knows from here; None when it does not, or the message is none of ours any more."""
        if docid not in self._shown:
            return None
        try:
            return self._answers.not_kept(self._tree.message(docid).attributes)
        except NoSuchMessage:
            return None

    def is_shown(self, docid: Docid) -> bool:
        """Whether the kernel knows a message from here, so that link(2) may mean this name of it."""
        return docid in self._shown

    def _show(self, docid: Docid) -> None:
        self._shown[docid] = None
        if len(self._shown) > _MAX_SHOWN:
            del self._shown[next(iter(self._shown))]

    def find(self, parent: Ino, name: bytes) -> Docid:
        """The message of a name. Raises NotFound."""
        return self._tree.find(parent, name).docid

    def _directory_answer(self, inode: Ino) -> EntryAttributes:
        return self._answers.not_kept(self._tree.directory_attributes(inode))

    # --- directories

    def is_directory(self, fh: int) -> bool:
        """Whether a file handle is that of an open directory here."""
        return fh in self._directories

    def open_directory(self, inode: Ino) -> int:
        """A file handle."""
        self._last_fh += 1
        self._directories[self._last_fh] = _DirectoryHandle(inode)
        return self._last_fh

    def close_directory(self, fh: int) -> None:
        del self._directories[fh]

    def list(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Entries from behind a cookie, as many as there is room for."""
        handle = self._directories[fh]
        if start_id == 0:
            self._changes.sync_tree()
            handle.docids = self._tree.docids(handle.ino)
        if start_id < _MESSAGES:
            others = [
                (b".", handle.ino),
                (b"..", self._tree.parent(handle.ino)),
                *self._tree.subfolders(handle.ino),
            ]
            for number in range(start_id, len(others)):
                name, ino = others[number]
                answer = self._answers.not_kept(self._tree.directory_attributes(ino))
                if not pyfuse3.readdir_reply(token, name, answer, number + 1):
                    return
        self._list_messages(handle, start_id, token)

    def _list_messages(
        self, handle: _DirectoryHandle, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        """Undeleted and reclaimed ones are left out, but take no other's place."""
        docids = handle.docids
        start = bisect_right(docids, start_id - _MESSAGES)
        while start < len(docids):
            for found in self._tree.messages(docids[start : start + _PIECE]):
                answer = self._answers.not_kept(found.attributes)
                if not pyfuse3.readdir_reply(token, found.name, answer, found.docid + _MESSAGES):
                    return
                self._show(found.docid)
            start += _PIECE
