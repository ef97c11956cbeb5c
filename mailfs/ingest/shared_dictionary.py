"""A place where one process puts the store's newest dictionary for others, which were forked before it was made."""

import mmap
import struct

from mailfs.errors import Corrupt
from mailfs.store.records import Dictionary

# Its id, 0 for none, and its length; then its bytes. Nobody locks: the id is a hash of the bytes, so who looks while they are
# written sees that they are not those, and looks again for the next message.
_HEAD = struct.Struct("<II")
# A dictionary is not longer (training.py). What would be is not shared, and its messages are compressed without.
_MOST_BYTES = 1 << 20


class SharedDictionary:
    """Anonymous memory that a fork shares. One process puts, any may get."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _HEAD.size + _MOST_BYTES)
        self._known: Dictionary | None = None

    def put(self, dictionary: Dictionary | None) -> None:
        """From now on this one; nothing is done where it is the one before."""
        if dictionary is self._known or (dictionary and len(dictionary.raw) > _MOST_BYTES):
            return
        self._known = dictionary
        self._memory[: _HEAD.size] = _HEAD.pack(0, 0)
        if dictionary is not None:
            end = _HEAD.size + len(dictionary.raw)
            self._memory[_HEAD.size : end] = dictionary.raw
            self._memory[: _HEAD.size] = _HEAD.pack(dictionary.id, len(dictionary.raw))

    def get(self) -> Dictionary | None:
        """What was put last, if anything was."""
        wanted, length = _HEAD.unpack_from(self._memory)
        if not wanted:
            return None
        if self._known is None or self._known.id != wanted:
            try:
                found = Dictionary(self._memory[_HEAD.size : _HEAD.size + length])
            except Corrupt:
                return None
            if found.id != wanted:
                return None
            self._known = found
        return self._known
