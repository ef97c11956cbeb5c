"""Areas: the real folders in the store that hold the ordinary files of a directory of the tree.

    sidecar/0           of the mount's root; sidecar/0/lists of the plain folder `lists`
    sidecar/7           of the view of search 7
    spool/7/tmp         of its tmp/, and so of cur/ and new/

An area is made when the first file comes. None of this follows a symbolic link in the last part of a path.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from errno import EEXIST
from pathlib import Path
from typing import TypeAlias

from mailfs.store.layout import sync_directory

# The path of the real folder.
Area: TypeAlias = bytes


def lstat_or_none(path: bytes) -> os.stat_result | None:
    """What is there; None when nothing is, or when the folder has not been made."""
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def scan(folder: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Names and files of a folder, in no order; what vanishes meanwhile is left out."""
    with os.scandir(folder) as found:
        for each in found:
            with contextlib.suppress(FileNotFoundError):
                yield each.name, each.stat(follow_symlinks=False)


def make_area(area: Area) -> None:
    """Make an area's folders, for their owner only and durably."""
    missing = []
    path: bytes = area
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another mount of the store was faster
            os.mkdir(path, 0o700)
        os.chmod(path, 0o700)  # whatever the umask took away
        sync_directory(Path(os.fsdecode(os.path.dirname(path))))


def rename_without_replacing(
    path: bytes, new_path: bytes, moved: os.stat_result, replaced: os.stat_result | None
) -> None:
    """RENAME_NOREPLACE, which Python has no call for. A link is refused atomically; directories have none."""
    if replaced is not None:
        raise FileExistsError(EEXIST, os.strerror(EEXIST), os.fsdecode(new_path))
    if stat.S_ISDIR(moved.st_mode):
        os.rename(path, new_path)
        return
    os.link(path, new_path, follow_symlinks=False)
    try:
        os.unlink(path)
    except OSError:
        os.unlink(new_path)
        raise
