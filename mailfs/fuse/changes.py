"""Changes made through the mount: committed, then shown, in the order the kernel must hear of them."""

import contextlib
import functools
import logging
import os
import time
from collections.abc import Iterator, Sequence

import trio
import trio.lowlevel

from mailfs.errors import Busy, MailfsError, NotFound
from mailfs.fuse.problems import Problems
from mailfs.fuse.requests import Requests
from mailfs.ids import Docid, SearchId
from mailfs.store.journal import Actor, Operation
from mailfs.views.announce import Announcements, Place
from mailfs.views.arrivals import Arrival, commit_arrival
from mailfs.views.edits import (
    Edit,
    EntryEdit,
    Removal,
    commit,
    commit_entries,
    plan_meanings,
)
from mailfs.views.evaluation import EVALUATION_DEADLINE_S, evaluate, install
from mailfs.views.membership import end_lingering, other_names, stop_lingering
from mailfs.views.refresh import follows_clock, moved_by_clock, refresh, sync_letters
from mailfs.views.searches import RenamedSearches, SearchEdit
from mailfs.views.tree import Directory, FoldersChanged, Invalidation, Kind, News, Tree
from mailfs.views.view import View

log = logging.getLogger(__name__)

# How long a client's rename or unlink waits for a writer in another process before EAGAIN, where nobody says otherwise.
EDIT_DEADLINE_S = 10.0
# Entries edited at once where nobody asked for it: some 50 ms.
_SLICE_EDITS = 50
# Refusals are explained once each; a client that makes up names must not fill the log.
_MAX_EXPLAINED = 1000
# How long a client is understood that uses a name which its own request has changed in another view.
OWN_CHANGE_S = 0.1


