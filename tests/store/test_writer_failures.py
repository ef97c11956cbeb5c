"""All of a transaction or nothing: exceptions, syncs that fail, full disks, interrupts."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mailfs.errors import StoreError, StoreFailing, StoreFull
from mailfs.ids import Docid, Keyword
from mailfs.message.keywords import SEEN
from mailfs.store import health, packs
from mailfs.store.rescue.verify import counts, verify
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from tests.fakes import Deliver, make_message, new_message
from tests.oracle import contents_of, count_of, problems_of


@pytest.fixture(autouse=True)
def no_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure the next write is tried at once; test_health.py has what is refused otherwise."""
    monkeypatch.setattr(health, "QUIET_S", 0.0)


def add(store: Store, *raws: bytes) -> list[Docid]:
    """Add messages in one transaction."""
    with store.writer.transaction("test", durable=True) as transaction:
        return [transaction.add(new_message(raw)).docid for raw in raws]


def modseq_of(store: Store) -> int:
    return store.index.state().modseq


def pack_bytes(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.layout.packs.iterdir()}


# --- all or nothing


@contextmanager
def taken_back(store: Store, *, durable: bool) -> Iterator[Transaction]:
    """A transaction whose block ends with an exception."""

    class Oops(Exception):
        pass

    try:
        with store.writer.transaction("test", durable=durable) as transaction:
            yield transaction
            raise Oops
    except Oops:
        return


def test_an_exception_takes_everything_back_packs_included(store: Store, deliver: Deliver) -> None:
    docid = deliver(keywords=["work"])
    before = (pack_bytes(store), modseq_of(store), store.index.summaries([docid]))
    with taken_back(store, durable=True) as transaction:
        transaction.add(new_message(make_message(77)))
        transaction.edit_flags(docid, SEEN, 0)
        transaction.edit_keywords(docid, add=[Keyword("new")], remove=[Keyword("work")])
        transaction.searches.save("mine", "from:ann")
        transaction.expunge(docid)
    assert (pack_bytes(store), modseq_of(store), store.index.summaries([docid])) == before
    assert "mine" not in [search.name for search in store.index.searches()]
    assert list(verify(store)) == []


def test_an_exception_in_the_very_first_transaction_leaves_no_pack(store: Store) -> None:
    with taken_back(store, durable=True) as transaction:
        transaction.add(new_message(make_message(1)))
    assert pack_bytes(store) == {}
    assert add(store, make_message(1)) == [1]


def test_an_exception_with_a_full_pack_before_it_keeps_that_pack(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", 100)
    add(store, make_message(1))
    with taken_back(store, durable=True) as transaction:
        transaction.add(new_message(make_message(2)))
    assert contents_of(store) == {1: make_message(1)}


def test_an_interrupt_that_comes_when_the_index_is_committed_takes_no_bytes_back(
    store: Store, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver()
    commit = Transaction.commit

    def interrupted(transaction: Transaction) -> None:
        commit(transaction)
        raise KeyboardInterrupt  # as Python does when SIGINT came during the commit

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            add(store, make_message(77))
    assert make_message(77) in contents_of(store).values()
    assert problems_of(store) == []


def test_transactions_across_several_packs_are_whole(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", 1000)
    raws = [make_message(number) for number in range(20)]
    docids = [*add(store, *raws[:10]), *add(store, *raws[10:])]
    assert contents_of(store) == dict(zip(docids, raws, strict=True))
    assert counts(store).packs == len(pack_bytes(store)) > 2


def test_a_keyword_made_in_a_transaction_that_was_taken_back_can_be_made_again(
    store: Store, deliver: Deliver
) -> None:
    docid = deliver()
    with taken_back(store, durable=False) as transaction:
        transaction.edit_keywords(docid, add=[Keyword("work")])
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.edit_keywords(docid, add=[Keyword("work")])
    assert store.index.summaries([docid])[0].keywords == ("work",)


# --- a sync that fails


def is_pack(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


def is_folder(fd: int) -> bool:
    return stat.S_ISDIR(os.fstat(fd).st_mode)


@pytest.mark.parametrize("fails", [is_pack, is_folder], ids=["the pack", "the folder of packs"])
@pytest.mark.parametrize("had_mail", [True, False], ids=["with mail", "new"])
@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.EIO, StoreFailing), (errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull)],
    ids=["EIO", "ENOSPC", "EDQUOT"],
)
def test_a_sync_that_fails_commits_nothing_and_harms_nothing(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[[int], bool],
    had_mail: bool,
    code: int,
    kind: type[StoreError],
) -> None:
    if had_mail:
        add(store, make_message(1))
        # So that the next message begins a pack, and its folder is synced.
        monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", 300)
    before = (contents_of(store), modseq_of(store), pack_bytes(store))
    fsync = os.fsync

    def failing(fd: int) -> None:
        if fails(fd):
            raise OSError(code, os.strerror(code))
        fsync(fd)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", failing)
        with pytest.raises(StoreError) as caught:
            add(store, make_message(2))
    assert type(caught.value) is kind
    assert os.strerror(code) in str(caught.value)
    assert (contents_of(store), modseq_of(store), pack_bytes(store)) == before
    assert list(verify(store)) == []
    add(store, make_message(2))
    assert make_message(2) in contents_of(store).values()


@pytest.mark.parametrize("had_mail", [True, False], ids=["with mail", "new"])
@pytest.mark.parametrize("room", [0, 100])
def test_a_full_disk_commits_nothing_and_harms_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, had_mail: bool, room: int
) -> None:
    if had_mail:
        add(store, make_message(1))
    before = (contents_of(store), modseq_of(store), pack_bytes(store))
    pwrite = os.pwrite

    def full(fd: int, data: bytes, position: int) -> int:
        if "/packs/" not in os.readlink(f"/proc/self/fd/{fd}"):
            return pwrite(fd, data, position)
        if position >= room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data[:10], position)  # a short write, as before the disk is full

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        with pytest.raises(StoreFull):
            add(store, make_message(2))
    assert (contents_of(store), modseq_of(store), pack_bytes(store)) == before
    add(store, make_message(2))


