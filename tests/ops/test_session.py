"""The beginning of a mount, as far as it needs none."""

import os
from pathlib import Path

import pytest

from mailfs.errors import Busy
from mailfs.fuse import mount as mount_module
from mailfs.fuse.mount import MountOptions, Session
from mailfs.ids import SearchId
from mailfs.message.keywords import FLAGGED
from mailfs.store.saved import ViewState
from mailfs.store.store import Store
from mailfs.views.tree import Tree
from tests.views.world import World


def test_no_change_slips_in_between_the_kept_times_and_the_tree_that_shows_them(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process writes at the worst moment: the times must move, or it must have had to wait."""
    world = World(store)
    docid = world.deliver()
    world.refresh()
    states, modseq = world.tree.view_states()
    with store.writer.transaction("unmount", durable=True) as transaction:
        transaction.put_view_states(states, modseq)
    kept = world.mtimes("inbox")
    trees: list[Tree] = []
    had_to_wait: list[bool] = []

    class LateTree(Tree):
        def __init__(self, store: Store, held_states: dict[SearchId, ViewState]) -> None:
            with Store.open(store.layout.root) as other:
                try:
                    with other.writer.transaction("other", durable=False, deadline_s=0) as change:
                        change.edit_flags(docid, FLAGGED, 0)
                    had_to_wait.append(False)
                except Busy:
                    had_to_wait.append(True)
            super().__init__(store, held_states)
            trees.append(self)

    monkeypatch.setattr(mount_module, "Tree", LateTree)
    Session(store, MountOptions(tmp_path / "mail", is_drained=False))
    (world.tree,) = trees
    if had_to_wait == [True]:
        assert world.mtimes("inbox") == kept
    else:
        assert all(new > old for new, old in zip(world.mtimes("inbox"), kept, strict=True))


def test_a_mount_whose_starter_has_gone_goes_on(store: Store, tmp_path: Path) -> None:
    """^C at `mailfs mount` closes the pipe the daemon reports to; a dead mount point would be worse."""
    reading, writing = os.pipe()
    os.close(reading)
    session = Session(store, MountOptions(tmp_path / "mail", is_drained=False, ready_fd=writing))
    session._report_ready()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writing)
