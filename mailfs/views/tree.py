"""The tree a client sees, and its inode numbers: defined here and only here.

    /                        folders and views, by the names of the saved searches
    /lists/linux/            a view: cur, new, tmp, and views whose names go on
    /lists/linux/cur/NAME    a message

and everywhere the ordinary files of files.py. Inodes are pure functions of ids that are never reused, the same after a
remount: a message has one inode in all views, so the kernel keeps one copy of its pages. Plain folders (`lists`) are
numbered as they come.
All of it is for the thread that serves requests.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from mailfs.errors import NotFound, QuerySyntaxError
from mailfs.ids import Docid, Ino, Modseq, SearchId
from mailfs.message.keywords import RECENT, letters_of_flags
from mailfs.message.maildir import ChosenName, format_name, split_name
from mailfs.store.index import SavedSearch
from mailfs.store.saved import ViewState
from mailfs.store.source import IndexSource
from mailfs.store.store import Store
from mailfs.views.areas import Area
from mailfs.views.facts import Facts
from mailfs.views.files import Files, area_of
from mailfs.views.names import Found, Names, iter_names
from mailfs.views.view import View

ROOT_INO = Ino(1)
_MESSAGE_INO = 1 << 40
_VIEW_INO = 1 << 41
_FOLDER_INO = 1 << 42
LINGER_S = 300.0
# Names clients made that are shown differently, remembered at once.
_MAX_WRITTEN = 1000


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

    @property
    def search_id(self) -> SearchId | None:
        return None if self.view is None else self.view.search.search_id


class Attributes(NamedTuple):
    """What stat(2) says, as far as the tree decides it."""

    ino: Ino
    is_directory: bool
    nlink: int
    size: int
    mtime_ns: int
    ctime_ns: int


# A name in one of a view's folders.
Shown = tuple[Kind, bytes]


class Invalidation(NamedTuple):
    """A name in a directory to be forgotten: it means something else now, though nothing was made or removed."""

    parent: Ino
    name: bytes


class NameChange(NamedTuple):
    """The names of a message in a view, before and after; without any it is not there."""

    view: View
    docid: Docid
    before: frozenset[Shown]
    after: frozenset[Shown]


class FoldersChanged(NamedTuple):
    """So many messages of a view changed at once that they are not told one by one."""

    view: View


class DirectoryChange(NamedTuple):
    """The directory of the tree under a name, before and after (None: there is none)."""

    parent: Ino
    name: bytes
    before: Ino | None
    after: Ino | None


# What a change of the tree means for those who have seen its names.
News = Invalidation | NameChange | FoldersChanged | DirectoryChange


class Alias(NamedTuple):
    """A message linked into a view's tmp/, on its way to another folder."""

    search_id: SearchId
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


def _removed_parts(directory: Directory) -> set[bytes]:
    view = directory.view
    return view.removed_parts if view is not None and directory.kind == Kind.VIEW else set()


