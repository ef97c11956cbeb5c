"""The feed: who follows a store hears every write transaction of whatever process, and nothing else."""

import os
import select
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mailfs.errors import StoreError
from mailfs.ids import Keyword
from mailfs.store.feed import Feed
from mailfs.store.layout import Layout
from mailfs.store.store import Store
from tests.fakes import PROJECT, Deliver, RunMailfs, make_message
from tests.store.peer import line_of, peer

DEADLINE_MS = 10_000
# Opens the inotify descriptors a user may have, until there are no more, and then a feed.
_EXHAUST = """
import ctypes, resource, sys
from pathlib import Path
from mailfs.errors import StoreError
from mailfs.store.feed import Feed
from mailfs.store.layout import open_layout
layout = open_layout(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
libc = ctypes.CDLL(None)
while libc.inotify_init1(0) >= 0:
    pass
try:
    Feed(layout)
except StoreError as error:
    print(error)
"""


@pytest.fixture
def feed(store: Store) -> Iterator[Feed]:
    made = Feed(store.layout)
    assert not made.take()
    yield made
    made.close()


def is_heard(feed: Feed) -> bool:
    """Whether something comes within the deadline. The feed itself never waits."""
    poll = select.poll()
    poll.register(feed.fileno(), select.POLLIN)
    return bool(poll.poll(DEADLINE_MS)) and feed.take()


def test_a_write_transaction_is_heard_once_however_much_it_changed(
    store: Store, feed: Feed, deliver: Deliver
) -> None:
    docid = deliver()
    assert is_heard(feed)
    assert not feed.take()
    for word in ("one", "two", "three"):
        with store.writer.transaction("test", durable=False) as transaction:
            transaction.edit_keywords(docid, [Keyword(word)])
    assert is_heard(feed)
    assert not feed.take()


def test_reading_is_not_heard(store: Store, feed: Feed, deliver: Deliver) -> None:
    docid = deliver()
    assert is_heard(feed)
    with Store.open(store.layout.root) as other:
        assert other.load(docid)
        assert other.index.state() == store.index.state()
        other.writer.lock.owner_or_none()
    assert not feed.take()


def test_what_is_heard_has_been_committed(store: Store, feed: Feed, deliver: Deliver) -> None:
    before = store.index.state().modseq
    docid = deliver()
    assert is_heard(feed)
    assert [row.docid for row in store.index.changes_since(before)] == [docid]


def test_nothing_is_heard_while_a_transaction_goes_on(store: Store, feed: Feed) -> None:
    with store.writer.transaction("test", durable=False):
        assert not feed.take()
    assert is_heard(feed)


def test_a_command_in_another_process_is_heard(
    store: Store, feed: Feed, run_mailfs: RunMailfs
) -> None:
    done = run_mailfs("deliver", store=store.layout.root, input=make_message(1).decode())
    assert done.returncode == 0, done.stderr
    assert is_heard(feed)


def test_a_writer_that_is_killed_is_heard(store: Store, feed: Feed) -> None:
    """What it had committed before must not wait for the next writer to be seen."""
    with peer("hold", store.layout.root, "killed") as process:
        assert line_of(process) == b"held\n"
        feed.take()
        process.kill()
        process.wait()
        assert is_heard(feed)


def test_every_feed_on_a_store_hears(store: Store, feed: Feed, deliver: Deliver) -> None:
    second = Feed(store.layout)
    try:
        deliver()
        assert is_heard(feed)
        assert is_heard(second)
    finally:
        second.close()


def test_a_lock_file_that_was_removed_is_watched_anew(
    store: Store, feed: Feed, deliver: Deliver
) -> None:
    deliver()
    assert is_heard(feed)
    store.layout.lock.unlink()
    assert is_heard(feed)
    assert not feed.take()
    deliver()
    assert is_heard(feed)


def test_many_transactions_nobody_took_notice_of_are_one(store: Store, feed: Feed) -> None:
    """More than the queue's 16,384 events would be no loss either: IN_Q_OVERFLOW is heard as well."""
    for _ in range(200):
        with store.writer.transaction("test", durable=False):
            pass
    assert feed.take()
    assert not feed.take()


def test_a_store_without_a_lock_file_can_be_followed(layout: Layout) -> None:
    layout.lock.unlink(missing_ok=True)
    feed = Feed(layout)
    try:
        assert layout.lock.stat().st_mode & 0o777 == 0o600
        assert not feed.take()
    finally:
        feed.close()


@pytest.fixture
def layout(store: Store) -> Layout:
    return store.layout


def test_what_keeps_a_feed_from_being_made_is_said_and_nothing_stays_open(
    layout: Layout,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _EXHAUST, layout.root],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        timeout=60,
        check=False,
    )
    assert done.stdout == f"cannot watch {layout.root}: Too many open files\n", done.stderr
    layout.lock.unlink(missing_ok=True)
    layout.lock.mkdir()
    before = os.listdir("/proc/self/fd")
    try:
        with pytest.raises(StoreError, match="Is a directory"):
            Feed(layout)
    finally:
        layout.lock.rmdir()
    assert os.listdir("/proc/self/fd") == before


def test_a_lock_file_that_cannot_be_made_anew_is_an_error_with_its_path(layout: Layout) -> None:
    feed = Feed(layout)
    away = layout.root.with_name("away")
    try:
        layout.root.rename(away)
        (away / "lock").unlink()
        with pytest.raises(StoreError, match=f"cannot watch {layout.lock}"):
            feed.take()
    finally:
        away.rename(layout.root)
        feed.close()
