"""stress-ng's file system classes in a side-car folder of a view: nothing crashes, nothing hangs, all is as on disk."""

import os
import re
import shutil

import pytest

from tests.clients.sides import Side
from tests.fakes import make_message

# Members of stress-ng's class `filesystem` that work in a folder. Left out: bind-mount, binderfs, chattr, fanotify and
# verity (mounts, devices, privileges and features of a disk), eventfd, io, ioprio and procfs (all disks or no file of the folder),
# symlink and fpunch (8192 links and 2048 holes at least, however short the time), fsize (it imitates fallocate(2), which a
# mount has not, and takes it for done when the time is over).
# fmt: off
STRESSORS = [
    "access", "chdir", "chmod", "chown", "copy-file", "dentry", "dir", "dirdeep", "dirmany",
    "dnotify", "dup", "fallocate", "fcntl", "fiemap", "file-ioctl", "filename", "flock",
    "fstat", "getdent", "handle", "hdd", "inode-flags", "inotify", "iomix",
    "lease", "link", "locka", "lockf", "lockofd", "mknod", "open", "rename", "sync-file",
    "touch", "utime", "xattr",
]
# fmt: on
SIZES = ["fallocate", "fiemap", "hdd", "iomix"]
OPERATIONS = 50
SECONDS = 2
# Features of a disk that a mount has not: extended attributes of a user, and where on the disk a file lies.
UNSUPPORTED = {"fiemap", "xattr"}
# stress-ng(1): a stressor could not begin. Which did begin, the metrics say.
SKIPPED = 3
RAN = re.compile(r"metrc: \[\d+\] (\S+) +\d+(?: +[\d.]+){5}$", re.MULTILINE)


def stress(side: Side) -> set[str]:
    """All at once, each until its operations are done or the seconds are over; those that did not skip themselves."""
    folder = side.folder() / ".scratch"
    folder.mkdir()
    words = [f"--temp-path={folder}", f"--timeout={SECONDS}", "--verify", "--metrics-brief"]
    for name in STRESSORS:
        words += [f"--{name}=1", f"--{name}-ops={OPERATIONS}"]
    words += [f"--{name}-bytes=1m" for name in SIZES]
    done = side.account.run("stress-ng", "--chdir-dirs=64", *words)
    said = done.stdout + done.stderr
    assert done.returncode in (0, SKIPPED), f"{side.name}: {said}"
    assert "fail:" not in said, f"{side.name}: {said}"
    assert os.listdir(folder) == [], side.name
    return set(RAN.findall(said))


@pytest.mark.slow
def test_stress_ng_finds_a_file_system_in_a_side_car_folder(sides: tuple[Side, Side]) -> None:
    if shutil.which("stress-ng") is None:
        pytest.skip("stress-ng is not installed")
    plain, mounted = map(stress, sides)
    assert plain == set(STRESSORS)
    assert mounted == plain - UNSUPPORTED
    side = sides[1]
    assert side.mailfs is not None
    assert side.mailfs.is_mounted()
    raw = make_message(1)
    assert side.deliver(raw, "1.x").read_bytes() == raw
    assert os.listdir(side.folder() / "cur") == []