class Tree:
    """Directories, names and attributes over one store. `modseq` is the state it shows."""

    def __init__(self, store: Store, held_states: dict[SearchId, ViewState]) -> None:
        """`held_states` are the mtimes of the last unmount that still hold."""
        self.store = store
        self.facts = Facts()
        self.names = Names(store, self.facts)
        self.files = Files()
        # Gone after a crash, as what is in tmp/ may be.
        self.aliases: dict[Alias, Docid] = {}
        self._written: dict[tuple[Ino, bytes], tuple[Docid, int]] = {}
        # Rows of names whose message has left the view; to be forgotten, see edits.py.
        self.stale_names: set[tuple[SearchId, Docid]] = set()
        self.source = IndexSource(store.index)
        self.views: dict[str, View] = {}
        self.problems: dict[str, str] = {}
        self._held_states = held_states
        # What refresh() found before an error kept it from saying so.
        self.owed_news: list[News] = []
        # What messages were called in views whose query was edited, of those that have changed since (View.former).
        self.former_names: dict[SearchId, dict[Docid, frozenset[Shown]]] = {}
        # How long what was read stays in a view that does not match it any more, after its reader was last seen.
        self.linger_s = LINGER_S
        self._by_ino: dict[Ino, Directory] = {}
        self._children: dict[str, dict[bytes, Directory]] = {}
        self._folder_inos: dict[str, Ino] = {"": ROOT_INO}
        self._folders_made = 1
        self._areas: dict[Ino, Area] = {}
        self._area_inos: dict[Area, Ino] = {}
        self._mtimes_ns: dict[str, int] = {}
        self.data_version = store.index.data_version()
        self.modseq, self.searches_modseq, _ = store.index.state()
        self.reload_searches()

    # --- directories

    def reload_searches(self, *, is_anew: bool = False) -> None:
        """Take the saved searches anew; views whose search did not change stay as they are, unless `is_anew`."""
        before = {view.search.search_id: view for view in self.views.values()}
        self.views = {}
        self.problems = {}
        self._searches_changed_ns = time.time_ns()
        for search in self.store.index.searches():
            try:
                known = before.get(search.search_id)
                self.views[search.name] = self._view_of(search, known, is_anew=is_anew)
            except QuerySyntaxError as error:
                self.problems[search.name] = str(error)
        children_before = {path: set(names) for path, names in self._children.items()}
        self._by_ino.clear()
        self._children = {"": {}}
        self._place_folder("")
        for name, view in sorted(self.views.items()):
            self._place_view(name, view)
        self._move_mtimes(children_before)
        for path in sorted(children_before.keys() - self._children.keys(), reverse=True):
            # To the kernel a directory that was removed stays so: one that is made again has another number.
            self._folder_inos.pop(path, None)
            # An empty area of a plain folder that is gone would be an ordinary directory of its name.
            with contextlib.suppress(OSError):
                os.rmdir(area_of(self.store.layout, None, "", path))

    def _move_mtimes(self, children_before: dict[str, set[bytes]]) -> None:
        """The times of directories that hold directories: of the newest search in them, then of changes seen."""
        newest_ns: dict[str, int] = {}
        for name, view in self.views.items():
            parts = name.split("/")
            for depth in range(len(parts) + 1):
                path = "/".join(parts[:depth])
                newest_ns[path] = max(newest_ns.get(path, 0), view.search.changed_ns)
        for path, names in self._children.items():
            if path not in self._mtimes_ns:
                self._mtimes_ns[path] = newest_ns.get(path, self._searches_changed_ns)
            elif children_before.get(path) != set(names):
                self._mtimes_ns[path] = max(self._searches_changed_ns, self._mtimes_ns[path] + 1)

    def _view_of(self, search: SavedSearch, before: View | None, *, is_anew: bool) -> View:
        is_same = before is not None and before.search.query == search.query
        if before is not None and is_same and not (is_anew and before.is_loaded):
            before.search = (
                search  # called otherwise, or another rule for rm: the members are the same
            )
            return before
        state = self._held_states.pop(search.search_id, None)
        if state is None:
            # Later than anything shown of it before, by this mount or one that crashed.
            view = View.of(search, self._searches_changed_ns)
            view.follow(before)
            return view
        view = View.of(search, state.new_mtime_ns)
        view.cur_mtime_ns = state.cur_mtime_ns
        return view

    def move_folders(self, path: str, new_path: str) -> None:
        """mv: the plain folders at and below a path keep their numbers, by which the kernel knows them."""
        for old, ino in list(self._folder_inos.items()):
            if old == path or old.startswith(f"{path}/"):
                del self._folder_inos[old]
                self._areas.pop(ino, None)
                self._folder_inos[new_path + old[len(path) :]] = ino

    def _place_folder(self, path: str) -> None:
        ino = self._folder_inos.get(path)
        if ino is None:
            ino = self._folder_inos[path] = Ino(_FOLDER_INO + self._folders_made)
            self._folders_made += 1
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

    def view_of_or_none(self, search_id: SearchId) -> View | None:
        """The view of a search, if its query can be asked."""
        directory = self._by_ino.get(_view_ino(search_id, Kind.VIEW))
        return None if directory is None else directory.view

    def path_of(self, directory: Directory) -> bytes:
        """From the root, without a slash at either end."""
        path = directory.path.encode()
        if directory.kind in (Kind.VIEW, Kind.FOLDER):
            return path
        return path + b"/" + directory.kind.name.lower().encode()

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
        removed = _removed_parts(directory)
        return [
            Entry(name, child)
            for name, child in sorted(self._children.get(directory.path, {}).items())
            if name not in removed
        ]

    def child_or_none(self, directory: Directory, name: bytes) -> Directory | None:
        if directory.kind not in (Kind.VIEW, Kind.FOLDER) or name in _removed_parts(directory):
            return None
        return self._children.get(directory.path, {}).get(name)

    def area(self, directory: Directory) -> Area:
        """The real folder of a directory's ordinary files, which may not have been made yet."""
        area = self._areas.get(directory.ino)
        if area is None:
            kind = directory.kind
            part = "" if kind in (Kind.VIEW, Kind.FOLDER) else kind.name.lower()
            area = area_of(self.store.layout, directory.search_id, part, directory.path)
            self._areas[directory.ino] = area
            self._area_inos[area] = directory.ino
        return area

    def directory_of_area_or_none(self, place: Area | Ino) -> Directory | None:
        """The directory of the tree that has this area; None for a client's own directory, or a forgotten search."""
        if isinstance(place, int):
            return None
        return self._by_ino.get(self._area_inos.get(place, Ino(0)))

    def directory_attributes(self, directory: Directory) -> Attributes:
        """nlink is exact: 2, and one for each directory within (notmuch and find(1) rely on it)."""
        view = directory.view
        area = self.area(directory)
        nlink = 2 + self.files.subdirectories(area)
        if directory.kind in (Kind.VIEW, Kind.FOLDER):
            children = self._children.get(directory.path, {})
            nlink += len(children) - len(_removed_parts(directory))
            # The area of a plain folder lies in that of the folder above, and is no other directory.
            nlink -= sum(
                os.path.isdir(os.path.join(area, name))
                for name, child in children.items()
                if child.kind == Kind.FOLDER
            )
        if view is None or directory.kind == Kind.VIEW:
            mtime_ns = self._mtimes_ns.get(directory.path, self._searches_changed_ns)
        elif directory.kind == Kind.NEW:
            mtime_ns = view.new_mtime_ns
        elif directory.kind == Kind.CUR:
            mtime_ns = view.cur_mtime_ns
        else:
            mtime_ns = view.search.changed_ns
        if not directory.holds_messages:
            mtime_ns = max(mtime_ns, self.files.mtime_ns_or_none(area) or 0)
        return Attributes(directory.ino, True, nlink, 4096, mtime_ns, mtime_ns)

    # --- messages

    def expunged_attributes(self, docid: Docid) -> Attributes:
        """Of a message that some client has still open: no name is left of it. Raises NoSuchMessage."""
        row = self.store.index.entry(docid, live=False)
        ino = message_ino(docid)
        return Attributes(ino, False, 0, row.size, row.received_ns, row.changed_ns)

    def held_attributes(self, docid: Docid) -> Attributes:
        """Of a message some client holds, by an open file or a link in tmp/; it may have been expunged."""
        if self.names.know(docid):
            return self.message_attributes(docid)
        return self.expunged_attributes(docid)

    def message_attributes(self, docid: Docid) -> Attributes:
        """Raises NoSuchMessage for one that is expunged or unknown."""
        if docid not in self.facts:
            self.facts.put(self.store.index.entry(docid))
        facts = self.facts
        return Attributes(
            message_ino(docid),
            False,
            self._stored_link_count(docid),
            facts.size[docid],
            facts.received_ns[docid],
            facts.changed_ns[docid],
        )

    def touch(self, directory: Directory) -> None:
        """An ordinary name was made or removed in a directory: its mtime moves."""
        view = directory.view
        if view is not None and directory.holds_messages:
            view.touch(in_new=directory.kind == Kind.NEW)
        else:
            # Kept by the disk, over remounts too.
            self.files.touch(self.area(directory), self.directory_attributes(directory).mtime_ns)

    def link_count(self, docid: Docid) -> int:
        """st_nlink: one, and the copies clients made of a message, and its names in tmp/.

        That it is in several views does not count: tar and du would take every view for hard links. Copies do:
        when the kernel has counted down to none it refuses link(2) of a message it has in its cache.
        """
        rows = (view.chosen.get(docid, ()) for view in self.views.values() if view.chosen)
        return self._count_links(docid, rows)

    def _stored_link_count(self, docid: Docid) -> int:
        """The same from the index, which knows of views nobody has listed."""
        rows: dict[SearchId, list[ChosenName]] = {}
        for search_id, _, row in self.store.index.chosen_names_of([docid]):
            rows.setdefault(search_id, []).append(row)
        return self._count_links(docid, rows.values())

    def _count_links(self, docid: Docid, rows_by_view: Iterable[Sequence[ChosenName]]) -> int:
        count = 1 + (list(self.aliases.values()).count(docid) if self.aliases else 0)
        for rows in rows_by_view:
            if rows:
                count += len(rows) - 1 + all(row.is_copy for row in rows)
        return count

    def put_alias(self, alias: Alias, docid: Docid) -> None:
        """Link a message into a tmp/."""
        self.aliases[alias] = docid
        self._touch_tmp(alias.search_id)

    def drop_alias(self, alias: Alias) -> None:
        """Remove a link in a tmp/, if it is there."""
        if self.aliases.pop(alias, None) is not None:
            self._touch_tmp(alias.search_id)

    def _touch_tmp(self, search_id: SearchId) -> None:
        directory = self._by_ino.get(_view_ino(search_id, Kind.TMP))
        if directory is not None:
            self.touch(directory)

    def name_of(self, docid: Docid, flags: int) -> bytes:
        """The canonical entry name with these flags."""
        return format_name(
            self.names.base_of(docid), letters_of_flags(flags), in_new=bool(flags & RECENT)
        )

    def find_message_or_none(self, directory: Directory, name: bytes) -> Found | None:
        """The message of a name in cur/ or new/; None unless the name is true now.

        An unloaded view is asked for this one message, not evaluated.
        """
        if directory.view is None or not directory.holds_messages or name.startswith(b"."):
            return None
        found = self.names.find_or_none(directory.view, name, in_new=directory.kind == Kind.NEW)
        if found is None and self._written:
            found = self._find_written_or_none(directory, name)
        if found is None or not self.is_member(directory.view, found.docid):
            return None
        return found

    def remember_written(self, directory: Directory, name: bytes, docid: Docid) -> None:
        """A client was told that it made this name, and we show another: its flags were joined with those known.

        The name is understood until the message changes again, as a client goes on with it at once (`ln -f`).
        """
        if self.find_message_or_none(directory, name) is not None or docid not in self.facts:
            return
        while len(self._written) >= _MAX_WRITTEN:
            del self._written[next(iter(self._written))]
        self._written[directory.ino, name] = (docid, self.facts.changed_ns[docid])

    def forget_written(self, directory: Directory, name: bytes) -> None:
        """The name is no longer understood."""
        self._written.pop((directory.ino, name), None)

    def _find_written_or_none(self, directory: Directory, name: bytes) -> Found | None:
        docid, changed_ns = self._written.get((directory.ino, name), (None, 0))
        view = directory.view
        if docid is None or view is None or not self.names.know(docid):
            return None
        base, letters = split_name(name)
        owner = self.names.owner_or_none(view, base)
        if owner is None or owner[0] != docid or self.facts.changed_ns[docid] != changed_ns:
            del self._written[directory.ino, name]
            return None
        return Found(docid, owner[1], letters or b"", is_exact=False)

    def find_message(self, directory: Directory, name: bytes) -> Found:
        """The same. Raises NotFound."""
        found = self.find_message_or_none(directory, name)
        if found is None:
            raise NotFound(f"no entry {name!r}")
        return found

    def alias_or_none(self, directory: Directory, name: bytes) -> Docid | None:
        """The message linked into a tmp/ under this name."""
        if not self.aliases or directory.kind != Kind.TMP or directory.search_id is None:
            return None
        return self.aliases.get(Alias(directory.search_id, name))

    def is_member(self, view: View, docid: Docid) -> bool:
        """Whether a live message is in a view now."""
        return self.names.is_member(view, docid)

    def iter_messages(
        self, directory: Directory, after: Docid, skip: int = 0
    ) -> Iterator[tuple[int, int, bytes]]:
        """Docid, number and name of the entries in cur/ or new/ of a loaded view, behind entry `skip` of `after`.

        A message has several entries, numbered from 0, where clients made them. The hot loop of a listing: about a
        microsecond an entry while names are canonical.
        """
        view = directory.view
        assert view is not None
        if not view.has_plain_names:
            in_new = directory.kind == Kind.NEW
            yield from iter_names(self.names, view, self.facts, after, skip, in_new=in_new)
            return
        wanted = RECENT if directory.kind == Kind.NEW else 0
        flags, name_of, of = self.facts.flags, self.name_of, self.facts.flags_of
        for docid in view.iter_after(after):
            if flags[docid] & RECENT == wanted:
                member = Docid(docid)
                yield docid, 0, name_of(member, of(member))

    # --- what stays for the next mount

    def view_states(self) -> tuple[list[ViewState], Modseq]:
        """The mtimes shown now, and the modseq they hold for."""
        states = [
            ViewState(view.search.search_id, view.new_mtime_ns, view.cur_mtime_ns)
            for view in self.views.values()
            if not view.lingering
        ]
        return states, self.modseq
