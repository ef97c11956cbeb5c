"""rsync, tar and cp -a: out of a view as from any folder, and into one as delivery."""

import hashlib
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.clients.sides import Side
from tests.fakes import make_message

DATE_S = 1_600_000_000
NAMES = ["1.a.example:2,", "2.a.example:2,S", "3.a.example:2,FRS", "4.a.example", "5.a.example"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A Maildir on disk, its messages of some days in 2020."""
    return make_maildir(tmp_path / "source")


def make_maildir(root: Path) -> Path:
    for part in ("cur", "new", "tmp"):
        (root / part).mkdir(parents=True)
    for number, name in enumerate(NAMES):
        path = root / ("cur" if ":" in name else "new") / name
        path.write_bytes(make_message(number, body="line\n" * number))
        os.utime(path, (DATE_S + 86400 * number, DATE_S + 86400 * number))
    return root


def contents(root: Path) -> Counter[tuple[str, int, str]]:
    """(path from the root, mtime in seconds, digest) of all files."""
    return Counter(
        (
            str(path.relative_to(root)),
            int(path.stat().st_mtime),
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in root.rglob("*")
        if path.is_file()
    )


def need(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def rsync(side: Side, source: Path, target: Path, *flags: str) -> list[str]:
    """The paths of the files that rsync copied or removed."""
    said = side.account.output("rsync", "-a", "-i", *flags, f"{source}/", f"{target}/")
    return sorted(
        line.split(maxsplit=1)[1] for line in said.splitlines() if line[:2] in (">f", "*d")
    )


def fill_by_tar(side: Side, source: Path, target: Path) -> None:
    packed = side.account.home / "in.tar"
    side.account.output("tar", "-C", source, "-cf", packed, ".")
    side.account.output("tar", "-C", target, "-xf", packed)


def fill_by_rsync(side: Side, source: Path, target: Path) -> None:
    assert len(rsync(side, source, target)) == len(NAMES)


def fill_by_cp(side: Side, source: Path, target: Path) -> None:
    side.account.output("cp", "-a", f"{source}/.", target)


Fill = Callable[[Side, Path, Path], None]


@pytest.fixture(params=[fill_by_rsync, fill_by_tar, fill_by_cp], ids=["rsync", "tar", "cp"])
def fill(request: pytest.FixtureRequest) -> Fill:
    found = request.param
    assert callable(found)
    need(request.node.callspec.id)
    return found  # type: ignore[no-any-return]  # pytest's params have no type


def test_what_is_copied_into_a_view_is_delivered_with_its_names_flags_and_dates(
    sides: tuple[Side, Side], source: Path, fill: Fill
) -> None:
    for side in sides:
        fill(side, source, side.folder("work"))
        assert contents(side.root / "work") == contents(source), side.name
    plain, mounted = sides
    assert mounted.mails("work") == plain.mails("work")
    assert mounted.mailfs is not None
    assert mounted.mailfs.count("tag:work") == len(NAMES)
    assert mounted.mailfs.count("tag:work is:flagged is:answered is:read") == 1
    mounted.mailfs.umount()
    mounted.mailfs.mount()
    assert contents(mounted.root / "work") == contents(source)


MANY = 300


def listings_until(is_over: threading.Event, folder: Path) -> list[list[str]]:
    """What is listed again and again while something else is done: each name once, whatever it is at that time."""
    found = []
    while not is_over.is_set():
        found.append(os.listdir(folder))
    return found


def test_what_cp_writes_can_be_listed_and_flagged_at_once(
    sides: tuple[Side, Side], tmp_path: Path
) -> None:
    source = tmp_path / "many"
    source.mkdir()
    names = [f"{number}.a.example:2,F" for number in range(MANY)]
    for number, name in enumerate(names):
        (source / name).write_bytes(make_message(number))
    for side in sides:
        folder = side.folder("work") / "cur"
        is_over = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            listing = pool.submit(listings_until, is_over, folder)
            try:
                side.account.output("cp", "-r", f"{source}/.", folder)
                for name in names:
                    (folder / name).rename(folder / f"{name}S")
            finally:
                is_over.set()
        assert all(len(each) == len(set(each)) for each in listing.result()), side.name
        assert sorted(os.listdir(folder)) == sorted(f"{name}S" for name in names), side.name
    assert sides[0].mails("work") == sides[1].mails("work")


def test_rsync_into_a_view_copies_only_what_is_new(sides: tuple[Side, Side], source: Path) -> None:
    need("rsync")
    for side in sides:
        target = side.folder("work")
        rsync(side, source, target)
        assert rsync(side, source, target) == [], side.name
        (source / "new/9.a.example").write_bytes(make_message(9))
        assert rsync(side, source, target) == ["new/9.a.example"], side.name
        (source / "new/9.a.example").unlink()
        assert rsync(side, source, target, "--delete") == ["new/9.a.example"], side.name
        assert contents(target) == contents(source)


def fill_by_mv(side: Side, source: Path, target: Path) -> None:
    """From another file system or not: delivery through tmp/ with the dates kept."""
    for part in ("cur", "new"):
        for path in sorted((source / part).iterdir()):
            side.account.output("cp", "-p", path, target / "tmp" / path.name)
            side.account.output("mv", target / "tmp" / path.name, target / part / path.name)


def test_rsync_out_of_a_view_copies_everything_once(
    sides: tuple[Side, Side], source: Path, tmp_path: Path
) -> None:
    need("rsync")
    for side in sides:
        view = side.folder("work")
        fill_by_mv(side, source, view)
        copy = tmp_path / f"copy of {side.name}"
        assert len(rsync(side, view, copy)) == len(NAMES)
        assert contents(copy) == contents(source), side.name
        # Not even the date of a folder has changed by being read.
        again = side.account.output("rsync", "-a", "-i", f"{view}/", f"{copy}/")
        assert again == "", side.name
        message = view / "cur" / NAMES[0]
        message.rename(message.with_name(message.name + "F"))
        assert rsync(side, view, copy, "--delete") == sorted(
            [f"cur/{NAMES[0]}", f"cur/{NAMES[0]}F"]
        )


@pytest.mark.parametrize("program", ["tar", "cp"])
def test_what_is_copied_out_of_a_view_is_the_same_maildir(
    sides: tuple[Side, Side], source: Path, tmp_path: Path, program: str
) -> None:
    for side in sides:
        view = side.folder("work")
        fill_by_mv(side, source, view)
        (view / "dovecot-uidlist").write_bytes(b"3 V1 N1\n")
        copy = tmp_path / f"copy of {side.name}"
        copy.mkdir()
        if program == "tar":
            packed = side.account.home / "out.tar"
            # tar answers 1 for a file that changed while it was read.
            side.account.output("tar", "-C", view, "-cf", packed, ".")
            side.account.output("tar", "-C", copy, "-xf", packed)
            # What the archive says is what a second look says.
            assert side.account.output("tar", "-C", view, "--compare", "-f", packed) == ""
        else:
            side.account.output("cp", "-a", f"{view}/.", copy)
        assert contents(copy) == contents(view), side.name
        assert len(contents(copy)) == len(NAMES) + 1
        assert Counter(dict.fromkeys(contents(source), 1)) <= contents(copy)