def test_a_short_write_is_gone_on_with(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr("os.pwrite", lambda fd, data, position: pwrite(fd, data[:7], position))
    (docid,) = add(store, make_message(1))
    assert store.load(docid) == make_message(1)


def test_a_pack_that_cannot_be_made_is_told_and_commits_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, make_message(1))
    monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", 600)
    open_file = os.open

    def full(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_EXCL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open_file(path, flags, mode)

    before = (contents_of(store), modseq_of(store), pack_bytes(store))
    with monkeypatch.context() as patch:
        patch.setattr("os.open", full)
        with pytest.raises(StoreFull):
            add(store, *(make_message(number) for number in range(2, 9)))
    assert (contents_of(store), modseq_of(store), pack_bytes(store)) == before


def test_no_descriptor_is_left_open_by_a_transaction_whatever_its_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, make_message(1))
    contents_of(store)
    before = sorted(os.listdir("/proc/self/fd"))
    add(store, make_message(2))
    with taken_back(store, durable=True) as transaction:
        transaction.add(new_message(make_message(3)))

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", failing)
        with pytest.raises(StoreError):
            add(store, make_message(4))
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_message_is_synced_before_the_index_names_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync
    seen: list[tuple[str, int]] = []

    def watched(fd: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{fd}")).name
        seen.append((name, count_of(store)))
        fsync(fd)

    monkeypatch.setattr("os.fsync", watched)
    add(store, make_message(1))
    # The folder that holds the pack's name, then the pack; the message is not there for others yet.
    assert seen == [("packs", 0), ("00000001.pack", 0)]
    assert count_of(store) == 1


def test_sync_makes_light_commits_survive_power_loss_too(
    store: Store, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    docid = deliver()
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.edit_flags(docid, SEEN, 0)
    synced: list[str] = []
    monkeypatch.setattr("os.fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    store.writer.sync()
    assert synced == [f"{store.layout.index}-wal"]


def test_a_durable_transaction_that_finds_all_in_place_promises_that_too(
    store: Store, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message made live again by a change that nobody had synced is delivered once more."""
    raw = make_message(7)
    docid = deliver(raw=raw)
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.expunge(docid)
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.undelete(docid)
    synced: list[str] = []
    monkeypatch.setattr("os.fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    with store.writer.transaction("test", durable=False):
        pass
    assert synced == []
    assert add(store, raw) == [docid]
    assert synced == [f"{store.layout.index}-wal"]

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.fsync", failing)
    with pytest.raises(StoreFailing):
        add(store, raw)


def test_sync_tells_of_a_failure(
    store: Store, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver()

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.fsync", failing)
    with pytest.raises(StoreError, match="cannot sync"):
        store.writer.sync()


def test_after_a_failed_sync_of_the_index_only_a_checkpoint_counts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (docid,) = add(store, make_message(1))
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.edit_flags(docid, SEEN, 0)

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", failing)
        with pytest.raises(StoreError, match="cannot sync"):
            store.writer.sync()
    wal = Path(f"{store.layout.index}-wal")
    before = store.layout.index.read_bytes()
    assert wal.stat().st_size > 0
    store.writer.sync()
    assert store.layout.index.read_bytes() != before, "what the WAL held is in the index itself"
    store.writer.sync()
    assert store.index.entry(docid).flags == SEEN
