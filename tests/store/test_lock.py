"""The writer lock, with real processes."""

import fcntl
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mailfs.errors import Busy, StoreError
from mailfs.store.feed import Feed
from mailfs.store.layout import Layout, new_layout, write_format
from mailfs.store.lock import WriterLock, describe_owner, locks_of_this_process, owner_or_none
from tests.mount.waiting import wait_until
from tests.store.peer import line_of, peer

# What is free must be had within this; what is not must be refused after much less.
FREE_S = 20.0


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = new_layout(tmp_path / "store")
    write_format(made)
    return made


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
        pytest.raises(Busy, match=r"another thread of this process is writing \(first\)"),
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


@contextmanager
def just_taken(layout: Layout) -> Iterator[None]:
    """As between taking the lock and saying so."""
    fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def test_the_owner_is_who_holds_it_and_nobody_once_it_is_let_go(layout: Layout) -> None:
    assert owner_or_none(layout.lock) is None
    with WriterLock(layout).hold("test", 0.0):
        owner = owner_or_none(layout.lock)
        assert owner is not None
        assert (owner.pid, owner.purpose) == (os.getpid(), "test")
        assert owner.command == Path("/proc/self/comm").read_text().strip()
    assert owner_or_none(layout.lock) is None


def test_who_held_it_before_is_not_taken_for_who_holds_it(layout: Layout) -> None:
    with WriterLock(layout).hold("former", 0.0):
        pass
    with just_taken(layout):
        owner = owner_or_none(layout.lock)
        assert owner is not None
        assert owner.purpose == ""
        assert "former" not in describe_owner(layout.lock)


def test_who_died_holding_it_is_not_taken_for_who_holds_it(layout: Layout) -> None:
    with peer("hold", layout.root, "dying") as holder:
        assert line_of(holder) == b"held\n"
        holder.kill()
        holder.wait(FREE_S)
        assert b"dying" in layout.lock.read_bytes()
        assert owner_or_none(layout.lock) is None
        with just_taken(layout):
            owner = owner_or_none(layout.lock)
            assert owner is not None
            assert owner.purpose == ""
            assert owner.pid in (os.getpid(), 0)  # 0 where the kernel's numbers are others


def test_another_process_with_the_number_of_a_dead_holder_is_not_the_holder(layout: Layout) -> None:
    lock = WriterLock(layout)
    with lock.hold("mine", 0.0):
        record = json.loads(layout.lock.read_bytes())
        layout.lock.write_text(json.dumps(record | {"started": record["started"] + 1}))
        assert "mine" not in describe_owner(layout.lock)


def test_a_process_that_is_stopped_while_it_is_the_next_is_named(layout: Layout) -> None:
    with peer("hold", layout.root, "first") as holder:
        assert line_of(holder) == b"held\n"
        with peer("hold", layout.root, "second") as waiter:
            wait_until(lambda: holds_gate(layout, waiter.pid), "the second to stand at the gate")
            waiter.send_signal(signal.SIGSTOP)
            assert holder.stdin is not None
            holder.stdin.close()
            holder.wait(FREE_S)
            with (
                pytest.raises(Busy, match=f"pid {waiter.pid} .*, which is the next to write"),
                WriterLock(layout).hold("third", 0.05),
            ):
                pass


def holds_gate(layout: Layout, pid: int) -> bool:
    ino = str(layout.root.stat().st_ino)
    lines = map(str.split, Path("/proc/locks").read_text().splitlines())
    return any(line[4] == str(pid) and line[5].split(":")[2] == ino for line in lines)


def test_asking_for_the_owner_looks_like_no_commit(layout: Layout) -> None:
    with WriterLock(layout).hold("test", 0.0):
        pass
    feed = Feed(layout)
    try:
        assert owner_or_none(layout.lock) is None
        assert select.select([feed.fileno()], [], [], 0)[0] == []
        with WriterLock(layout).hold("test", 0.0):
            pass
        assert select.select([feed.fileno()], [], [], 0)[0] == [feed.fileno()]
    finally:
        feed.close()


def test_what_is_held_and_who_waits_can_be_seen_from_another_thread(layout: Layout) -> None:
    lock = WriterLock(layout)
    assert lock in locks_of_this_process()

    def wait() -> None:
        with lock.hold("second", FREE_S):
            pass

    waiter = threading.Thread(target=wait)
    with lock.hold("first", 0.0):
        waiter.start()
        wait_until(lambda: lock.state().waiting, "a thread that waits")
        state = lock.state()
        assert [use.purpose for use in state.waiting] == ["second"]
        assert state.held is not None
        assert state.held.purpose == "first"
        assert state.held.for_s >= state.waiting[0].for_s >= 0
        assert (state.acquisitions, state.waits) == (1, 0)
    waiter.join(FREE_S)
    state = lock.state()
    assert (state.held, state.waiting) == (None, ())
    assert (state.acquisitions, state.waits, state.given_up) == (2, 1, 0)
    assert state.waited_s == state.longest_wait_s > 0


def test_who_waits_for_another_process_is_seen_and_counted(layout: Layout) -> None:
    lock = WriterLock(layout)
    with peer("hold", layout.root, "peer") as holder:
        assert line_of(holder) == b"held\n"
        with pytest.raises(Busy), lock.hold("a try", 0.0):
            pass
        assert (lock.state().waits, lock.state().given_up) == (0, 0)
        caught: list[str] = []

        def wait(purpose: str) -> None:
            with pytest.raises(Busy) as error, lock.hold(purpose, 0.2):
                pass
            caught.append(str(error.value))

        waiters = [threading.Thread(target=wait, args=(each,)) for each in ("one", "two")]
        for waiter in waiters:
            waiter.start()
        wait_until(lambda: len(lock.state().waiting) == 2, "two that wait")
        assert lock.state().held is None
        for waiter in waiters:
            waiter.join(FREE_S)
        assert (lock.state().waits, lock.state().given_up, lock.state().acquisitions) == (2, 2, 0)
        # The one that waits for the other says what that one waits for.
        assert all(f"pid {holder.pid} " in text for text in caught)


def test_a_shorter_owner_leaves_nothing_of_a_longer_one(layout: Layout) -> None:
    for purpose in ("a very long purpose " * 5, "short"):
        with WriterLock(layout).hold(purpose, 0.0):
            assert f", {purpose}, since " in describe_owner(layout.lock)


def test_a_link_in_the_place_of_the_lock_is_not_followed(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    layout.lock.symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError, match="symbolic links"), WriterLock(layout).hold("test", 0.0):
        pass
    assert (tmp_path / "precious").read_text() == "mine"
