"""The handlers without a mount: pyfuse3's two calls into the kernel are caught, everything else is real."""

import pyfuse3
import pytest

from mailfs.store.store import Store
from tests.ops.kernel import Kernel
from tests.views.world import World


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


@pytest.fixture
def kernel(world: World, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel(world)
    monkeypatch.setattr(pyfuse3, "notify_store", made.store_pages)
    monkeypatch.setattr(pyfuse3, "readdir_reply", made.take_entry)
    return made
