"""Where the kernel gives less than usual: a mount tells so in its log, and goes on."""

import ctypes
import os

from tests.mount.mounting import Mailfs
from tests.mount.watching import Watcher


def test_without_a_descriptor_to_watch_the_store_changes_are_heard_with_the_timer(
    mailfs: Mailfs,
) -> None:
    mailfs.create(messages=1)
    libc = ctypes.CDLL(None, use_errno=True)
    taken: list[int] = []
    try:
        with Watcher(mailfs.folder, "store"):  # the kernel counts descriptors by user
            while (fd := libc.inotify_init1(os.O_CLOEXEC)) >= 0:
                taken.append(fd)
            mailfs.mount()
        with Watcher(mailfs.mountpoint, "inbox/cur") as watcher:
            mailfs.say("tag", "+flagged", "*")
            (name,) = mailfs.names("inbox")
            watcher.expect(f"MOVE inbox/cur/{name.removesuffix('F')} -> inbox/cur/{name}")
    finally:
        for fd in taken:
            os.close(fd)
    assert "changes of other processes are noticed late: cannot watch" in mailfs.log_text()
    mailfs.umount()
    mailfs.log.unlink()  # it says so
