"""Who waits: noted, with threads of their own and deadlines that count from the request."""

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from pyfuse3 import RequestContext

from mailfs.errors import Busy
from mailfs.fuse import requests as requests_module
from mailfs.fuse.drain import in_thread
from mailfs.fuse.requests import Requests
from tests.mount.waiting import DEADLINE_S


@pytest.fixture
def requests(tmp_path: Path) -> Requests:
    return Requests(in_thread, lambda: None, tmp_path / "lock")


def run(*tasks: Callable[[], Awaitable[None]]) -> None:
    """Tasks of an event loop, begun in this order."""

    async def all_of_them() -> None:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for task in tasks:
                    nursery.start_soon(task)
                    await trio.testing.wait_all_tasks_blocked()

    trio.run(all_of_them)


@contextmanager
def released_at_the_end() -> Iterator[threading.Event]:
    event = threading.Event()
    try:
        yield event
    finally:
        event.set()


def test_who_waits_is_noted_while_it_waits_and_is_itself_again_afterwards(
    requests: Requests,
) -> None:
    release = threading.Event()

    async def first() -> None:
        requests.name, requests.arguments = "rename", (1, b"x", RequestContext())
        await requests.blocking(release.wait, DEADLINE_S, what="a search")
        assert requests.name == "rename"
        assert len(requests.arguments) == 3

    async def second() -> None:
        assert (requests.name, requests.arguments) == ("", ())
        (waiting,) = requests.waiting
        assert (waiting.name, waiting.what, waiting.fh) == ("rename", "a search", None)
        requests.name, requests.arguments = "fsync", (7, True)
        release.set()
        await requests.sync(lambda: None)
        assert (requests.name, requests.arguments) == ("fsync", (7, True))

    run(first, second)
    assert requests.waiting == ()


def test_a_request_without_a_context_is_known_by_its_handle(requests: Requests) -> None:
    release = threading.Event()

    async def sync() -> None:
        requests.name, requests.arguments = "fsync", (7, True)
        await requests.sync(release.wait, DEADLINE_S)

    async def look() -> None:
        (waiting,) = requests.waiting
        assert (waiting.thread, waiting.fh, waiting.what) == (0, 7, "the disk")
        release.set()

    run(sync, look)


def test_a_change_that_gets_no_thread_in_time_is_refused_without_one(requests: Requests) -> None:
    """The others have the threads: the deadline counts all the same."""
    refused: list[str] = []
    with released_at_the_end() as release:

        async def long() -> None:
            await requests.commit(lambda left_s: release.wait(left_s), DEADLINE_S)

        async def short() -> None:
            with pytest.raises(Busy) as caught:
                await requests.commit(lambda left_s: None, 0.01)
            refused.append(str(caught.value))
            assert not release.is_set()
            release.set()

        run(*[long] * requests_module._COMMIT_THREADS, short)
    assert refused == [
        "other changes came first; the store is being written by another process; "
        "waited 0.01 s: try again"
    ]


def test_a_change_is_told_what_is_left_of_its_time(requests: Requests) -> None:
    left: list[float] = []

    async def change() -> None:
        await requests.commit(left.append, 60.0)

    run(change)
    assert 0 < left[0] <= 60.0


def test_changes_that_wait_take_no_thread_from_a_search(requests: Requests) -> None:
    with released_at_the_end() as release:
        found: list[int] = []

        async def change() -> None:
            await requests.commit(lambda left_s: release.wait(left_s), DEADLINE_S)

        async def search() -> None:
            found.append(await requests.blocking(lambda: 42))
            release.set()

        run(*[change] * 100, search)
    assert found == [42]


def test_more_changes_than_may_wait_are_refused_at_once(
    requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests_module, "MAX_COMMITS", 2)
    done: list[float] = []
    with released_at_the_end() as release:

        async def change() -> None:
            await requests.commit(lambda left_s: release.wait(left_s), DEADLINE_S)
            done.append(1)

        async def one_too_many() -> None:
            with pytest.raises(Busy, match="2 changes wait already"):
                await requests.commit(done.append, DEADLINE_S)
            release.set()

        run(change, change, one_too_many)
    assert done == [1, 1]


def test_an_error_of_a_change_is_its_own(requests: Requests) -> None:
    def fail(left_s: float) -> None:
        raise Busy("not now")

    async def change() -> None:
        with pytest.raises(Busy, match="not now"):
            await requests.commit(fail, DEADLINE_S)
        assert requests.waiting == ()

    run(change)


def test_waiting_for_another_request_lets_others_read_and_takes_no_thread(tmp_path: Path) -> None:
    woken: list[int] = []
    requests = Requests(in_thread, lambda: woken.append(1), tmp_path / "lock")

    async def wait() -> None:
        event = trio.Event()
        assert not await requests.until(event, 0.01)
        event.set()
        assert await requests.until(event, DEADLINE_S)

    run(wait)
    assert woken == [1, 1]
