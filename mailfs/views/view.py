"""One saved search, live: its members in docid order, and the mtimes its folders show.

A view nobody has entered is *unloaded*: it has no members, costs nothing, and its mtimes move with every change to
the store, because nobody has looked whether it is concerned. Loading makes both exact.
"""

import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from mailfs.ids import Docid, Modseq
from mailfs.search.query import parse_query
from mailfs.search.tree import LabelRule, Query, label_rule
from mailfs.store.index import SavedSearch


def _no_docids() -> "array[int]":
    return array("Q")


@dataclass(slots=True)
class View:
    """The state of one view. `docids` is sorted and holds lingering members too."""

    search: SavedSearch
    query: Query
    rule: LabelRule | None
    new_mtime_ns: int
    cur_mtime_ns: int
    is_loaded: bool = False
    evaluated_modseq: Modseq | None = None
    evaluated_s: float = 0.0
    docids: "array[int]" = field(default_factory=_no_docids)
    # Members that no longer match, kept for the reader who made them so.
    lingering: set[Docid] = field(default_factory=set)
    # Messages whose flags a client is changing in this very view: if one stops matching by it, it lingers.
    being_edited: set[Docid] = field(default_factory=set)
    last_used_s: float = 0.0
    open_handles: int = 0

    @classmethod
    def of(cls, search: SavedSearch, mtime_ns: int) -> "View":
        """An unloaded view. Raises QuerySyntaxError."""
        query = parse_query(search.query)
        return cls(search, query, label_rule(query), mtime_ns, mtime_ns)

    def use(self) -> None:
        """Somebody is looking: lingering members stay a while longer."""
        self.last_used_s = time.monotonic()

    def load(self, evaluation: "Evaluation") -> None:
        """Take the members for the first time."""
        self.docids = evaluation.docids
        self.evaluated_modseq = evaluation.modseq
        self.evaluated_s = time.monotonic()
        self.is_loaded = True

    def __contains__(self, docid: Docid) -> bool:
        position = bisect_left(self.docids, docid)
        return position < len(self.docids) and self.docids[position] == docid

    def next_or_none(self, docid: int) -> Docid | None:
        """The member behind this docid."""
        position = bisect_right(self.docids, docid)
        return Docid(self.docids[position]) if position < len(self.docids) else None

    def iter_after(self, docid: int) -> Iterator[int]:
        """Members with a larger docid, in order. Survives changes made meanwhile: none is skipped or repeated."""
        while True:
            docids = self.docids
            start = bisect_right(docids, docid)
            # A copy of a slice costs less than a bisection a member, and no change can shift it.
            chunk = docids[start : start + 512]
            if not chunk:
                return
            yield from chunk
            docid = chunk[-1]

    def add(self, docid: Docid) -> None:
        """Make a member of it; the caller has seen that it is none."""
        if not self.docids or docid > self.docids[-1]:
            self.docids.append(docid)
        else:
            self.docids.insert(bisect_left(self.docids, docid), docid)

    def remove(self, docid: Docid) -> None:
        """Take a member out; the caller has seen that it is one."""
        self.docids.pop(bisect_left(self.docids, docid))
        self.lingering.discard(docid)

    def touch(self, *, in_new: bool) -> None:
        """Move a folder's mtime: strictly up, and not ahead of the clock unless the clock was set back."""
        now_ns = time.time_ns()
        if in_new:
            self.new_mtime_ns = max(now_ns, self.new_mtime_ns + 1)
        else:
            self.cur_mtime_ns = max(now_ns, self.cur_mtime_ns + 1)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of asking a view's query anew: the members at `modseq`."""

    modseq: Modseq
    docids: "array[int]"
