"""From mount to unmount: exit codes, signals, clients that are in the way, crashes, and an idle daemon."""

import errno
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mailfs.errors import EX_NOINPUT, EX_UNAVAILABLE
from tests.mount.mounting import Mailfs, is_alive
from tests.mount.waiting import pause, wait_until

# How long a daemon that was told to end serves clients that still have files open.
GRACE_S = 5.0


def assert_ended_cleanly(mailfs: Mailfs) -> None:
    assert not mailfs.is_mounted()
    assert mailfs.pids() == []
    text = mailfs.log_text()
    assert text.rstrip().endswith("unmounted"), text
    assert "Traceback" not in text
    assert os.listdir(mailfs.mountpoint) == []


# --- beginning


def test_mount_returns_when_the_mount_can_be_used_and_makes_the_folder(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    assert not mailfs.mountpoint.exists()
    done = mailfs.command("mount", mailfs.mountpoint)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(os.listdir(mailfs.mountpoint)) == ["all", "flagged", "inbox", "unread"]
    assert mailfs.only("inbox").stat().st_size > 0
    assert is_alive(mailfs.pid)


def test_a_file_is_no_mount_point(mailfs: Mailfs) -> None:
    mailfs.create()
    mailfs.mountpoint.write_text("mine")
    done = mailfs.command("mount", mailfs.mountpoint)
    assert done.returncode == EX_UNAVAILABLE
    assert str(mailfs.mountpoint) in done.stderr
    assert mailfs.mountpoint.read_text() == "mine"
    assert mailfs.pids() == []


def test_a_mount_over_the_folder_of_its_own_store_is_refused(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    done = mailfs.command("mount", mailfs.store.parent)
    assert done.returncode == EX_UNAVAILABLE
    assert "mount somewhere else" in done.stderr
    assert mailfs.pids() == []


def test_a_second_mount_at_the_same_place_is_refused_and_the_first_goes_on(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    done = mailfs.command("mount", mailfs.mountpoint)
    assert done.returncode == EX_UNAVAILABLE
    assert f"a mailfs is mounted at {mailfs.mountpoint} already" in done.stderr
    assert len(mailfs.pids()) == 1
    assert mailfs.only("inbox").exists()


def test_without_a_store_nothing_is_mounted_or_made(mailfs: Mailfs) -> None:
    done = mailfs.command("mount", mailfs.mountpoint)
    assert done.returncode == EX_NOINPUT
    assert "no mailfs store at" in done.stderr
    assert not mailfs.mountpoint.exists()
    mailfs.create()


def test_an_option_libfuse_does_not_know_is_an_error_with_a_message(mailfs: Mailfs) -> None:
    mailfs.create()
    done = mailfs.command("mount", "-o", "no_such_option", mailfs.mountpoint)
    assert done.returncode == EX_UNAVAILABLE
    assert "cannot mount at" in done.stderr
    assert mailfs.pids() == []
    assert not mailfs.is_mounted()
    mailfs.log.unlink()  # it says how this went wrong


def test_umount_of_what_is_not_mounted_is_an_error(mailfs: Mailfs) -> None:
    mailfs.create()
    done = mailfs.command("umount", mailfs.mountpoint)
    assert done.returncode == EX_UNAVAILABLE
    assert f"no mailfs is mounted at {mailfs.mountpoint}" in done.stderr


def test_names_that_mount_tables_escape_can_be_mounted_at(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    strange = mailfs.folder / "my mail, ünd\\more"
    assert mailfs.command("mount", strange).returncode == 0
    assert len(os.listdir(strange / "inbox/cur")) == 1
    assert mailfs.command("umount", strange).returncode == 0
    assert os.listdir(strange) == []


def test_a_store_can_be_mounted_in_two_places_and_both_show_a_change(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    second = mailfs.folder / "second"
    mailfs.say("mount", second)
    path = mailfs.only("inbox")
    assert os.listdir(second / "inbox/cur") == [path.name]
    path.rename(path.with_name(path.name + "S"))
    assert os.listdir(second / "inbox/cur") == [path.name + "S"]
    mailfs.say("umount", second)
    assert len(mailfs.pids()) == 1
    assert mailfs.only("inbox").name == path.name + "S"


# --- ending


@pytest.mark.parametrize("flags", [(), ("--no-drain",)], ids=["drained", "undrained"])
def test_umount_waits_for_the_daemon_to_end(mailfs: Mailfs, flags: tuple[str, ...]) -> None:
    mailfs.create(messages=1)
    mailfs.mount(*flags)
    mailfs.only("inbox").read_bytes()
    pid = mailfs.pid
    mailfs.umount()
    assert not is_alive(pid)
    assert_ended_cleanly(mailfs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("flags", [(), ("--no-drain",)], ids=["drained", "undrained"])
def test_a_signal_ends_a_mount_in_the_foreground_cleanly(
    mailfs: Mailfs, number: signal.Signals, flags: tuple[str, ...]
) -> None:
    mailfs.create(messages=1)
    process = mailfs.mount_in_foreground(*flags)
    mailfs.only("inbox").read_bytes()
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(GRACE_S * 2) == 0
    assert time.monotonic() - began < GRACE_S / 2
    assert_ended_cleanly(mailfs)


def test_fusermount_ends_the_daemon_too(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    process = mailfs.mount_in_foreground()
    mailfs.only("inbox").read_bytes()
    mailfs.account.output("fusermount3", "-u", mailfs.mountpoint)
    assert process.wait(GRACE_S) == 0
    assert_ended_cleanly(mailfs)


def test_a_signal_ends_a_mount_in_the_background(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    pid = mailfs.pid
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(pid), "the daemon's end")
    assert_ended_cleanly(mailfs)


# --- clients in the way


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A file whose daemon may be gone when it is closed: close(2) says so."""
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        with suppress(OSError):
            os.close(fd)


def test_umount_is_refused_while_a_client_has_a_file_open(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    with mailfs.only("inbox").open("rb") as file:
        done = mailfs.command("umount", mailfs.mountpoint)
        assert done.returncode == EX_UNAVAILABLE
        assert "is in use" in done.stderr
        assert file.read().startswith(b"From: ")
        assert mailfs.only("inbox").exists()
    mailfs.umount()
    assert_ended_cleanly(mailfs)


def test_a_lazy_umount_lets_the_client_read_to_the_end(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    pid = mailfs.pid
    with mailfs.only("inbox").open("rb") as file:
        mailfs.umount("-l")
        assert not mailfs.is_mounted()
        assert is_alive(pid)
        assert file.read().startswith(b"From: ")
    wait_until(lambda: not is_alive(pid), "the daemon's end")
    assert_ended_cleanly(mailfs)


@pytest.mark.slow
def test_a_signal_gives_clients_a_grace_and_no_more(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    process = mailfs.mount_in_foreground()
    with opened(mailfs.only("inbox")) as fd:
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not mailfs.is_mounted(), "the unmount")
        assert process.poll() is None
        assert os.read(fd, 100).startswith(b"From: ")
        assert process.wait(GRACE_S * 3) == 0
        assert GRACE_S * 0.8 < time.monotonic() - began < GRACE_S * 2
    assert_ended_cleanly(mailfs)


def test_a_second_signal_ends_at_once(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    process = mailfs.mount_in_foreground()
    with opened(mailfs.only("inbox")):
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not mailfs.is_mounted(), "the unmount")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(GRACE_S) == 0
        assert time.monotonic() - began < GRACE_S / 2
    assert_ended_cleanly(mailfs)


# --- crashes


def test_after_a_crash_the_mount_point_is_dead_never_empty_and_can_be_mounted_again(
    mailfs: Mailfs,
) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    path = mailfs.only("inbox")
    path.rename(path.with_name(path.name + "S"))
    before = os.stat(mailfs.path("inbox/cur")).st_mtime_ns
    pid = mailfs.pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the daemon's end")
    with pytest.raises(OSError, match=re.escape(str(mailfs.mountpoint))) as caught:
        os.listdir(mailfs.mountpoint)
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    mailfs.mount()
    assert mailfs.only("inbox").name == path.name + "S"
    assert os.stat(mailfs.path("inbox/cur")).st_mtime_ns > before
    mailfs.umount()
    assert mailfs.pids() == []
    assert_ended_cleanly(mailfs)


def test_a_dead_mount_can_be_unmounted(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    pid = mailfs.pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the daemon's end")
    mailfs.umount()
    assert not mailfs.is_mounted()
    assert os.listdir(mailfs.mountpoint) == []
    mailfs.mount()
    assert mailfs.only("inbox").exists()


# --- an idle daemon


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--no-drain",)], ids=["drained", "undrained"])
def test_an_idle_mount_uses_no_processor(mailfs: Mailfs, flags: tuple[str, ...]) -> None:
    mailfs.create(messages=20)
    mailfs.mount(*flags)
    for name in mailfs.names("all"):
        mailfs.path("all/cur", name).read_bytes()
    mailfs.status()
    before, began = cpu_seconds(mailfs.pid), time.monotonic()
    pause(2.0)
    used = cpu_seconds(mailfs.pid) - before
    assert used / (time.monotonic() - began) < 0.02


@pytest.fixture
def small_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_what_a_daemon_writes_is_private_whatever_the_umask(
    mailfs: Mailfs, small_umask: None
) -> None:
    mailfs.create()
    mailfs.mount()
    modes = {
        path.name: f"{path.stat().st_mode & 0o777:o}"
        for path in (mailfs.store, mailfs.log, *mailfs.store.glob("mounts"))
    }
    modes |= {"record": f"{next(mailfs.store.glob('mounts/*')).stat().st_mode & 0o777:o}"}
    assert modes == {"store": "700", "mount.log": "600", "mounts": "700", "record": "600"}
