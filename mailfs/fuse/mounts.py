"""Mounted file systems: what is mounted where, who serves it, and how to unmount. Knows no pyfuse3.

A daemon writes STORE/mounts/<pid> with its mount point and takes it away at its end, so that `umount` can wait for it.
What is mounted is read from /proc/self/mountinfo (proc(5)).
"""

import errno
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from mailfs.errors import MountError
from mailfs.store.layout import Layout

FILE_SYSTEM_TYPE = "fuse.mailfs"
UNMOUNT_DEADLINE_S = 30.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Mounted:
    """A line of mountinfo that is ours."""

    mountpoint: Path
    store: Path


def find_mounted_or_none(mountpoint: Path) -> Mounted | None:
    """The mailfs mounted at exactly this path, dead or alive."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        kind, source, *_ = right.split(" ")
        where = Path(_unescape(left.split(" ")[4]))
        if kind == FILE_SYSTEM_TYPE and where == mountpoint:
            found = Mounted(where, Path(_unescape(source)))  # the last one is on top
    return found


def _unescape(text: str) -> str:
    """mountinfo writes blanks and backslashes as octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def is_dead(mountpoint: Path) -> bool:
    """Whether the daemon of a mount point has gone without unmounting."""
    try:
        os.stat(mountpoint)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


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


def serving_pids(store: Path, mountpoint: Path) -> list[int]:
    """The living processes that serve a mount point. Records of dead ones are removed."""
    pids = []
    folder = store / "mounts"
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.name.isdigit():
            continue
        if not _is_alive(int(path.name)):
            path.unlink(missing_ok=True)
        elif path.read_bytes() == os.fsencode(mountpoint):
            pids.append(int(path.name))
    return pids


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
            reason = f"{mountpoint} is in use: close its clients, or unmount it lazily with -l"
        raise MountError(reason)


def unmount(mountpoint: Path, *, lazy: bool) -> None:
    """Unmount, and wait for the daemon to end unless `lazy`. Raises MountError."""
    mounted = find_mounted_or_none(mountpoint)
    if mounted is None:
        raise MountError(f"no mailfs is mounted at {mountpoint}")
    pids = serving_pids(mounted.store, mountpoint)
    run_fusermount(mountpoint, lazy=lazy)
    give_up = time.monotonic() + UNMOUNT_DEADLINE_S
    while not lazy and any(map(_is_alive, pids)):
        if time.monotonic() > give_up:
            raise MountError(f"unmounted, but process {pids[0]} has not ended yet")
        time.sleep(_POLL_S)


def clear_mountpoint(mountpoint: Path) -> None:
    """Make a mount point fit: take away a dead mailfs, refuse a living one. Raises MountError."""
    if is_dead(mountpoint):
        if find_mounted_or_none(mountpoint) is None:
            raise MountError(
                f"{mountpoint} is a dead mount of another file system: unmount it first"
            )
        run_fusermount(mountpoint, lazy=True)
    elif find_mounted_or_none(mountpoint) is not None:
        raise MountError(f"a mailfs is mounted at {mountpoint} already")
    try:
        mountpoint.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise MountError(f"{mountpoint} cannot be a mount point: {error.strerror}") from None
    if not os.access("/dev/fuse", os.F_OK):
        raise MountError("/dev/fuse is missing: load the kernel module fuse")
