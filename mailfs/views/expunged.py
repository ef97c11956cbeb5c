"""`.expunged` at the root of a mount: what was removed and has not been reclaimed yet, as a Maildir.

    .expunged/cur/NAME    an expunged message, under its canonical name; its ctime says when it was expunged
    .expunged/new, tmp    always empty

Taking a message out of there, by mv or ln into a view, undeletes it. All is read from the index when it is asked: few
look, so no array is kept, and no name by the kernel. Like `.mailfs` it is not listed in the root, where programs would
take it for a folder of the account.
"""

import time
from enum import IntEnum
from typing import NamedTuple

from mailfs.errors import NoSuchMessage, NotFound
from mailfs.ids import Docid, Ino
from mailfs.message.keywords import DELETED, letters_of_flags
from mailfs.message.maildir import Base, format_base, format_name, parse_base_or_none, split_name
from mailfs.store.index import EntryRow
from mailfs.views.tree import ROOT_INO, Attributes, Tree, message_ino

EXPUNGED_NAME = b".expunged"
# Behind those of `.mailfs`.
_EXPUNGED_INO = 1 << 45
_NS = 1_000_000_000


class ExpungedKind(IntEnum):
    """The directories; the values are the low bits of their inodes."""

    ROOT = 0
    CUR = 1
    NEW = 2
    TMP = 3


_SUBFOLDERS = {b"cur": ExpungedKind.CUR, b"new": ExpungedKind.NEW, b"tmp": ExpungedKind.TMP}


class ExpungedMessage(NamedTuple):
    """An entry of `.expunged/cur`."""

    docid: Docid
    name: bytes
    attributes: Attributes


def is_expunged_ino(ino: int) -> bool:
    """Whether an inode number is that of `.expunged` or of a directory in it."""
    return _EXPUNGED_INO <= ino < _EXPUNGED_INO + len(ExpungedKind)


def is_expunged_name(parent: int, name: bytes) -> bool:
    """Whether a name in a directory is `.expunged`, or of something in it."""
    return is_expunged_ino(parent) or (parent == ROOT_INO and name == EXPUNGED_NAME)


def expunged_ino(kind: ExpungedKind) -> Ino:
    """The inode of one of the directories."""
    return Ino(_EXPUNGED_INO + kind)


class ExpungedTree:
    """The directories and entries, over a tree that is kept up to date by others."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._modseq = tree.modseq
        self._mtime_ns = time.time_ns()

    def kind_of(self, parent: Ino, name: bytes) -> ExpungedKind | None:
        """The directory of this name; None for any other name."""
        if parent == ROOT_INO:
            return ExpungedKind.ROOT if name == EXPUNGED_NAME else None
        return _SUBFOLDERS.get(name) if parent == expunged_ino(ExpungedKind.ROOT) else None

    def subfolders(self, directory: Ino) -> list[tuple[bytes, Ino]]:
        """The directories in a directory."""
        if directory != expunged_ino(ExpungedKind.ROOT):
            return []
        return [(name, expunged_ino(kind)) for name, kind in sorted(_SUBFOLDERS.items())]

    def parent(self, directory: Ino) -> Ino:
        """The directory above."""
        root = expunged_ino(ExpungedKind.ROOT)
        return ROOT_INO if directory == root else root

    def directory_attributes(self, directory: Ino) -> Attributes:
        """Also of the root. The mtime of the others moves with any change of the store: nobody's cache depends on it."""
        if directory == ROOT_INO:
            return self._tree.directory_attributes(self._tree.directory(ROOT_INO))
        if self._modseq != self._tree.modseq:
            self._modseq = self._tree.modseq
            self._mtime_ns = max(time.time_ns(), self._mtime_ns + 1)
        nlink = 2 + len(self.subfolders(directory))
        return Attributes(directory, True, nlink, 4096, self._mtime_ns, self._mtime_ns)

    def docids(self, directory: Ino) -> list[Docid]:
        """The messages in a directory, in order."""
        if directory != expunged_ino(ExpungedKind.CUR):
            return []
        return self._tree.store.index.expunged_docids()

    def messages(self, docids: list[Docid]) -> list[ExpungedMessage]:
        """The entries of those that are still expunged."""
        rows = self._tree.store.index.entries(docids)
        return [self._message(row) for row in rows if row.expunged]

    def message(self, docid: Docid) -> ExpungedMessage:
        """Raises NoSuchMessage for one that is live, or reclaimed."""
        row = self._tree.store.index.entry(docid, live=False)
        if not row.expunged:
            raise NoSuchMessage(f"message {docid} is not expunged")
        return self._message(row)

    def find(self, directory: Ino, name: bytes) -> ExpungedMessage:
        """The message of a name. Raises NotFound unless the name is true now."""
        base = parse_base_or_none(split_name(name).base)
        if directory == expunged_ino(ExpungedKind.CUR) and base is not None:
            found = self.message(base.docid)
            if found.name == name:
                return found
        raise NotFound(f"no entry {name!r}")

    def _message(self, row: EntryRow) -> ExpungedMessage:
        store_id = self._tree.store.layout.store_id
        base = format_base(Base(row.received_ns // _NS, row.docid, store_id, row.size))
        # Without T: it says that a message is to go, and this one went. Who takes it out of here wants it to stay.
        name = format_name(base, letters_of_flags(row.flags & ~DELETED), in_new=False)
        ino, ctime_ns = message_ino(row.docid), row.expunged * _NS
        attributes = Attributes(ino, False, 1, row.size, row.received_ns, ctime_ns)
        return ExpungedMessage(row.docid, name, attributes)
