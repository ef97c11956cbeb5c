"""Histories of ordinary files, generated: the same operations on a plain directory give the same errors and the same tree.

Beside that the kernel's part is played: it looks names up on each path, counts them, keeps numbers of files and forgets
them. No file it holds may be taken for another.
"""

import contextlib
import ctypes
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from errno import ENOENT, ENOTDIR
from typing import NamedTuple, TypeAlias

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mailfs.errors import NotFound
from mailfs.ids import Ino
from mailfs.views.files import RENAME_NOREPLACE, FileAttributes, Files, Place

_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
# As Files opens: a link is not followed, a FIFO not waited for.
_QUIETLY = os.O_NOFOLLOW | os.O_NONBLOCK

FilePath: TypeAlias = tuple[bytes, ...]
TreeOf: TypeAlias = dict[bytes, tuple[object, ...]]

_NAMES = st.sampled_from((b"a", b"b", b"d", b"\xff"))
_PATHS = st.one_of(st.tuples(_NAMES), st.tuples(_NAMES, _NAMES), st.tuples(_NAMES, _NAMES, _NAMES))
_MODES = st.sampled_from((0o700, 0o740, 0o755))


class Known(NamedTuple):
    """What a number stands for: a generation of it, and the number of the plain file."""

    generation: int
    identity: int


@dataclass
class Handle:
    """A file a client has open, here and in the plain directory."""

    ino: Ino
    generation: int
    fd: int
    plain_fd: int


def rename_plainly(old: bytes, new: bytes, flags: int) -> None:
    """renameat2(2)."""
    if _LIBC.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def errno_of(operation: Callable[[], object]) -> int:
    """0 when all is well."""
    try:
        operation()
    except NotFound as error:
        return error.errno
    except OSError as error:
        return error.errno or -1
    return 0


def tree_of(root: bytes) -> TreeOf:
    """All that can be seen of a folder but times and numbers; what has one number has one file."""
    found: TreeOf = {}
    first_names: dict[int, bytes] = {}
    for folder, directories, others in os.walk(root):
        for name in sorted(directories + others):
            path = os.path.join(folder, name)
            seen = os.lstat(path)
            relative = os.path.relpath(path, root)
            inside: object = None
            if stat.S_ISLNK(seen.st_mode):
                inside = os.readlink(path)
            elif stat.S_ISREG(seen.st_mode):
                with open(path, "rb") as file:
                    inside = file.read()
            first = first_names.setdefault(seen.st_ino, relative)
            found[relative] = (seen.st_mode, seen.st_nlink, inside, first)
    return found


