"""A plain side and a mounted one for every client."""

from pathlib import Path

import pytest

from tests.clients.sides import Side
from tests.mount.accounts import Account
from tests.mount.conftest import account, folder, mailfs, why_not
from tests.mount.mounting import Mailfs

__all__ = ["account", "folder", "mailfs"]

CLIENT_TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_not()
    for item in items:
        if item.path.is_relative_to(CLIENT_TESTS):
            item.add_marker(pytest.mark.mount)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def plain(account: Account, tmp_path: Path) -> Side:
    """Maildirs on the disk."""
    root = tmp_path / "plain"
    root.mkdir()
    return Side("plain", root, account, None)


@pytest.fixture
def mounted(account: Account, mailfs: Mailfs) -> Side:
    """The same on a mount of a new store."""
    mailfs.create()
    mailfs.mount()
    return Side("mounted", mailfs.mountpoint, account, mailfs)


@pytest.fixture
def sides(plain: Side, mounted: Side) -> tuple[Side, Side]:
    """Both, the plain one first."""
    return plain, mounted
