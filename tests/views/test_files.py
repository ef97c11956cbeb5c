"""Ordinary files: where they are, open ones and attributes; real errors of a real file system."""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from errno import EINVAL, ELOOP, EOPNOTSUPP
from pathlib import Path

import pytest

from mailfs.errors import NotFound
from mailfs.ids import Ino, SearchId
from mailfs.store.layout import Layout
from mailfs.views.files import (
    FILE_INO,
    Files,
    area_of,
    is_file_ino,
)
from tests.views.files_world import (
    NEW,
    close,
    content,
    ino_of,
    names,
    open_new,
    put,
)


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def area(tmp_path: Path) -> bytes:
    """An area that has not been made."""
    return os.fsencode(tmp_path / "sidecar" / "7")


# --- where things are


@pytest.mark.parametrize(
    ("search_id", "part", "path", "folder"),
    [
        (None, "", "", "sidecar/0"),
        (None, "", "lists/ü", "sidecar/0/lists/ü"),
        (SearchId(7), "", "lists/linux", "sidecar/7"),
        (SearchId(7), "tmp", "lists/linux", "spool/7/tmp"),
        (SearchId(7), "cur", "lists/linux", "spool/7/cur"),
    ],
)
def test_each_directory_of_the_tree_has_its_area(
    search_id: SearchId | None, part: str, path: str, folder: str
) -> None:
    layout = Layout(Path("/store"), b"abc")
    assert area_of(layout, search_id, part, path) == b"/store/" + folder.encode()


def test_a_file_has_the_inode_number_of_the_real_one_above_file_ino(
    files: Files, area: bytes
) -> None:
    attributes = put(files, area, b"x")
    assert attributes.ino == FILE_INO + os.lstat(area + b"/x").st_ino
    assert is_file_ino(attributes.ino)
    assert not is_file_ino(FILE_INO - 1)


def test_an_area_that_was_not_made_is_empty(files: Files, area: bytes) -> None:
    assert files.entries(area) == []
    assert files.lookup_or_none(area, b"x") is None
    assert files.subdirectories(area) == 0
    assert files.mtime_ns_or_none(area) is None
    assert not os.path.lexists(area)


def test_an_unknown_directory_is_not_found(files: Files) -> None:
    unknown = Ino(FILE_INO + 5)
    with pytest.raises(NotFound):
        files.lookup_or_none(unknown, b"x")
    with pytest.raises(NotFound):
        files.folder(unknown)
    with pytest.raises(NotFound):
        files.attributes(unknown)
    with pytest.raises(NotFound):
        files.place_of(unknown)


def test_areas_and_files_have_exact_modes_whatever_the_umask(files: Files, area: bytes) -> None:
    umask = os.umask(0o777)
    try:
        put_mode = files.create(area, b"file", NEW, 0o100664)
        os.close(put_mode[0])
        modes = [
            put_mode[1],
            files.mkdir(area, b"directory", 0o755),
            files.mknod(area, b"node", stat.S_IFREG | 0o640),
        ]
    finally:
        os.umask(umask)
    assert [stat.S_IMODE(each.stat.st_mode) for each in modes] == [0o664, 0o755, 0o640]
    for folder in (area, os.path.dirname(area)):
        assert stat.S_IMODE(os.lstat(folder).st_mode) == 0o700


def test_an_area_that_was_removed_is_made_again(files: Files, area: bytes, tmp_path: Path) -> None:
    other = os.fsencode(tmp_path / "other")
    put(files, other, b"from")
    ino = put(files, other, b"linked").ino
    fillers: dict[bytes, Callable[[], object]] = {
        b"created": lambda: put(files, area, b"created"),
        b"made": lambda: files.mkdir(area, b"made", 0o700),
        b"node": lambda: files.mknod(area, b"node", 0o600),
        b"symbolic": lambda: files.symlink(area, b"symbolic", b"target"),
        b"linked": lambda: files.link(ino, area, b"linked"),
        b"renamed": lambda: files.rename(other, b"from", area, b"renamed", 0),
    }
    for name, fill in fillers.items():
        fill()
        assert names(files, area) == [name]
        (os.rmdir if name == b"made" else os.unlink)(area + b"/" + name)
        os.rmdir(area)