class FileHistories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = os.fsencode(tempfile.mkdtemp())
        self.area, self.plain = self.root + b"/store/area", self.root + b"/plain"
        os.mkdir(self.plain)
        self.files = Files()
        self.handles: list[Handle] = []
        # What the kernel holds: how often each number was looked up, and what it stands for.
        self.lookups: Counter[Ino] = Counter()
        self.known: dict[Ino, Known] = {}
        # For ever: which file a number and generation meant. Plain files are held open, so that their own numbers are
        # never given to others and say which file it is.
        self.meant: dict[tuple[int, int], int] = {}
        self.held: dict[int, int] = {}
        self.linked: set[int] = set()

    def teardown(self) -> None:
        for handle in self.handles:
            os.close(handle.fd)
            os.close(handle.plain_fd)
        for fd in self.held.values():
            os.close(fd)
        shutil.rmtree(self.root)

    # --- the kernel's part

    def plain_path(self, path: FilePath) -> bytes:
        return b"/".join((self.plain, *path))

    def know(self, path: FilePath, attributes: FileAttributes) -> FileAttributes:
        """The kernel got an answer about a path: it must be about the file that is there."""
        found = os.lstat(self.plain_path(path))
        if found.st_ino not in self.held:
            self.held[found.st_ino] = os.open(self.plain_path(path), os.O_PATH | os.O_NOFOLLOW)
        ino, generation, seen = attributes
        assert stat.S_IFMT(seen.st_mode) == stat.S_IFMT(found.st_mode)
        assert self.meant.setdefault((ino, generation), found.st_ino) == found.st_ino
        for other, known in self.known.items():
            assert known.identity != found.st_ino or other == ino
        before = self.known.get(ino)
        self.known[ino] = Known(generation, found.st_ino)
        assert before in (None, self.known[ino])
        self.lookups[ino] += 1
        return attributes

    def find(self, path: FilePath) -> FileAttributes:
        """Walk to a file as path lookup does."""
        found = self.files.lookup_or_none(self.place(path), path[-1])
        if found is None:
            raise FileNotFoundError(ENOENT, "no such name")
        return self.know(path, found)

    def looked_up_place(self, path: FilePath) -> Place:
        """The place of a name, the name looked up: as the kernel does before it unlinks or renames."""
        place = self.place(path)
        found = self.files.lookup_or_none(place, path[-1])
        if found is not None:
            self.know(path, found)
        return place

    def place(self, path: FilePath) -> Place:
        """The directory a path's last name is in."""
        if len(path) == 1:
            return self.area
        directory = self.find(path[:-1])
        if stat.S_ISLNK(directory.stat.st_mode):
            raise FileNotFoundError(ENOENT, "all links here lead nowhere")
        if not stat.S_ISDIR(directory.stat.st_mode):
            raise NotADirectoryError(ENOTDIR, "not a directory")
        return directory.ino

    def alike(self, mine: Callable[[], object], plainly: Callable[[], object]) -> bool:
        """Do the same here and there; whether it was done."""
        code = errno_of(mine)
        assert code == errno_of(plainly)
        return code == 0

    # --- operations

    @rule(path=_PATHS, mode=_MODES, is_exclusive=st.booleans(), keep=st.booleans())
    def create(self, path: FilePath, mode: int, is_exclusive: bool, keep: bool) -> None:
        flags = os.O_CREAT | os.O_RDWR | (os.O_EXCL if is_exclusive else 0)
        made: list[tuple[int, FileAttributes]] = []
        plain: list[int] = []
        umask = os.umask(0)
        try:
            self.alike(
                lambda: made.append(self.files.create(self.place(path), path[-1], flags, mode)),
                lambda: plain.append(os.open(self.plain_path(path), flags | _QUIETLY, mode)),
            )
        finally:
            os.umask(umask)
        for (fd, attributes), plain_fd in zip(made, plain, strict=True):
            self.know(path, attributes)
            self.files.opened(attributes.ino, fd, flags)
            self.handles.append(Handle(attributes.ino, attributes.generation, fd, plain_fd))
            if not keep:
                self.close(len(self.handles) - 1)

    @rule(path=_PATHS, mode=_MODES)
    def mkdir(self, path: FilePath, mode: int) -> None:
        made: list[FileAttributes] = []
        if self.alike(
            lambda: made.append(self.files.mkdir(self.place(path), path[-1], mode)),
            lambda: os.mkdir(self.plain_path(path)),
        ):
            os.chmod(self.plain_path(path), mode)
            self.know(path, made[0])

    @rule(
        path=_PATHS,
        kind=st.sampled_from((stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK)),
        mode=_MODES,
    )
    def mknod(self, path: FilePath, kind: int, mode: int) -> None:
        made: list[FileAttributes] = []
        if self.alike(
            lambda: made.append(self.files.mknod(self.place(path), path[-1], kind | mode)),
            lambda: os.mknod(self.plain_path(path), kind),
        ):
            os.chmod(self.plain_path(path), mode)
            self.know(path, made[0])

    @rule(path=_PATHS)
    def symlink(self, path: FilePath) -> None:
        made: list[FileAttributes] = []
        if self.alike(
            lambda: made.append(self.files.symlink(self.place(path), path[-1], b"nowhere")),
            lambda: os.symlink(b"nowhere", self.plain_path(path)),
        ):
            self.know(path, made[0])
            assert self.files.readlink(made[0].ino) == b"nowhere"

    @rule(old=_PATHS, new=_PATHS)
    def link(self, old: FilePath, new: FilePath) -> None:
        made: list[FileAttributes] = []
        if self.alike(
            lambda: made.append(self.files.link(self.find(old).ino, self.place(new), new[-1])),
            lambda: os.link(self.plain_path(old), self.plain_path(new), follow_symlinks=False),
        ):
            self.know(new, made[0])
            self.linked.add(self.known[made[0].ino].identity)

    @rule(path=_PATHS)
    def unlink(self, path: FilePath) -> None:
        self.alike(
            lambda: self.files.unlink(self.looked_up_place(path), path[-1]),
            lambda: os.unlink(self.plain_path(path)),
        )

    @rule(path=_PATHS)
    def rmdir(self, path: FilePath) -> None:
        self.alike(
            lambda: self.files.rmdir(self.looked_up_place(path), path[-1]),
            lambda: os.rmdir(self.plain_path(path)),
        )

    @rule(old=_PATHS, new=_PATHS, flags=st.sampled_from((0, RENAME_NOREPLACE)))
    def rename(self, old: FilePath, new: FilePath, flags: int) -> None:
        def mine() -> None:
            place, new_place = self.looked_up_place(old), self.looked_up_place(new)
            self.files.rename(place, old[-1], new_place, new[-1], flags)

        self.alike(
            mine,
            lambda: rename_plainly(self.plain_path(old), self.plain_path(new), flags),
        )

    @rule(path=_PATHS, content=st.binary(max_size=4))
    def open_and_write(self, path: FilePath, content: bytes) -> None:
        def mine() -> None:
            ino = self.find(path).ino
            fd = self.files.open(ino, os.O_WRONLY | os.O_TRUNC)
            self.files.opened(ino, fd, os.O_WRONLY)
            assert self.files.is_open_for_writing(ino)
            os.write(fd, content)
            self.files.closed(ino, fd)
            os.close(fd)

        def plainly() -> None:
            fd = os.open(self.plain_path(path), os.O_WRONLY | os.O_TRUNC | _QUIETLY)
            os.write(fd, content)
            os.close(fd)

        self.alike(mine, plainly)

    @rule(path=_PATHS, mode=_MODES, mtime_ns=st.integers(0, 10**18))
    def set_mode_and_time(self, path: FilePath, mode: int, mtime_ns: int) -> None:
        def mine() -> None:
            found = self.find(path)
            if not stat.S_ISLNK(found.stat.st_mode):
                self.files.set_attributes(found.ino, None, mode=mode)
            changed = self.files.set_attributes(found.ino, None, mtime_ns=mtime_ns)
            assert changed.stat.st_mtime_ns == mtime_ns

        def plainly() -> None:
            if not stat.S_ISLNK(os.lstat(self.plain_path(path)).st_mode):
                os.chmod(self.plain_path(path), mode)

        self.alike(mine, plainly)

    @rule(number=st.integers(0, 10), size=st.integers(0, 5), by_descriptor=st.booleans())
    def truncate_open(self, number: int, size: int, by_descriptor: bool) -> None:
        if not self.handles:
            return
        handle = self.handles[number % len(self.handles)]
        if stat.S_ISREG(os.fstat(handle.fd).st_mode):
            fd = handle.fd if by_descriptor else None
            assert self.files.set_attributes(handle.ino, fd, size=size).stat.st_size == size
            os.truncate(handle.plain_fd, size)

    @rule(number=st.integers(0, 10))
    def close(self, number: int) -> None:
        if self.handles:
            handle = self.handles.pop(number % len(self.handles))
            self.files.closed(handle.ino, handle.fd)
            os.close(handle.fd)
            os.close(handle.plain_fd)

    @rule(path=_PATHS)
    def list_directory(self, path: FilePath) -> None:
        def mine() -> None:
            place = self.place((*path, b"."))
            entries = self.files.entries(place)
            assert [entry.name for entry in entries] == sorted(os.listdir(self.plain_path(path)))
            for entry in entries:
                self.files.count_listed(place, entry)
                self.know((*path, entry.name), entry.attributes)
            assert self.files.subdirectories(place) == os.lstat(self.plain_path(path)).st_nlink - 2

        self.alike(mine, lambda: os.listdir(self.plain_path(path)))

    # --- what the kernel and others do meanwhile

    @rule(number=st.integers(0, 50), is_partial=st.booleans())
    def forget(self, number: int, is_partial: bool) -> None:
        """A number is let go: of nothing open, and of no directory the kernel knows something in."""
        in_use: set[Place] = {handle.ino for handle in self.handles}
        for ino in self.lookups:
            with contextlib.suppress(NotFound):
                in_use.add(self.files.place_of(ino)[0])
        free = sorted(ino for ino in self.lookups if ino not in in_use)
        if not free:
            return
        ino = free[number % len(free)]
        count = self.lookups[ino] - 1 if is_partial else self.lookups[ino]
        self.files.forget(ino, count)
        self.lookups[ino] -= count
        if not self.lookups[ino]:
            del self.lookups[ino], self.known[ino]

    @rule(old=_PATHS, new=_PATHS)
    def somebody_else_replaces(self, old: FilePath, new: FilePath) -> None:
        """Behind our back a file goes and another comes, with the same number as like as not.

        Under the same name nobody could tell.
        """

        def replace(root: bytes) -> None:
            gone = b"/".join((root, *old))
            if os.lstat(gone).st_nlink == 1 and old != new:
                os.unlink(gone)
                os.mknod(b"/".join((root, *new)), stat.S_IFREG | 0o700)

        self.alike(lambda: replace(self.area), lambda: replace(self.plain))

    # --- what must hold

    @invariant()
    def the_trees_are_the_same(self) -> None:
        assert tree_of(self.area) == tree_of(self.plain)

    @invariant()
    def open_files_stay_what_they_are(self) -> None:
        for handle in self.handles:
            attributes = self.files.attributes(handle.ino)
            plain = os.fstat(handle.plain_fd)
            assert attributes.generation == handle.generation
            assert attributes.stat.st_size == plain.st_size
            assert attributes.stat.st_nlink == plain.st_nlink

    @invariant()
    def known_files_are_found_by_their_numbers(self) -> None:
        for ino, known in self.known.items():
            plain = os.fstat(self.held[known.identity])
            try:
                attributes = self.files.attributes(ino)
            except NotFound:
                # Of several names the one it was known by may be gone.
                assert plain.st_nlink == 0 or known.identity in self.linked
                continue
            assert attributes.generation == known.generation
            assert attributes.stat.st_mode == plain.st_mode
            assert attributes.stat.st_nlink == plain.st_nlink


FileHistories.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestFileHistories = FileHistories.TestCase
