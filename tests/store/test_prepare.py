"""Messages made ready for the store: the same from bytes and from a file, and large ones in little memory."""

import errno
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailfs.errors import StoreError, StoreFull
from mailfs.ids import Docid, Keyword, PackNumber
from mailfs.message.keywords import ATTACHMENT, SEEN
from mailfs.store import packs
from mailfs.store.adding import Outcome
from mailfs.store.prepare import PARSED_BYTES, NewMessage, prepare_file, prepare_message
from mailfs.store.records import FRAME_BYTES, blob_hash, no_dictionary
from mailfs.store.store import Store
from mailfs.store.unpacked import FileRecord, MemoryRecord
from tests.fakes import PROJECT, make_message
from tests.oracle import count_of, docids_of, problems_of

MIB = 1024 * 1024
WHEN_NS = 1_600_000_000 * 10**9
ALLOWED_BYTES = 64 * MIB
LARGE_BYTES = 100 * MIB


def large_message(size: int, body: bytes = b"", number: int = 1) -> bytes:
    """A message of exactly this size that does not compress well; `body` is where the body begins."""
    head = make_message(number, subject="apples", body="") + body
    filling = random.Random(size).randbytes(size // 2 + 1).hex().encode()
    return (head + b"\n".join(filling[at : at + 76] for at in range(0, size, 76)))[:size]


@pytest.fixture
def spooled(tmp_path: Path) -> Iterator[Callable[[bytes], int]]:
    """An open file with these bytes."""
    fds: list[int] = []

    def spool(raw: bytes) -> int:
        path = tmp_path / f"message{len(fds)}"
        path.write_bytes(raw)
        fds.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        return fds[-1]

    yield spool
    for fd in fds:
        os.close(fd)


Spool = Callable[[bytes], int]


def prepared(store: Store, fd: int, size: int) -> NewMessage:
    return prepare_file(fd, size, SEEN, (Keyword("work"),), WHEN_NS, store.layout)


def add(store: Store, new: NewMessage) -> tuple[Docid, Outcome]:
    with store.writer.transaction("test", durable=True) as transaction:
        return transaction.add(new)


def record_of(new: NewMessage) -> bytes:
    return b"".join(new.record.chunks())


# --- the same from bytes and from a file


@pytest.mark.parametrize(
    "size",
    [
        0,
        1,
        FRAME_BYTES,
        4 * MIB,
        4 * MIB + 1,
        5 * MIB,
        5 * MIB + FRAME_BYTES // 3,
        PARSED_BYTES,
        PARSED_BYTES + 1,
    ],
)
def test_a_file_gives_the_same_as_its_bytes(store: Store, spooled: Spool, size: int) -> None:
    raw = large_message(size)
    of_file = prepared(store, spooled(raw), size)
    of_bytes = prepare_message(raw, SEEN, (Keyword("work"),), WHEN_NS)
    assert isinstance(of_file.record, FileRecord if size > 4 * MIB else MemoryRecord)
    assert record_of(of_file) == record_of(of_bytes)
    assert of_file.record.stored == of_bytes.record.stored == len(record_of(of_bytes))
    for name in ("digest", "size", "parsed", "flags", "keywords", "received_ns"):
        assert getattr(of_file, name) == getattr(of_bytes, name), name
    for new in (of_file, of_bytes):
        pieces = list(new.record.raw_pieces(no_dictionary))
        assert b"".join(pieces) == raw
        assert [len(piece) for piece in pieces[:-1]] == [FRAME_BYTES] * (len(pieces) - 1)


def test_words_are_looked_for_in_the_first_8_mib_only(store: Store, spooled: Spool) -> None:
    filling = (b"x" * 75 + b"\n") * (PARSED_BYTES // 76)
    raw = make_message(1, subject="apples", body="") + filling + b"\npears\n"
    for new in (
        prepare_message(raw, 0, (), WHEN_NS),
        prepared(store, spooled(raw), len(raw)),
    ):
        assert new.parsed.is_partial
        add(store, new)
        assert count_of(store, "subject:apples") == 1
        assert count_of(store, "pears") == 0
    before = make_message(2, body="pears") + filling
    add(store, prepared(store, spooled(before), len(before)))
    assert docids_of(store, "pears") == [Docid(2)]


def test_an_attachment_of_a_large_file_is_noticed(store: Store, spooled: Spool) -> None:
    raw = large_message(5 * MIB).replace(
        b"\n\n", b'\nContent-Disposition: attachment; filename="a.pdf"\n\n', 1
    )
    assert prepared(store, spooled(raw), len(raw)).flags == SEEN | ATTACHMENT


def test_without_a_time_a_file_counts_as_received_at_its_date(store: Store, spooled: Spool) -> None:
    raw = large_message(5 * MIB)
    new = prepare_file(spooled(raw), len(raw), 0, (), None, store.layout)
    assert new.received_ns == prepare_message(raw, 0, (), None).received_ns == 1_704_164_645 * 10**9


def test_a_message_made_ready_from_bytes_can_be_sent_to_another_process() -> None:
    new = prepare_message(make_message(1), SEEN, (Keyword("work"),), WHEN_NS)
    assert pickle.loads(pickle.dumps(new)) == new


# --- in the store


def test_a_large_file_is_stored_and_read_back_byte_for_byte(store: Store, spooled: Spool) -> None:
    raw = large_message(9 * MIB)
    docid, outcome = add(store, prepared(store, spooled(raw), len(raw)))
    assert outcome is Outcome.ADDED
    assert store.load(docid) == raw
    assert b"".join(store.packs.raw_pieces(store.index.location(docid))) == raw
    chain = store.packs.chain_or_none(store.index.location(docid))
    assert chain is not None
    assert chain.frame(7) == raw[7 * FRAME_BYTES : 8 * FRAME_BYTES]
    assert store.index.entry(docid).size == len(raw)


def test_large_messages_are_stored_once_whichever_way_they_come(
    store: Store, spooled: Spool
) -> None:
    raw = large_message(5 * MIB)
    docid, _ = add(store, prepared(store, spooled(raw), len(raw)))
    before = store.layout.pack(PackNumber(1)).stat().st_size
    assert add(store, prepare_message(raw, 0, (), None)) == (docid, Outcome.KNOWN)
    assert add(store, prepared(store, spooled(raw), len(raw))) == (docid, Outcome.KNOWN)
    assert store.layout.pack(PackNumber(1)).stat().st_size == before


@pytest.mark.parametrize("place", [100, FRAME_BYTES * 3 + 5, -1])
def test_large_messages_of_one_hash_that_differ_in_a_byte_are_two(
    store: Store, spooled: Spool, place: int
) -> None:
    raw = large_message(5 * MIB)
    other = bytearray(raw)
    other[place] ^= 1
    first = prepared(store, spooled(raw), len(raw))
    second = prepared(store, spooled(bytes(other)), len(raw))
    docid, _ = add(store, first)
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.rows("UPDATE blob SET hash = ?", (second.digest,))
        added = transaction.add(second)
        transaction.rows("UPDATE blob SET hash = ? WHERE blob_id = 1", (first.digest,))
    assert added.outcome is Outcome.ADDED
    assert added.docid != docid
    assert store.load(added.docid) == bytes(other)


def test_a_large_copy_whose_bytes_are_damaged_is_mended_by_a_second_one(
    tmp_path: Path, spooled: Spool
) -> None:
    raw = large_message(5 * MIB)
    with Store.create(tmp_path / "store") as store:
        docid, _ = add(store, prepared(store, spooled(raw), len(raw)))
        where = store.index.location(docid)
        with store.layout.pack(where.pack).open("r+b") as file:
            file.seek(where.offset + where.stored // 2)
            file.write(b"\0" * 10)
        docid, outcome = add(store, prepared(store, spooled(raw), len(raw)))
        assert outcome is Outcome.ADDED
        assert store.load(docid) == raw
        assert [finding.number for finding in problems_of(store)] == [1]


def test_a_message_larger_than_a_pack_has_one_for_itself(
    store: Store, spooled: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", MIB)
    raws = [make_message(1), large_message(5 * MIB), make_message(2)]
    docids = [add(store, prepared(store, spooled(raw), len(raw)))[0] for raw in raws]
    assert [store.index.location(docid).pack for docid in docids] == [1, 2, 3]
    assert [store.load(docid) for docid in docids] == raws


# --- memory


@pytest.mark.slow
def test_a_message_of_100_mb_is_added_compared_and_verified_in_little_memory(
    tmp_path: Path,
) -> None:
    path = tmp_path / "message"
    chance = random.Random(1)
    with path.open("wb") as file:
        file.write(make_message(2))
        for _ in range(LARGE_BYTES // MIB):
            file.write(chance.randbytes(MIB // 2).hex().encode())
    Store.create(tmp_path / "store").close()
    told = subprocess.run(
        [sys.executable, "-m", "tests.store.peer", "large", str(tmp_path / "store"), str(path)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        check=True,
        timeout=240,
    )
    in_pieces, whole = map(int, told.stdout.split())
    assert in_pieces < ALLOWED_BYTES
    # The measure itself: a message that is loaded whole does take its length.
    assert whole > LARGE_BYTES


# --- what goes wrong


@pytest.mark.parametrize("size", [100, 5 * MIB], ids=["small", "large"])
@pytest.mark.parametrize("more", [-1, 1], ids=["shorter", "longer"])
def test_a_file_of_another_length_than_was_said_is_refused(
    store: Store, spooled: Spool, size: int, more: int
) -> None:
    fd = spooled(large_message(size))
    with pytest.raises(StoreError, match="shorter" if more < 0 else "longer"):
        prepared(store, fd, size - more)
    assert not any(store.layout.packs.iterdir())


def test_a_file_that_is_cut_while_it_is_read_is_refused(
    store: Store, spooled: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = large_message(6 * MIB)
    fd, pread = spooled(raw), os.pread

    def cutting(which: int, length: int, start: int) -> bytes:
        if which == fd and start > 5 * MIB:
            os.ftruncate(fd, 5 * MIB)
        return pread(which, length, start)

    monkeypatch.setattr("os.pread", cutting)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreError, match="shorter"):
        prepared(store, fd, len(raw))
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_file_written_to_while_it_is_read_gives_a_sound_record(
    store: Store, spooled: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = large_message(6 * MIB)
    fd, pread = spooled(raw), os.pread

    def writing(which: int, length: int, start: int) -> bytes:
        data = pread(which, length, start)
        if which == fd and length == FRAME_BYTES:
            # Into what has been read, and into what is read next.
            os.pwrite(fd, b"#" * 1000, start)
            os.pwrite(fd, b"#" * 1000, min(start + FRAME_BYTES, len(raw) - 1000))
        return data

    with monkeypatch.context() as patch:
        patch.setattr("os.pread", writing)
        new = prepared(store, fd, len(raw))
    docid, _ = add(store, new)
    stored = store.load(docid)
    assert stored != raw
    assert (len(stored), blob_hash(stored)) == (len(raw), new.digest)


@pytest.mark.parametrize(
    ("code", "error"), [(errno.ENOSPC, StoreFull), (errno.EIO, StoreError)], ids=["ENOSPC", "EIO"]
)
def test_a_spool_that_cannot_be_written_is_told(
    store: Store,
    spooled: Spool,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    error: type[StoreError],
) -> None:
    fd = spooled(large_message(5 * MIB))

    def failing(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("os.pwrite", failing)
    with pytest.raises(error, match="spool"):
        prepared(store, fd, 5 * MIB)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_file_that_cannot_be_read_is_told(store: Store) -> None:
    fd = os.open("/", os.O_RDONLY)
    try:
        with pytest.raises(StoreError, match="Is a directory"):
            prepared(store, fd, 5 * MIB)
    finally:
        os.close(fd)


def test_a_spooled_message_that_cannot_be_read_back_commits_nothing(
    store: Store, spooled: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    docid, _ = add(store, prepare_message(make_message(5), 0, (), None))
    before = (store.layout.pack(PackNumber(1)).read_bytes(), store.index.state())
    new = prepared(store, spooled(large_message(5 * MIB)), 5 * MIB)
    pread = os.pread
    monkeypatch.setattr(
        "os.pread",
        lambda fd, length, start: pread(fd, length, start)[: MIB if start < 2 * MIB else 100],
    )
    with pytest.raises(StoreError, match="cut off"):
        add(store, new)
    monkeypatch.undo()
    assert before == (
        store.layout.pack(PackNumber(1)).read_bytes(),
        store.index.state(),
    )
    assert docids_of(store) == [docid]


def test_on_a_file_system_without_nameless_files_the_name_goes_at_once(
    store: Store, spooled: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def refusing(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real_open(path, flags, mode)

    monkeypatch.setattr("os.open", refusing)
    raw = large_message(5 * MIB)
    new = prepared(store, spooled(raw), len(raw))
    assert list(store.layout.spool.iterdir()) == []
    assert store.load(add(store, new)[0]) == raw


def test_the_spool_is_nobody_elses_business(store: Store, spooled: Spool) -> None:
    prepared(store, spooled(large_message(5 * MIB)), 5 * MIB)
    assert oct(store.layout.spool.stat().st_mode & 0o777) == "0o700"


@pytest.mark.parametrize("by_hand", [True, False], ids=["by hand", "by the garbage collector"])
def test_the_file_of_a_large_message_is_closed(store: Store, spooled: Spool, by_hand: bool) -> None:
    fd = spooled(large_message(5 * MIB))
    before = set(os.listdir("/proc/self/fd"))
    new = prepared(store, fd, 5 * MIB)
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    if by_hand:
        new.record.close()
        new.record.close()
    else:
        del new
    assert set(os.listdir("/proc/self/fd")) == before
