"""The latch that sheds writes while the disk is full, read-only or failing, and the room that additions leave."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from mailfs.errors import (
    EX_TEMPFAIL,
    Busy,
    MailfsError,
    NoDescriptors,
    StoreError,
    StoreFailing,
    StoreFull,
    StoreReadOnly,
    Unhealthy,
    storage_error,
)
from mailfs.message.keywords import FLAGGED, SEEN
from mailfs.store.health import LONGEST_QUIET_S, QUIET_S, Health
from mailfs.store.layout import Layout
from mailfs.store.store import Store
from tests.fakes import Deliver, make_message, new_message
from tests.oracle import contents_of


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(tmp_path: Path, clock: Clock) -> Health:
    return Health(Layout(tmp_path, b"abc"), clock)


def fail(health: Health, error: StoreError, *, adds: bool = False) -> None:
    try:
        with health.watch() as attempt:
            if adds:
                health.admit(attempt, 0)
            raise error
    except type(error):
        return


def work(health: Health, *, adds: bool = False) -> None:
    with health.watch() as attempt:
        if adds:
            health.admit(attempt, 0)
        attempt.has_written = True


def assert_shed(health: Health, code: int, *, adds: bool = False) -> None:
    with pytest.raises(Unhealthy) as caught:
        work(health, adds=adds)
    assert (caught.value.errno, caught.value.exit_code) == (code, EX_TEMPFAIL)


# --- the latch


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (StoreFull("no room"), errno.ENOSPC, "the disk is full"),
        (StoreReadOnly("not now"), errno.EROFS, "the file system is read-only"),
        (StoreFailing("oops"), errno.EIO, "the disk fails"),
    ],
    ids=["full", "read-only", "failing"],
)
def test_a_failure_sheds_writes_until_it_has_been_quiet(
    health: Health, clock: Clock, error: StoreError, code: int, reason: str
) -> None:
    work(health)
    assert health.unhealthy_reason() is None
    fail(health, error)
    assert health.unhealthy_reason() == reason
    assert_shed(health, code)
    clock.now_s += QUIET_S - 0.1
    assert_shed(health, code)
    state = health.state()
    assert state.sheds == "changes"
    assert state.next_try_s == pytest.approx(0.1)
    clock.now_s += 0.2
    work(health)
    assert health.unhealthy_reason() is None
    work(health)


def test_each_failure_of_the_one_let_through_doubles_the_quiet_time_up_to_a_minute(
    health: Health, clock: Clock
) -> None:
    fail(health, StoreFailing("oops"))
    waited = []
    for _ in range(6):
        state = health.state()
        assert state.next_try_s is not None
        waited.append(state.next_try_s)
        clock.now_s += state.next_try_s
        fail(health, StoreFailing("oops"))
    assert waited == [QUIET_S, 10, 20, 40, LONGEST_QUIET_S, LONGEST_QUIET_S]
    clock.now_s += LONGEST_QUIET_S
    work(health)
    fail(health, StoreFailing("oops"))
    assert health.state().next_try_s == QUIET_S


def test_one_is_let_through_at_a_time(health: Health, clock: Clock) -> None:
    fail(health, StoreFull("no room"))
    clock.now_s += QUIET_S
    with health.watch() as attempt:
        assert_shed(health, errno.ENOSPC)
        attempt.has_written = True
    work(health)


def test_one_that_came_to_no_verdict_leaves_the_try_to_the_next(
    health: Health, clock: Clock
) -> None:
    fail(health, StoreFull("no room"))
    clock.now_s += QUIET_S
    with pytest.raises(Busy), health.watch():
        raise Busy("somebody writes")
    with health.watch():
        pass  # nothing was changed
    assert health.unhealthy_reason() == "the disk is full"
    work(health)
    assert health.unhealthy_reason() is None


@pytest.mark.parametrize(
    "error", [Busy("somebody writes"), NoDescriptors("too many"), StoreError("no")], ids=repr
)
def test_what_is_not_the_disks_trouble_sheds_nothing(health: Health, error: MailfsError) -> None:
    with suppress(MailfsError), health.watch():
        raise error
    work(health)
    assert health.unhealthy_reason() is None


def test_what_is_told_names_no_path(health: Health, tmp_path: Path) -> None:
    fail(health, StoreFull(f"no room for {tmp_path}/secret"))
    with pytest.raises(Unhealthy) as caught:
        work(health)
    for text in (str(caught.value), health.unhealthy_reason()):
        assert text is not None
        assert "/" not in text
        assert "secret" not in text


def test_the_same_is_said_each_time(health: Health, clock: Clock) -> None:
    """So that a log has it once."""
    fail(health, StoreFull("no room"))
    said = set()
    for _ in range(3):
        with pytest.raises(Unhealthy) as caught:
            work(health)
        said.add(str(caught.value))
        clock.now_s += 1
    assert len(said) == 1


# --- room


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A disk of 1 GB whose free room, in blocks of 1 kB, can be set; `asked` counts the system calls."""
    found = SimpleNamespace(
        f_bavail=1_000_000, f_frsize=1000, f_blocks=1_000_000, f_flag=0, asked=0
    )

    def statvfs(path: Path) -> SimpleNamespace:
        found.asked += 1
        return found

    monkeypatch.setattr(os, "statvfs", statvfs)
    return found


