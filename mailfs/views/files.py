"""Ordinary files of the mount: what is neither a message nor a directory of the tree.

They are real files in the store: tmp/ files below spool/, side-cars (a client's own files) below sidecar/. A *place*
is the directory a name is in: the *area* (a real folder, made when something is put into it) of a directory of the
tree, or the inode number of a side-car directory. Here real files get inode numbers and the kernel's numbers get names.

An inode number is remembered with the names it was seen under, so that what is open or inside a renamed directory is
found again; the kernel's lookups are counted as libfuse asks (fuse_lowlevel.h, forget), because a forget may come
later than the next lookup of the same number. A file system gives the number of a removed file to the next one made:
that one gets a number of ours while the kernel knows the first, and another `generation` after that.

Nothing here follows a symbolic link. Errors are the OSErrors of the real file system, and NotFound for an inode
number without a file. All of it is for the thread that serves requests.
"""

import contextlib
import os
import stat
import time
from dataclasses import dataclass, field
from errno import EINVAL, ENAMETOOLONG, EOPNOTSUPP, EPERM
from typing import NamedTuple, TypeAlias

from mailfs.errors import NotFound
from mailfs.ids import Ino, SearchId
from mailfs.store.layout import Layout
from mailfs.views.areas import Area, lstat_or_none, make_area, rename_without_replacing, scan

FILE_INO = 1 << 62
# From here on a number of the real file system has no room above FILE_INO: overlays set high bits.
_COUNTED_INO = 1 << 61
# i_generation of the kernel has 32 bits.
_GENERATIONS = 1 << 32
# rename(2), linux/fs.h
RENAME_NOREPLACE = 1

# Names kept of one inode. A file may have 65,000 links; the names a client uses are few.
_MAX_NAMES = 8
# PATH_MAX of Linux: no path that works has more parts.
_MAX_PARTS = 4096

# Offsets and buffers of reads and writes are the kernel's, not ours to align or append.
_DROPPED_FLAGS = os.O_APPEND | os.O_DIRECT
# A FIFO in the place of a file must not make everybody wait.
_ADDED_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_CREATING_FLAGS = os.O_CREAT | os.O_EXCL

# An area, or the inode number of a side-car directory.
Place: TypeAlias = Area | Ino


class FileAttributes(NamedTuple):
    """What the kernel is told of a file; `ino` is the one to show, not that of `stat`."""

    ino: Ino
    generation: int
    stat: os.stat_result


class FileEntry(NamedTuple):
    """A name in a place."""

    name: bytes
    attributes: FileAttributes


class _Name(NamedTuple):
    place: Place
    name: bytes


@dataclass(slots=True)
class _Node:
    """A file the kernel knows, or may."""

    ino: Ino
    key: tuple[int, int]  # st_dev, st_ino
    generation: int
    names: list[_Name]  # the last is the one seen last
    lookups: int = 0
    open_flags: dict[int, int] = field(default_factory=dict)  # by descriptor
    is_gone: bool = False  # its last name was removed

    def add_name(self, seen: _Name) -> None:
        """Make it the name seen last."""
        self.remove_name(seen)
        self.names = [*self.names[1 - _MAX_NAMES :], seen]

    def remove_name(self, name: _Name) -> None:
        self.names = [each for each in self.names if each != name]


def area_of(layout: Layout, search_id: SearchId | None, part: str, path: str) -> Area:
    """The area of a directory of the tree.

    Without a search that of the plain folder `path`, '' for the mount's root; else that of the view ('') or its `part`:
    cur, new or tmp.
    """
    if search_id is None:
        root = os.fsencode(layout.sidecar / "0")
        return root + b"/" + path.encode() if path else root
    folder = layout.spool if part else layout.sidecar
    return os.fsencode(folder / str(search_id) / part)


def is_file_ino(ino: int) -> bool:
    """Whether an inode number is one of an ordinary file."""
    return ino >= FILE_INO


