"""No escape and no secrets, in small numbers; and who may touch a store, a mount and a mount point."""

import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from shutil import rmtree

import pytest

from mailfs.cli.commands import harmless, json_text
from mailfs.errors import MailfsError
from mailfs.store.store import Store
from tests.fakes import RunMailfs, make_message, new_message
from tests.mount.accounts import Account, copy_packages, ordinary
from tests.mount.mounting import Mailfs, add_messages
from tests.oracle import assert_sound
from tests.torture import escape
from tests.torture.hostile import why_not

needs_mount = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@pytest.mark.mount
@needs_mount
def test_names_lead_nowhere_and_mail_stays_where_it_is(tmp_path: Path) -> None:
    report = escape.run(7, 60, tmp_path)
    assert report.is_sound, "\n".join(report.lines())


def test_10_000_names_are_made_the_same_each_time() -> None:
    names = list(escape.evil_names(Random(3), 10_000))
    assert names == list(escape.evil_names(Random(3), 10_000))
    assert not any(b"/" in name or b"\0" in name for name in names)
    assert {b"..", b"-rf", b"\x1b[2J"} <= set(names)


def test_nothing_of_what_is_printed_commands_a_terminal() -> None:
    assert harmless("a\x1b[2J\tb\n\x9bc\u202ed\x7f") == "a[2J\tb\ncd"
    assert harmless("\x1b" * 200_000 + "x") == "x"
    assert json_text(["a\x9b\u202e\U000e0001é\n"]) == '[\n "a\\u009b\\u202e\\udb40\\udc01é\\n"\n]'


# --- modes


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_a_store_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with Store.create(tmp_path / "store") as store:
            add_messages(store, 3)
            store.writer.sync()
    finally:
        os.umask(before)
    found = escape.snapshot(tmp_path / "store")
    assert len(found) >= 5
    for path, (mode, _) in found.items():
        assert stat.S_IMODE(mode) == (0o700 if stat.S_ISDIR(mode) else 0o600), path


# --- symbolic links in the place of what is the store's


@pytest.mark.parametrize("name", ["lock", "packs/00000001.pack"])
def test_a_link_in_the_place_of_a_file_is_not_written_through(tmp_path: Path, name: str) -> None:
    root, victim = tmp_path / "store", tmp_path / "victim"
    with Store.create(root) as store:
        add_messages(store, 1)
    victim.write_bytes((root / name).read_bytes() if name != "lock" else b"precious")
    before = victim.read_bytes()
    (root / name).unlink()
    (root / name).symlink_to(victim)
    with (
        pytest.raises((MailfsError, OSError)),
        Store.open(root) as store,
        store.writer.transaction("test", durable=True) as transaction,
    ):
        transaction.add(new_message(make_message(7)))
    assert victim.read_bytes() == before


@pytest.mark.parametrize("name", ["format.new", "format.bak.new", "mount.log"])
def test_a_link_that_waits_for_a_file_is_not_written_through(
    tmp_path: Path, run_mailfs: RunMailfs, name: str
) -> None:
    root, victim = tmp_path / "store", tmp_path / "victim"
    victim.write_bytes(b"precious")
    if name == "mount.log":
        Store.create(root).close()
    else:
        root.mkdir()
    (root / name).symlink_to(victim)
    done = run_mailfs(
        *(["mount", tmp_path / "mail"] if name == "mount.log" else ["init"]), store=root
    )
    assert victim.read_bytes() == b"precious"
    assert done.returncode != 0 or not (root / name).is_symlink()


def test_a_store_others_may_write_into_is_refused(tmp_path: Path, run_mailfs: RunMailfs) -> None:
    Store.create(tmp_path / "store").close()
    (tmp_path / "store").chmod(0o777)
    done = run_mailfs("count", "*", store=tmp_path / "store")
    assert done.returncode == 77
    assert "chmod 700" in done.stderr
    (tmp_path / "store").chmod(0o700)
    assert run_mailfs("count", "*", store=tmp_path / "store").returncode == 0


