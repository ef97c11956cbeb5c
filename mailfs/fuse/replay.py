"""What a batch of announcements does through the mount. For the echo's thread; see echo.py for why.

All paths are relative to the mount's root, which is opened for each batch (an open directory keeps a file system from being
unmounted), and every directory is looked at before anything is made in it: it must be on the file system we serve.
"""

import contextlib
import ctypes
import logging
import os
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mailfs.ids import Ino
from mailfs.views.announce import Act, Batch, Place, Step

log = logging.getLogger(__name__)

_LIBC = ctypes.CDLL(None)
# statx(2), linux/stat.h; what it says is not looked at.
_AT_EMPTY_PATH, _AT_STATX_FORCE_SYNC, _STATX_BASIC_STATS = 0x1000, 0x2000, 0x7FF
_STATX = ctypes.create_string_buffer(256)
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Mount:
    """Where our file system is to be reached, and its number: st_dev of everything on it."""

    mountpoint: Path
    device: int


@dataclass(slots=True)
class _Folders:
    """Open directories of the mount, by inode."""

    mount: Mount
    paths: Mapping[Ino, bytes]
    opened: contextlib.ExitStack
    fds: dict[bytes, int] = field(default_factory=dict)

    def fd(self, ino: Ino) -> int:
        """Raises OSError where the directory is not to be reached."""
        path = self.paths[ino]
        if path not in self.fds:
            if path:
                fd = os.open(path, _DIRECTORY, dir_fd=self._root())
            else:
                return self._root()
            self._keep(path, fd)
        return self.fds[path]

    def _root(self) -> int:
        if b"" not in self.fds:
            self._keep(b"", os.open(self.mount.mountpoint, _DIRECTORY))
        return self.fds[b""]

    def _keep(self, path: bytes, fd: int) -> None:
        self.opened.callback(os.close, fd)
        if os.fstat(fd).st_dev != self.mount.device:
            raise FileNotFoundError(
                f"another file system lies over {os.fsdecode(path) or 'the mount'}"
            )
        self.fds[path] = fd


def perform(batch: Batch, mount: Mount, counts: Counter[str]) -> None:
    """Do the steps of a batch."""
    with contextlib.ExitStack() as opened:
        folders = _Folders(mount, batch.paths, opened)
        for step in batch.steps:
            try:
                _do(step, folders)
                counts[step.act.name.lower()] += 1
            except FileExistsError:
                # The kernel has the name: a client made it or looked it up meanwhile.
                counts["known"] += 1
            except OSError as error:
                # Unmounted, hidden by another mount, or the kernel knows better by now.
                log.debug("no event for %s: %s", step, error)
                counts["failed"] += 1
                batch.unheard.append(step.place)


def _do(step: Step, folders: _Folders) -> None:
    ino, name = step.place
    fd = folders.fd(ino)
    if step.act is Act.MAKE:
        if step.is_directory:
            os.mkdir(name, 0o700, dir_fd=fd)
        else:
            os.mknod(name, stat.S_IFREG | 0o600, dir_fd=fd)
            if folders.paths[ino].endswith(b"/new"):
                # mutt and neomutt (monitor.c) watch new/ for names moved in, closed or touched, not for names made.
                os.utime(name, dir_fd=fd, follow_symlinks=False)
    elif step.act is Act.MOVE:
        assert step.new_place is not None
        new_ino, new_name = step.new_place
        os.rename(name, new_name, src_dir_fd=fd, dst_dir_fd=folders.fd(new_ino))
    elif step.is_directory:
        os.rmdir(name, dir_fd=fd)
    else:
        _unlink(name, fd)


def _unlink(name: bytes, folder: int) -> None:
    """unlink(2), with the kernel's count of links raised before.

    It refuses link(2) of an inode without links, also where other names are left that it knows nothing of.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        # fstat(2) would be answered from the kernel's cache. A failure is of one that was expunged.
        _LIBC.statx(fd, b"", _AT_EMPTY_PATH | _AT_STATX_FORCE_SYNC, _STATX_BASIC_STATS, _STATX)
        os.unlink(name, dir_fd=folder)
    finally:
        os.close(fd)


def forget(batch: Batch, places: Sequence[Place], mount: Mount) -> None:
    """Make the kernel ask for names again, and raise no event. Those that are not to be reached go to `batch.unreached`.

    Who makes a name (O_EXCL, mknod) has the kernel look whether it is there, also where it keeps it; the handlers say
    no, and it drops the name with all below it. The making itself is refused then. FUSE_NOTIFY_INVAL_ENTRY does the same
    with one call, but it holds /dev/fuse while it waits for a directory's lock: see own_thread.py.
    """
    with contextlib.ExitStack() as opened:
        folders = _Folders(mount, batch.paths, opened)
        for ino, name in places:
            try:
                fd = folders.fd(ino)
            except OSError:
                batch.unreached.append((ino, name))
                continue
            with contextlib.suppress(OSError):
                os.mknod(name, stat.S_IFREG | 0o600, dir_fd=fd)
