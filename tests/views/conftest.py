"""Fixtures of the tests of views/: a small store and its tree, no FUSE."""

import pytest

from mailfs.store.store import Store
from tests.views.world import World


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


@pytest.fixture(params=["loaded", "unloaded"])
def ready(request: pytest.FixtureRequest, world: World) -> World:
    """Views `work` (tag:work) and `todo` (tag:todo and not tag:inbox), all views loaded or none."""
    world.save("work", "tag:work")
    world.save("todo", "tag:todo and not tag:inbox")
    world.refresh()
    if request.param == "loaded":
        for name in world.tree.views:
            world.load(name)
    return world
