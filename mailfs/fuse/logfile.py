"""The log of a mount in the background: its standard output and error, kept at a limited length."""

import os
from pathlib import Path

# What a person may still read; a year of quiet takes less.
MAX_LOG_BYTES = 1 << 20


def log_path(root: Path) -> Path:
    """Where a mount in the background writes its log."""
    return root / "mount.log"


def open_log(path: Path) -> None:
    """Standard output and error go there from now on. One that is long enough becomes `mount.log.1` first. Raises OSError."""
    if _size(path) >= MAX_LOG_BYTES:
        path.replace(path.with_name(f"{path.name}.1"))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    for target in (1, 2):
        os.dup2(fd, target)
    os.close(fd)


def limit_log(path: Path) -> None:
    """Begin it anew where it is long enough, or where another mount of the store has. Raises OSError."""
    ours = os.fstat(2)
    try:
        named = path.stat()
    except FileNotFoundError:
        named = None
    is_ours = named is not None and (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)
    if not is_ours or ours.st_size >= MAX_LOG_BYTES:
        open_log(path)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
