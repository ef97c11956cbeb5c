"""`.mailfs` at the root: what is in it, its inode numbers, and what its files say. No FUSE.

    status  status.json  errors                   of the mount
    views/NAME/query explain count unread         of a saved search; a `/` in NAME is a directory

A search that would stand where another has one of these files (`work/unread` below `work`) is found under its whole
name instead, with %2F for `/` and %25 for `%`; so is one whose name has %2F or %25 in it, so that no two meet.
Inode numbers are pure functions of the search and the file; folders that are no search are numbered as they come.
Making a listing asks no query; a search whose query does not parse is here too, so that it can be mended.
All of it is for the thread that serves requests, but for count_in_index().
"""

import errno
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from mailfs.errors import EditRefused, NotFound
from mailfs.ids import Ino, SearchId
from mailfs.message.keywords import SEEN, keywords_of_flags
from mailfs.search.names import MAX_COMPONENT_BYTES
from mailfs.search.plan import plan
from mailfs.search.query import format_query
from mailfs.search.tree import And, Flag, Not, Query, depends_on_threads, flag_rule, moving_dates
from mailfs.store.index import Index, SavedSearch
from mailfs.store.layout import Layout
from mailfs.views.edits import Leaving, leaving_of
from mailfs.views.refresh import date_spans
from mailfs.views.tree import ROOT_INO, Attributes, Tree
from mailfs.views.view import View

CONTROL_NAME = b".mailfs"

# A search has eight numbers, SearchId 0 is the mount itself. Behind them the folders.
_CONTROL_INO = 1 << 43
_FOLDER_INO = 1 << 44
_END_INO = 1 << 45
_NUMBERS = 8

# Who reads `count` of a search nobody has listed waits for the index.
COUNT_DEADLINE_S = 10.0
# More members than this are counted by the index, in a thread, while others are served: some 2 ms.
_COUNTED_AT_ONCE = 20_000

# What whole names have in them, and no other.
_ESCAPED = re.compile("%2[5F]")


class ControlKind(IntEnum):
    """What something in `.mailfs` is. The rest of the division by eight are the low bits of its inode."""

    ROOT = 0
    VIEWS = 1
    STATUS = 2
    STATUS_JSON = 3
    ERRORS = 4
    SEARCH = 8
    QUERY = 9
    EXPLAIN = 10
    COUNT = 11
    UNREAD = 12
    FOLDER = 16


_DIRECTORIES = frozenset(
    {ControlKind.ROOT, ControlKind.VIEWS, ControlKind.SEARCH, ControlKind.FOLDER}
)
_ROOT_ENTRIES = {
    b"errors": ControlKind.ERRORS,
    b"status": ControlKind.STATUS,
    b"status.json": ControlKind.STATUS_JSON,
    b"views": ControlKind.VIEWS,
}
_FILES = {
    b"count": ControlKind.COUNT,
    b"explain": ControlKind.EXPLAIN,
    b"query": ControlKind.QUERY,
    b"unread": ControlKind.UNREAD,
}
_FILE_NAMES = frozenset(name.decode() for name in _FILES)
# Without an understood query there is nothing to count.
_FILES_OF_PROBLEM = {name: _FILES[name] for name in (b"explain", b"query")}


@dataclass(frozen=True, slots=True)
class Control:
    """A file or directory in `.mailfs`. `search` is None where it belongs to no search."""

    ino: Ino
    kind: ControlKind
    search: SavedSearch | None = None

    @property
    def is_directory(self) -> bool:
        return self.kind in _DIRECTORIES

    @property
    def title(self) -> str:
        """What to call it when something is refused."""
        kind = self.kind.name.lower().replace("_", ".")
        return f".mailfs ({kind})" if self.search is None else f"{kind} of {self.search.name}"

    @property
    def mode(self) -> int:
        """Permissions: only a query can be written."""
        if self.is_directory:
            return 0o500
        return 0o600 if self.kind == ControlKind.QUERY else 0o400


