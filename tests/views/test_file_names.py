"""Names and numbers of ordinary files: numbers that follow their files through renames, removals and forgets."""

import os
import stat
import tempfile
import time
from collections.abc import Callable
from errno import EEXIST, EINVAL, ENOENT, EPERM, EXDEV
from pathlib import Path

import pytest

from mailfs.errors import NotFound
from mailfs.ids import Ino
from mailfs.views.areas import scan
from mailfs.views.files import (
    FILE_INO,
    RENAME_NOREPLACE,
    FileAttributes,
    Files,
    Place,
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
    two_of_one_number,
)

RENAME_EXCHANGE = 2


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def area(tmp_path: Path) -> bytes:
    """An area that has not been made."""
    return os.fsencode(tmp_path / "sidecar" / "7")


# --- listing, lookups and what is forgotten


def test_entries_are_sorted_and_agree_with_lookups(files: Files, area: bytes) -> None:
    for name in (b"b", b"\xff", b"a", b".hidden"):
        put(files, area, name, name)
    listed = files.entries(area)
    assert [entry.name for entry in listed] == [b".hidden", b"a", b"b", b"\xff"]
    for entry in listed:
        assert entry.attributes == files.lookup_or_none(area, entry.name)


def test_what_vanishes_while_a_folder_is_read_is_left_out(files: Files, area: bytes) -> None:
    for name in (b"a", b"b", b"c"):
        put(files, area, name)
    reading = scan(area)
    first, _ = next(reading)
    for name in {b"a", b"b", b"c"} - {first}:
        os.unlink(area + b"/" + name)
    assert list(reading) == []


def test_a_file_is_remembered_until_all_lookups_are_taken_back(files: Files, area: bytes) -> None:
    ino = put(files, area, b"x").ino
    files.lookup_or_none(area, b"x")
    files.count_listed(area, files.entries(area)[0])
    files.forget(ino, 2)
    assert files.attributes(ino).stat.st_size == 0
    files.forget(ino)
    with pytest.raises(NotFound):
        files.attributes(ino)
    assert ino_of(files, area, b"x") == ino


def test_a_late_forget_does_not_take_the_next_file_of_that_number(
    files: Files, area: bytes
) -> None:
    first, second = two_of_one_number(files, area)
    files.forget(first.ino)
    assert files.attributes(second.ino).generation == second.generation
    files.forget(second.ino)
    with pytest.raises(NotFound):
        files.attributes(second.ino)


def test_an_entry_that_was_forgotten_since_the_listing_is_remembered_when_handed_out(
    files: Files, area: bytes
) -> None:
    ino = put(files, area, b"x").ino
    entry = files.entries(area)[0]
    files.forget(ino)
    files.count_listed(area, entry)
    assert files.place_of(ino) == (area, b"x")
    assert files.attributes(ino) == entry.attributes


def test_an_entry_removed_since_the_listing_is_counted_under_its_own_number(
    files: Files, area: bytes
) -> None:
    ino = put(files, area, b"first").ino
    entry = files.entries(area)[0]
    files.unlink(area, b"first")
    second = put(files, area, b"second")
    files.count_listed(area, entry)
    files.forget(ino)
    # The kernel still has one lookup of the first: its number is not given away.
    files.unlink(area, b"second")
    assert put(files, area, b"third").ino not in (ino, second.ino)


def test_a_forgotten_file_that_is_open_is_remembered_until_it_is_closed(
    files: Files, area: bytes
) -> None:
    ino, fd = open_new(files, area, b"x")
    files.forget(ino)
    assert files.attributes(ino).stat.st_nlink == 1
    close(files, ino, fd)
    with pytest.raises(NotFound):
        files.attributes(ino)


def test_forgetting_what_is_not_known_is_harmless(files: Files) -> None:
    files.forget(Ino(FILE_INO + 3), 4)


