"""The folder of a store: modes, what is refused, and what a creation that was cut off leaves."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailfs.errors import FormatTooNew, StoreError, StoreExists, StoreMissing
from mailfs.ids import PackNumber
from mailfs.store.layout import new_layout, open_layout, write_format
from mailfs.store.schema import FIRST_SEARCHES, FORMAT_VERSION
from mailfs.store.store import Store
from tests.fakes import make_message, new_message
from tests.oracle import problems_of


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes_of(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): oct(stat.S_IMODE(path.lstat().st_mode))
        for path in (root, *root.rglob("*"))
    }


@pytest.mark.usefixtures("no_umask")
def test_nobody_else_can_read_a_store_whatever_the_umask(tmp_path: Path) -> None:
    root = tmp_path / "made" / "store"
    with Store.create(root) as store:
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.add(new_message(make_message()))
        modes = modes_of(root)
    assert modes == {
        ".": "0o700",
        "packs": "0o700",
        **dict.fromkeys(
            [
                "format",
                "format.bak",
                "lock",
                "in-use",
                "index.sqlite3",
                "index.sqlite3-wal",
                "index.sqlite3-shm",
                "packs/00000001.pack",
            ],
            "0o600",
        ),
    }


def test_a_new_store_has_the_first_searches_and_nothing_else(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store") as store:
        assert {(search.name, search.query) for search in store.index.searches()} == set(
            FIRST_SEARCHES
        )
        assert problems_of(store) == []
        assert list(store.layout.packs.iterdir()) == []


def test_each_store_has_an_id_of_its_own_that_stays(tmp_path: Path) -> None:
    with Store.create(tmp_path / "one") as one, Store.create(tmp_path / "two") as two:
        assert one.layout.store_id != two.layout.store_id
    assert open_layout(tmp_path / "one").store_id == one.layout.store_id


def test_a_missing_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing, match="mailfs init"):
        Store.open(tmp_path / "none")
    with pytest.raises(StoreMissing):
        Store.open(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    Store.create(tmp_path / "store").close()
    path = tmp_path / "store" / "format"
    newer = path.read_text().replace(f"version {FORMAT_VERSION}", f"version {FORMAT_VERSION + 1}")
    path.write_text(newer)
    with pytest.raises(FormatTooNew, match=f"format {FORMAT_VERSION + 1}"):
        Store.open(tmp_path / "store")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"something else\n",
        b"mailfs store\n",
        b"mailfs store\nversion one\nstore-id abc\n",
        b"mailfs store\nversion 1\n",
        b"mailfs store\nversion 1\nstore-id ../../x\n",
        b"\xff\xfe",
    ],
)
def test_a_format_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    Store.create(tmp_path / "store").close()
    (tmp_path / "store" / "format").write_bytes(content)
    with pytest.raises(StoreError):
        Store.open(tmp_path / "store")


def test_a_flipped_bit_in_any_byte_of_format_is_refused(tmp_path: Path) -> None:
    Store.create(tmp_path / "store").close()
    path = tmp_path / "store" / "format"
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(StoreError):
                open_layout(tmp_path / "store")


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "home"
    root.mkdir(mode=0o755)
    (root / "letter.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"letter\.txt"):
        Store.create(root)
    assert os.listdir(root) == ["letter.txt"]
    assert modes_of(root)["."] == "0o755"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("mine")
    with pytest.raises((StoreError, OSError)):
        Store.create(tmp_path / "store")
    assert (tmp_path / "store").read_text() == "mine"


def test_a_store_is_never_made_over_another(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store") as store:
        with pytest.raises(StoreError, match="already"):
            Store.create(tmp_path / "store")
        assert problems_of(store) == []


def test_an_empty_folder_becomes_a_store(tmp_path: Path) -> None:
    root = tmp_path / "store"
    root.mkdir(mode=0o755)
    Store.create(root).close()
    assert modes_of(root)["."] == "0o700"


@pytest.mark.parametrize(
    "dies_in",
    [
        pytest.param("mailfs.store.store.create_tables", id="when it has its folders"),
        pytest.param("mailfs.store.store.sync_directory", id="when it has its index"),
        pytest.param("mailfs.store.layout.os.write", id="when format is empty"),
        pytest.param("mailfs.store.layout.Path.rename", id="when format has no name yet"),
    ],
)
def test_a_store_whose_creation_was_cut_off_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_in: str
) -> None:
    class CutOff(BaseException):
        """Stands for the death of the process: nothing catches it."""

    def die(*_: object) -> None:
        raise CutOff

    root = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(dies_in, die)
        with pytest.raises(CutOff):
            Store.create(root)
    with pytest.raises(StoreMissing):
        Store.open(root)
    with Store.create(root) as store:
        assert problems_of(store) == []
    assert not (root / "format.new").exists()


def test_format_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = new_layout(tmp_path / "store")
    synced: list[str] = []
    monkeypatch.setattr("os.fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    write_format(layout)
    # The file before it gets its name, then the folder that holds the name.
    assert [Path(path).name for path in synced] == [
        *("format.new", "store"),
        *("format.bak.new", "store"),
    ]


def test_format_is_whole_where_write_takes_only_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: whole_write(fd, data[: len(data) // 2 + 1]))
    Store.create(tmp_path / "store").close()
    monkeypatch.undo()
    assert open_layout(tmp_path / "store").version == FORMAT_VERSION


def test_packs_are_numbered_with_eight_digits(tmp_path: Path) -> None:
    layout = new_layout(tmp_path / "store")
    assert layout.pack(PackNumber(12)).name == "00000012.pack"


@pytest.mark.parametrize("folder", ["sidecar", "spool"])
def test_files_of_clients_without_a_format_are_never_made_a_store(
    tmp_path: Path, folder: str
) -> None:
    root = tmp_path / "store"
    (root / folder / "1").mkdir(parents=True)
    with pytest.raises(StoreExists, match=f"{folder} but no file"):
        Store.create(root)
    assert os.listdir(root) == [folder]
    (root / folder / "1").rmdir()
    Store.create(root).close()


def test_a_store_that_lost_its_format_is_never_made_anew(tmp_path: Path) -> None:
    """Making one begins with an empty index, and the old one holds the keywords."""
    root = tmp_path / "store"
    with Store.create(root) as store:
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.add(new_message(make_message(1)))
        text = (root / "format").read_bytes()
    (root / "format").unlink()
    before = (root / "index.sqlite3").read_bytes()
    with pytest.raises(StoreExists, match="lost its file `format`"):
        Store.create(root)
    with pytest.raises(StoreError, match="verify --repair"):
        Store.open(root)
    (root / "format.bak").unlink()
    with pytest.raises(StoreExists, match="packs but no file"):
        Store.create(root)
    assert (root / "index.sqlite3").read_bytes() == before
    (root / "format").write_bytes(text)
    (root / "format").chmod(0o600)
    with Store.open(root) as store:
        assert problems_of(store) == []
