"""Snapshots of a store that is in use: whole, incremental, nobody else's business, and never half a one under its name."""

import errno
import os
import shutil
import stat
import threading
import time
from pathlib import Path

import pytest

from mailfs.errors import Busy, Corrupt, StoreFull, UsageError
from mailfs.ids import Docid, Keyword, PackNumber
from mailfs.store import packs
from mailfs.store.layout import open_layout
from mailfs.store.store import Store
from mailfs.store.upkeep.backup import backup, snapshots
from mailfs.store.upkeep.compact import compact
from mailfs.store.upkeep.dump import save_own_dump
from mailfs.store.upkeep.expire import expire
from mailfs.store.upkeep.seal import seal_full_packs
from tests.fakes import make_message, new_message
from tests.oracle import contents_of, problems_of
from tests.torture.rebuild import differences, rows_of


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return tmp_path / "backups"


@pytest.fixture
def packed(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with several sealed packs, and a newest one that is not."""
    monkeypatch.setattr(packs, "PACK_LIMIT_BYTES", 1000)
    add(store, range(20))
    seal_full_packs(store)
    return store


def add(store: Store, numbers: range) -> None:
    for number in numbers:
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.add(new_message(make_message(number, body=f"{number} " * 60)))


def assert_same(snapshot: Path, store: Store) -> None:
    assert differences(rows_of(store.layout.root), rows_of(snapshot)) == []
    with Store.open(snapshot) as copy:
        assert problems_of(copy) == []
        assert contents_of(copy) == contents_of(store)
        assert copy.layout.store_id == store.layout.store_id


def modes_below(root: Path) -> set[tuple[str, str]]:
    return {
        ("folder" if path.is_dir() else "file", oct(stat.S_IMODE(path.lstat().st_mode)))
        for path in (root, *root.rglob("*"))
        if not path.is_symlink()
    }


def sealed_packs(root: Path) -> dict[str, int]:
    """Name and inode of those that end with a footer."""
    with Store.open(root) as store:
        rows = store.index.rows("SELECT pack FROM pack WHERE sealed = 1")
        paths = [store.layout.pack(PackNumber(pack)) for (pack,) in rows]
    return {path.name: path.stat().st_ino for path in paths}


def test_a_snapshot_is_the_whole_store(packed: Store, destination: Path) -> None:
    save_own_dump(packed.layout)
    (packed.layout.root / "config").write_text("[mount]\nlinger = 1\n")
    side = packed.layout.sidecar / "1" / "new"
    for folder in (side.parent.parent, side.parent, side):
        folder.mkdir(mode=0o700)
    (side.parent / "dovecot-uidlist").write_text("3 V1 N2\n")
    (side.parent / "link").symlink_to("/etc/passwd")
    os.mkfifo(side.parent / "fifo")
    os.utime(side.parent / "dovecot-uidlist", (1, 2))
    for part in ("cur", "tmp"):
        folder = packed.layout.spool / "1" / part
        folder.mkdir(parents=True)
        (folder / "letter").write_text("Subject: waits\n\n")
    for folder in (packed.layout.spool, *packed.layout.spool.rglob("*")):
        folder.chmod(0o700 if folder.is_dir() else 0o600)
    made = backup(packed.layout, destination)
    assert_same(made.path, packed)
    copy = made.path / "sidecar" / "1"
    assert sorted(path.name for path in copy.iterdir()) == ["dovecot-uidlist", "new"]
    assert (copy / "dovecot-uidlist").read_text() == "3 V1 N2\n"
    assert (copy / "dovecot-uidlist").stat().st_mtime == 2
    waiting = [path for path in (made.path / "spool").rglob("*") if path.is_file()]
    assert waiting == [made.path / "spool" / "1" / "cur" / "letter"]
    for name in ("config", "dump"):
        assert (made.path / name).read_bytes() == (packed.layout.root / name).read_bytes()
    assert (destination / "latest").resolve() == made.path
    assert [path.name for path in destination.iterdir() if path.name.startswith(".")] == []


def test_nobody_else_can_read_a_snapshot_whatever_the_umask(
    packed: Store, destination: Path
) -> None:
    before = os.umask(0)
    try:
        backup(packed.layout, destination)
    finally:
        os.umask(before)
    assert modes_below(destination) == {("folder", "0o700"), ("file", "0o600")}


def test_sealed_packs_are_copied_once_and_everything_else_is_no_other_snapshots(
    packed: Store, destination: Path
) -> None:
    first = backup(packed.layout, destination)
    before = sealed_packs(first.path)
    assert (len(before) > 2, first.linked_packs) == (True, 0)
    add(packed, range(20, 26))
    seal_full_packs(packed)
    second = backup(packed.layout, destination)
    after = sealed_packs(second.path)
    assert {name: after[name] for name in before} == before
    assert second.linked_packs == len(before) < len(after)
    shared = {
        path.name for path in second.path.rglob("*") if path.is_file() and path.stat().st_nlink > 1
    }
    assert shared == set(before)
    assert_same(second.path, packed)
    # None of the packs is one file with the store's: what happens to that is no harm to the backup.
    assert not set(after.values()) & set(sealed_packs(packed.layout.root).values())


def test_a_mounted_or_changed_snapshot_changes_no_other(packed: Store, destination: Path) -> None:
    first = backup(packed.layout, destination).path
    second = backup(packed.layout, destination).path
    with Store.open(second) as copy:
        add(copy, range(50, 60))
        with copy.writer.transaction("test", durable=True) as transaction:
            transaction.edit_keywords(Docid(1), add=[Keyword("changed")])
            transaction.expunge(Docid(2))
        with copy.writer.transaction("test", durable=True) as transaction:
            transaction.reclaim([Docid(2)])
        for _ in compact(copy, 0.01):
            pass
        assert problems_of(copy) == []
    assert_same(first, packed)


def test_a_pack_that_is_damaged_in_the_snapshot_before_is_copied_anew(
    packed: Store, destination: Path
) -> None:
    first = backup(packed.layout, destination).path
    name, *_ = sealed_packs(first)
    size = (first / "packs" / name).stat().st_size
    os.truncate(first / "packs" / name, size - 5)
    second = backup(packed.layout, destination)
    assert second.linked_packs == len(sealed_packs(second.path)) - 1
    assert_same(second.path, packed)


def test_a_disk_that_knows_no_hard_links_has_copies(
    packed: Store, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(packed.layout, destination)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def cannot(*_: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    with monkeypatch.context() as patch:
        patch.setattr("os.link", refuse)
        patch.setattr("os.copy_file_range", cannot)
        second = backup(packed.layout, destination)
    assert second.linked_packs == 0
    assert_same(second.path, packed)


# --- while others work


class _Busy(threading.Thread):
    """Delivers, expunges, reclaims and compacts until it is told to end."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root
        self.must_end = threading.Event()
        self.rounds = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with Store.open(self._root) as store:
                while not self.must_end.is_set():
                    self._round(store)
        except BaseException as error:  # noqa: BLE001  # told by the test
            self.error = error

    def _round(self, store: Store) -> None:
        start = 1000 + self.rounds * 5
        add(store, range(start, start + 5))
        with store.writer.transaction("test", durable=False) as transaction:
            for docid in store.index.docids_with_keyword(Keyword("none")) or []:
                transaction.expunge(docid)
            transaction.expunge(Docid(max(self.rounds, 1)))
        for _ in expire(store, time.time() + 10):
            pass
        for _ in compact(store, 0.05):
            pass
        self.rounds += 1


@pytest.mark.slow
def test_each_snapshot_of_a_store_at_work_is_sound(packed: Store, destination: Path) -> None:
    busy = _Busy(packed.layout.root)
    busy.start()
    try:
        made = []
        for _ in range(6):
            rounds = busy.rounds
            made.append(backup(packed.layout, destination).path)
            give_up = time.monotonic() + 20
            while busy.rounds <= rounds and time.monotonic() < give_up and busy.is_alive():
                busy.must_end.wait(0.01)
    finally:
        busy.must_end.set()
        busy.join(60)
    assert busy.error is None
    assert busy.rounds > 4
    modseqs = []
    for path in made:
        with Store.open(path) as copy:
            assert problems_of(copy) == []
            assert contents_of(copy)
            modseqs.append(copy.index.state().modseq)
    assert modseqs == sorted(set(modseqs))


def test_packs_are_kept_while_they_are_copied(
    packed: Store, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are removed by the next compaction."""
    from mailfs.store.upkeep import backup as module

    real = module._copy_piece
    names_before = {path.name for path in packed.layout.packs.iterdir()}
    compacted: list[set[str]] = []

    def compacting(source: int, target: int, length: int, offset: int) -> int:
        if not compacted:
            with Store.open(packed.layout.root) as store:
                with store.writer.transaction("test", durable=True) as transaction:
                    for docid in (1, 2, 3, 4):
                        transaction.expunge(Docid(docid))
                with store.writer.transaction("test", durable=True) as transaction:
                    transaction.reclaim([Docid(docid) for docid in (1, 2, 3, 4)])
                for _ in compact(store, 0.05):
                    pass
            compacted.append({path.name for path in packed.layout.packs.iterdir()})
        return real(source, target, length, offset)

    monkeypatch.setattr(module, "_copy_piece", compacting)
    made = backup(packed.layout, destination)
    assert compacted[0] > names_before
    with Store.open(made.path) as copy:
        assert problems_of(copy) == []
        assert len(contents_of(copy)) == 20
    for _ in compact(packed, 0.05):
        pass
    assert not {path.name for path in packed.layout.packs.iterdir()} >= names_before


# --- refused, cut off, removed


def test_a_destination_in_the_store_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store.layout.root)
    for place in (
        store.layout.root,
        store.layout.root / "backups",
        tmp_path / "link" / "x",
        store.layout.packs / ".." / "x",
    ):
        with pytest.raises(UsageError, match="lies in the store"):
            backup(store.layout, place)
    assert not (store.layout.root / "backups").exists()


def test_a_folder_with_backups_of_another_store_is_refused(
    store: Store, destination: Path, tmp_path: Path
) -> None:
    backup(store.layout, destination)
    match = r"backups of another store .*a folder of its own"
    with Store.create(tmp_path / "other") as other, pytest.raises(UsageError, match=match):
        backup(other.layout, destination, keep=1)
    assert len(snapshots(destination)) == 1


@pytest.mark.parametrize(
    "place",
    [
        "mailfs.store.upkeep.backup._Copy._copy_index",
        "mailfs.store.upkeep.backup._Copy._bring_pack",
        "mailfs.store.upkeep.backup.write_format",
        "mailfs.store.upkeep.backup.os.fsync",
    ],
)
@pytest.mark.parametrize("is_killed", [False, True], ids=["full", "killed"])
def test_a_backup_that_is_cut_off_leaves_no_snapshot(
    packed: Store, destination: Path, monkeypatch: pytest.MonkeyPatch, place: str, is_killed: bool
) -> None:
    first = backup(packed.layout, destination).path

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        if is_killed:
            # Whoever is killed removes nothing.
            patch.setattr("mailfs.store.upkeep.backup.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(StoreFull, match="cannot back up to"):
            backup(packed.layout, destination)
    left = {path.name for path in destination.iterdir()} - {"latest", first.name}
    assert len(left) == is_killed
    assert snapshots(destination) == [first]
    assert (destination / "latest").resolve() == first
    second = backup(packed.layout, destination)
    assert second.linked_packs > 0
    assert {path.name for path in destination.iterdir()} == {
        "latest", first.name, second.path.name,
    }  # fmt: skip
    assert_same(second.path, packed)


def test_everything_is_synced_before_a_snapshot_has_its_name(
    packed: Store, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(fd: int) -> None:
        happened.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        real_sync(fd)

    def rename(path: Path, target: Path) -> Path:
        happened.append(f"{path.name} -> {target.name}")
        return real_rename(path, target)

    monkeypatch.setattr("os.fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    made = backup(packed.layout, destination).path
    named = next(n for n, what in enumerate(happened) if what.endswith(f"-> {made.name}"))
    synced = set(happened[:named])
    assert synced >= {path.name for path in (made / "packs").iterdir()}
    assert synced >= {"index.sqlite3", "packs", "format.new", happened[named].split(" ")[0]}
    assert happened[-2:] == [destination.name, destination.parent.name]


def test_the_newest_are_kept_and_one_that_is_in_use(packed: Store, destination: Path) -> None:
    made = [backup(packed.layout, destination).path for _ in range(3)]
    assert snapshots(destination) == made
    with Store.open(made[0]):
        done = backup(packed.layout, destination, keep=2)
        assert done.removed == (made[1],)
        assert snapshots(destination) == [made[0], made[2], done.path]
    done = backup(packed.layout, destination, keep=1)
    assert snapshots(destination) == [done.path]
    assert_same(done.path, packed)


def test_a_clock_that_was_set_back_makes_no_snapshot_old(
    packed: Store, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = backup(packed.layout, destination).path
    monkeypatch.setattr("mailfs.store.upkeep.backup.time.time_ns", lambda: 10**18)
    second = backup(packed.layout, destination, keep=1)
    assert second.path.name > first.name
    assert snapshots(destination) == [second.path]


def test_two_backups_to_one_place_do_not_mix(
    packed: Store, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailfs.store.upkeep.backup._DEADLINE_S", 0.02)

    def again(_: int) -> None:
        with pytest.raises(Busy, match="another backup to"):
            backup(packed.layout, destination)

    assert_same(backup(packed.layout, destination, progress=again).path, packed)


@pytest.fixture
def broken(packed: Store, tmp_path: Path) -> Path:
    """A copy of the store whose second pack is gone."""
    root = tmp_path / "broken"
    backup(packed.layout, tmp_path / "first")
    shutil.copytree((tmp_path / "first" / "latest").resolve(), root)
    open_layout(root).pack(PackNumber(2)).unlink()
    return root


def test_a_store_that_is_damaged_gets_no_new_snapshot(broken: Path, destination: Path) -> None:
    with pytest.raises(Corrupt, match="pack 2 is missing: run `mailfs verify`"):
        backup(open_layout(broken), destination)
    assert list(destination.iterdir()) == []