def test_ten_thousand_files_are_listed_in_linear_time(files: Files, tmp_path: Path) -> None:
    seconds = []
    for count in (1_000, 10_000):
        folder = os.fsencode(tmp_path / str(count))
        os.mkdir(folder)
        for number in range(count // 2):
            os.close(os.open(folder + b"/%d" % number, NEW))
            os.link(folder + b"/0", folder + b"/link%d" % number)
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            assert len(files.entries(folder)) == count
            taken.append(time.perf_counter() - start)
        seconds.append(min(taken))
    # Ten times as many: ten times as long, a hundred times if each were compared with each.
    assert seconds[1] < 40 * seconds[0]


# --- numbers


def test_a_later_file_of_a_known_number_gets_another(files: Files, area: bytes) -> None:
    """Or a client between its LOOKUP and GETATTR of the first would get EIO."""
    first, second = two_of_one_number(files, area)
    assert second.ino != first.ino
    assert files.lookup_or_none(area, b"second") == second
    with pytest.raises(NotFound):
        files.attributes(first.ino)


def test_a_later_file_of_a_forgotten_number_has_a_greater_generation(
    files: Files, area: bytes
) -> None:
    first, second = two_of_one_number(files, area, is_forgotten=True)
    assert second.ino == first.ino
    assert second.generation > first.generation


def _replaced(files: Files, area: bytes) -> FileAttributes:
    replaced = put(files, area, b"target")
    put(files, area, b"source")
    files.rename(area, b"source", area, b"target", 0)
    os.unlink(area + b"/target")
    return replaced


def _removed_directory(files: Files, area: bytes) -> FileAttributes:
    removed = files.mkdir(area, b"target", 0o700)
    files.rmdir(area, b"target")
    return removed


@pytest.mark.parametrize("end", [_replaced, _removed_directory])
def test_a_later_file_under_the_same_name_gets_another_number(
    files: Files, area: bytes, end: Callable[[Files, bytes], FileAttributes]
) -> None:
    for _ in range(200):
        ended = end(files, area)
        after = put(files, area, b"target")
        files.unlink(area, b"target")
        assert after.ino != ended.ino
        if after.stat.st_ino == ended.stat.st_ino:
            return
    pytest.skip("this file system gives no number twice")


def test_a_file_made_behind_our_back_is_not_taken_for_the_one_removed_there(
    files: Files, area: bytes
) -> None:
    for number in range(200):
        first = put(files, area, b"first")
        os.unlink(area + b"/first")
        os.close(os.open(area + b"/%d" % number, NEW))
        second = files.lookup_or_none(area, b"%d" % number)
        assert second is not None
        assert second.ino != first.ino
        if first.stat.st_ino == second.stat.st_ino:
            return
    pytest.skip("this file system gives no number twice")


def test_another_name_of_a_file_keeps_its_generation(files: Files, area: bytes) -> None:
    first = put(files, area, b"a")
    linked = files.link(first.ino, area, b"b")
    assert (linked.ino, linked.generation) == (first.ino, first.generation)
    files.unlink(area, b"a")
    found = files.lookup_or_none(area, b"b")
    assert found is not None
    assert (found.ino, found.generation) == (first.ino, first.generation)


def test_a_used_again_number_is_one_file_under_all_its_names(files: Files, area: bytes) -> None:
    _, second = two_of_one_number(files, area)
    linked = files.link(second.ino, area, b"linked")
    assert (linked.ino, linked.generation) == (second.ino, second.generation)


@pytest.mark.parametrize("is_removed_by_us", [True, False])
def test_a_link_made_behind_our_back_keeps_the_generation_when_the_known_name_is_gone(
    files: Files, area: bytes, is_removed_by_us: bool
) -> None:
    first = put(files, area, b"known")
    os.link(area + b"/known", area + b"/other")
    if is_removed_by_us:
        files.unlink(area, b"known")
    else:
        os.link(area + b"/known", area + b"/third")
        os.unlink(area + b"/known")
    assert _seen(files, area, b"other") == (first.ino, first.generation)


def test_an_open_file_renamed_behind_our_back_keeps_its_generation(
    files: Files, area: bytes
) -> None:
    ino, fd = open_new(files, area, b"x")
    generation = files.attributes(ino).generation
    os.rename(area + b"/x", area + b"/y")
    assert files.attributes(ino).stat.st_nlink == 1
    assert _seen(files, area, b"y") == (ino, generation)
    close(files, ino, fd)
    linked = files.link(ino, area, b"z")
    assert (linked.ino, linked.generation) == (ino, generation)


def test_another_file_under_the_known_name_is_not_taken_for_the_known_one(
    files: Files, area: bytes
) -> None:
    ino = put(files, area, b"x").ino
    put(files, area, b"y")
    os.rename(area + b"/y", area + b"/x")
    with pytest.raises(NotFound):
        files.attributes(ino)


def test_directories_moved_into_one_another_behind_our_back_make_no_circle(
    files: Files, area: bytes
) -> None:
    outer = files.mkdir(area, b"a", 0o700).ino
    inner = files.mkdir(outer, b"b", 0o700).ino
    files.forget(outer)
    files.entries(area)
    os.rename(area + b"/a", area + b"/z")
    os.makedirs(area + b"/a/b")
    os.rename(area + b"/z", area + b"/a/b/x")
    assert ino_of(files, inner, b"x") == outer
    with pytest.raises(OSError, match="File name too long"):
        files.folder(inner)


def _seen(files: Files, place: Place, name: bytes) -> tuple[Ino, int]:
    found = files.lookup_or_none(place, name)
    assert found is not None
    return found.ino, found.generation


def test_a_counted_number_is_never_given_to_another_file(files: Files, area: bytes) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        put(files, os.fsencode(elsewhere), b"first of all")
        for _ in range(200):
            first = put(files, area, b"x")
            if first.stat.st_dev == os.lstat(elsewhere).st_dev:
                pytest.skip("/dev/shm is no other file system than the temporary folder")
            files.unlink(area, b"x")
            second = put(files, area, b"x")
            files.unlink(area, b"x")
            assert second.ino != first.ino
            if second.stat.st_ino == first.stat.st_ino:
                return
    pytest.skip("this file system gives no number twice")


def test_files_of_two_file_systems_have_different_numbers(files: Files, area: bytes) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        there = os.fsencode(elsewhere)
        here = put(files, area, b"x")
        if os.lstat(there).st_dev == os.lstat(area).st_dev:
            pytest.skip("/dev/shm is no other file system than the temporary folder")
        other = put(files, there, b"x")
        assert is_file_ino(other.ino)
        assert other.ino >= FILE_INO + (1 << 61) > here.ino
        assert ino_of(files, there, b"x") == other.ino
        files.unlink(there, b"x")
        assert put(files, there, b"x").ino != other.ino
        with pytest.raises(OSError, match=os.strerror(EXDEV)):
            files.rename(there, b"x", area, b"y", 0)


def test_numbers_too_great_are_replaced_by_counted_ones(
    files: Files, area: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_high_bits(path: bytes) -> os.stat_result:
        fields = list(os.lstat(path))
        fields[stat.ST_INO] += 1 << 63
        return os.stat_result(fields)

    put(files, area, b"x")
    put(files, area, b"y")
    monkeypatch.setattr("mailfs.views.files.lstat_or_none", with_high_bits)
    inos = [ino_of(files, area, name) for name in (b"x", b"y", b"x")]
    assert inos[0] == inos[2] != inos[1]
    assert all(FILE_INO < ino < 1 << 63 for ino in inos)
    assert files.attributes(inos[0]).ino == inos[0]


# --- making and removing names


def test_regular_files_fifos_and_sockets_are_made_and_devices_refused(
    files: Files, area: bytes
) -> None:
    for kind in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK):
        made = files.mknod(area, b"%d" % kind, kind | 0o640)
        assert made.stat.st_mode == kind | 0o640
    assert stat.S_ISREG(files.mknod(area, b"plain", 0o600).stat.st_mode)
    for device in (stat.S_IFCHR, stat.S_IFBLK):
        with pytest.raises(PermissionError) as caught:
            files.mknod(area, b"device", device | 0o600)
        assert caught.value.errno == EPERM
    with pytest.raises(FileExistsError):
        files.mknod(area, b"plain", 0o600)


def test_a_name_too_long_is_refused_as_the_real_file_system_does(files: Files, area: bytes) -> None:
    with pytest.raises(OSError, match="File name too long"):
        files.create(area, b"x" * 256, NEW, 0o600)
    with pytest.raises(OSError, match="File name too long"):
        files.lookup_or_none(area, b"x" * 256)


def test_a_path_too_long_is_refused(files: Files, area: bytes) -> None:
    place: Place = area
    while len(files.folder(place)) < os.pathconf("/", "PC_PATH_MAX") - 300:
        place = files.mkdir(place, b"x" * 250, 0o700).ino
    last = files.mkdir(place, b"x" * 250, 0o700).ino
    with pytest.raises(OSError, match="File name too long"):
        files.mkdir(last, b"x" * 250, 0o700)


def test_directories_are_removed_only_when_empty(files: Files, area: bytes) -> None:
    directory = files.mkdir(area, b"directory", 0o700).ino
    put(files, directory, b"x")
    with pytest.raises(OSError, match="not empty"):
        files.rmdir(area, b"directory")
    files.unlink(directory, b"x")
    files.rmdir(area, b"directory")
    with pytest.raises(NotFound):
        files.create(directory, b"x", NEW, 0o600)


def test_a_file_is_found_by_a_name_that_is_left(files: Files, area: bytes) -> None:
    ino = put(files, area, b"0", b"text").ino
    for number in range(1, 20):
        files.link(ino, area, b"%d" % number)
    for number in range(19, 13, -1):
        files.unlink(area, b"%d" % number)
        assert files.attributes(ino).stat.st_nlink == number
    assert files.place_of(ino)[1] == b"13"
    # Behind our back too.
    os.unlink(area + b"/13")
    assert content(files, ino) == b"text"
    assert files.place_of(ino)[1] == b"12"


# --- rename


def test_renaming_keeps_what_is_open_and_within(files: Files, area: bytes, tmp_path: Path) -> None:
    other = os.fsencode(tmp_path / "other")
    outer = files.mkdir(area, b"outer", 0o700).ino
    inner = files.mkdir(outer, b"inner", 0o700).ino
    ino, fd = open_new(files, inner, b"x")
    os.write(fd, b"text")
    files.rename(area, b"outer", other, b"moved", 0)
    assert files.folder(inner) == other + b"/moved/inner"
    assert files.attributes(ino).stat.st_size == 4
    assert content(files, ino) == b"text"
    put(files, inner, b"y")
    assert names(files, inner) == [b"x", b"y"]
    files.rename(inner, b"x", area, b"x", RENAME_NOREPLACE)
    assert files.place_of(ino) == (area, b"x")
    assert files.set_attributes(ino, fd, size=1).stat.st_size == 1
    close(files, ino, fd)


@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE])
@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo"])
def test_a_renamed_file_keeps_its_number(files: Files, area: bytes, kind: str, flags: int) -> None:
    makers: dict[str, Callable[[], FileAttributes]] = {
        "file": lambda: put(files, area, b"x"),
        "directory": lambda: files.mkdir(area, b"x", 0o700),
        "symlink": lambda: files.symlink(area, b"x", b"nowhere"),
        "fifo": lambda: files.mknod(area, b"x", stat.S_IFIFO | 0o600),
    }
    made = makers[kind]()
    files.rename(area, b"x", area, b"y", flags)
    assert names(files, area) == [b"y"]
    found = files.lookup_or_none(area, b"y")
    assert found is not None
    assert (found.ino, found.generation) == (made.ino, made.generation)
    assert files.attributes(made.ino).stat.st_nlink == made.stat.st_nlink