# --- another user


@pytest.fixture(scope="module")
def packages() -> Iterator[Path]:
    """What another user needs to run mailfs."""
    folder = Path(tempfile.mkdtemp(prefix="mailfs-escape-"))
    folder.chmod(0o755)
    (folder / "packages").mkdir()
    copy_packages(folder / "packages")
    yield folder / "packages"
    rmtree(folder)


@contextmanager
def public_folder(parent: Path) -> Iterator[Path]:
    """As /tmp: everybody may write, nobody may remove what is another's."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    folder.chmod(0o1777)
    yield folder
    rmtree(folder)


@pytest.fixture
def stranger(packages: Path) -> Iterator[Account]:
    """Another user, and a home."""
    home = Path(tempfile.mkdtemp(dir=packages.parent))
    home.chmod(0o755)
    account = ordinary(packages, home)
    account.own(home)
    yield account
    rmtree(home)


@needs_root
def test_a_store_that_waits_in_a_public_folder_is_not_taken(
    stranger: Account, packages: Path, run_mailfs: RunMailfs
) -> None:
    with public_folder(packages.parent) as folder:
        root = folder / "store"
        stranger.output("mkdir", "-m", "777", root)
        done = run_mailfs("init", store=root)
        assert done.returncode == 73, done.stderr
        assert list(root.iterdir()) == []


@needs_root
def test_a_store_of_somebody_else_is_refused(stranger: Account, packages: Path) -> None:
    with public_folder(packages.parent) as folder:
        root = folder / "store"
        Store.create(root).close()
        for path in (root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        done = stranger.execute(stranger.mailfs_arguments(root, "count", "*"))
        assert done.returncode == 77, (done.returncode, done.stderr)


@needs_root
@needs_mount
@pytest.mark.mount
def test_another_user_sees_nothing_of_a_mount_and_of_a_store(
    stranger: Account, packages: Path, tmp_path: Path
) -> None:
    with public_folder(packages.parent) as folder:
        mailfs = Mailfs(Account("root", 0, 0, (), stranger.python, packages, folder), folder)
        mailfs.create(2)
        mailfs.mount()
        try:
            name = mailfs.names("inbox")[0]
            for path in (
                mailfs.mountpoint,
                mailfs.path("inbox", "cur"),
                mailfs.path("inbox", "cur", name),
                mailfs.path(".mailfs", "status"),
                mailfs.store,
                mailfs.store / "index.sqlite3",
                mailfs.log,
            ):
                for program in ("ls", "cat", "stat", "readlink"):
                    done = stranger.run(program, path)
                    assert (
                        done.returncode != 0
                        or done.stdout in ("", f"{path}\n")
                        or (path in (mailfs.store,) and program == "stat")
                    ), (program, path, done.stdout)
            refused = stranger.run("fusermount3", "-u", "--", mailfs.mountpoint)
            assert refused.returncode != 0
            assert mailfs.is_mounted()
        finally:
            mailfs.end()


@needs_root
@needs_mount
@pytest.mark.mount
def test_a_mount_point_that_is_not_ours_is_refused(stranger: Account, packages: Path) -> None:
    with public_folder(packages.parent) as folder:
        theirs = folder / "theirs"
        theirs.mkdir(mode=0o755)
        link = stranger.home / "link"
        link.symlink_to(theirs)
        root = stranger.home / "store"
        made = stranger.execute(stranger.mailfs_arguments(root, "init"))
        assert made.returncode == 0, made.stderr
        for mountpoint in (theirs, link):
            done = stranger.execute(stranger.mailfs_arguments(root, "mount", mountpoint))
            assert done.returncode == 69, (done.returncode, done.stderr)
        mounted = subprocess.run(["findmnt", "-n", theirs], capture_output=True, check=False)
        assert mounted.stdout == b""
        assert_sound(root)
