"""The tree a client sees, and its inode numbers: defined here and only here.

    /                        folders and views, by the names of the saved searches
    /lists/linux/            a view: cur, new, tmp, and views whose names go on
    /lists/linux/cur/NAME    a message

Inodes are pure functions of ids that are never reused, the same after a remount: a message has one inode in all
views, so the kernel keeps one copy of its pages. Plain folders (`lists`) are numbered as they come.
All of it is for the thread that serves requests.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from mailfs.errors import NoSuchMessage, NotFound, QuerySyntaxError
from mailfs.ids import Docid, Ino, Modseq, SearchId
from mailfs.message.keywords import RECENT
from mailfs.message.maildir import (
    Base,
    format_base,
    format_name,
    parse_base_or_none,
    split_name,
)
from mailfs.search.match import matching
from mailfs.store.index import IndexSource, SavedSearch
from mailfs.store.store import Store
from mailfs.store.writer import ViewState
from mailfs.views.facts import Facts
from mailfs.views.view import View

_NS = 1_000_000_000
ROOT_INO = Ino(1)
_MESSAGE_INO = 1 << 40
_VIEW_INO = 1 << 41
_FOLDER_INO = 1 << 42


class Kind(IntEnum):
    """What a directory is. VIEW, CUR, NEW and TMP are also the low bits of a view's inodes."""

    VIEW = 0
    CUR = 1
    NEW = 2
    TMP = 3
    FOLDER = 4