def test_below_the_reserve_additions_are_refused_and_changes_go_on(
    health: Health, clock: Clock, disk: SimpleNamespace
) -> None:
    work(health, adds=True)
    disk.f_bavail = 16_000  # 16 MB are less than 16 MiB
    clock.now_s += 2
    assert_shed(health, errno.ENOSPC, adds=True)
    work(health)
    assert health.unhealthy_reason() == "less than 16.8 MB of the disk are free"
    assert health.state().sheds == "additions"
    disk.f_bavail = 17_000
    clock.now_s += 2
    work(health, adds=True)
    assert health.unhealthy_reason() is None


def test_what_was_added_since_the_last_look_counts(
    health: Health, clock: Clock, disk: SimpleNamespace
) -> None:
    disk.f_bavail = 20_000
    with health.watch() as attempt:
        health.admit(attempt, 3_000_000)
        with pytest.raises(Unhealthy):
            health.admit(attempt, 3_000_000)


def test_room_is_looked_for_once_a_second(
    health: Health, clock: Clock, disk: SimpleNamespace
) -> None:
    for _ in range(1000):
        work(health, adds=True)
        health.free_bytes_or_none()
        health.unhealthy_reason()
        clock.now_s += 0.01
    assert 10 <= disk.asked <= 12


def test_a_small_disk_keeps_a_sixteenth_free(health: Health, disk: SimpleNamespace) -> None:
    disk.f_blocks = 32_000
    disk.f_bavail = 2_100
    work(health, adds=True)
    assert health.reserve_bytes == 2_000_000


def test_a_disk_that_does_not_say_what_is_free_is_written(
    health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path) -> None:
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(os, "statvfs", failing)
    work(health, adds=True)
    assert (health.unhealthy_reason(), health.state().free_bytes) == (None, -1)


def test_an_addition_that_found_no_room_sheds_additions_alone(
    health: Health, disk: SimpleNamespace, clock: Clock
) -> None:
    """A quota: statvfs(3) says nothing of it."""
    quota = StoreFull("quota")
    quota.__cause__ = OSError(errno.EDQUOT, "quota")
    fail(health, quota, adds=True)
    assert_shed(health, errno.ENOSPC, adds=True)
    work(health)
    assert health.state().sheds == "additions"
    clock.now_s += QUIET_S
    work(health, adds=True)
    assert health.unhealthy_reason() is None


def test_one_message_that_was_too_large_keeps_no_other_out(
    health: Health, disk: SimpleNamespace
) -> None:
    try:
        raise storage_error(OSError(errno.ENOSPC, "full"), "cannot write") from OSError(
            errno.ENOSPC, "full"
        )
    except StoreError as error:
        fail(health, error, adds=True)
    work(health, adds=True)


# --- a store


@pytest.fixture
def failing_writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The errno writes to packs end with, while there is one; and how many were tried."""
    pwrite = os.pwrite
    state = [0, 0]

    def write(fd: int, data: bytes, position: int) -> int:
        if "/packs/" in os.readlink(f"/proc/self/fd/{fd}"):
            state[1] += 1
            if state[0]:
                raise OSError(state[0], os.strerror(state[0]))
        return pwrite(fd, data, position)

    monkeypatch.setattr("os.pwrite", write)
    return state


def add(store: Store, number: int) -> None:
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.add(new_message(make_message(number)))


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.EIO, StoreFailing), (errno.EROFS, StoreReadOnly)]
)
def test_a_store_that_could_not_be_written_is_not_tried_again_at_once_and_is_read(
    store: Store, deliver: Deliver, failing_writes: list[int], code: int, kind: type[StoreError]
) -> None:
    docid = deliver()
    clock = Clock()
    store.writer.health = Health(store.layout, clock)
    failing_writes[:] = [code, 0]
    with pytest.raises(kind):
        add(store, 77)
    assert failing_writes[1] == 1
    for _ in range(10):
        with pytest.raises(Unhealthy) as caught:
            add(store, 77)
        assert caught.value.errno == code
    assert failing_writes[1] == 1
    assert store.load(docid)
    failing_writes[0] = 0
    clock.now_s += QUIET_S
    add(store, 77)
    assert make_message(77) in contents_of(store).values()


def test_flags_are_changed_and_messages_removed_while_nothing_can_be_added(
    store: Store, deliver: Deliver, disk: SimpleNamespace
) -> None:
    docid, removed = deliver(), deliver()
    disk.f_bavail = 0
    store.writer.health = Health(store.layout)
    with pytest.raises(Unhealthy, match="removed"):
        add(store, 77)
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.edit_flags(docid, SEEN | FLAGGED, 0)
        transaction.expunge(removed)
    assert store.index.entry(docid).flags & SEEN
    store.writer.sync()
    assert len(contents_of(store)) == 1


def test_bytes_that_are_known_need_no_room(
    store: Store, deliver: Deliver, disk: SimpleNamespace
) -> None:
    deliver(raw=make_message(1))
    disk.f_bavail = 0
    store.writer.health = Health(store.layout)
    add(store, 1)


def test_the_reserve_is_that_of_the_configuration(store: Store, disk: SimpleNamespace) -> None:
    (store.layout.root / "config").write_text("[store]\nreserve = 50\n")
    assert Health(store.layout).reserve_bytes == 50 << 20


def test_a_slip_in_the_configuration_keeps_no_mail_out(store: Store, deliver: Deliver) -> None:
    config = store.layout.root / "config"
    config.write_text("[store]\nreserved = 50\n")
    store.writer.health = Health(store.layout)
    assert deliver()
    config.unlink()
