"""Dictionaries: made of the store's own mail, in every pack that uses them, found wherever one copy is sound."""

import random
from pathlib import Path

import pytest

from mailfs.errors import Corrupt
from mailfs.ids import PackNumber
from mailfs.store import frozen, packs
from mailfs.store.dictionaries import Dictionaries
from mailfs.store.packfile import PACK_HEAD
from mailfs.store.prepare import prepare_message
from mailfs.store.records import (
    CODEC_DICTIONARY,
    CODEC_ZSTD,
    HEADER_BYTES,
    Dictionary,
    format_dictionary,
)
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from mailfs.store.upkeep import training
from mailfs.store.upkeep.training import introduce, is_wanted, train
from tests.fakes import make_dictionary, make_message
from tests.oracle import assert_sound, contents_of, problems_of
from tests.store.packed import add, codecs_of, messages, packs_of, records_of


def dictionary_of(store: Store, pack: int) -> int:
    """The id of the dictionary a pack begins with; 0 where it has none."""
    found = store.packs.file(PackNumber(pack)).dictionary_or_none()
    return 0 if found is None else found.id


def used_in(store: Store, pack: int) -> set[int]:
    """The ids its messages name."""
    return {
        header.dictionary
        for _, header in records_of(store, pack)
        if header.codec != CODEC_DICTIONARY
    } - {0}


@pytest.fixture
def one() -> Dictionary:
    return Dictionary(make_dictionary(1))


@pytest.fixture
def other() -> Dictionary:
    return Dictionary(make_dictionary(2))


# --- in packs


def test_a_dictionary_is_the_first_record_of_a_pack_and_what_comes_then_uses_it(
    store: Store, one: Dictionary
) -> None:
    before = add(store, messages(3))
    introduce(store, one)
    after = add(store, messages(3, first=10))
    assert packs_of(store) == [1, 2]
    assert codecs_of(store, 2) == [CODEC_DICTIONARY, *[CODEC_ZSTD] * 3]
    assert used_in(store, 1) == set()
    assert used_in(store, 2) == {one.id}
    assert contents_of(store) == dict(
        zip(before + after, messages(3) + messages(3, first=10), strict=True)
    )
    assert [store.index.location(docid).pack for docid in after] == [2, 2, 2]


def test_a_pack_that_is_begun_because_one_is_full_has_the_dictionary_too(
    store: Store, one: Dictionary, monkeypatch: pytest.MonkeyPatch
) -> None:
    introduce(store, one)
    monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", 6000)
    for first in range(0, 60, 20):
        add(store, messages(20, first))
    numbers = packs_of(store)
    assert len(numbers) > 2
    assert {dictionary_of(store, number) for number in numbers} == {one.id}


def test_a_new_dictionary_begins_a_new_pack_and_the_old_one_can_still_be_read(
    store: Store, one: Dictionary, other: Dictionary
) -> None:
    introduce(store, one)
    old = add(store, messages(2))
    introduce(store, other)
    new = add(store, messages(2, first=10))
    assert [dictionary_of(store, number) for number in packs_of(store)] == [one.id, other.id]
    assert used_in(store, 2) == {other.id}
    assert [store.load(docid) for docid in old + new] == messages(2) + messages(2, first=10)


def test_a_dictionary_introduced_again_begins_no_pack_that_is_empty(
    store: Store, one: Dictionary
) -> None:
    introduce(store, one)
    introduce(store, one)
    assert packs_of(store) == [1]


@pytest.mark.parametrize("is_kept", [True, False], ids=["which is here", "which is nowhere else"])
def test_a_message_prepared_with_an_older_dictionary_is_made_anew_for_its_pack(
    store: Store, one: Dictionary, other: Dictionary, is_kept: bool
) -> None:
    introduce(store, one)
    late = prepare_message(make_message(1), 0, (), None, one)
    introduce(store, other)
    if not is_kept:
        store.packs.dictionaries.keep(one)
    with store.writer.transaction("test", durable=True) as transaction:
        docid = transaction.add(late).docid
    assert store.index.location(docid).pack == 2
    assert used_in(store, 2) == {other.id}
    assert store.load(docid) == make_message(1)


def test_a_message_prepared_with_a_dictionary_goes_into_a_pack_without_one_as_well(
    store: Store, one: Dictionary
) -> None:
    add(store, messages(1))
    store.packs.dictionaries.keep(one)
    new = prepare_message(make_message(7), 0, (), None, one)
    with store.writer.transaction("test", durable=True) as transaction:
        docid = transaction.add(new).docid
    assert (packs_of(store), used_in(store, 1)) == ([1], set())
    assert store.load(docid) == make_message(7)


