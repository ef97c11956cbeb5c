"""What entries are made of, for every message some view has shown: four arrays indexed by docid.

26 bytes a message, shared by all views. A docid that was never put is absent. Reading is for the thread that
serves requests; put and fill may come from others and take the lock.
"""

import threading
from array import array
from collections.abc import Iterable

from mailfs.ids import Docid
from mailfs.store.index import EntryRow

# A bit no keyword uses: tells a present message without flags from an absent one.
_PRESENT = 1 << 15
FLAG_BITS = _PRESENT - 1


class Facts:
    """flags, size, received_ns and changed_ns by docid."""

    def __init__(self) -> None:
        self.flags = array("H")
        self.size = array("Q")
        self.received_ns = array("q")
        self.changed_ns = array("q")
        self._lock = threading.Lock()

    def __contains__(self, docid: int) -> bool:
        return docid < len(self.flags) and bool(self.flags[docid] & _PRESENT)

    def docids(self) -> list[Docid]:
        """Those that are present."""
        return [Docid(docid) for docid, flags in enumerate(self.flags) if flags & _PRESENT]

    def flags_of(self, docid: Docid) -> int:
        """The bits of message/keywords.py. The docid must be present."""
        return self.flags[docid] & FLAG_BITS

    def put(self, row: EntryRow) -> None:
        """Set the facts of a message, over what was there."""
        with self._lock:
            self._put(row)

    def drop(self, docid: Docid) -> None:
        """Make a message absent: it was expunged."""
        with self._lock:
            if docid in self:
                self.flags[docid] = 0

    def fill(self, rows: Iterable[EntryRow]) -> None:
        """Set the facts of messages that are absent; what is present may be newer and stays."""
        with self._lock:
            for row in rows:
                if row[0] not in self:
                    self._put(row)

    def _put(self, row: EntryRow) -> None:
        docid, flags, _, size, received_ns, changed_ns = row
        if docid >= len(self.flags):
            self._grow(docid + 1)
        self.size[docid] = size
        self.received_ns[docid] = received_ns
        self.changed_ns[docid] = changed_ns
        self.flags[docid] = flags & FLAG_BITS | _PRESENT

    def _grow(self, length: int) -> None:
        # An eighth more than asked, so that a million puts are not a million reallocations.
        more = length + (length >> 3) + 1024 - len(self.flags)
        for column in (self.size, self.received_ns, self.changed_ns, self.flags):
            column.frombytes(bytes(more * column.itemsize))