class Files:
    """The ordinary files the kernel knows, by inode number and by place and name."""

    def __init__(self) -> None:
        self._nodes: dict[Ino, _Node] = {}
        self._serial = 0
        # The file system whose numbers are shown; what is mounted from others below gets counted ones.
        self._device: int | None = None
        self._counted: dict[tuple[int, int], Ino] = {}
        self._next_counted = FILE_INO + _COUNTED_INO

    # --- numbers and names

    def folder(self, place: Place) -> bytes:
        """The real path of a place, which need not exist. Raises NotFound for a directory without a name."""
        parts: list[bytes] = []
        while isinstance(place, int):
            node = self._node(place)
            if not node.names:
                raise NotFound(f"directory {place} has been removed")
            place, name = node.names[-1]
            parts.append(name)
            if len(parts) > _MAX_PARTS:
                raise OSError(ENAMETOOLONG, os.strerror(ENAMETOOLONG))
        parts.append(place)
        return b"/".join(reversed(parts))

    def lookup_or_none(self, place: Place, name: bytes) -> FileAttributes | None:
        """The file of a name, counted as one lookup of the kernel; None when there is none.

        Raises NotFound for an unknown place.
        """
        found = lstat_or_none(self._path(place, name))
        return None if found is None else self._looked_up(place, name, found)

    def attributes(self, ino: Ino) -> FileAttributes:
        """Of a file by its number, also when it has no name any more and is open. Raises NotFound."""
        node = self._node(ino)
        named = self._named_or_none(node)
        if named is not None:
            return FileAttributes(ino, node.generation, named[1])
        for fd in node.open_flags:
            return FileAttributes(ino, node.generation, os.fstat(fd))
        raise NotFound(f"file {ino} has been removed")

    def place_of(self, ino: Ino) -> tuple[Place, bytes]:
        """Place and name a file was last seen under. Raises NotFound when it has none left."""
        node = self._node(ino)
        if not node.names:
            raise NotFound(f"file {ino} has been removed")
        return node.names[-1]

    def names_of(self, ino: Ino) -> list[tuple[Place, bytes]]:
        """All known names of a file, the one seen last first; none when it has been removed."""
        node = self._nodes.get(ino)
        return [] if node is None else list(reversed(node.names))

    def entries(self, place: Place) -> list[FileEntry]:
        """The files in a place, by name; none when its area has not been made. What vanishes meanwhile is left out.

        Each is remembered, but not counted as looked up: see count_listed().
        """
        listed = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for name, found in scan(self.folder(place)):
                node = self._remember(place, name, found)
                attributes = FileAttributes(node.ino, node.generation, found)
                listed.append(FileEntry(name, attributes))
        return sorted(listed, key=lambda entry: entry.name)

    def count_listed(self, place: Place, entry: FileEntry) -> None:
        """An entry of a listing went to the kernel, which counts that as a lookup (READDIRPLUS).

        Of the number it was told, whatever became of the file since the listing.
        """
        ino, generation, found = entry.attributes
        node = self._nodes.get(ino)
        if node is None:
            node = _Node(ino, _key(found), generation, [_Name(place, entry.name)])
            self._nodes[ino] = node
        node.lookups += 1

    def subdirectories(self, place: Place) -> int:
        """How many directories are in a place: what st_nlink needs."""
        folder = self.folder(place)
        found = lstat_or_none(folder)
        if found is None:
            return 0
        if found.st_nlink >= 2:
            return found.st_nlink - 2
        # btrfs and overlays do not count, ext4 stops at 65,000.
        with os.scandir(folder) as scan:
            return sum(each.is_dir(follow_symlinks=False) for each in scan)

    def touch(self, area: Area, before_ns: int) -> None:
        """Move an area's mtime: strictly up from `before_ns`; the disk's own clock has steps of some ms."""
        make_area(area)
        now_ns = max(time.time_ns(), before_ns + 1)
        os.utime(area, ns=(now_ns, now_ns))

    def mtime_ns_or_none(self, place: Place) -> int | None:
        """When a name was last made or removed in a place; None when its area has not been made."""
        found = lstat_or_none(self.folder(place))
        return None if found is None else found.st_mtime_ns

    def forget(self, ino: Ino, count: int = 1) -> bool:
        """The kernel takes back `count` lookups: with the last one goes what is remembered, unless it is open.

        Whether something is still remembered.
        """
        node = self._nodes.get(ino)
        if node is not None:
            node.lookups -= count
            self._drop_unused(node)
        return ino in self._nodes

    # --- open files

    def create(
        self, place: Place, name: bytes, flags: int, mode: int
    ) -> tuple[int, FileAttributes]:
        """Make and open a file as open(2) with O_CREAT does, with exactly this mode; counted as one lookup.

        The descriptor is the caller's, to be told by opened().
        """
        path = self._path_to_fill(place, name)
        flags = flags & ~_DROPPED_FLAGS | _ADDED_FLAGS
        try:
            fd = os.open(path, flags | _CREATING_FLAGS, 0o600)
            is_new = True
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            fd = os.open(path, flags & ~_CREATING_FLAGS)
            is_new = False
        try:
            if is_new:
                os.fchmod(fd, stat.S_IMODE(mode))
            return fd, self._looked_up(place, name, os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise

    def open(self, ino: Ino, flags: int) -> int:
        """A descriptor as of open(2), also of an open file that has no name any more; to be told by opened()."""
        node = self._node(ino)
        flags = flags & ~(_DROPPED_FLAGS | _CREATING_FLAGS) | _ADDED_FLAGS
        named = self._named_or_none(node)
        if named is not None:
            return os.open(named[0], flags)
        for fd in node.open_flags:
            # proc(5): opens the file itself, not a name.
            return os.open(b"/proc/self/fd/%d" % fd, flags & ~os.O_NOFOLLOW)
        raise NotFound(f"file {ino} has been removed")

    def opened(self, ino: Ino, fd: int, flags: int) -> None:
        """A client has the file open by this descriptor from now on."""
        self._node(ino).open_flags[fd] = flags

    def closed(self, ino: Ino, fd: int) -> None:
        """The descriptor will be closed, after this call and by the caller."""
        node = self._node(ino)
        del node.open_flags[fd]
        self._drop_unused(node)

    def is_open_for_writing(self, ino: Ino) -> bool:
        """Whether a client has the file open and may write to it."""
        node = self._nodes.get(ino)
        return node is not None and any(
            flags & os.O_ACCMODE != os.O_RDONLY for flags in node.open_flags.values()
        )

    # --- making and removing names

    def mkdir(self, place: Place, name: bytes, mode: int) -> FileAttributes:
        """Make a directory with exactly this mode; counted as one lookup."""
        path = self._path_to_fill(place, name)
        os.mkdir(path, 0o700)
        os.chmod(path, stat.S_IMODE(mode))
        return self._looked_up(place, name, os.lstat(path))

    def mknod(self, place: Place, name: bytes, mode: int) -> FileAttributes:
        """Make a regular file, a FIFO or a socket with exactly this mode; counted as one lookup.

        Devices are refused with EPERM.
        """
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK):
            raise PermissionError(EPERM, "no devices here")
        path = self._path_to_fill(place, name)
        os.mknod(path, kind | 0o600)
        os.chmod(path, stat.S_IMODE(mode))
        return self._looked_up(place, name, os.lstat(path))

    def symlink(self, place: Place, name: bytes, target: bytes) -> FileAttributes:
        """Make a symbolic link; counted as one lookup."""
        path = self._path_to_fill(place, name)
        os.symlink(target, path)
        return self._looked_up(place, name, os.lstat(path))

    def readlink(self, ino: Ino) -> bytes:
        return os.readlink(self._named(ino)[0])

    def link(self, ino: Ino, place: Place, name: bytes) -> FileAttributes:
        """Give a file another name; counted as one lookup."""
        path = self._named(ino)[0]
        new_path = self._path_to_fill(place, name)
        os.link(path, new_path, follow_symlinks=False)
        return self._looked_up(place, name, os.lstat(new_path))

    def unlink(self, place: Place, name: bytes) -> None:
        path = self._path(place, name)
        found = os.lstat(path)
        os.unlink(path)
        self._removed(place, name, found)

    def rmdir(self, place: Place, name: bytes) -> None:
        path = self._path(place, name)
        found = os.lstat(path)
        os.rmdir(path)
        self._removed(place, name, found)

    def rename(
        self, place: Place, name: bytes, new_place: Place, new_name: bytes, flags: int
    ) -> None:
        """As renameat2(2) with RENAME_NOREPLACE or no flag; others are refused with EINVAL.

        What is open, and all within a renamed directory, keeps its number.
        """
        if flags & ~RENAME_NOREPLACE:
            raise OSError(EINVAL, "names cannot be exchanged here")
        path = self._path(place, name)
        moved = os.lstat(path)
        new_path = self._path_to_fill(new_place, new_name)
        replaced = lstat_or_none(new_path)
        if not flags:
            os.rename(path, new_path)
        else:
            rename_without_replacing(path, new_path, moved, replaced)
        if replaced is not None:
            if _key(replaced) == _key(moved):
                return  # two names of one file: rename(2) leaves both
            self._removed(new_place, new_name, replaced)
        node = self._nodes.get(self._ino_of(moved))
        if node is not None:
            node.remove_name(_Name(place, name))
            node.add_name(_Name(new_place, new_name))

    # --- attributes and durability

    def set_attributes(
        self,
        ino: Ino,
        fd: int | None,
        *,
        size: int | None = None,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> FileAttributes:
        """Change what is not None, through an open descriptor where there is one, and say what holds then."""
        target, found = self._target(ino, fd)
        is_open = isinstance(target, int)
        if size is not None:
            if not stat.S_ISREG(found.st_mode):
                raise OSError(EINVAL, "only a regular file has a length to set")
            os.truncate(target, size)
        if uid is not None or gid is not None:
            owner = (-1 if uid is None else uid, -1 if gid is None else gid)
            os.chown(target, *owner, follow_symlinks=is_open)
        if mode is not None:  # after chown, which takes set-user-id away
            if stat.S_ISLNK(found.st_mode):
                raise OSError(EOPNOTSUPP, "a symbolic link has no mode of its own")
            os.chmod(target, stat.S_IMODE(mode))
        if atime_ns is not None or mtime_ns is not None:
            now = os.stat(target, follow_symlinks=is_open)
            times_ns = (
                now.st_atime_ns if atime_ns is None else atime_ns,
                now.st_mtime_ns if mtime_ns is None else mtime_ns,
            )
            os.utime(target, ns=times_ns, follow_symlinks=is_open)
        now = os.stat(target, follow_symlinks=is_open)
        return FileAttributes(ino, self._node(ino).generation, now)

    # --- within

    def _node(self, ino: int) -> _Node:
        node = self._nodes.get(Ino(ino))
        if node is None:
            raise NotFound(f"no file has inode {ino}")
        return node

    def _path(self, place: Place, name: bytes) -> bytes:
        return self.folder(place) + b"/" + name

    def _path_to_fill(self, place: Place, name: bytes) -> bytes:
        """The path of a name that is going to be made: its area is there after this."""
        if not isinstance(place, int):
            make_area(place)
        return self._path(place, name)

    def _ino_of(self, found: os.stat_result) -> Ino:
        key = _key(found)
        if self._device is None:
            self._device = found.st_dev
        counted = self._counted.get(key)
        if counted is not None:
            return counted
        if found.st_dev == self._device and found.st_ino < _COUNTED_INO:
            return Ino(FILE_INO + found.st_ino)
        return self._count(key)

    def _count(self, key: tuple[int, int]) -> Ino:
        """A number of our own for a file."""
        self._counted[key] = Ino(self._next_counted)
        self._next_counted += 1
        return self._counted[key]

    def _looked_up(self, place: Place, name: bytes, found: os.stat_result) -> FileAttributes:
        node = self._remember(place, name, found)
        node.lookups += 1
        return FileAttributes(node.ino, node.generation, found)

    def _remember(self, place: Place, name: bytes, found: os.stat_result) -> _Node:
        """The node of a file that was just seen under this name."""
        ino = self._ino_of(found)
        seen = _Name(place, name)
        node = self._nodes.get(ino)
        if node is None:
            node = _Node(ino, _key(found), self._next_generation(), [seen])
            self._nodes[ino] = node
        elif not node.names or node.names[-1] != seen:
            if not self._is_same_file(node, found):
                return self._remember_later_file(node, seen, found)
            node.is_gone = False
            node.add_name(seen)
        return node

    def _remember_later_file(self, node: _Node, seen: _Name, found: os.stat_result) -> _Node:
        """A file that got the number of a removed one.

        While the kernel knows the number it must not mean another file: who is between a LOOKUP and a GETATTR of the
        removed one would get EIO (fuse_make_bad), not ENOENT.
        """
        node.names.clear()
        node.is_gone = True
        key = _key(found)
        ino = node.ino if node.lookups <= 0 else self._count(key)
        made = _Node(ino, key, self._next_generation(), [seen])
        self._nodes[ino] = made
        return made

    def _is_same_file(self, node: _Node, found: os.stat_result) -> bool:
        """Whether a known number under a new name is another link of its file, not a later file of that number."""
        if node.open_flags:
            return True  # a number in use is not given away
        if node.is_gone:
            return False
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            return True
        # Without a name it lost the last we knew; else somebody else than us renamed or removed it.
        return not node.names or self._named_or_none(node) is not None

    def _next_generation(self) -> int:
        self._serial = (self._serial + 1) % _GENERATIONS
        return self._serial

    def _named(self, ino: Ino) -> tuple[bytes, os.stat_result]:
        named = self._named_or_none(self._node(ino))
        if named is None:
            raise NotFound(f"file {ino} has been removed")
        return named

    def _named_or_none(self, node: _Node) -> tuple[bytes, os.stat_result] | None:
        """A path that leads to the file now; names that do not are dropped."""
        while node.names:
            with contextlib.suppress(NotFound):
                path = self._path(*node.names[-1])
                found = lstat_or_none(path)
                if found is not None and _key(found) == node.key:
                    return path, found
            node.names.pop()
            node.is_gone = not node.names
        return None

    def _target(self, ino: Ino, fd: int | None) -> tuple[int | bytes, os.stat_result]:
        """What to change a file by: the descriptor at hand, else a name, else any descriptor."""
        if fd is not None:
            return fd, os.fstat(fd)
        node = self._node(ino)
        named = self._named_or_none(node)
        if named is not None:
            return named
        # By preference one that may write: a length is set by no other.
        last_fd = max(
            node.open_flags, key=lambda each: node.open_flags[each] & os.O_ACCMODE, default=None
        )
        if last_fd is None:
            raise NotFound(f"file {ino} has been removed")
        return last_fd, os.fstat(last_fd)

    def _removed(self, place: Place, name: bytes, found: os.stat_result) -> None:
        """A name was removed; `found` is what was there."""
        is_last = found.st_nlink == 1 or stat.S_ISDIR(found.st_mode)
        node = self._nodes.get(self._ino_of(found))
        if is_last:
            self._counted.pop(_key(found), None)
        if node is None:
            return
        node.remove_name(_Name(place, name))
        if is_last:
            node.names.clear()
            node.is_gone = True
        if not node.names:
            self._drop_unused(node)

    def _drop_unused(self, node: _Node) -> None:
        if node.lookups <= 0 and not node.open_flags:
            del self._nodes[node.ino]


def _key(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