@pytest.mark.parametrize("target", ["file", "directory", "itself", "link"])
@pytest.mark.parametrize("source", ["file", "directory"])
def test_noreplace_replaces_nothing(files: Files, area: bytes, source: str, target: str) -> None:
    def make(kind: str, name: bytes) -> Ino:
        if kind == "directory":
            return files.mkdir(area, name, 0o700).ino
        return put(files, area, name, b"text").ino

    ino = make(source, b"x")
    new_name = b"x" if target == "itself" else b"y"
    if target == "link" and source == "file":
        files.link(ino, area, new_name)
    elif target != "itself":
        make("file" if target == "link" else target, new_name)
    before = [(entry.name, entry.attributes.ino) for entry in files.entries(area)]
    with pytest.raises(FileExistsError) as caught:
        files.rename(area, b"x", area, new_name, RENAME_NOREPLACE)
    assert caught.value.errno == EEXIST
    assert [(entry.name, entry.attributes.ino) for entry in files.entries(area)] == before


def test_noreplace_that_cannot_take_the_old_name_away_leaves_no_new_one(
    files: Files, area: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino = put(files, area, b"x").ino
    really_unlink = os.unlink

    def unlink(path: bytes) -> None:
        if path.endswith(b"/x"):
            raise PermissionError(EPERM, "not this one")
        really_unlink(path)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(PermissionError):
        files.rename(area, b"x", area, b"y", RENAME_NOREPLACE)
    assert names(files, area) == [b"x"]
    assert files.attributes(ino).stat.st_nlink == 1


@pytest.mark.parametrize("flags", [RENAME_EXCHANGE, 4, RENAME_EXCHANGE | RENAME_NOREPLACE])
def test_other_renames_are_refused(files: Files, area: bytes, flags: int) -> None:
    put(files, area, b"x")
    put(files, area, b"y")
    with pytest.raises(OSError, match="exchanged") as caught:
        files.rename(area, b"x", area, b"y", flags)
    assert caught.value.errno == EINVAL


def test_renaming_between_two_names_of_a_file_leaves_both(files: Files, area: bytes) -> None:
    ino = put(files, area, b"x").ino
    files.link(ino, area, b"y")
    files.rename(area, b"x", area, b"y", 0)
    assert sorted(os.listdir(area)) == [b"x", b"y"]
    files.unlink(area, b"y")
    assert files.attributes(ino).stat.st_nlink == 1


def test_what_a_rename_replaced_is_there_while_it_is_open(files: Files, area: bytes) -> None:
    replaced, fd = open_new(files, area, b"y")
    os.write(fd, b"old")
    ino = put(files, area, b"x", b"new").ino
    files.rename(area, b"x", area, b"y", 0)
    assert content(files, replaced) == b"old"
    assert content(files, ino) == b"new"
    close(files, replaced, fd)
    with pytest.raises(NotFound):
        files.attributes(replaced)
    assert files.place_of(ino) == (area, b"y")


def test_a_rename_of_nothing_makes_no_area(files: Files, area: bytes, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        files.rename(os.fsencode(tmp_path), b"x", area, b"x", 0)
    assert caught.value.errno == ENOENT
    assert not os.path.lexists(area)
