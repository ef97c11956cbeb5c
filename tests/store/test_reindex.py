"""An index made anew is the one that was lost; what cannot be known again is told, and no message is ever missing."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mailfs.errors import BadDump, Busy, Corrupt, StoreError, StoreFull
from mailfs.ids import Docid, Keyword, PackNumber
from mailfs.message.keywords import FLAGGED, SEEN
from mailfs.message.maildir import ChosenName
from mailfs.store import packs
from mailfs.store.layout import open_layout
from mailfs.store.records import HEADER_BYTES
from mailfs.store.rescue.new_index import Rebuilt
from mailfs.store.rescue.reindex import Parser, reindex
from mailfs.store.store import Store
from mailfs.store.upkeep.dump import dump_path, save_own_dump
from tests.fakes import make_message, new_message
from tests.oracle import contents_of, docids_of, problems_of
from tests.torture.rebuild import JOURNAL, differences, rows_of

_MESSAGES = 12
_TODO = Keyword("todo")


def rebuild(root: Path, dump: Path | None = None) -> Rebuilt:
    layout = open_layout(root)
    if dump is None:
        return reindex(layout, Parser(layout).prepare)
    with dump.open("rb") as file:
        return reindex(layout, Parser(layout).prepare, file)


def lose_index(root: Path) -> None:
    for path in root.glob("index.sqlite3*"):
        path.unlink()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with something of everything, in several packs, and a dump of its own."""
    monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", 1000)
    root = tmp_path / "store"
    with Store.create(root) as store:
        inbox = store.index.search("inbox").search_id
        for number in range(_MESSAGES):
            with store.writer.transaction("test", durable=True) as transaction:
                references = [f"{number - 2}@example.org", "absent@example.org"]
                body = random.Random(number).randbytes(150).hex()
                transaction.add(new_message(make_message(number, body=body, references=references)))
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.edit_keywords(Docid(1), add=[_TODO, Keyword("größe")])
            transaction.edit_flags(Docid(2), SEEN | FLAGGED, 0)
            transaction.entries.put(inbox, Docid(3), ChosenName(b"caf\xe9", b"ab"))
            transaction.searches.save("lists/linux", "tag:lists/linux", "unlink")
            transaction.searches.forget("flagged")
            for docid in (5, 6, 7):
                transaction.expunge(Docid(docid))
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.reclaim([Docid(6)])
        save_own_dump(store.layout)
        assert problems_of(store) == []
    return root


def contents(root: Path) -> dict[Docid, bytes]:
    with Store.open(root) as store:
        assert problems_of(store) == []
        return contents_of(store)


# --- what comes back


def test_a_sound_index_made_anew_is_the_same_row_by_row(root: Path) -> None:
    dump_path(open_layout(root)).unlink()
    before = rows_of(root)
    rebuilt = rebuild(root)
    assert (rebuilt.notes, rebuilt.problems) == ([], [])
    assert (rebuilt.messages, rebuilt.expunged, rebuilt.recovered) == (_MESSAGES - 3, 2, 0)
    assert differences(before, rows_of(root)) == []
    assert contents(root)


def test_an_index_that_is_gone_comes_from_packs_and_dump(root: Path) -> None:
    before = rows_of(root)
    lose_index(root)
    rebuilt = rebuild(root)
    assert rebuilt.notes == ["there is no old index"]
    assert (rebuilt.problems, rebuilt.from_dump, rebuilt.recovered) == ([], _MESSAGES - 1, 0)
    assert differences(before, rows_of(root), JOURNAL) == []


