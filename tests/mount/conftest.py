"""Fixtures of the tests on real mounts: who mounts, what is mounted, and that nothing stays behind."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.accounts import Account, copy_packages, ordinary, ourselves
from tests.mount.mounting import Mailfs
from tests.oracle import assert_sound

MOUNT_TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_not()
    for item in items:
        if item.path.is_relative_to(MOUNT_TESTS):
            item.add_marker(pytest.mark.mount)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


def why_not() -> str:
    """The reason why nothing can be mounted here; empty when it can."""
    if shutil.which("fusermount3") is None:
        return "fusermount3 is not installed"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse cannot be used: {error.strerror}"
    return ""


@pytest.fixture(scope="session")
def public_folder() -> Iterator[Path]:
    """A folder every user can enter; pytest's own are for whoever runs it."""
    path = Path(tempfile.mkdtemp(prefix="mailfs-mount-", dir=tempfile.gettempdir()))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def packages(public_folder: Path) -> Path:
    path = public_folder / "packages"
    path.mkdir()
    copy_packages(path)
    return path


@pytest.fixture
def account(tmp_path: Path) -> Account:
    """Whoever runs the tests; test_basics.py has an ordinary user too."""
    home = tmp_path / "home"
    home.mkdir()
    return ourselves(home)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the store and the mount point are."""
    return tmp_path


@pytest.fixture
def mailfs(account: Account, folder: Path) -> Iterator[Mailfs]:
    """A Mailfs; the test makes its store. Afterwards nothing is mounted, and the store keeps its promises."""
    made = Mailfs(account, folder)
    yield made
    made.end()
    assert not made.is_mounted()
    assert made.pids() == []
    assert_sound(made.store)
    if made.log.exists():
        text = made.log.read_text(errors="replace")
        assert "Traceback" not in text, text
        assert " ERROR " not in text, text


@pytest.fixture
def as_ordinary(packages: Path, public_folder: Path) -> Iterator[Account]:
    """An ordinary user with a home; only for root to become."""
    home = Path(tempfile.mkdtemp(prefix="ordinary-", dir=public_folder))
    made = ordinary(packages, home)
    home.chmod(0o755)
    made.own(home)
    yield made
    # A mount that was left here would hang whoever looks into the folder.
    assert subprocess.run(["findmnt", "-R", home], capture_output=True, check=False).stdout == b""