def test_the_same_bytes_are_known_whatever_they_were_compressed_with(
    store: Store, one: Dictionary
) -> None:
    (docid,) = add(store, [make_message(1)])
    introduce(store, one)
    assert add(store, [make_message(1)]) == [docid]


def test_a_large_message_uses_no_dictionary(store: Store, one: Dictionary) -> None:
    introduce(store, one)
    raw = make_message(1, body="line of text\n" * 50_000)
    (docid,) = add(store, [raw])
    assert used_in(store, 1) == set()
    assert store.load(docid) == raw


def test_an_exception_takes_a_dictionary_back_too(
    store: Store, one: Dictionary, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, messages(1))
    before = {path.name: path.read_bytes() for path in store.layout.packs.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "commit", lambda _: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            introduce(store, one)
    assert {path.name: path.read_bytes() for path in store.layout.packs.iterdir()} == before
    add(store, messages(1, first=10))
    assert store.newest_dictionary_or_none() is None
    assert packs_of(store) == [1]


def test_a_pack_begun_with_a_dictionary_by_a_writer_that_died_is_no_problem(
    store: Store, one: Dictionary
) -> None:
    add(store, messages(1))
    left = PACK_HEAD + format_dictionary(one)
    path = store.layout.pack(PackNumber(2))
    path.write_bytes(left)
    path.chmod(0o600)
    assert problems_of(store) == []
    introduce(store, one)
    assert (packs_of(store), path.read_bytes()) == ([1, 2, 3], left)


# --- found wherever a copy is sound


def reopened(store: Store) -> Store:
    return Store.open(store.layout.root)


def damage_dictionary(store: Store, pack: int) -> None:
    path = store.layout.pack(PackNumber(pack))
    raw = bytearray(path.read_bytes())
    raw[len(PACK_HEAD) + HEADER_BYTES + 500] ^= 0xFF
    path.write_bytes(raw)


def test_a_pack_can_be_read_alone(store: Store, one: Dictionary) -> None:
    introduce(store, one)
    docids = add(store, messages(2))
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.write("DELETE FROM dictionary")
    with reopened(store) as again:
        assert [again.load(docid) for docid in docids] == messages(2)
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.write(
            "INSERT INTO dictionary VALUES (?, ?, 1, 1, ?)", (one.id, one.hash, one.raw)
        )


def test_a_dictionary_damaged_in_its_pack_is_taken_from_the_index(
    store: Store, one: Dictionary
) -> None:
    introduce(store, one)
    docids = add(store, messages(2))
    sound = store.layout.pack(PackNumber(1)).read_bytes()
    damage_dictionary(store, 1)
    with reopened(store) as again:
        assert [again.load(docid) for docid in docids] == messages(2)
    store.layout.pack(PackNumber(1)).write_bytes(sound)


def test_a_dictionary_damaged_in_its_pack_and_in_the_index_is_taken_from_another_pack(
    store: Store, one: Dictionary, monkeypatch: pytest.MonkeyPatch
) -> None:
    introduce(store, one)
    docids = add(store, messages(2))
    monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", 100)
    add(store, messages(1, first=10))
    sound = store.layout.pack(PackNumber(1)).read_bytes()
    damage_dictionary(store, 1)
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.write("UPDATE dictionary SET bytes = zeroblob(100)")
    with reopened(store) as again:
        assert [again.load(docid) for docid in docids] == messages(2)
        assert add(again, messages(1, first=20))  # and mail goes on
    damage_dictionary(store, 2)
    damage_dictionary(store, 3)
    with reopened(store) as again, pytest.raises(Corrupt, match=f"dictionary {one.id}"):
        again.load(docids[0])
    for number in (2, 3):
        damage_dictionary(store, number)  # twice is not at all
    store.layout.pack(PackNumber(1)).write_bytes(sound)
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.write("UPDATE dictionary SET bytes = ?", (one.raw,))


def test_a_damaged_header_of_the_first_record_harms_no_message(
    store: Store, one: Dictionary
) -> None:
    introduce(store, one)
    docids = add(store, messages(2))
    path = store.layout.pack(PackNumber(1))
    sound = path.read_bytes()
    path.write_bytes(sound[:20] + b"\xff" + sound[21:])
    with reopened(store) as again:
        assert [again.load(docid) for docid in docids] == messages(2)
        (new,) = add(again, messages(1, first=20))
        assert again.load(new) == messages(1, first=20)[0]
    raw = bytearray(path.read_bytes())
    raw[20] = sound[20]
    path.write_bytes(raw)


def test_another_process_learns_of_a_new_dictionary_when_it_writes(
    store: Store, one: Dictionary, other: Dictionary
) -> None:
    introduce(store, one)
    with reopened(store) as peer:
        assert peer.newest_dictionary_or_none() is not None
        introduce(store, other)
        add(peer, messages(1))
        newest = peer.newest_dictionary_or_none()
        assert newest is not None
        assert newest.id == other.id


# --- training


def varied(count: int, seed: int = 0) -> list[bytes]:
    """Messages with something in common and something of their own."""
    words = [random.Random(number).randbytes(4).hex() for number in range(300)]
    chance = random.Random(seed)
    return [
        make_message(
            chance.getrandbits(40),
            subject=" ".join(chance.choices(words, k=5)),
            body="\n".join(" ".join(chance.choices(words, k=12)) for _ in range(40)),
        )
        for _ in range(count)
    ]


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LEAST_MESSAGES", 40)
    monkeypatch.setattr(training, "DICTIONARY_BYTES", 16384)


@pytest.mark.usefixtures("_few")
def test_a_dictionary_is_made_when_there_are_messages_enough_and_again_when_there_are_many_more(
    store: Store,
) -> None:
    add(store, varied(39))
    assert not is_wanted(store)
    add(store, varied(1, seed=1))
    assert is_wanted(store)
    made = train(store)
    assert made is not None
    assert store.newest_dictionary_or_none() is made
    assert not is_wanted(store)
    add(store, varied(119, seed=2))
    assert not is_wanted(store)
    add(store, varied(1, seed=3))
    assert is_wanted(store)


@pytest.mark.usefixtures("_few")
def test_a_trained_dictionary_makes_what_comes_then_smaller(store: Store) -> None:
    before, after = varied(200), varied(50, seed=5)
    add(store, before)
    plain = sum(prepare_message(raw, 0, (), None).record.stored for raw in after)
    assert train(store) is not None
    docids = add(store, after)
    assert sum(store.index.location(docid).stored for docid in docids) < 0.9 * plain
    assert dictionary_of(store, 2)
    assert contents_of(store).keys() >= set(docids)


@pytest.mark.usefixtures("_few")
def test_a_dictionary_that_is_worth_nothing_is_not_kept(store: Store) -> None:
    chance = random.Random(4)
    add(store, [chance.randbytes(3000) for _ in range(60)])
    assert train(store) is None
    assert store.newest_dictionary_or_none() is None
    assert packs_of(store) == [1]


@pytest.mark.usefixtures("_few")
def test_training_again_on_the_same_mail_keeps_what_there_is(store: Store) -> None:
    add(store, varied(60))
    made = train(store)
    assert made is not None
    assert train(store) is None
    assert store.newest_dictionary_or_none() is made
    assert packs_of(store) == [1, 2]


def test_a_few_messages_are_not_enough_for_zstd_and_that_is_no_error(store: Store) -> None:
    assert train(store) is None
    add(store, messages(3))
    assert train(store) is None


@pytest.mark.corpus
def test_a_dictionary_of_real_mail_makes_half_of_it_a_sixth_smaller(
    tmp_path: Path, unpacked_corpus: Path
) -> None:
    """What zstd alone leaves; see the figures in records.py."""
    folders = ("linux-man", "linux-api", "blinux-list")
    paths = [
        path
        for folder in folders
        for path in (unpacked_corpus / folder).rglob("*")
        if path.is_file()
    ]
    raws = [path.read_bytes() for path in sorted(paths)]
    random.Random(7).shuffle(raws)
    half = len(raws) // 2
    with Store.create(tmp_path / "store") as store:
        add(store, raws[:half])
        plain = sum(prepare_message(raw, 0, (), None).record.stored for raw in raws[half:])
        assert train(store) is not None
        add(store, raws[half:])
        ((stored,),) = store.index.rows("SELECT sum(stored) FROM blob WHERE pack = 2")
        assert stored < plain * 5 / 6
        assert problems_of(store) == []


def test_a_dictionary_in_a_pack_is_as_the_manual_says(store: Store, one: Dictionary) -> None:
    introduce(store, one)
    content = store.layout.pack(PackNumber(1)).read_bytes()
    assert content == PACK_HEAD + format_dictionary(one)
    assert_sound(store.layout.root)


def test_who_asked_on_a_read_only_disk_keeps_nobody_from_writing_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(frozen, "is_read_only", lambda _: True)
        assert Dictionaries(store.layout).newest_or_none() is None
    assert not frozen.must_freeze(store.layout.index)
    add(store, messages(1))
