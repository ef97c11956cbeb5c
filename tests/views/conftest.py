"""Fixtures of the tests of views/: a small store and its tree, no FUSE."""

import pytest

from mailfs.store.store import Store
from tests.views.world import World


@pytest.fixture
def world(store: Store) -> World:
    return World(store)
