"""Who has a store open: everyone who does holds a shared flock(2) on STORE/in-use until it is closed.

What puts another index in place, or changes the format, holds it alone: nobody reads or writes meanwhile, and a mount
that runs is not taken by surprise. A file of its own, never replaced: a lock is on an inode, and `format` gets a new one.
The kernel drops what a dead process held.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mailfs.errors import Busy, storage_error
from mailfs.store.layout import Layout
from mailfs.store.lock import cross_out, describe_owner, flock_until, pids_by_kernel, write_owner

# A migration takes less; a rebuild takes minutes, and then an error is better than patience.
SHARE_DEADLINE_S = 10.0
_SHOWN = 5
_COMMAND_CHARS = 80


def in_use_path(layout: Layout) -> Path:
    """The file that is locked; made by the first who opens the store."""
    return layout.root / "in-use"


class InUse:
    """A share in the use of a store; taken at once, given back by close(), which may be called again."""

    def __init__(self, layout: Layout, deadline_s: float = SHARE_DEADLINE_S) -> None:
        """Raises Busy, naming who has the store for itself, when that does not end within `deadline_s`."""
        path = in_use_path(layout)
        try:
            self._fd = _open(path, os.O_RDONLY)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise storage_error(error, f"cannot open {path}") from error
            # Not made yet, and on this file system nobody can change anything.
            self._fd = -1
            return
        if not flock_until(self._fd, time.monotonic() + deadline_s, fcntl.LOCK_SH):
            os.close(self._fd)
            raise Busy(
                f"the store {layout.root} cannot be used just now: {describe_owner(path)} has it for "
                "itself; try again when that is done"
            )

    def close(self) -> None:
        if self._fd >= 0:
            _let_go(self._fd)
            self._fd = -1


@contextmanager
def hold_alone(layout: Layout, purpose: str, deadline_s: float) -> Iterator[None]:
    """Within the block nobody else has the store open. Raises Busy, naming who has, after `deadline_s`."""
    path = in_use_path(layout)
    try:
        fd = _open(path, os.O_RDWR)
    except OSError as error:
        raise storage_error(error, f"cannot open {path}") from error
    is_held = False
    try:
        is_held = flock_until(fd, time.monotonic() + deadline_s)
        if not is_held:
            raise Busy(
                f"{purpose} needs the store {layout.root} for itself, but it is in use by "
                f"{describe_users(layout)}: unmount it, or end that, and try again"
            )
        write_owner(fd, purpose)
        yield
    finally:
        if is_held:
            cross_out(fd)
        _let_go(fd)


def _open(path: Path, access: int) -> int:
    flags = access | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        return os.open(path, flags | os.O_CREAT, 0o600)


def _let_go(fd: int) -> None:
    # Closing is not enough: a child forked meanwhile has the same open file.
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def describe_users(layout: Layout) -> str:
    """Who has the store open, for an error message; `another process` where that cannot be told."""
    path = in_use_path(layout)
    pids = [pid for pid in pids_by_kernel(path, "READ") if pid]
    if not pids:
        return describe_owner(path)
    words = [_describe(layout, pid) for pid in pids[:_SHOWN]]
    if len(pids) > _SHOWN:
        words.append(f"{len(pids) - _SHOWN} more")
    return ", ".join(words)


def living_mounts(layout: Layout) -> list[str]:
    """The mounts of a store that run, in words, also those of older programs, which hold no share in its use."""
    folder = layout.root / "mounts"
    pids = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [
        _describe(layout, int(pid)) for pid in sorted(pids) if pid.isdigit() and _is_ours(int(pid))
    ]


def _is_ours(pid: int) -> bool:
    """Whether a process is a mailfs: its number may be another's by now."""
    try:
        return b"mailfs" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _describe(layout: Layout, pid: int) -> str:
    """A mount by its mount point, as its record in the store says; anything else by its command line."""
    try:
        if mountpoint := (layout.root / "mounts" / str(pid)).read_bytes():
            return f"pid {pid} (mounted at {os.fsdecode(mountpoint)})"
    except OSError:
        pass
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return f"pid {pid}"
    command = " ".join(map(os.fsdecode, words))
    shown = command if len(command) <= _COMMAND_CHARS else f"{command[:_COMMAND_CHARS]} ..."
    return f"pid {pid} ({shown})"