def is_control_ino(ino: int) -> bool:
    """Whether an inode number is one of `.mailfs` or of something in it."""
    return _CONTROL_INO <= ino < _END_INO


def is_control_name(parent: int, name: bytes) -> bool:
    """Whether a name in a directory is `.mailfs`, or of something in it."""
    return is_control_ino(parent) or (parent == ROOT_INO and name == CONTROL_NAME)


def _ino(kind: ControlKind, search_id: int = 0) -> Ino:
    return Ino(_CONTROL_INO + search_id * _NUMBERS + kind % _NUMBERS)


ROOT = Control(_ino(ControlKind.ROOT), ControlKind.ROOT)
_VIEWS_INO = _ino(ControlKind.VIEWS)


class ControlTree:
    """The directories of `.mailfs`, over a tree that is kept up to date by others."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._searches_modseq = tree.searches_modseq
        self._folder_inos: dict[str, Ino] = {}
        self._nodes: dict[Ino, Control] = {}
        self._parents: dict[Ino, Ino] = {}
        # The directories in a directory, by name.
        self._below: dict[Ino, dict[bytes, Control]] = {}
        self._build()

    def _sync(self) -> None:
        if self._tree.searches_modseq != self._searches_modseq:
            self._searches_modseq = self._tree.searches_modseq
            self._build()

    def _build(self) -> None:
        """Linear in the searches."""
        self._built_ns = time.time_ns()
        self._nodes = {
            ino: Control(ino, kind)
            for kind in (ControlKind.ROOT, *_ROOT_ENTRIES.values())
            for ino in (_ino(kind),)
        }
        self._parents = {ROOT.ino: ROOT.ino, _VIEWS_INO: ROOT.ino}
        self._below = {ROOT.ino: {b"views": self._nodes[_VIEWS_INO]}, _VIEWS_INO: {}}
        searches = {search.name: search for search in self._searches()}
        for name, search in searches.items():
            above, parent = "", _VIEWS_INO
            *folders, last = _parts(search, searches)
            for folder in folders:
                above = f"{above}/{folder}" if above else folder
                parent = self._place(parent, folder, self._directory(above, searches.get(above)))
            self._place(parent, last, self._directory(name, search))

    def _searches(self) -> Iterable[SavedSearch]:
        tree = self._tree
        yield from (view.search for view in tree.views.values())
        if tree.problems:
            # Of these the tree keeps no more than the reason.
            yield from (
                search for search in tree.store.index.searches() if search.name in tree.problems
            )

    def _directory(self, path: str, search: SavedSearch | None) -> Control:
        if search is not None:
            return Control(_ino(ControlKind.SEARCH, search.search_id), ControlKind.SEARCH, search)
        ino = self._folder_inos.setdefault(path, Ino(_FOLDER_INO + len(self._folder_inos)))
        return Control(ino, ControlKind.FOLDER)

    def _place(self, parent: Ino, name: str, node: Control) -> Ino:
        self._nodes[node.ino] = node
        self._parents[node.ino] = parent
        self._below.setdefault(node.ino, {})
        self._below[parent][name.encode()] = node
        return node.ino

    # --- what is there

    def node(self, ino: int) -> Control:
        """What has this number. Raises NotFound when it is gone, as with a search that was forgotten."""
        self._sync()
        found = self._nodes.get(Ino(ino))
        if found is not None:
            return found
        number, low = divmod(ino - _CONTROL_INO, _NUMBERS)
        search = self.search_or_none(SearchId(number))
        if search is not None:
            for kind in self._files(search).values():
                if kind % _NUMBERS == low:
                    return Control(Ino(ino), kind, search)
        raise NotFound(f"nothing in .mailfs has inode {ino}")

    def search_or_none(self, search_id: SearchId) -> SavedSearch | None:
        """The saved search of this number as it is now, whatever it is called."""
        self._sync()
        found = self._nodes.get(_ino(ControlKind.SEARCH, search_id))
        return None if found is None else found.search

    def child(self, directory: Control, name: bytes) -> Control:
        """Raises NotFound."""
        self._sync()
        kind = self._own_files(directory).get(name)
        if kind is not None:
            return _file(directory, kind)
        found = self._below.get(directory.ino, {}).get(name)
        if found is None:
            raise NotFound(f"no entry {name!r}")
        return found

    def entries(self, directory: Control) -> list[tuple[bytes, Control]]:
        """Names and what they are, sorted; nothing where a search was forgotten meanwhile."""
        self._sync()
        if directory.ino not in self._below:
            return []
        files = {name: _file(directory, kind) for name, kind in self._own_files(directory).items()}
        return sorted((files | self._below[directory.ino]).items())

    def parent(self, directory: Control) -> Control:
        """The directory above, within `.mailfs`."""
        return self._nodes.get(self._parents.get(directory.ino, ROOT.ino), ROOT)

    def attributes(self, node: Control) -> Attributes:
        """What stat(2) says. nlink of directories is exact, for find(1).

        The size is that of a query; of what is made when it is opened it is 0, as in proc(5): to know it would
        be to ask the query. Those are read to their end without regard to it.
        """
        nlink = 2 + len(self._below.get(node.ino, ())) if node.is_directory else 1
        is_query = node.kind == ControlKind.QUERY and node.search is not None
        size = len(query_content(node.search)) if is_query and node.search is not None else 0
        mtime_ns = self._mtime_ns(node)
        return Attributes(node.ino, node.is_directory, nlink, size, mtime_ns, mtime_ns)

    def _mtime_ns(self, node: Control) -> int:
        if node.kind in (ControlKind.STATUS, ControlKind.STATUS_JSON, ControlKind.ERRORS):
            return time.time_ns()
        if node.search is None:
            return self._built_ns
        view = self._tree.view_of_or_none(node.search.search_id)
        if node.kind in (ControlKind.COUNT, ControlKind.UNREAD) and view is not None:
            return max(view.new_mtime_ns, view.cur_mtime_ns)
        return node.search.changed_ns

    def _own_files(self, directory: Control) -> dict[bytes, ControlKind]:
        if directory.kind == ControlKind.ROOT:
            return {name: kind for name, kind in _ROOT_ENTRIES.items() if kind != ControlKind.VIEWS}
        return {} if directory.search is None else self._files(directory.search)

    def _files(self, search: SavedSearch) -> dict[bytes, ControlKind]:
        return _FILES_OF_PROBLEM if search.name in self._tree.problems else _FILES


def _file(directory: Control, kind: ControlKind) -> Control:
    search = directory.search
    return Control(_ino(kind, 0 if search is None else search.search_id), kind, search)


def _parts(search: SavedSearch, searches: dict[str, SavedSearch]) -> list[str]:
    """The names from `views` down to a search's directory."""
    parts = search.name.split("/")
    collides = any(
        part in _FILE_NAMES and "/".join(parts[:depth]) in searches
        for depth, part in enumerate(parts)
    )
    if not collides and not _ESCAPED.search(search.name):
        return parts
    whole = search.name.replace("%", "%25").replace("/", "%2F")
    # The name of no search begins with a slash, so this is no other's.
    return [whole if len(whole.encode()) <= MAX_COMPONENT_BYTES else f"%2F{search.search_id}"]


