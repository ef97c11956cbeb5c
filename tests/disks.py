"""Small disks of their own for tests: ext4 in a file, which can be filled up, freed and made read-only. Only for root."""

import gc
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.mount.waiting import pause

_CHUNK_BYTES = 1 << 16
_DEADLINE_S = 10.0
_TRY_AGAIN_S = 0.05


def why_not() -> str:
    """The reason why there can be no such disk here; empty when there can."""
    if os.geteuid():
        return "only root mounts a disk"
    if shutil.which("mkfs.ext4") is None:
        return "mkfs.ext4 is not installed"
    if not Path("/dev/loop-control").exists():
        return "the kernel has no loop devices"
    return ""


class SmallDisk:
    """A mounted file system at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def set_read_only(self, is_read_only: bool) -> None:
        """mount -o remount; refused by the kernel while some process has a file open for writing."""
        option = "ro" if is_read_only else "rw"
        subprocess.run(["mount", "-o", f"remount,{option}", self.path], check=True)

    def fill(self, left_bytes: int = 0) -> None:
        """Write until so much is left, or nothing more fits."""
        with self._ballast.open("ab", buffering=0) as file, suppress(OSError):
            while (room := self.free_bytes - left_bytes) > 0 or not left_bytes:
                file.write(bytes(min(_CHUNK_BYTES, room) if left_bytes else _CHUNK_BYTES))
        if not left_bytes:
            # What is left of a block group is too little for a chunk.
            with self._ballast.open("ab", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(1024))
        self._sync()

    def free(self) -> None:
        """Take away what fill() wrote."""
        self._ballast.unlink()
        self._sync()

    def _sync(self) -> None:
        # Blocks that were freed can be had again when the journal says so.
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        os.sync()

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize


def _unmounted(path: Path) -> "subprocess.CompletedProcess[str]":
    """umount(8), tried for a while: a process that ends just now may still have files open."""
    give_up = time.monotonic() + _DEADLINE_S
    while True:
        gc.collect()  # what a test that failed on purpose left open in a traceback
        done = subprocess.run(["umount", path], capture_output=True, text=True, check=False)
        if not done.returncode or time.monotonic() > give_up:
            return done
        pause(_TRY_AGAIN_S)


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[SmallDisk]:
    """A disk of this size, mounted in `folder` for the block."""
    image, path = folder / "disk.ext4", folder / "disk"
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    path.mkdir()
    subprocess.run(["mount", "-o", "loop", image, path], check=True)
    try:
        yield SmallDisk(path)
    finally:
        done = _unmounted(path)
        if done.returncode:
            # Somebody still has a file open there: who that is, is for the test to find; nothing stays behind.
            subprocess.run(["umount", "--lazy", path], check=True)
        image.unlink()
    assert done.returncode == 0, done.stderr