_SUBFOLDERS = ((b"cur", Kind.CUR), (b"new", Kind.NEW), (b"tmp", Kind.TMP))


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory of the tree. `path` is its name from the root, '' for the root; `view` is None for folders."""

    ino: Ino
    kind: Kind
    path: str
    view: View | None

    @property
    def holds_messages(self) -> bool:
        return self.kind in (Kind.CUR, Kind.NEW)


class Attributes(NamedTuple):
    """What stat(2) says, as far as the tree decides it."""

    ino: Ino
    is_directory: bool
    nlink: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Invalidation(NamedTuple):
    """A name in a directory that is gone or means something else now."""

    parent: Ino
    name: bytes


class Entry(NamedTuple):
    """A name in a directory that holds directories."""

    name: bytes
    directory: Directory


def message_ino(docid: int) -> Ino:
    return Ino(_MESSAGE_INO + docid)


def docid_of_or_none(ino: int) -> Docid | None:
    return Docid(ino - _MESSAGE_INO) if _MESSAGE_INO < ino < _VIEW_INO else None


def _view_ino(search_id: SearchId, kind: Kind) -> Ino:
    return Ino(_VIEW_INO + search_id * 4 + kind)


class Tree:
    """Directories, names and attributes over one store. `modseq` is the state it shows."""

    def __init__(self, store: Store, held_states: dict[SearchId, ViewState]) -> None:
        """`held_states` are the mtimes of the last unmount that still hold."""
        self.store = store
        self.facts = Facts()
        self.source = IndexSource(store.index)
        self.views: dict[str, View] = {}
        self.problems: dict[str, str] = {}
        self._held_states = held_states
        # What refresh() found before an error kept it from saying so.
        self.owed_invalidations: list[Invalidation] = []
        self._by_ino: dict[Ino, Directory] = {}
        self._children: dict[str, dict[bytes, Directory]] = {}
        self._folder_inos: dict[str, Ino] = {"": ROOT_INO}
        self._mtimes_ns: dict[str, int] = {}
        self.data_version = store.index.data_version()
        self.modseq, self.searches_modseq = store.index.state()
        self.reload_searches()

    # --- directories

    def reload_searches(self) -> None:
        """Take the saved searches anew; views whose search did not change stay as they are."""
        before = {view.search.search_id: view for view in self.views.values()}
        self.views = {}
        self.problems = {}
        self._searches_changed_ns = time.time_ns()
        for search in self.store.index.searches():
            try:
                self.views[search.name] = self._view_of(search, before.get(search.search_id))
            except QuerySyntaxError as error:
                self.problems[search.name] = str(error)
        children_before = {path: set(names) for path, names in self._children.items()}
        self._by_ino.clear()
        self._children = {"": {}}
        self._place_folder("")
        for name, view in sorted(self.views.items()):
            self._place_view(name, view)
        self._move_mtimes(children_before)

    def _move_mtimes(self, children_before: dict[str, set[bytes]]) -> None:
        """The times of directories that hold directories: of the newest search in them, then of changes seen."""
        for path, names in self._children.items():
            if path not in self._mtimes_ns:
                within = [
                    view.search.changed_ns
                    for name, view in self.views.items()
                    if not path or name == path or name.startswith(path + "/")
                ]
                self._mtimes_ns[path] = max(within, default=self._searches_changed_ns)
            elif children_before.get(path) != set(names):
                self._mtimes_ns[path] = max(self._searches_changed_ns, self._mtimes_ns[path] + 1)

    def _view_of(self, search: SavedSearch, before: View | None) -> View:
        if before is not None and before.search == search:
            return before
        state = self._held_states.pop(search.search_id, None)
        if state is None:
            # Later than anything shown of it before, by this mount or one that crashed.
            return View.of(search, self._searches_changed_ns)
        view = View.of(search, state.new_mtime_ns)
        view.cur_mtime_ns = state.cur_mtime_ns
        return view

    def _place_folder(self, path: str) -> None:
        ino = self._folder_inos.setdefault(path, Ino(_FOLDER_INO + len(self._folder_inos)))
        self._place(path, Directory(ino, Kind.FOLDER, path, None))

    def _place_view(self, name: str, view: View) -> None:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            above = "/".join(parts[:depth])
            if above not in self._children:
                self._place_folder(above)
        search_id = view.search.search_id
        self._place(name, Directory(_view_ino(search_id, Kind.VIEW), Kind.VIEW, name, view))
        for part, kind in _SUBFOLDERS:
            directory = Directory(_view_ino(search_id, kind), kind, name, view)
            self._by_ino[directory.ino] = directory
            self._children[name][part] = directory

    def _place(self, path: str, directory: Directory) -> None:
        self._by_ino[directory.ino] = directory
        self._children.setdefault(path, {})
        if path:
            above, _, part = path.rpartition("/")
            self._children[above][part.encode()] = directory

    def iter_directories(self) -> Iterator[Directory]:
        yield from list(self._by_ino.values())

    def subfolder_ino(self, view: View, kind: Kind) -> Ino:
        """The inode of a view's cur, new or tmp."""
        return _view_ino(view.search.search_id, kind)

    def directory(self, ino: int) -> Directory:
        """Raises NotFound for a message's inode, and for a view that was forgotten."""
        found = self._by_ino.get(Ino(ino))
        if found is None:
            raise NotFound(f"no directory has inode {ino}")
        return found

    def parent(self, directory: Directory) -> Directory:
        """The directory above; the root is its own, and that of what was forgotten is the root."""
        path = directory.path
        if directory.kind not in (Kind.CUR, Kind.NEW, Kind.TMP):
            path = path.rpartition("/")[0]
        above, _, part = path.rpartition("/")
        found = self._children.get(above, {}).get(part.encode())
        return self._by_ino[ROOT_INO] if found is None else found

    def entries(self, directory: Directory) -> list[Entry]:
        """The directories in a directory, by name; empty for cur, new and tmp."""
        if directory.kind not in (Kind.VIEW, Kind.FOLDER):
            return []
        return [Entry(*item) for item in sorted(self._children[directory.path].items())]

    def child_or_none(self, directory: Directory, name: bytes) -> Directory | None:
        if directory.kind not in (Kind.VIEW, Kind.FOLDER):
            return None
        return self._children[directory.path].get(name)

    def directory_attributes(self, directory: Directory) -> Attributes:
        """nlink is exact: 2, and one for each directory within (notmuch and find(1) rely on it)."""
        view = directory.view
        nlink = 2
        if directory.kind in (Kind.VIEW, Kind.FOLDER):
            nlink += len(self._children.get(directory.path, ()))
        if view is None or directory.kind == Kind.VIEW:
            mtime_ns = self._mtimes_ns.get(directory.path, self._searches_changed_ns)
        elif directory.kind == Kind.NEW:
            mtime_ns = view.new_mtime_ns
        elif directory.kind == Kind.CUR:
            mtime_ns = view.cur_mtime_ns
        else:
            mtime_ns = view.search.changed_ns
        return Attributes(directory.ino, True, nlink, 4096, mtime_ns, mtime_ns)

    # --- messages

    def expunged_attributes(self, docid: Docid) -> Attributes:
        """Of a message that some client has still open: no name is left of it. Raises NoSuchMessage."""
        row = self.store.index.entry(docid, live=False)
        ino = message_ino(docid)
        return Attributes(ino, False, 0, row.size, row.received_ns, row.changed_ns)

    def message_attributes(self, docid: Docid) -> Attributes:
        """Raises NoSuchMessage for one that is expunged or unknown."""
        if docid not in self.facts:
            self.facts.put(self.store.index.entry(docid))
        facts = self.facts
        return Attributes(
            message_ino(docid),
            False,
            1,
            facts.size[docid],
            facts.received_ns[docid],
            facts.changed_ns[docid],
        )

    def base_of(self, docid: Docid) -> bytes:
        """The canonical base name. The docid must be in `facts`."""
        received_s = self.facts.received_ns[docid] // _NS
        return format_base(
            Base(received_s, docid, self.store.layout.store_id, self.facts.size[docid])
        )

    def name_of(self, docid: Docid, flags: int) -> bytes:
        """The entry name with these flags."""
        return format_name(self.base_of(docid), flags, in_new=bool(flags & RECENT))

    def current_name(self, docid: Docid) -> bytes:
        """The entry name a listing shows now. The docid must be in `facts`."""
        return self.name_of(docid, self.facts.flags_of(docid))

    def docid_of_base_or_none(self, base: bytes) -> Docid | None:
        """The live message a base name means; None unless it is exactly its canonical base."""
        parsed = parse_base_or_none(base)
        if parsed is None or parsed.store_id != self.store.layout.store_id:
            return None
        if parsed.docid not in self.facts:
            try:
                self.facts.put(self.store.index.entry(parsed.docid))
            except NoSuchMessage:
                return None
        return parsed.docid if self.base_of(parsed.docid) == base else None

    def lookup_message(self, directory: Directory, name: bytes) -> Docid:
        """The message of a name in cur/ or new/. Raises NotFound unless the name is true now.

        An unloaded view is asked for this one message, not evaluated.
        """
        base, letters = split_name(name)
        docid = self.docid_of_base_or_none(base)
        if docid is None or directory.view is None or not directory.holds_messages:
            raise NotFound(f"no entry {name!r}")
        flags = self.facts.flags_of(docid)
        is_in_new = bool(flags & RECENT)
        # Clients write `base:2,` into new/ too, for a message without letters: the same name.
        current = self.name_of(docid, flags)
        if is_in_new != (directory.kind == Kind.NEW) or (
            name != current and not (is_in_new and letters == b"" and current == base)
        ):
            raise NotFound(f"no entry {name!r}")
        if not self.is_member(directory.view, docid):
            raise NotFound(f"no entry {name!r}")
        return docid

    def is_member(self, view: View, docid: Docid) -> bool:
        """Whether a live message is in a view now."""
        if view.is_loaded:
            return docid in view
        return bool(matching(view.query, [docid], self.source, time.time()))

    def iter_messages(self, directory: Directory, after: Docid) -> Iterator[tuple[int, bytes]]:
        """Docids and names in cur/ or new/ of a loaded view, from behind `after`.

        The hot loop of a listing: about a microsecond an entry.
        """
        view = directory.view
        assert view is not None
        wanted = RECENT if directory.kind == Kind.NEW else 0
        flags, name_of, of = self.facts.flags, self.name_of, self.facts.flags_of
        for docid in view.iter_after(after):
            if flags[docid] & RECENT == wanted:
                member = Docid(docid)
                yield docid, name_of(member, of(member))

    # --- what stays for the next mount

    def view_states(self) -> tuple[list[ViewState], Modseq]:
        """The mtimes shown now, and the modseq they hold for."""
        states = [
            ViewState(view.search.search_id, view.new_mtime_ns, view.cur_mtime_ns)
            for view in self.views.values()
            if not view.lingering
        ]
        return states, self.modseq