# --- what the files say


def query_content(search: SavedSearch) -> bytes:
    """The query as it was saved, and a newline."""
    return search.query.encode() + b"\n"


def query_of_content(content: bytes) -> str:
    """What was written, as a query: newlines are blanks, and those at the end are cut.

    Raises EditRefused (EINVAL) for what is no text.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise EditRefused(
            f"a query is UTF-8 text, and byte {error.start + 1} of this is not", errno.EINVAL
        ) from None
    return text.replace("\n", " ").replace("\r", " ").rstrip()


def count_in_memory_or_none(tree: Tree, view: View, *, is_unread: bool) -> int | None:
    """How many messages match, or how many of them are unread, from a loaded view. None: ask the index.

    Messages that linger do not match any more.
    """
    if not view.is_loaded or view.spans != date_spans(view.query, time.time()):
        return None
    if not is_unread:
        return len(view.docids) - len(view.lingering)
    if len(view.docids) > _COUNTED_AT_ONCE:
        return None
    flags, lingering = tree.facts.flags, view.lingering
    return sum(not flags[docid] & SEEN and docid not in lingering for docid in view.docids)


def count_in_index(layout: Layout, query: Query, is_unread: bool) -> int:
    """The same from the index. For a worker thread: opens its own connection. Raises Busy after COUNT_DEADLINE_S."""
    index = Index(layout)
    try:
        index.give_up_after(COUNT_DEADLINE_S)
        asked = And((query, Not(Flag(SEEN)))) if is_unread else query
        return index.count(plan(asked, time.time()))
    finally:
        index.close()


def explain(tree: Tree, search: SavedSearch) -> bytes:
    """What a search means, for people: one line a fact, its name in the first column."""
    facts = [("name", search.name), ("query", search.query)]
    view = tree.view_of_or_none(search.search_id)
    if view is None:
        reason = tree.problems.get(search.name, "it was forgotten or renamed just now")
        facts += [
            ("problem", reason),
            ("mend", "write another query to `query`, or `mailfs forget` the search"),
        ]
    else:
        facts += _facts(tree, view)
    width = max(len(name) for name, _ in facts) + 2
    return "".join(f"{name:<{width}}{one_line(text)}\n" for name, text in facts).encode()


def one_line(text: str) -> str:
    """A text as it can stand in a line: what is no printable sign, such as a newline, becomes a blank."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _facts(tree: Tree, view: View) -> Iterator[tuple[str, str]]:
    yield "understood", format_query(view.query)
    is_label = view.rule is not None
    yield "kind", "label view: its keywords are links" if is_label else "query view"
    yield "delivery", _delivery(view)
    yield "rm", _removal(view)
    yield "changes", ", ".join(_reasons(view.query))
    lingering = f", {len(view.lingering)} of them lingering" if view.lingering else ""
    members = f"{len(view.docids)} messages{lingering}, at modseq {tree.modseq}"
    yield "in memory", members if view.is_loaded else "no: nobody has listed it"
    where, parameters = plan(view.query, time.time())
    yield "sql", where
    for number, parameter in enumerate(parameters, start=1):
        yield f"parameter {number}", str(parameter)


