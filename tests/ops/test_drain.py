"""The drained loop: what it leans on in pyfuse3, when it gives way, and that it ends."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyfuse3
import pytest
import trio

from mailfs.fuse.drain import BURST, Drain

SOURCES = Path(pyfuse3.__file__).parent
DEADLINE_S = 10.0


@pytest.fixture
def drain() -> Iterator[Drain]:
    real = vars(pyfuse3)["trio"]
    made = Drain()
    made.enable()
    yield made
    vars(pyfuse3)["trio"] = real


@pytest.fixture
def stand_in(drain: Drain) -> SimpleNamespace:
    """What pyfuse3 finds under the name `trio` now."""
    found = vars(pyfuse3)["trio"]
    assert isinstance(found, SimpleNamespace)
    return found


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def resolve(root: object, path: str) -> object:
    for part in path.split("."):
        root = getattr(root, part)
    return root


def names_pyfuse3_uses() -> set[str]:
    sources = [SOURCES / "__init__.pyx", SOURCES / "internal.pxi", SOURCES / "handlers.pxi"]
    if not all(path.is_file() for path in sources):
        pytest.skip("pyfuse3 is installed without its sources")
    text = "".join(path.read_text() for path in sources)
    code = re.sub(r"'''.*?'''|\"\"\".*?\"\"\"|#[^\n]*", "", text, flags=re.DOTALL)
    return set(re.findall(r"\btrio\.((?:lowlevel\.|from_thread\.)?\w+)", code))


def test_pyfuse3_looks_trio_up_as_a_module_global() -> None:
    assert vars(pyfuse3)["trio"] is trio
    assert callable(vars(pyfuse3)["_session_loop"])


def test_pyfuse3_uses_of_trio_what_we_have_seen_and_the_stand_in_has_it_all(
    stand_in: SimpleNamespace,
) -> None:
    used = names_pyfuse3_uses()
    assert used == {
        "ClosedResourceError",
        "Lock",
        "lowlevel.current_task",
        "lowlevel.current_trio_token",
        "lowlevel.notify_closing",
        "lowlevel.wait_readable",
        "open_nursery",
    }
    for name in used:
        assert resolve(stand_in, name) is not None
        assert callable(resolve(trio, name))


def test_pyfuse3_waits_for_the_descriptor_inside_the_lock() -> None:
    """ReaderLock and wait_readable lean on each other in this order."""
    text = (SOURCES / "internal.pxi").read_text() if names_pyfuse3_uses() else ""
    body = text[text.index("async def _wait_fuse_readable") : text.index("async def _session_loop")]
    order = [
        "trio.Lock()",
        "async with worker_data.read_lock",
        "fuse_session_exited(session)",
        "await trio.lowlevel.wait_readable(session_fd)",
        "except trio.ClosedResourceError",
    ]
    places = [body.find(each) for each in order]
    assert -1 not in places
    assert places == sorted(places)


class Others:
    """Counts how often another task of the loop gets its turn."""

    def __init__(self) -> None:
        self.turns = 0

    async def run(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            self.turns += 1


def test_a_ready_descriptor_is_taken_without_the_loop_but_not_for_ever(
    stand_in: SimpleNamespace, pipe: tuple[int, int]
) -> None:
    reading, writing = pipe
    os.write(writing, b"x")
    others = Others()
    turns: list[int] = []

    async def serve() -> None:
        lock = stand_in.Lock()
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(others.run)
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                for _ in range(BURST * 3 + 3):
                    before = others.turns
                    async with lock:
                        await stand_in.lowlevel.wait_readable(reading)
                    turns.append(others.turns - before)
                nursery.cancel_scope.cancel()

    trio.run(serve)
    assert turns[:BURST] == [0] * BURST
    # One pass of the loop for each burst; in a pass the loop runs its tasks in any order.
    assert 2 <= sum(turns) <= 6


def test_an_idle_descriptor_is_slept_on(stand_in: SimpleNamespace, pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    others = Others()

    async def serve() -> None:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(others.run)
                nursery.start_soon(write_later)
                await stand_in.lowlevel.wait_readable(reading)
                nursery.cancel_scope.cancel()

    async def write_later() -> None:
        while others.turns < 100:
            await trio.lowlevel.checkpoint()
        os.write(writing, b"x")

    trio.run(serve)
    assert others.turns >= 100


def test_the_next_reader_is_woken_when_a_handler_is_about_to_wait(
    drain: Drain, stand_in: SimpleNamespace
) -> None:
    """Two workers: the second parks at the lock, and reads while the first waits for a thread."""
    told: list[str] = []

    async def serve() -> None:
        lock = stand_in.Lock()
        release = trio.Event()

        async def second() -> None:
            async with lock:
                told.append("second reads")
            release.set()

        async def wait_for_second() -> None:
            await release.wait()

        def slow() -> None:
            trio.from_thread.run(wait_for_second)
            told.append("first is done")

        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                async with lock:
                    nursery.start_soon(second)
                    await trio.testing.wait_all_tasks_blocked()
                assert told == []
                await drain.blocking(slow)

    trio.run(serve)
    assert told == ["second reads", "first is done"]


def test_the_lock_is_not_handed_over_when_it_is_let_go(stand_in: SimpleNamespace) -> None:
    told: list[str] = []

    async def serve() -> None:
        lock = stand_in.Lock()

        async def second() -> None:
            async with lock:
                told.append("second")

        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                async with lock:
                    nursery.start_soon(second)
                    await trio.testing.wait_all_tasks_blocked()
                async with lock:
                    await trio.testing.wait_all_tasks_blocked()
                    told.append("first again")
                nursery.cancel_scope.cancel()

    trio.run(serve)
    assert told == ["first again"]


def test_closing_wakes_every_parked_worker(
    stand_in: SimpleNamespace, pipe: tuple[int, int]
) -> None:
    reading, _ = pipe
    left: list[int] = []

    async def worker(lock: object, number: int) -> None:
        async with lock:  # type: ignore[attr-defined]  # made by the stand-in
            if not left:
                with contextlib.suppress(trio.ClosedResourceError):
                    await stand_in.lowlevel.wait_readable(reading)
        left.append(number)

    async def serve() -> None:
        lock = stand_in.Lock()
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(worker, lock, number)
                await trio.testing.wait_all_tasks_blocked()
                assert left == []
                stand_in.lowlevel.notify_closing(reading)

    trio.run(serve)
    assert sorted(left) == [0, 1, 2, 3, 4]
