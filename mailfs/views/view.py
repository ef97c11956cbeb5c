"""One saved search, live: its members in docid order, their names where clients chose them, and its folders' mtimes.

A view nobody has entered is *unloaded*: it has no members, costs nothing, and its mtimes move with every change to
the store, because nobody has looked whether it is concerned. Loading makes both exact.
"""

import sys
import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from mailfs.ids import Docid, Modseq
from mailfs.message.maildir import ChosenName, parse_base_or_none
from mailfs.search.dates import Span
from mailfs.search.query import parse_query
from mailfs.search.tree import LabelRule, Query, depends_on_threads, label_rule
from mailfs.store.index import SavedSearch
from mailfs.views.letters import NO_LETTERS, FileStamp, LetterMap


def _no_docids() -> "array[int]":
    return array("Q")


# A tuple of one name a client chose, with its strings.
_CHOSEN_BYTES = 250
# Programs make the four directories of a Maildir at once.
# Dovecot syncs each before it makes the next.
MAKING_S = 5.0


@dataclass(slots=True)
class Making:
    """A Maildir in the making: most programs that make one take a cur/ that is there already for an error.

    `maker` is the thread that made the view; to all others, and to it after MAKING_S, the view is whole.
    """

    maker: int
    unmade: set[bytes]
    until_s: float

    def hides(self, name: bytes, thread: int) -> bool:
        """Whether a part is not there yet for this thread."""
        return thread == self.maker and name in self.unmade and time.monotonic() < self.until_s


