"""A disk that loses power: ext4 on a loop device over memory, and the ioctl that stops it dead.

What was synced before the cut is there when the disk is mounted again, what was not is lost or not, as the kernel had
written it by then. Every call after the cut fails with EIO. All of it lives in a mount namespace of its own: when the last
process in it ends, however it ends, the kernel unmounts, and the loop device lets go (LO_FLAGS_AUTOCLEAR).
"""

import ctypes
import errno
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from tests.mount.waiting import pause

# linux/loop.h
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_LO_FLAGS_AUTOCLEAR = 4
# Of struct loop_info64 in struct loop_config: five u64, three u32, then lo_flags.
_FLAGS_AT = 8 + 5 * 8 + 3 * 4
_LOOP_CONFIG_BYTES = 8 + 232 + 8 * 8
# fs/ext4/ext4.h; the flags are those of XFS_IOC_GOINGDOWN.
_EXT4_IOC_SHUTDOWN = 0x8004587D
_LOGFLUSH, _NOLOGFLUSH = 1, 2
# Another program may take the free device between the question and the answer; a file may be closed late.
_TRIES = 100
_TRY_AGAIN_S = 0.02
# How a disk is made and mounted. Other block sizes put other things into one write; with data=writeback a file that grew
# may hold what lay there before; nodelalloc and noauto_da_alloc move what is written when.
_MKFS_OPTIONS = (
    ("-b", "4096"),
    ("-b", "1024"),
    ("-b", "4096", "-O", "^metadata_csum"),
    ("-b", "2048"),
)
_MOUNT_OPTIONS = (
    "data=ordered",
    "data=ordered,commit=1",
    "data=writeback",
    "data=writeback,noauto_da_alloc",
    "data=ordered,nodelalloc",
    "data=journal",
)
# An old disk: blocks hold what other files left there.
_MNT_FORCE, _MNT_DETACH = 1, 2
_STALE = b"stale block "

_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str:
    """The reason why there can be no such disk here; empty when there can."""
    for program in ("mkfs.ext4", "unshare"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if os.geteuid():
        return "only root mounts a loop device"
    if not os.path.exists("/dev/loop-control"):
        return "the kernel has no loop devices"
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "true"],
        capture_output=True,
        check=False,
    )
    return f"no namespace of its own: {done.stderr.decode().strip()}" if done.returncode else ""


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def drop_foreign_mounts() -> None:
    """Let go of the FUSE and loop mounts that a new mount namespace has got: it would keep them alive for their owners."""
    foreign = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, _, origin = line.partition(" - ")
        kind, source, *_ = origin.split()
        if kind.startswith("fuse") or source.startswith("/dev/loop"):
            foreign.append(place.split()[4].encode().decode("unicode_escape"))
    for path in reversed(foreign):
        _libc.umount2(os.fsencode(path), _MNT_DETACH)


class LoopDisk:
    """One disk, mounted at `path`. The caller is in a mount namespace of its own."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self._size_bytes = size_bytes
        self._memory = -1
        path.mkdir(exist_ok=True)

    def make(self, random: Random) -> str:
        """A new disk in the place of the old one, if there was one, and not mounted yet; what kind of disk it is."""
        self.close()
        self._memory = os.memfd_create("disk", os.MFD_CLOEXEC)
        os.truncate(self._memory, self._size_bytes)
        if random.random() < 0.5:
            stale = (_STALE * (1 + (1 << 20) // len(_STALE)))[: 1 << 20]
            for start in range(0, self._size_bytes, 1 << 20):
                os.pwrite(self._memory, stale, start)
        options = random.choice(_MKFS_OPTIONS)
        extended = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
        with self._attached() as device:
            words = ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", extended, *options, device]
            subprocess.run(words, check=True, capture_output=True)
        return " ".join(options)

    @contextmanager
    def _attached(self) -> Iterator[str]:
        """A loop device over the memory; it lets go by itself when nobody has it open or mounted.

        A new one each time: a device that stays open keeps pages in memory that no disk would have kept.
        """
        for _ in range(_TRIES):
            control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
            try:
                device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            finally:
                os.close(control)
            fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                if self._is_configured(fd):
                    yield device
                    return
            finally:
                os.close(fd)
            pause(_TRY_AGAIN_S)
        raise OSError(errno.EBUSY, "no free loop device")

    def _is_configured(self, fd: int) -> bool:
        """Whether the device is ours now; False when somebody else was faster."""
        config = bytearray(_LOOP_CONFIG_BYTES)
        struct.pack_into("<II", config, 0, self._memory, 0)
        struct.pack_into("<I", config, _FLAGS_AT, _LO_FLAGS_AUTOCLEAR)
        try:
            fcntl.ioctl(fd, _LOOP_CONFIGURE, bytes(config))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    def mount(self, random: Random) -> str:
        """Mount it, which recovers its journal; the options chosen."""
        options = random.choice(_MOUNT_OPTIONS)
        with self._attached() as device:
            result = _libc.mount(
                device.encode(), os.fsencode(self.path), b"ext4", 0, options.encode()
            )
            _check(result, f"mount -o {options} {device}")
        return options

    def cut(self, random: Random) -> str:
        """Cut the power. Seldom the journal is written first, as a disk may do in its last moment."""
        flag = _LOGFLUSH if random.random() < 0.1 else _NOLOGFLUSH
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _EXT4_IOC_SHUTDOWN, struct.pack("I", flag))
        finally:
            os.close(fd)
        return "journal flushed" if flag == _LOGFLUSH else "journal lost"

    def unmount(self) -> None:
        """Take it away; those who had files open have ended. Raises OSError when somebody still has."""
        for left in reversed(range(_TRIES)):
            if _libc.umount2(os.fsencode(self.path), 0) == 0:
                return
            number = ctypes.get_errno()
            if number != errno.EBUSY or not left:
                raise OSError(number, f"umount {self.path}: {os.strerror(number)}")
            pause(_TRY_AGAIN_S)

    def close(self) -> None:
        """Let go of the device. It must not be mounted."""
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1

    def unmount_by_force(self, mountpoint: Path) -> None:
        """Take away a mount beside the disk, whoever still stands in it; no matter if there is none.

        Whoever waits for an answer of a FUSE server gets an error: a server that waits for itself ends in no other way.
        """
        for flags in (_MNT_FORCE, _MNT_DETACH):
            _libc.umount2(os.fsencode(mountpoint), flags)