def test_what_came_after_the_dump_is_recovered_and_what_was_reclaimed_stays_gone(
    root: Path,
) -> None:
    with Store.open(root) as store, store.writer.transaction("test", durable=True) as transaction:
        transaction.add(new_message(make_message(99, references=["3@example.org"])))
        transaction.edit_keywords(Docid(8), add=[_TODO])
        transaction.reclaim([Docid(5)])
    lose_index(root)
    rebuilt = rebuild(root)
    assert (rebuilt.recovered, rebuilt.problems) == (1, [])
    with Store.open(root) as store:
        assert problems_of(store) == []
        new = Docid(_MESSAGES + 1)
        assert docids_of(store, "tag:recovered") == [new]
        assert store.load(new) == make_message(99, references=["3@example.org"])
        assert docids_of(store, "thread:{id:3@example.org}") == [*range(1, 5), *range(8, new + 1)]
        # It was expunged when the dump was made, and is not brought back.
        assert docids_of(store, "id:4@example.org") == []
        assert docids_of(store, "tag:todo") == [1]


def test_without_index_and_dump_all_messages_are_there(root: Path) -> None:
    before = contents(root)
    lose_index(root)
    dump_path(open_layout(root)).unlink()
    rebuilt = rebuild(root)
    assert rebuilt.problems == []
    assert rebuilt.notes[1].startswith("there is no dump")
    # Nobody knows any more what was expunged; what was reclaimed, the packs say.
    assert rebuilt.recovered == _MESSAGES - 1
    assert set(contents(root).values()) > set(before.values())
    with Store.open(root) as store:
        assert docids_of(store, "id:5@example.org") == []
        assert [search.name for search in store.index.searches()] == [
            "all", "flagged", "inbox", "unread",
        ]  # fmt: skip


def test_a_dump_that_is_named_is_looked_at_instead(root: Path, tmp_path: Path) -> None:
    before = rows_of(root)
    shutil.move(dump_path(open_layout(root)), tmp_path / "mine")
    lose_index(root)
    assert rebuild(root, tmp_path / "mine").recovered == 0
    assert differences(before, rows_of(root), JOURNAL) == []


def test_the_dump_of_another_store_is_refused(root: Path, tmp_path: Path) -> None:
    with Store.create(tmp_path / "other") as other:
        save_own_dump(other.layout)
        dump = dump_path(other.layout)
    lose_index(root)
    with pytest.raises(BadDump, match="is of another store"):
        rebuild(root, dump)
    shutil.copy(dump, dump_path(open_layout(root)))
    rebuilt = rebuild(root)
    assert "is of another store" in rebuilt.notes[1]
    assert rebuilt.recovered == _MESSAGES - 1


def test_a_damaged_line_of_the_stores_own_dump_loses_only_itself(root: Path) -> None:
    path = dump_path(open_layout(root))
    lines = path.read_bytes().splitlines(keepends=True)
    lines[-3] = lines[-3][:50] + b"\xff" + lines[-3][51:]
    path.write_bytes(b"".join(lines))
    lose_index(root)
    rebuilt = rebuild(root)
    assert (rebuilt.recovered, rebuilt.problems) == (1, [])
    assert any("is not UTF-8" in note for note in rebuilt.notes)
    path.unlink()  # verify would tell of it
    assert len(contents(root)) == _MESSAGES - 3


# --- damaged indexes


