"""Mounted file systems: what is mounted where, who serves it, and how to unmount. Knows no pyfuse3.

A daemon writes STORE/mounts/<pid> with its mount point and takes it away at its end, so that `umount` can wait for it.
What is mounted is read from /proc/self/mountinfo (proc(5)).
"""

import contextlib
import errno
import os
import queue
import re
import subprocess
import threading
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from mailfs.errors import MountError
from mailfs.store.layout import Layout

FILE_SYSTEM_TYPE = "fuse.mailfs"
UNMOUNT_DEADLINE_S = 30.0
LOOK_DEADLINE_S = 5.0
_POLL_S = 0.02
_BUSY_S = 1.0


class MountBusy(MountError):
    """Somebody is in the mount."""


@dataclass(frozen=True, slots=True)
class Mounted:
    """A line of mountinfo that is ours."""

    mountpoint: Path
    store: Path
    device: int  # st_dev of everything on it


def find_mounted_or_none(mountpoint: Path) -> Mounted | None:
    """The mailfs mounted at exactly this path, dead or alive."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        kind, source, *_ = right.split(" ")
        _, _, device, _, place, *_ = left.split(" ")
        where = Path(_unescape(place))
        if kind == FILE_SYSTEM_TYPE and where == mountpoint:
            major, minor = map(int, device.split(":"))
            # The last one is on top.
            found = Mounted(where, Path(_unescape(source)), os.makedev(major, minor))
    return found


def _unescape(text: str) -> str:
    """mountinfo writes blanks and backslashes as octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


class Life(Enum):
    """How a mount point answers."""

    ALIVE = "alive"
    DEAD = "dead"  # its daemon has gone without unmounting
    SILENT = "silent"


def life_of(mountpoint: Path) -> Life:
    """Ask a mount point for its attributes, for LOOK_DEADLINE_S.

    One whose daemon was killed while it told the kernel to forget a name may answer nobody any more (own_thread.py).
    """
    answers: queue.SimpleQueue[Life] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(_look_at(mountpoint)), daemon=True).start()
    try:
        return answers.get(timeout=LOOK_DEADLINE_S)
    except queue.Empty:
        return Life.SILENT


def _look_at(mountpoint: Path) -> Life:
    try:
        os.stat(mountpoint)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return Life.DEAD
    return Life.ALIVE


def _abort(device: int) -> None:
    """End what waits for a daemon that has gone, where the file system fusectl is mounted (Documentation/filesystems/fuse)."""
    with contextlib.suppress(OSError):
        Path(f"/sys/fs/fuse/connections/{os.minor(device)}/abort").write_text("1")


def record_path(layout: Layout, pid: int) -> Path:
    return layout.root / "mounts" / str(pid)


def write_record(layout: Layout, mountpoint: Path) -> Path:
    """Say in the store that this process serves `mountpoint`."""
    path = record_path(layout, os.getpid())
    path.parent.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(os.fsencode(mountpoint))
    return path


def living_records(store: Path) -> dict[int, Path]:
    """The processes that serve mounts of a store, and where. Records of dead ones are removed."""
    found = {}
    folder = store / "mounts"
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.name.isdigit():
            continue
        if not _is_alive(int(path.name)):
            with contextlib.suppress(OSError):  # a disk that is read-only
                path.unlink(missing_ok=True)
            continue
        with contextlib.suppress(FileNotFoundError):  # it has ended just now
            where = path.read_bytes()
            if where:  # else it is being written
                found[int(path.name)] = Path(os.fsdecode(where))
    return found


def serving_pids(store: Path, mountpoint: Path) -> list[int]:
    """The living processes that serve a mount point."""
    return [pid for pid, where in living_records(store).items() if where == mountpoint]


def _is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not yet waited for (a zombie) does not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] not in (b"Z", b"X")


def run_fusermount(mountpoint: Path, *, lazy: bool) -> None:
    """fusermount3 -u. Raises MountError with its reason."""
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(mountpoint)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=UNMOUNT_DEADLINE_S, check=False
        )
    except FileNotFoundError:
        raise MountError("fusermount3 is missing: install Debian's package fuse3") from None
    except subprocess.TimeoutExpired:
        raise MountError(f"fusermount3 did not end within {UNMOUNT_DEADLINE_S:g} s") from None
    if done.returncode:
        reason = done.stderr.strip() or f"fusermount3 ended with {done.returncode}"
        if "busy" in reason.lower():
            raise MountBusy(
                f"{mountpoint} is in use: close its clients, or unmount it lazily with -l"
            )
        raise MountError(reason)


def _detach(mountpoint: Path, *, lazy: bool) -> None:
    """fusermount3, again and again for a while where it is busy: the daemon itself is in it for moments (echo.py)."""
    give_up = time.monotonic() + _BUSY_S
    while True:
        try:
            run_fusermount(mountpoint, lazy=lazy)
        except MountBusy:
            if time.monotonic() > give_up:
                raise
            time.sleep(_POLL_S)
        else:
            return


def unmount(mountpoint: Path, *, lazy: bool) -> None:
    """Unmount, and wait for the daemon to end unless `lazy`. Raises MountError."""
    mounted = find_mounted_or_none(mountpoint)
    if mounted is None:
        raise MountError(f"no mailfs is mounted at {mountpoint}")
    pids = serving_pids(mounted.store, mountpoint)
    give_up = time.monotonic() + UNMOUNT_DEADLINE_S
    _detach(mountpoint, lazy=lazy)
    while not lazy and any(map(_is_alive, pids)):
        if time.monotonic() > give_up:
            raise MountError(f"unmounted, but process {pids[0]} has not ended yet")
        time.sleep(_POLL_S)


def clear_mountpoint(mountpoint: Path) -> None:
    """Make a mount point fit: take away a dead mailfs, refuse a living one. Raises MountError."""
    life, mounted = life_of(mountpoint), find_mounted_or_none(mountpoint)
    if mounted is None and life is not Life.ALIVE:
        raise MountError(
            f"{mountpoint} is a {life.value} mount of another file system: unmount it first"
        )
    if mounted is not None:
        pids = serving_pids(mounted.store, mountpoint)
        if life is Life.ALIVE or (life is Life.SILENT and pids):
            silent = f", but process {pids[0]} does not answer" if life is Life.SILENT else ""
            raise MountError(f"a mailfs is mounted at {mountpoint} already{silent}")
        if life is Life.SILENT:
            _abort(mounted.device)
        run_fusermount(mountpoint, lazy=True)
    try:
        mountpoint.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise MountError(f"{mountpoint} cannot be a mount point: {error.strerror}") from None
    if not os.access("/dev/fuse", os.F_OK):
        raise MountError("/dev/fuse is missing: load the kernel module fuse")