def _delivery(view: View) -> str:
    """What entering the view does to a message, as arrivals.py does it."""
    rule, flags = view.rule, flag_rule(view.query)
    added, removed = keywords_of_flags(flags.sets), keywords_of_flags(flags.clears)
    adds = [*sorted(() if rule is None else rule.adds), *sorted(added)]
    removes = [*sorted(() if rule is None else rule.removes), *sorted(removed)]
    said = [f"puts on {' '.join(adds)}"] if adds else []
    said += [f"takes off {' '.join(removes)}"] if removes else []
    return "; ".join([*said, "refused unless the message matches then"])


def _removal(view: View) -> str:
    """What rm does, as edits.py does it."""
    leaving = leaving_of(view)
    keywords = " ".join(sorted(() if view.rule is None else view.rule.adds))
    does = {
        Leaving.UNLINK: f"takes off {keywords}, and expunges a message that has no other left",
        Leaving.UNTAG: f"takes off {keywords}, and never expunges",
        Leaving.EXPUNGE: "expunges the message",
        Leaving.REFUSE: "is refused",
    }[leaving]
    if leaving in (Leaving.UNLINK, Leaving.UNTAG) and not keywords:
        does = "is refused, as the query requires no keyword to take off"
    return f"{does} (on-rm={leaving.value})"


def _reasons(query: Query) -> Iterator[str]:
    """What makes messages enter and leave the view."""
    yield "with its messages"
    if moving_dates(query):
        yield "with the clock"
    if depends_on_threads(query):
        yield "with other messages of their conversations"
