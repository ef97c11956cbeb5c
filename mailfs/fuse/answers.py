"""Attributes and durations as pyfuse3 wants them. One object each, filled anew for every answer.

What the kernel keeps: names and attributes of messages for CACHE_S (it is told when they change), those of directories
(their mtime is how clients learn of new mail) and of ordinary files (another mount may change them) not at all.
"""

import os
import stat

from pyfuse3 import EntryAttributes

from mailfs.views.files import FileAttributes
from mailfs.views.tree import Attributes

CACHE_S = 300.0


class Answers:
    """Reused objects: pyfuse3 copies an answer before the next await."""

    def __init__(self) -> None:
        self._message = _new_entry(stat.S_IFREG | 0o600, CACHE_S)
        self._directory = _new_entry(stat.S_IFDIR | 0o700, 0)
        self._file = _new_entry(stat.S_IFREG, 0)

    @property
    def message_to_fill(self) -> EntryAttributes:
        """For a listing, which fills in the fields that differ by itself."""
        return self._message

    def attributes(self, attributes: Attributes) -> EntryAttributes:
        """Of a message or a directory of the tree. The name of a message may be kept; see not_kept()."""
        entry = self._directory if attributes.is_directory else self._message
        # Of a view's directory too: a search that is forgotten or changed is told.
        entry.entry_timeout = CACHE_S
        entry.st_ino = attributes.ino
        entry.st_nlink = attributes.nlink
        entry.st_size = attributes.size
        entry.st_blocks = (attributes.size + 511) // 512
        entry.st_mtime_ns = entry.st_atime_ns = attributes.mtime_ns
        entry.st_ctime_ns = attributes.ctime_ns
        return entry

    def not_kept(self, attributes: Attributes) -> EntryAttributes:
        """The same for a name the kernel would not be told of when it is gone."""
        entry = self.attributes(attributes)
        entry.entry_timeout = 0
        return entry

    def file(self, attributes: FileAttributes) -> EntryAttributes:
        """Of an ordinary file: as the disk has it, with our inode number."""
        found = attributes.stat
        entry = self._file
        entry.entry_timeout = 0
        entry.generation = attributes.generation
        entry.st_ino = attributes.ino
        entry.st_mode = found.st_mode
        entry.st_nlink = found.st_nlink
        entry.st_uid, entry.st_gid = found.st_uid, found.st_gid
        entry.st_rdev = found.st_rdev
        entry.st_size = found.st_size
        entry.st_blocks = found.st_blocks
        entry.st_atime_ns = found.st_atime_ns
        entry.st_mtime_ns = found.st_mtime_ns
        entry.st_ctime_ns = found.st_ctime_ns
        return entry


def _new_entry(mode: int, attribute_cache_s: float) -> EntryAttributes:
    entry = EntryAttributes()
    entry.generation = 0  # docids and search ids are never reused
    entry.st_mode = mode
    entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
    entry.st_blksize = 4096
    entry.entry_timeout = CACHE_S
    entry.attr_timeout = attribute_cache_s
    return entry
