"""Random histories: after every step each loaded view is what its query, asked anew, says.

And the names the kernel is told to forget are exactly those that vanished, and a folder's time moves exactly when
its listing has changed.
"""

import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mailfs.ids import Docid, Ino
from mailfs.message.keywords import FLAGGED, LETTER_BITS, RECENT, SEEN
from mailfs.store.store import Store
from mailfs.views.edits import EntryEdit, plan_rename, plan_unlink
from mailfs.views.membership import end_lingering
from mailfs.views.tree import Invalidation, Kind, Tree
from mailfs.views.view import View
from tests.oracle import problems_of
from tests.views.world import World

QUERIES = (
    "*",
    "tag:work",
    "tag:work and not tag:spam",
    "is:unread",
    "is:flagged or tag:spam",
    "not tag:work",
    "subject:apples",
    "is:seen subject:pears",
    "thread:{is:flagged}",
)
NAMES = ("one", "two", "lists/one", "lists/one/deep")
KEYWORDS = st.sets(st.sampled_from(("work", "spam", "inbox")))
FLAGS = st.sets(st.sampled_from((SEEN, FLAGGED, RECENT))).map(sum)
Listing = dict[Ino, tuple[frozenset[bytes], int]]


class Histories(RuleBasedStateMachine):
    """What happens to a store, in any order, and a tree that looks at it after each step."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.world = World(Store.create(Path(self._folder.name) / "store"))
        self.alive: list[Docid] = []
        self.before: Listing = {}
        self.told: list[Invalidation] = []

    def teardown(self) -> None:
        assert problems_of(self.world.store) == []
        self.world.store.close()
        self._folder.cleanup()

    @initialize(
        loaded=st.sets(st.sampled_from(("all", "inbox", "unread", "flagged", "one", "two")))
    )
    def begin(self, loaded: set[str]) -> None:
        for keywords in ((), ("work",), ("work", "spam"), ("inbox",), ("inbox", "work")):
            for flags in (0, SEEN, RECENT, FLAGGED | RECENT):
                self.alive.append(self.world.deliver("apples", keywords, flags))
        self.world.save("one", "tag:work and not tag:spam")
        self.world.save("two", "thread:{is:flagged}")
        self.world.refresh()
        for name in sorted(loaded):
            self.world.load(name)

    # --- others

    @rule(
        keywords=KEYWORDS, flags=FLAGS, subject=st.sampled_from(("apples", "pears")), data=st.data()
    )
    def deliver(self, keywords: set[str], flags: int, subject: str, data: st.DataObject) -> None:
        answered = [data.draw(st.sampled_from(self.alive))] if self.alive else []
        references = [f"{docid}@example.org" for docid in answered if data.draw(st.booleans())]
        docid = self.world.deliver(subject, sorted(keywords), flags, references=references)
        self.alive.append(docid)

    @precondition(lambda self: bool(self.alive))
    @rule(add=FLAGS, remove=FLAGS, data=st.data())
    def flag(self, add: int, remove: int, data: st.DataObject) -> None:
        self.world.set_flags(data.draw(st.sampled_from(self.alive)), add, remove)

    @precondition(lambda self: bool(self.alive))
    @rule(add=KEYWORDS, remove=KEYWORDS, data=st.data())
    def tag(self, add: set[str], remove: set[str], data: st.DataObject) -> None:
        docid = data.draw(st.sampled_from(self.alive))
        self.world.set_keywords(docid, sorted(add), sorted(remove))

    @precondition(lambda self: bool(self.alive))
    @rule(data=st.data())
    def expunge(self, data: st.DataObject) -> None:
        docid = data.draw(st.sampled_from(self.alive))
        self.alive.remove(docid)
        self.world.expunge(docid)

    @rule(name=st.sampled_from(NAMES), query=st.sampled_from(QUERIES))
    def save(self, name: str, query: str) -> None:
        self.world.save(name, query, replace=True)

    @precondition(lambda self: not set(NAMES).isdisjoint(self.world.tree.views))
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        self.world.forget(
            data.draw(st.sampled_from(sorted(set(self.world.tree.views) & set(NAMES))))
        )

    # --- clients of the mount

    @rule(data=st.data())
    def open_view(self, data: st.DataObject) -> None:
        self.world.load(data.draw(st.sampled_from(sorted(self.world.tree.views))))

    def _entry(self, data: st.DataObject) -> tuple[View, Kind, bytes] | None:
        """A message shown in a loaded view, if there is one."""
        shown = [
            (view, kind, name)
            for view in self.world.tree.views.values()
            if view.is_loaded
            for kind in (Kind.NEW, Kind.CUR)
            for name in self._names(view, kind)
        ]
        return data.draw(st.sampled_from(shown)) if shown else None

    @rule(letters=st.sampled_from((b"", b"S", b"F", b"FS")), to_cur=st.booleans(), data=st.data())
    def rename(self, letters: bytes, to_cur: bool, data: st.DataObject) -> None:
        entry = self._entry(data)
        if entry is None:
            return
        view, kind, name = entry
        tree = self.world.tree
        source = tree.directory(tree.subfolder_ino(view, kind))
        target = tree.directory(tree.subfolder_ino(view, Kind.CUR if to_cur else kind))
        edit = plan_rename(tree, source, name, target, name.partition(b":")[0] + b":2," + letters)
        if edit is not None:
            assert isinstance(edit, EntryEdit)
            lingering = {each.search.name: set(each.lingering) for each in tree.views.values()}
            self.told += self.world.edit(edit)
            assert edit.docid in view
            for other in tree.views.values():
                assert other is view or other.lingering <= lingering[other.search.name]
            assert edit.docid in view.lingering or edit.docid in self.world.matching(view)
            wanted = self.world.flags(edit.docid) & (LETTER_BITS | RECENT)
            assert bool(wanted & RECENT) == (target.kind == Kind.NEW)

    @rule(data=st.data())
    def unlink(self, data: st.DataObject) -> None:
        entry = self._entry(data)
        if entry is None:
            return
        view, kind, name = entry
        tree = self.world.tree
        removal = plan_unlink(tree, tree.directory(tree.subfolder_ino(view, kind)), name)
        # Their keywords gone or they themselves, lingering or not: they leave.
        self.told += self.world.edit(removal)
        if removal.docid not in view.lingering:
            assert removal.docid not in view
        if not self.world.is_live(removal.docid):
            self.alive.remove(removal.docid)

    @rule()
    def readers_go(self) -> None:
        self.told += self.world.forgotten(end_lingering(self.world.tree, time.monotonic() + 301))
        assert not any(view.lingering for view in self.world.tree.views.values())

    # --- what must hold

    def _names(self, view: View, kind: Kind) -> list[bytes]:
        tree = self.world.tree
        directory = tree.directory(tree.subfolder_ino(view, kind))
        return [name for _, _, name in tree.iter_messages(directory, Docid(0))]

    def _listing(self) -> Listing:
        tree = self.world.tree
        return {
            tree.subfolder_ino(view, kind): (
                frozenset(self._names(view, kind)),
                view.new_mtime_ns if kind == Kind.NEW else view.cur_mtime_ns,
            )
            for view in tree.views.values()
            if view.is_loaded
            for kind in (Kind.NEW, Kind.CUR)
        }

    @invariant()
    def the_tree_shows_what_is_true(self) -> None:
        told = [*self.told, *self.world.refresh()]
        self.told = []
        for view in self.world.tree.views.values():
            if view.is_loaded:
                assert set(view.docids) - view.lingering == set(self.world.matching(view))
                assert list(view.docids) == sorted(set(view.docids))
                assert view.lingering <= set(view.docids)
                assert view.lingering <= set(self.alive)
        self._compare(self._listing(), told)
        self._compare_with_a_new_tree()

    def _compare(self, after: Listing, told: list[Invalidation]) -> None:
        now_ns = time.time_ns()
        plain = {
            self.world.tree.subfolder_ino(view, kind)
            for view in self.world.tree.views.values()
            if not view.search.query.startswith("thread:")
            for kind in (Kind.NEW, Kind.CUR)
        }
        for ino in self.before.keys() & after.keys() & plain:
            (names_before, mtime_before), (names, mtime) = self.before[ino], after[ino]
            assert (names != names_before) == (mtime != mtime_before)
            assert mtime_before <= mtime <= now_ns
            vanished = names_before - names
            assert {each.name for each in told if each.parent == ino} == vanished
        self.before = after

    def _compare_with_a_new_tree(self) -> None:
        tree, again = self.world.tree, Tree(self.world.store, {})
        assert set(again.views) == set(tree.views)
        for docid in self.alive:
            assert again.message_attributes(docid) == tree.message_attributes(docid)
        for view in tree.views.values():
            assert again.subfolder_ino(again.views[view.search.name], Kind.CUR) == (
                tree.subfolder_ino(view, Kind.CUR)
            )


Histories.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestHistories = Histories.TestCase