@dataclass(slots=True)
class View:
    """The state of one view. `docids` is sorted and holds lingering members too."""

    search: SavedSearch
    query: Query
    rule: LabelRule | None
    new_mtime_ns: int
    cur_mtime_ns: int
    # Whether what happens to a message may concern others of its conversation.
    follows_threads: bool = False
    is_loaded: bool = False
    # The view of this search before its query or name was edited, until this one is loaded: who has seen its names
    # is told the difference.
    former: "View | None" = None
    # The last change of members or names (IMAP's HIGHESTMODSEQ of a mailbox).
    modseq: Modseq | None = None
    # The time by which all members were judged (seconds since 1970), what the dates of the query stood for then, and
    # when (monotonic) it may be moved on.
    asked_s: float = 0.0
    spans: tuple[Span, ...] = ()
    next_look_s: float = 0.0
    docids: "array[int]" = field(default_factory=_no_docids)
    # Names clients chose, of a loaded view's members; who is not here has its canonical name.
    chosen: dict[Docid, tuple[ChosenName, ...]] = field(default_factory=dict)
    # Bases among these that are the canonical base of another message.
    claimed: set[bytes] = field(default_factory=set)
    # What a-z letters stand for, as the file of this stamp says, and the letters members have of it.
    letters: LetterMap = NO_LETTERS
    letters_stamp: FileStamp | None = None
    own_letters: dict[Docid, bytes] = field(default_factory=dict)
    # Members that no longer match, kept for the reader who made them so.
    lingering: set[Docid] = field(default_factory=set)
    # Messages whose flags a client is changing in this very view: if one stops matching by it, it lingers.
    being_edited: set[Docid] = field(default_factory=set)
    last_used_s: float = 0.0
    open_handles: int = 0
    # For who makes a view with mkdir(2), and goes on to make these: they are not there yet.
    making: "Making | None" = None
    # cur, new or tmp that somebody removed (`rm -r`), until it is made again or something is in it.
    removed_parts: set[bytes] = field(default_factory=set)

    @classmethod
    def of(cls, search: SavedSearch, mtime_ns: int) -> "View":
        """An unloaded view. Raises QuerySyntaxError."""
        query = parse_query(search.query)
        view = cls(search, query, label_rule(query), mtime_ns, mtime_ns)
        view.follows_threads = depends_on_threads(query)
        return view

    def use(self) -> None:
        """Somebody is looking: lingering members stay a while longer."""
        self.last_used_s = time.monotonic()

    def follow(self, before: "View | None") -> None:
        """Take the place of a view whose search was edited, or that is to be evaluated anew."""
        if before is None:
            return
        self.former = before if before.is_loaded else before.former
        self.last_used_s = before.last_used_s
        self.being_edited = before.being_edited
        self.new_mtime_ns = max(self.new_mtime_ns, before.new_mtime_ns + 1)
        self.cur_mtime_ns = max(self.cur_mtime_ns, before.cur_mtime_ns + 1)
        if before.search.query == self.search.query:
            self.lingering = set(before.lingering)

    def begin_making(self, maker: int) -> None:
        """The view was just made by this thread."""
        self.making = Making(maker, {b"cur", b"new", b"tmp"}, time.monotonic() + MAKING_S)

    def load(self, evaluation: "Evaluation") -> None:
        """Take the members for the first time."""
        self.docids = evaluation.docids
        self.lingering -= set(map(Docid, self.docids))
        for docid in self.lingering:
            self.docids.insert(bisect_left(self.docids, docid), docid)
        self.chosen, self.claimed = {}, set()
        for docid, rows in evaluation.chosen.items():
            self.set_chosen(docid, rows)
        self.letters = evaluation.letters
        self.letters_stamp = evaluation.letters_stamp
        self.own_letters = evaluation.own_letters
        self.modseq = evaluation.modseq
        self.asked_s = evaluation.asked_s
        self.spans = evaluation.spans
        self.is_loaded = True
        if self.docids:
            self.removed_parts -= {b"cur", b"new"}

    def unload(self) -> int:
        """Forget the members, which are asked for anew when somebody looks. How many bytes that is, about."""
        freed = self.memory_bytes
        self.docids, self.chosen, self.claimed, self.own_letters = _no_docids(), {}, set(), {}
        self.spans = ()
        self.is_loaded = False
        return freed

    @property
    def memory_bytes(self) -> int:
        """Of its own tables, about; what is known of each message is shared by all views."""
        tables = (self.chosen, self.claimed, self.own_letters, self.lingering)
        return (
            len(self.docids) * self.docids.itemsize
            + sum(map(sys.getsizeof, tables))
            + len(self.chosen) * _CHOSEN_BYTES
        )

    def set_chosen(self, docid: Docid, rows: tuple[ChosenName, ...]) -> None:
        """Take the names clients chose for one message; without any it has its canonical one."""
        for row in self.chosen.pop(docid, ()):
            self.claimed.discard(row.base)
        if rows:
            self.chosen[docid] = rows
            self.claimed.update(row.base for row in rows if _is_of_another(row.base, docid))

    @property
    def has_plain_names(self) -> bool:
        """Whether every name is a canonical one with capital letters: what the fast listing can do."""
        return not (self.chosen or self.letters.flags or self.letters.keywords)

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
        self.removed_parts -= {b"cur", b"new"}

    def remove(self, docid: Docid) -> None:
        """Take a member out; the caller has seen that it is one."""
        self.docids.pop(bisect_left(self.docids, docid))
        self.lingering.discard(docid)
        self.set_chosen(docid, ())
        self.own_letters.pop(docid, None)

    def touch(self, *, in_new: bool) -> None:
        """Move a folder's mtime: strictly up, and not ahead of the clock unless the clock was set back."""
        now_ns = time.time_ns()
        if in_new:
            self.new_mtime_ns = max(now_ns, self.new_mtime_ns + 1)
        else:
            self.cur_mtime_ns = max(now_ns, self.cur_mtime_ns + 1)


def _is_of_another(base: bytes, docid: Docid) -> bool:
    parsed = parse_base_or_none(base)
    return parsed is not None and parsed.docid != docid


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of asking a view's query anew: the members at `modseq`, and their names.

    `asked_s` is the time it was asked for (seconds since 1970), `spans` are what its relative dates stood for, `stale` docids with chosen names that are no members any more.
    """

    modseq: Modseq
    docids: "array[int]"
    asked_s: float
    spans: tuple[Span, ...] = ()
    chosen: dict[Docid, tuple[ChosenName, ...]] = field(default_factory=dict)
    letters: LetterMap = NO_LETTERS
    letters_stamp: FileStamp | None = None
    own_letters: dict[Docid, bytes] = field(default_factory=dict)
    stale: tuple[Docid, ...] = ()
