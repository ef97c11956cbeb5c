"""The writer lock, with real processes."""

import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mailfs.errors import Busy
from mailfs.store.layout import Layout, new_layout, write_format
from mailfs.store.lock import WriterLock, describe_owner
from tests.fakes import PROJECT

# What is free must be had within this; what is not must be refused after much less.
FREE_S = 20.0


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = new_layout(tmp_path / "store")
    write_format(made)
    return made


@contextmanager
def peer(role: str, *arguments: str | Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of tests/store/peer.py; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.store.peer", role, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=PROJECT,
    )
    with process:
        yield process
        process.kill()


def line_of(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def is_free(layout: Layout) -> bool:
    fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def test_it_is_held_inside_the_block_and_free_behind_it(layout: Layout) -> None:
    with WriterLock(layout).hold("test", 0.0):
        assert not is_free(layout)
    assert is_free(layout)


def test_it_is_free_after_an_exception(layout: Layout) -> None:
    lock = WriterLock(layout)
    with pytest.raises(RuntimeError), lock.hold("test", 0.0):
        raise RuntimeError
    assert is_free(layout)
    with lock.hold("again", 0.0):
        pass


def test_busy_names_the_holder_and_what_it_does(layout: Layout) -> None:
    with peer("hold", layout.root, "reading the paper") as holder:
        assert line_of(holder) == b"held\n"
        with pytest.raises(Busy) as caught, WriterLock(layout).hold("test", 0.0):
            pass
        text = str(caught.value)
        assert f"pid {holder.pid} " in text
        assert "reading the paper" in text
        assert time.strftime("%Y-") in text


def test_the_deadline_is_kept_and_not_much_more(layout: Layout) -> None:
    deadline_s = 0.2
    with peer("hold", layout.root, "test") as holder:
        assert line_of(holder) == b"held\n"
        began = time.monotonic()
        with pytest.raises(Busy, match=r"waited 0\.2 s"), WriterLock(layout).hold("t", deadline_s):
            pass
        assert 1.0 <= (time.monotonic() - began) / deadline_s < 4.0


def test_a_waiter_gets_it_when_the_holder_lets_go(layout: Layout) -> None:
    with peer("hold", layout.root, "test") as holder:
        assert line_of(holder) == b"held\n"
        got = threading.Event()

        def wait() -> None:
            with WriterLock(layout).hold("waiter", FREE_S):
                got.set()

        waiter = threading.Thread(target=wait)
        waiter.start()
        assert not got.is_set()
        assert holder.stdin is not None
        holder.stdin.close()
        waiter.join(FREE_S)
        assert got.is_set()


def test_sigkill_of_the_holder_frees_it(layout: Layout) -> None:
    with peer("hold", layout.root, "test") as holder:
        assert line_of(holder) == b"held\n"
        assert not is_free(layout)
        holder.send_signal(signal.SIGKILL)
        with WriterLock(layout).hold("heir", FREE_S):
            pass


def test_a_child_forked_while_it_was_held_does_not_keep_it(layout: Layout) -> None:
    child_waits, parent_ends = os.pipe()
    with WriterLock(layout).hold("parent", 0.0):
        child = os.fork()
        if child == 0:
            os.close(parent_ends)
            os.read(child_waits, 1)
            os._exit(0)
        assert not is_free(layout)
    try:
        assert is_free(layout)
    finally:
        os.close(parent_ends)
        os.close(child_waits)
        os.waitpid(child, 0)


def test_threads_of_one_process_wait_for_each_other(layout: Layout) -> None:
    lock = WriterLock(layout)
    with (
        lock.hold("first", 0.0),
        pytest.raises(Busy, match="another thread"),
        lock.hold("second", 0.05),
    ):
        pass


def test_many_threads_never_hold_it_together(layout: Layout) -> None:
    locks = [WriterLock(layout) for _ in range(2)]
    inside = 0
    most = 0

    def work(lock: WriterLock) -> None:
        nonlocal inside, most
        for _ in range(10):
            with lock.hold("thread", FREE_S):
                inside += 1
                most = max(most, inside)
                select.select([], [], [], 0.0005)
                inside -= 1

    threads = [threading.Thread(target=work, args=(lock,)) for lock in locks * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(FREE_S)
    assert (inside, most) == (0, 1)


def slices_waiting(process: "subprocess.Popen[bytes]") -> int:
    """How many slices the bulk writer has told of since this was asked last."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    ready, _, _ = select.select([fd], [], [], 0)
    return os.read(fd, 65536).count(b"\n") if ready else 0


def test_a_waiter_gets_it_between_two_slices_of_a_bulk_writer(layout: Layout) -> None:
    lock = WriterLock(layout)
    with peer("slices", layout.root) as bulk:
        waited_for = []
        for _ in range(15):
            assert bulk.stdout is not None
            # It is at work: the next slice has been begun.
            assert os.read(bulk.stdout.fileno(), 65536)
            slices_waiting(bulk)
            with lock.hold("short", FREE_S):
                waited_for.append(slices_waiting(bulk))
        # The slice that was going on, and one more where the bulk writer was at the gate first.
        assert max(waited_for) <= 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"pid": 1'])
def test_a_lock_file_that_cannot_be_read_has_an_unknown_owner(
    layout: Layout, content: bytes
) -> None:
    layout.lock.write_bytes(content)
    assert describe_owner(layout.lock) == "another process"


def test_a_shorter_owner_leaves_nothing_of_a_longer_one(layout: Layout) -> None:
    for purpose in ("a very long purpose " * 5, "short"):
        with WriterLock(layout).hold(purpose, 0.0):
            assert f", {purpose}, since " in describe_owner(layout.lock)


def test_a_link_in_the_place_of_the_lock_is_not_followed(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    layout.lock.symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"), WriterLock(layout).hold("test", 0.0):
        pass
    assert (tmp_path / "precious").read_text() == "mine"
