"""Changes made through the mount: committed, then shown, in the order the kernel must hear of them."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, TypeVarTuple

import trio
import trio.lowlevel

from mailfs.errors import Busy, MailfsError, NotFound
from mailfs.fuse.notify import Notifier
from mailfs.ids import Docid, SearchId
from mailfs.views.arrivals import Arrival, commit_arrival
from mailfs.views.edits import (
    Edit,
    EntryEdit,
    Removal,
    commit,
    commit_entries,
    plan_meanings,
)
from mailfs.views.refresh import (
    LINGER_S,
    end_lingering,
    evaluate,
    install,
    needs_evaluation,
    other_names,
    refresh,
    stop_lingering,
    sync_letters,
)
from mailfs.views.searches import RenamedSearches, SearchEdit
from mailfs.views.tree import Directory, Invalidation, Tree
from mailfs.views.view import View

log = logging.getLogger(__name__)

# How long a client's rename or unlink waits for a writer in another process before EAGAIN.
EDIT_DEADLINE_S = 10.0
# Entries edited at once where nobody asked for it: some 50 ms.
_SLICE_EDITS = 50
# Refusals are explained once each; a client that makes up names must not fill the log.
_MAX_EXPLAINED = 1000

R = TypeVar("R")
Arguments = TypeVarTuple("Arguments")


class Blocking(Protocol):
    """How a handler waits for something slow: Drain.blocking or drain.in_thread."""

    async def __call__(self, function: Callable[[*Arguments], R], *arguments: *Arguments) -> R: ...


class Changes:
    """The one way from a handler to the store, and from the store to the kernel."""

    def __init__(self, tree: Tree, notifier: Notifier, blocking: Blocking) -> None:
        self.tree = tree
        self.blocking = blocking
        self.is_dirty = False  # committed, but not yet made to survive power loss
        self._notifier = notifier
        self._explained: set[str] = set()
        # Views whose letters mean something else now, and whose entries have not been read anew.
        self._unsettled: list[View] = []

    def explain(self, name: str, error: MailfsError) -> None:
        """Say once in the log why a client was refused; a name that is not there needs no word."""
        text = str(error)
        is_known = text in self._explained or len(self._explained) >= _MAX_EXPLAINED
        if not isinstance(error, NotFound) and not is_known:
            self._explained.add(text)
            log.warning("%s refused: %s", name, text)

    # --- from the store to the kernel

    def publish(self, invalidations: Sequence[Invalidation]) -> None:
        """Tell the kernel which names are not true any more, without waiting."""
        if invalidations:
            self._notifier.publish(invalidations)

    def sync_tree(self) -> None:
        """Bring the tree up to what is committed, by whatever process."""
        self.publish(refresh(self.tree))

    def directory(self, inode: int) -> Directory:
        """A directory of the tree, up to date. Raises NotFound."""
        self.sync_tree()
        directory = self.tree.directory(inode)
        if directory.view is not None and directory.holds_messages:
            self.sync_letters(directory.view)
        return directory

    def sync_letters(self, view: View) -> None:
        """Read a view's keywords file again, if it is another one now."""
        before = view.letters
        self.publish(sync_letters(self.tree, view))
        if view.letters is not before:
            edits = plan_meanings(self.tree, view)
            if len(edits) > _SLICE_EDITS or not self._settle(edits):
                self._unsettled.append(view)

    def _settle(self, edits: Sequence[EntryEdit]) -> bool:
        """Letters that got a meaning are keywords from now on; False while the store is busy or full.

        Never raises: the names are as true as before, and who asked for them did not ask for this.
        """
        try:
            if edits:
                commit_entries(self.tree.store, edits, 0)
                self.is_dirty = True
                self.sync_tree()
        except Busy:
            return False
        except MailfsError as error:
            self.explain("keywords of letters", error)
            return False
        return True

    async def settle_letters(self) -> None:
        """The letters of a whole Maildir, in slices between which others are served."""
        unsettled, self._unsettled = self._unsettled, []
        for view in unsettled:
            # One that was forgotten, or has another query by now, is read anew.
            is_there = self.tree.views.get(view.search.name) is view
            edits = plan_meanings(self.tree, view) if is_there else []
            for start in range(0, len(edits), _SLICE_EDITS):
                if not self._settle(edits[start : start + _SLICE_EDITS]):
                    self._unsettled.append(view)
                    break
                await trio.lowlevel.checkpoint()

    async def load(self, view: View) -> None:
        """Evaluate a view, in a thread, if that must be before it is listed."""
        if needs_evaluation(self.tree, view):
            tree = self.tree
            evaluation = await self.blocking(evaluate, tree.store.layout, view, tree.facts)
            self.publish(install(tree, view, evaluation))

    # --- what time brings

    async def tick(self) -> None:
        """Other processes' changes while nobody asks, and the end of lingering."""
        self.sync_tree()
        self.publish(end_lingering(self.tree, time.monotonic()))

    async def forget_stale_names(self) -> None:
        """A message that comes back must not have its old `,U=12`: to mbsync that is one it has expunged."""
        tree = self.tree
        stale = {pair for pair in tree.stale_names if not self._is_shown(*pair)}
        if stale:
            with tree.store.writer.transaction("names", durable=False, deadline_s=0) as tx:
                tx.entries.forget_stale(stale)
                for _, docid in stale:
                    tx.settle_deleted(docid)
        tree.stale_names.clear()

    def _is_shown(self, search_id: SearchId, docid: Docid) -> bool:
        return any(
            view.search.search_id == search_id and docid in view
            for view in self.tree.views.values()
        )

    async def evaluate_again(self) -> None:
        """Move views that somebody looks at with the clock and with their threads, so that their mtimes do."""
        for view in list(self.tree.views.values()):
            if view.is_loaded and time.monotonic() - view.last_used_s < LINGER_S:
                await self.load(view)

    # --- from a client to the store

    async def edit_entry(self, edit: EntryEdit | Removal) -> None:
        """Commit an edit of a message in a view. If it stops matching by that, it lingers there."""
        if isinstance(edit, Removal):
            lingers = edit.docid in edit.view.lingering
            await self.edit(edit)
            if lingers:
                self.publish(stop_lingering(self.tree, edit.view, edit.docid))
            self.publish(other_names(self.tree, edit.docid))
            return
        view = edit.view
        view.use()
        view.being_edited.add(edit.docid)
        try:
            await self.edit(edit)
        finally:
            view.being_edited.discard(edit.docid)
        if edit.replaced is not None:
            self.publish(other_names(self.tree, edit.replaced.docid))

    async def edit(self, edit: Edit | SearchEdit) -> None:
        """Commit an edit and show it. Without waiting when the writer lock is free, which it nearly always is."""
        try:
            commit(self.tree.store, edit, 0)
        except Busy:
            await self.blocking(commit, self.tree.store, edit, EDIT_DEADLINE_S)
        if isinstance(edit, RenamedSearches):
            self.tree.move_folders(edit.path, edit.new_path)
        self.is_dirty = True
        self.sync_tree()

    async def arrive(self, arrival: Arrival) -> Docid:
        """Commit an arrival and show it. Durable ones wait for the disk, in a thread."""
        docid = await self.blocking(commit_arrival, self.tree.store, arrival, EDIT_DEADLINE_S)
        self.is_dirty = True
        self.sync_tree()
        if arrival.replaced is not None:
            self.publish(other_names(self.tree, arrival.replaced.docid))
        return docid

    async def sync(self) -> None:
        """Make every commit so far survive power loss."""
        await self.blocking(self.tree.store.writer.sync)

    async def sync_path(self, path: bytes) -> None:
        """fsync of an ordinary file by its real path."""
        await self.blocking(_sync_path, path)

    async def sync_folder(self, folder: bytes) -> None:
        """fsync of a real folder, if it has been made."""
        with contextlib.suppress(FileNotFoundError):
            await self.blocking(_sync_path, folder)

    async def sync_file(self, fd: int) -> None:
        """fsync of an ordinary file."""
        await self.blocking(os.fsync, fd)


def _sync_path(path: bytes) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
