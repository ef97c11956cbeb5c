"""Who has a store open keeps others from putting another index in its place, and is named."""

import errno
import os
from pathlib import Path

import pytest

from mailfs.errors import Busy, StoreError
from mailfs.store.in_use import InUse, describe_users, hold_alone, in_use_path, living_mounts
from mailfs.store.layout import Layout
from mailfs.store.rebuilt import is_rebuilt, make_ready, new_path, put_in_place, remove_new
from mailfs.store.store import Store
from tests.oracle import problems_of
from tests.store.peer import line_of, peer


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    with Store.create(tmp_path / "store") as store:
        return store.layout


def assert_free(layout: Layout) -> None:
    with hold_alone(layout, "a test", 0):
        pass


def test_many_share_a_store_and_one_alone_waits_for_all_of_them(layout: Layout) -> None:
    first, second = InUse(layout, 0), InUse(layout, 0)
    first.close()
    with pytest.raises(Busy, match="a test needs the store"), hold_alone(layout, "a test", 0.02):
        pass
    second.close()
    second.close()
    assert_free(layout)


def test_a_store_gives_its_share_back_when_it_is_closed_and_when_it_cannot_be_opened(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(layout.root), pytest.raises(Busy), hold_alone(layout, "a test", 0):
        pass
    assert_free(layout)

    def fail(layout: Layout) -> None:
        raise StoreError("no")

    with monkeypatch.context() as patch:
        patch.setattr("mailfs.store.store.Index", fail)
        with pytest.raises(StoreError):
            Store.open(layout.root)
    assert_free(layout)


def test_the_kernel_takes_the_share_of_a_dead_process(layout: Layout) -> None:
    with peer("use", layout.root) as user:
        assert line_of(user) == b"open\n"
        with pytest.raises(Busy, match=f"pid {user.pid}"), hold_alone(layout, "a test", 0):
            pass
        user.kill()
        user.wait()
        assert_free(layout)


def test_mounts_are_named_by_their_mount_point_and_others_by_their_command(layout: Layout) -> None:
    (layout.root / "mounts").mkdir(mode=0o700)
    with peer("use", layout.root) as mount, peer("use", layout.root) as other:
        assert line_of(mount) == line_of(other) == b"open\n"
        (layout.root / "mounts" / str(mount.pid)).write_bytes(b"/home/ann/Mail")
        told = describe_users(layout)
    assert f"pid {mount.pid} (mounted at /home/ann/Mail)" in told
    assert f"pid {other.pid} (" in told
    assert "tests.store.peer use" in told


def test_a_record_of_a_mount_whose_number_is_anothers_now_is_no_mount(layout: Layout) -> None:
    (layout.root / "mounts").mkdir(mode=0o700)
    for name in ("1", "99999999", "x"):
        (layout.root / "mounts" / name).write_bytes(b"/home/ann/Mail")
    assert living_mounts(layout) == []


def test_where_nothing_can_be_written_a_store_is_opened_all_the_same(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_use_path(layout).unlink()
    real_open = os.open

    def refusing(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real_open(path, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr("os.open", refusing)
        InUse(layout, 0).close()
        with pytest.raises(StoreError, match="cannot open"), hold_alone(layout, "a test", 0):
            pass
    assert not in_use_path(layout).exists()


def test_a_symbolic_link_in_the_place_of_the_file_is_not_followed(
    layout: Layout, tmp_path: Path
) -> None:
    in_use_path(layout).unlink()
    in_use_path(layout).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        InUse(layout, 0)
    assert not (tmp_path / "elsewhere").exists()


# --- an index that waits to be put in place


def test_whoever_opens_the_store_puts_a_finished_index_in_place(layout: Layout) -> None:
    with (
        Store.open(layout.root) as store,
        store.writer.transaction("test", durable=True) as transaction,
    ):
        transaction.searches.save("old", "*")
    other = layout.root.parent / "other"
    Store.create(other).close()
    new_path(layout).write_bytes((other / "index.sqlite3").read_bytes())
    new_path(layout).chmod(0o600)
    make_ready(layout)
    assert is_rebuilt(layout)
    # Of the old one; read into the new one it would be the end of it.
    Path(f"{layout.index}-wal").write_bytes(b"old" * 1000)
    with Store.open(layout.root) as store:
        assert "old" not in {search.name for search in store.index.searches()}
        assert problems_of(store) == []
    assert not is_rebuilt(layout)


def test_without_a_finished_index_nothing_happens(layout: Layout) -> None:
    before = layout.index.stat().st_ino
    new_path(layout).write_bytes(b"half")
    put_in_place(layout)
    assert layout.index.stat().st_ino == before
    remove_new(layout)
    assert not new_path(layout).exists()


def test_an_index_is_put_in_place_by_one_process_alone(layout: Layout) -> None:
    with Store.open(layout.root):
        new_path(layout).write_bytes(layout.index.read_bytes())
        new_path(layout).chmod(0o600)
        make_ready(layout)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mailfs.store.migrate._DEADLINE_S", 0.05)
            with pytest.raises(Busy, match=f"in use by pid {os.getpid()}"):
                Store.open(layout.root)
        assert is_rebuilt(layout)
    Store.open(layout.root).close()
    assert not is_rebuilt(layout)