class Changes:
    """The one way from a handler to the store, and from the store to the kernel."""

    def __init__(self, tree: Tree, announcements: Announcements, requests: Requests) -> None:
        self.tree = tree
        self.requests = requests
        self.blocking = requests.blocking
        self.is_dirty = False  # committed, but not yet made to survive power loss
        self.edit_deadline_s = EDIT_DEADLINE_S
        self.announcements = announcements
        # Set when there is something to be told to the kernel, views to be evaluated, something for the timer to do.
        self.has_news = trio.Event()
        self.has_wanted = trio.Event()
        self.has_duties = trio.Event()
        # Views somebody has looked at, or watches: to be evaluated before anybody asks, so that their changes are heard.
        self._wanted: dict[SearchId, View] = {}
        # Searches that are being evaluated: who opens the same view meanwhile waits for that.
        self._loading: dict[SearchId, trio.Event] = {}
        self.problems = Problems()
        self._explained: set[str] = set()
        # Names of messages that requests have changed: what was called so, the client's thread, until when.
        self._own_changes: dict[Place, tuple[Docid, int, float]] = {}
        # Views whose letters mean something else now, and whose entries have not been read anew.
        self._unsettled: list[View] = []

    def explain(self, name: str, error: MailfsError) -> None:
        """Say, in the log only once, why a client was refused; a name that is not there needs no word."""
        text = str(error)
        if isinstance(error, NotFound):
            return
        self.problems.add(name, text)
        if text not in self._explained and len(self._explained) < _MAX_EXPLAINED:
            self._explained.add(text)
            log.warning("%s refused: %s", name, text)

    # --- from the store to the kernel

    def publish(self, news: Sequence[News]) -> None:
        """What has changed without the kernel's knowledge is told to it and to its watchers, without waiting."""
        for each in news:
            self.announcements.add(each)
            if isinstance(each, FoldersChanged | Invalidation):
                self.has_wanted.set()  # a view may be to be evaluated anew
        if self.announcements:
            self.has_news.set()

    def told(
        self,
        docid: Docid,
        *,
        gone: tuple[Directory, bytes] | None = None,
        made: tuple[Directory, bytes] | None = None,
    ) -> None:
        """A request that is being answered removed or made a name of a message: the kernel knows by itself."""
        for place, is_made in ((gone, False), (made, True)):
            if place is not None and place[0].view is not None:
                directory, name = place
                shown = (directory.kind, name)
                self._own_changes.pop((directory.ino, name), None)
                self.announcements.told(
                    place[0].view,
                    docid,
                    gone=None if is_made else shown,
                    made=shown if is_made else None,
                )
        self.publish(())

    # --- names that have changed faster than their client could know

    def _show(self, docid: Docid | None, *views: View) -> None:
        """Bring the tree up to what a request has just committed, about a message in these views, or about searches.

        Its client may go on at once with the names it knew in others (it files a message in one view, and then removes
        it from another): for a moment it is understood.
        """
        self.sync_tree()
        if docid is None:
            return
        its = {
            self.tree.subfolder_ino(view, kind) for view in views for kind in (Kind.CUR, Kind.NEW)
        }
        known = (docid, self.requests.thread, time.monotonic() + OWN_CHANGE_S)
        stale = [place for place in self.announcements.stale_places(docid) if place[0] not in its]
        self._own_changes |= dict.fromkeys(stale, known)

    def known_or_none(self, directory: Directory, name: bytes, thread: int) -> Docid | None:
        """The message a name meant until just now: to the client whose request has changed it."""
        if not self._own_changes:
            return None
        docid, changed_by, until_s = self._own_changes.get((directory.ino, name), (None, 0, 0.0))
        now_s = time.monotonic()
        if now_s > max(each[2] for each in self._own_changes.values()):
            self._own_changes.clear()
        return docid if changed_by == thread and now_s < until_s else None

    @contextlib.contextmanager
    def as_known(self, directory: Directory, name: bytes) -> Iterator[None]:
        """Understand a name that the client's own request has just changed."""
        docid = self.known_or_none(directory, name, self.requests.thread)
        if docid is None or self.tree.find_message_or_none(directory, name) is not None:
            yield
            return
        self.tree.remember_written(directory, name, docid)
        try:
            yield
        finally:
            self.tree.forget_written(directory, name)

    # --- from the store to the tree

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
            self._take_meanings(view)

    def _take_meanings(self, view: View) -> None:
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

    def want(self, view: View) -> None:
        """Somebody looked for cur/ or new/: from now on there may be watchers, who must hear of all changes."""
        if not view.is_loaded:
            self._wanted[view.search.search_id] = view
            self.has_wanted.set()

    def rouse(self) -> None:
        """There is something to be done that does not wait for the timer."""
        self.has_duties.set()

    async def load(self, view: View) -> None:
        """Evaluate a view, in a thread, if nobody has."""
        if follows_clock(view):
            self.publish(moved_by_clock(self.tree, time.time()))
        while not view.is_loaded:
            search_id = view.search.search_id
            others = self._loading.get(search_id)
            if others is None:
                await self._evaluate(view)
            elif not await self.requests.until(others, EVALUATION_DEADLINE_S):
                raise Busy(f"the search {view.search.name} takes too long: try again")

    async def _evaluate(self, view: View) -> None:
        search_id, tree = view.search.search_id, self.tree
        done = self._loading[search_id] = trio.Event()
        try:
            evaluation = await self.blocking(
                evaluate, tree.store.layout, view, tree.facts, what="a search"
            )
            self.publish(install(tree, view, evaluation))
            # Names may be older than the file, which was read on the way.
            self._take_meanings(view)
        finally:
            del self._loading[search_id]
            done.set()

    # --- what time brings

    @property
    def is_idle(self) -> bool:
        """Whether time brings nothing but other processes' changes."""
        tree = self.tree
        return not (
            self.is_dirty
            or self._unsettled
            or tree.stale_names
            or any(view.lingering or follows_clock(view) for view in tree.views.values())
        )

    async def tick(self) -> None:
        """Other processes' changes while nobody asks, the clock's, and the end of lingering."""
        self.sync_tree()
        self.publish(moved_by_clock(self.tree, time.time()))
        self.publish(end_lingering(self.tree, time.monotonic()))

    async def forget_stale_names(self) -> None:
        """A message that comes back must not have its old `,U=12`: to mbsync that is one it has expunged."""
        tree = self.tree
        stale = {pair for pair in tree.stale_names if not self._is_shown(*pair)}
        if stale:
            operation = Operation("names that are gone")
            with tree.store.writer.transaction(
                "names", durable=False, deadline_s=0, operation=operation
            ) as tx:
                tx.entries.forget_stale(stale)
                for _, docid in stale:
                    tx.settle_deleted(docid)
        tree.stale_names.clear()

    def _is_shown(self, search_id: SearchId, docid: Docid) -> bool:
        return any(
            view.search.search_id == search_id and docid in view
            for view in self.tree.views.values()
        )

    async def load_wanted(self) -> None:
        """Evaluate views for those who may watch them, and those whose query was edited while they were looked at."""
        for view in self.tree.views.values():
            if view.former is not None:
                self._wanted[view.search.search_id] = view
        while self._wanted:
            # Its query may have been edited since it was looked for.
            current = self.tree.view_of_or_none(self._wanted.popitem()[0])
            if current is not None:
                await self.load(current)

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

    async def edit(self, edit: Edit | SearchEdit, actor: Actor | None = None) -> None:
        """Commit an edit and show it. Without waiting when the writer lock is free, which it nearly always is.

        `actor` is who asked for it, where that is not the client whose request is being answered.
        """
        actor = actor or self.requests.actor_or_none()
        try:
            commit(self.tree.store, edit, 0, actor=actor)
        except Busy:
            work = functools.partial(commit, self.tree.store, edit, actor=actor)
            await self.requests.commit(work, self.edit_deadline_s)
        if isinstance(edit, RenamedSearches):
            self.tree.move_folders(edit.path, edit.new_path)
        self.is_dirty = True
        if isinstance(edit, EntryEdit | Removal):
            self._show(edit.docid, edit.view)
        else:
            self._show(None)

    async def arrive(
        self, arrival: Arrival, deadline_s: float | None = None, actor: Actor | None = None
    ) -> Docid:
        """Commit an arrival and show it. Durable ones wait for the disk, in a thread. `actor` as for edit."""
        actor = actor or self.requests.actor_or_none()
        work = functools.partial(commit_arrival, self.tree.store, arrival, actor=actor)
        if deadline_s is None:
            deadline_s = self.edit_deadline_s
        docid = await self.requests.commit(work, deadline_s)
        self.is_dirty = True
        left = () if arrival.departure is None else (arrival.departure.view,)
        self._show(docid, arrival.view, *left)
        if arrival.replaced is not None:
            self.publish(other_names(self.tree, arrival.replaced.docid))
        return docid

    async def sync(self) -> None:
        """Make every commit so far survive power loss."""
        await self.requests.sync(self.tree.store.writer.sync)

    async def sync_path(self, path: bytes) -> None:
        """fsync of an ordinary file by its real path."""
        await self.requests.sync(_sync_path, path)

    async def sync_folder(self, folder: bytes) -> None:
        """fsync of a real folder, if it has been made."""
        with contextlib.suppress(FileNotFoundError):
            await self.requests.sync(_sync_path, folder)

    async def sync_file(self, fd: int) -> None:
        """fsync of an ordinary file."""
        await self.requests.sync(os.fsync, fd)


def _sync_path(path: bytes) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