def test_the_names_of_a_new_area_and_of_its_files_are_synced(
    files: Files, area: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    path = Path(os.fsdecode(area))
    put(files, area, b"x")
    assert synced == [str(path.parents[1]), str(path.parent)]


def test_subdirectories_and_mtime_are_those_of_the_real_folder(files: Files, area: bytes) -> None:
    files.mkdir(area, b"one", 0o700)
    files.mkdir(area, b"two", 0o700)
    files.symlink(area, b"three", b"one")
    assert files.subdirectories(area) == 2
    assert files.subdirectories(ino_of(files, area, b"one")) == 0
    assert files.mtime_ns_or_none(area) == os.lstat(area).st_mtime_ns


def test_subdirectories_are_counted_where_the_file_system_does_not(
    files: Files, area: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.mkdir(area, b"one", 0o700)
    files.symlink(area, b"two", b"one")
    fields = list(os.lstat(area))
    fields[stat.ST_NLINK] = 1
    monkeypatch.setattr("mailfs.views.files.lstat_or_none", lambda path: os.stat_result(fields))
    assert files.subdirectories(area) == 1


# --- open files


def test_create_refuses_or_opens_what_is_there(files: Files, area: bytes) -> None:
    ino = put(files, area, b"x", b"old").ino
    with pytest.raises(FileExistsError):
        files.create(area, b"x", NEW, 0o600)
    fd, attributes = files.create(area, b"x", os.O_CREAT | os.O_RDWR, 0o644)
    os.close(fd)
    assert attributes.ino == ino
    assert stat.S_IMODE(attributes.stat.st_mode) == 0o600
    fd, attributes = files.create(area, b"x", os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o644)
    os.close(fd)
    assert attributes.stat.st_size == 0


def test_what_is_written_goes_where_the_kernel_says_also_to_an_appended_file(
    files: Files, area: bytes
) -> None:
    ino, fd = open_new(files, area, b"x", NEW | os.O_APPEND | os.O_DIRECT)
    again = files.open(ino, os.O_RDWR | os.O_APPEND | os.O_DIRECT)
    os.pwrite(fd, b"abc", 0)
    os.pwrite(again, b"x", 1)
    assert content(files, ino) == b"axc"
    os.close(again)
    close(files, ino, fd)


def test_descriptors_are_not_inherited(files: Files, area: bytes) -> None:
    ino, fd = open_new(files, area, b"x")
    again = files.open(ino, os.O_RDONLY)
    assert not os.get_inheritable(fd)
    assert not os.get_inheritable(again)
    os.close(again)
    close(files, ino, fd)


def test_no_symbolic_link_is_followed(files: Files, area: bytes, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"untouched")
    target.chmod(0o640)
    before = target.stat()
    ino = files.symlink(area, b"x", os.fsencode(target)).ino
    for refused in (
        lambda: files.create(area, b"x", os.O_CREAT | os.O_RDWR, 0o600),
        lambda: files.open(ino, os.O_RDONLY),
    ):
        with pytest.raises(OSError, match=os.strerror(ELOOP)):
            refused()
    with pytest.raises(OSError, match="no mode of its own") as caught:
        files.set_attributes(ino, None, mode=0o777)
    assert caught.value.errno == EOPNOTSUPP
    with pytest.raises(OSError, match="regular file") as caught:
        files.set_attributes(ino, None, size=0)
    assert caught.value.errno == EINVAL
    changed = files.set_attributes(ino, None, mtime_ns=5, atime_ns=6, uid=os.getuid())
    assert changed.stat.st_mtime_ns == 5
    assert files.link(ino, area, b"y").ino == ino
    assert files.readlink(ino) == os.fsencode(target)
    assert target.read_bytes() == b"untouched"
    assert (target.stat().st_mode, target.stat().st_mtime_ns) == (
        before.st_mode,
        before.st_mtime_ns,
    )


def test_a_file_opened_and_removed_is_there_until_it_is_closed(files: Files, area: bytes) -> None:
    ino, fd = open_new(files, area, b"x")
    os.write(fd, b"some text")
    files.unlink(area, b"x")
    assert files.attributes(ino).stat.st_nlink == 0
    assert files.attributes(ino).stat.st_size == 9
    assert content(files, ino) == b"some text"
    assert files.set_attributes(ino, None, size=4, mode=0o640).stat.st_size == 4
    assert content(files, ino) == b"some"
    with pytest.raises(NotFound):
        files.place_of(ino)
    with pytest.raises(NotFound):
        files.link(ino, area, b"y")
    close(files, ino, fd)
    with pytest.raises(NotFound):
        files.attributes(ino)
    with pytest.raises(NotFound):
        files.open(ino, os.O_RDONLY)
    with pytest.raises(NotFound):
        files.set_attributes(ino, None, size=0)


def test_the_length_of_a_removed_file_is_set_by_the_descriptor_that_may_write(
    files: Files, area: bytes
) -> None:
    ino = put(files, area, b"x", b"some text").ino
    descriptors = []
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDONLY):
        fd = files.open(ino, flags)
        files.opened(ino, fd, flags)
        descriptors.append(fd)
    files.unlink(area, b"x")
    assert files.set_attributes(ino, None, size=2).stat.st_size == 2
    for fd in descriptors:
        close(files, ino, fd)


def test_open_for_writing_is_known_until_the_last_writer_closes(files: Files, area: bytes) -> None:
    ino, fd = open_new(files, area, b"x", os.O_CREAT | os.O_WRONLY)
    reader = files.open(ino, os.O_RDONLY)
    files.opened(ino, reader, os.O_RDONLY)
    assert files.is_open_for_writing(ino)
    close(files, ino, fd)
    assert not files.is_open_for_writing(ino)
    close(files, ino, reader)
    assert not files.is_open_for_writing(Ino(FILE_INO + 5))


def test_a_fifo_in_the_place_of_a_file_makes_nobody_wait(files: Files, area: bytes) -> None:
    ino = files.mknod(area, b"x", stat.S_IFIFO | 0o600).ino
    fd = files.open(ino, os.O_RDONLY)
    assert stat.S_ISFIFO(os.fstat(fd).st_mode)
    os.close(fd)


# --- attributes


@pytest.fixture(params=["by name", "by descriptor"])
def target(
    request: pytest.FixtureRequest, files: Files, area: bytes
) -> Iterator[tuple[Ino, int | None]]:
    """A file of 9 bytes, and the descriptor to change it by."""
    ino, fd = open_new(files, area, b"x")
    os.write(fd, b"some text")
    yield ino, fd if request.param == "by descriptor" else None
    close(files, ino, fd)


def test_attributes_are_set_each_alone(files: Files, target: tuple[Ino, int | None]) -> None:
    ino, fd = target
    before = files.attributes(ino).stat
    assert files.set_attributes(ino, fd, size=2_000_000).stat.st_size == 2_000_000
    assert files.set_attributes(ino, fd, mode=0o4751).stat.st_mode == stat.S_IFREG | 0o4751
    changed = files.set_attributes(ino, fd, mtime_ns=1_234_567_890_123_456_789).stat
    assert (changed.st_atime_ns, changed.st_mtime_ns) == (
        before.st_atime_ns,
        1_234_567_890_123_456_789,
    )
    changed = files.set_attributes(ino, fd, atime_ns=-7).stat
    assert (changed.st_atime_ns, changed.st_mtime_ns) == (-7, 1_234_567_890_123_456_789)
    changed = files.set_attributes(ino, fd, uid=os.getuid()).stat
    changed = files.set_attributes(ino, fd, gid=os.getgid()).stat
    assert (changed.st_uid, changed.st_gid) == (os.getuid(), os.getgid())
    assert files.attributes(ino).stat == files.set_attributes(ino, fd).stat


def test_owner_mode_and_length_set_together_all_hold(
    files: Files, target: tuple[Ino, int | None]
) -> None:
    ino, fd = target
    changed = files.set_attributes(
        ino, fd, size=3, mode=0o6711, uid=os.getuid(), gid=os.getgid(), mtime_ns=5, atime_ns=6
    ).stat
    assert stat.S_IMODE(changed.st_mode) == 0o6711
    assert (changed.st_size, changed.st_mtime_ns, changed.st_atime_ns) == (3, 5, 6)


def test_directories_and_sockets_have_modes_and_times_but_no_length(
    files: Files, area: bytes
) -> None:
    files.mkdir(area, b"directory", 0o700)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(area + b"/socket")
        for name in (b"directory", b"socket"):
            ino = ino_of(files, area, name)
            changed = files.set_attributes(ino, None, mode=0o500, mtime_ns=5).stat
            assert (stat.S_IMODE(changed.st_mode), changed.st_mtime_ns) == (0o500, 5)
            with pytest.raises(OSError, match="regular file"):
                files.set_attributes(ino, None, size=0)