@pytest.mark.parametrize("seed", range(25))
def test_a_damaged_index_loses_nothing_the_dump_knows(root: Path, seed: int) -> None:
    chance, before = random.Random(seed), rows_of(root)
    path = root / "index.sqlite3"
    size = path.stat().st_size
    with path.open("r+b") as file:
        for _ in range(chance.choice((1, 3, 30))):
            file.seek(chance.randrange(size))
            file.write(chance.randbytes(chance.choice((1, 4, 300, 5000))))
    os.truncate(path, chance.choice((size, size, size // 2)))
    rebuilt = rebuild(root)
    assert (rebuilt.problems, rebuilt.recovered) == ([], 0)
    assert differences(before, rows_of(root), JOURNAL) == []


@pytest.mark.parametrize("table", ["message", "blob", "message_blob", "keyword", "message_keyword"])
def test_a_lost_table_loses_only_itself(root: Path, table: str) -> None:
    """Without a dump. What is there a second time, in an index, is not lost at all."""
    dump_path(open_layout(root)).unlink()
    before = rows_of(root)
    with Store.open(root) as store:
        (page,) = store.index.rows("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,))[0]
    with (root / "index.sqlite3").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(bytes(4096))
    rebuilt = rebuild(root)
    assert (rebuilt.problems, rebuilt.recovered) == ([], 0)
    after = rows_of(root)
    lost = differences(before, after)
    if table != "message":
        assert lost == []
        return
    # Flags, and times that the messages themselves do not tell; all else is known by the indexes.
    assert [line.partition(":")[0] for line in lost] == ["message"]
    kept = {(row[0], row[1], row[3], row[4], row[7], row[8]) for row in before["message"]}
    assert kept == {(row[0], row[1], row[3], row[4], row[7], row[8]) for row in after["message"]}


def test_what_is_behind_a_damaged_frame_of_the_log_is_not_lost(root: Path) -> None:
    """SQLite itself would go by the frames before it, and say nothing."""
    with Store.open(root) as store:
        for number in range(8):
            with store.writer.transaction("test", durable=True) as transaction:
                transaction.edit_keywords(Docid(1), add=[Keyword(f"k{number}")])
        before = rows_of(root)
        copies = [(path, path.read_bytes()) for path in root.glob("index.sqlite3*")]
    for path, content in copies:
        path.write_bytes(content)
    log = root / "index.sqlite3-wal"
    with log.open("r+b") as file:
        file.seek(32 + 24 + 100)
        file.write(b"damage")
    rebuilt = rebuild(root)
    assert rebuilt.problems == []
    assert differences(before, rows_of(root)) == []


# --- damaged packs


def damage(root: Path, docid: Docid, within: int) -> None:
    with Store.open(root) as store:
        where = store.index.location(docid)
        path = store.layout.pack(where.pack)
    with path.open("r+b") as file:
        file.seek(where.offset + within)
        byte = file.read(1)[0]
        file.seek(where.offset + within)
        file.write(bytes([byte ^ 255]))


@pytest.mark.parametrize("within", [HEADER_BYTES + 40, 5], ids=["payload", "header"])
@pytest.mark.parametrize("has_index", [True, False], ids=["old index", "dump alone"])
def test_a_damaged_message_keeps_its_row_and_costs_no_other(
    root: Path, within: int, has_index: bool
) -> None:
    before = contents(root)
    damage(root, Docid(3), within)
    if not has_index:
        lose_index(root)
    rebuilt = rebuild(root)
    assert [problem for problem in rebuilt.problems if problem.startswith("message 3:")]
    with Store.open(root) as store:
        with pytest.raises(Corrupt):
            store.load(Docid(3))
        assert {docid: store.load(docid) for docid in docids_of(store) if docid != 3} == {
            docid: raw for docid, raw in before.items() if docid != 3
        }
        assert docids_of(store, "subject:subject").count(Docid(3)) == has_index
        assert problems_of(store)
        # Delivered again it is a message of its own.
        with store.writer.transaction("test", durable=True) as transaction:
            again = transaction.add(new_message(before[Docid(3)])).docid
        assert store.load(again) == before[Docid(3)]


def test_a_pack_that_is_lost_leaves_its_messages_waiting_for_it(root: Path) -> None:
    before, rows = contents(root), rows_of(root)
    layout = open_layout(root)
    pack = layout.pack(PackNumber(2))
    pack.rename(root.parent / "elsewhere")
    rebuilt = rebuild(root)
    assert any("its bytes are in no pack (they were in pack 2" in each for each in rebuilt.problems)
    with Store.open(root) as store:
        assert docids_of(store) == list(before)
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.add(new_message(make_message(77)))
            transaction.expunge(Docid(_MESSAGES + 1))
    (root.parent / "elsewhere").rename(pack)
    assert rebuild(root).problems == []
    assert contents(root) == before
    assert rows_of(root)["bytes"] > rows["bytes"]


def test_a_second_copy_takes_the_place_of_a_damaged_one(root: Path) -> None:
    before = contents(root)
    layout = open_layout(root)
    with Store.open(root) as store:
        where = store.index.location(Docid(3))
        record = store.packs.file(where.pack).record(where.offset)
    newest = sorted(layout.packs.iterdir())[-1]
    with newest.open("ab") as file:
        file.write(record)
    damage(root, Docid(3), HEADER_BYTES + 40)
    rebuilt = rebuild(root)
    assert (rebuilt.problems, rebuilt.recovered) == ([], 0)
    with Store.open(root) as store:
        assert contents_of(store) == before
        # The one that nobody needs is all that is wrong.
        assert [finding.place for finding in problems_of(store)] == [where.offset]


def test_a_copy_left_by_a_compaction_that_was_cut_off_is_no_second_message(root: Path) -> None:
    before = rows_of(root)
    layout = open_layout(root)
    shutil.copy(layout.pack(PackNumber(1)), layout.pack(PackNumber(90)))
    lose_index(root)
    rebuilt = rebuild(root)
    assert (rebuilt.problems, rebuilt.recovered) == ([], 0)
    assert differences(before, rows_of(root), (*JOURNAL, "pack")) == []


# --- how it goes about it


def test_nobody_else_may_use_the_store_meanwhile(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailfs.store.rescue.reindex.DEADLINE_S", 0.05)
    with Store.open(root), pytest.raises(Busy, match=rf"in use by pid {os.getpid()}"):
        rebuild(root)


class CutOff(BaseException):
    """Stands for the death of the process: nothing catches it."""


def die(*_: object, **__: object) -> None:
    raise CutOff


@pytest.mark.parametrize(
    "place",
    [
        "mailfs.store.rescue.new_index.OldIndex.copy_into",
        "mailfs.store.rescue.new_index.PackScan.run",
        "mailfs.store.rescue.new_index.put_texts",
        "mailfs.store.rescue.reindex._sync",
        "mailfs.store.rescue.reindex.make_ready",
        "mailfs.store.rebuilt.Path.rename",
        "mailfs.store.rebuilt.sync_directory",
        "mailfs.store.rescue.reindex.put_in_place",
    ],
)
@pytest.mark.parametrize("is_lost", [False, True], ids=["sound", "lost"])
def test_cut_off_anywhere_the_old_index_or_the_whole_new_one_is_there(
    root: Path, monkeypatch: pytest.MonkeyPatch, place: str, is_lost: bool
) -> None:
    before = rows_of(root)
    if is_lost:
        lose_index(root)
    with monkeypatch.context() as patch:
        calls = iter([lambda _: None] if place.endswith("reindex.put_in_place") else [])
        patch.setattr(place, lambda *args: next(calls, die)(*args))
        with pytest.raises(CutOff):
            rebuild(root)
    is_ready = (root / "index.ready").exists()
    if is_lost and not is_ready and not (root / "index.sqlite3").exists():
        with pytest.raises(Corrupt, match="run `mailfs reindex`"):
            Store.open(root)
        rebuild(root)
    assert contents(root)
    assert differences(before, rows_of(root), JOURNAL if is_lost else ()) == []
    rebuild(root)
    assert not list(root.glob("index.new*"))
    assert not (root / "index.ready").exists()


def test_a_disk_that_is_full_leaves_the_old_index(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows_of(root)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mailfs.store.rescue.reindex.os.fsync", full)
        with pytest.raises((StoreFull, StoreError, OSError)):
            rebuild(root)
    assert not list(root.glob("index.new*"))
    assert differences(before, rows_of(root)) == []
    assert contents(root)


def test_progress_is_told(root: Path) -> None:
    told: list[tuple[int, int]] = []
    layout = open_layout(root)
    reindex(layout, Parser(layout).prepare, progress=lambda *each: told.append(each))
    assert told[-1] == (_MESSAGES - 1, _MESSAGES - 1)


Break = Callable[[Path], object]


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda path: path.unlink(), id="missing"),
        pytest.param(lambda path: path.write_bytes(b"no database" * 1000), id="no database"),
    ],
)
def test_who_opens_a_store_without_an_index_is_told_what_to_do(root: Path, harm: Break) -> None:
    harm(root / "index.sqlite3")
    with pytest.raises(Corrupt, match=r"index\.sqlite3 is .*run `mailfs reindex`"):
        Store.open(root)
