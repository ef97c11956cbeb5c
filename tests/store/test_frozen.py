"""Stores on a disk that is read-only or full: all that is there can be read, and when it can be written again, it is."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailfs.errors import StoreFull, StoreReadOnly, Unhealthy
from mailfs.ids import Docid
from mailfs.message.keywords import FLAGGED, SEEN
from mailfs.store.store import Store
from tests.disks import SmallDisk, small_disk, why_not
from tests.fakes import PROJECT, make_message, new_message
from tests.oracle import assert_sound, contents_of, count_of

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
MESSAGES = 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path, 16 << 20) as made:
        yield made


@pytest.fixture
def root(disk: SmallDisk) -> Path:
    """A store with MESSAGES messages, closed."""
    path = disk.path / "store"
    with Store.create(path) as store, store.writer.transaction("test", durable=True) as tx:
        for number in range(MESSAGES):
            tx.add(new_message(make_message(number)))
    return path


def flag_elsewhere(root: Path, change: int, *, is_crashed: bool) -> None:
    """Another process gives the first message a flag; it may end without closing the index: that is in the WAL then."""
    code = f"flag(Store.open(Path({str(root)!r})), {change})"
    if is_crashed:
        code += "; os._exit(0)"
    subprocess.run(
        [sys.executable, "-c", f"import os\nfrom {__name__} import *\n{code}"],
        check=True,
        cwd=PROJECT,
    )


def flag(store: Store, change: int, docid: int = 1) -> None:
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.edit_flags(Docid(docid), change, 0)


def save_many(store: Store) -> None:
    """More than a full disk takes."""
    for number in range(500):
        with store.writer.transaction("test", durable=False) as transaction:
            transaction.searches.save(f"s{number}", "x" * 4000)


def is_there(root: Path, ending: str) -> bool:
    return Path(f"{root}/index.sqlite3{ending}").exists()


def remove_shm(root: Path) -> None:
    Path(f"{root}/index.sqlite3-shm").unlink()


@pytest.mark.parametrize("has_shm", [True, False], ids=["closed", "without -shm"])
@pytest.mark.parametrize("is_crashed", [True, False], ids=["crashed", "orderly"])
def test_a_store_on_a_read_only_disk_is_read_and_says_why_it_cannot_be_written(
    disk: SmallDisk, root: Path, is_crashed: bool, has_shm: bool
) -> None:
    if is_crashed:
        flag_elsewhere(root, FLAGGED, is_crashed=True)
    if not has_shm:
        remove_shm(root)
    disk.set_read_only(True)
    with Store.open(root) as store:
        assert len(contents_of(store)) == MESSAGES
        assert bool(store.index.entry(Docid(1)).flags & FLAGGED) is is_crashed
        with pytest.raises(StoreReadOnly):
            flag(store, SEEN)
        with pytest.raises(Unhealthy):
            flag(store, SEEN)
        assert store.writer.health.unhealthy_reason() == "the file system is read-only"
    disk.set_read_only(False)
    assert_sound(root)


def test_after_an_orderly_end_the_files_are_there_to_read_without_writing(root: Path) -> None:
    assert is_there(root, "-shm")
    assert Path(f"{root}/index.sqlite3-wal").stat().st_size == 0


@pytest.mark.parametrize("has_shm", [True, False], ids=["closed", "without -shm"])
def test_a_store_that_was_opened_read_only_is_written_when_the_disk_is_writable_again(
    disk: SmallDisk, root: Path, has_shm: bool
) -> None:
    if not has_shm:
        remove_shm(root)
    disk.set_read_only(True)
    with Store.open(root) as reader:
        before = reader.index.data_version()
        assert count_of(reader, "is:flagged") == 0
        disk.set_read_only(False)
        flag_elsewhere(root, FLAGGED, is_crashed=False)
        assert reader.index.data_version() != before
        assert count_of(reader, "is:flagged") == 1
        flag(reader, FLAGGED, docid=2)
        assert count_of(reader, "is:flagged") == 2
    assert_sound(root)


@pytest.mark.parametrize("has_shm", [True, False], ids=["closed", "without -shm"])
@pytest.mark.parametrize("is_crashed", [True, False], ids=["crashed", "orderly"])
def test_a_store_on_a_full_disk_is_read(
    disk: SmallDisk, root: Path, is_crashed: bool, has_shm: bool
) -> None:
    if is_crashed:
        flag_elsewhere(root, FLAGGED, is_crashed=True)
    if not has_shm:
        remove_shm(root)
    disk.fill()
    for _ in range(2):
        with Store.open(root) as store:
            assert len(contents_of(store)) == MESSAGES
            assert bool(store.index.entry(Docid(1)).flags & FLAGGED) is is_crashed
            with (
                pytest.raises((StoreFull, Unhealthy)),
                store.writer.transaction("t", durable=True) as tx,
            ):
                tx.add(new_message(make_message(77)))
            assert store.writer.health.state().sheds != ""
    disk.free()
    with Store.open(root) as store, store.writer.transaction("t", durable=True) as tx:
        tx.add(new_message(make_message(77)))
    assert_sound(root)


def test_a_disk_that_becomes_full_takes_changes_back_and_goes_on_when_there_is_room(
    disk: SmallDisk, root: Path
) -> None:
    """Additions that were acknowledged before are there, and nothing of those that were not."""
    with Store.open(root) as store:
        disk.fill()
        with pytest.raises((StoreFull, Unhealthy)):
            save_many(store)
        assert len(contents_of(store)) == MESSAGES
        disk.free()
        store.writer.health = type(store.writer.health)(store.layout)
        flag(store, SEEN)
        with store.writer.transaction("t", durable=True) as tx:
            tx.add(new_message(make_message(77)))
        assert len(contents_of(store)) == MESSAGES + 1
    assert_sound(root)


def test_flags_can_be_changed_on_a_full_disk_where_the_wal_has_room(
    disk: SmallDisk, root: Path
) -> None:
    """It is written from its beginning again after each checkpoint."""
    with Store.open(root) as store:
        for _ in range(20):
            for docid in range(1, MESSAGES + 1):
                flag(store, SEEN, docid)
                with store.writer.transaction("test", durable=False) as transaction:
                    transaction.edit_flags(Docid(docid), 0, SEEN)
        disk.fill()
        for docid in range(1, MESSAGES + 1):
            flag(store, FLAGGED, docid)
        assert count_of(store, "is:flagged") == MESSAGES
    disk.free()
    assert_sound(root)
