"""A store in the words of a mail system's spool."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from mailfs.errors import BackPressure, Corrupt, DeadlinePassed, NoSuchMessage, Unhealthy
from mailfs.ids import Docid, Keyword
from mailfs.message.keywords import SEEN
from mailfs.store import lock
from mailfs.store.health import Health
from mailfs.store.lock import hold_for_writing
from mailfs.store.store import Store
from mailfs.store.upkeep.spool import LEFT_OVER_S, Cleaned, CorruptItem, Loaded, Spool, give_back
from tests.fakes import Deliver, make_message, new_message
from tests.oracle import contents_of, count_of


@pytest.fixture
def spool(store: Store) -> Spool:
    return Spool(store)


# --- store, load, remove


@pytest.mark.parametrize("force_sync", [True, False])
def test_what_is_stored_is_loaded_as_it_came(spool: Spool, store: Store, force_sync: bool) -> None:
    raw = make_message(1, body="\0\r\n" * 100)
    docid = spool.store(raw, force_sync=force_sync, keywords=[Keyword("inbox"), Keyword("$seen")])
    assert spool.load(docid) == raw
    assert store.index.summaries([docid])[0].keywords == ("inbox",)
    assert store.index.entry(docid).flags & SEEN


def test_the_same_bytes_are_one_message_that_comes_back_when_it_was_removed(
    spool: Spool, store: Store
) -> None:
    docid = spool.store(make_message(1), force_sync=True)
    assert spool.store(make_message(1), force_sync=True, keywords=[Keyword("work")]) == docid
    spool.remove(docid)
    assert count_of(store) == 0
    assert spool.store(make_message(1), force_sync=False) == docid
    assert count_of(store) == 1


def test_removing_what_is_not_there_is_told(spool: Spool) -> None:
    with pytest.raises(NoSuchMessage):
        spool.remove(Docid(7))


def test_force_sync_syncs_the_index_and_without_it_only_the_bytes_come_first(
    spool: Spool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.store(make_message(1), force_sync=True)
    synced: list[str] = []
    fsync = os.fsync

    def watched(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        fsync(fd)

    monkeypatch.setattr("os.fsync", watched)
    spool.store(make_message(2), force_sync=False)
    assert synced == ["00000001.pack"]
    store.writer.sync()
    assert synced == ["00000001.pack", "index.sqlite3-wal"]


# --- three errors


class Holder(threading.Thread):
    """Holds the writer lock in this process until told."""

    def __init__(self, store: Store) -> None:
        super().__init__(daemon=True)
        self._store = store
        self.is_held, self.let_go = threading.Event(), threading.Event()
        self.start()
        assert self.is_held.wait(10)

    def run(self) -> None:
        with self._store.writer.lock.hold("holding", 10.0):
            self.is_held.set()
            self.let_go.wait(10)


def test_the_callers_deadline_and_our_own_patience_are_told_apart(
    spool: Spool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "DEFAULT_DEADLINE_S", 0.02)
    holder = Holder(store)
    try:
        with pytest.raises(DeadlinePassed, match=r"\(holding\); waited 0 s"):
            spool.store(make_message(1), force_sync=True, deadline_s=0.01)
        with pytest.raises(BackPressure, match=r"\(holding\); waited 0 s"):
            spool.store(make_message(1), force_sync=True)
        with pytest.raises(DeadlinePassed):
            spool.remove(Docid(1), deadline_s=0.0)
    finally:
        holder.let_go.set()
        holder.join(10)
    assert spool.unhealthy_reason() is None


def test_an_unhealthy_store_refuses_and_says_why(
    spool: Spool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    docid = spool.store(make_message(1), force_sync=True)
    monkeypatch.setattr(Health, "reserve_bytes", 1 << 60)
    store.writer.health = Health(store.layout)
    with pytest.raises(Unhealthy) as caught:
        spool.store(make_message(2), force_sync=True)
    assert caught.value.errno == errno.ENOSPC
    assert "are free" in (spool.unhealthy_reason() or "")
    spool.remove(docid)


# --- enumerate


def test_all_live_messages_are_enumerated_by_docid(spool: Spool, deliver: Deliver) -> None:
    raws = {deliver(raw=make_message(number)): make_message(number) for number in range(1200)}
    spool.remove(Docid(3))
    del raws[Docid(3)]
    assert list(spool.enumerate()) == [Loaded(*each) for each in sorted(raws.items())]


def test_what_cannot_be_read_is_named_and_stops_nothing(tmp_path: Path) -> None:
    with Store.create(tmp_path / "damaged") as store:
        spool = Spool(store)
        docids = [spool.store(make_message(number), force_sync=False) for number in range(3)]
        where = store.index.location(docids[1])
        with store.layout.pack(where.pack).open("r+b") as file:
            file.seek(where.offset + where.stored - 5)
            file.write(b"\xff\xfe\xfd")
        first, bad, last = spool.enumerate()
        assert (first, last) == (
            Loaded(docids[0], make_message(0)),
            Loaded(docids[2], make_message(2)),
        )
        assert isinstance(bad, CorruptItem)
        assert (bad.docid, type(bad.error)) == (docids[1], Corrupt)


def test_what_is_removed_meanwhile_is_left_out(spool: Spool, deliver: Deliver) -> None:
    docids = [deliver() for _ in range(3)]
    found = spool.enumerate()
    next(found)
    spool.remove(docids[2])
    assert [each.docid for each in found] in ([docids[1]], docids[1:])


# --- cleanup


def make(path: Path) -> None:
    """A file of ten bytes, as a mount makes it."""
    before = os.umask(0o077)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"0123456789")
    os.umask(before)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = time.time() + LEFT_OVER_S + 60
    monkeypatch.setattr("mailfs.store.upkeep.spool.time.time", lambda: now_s)


@pytest.mark.usefixtures("later")
def test_old_files_of_deliveries_that_failed_are_removed(spool: Spool, store: Store) -> None:
    root = store.layout.root
    gone = [
        root / "spool/1/tmp/1.old",
        root / "spool/1/tmp/folder/2.old",
        root / "spool/tmpabc",
        root / "dump.new",
    ]
    for path in gone:
        make(path)
    assert spool.cleanup() == Cleaned(4, 40)
    assert not any(path.exists() for path in gone)
    assert spool.cleanup() == Cleaned(0, 0)


@pytest.mark.usefixtures("later")
def test_mail_on_its_way_side_cars_and_what_is_being_written_stay(
    spool: Spool, store: Store, tmp_path: Path
) -> None:
    root = store.layout.root
    (tmp_path / "precious").write_bytes(b"mine")
    kept = [
        root / "spool/1/cur/3.waiting",
        root / "spool/1/new/4.waiting",
        root / "spool/1/tmp/8.set-aside.half",
        root / "sidecar/1/dovecot.index",
        root / "spool/1/tmp/5.written",
    ]
    for path in kept:
        make(path)
    link = root / "spool/1/tmp/link"
    link.symlink_to(tmp_path / "precious")
    with kept[-1].open("rb") as file:
        hold_for_writing(file.fileno())
        assert spool.cleanup() == Cleaned(0, 0)
    assert all(path.exists() for path in kept)
    assert (tmp_path / "precious").read_bytes() == b"mine"
    link.unlink()


def test_young_files_stay(spool: Spool, store: Store) -> None:
    path = store.layout.root / "spool/1/tmp/young"
    make(path)
    os.utime(path, (0, 0))
    assert spool.cleanup() == Cleaned(0, 0)


# --- memory


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_that_only_makes_faster_is_given_back_and_counted(
    spool: Spool, store: Store
) -> None:
    with store.writer.transaction("test", durable=True) as transaction:
        for number in range(300):
            transaction.add(new_message(make_message(number, body=os.urandom(3000).hex())))
    contents_of(store)
    store.index.rows("SELECT count(*), sum(length(block)) FROM message_text_data")
    before = resident_bytes()
    freed = spool.advise_low_memory()
    give_back()
    assert freed > 1_000_000
    assert resident_bytes() < before - 500_000
    assert spool.advise_low_memory() < freed // 10
    assert len(contents_of(store)) == 300


def test_a_transaction_that_runs_is_left_alone(spool: Spool, store: Store) -> None:
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.add(new_message(make_message(1)))
        spool.advise_low_memory()
        transaction.add(new_message(make_message(2)))
    assert count_of(store) == 2
