"""What the kernel and its watchers are told, in any order of events: histories against a model of the kernel.

Each step is something a client does through the mount, another process to the store, or time; or a bit of telling.
Between two calls of the thread that tells, and in the middle of one, others go on. When all has been told, what the
kernel keeps is true, and who listed a folder and went by events since has exactly its listing.
"""

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from mailfs.errors import MailfsError
from mailfs.ids import Docid, Ino
from mailfs.message.keywords import FLAGGED, RECENT, SEEN
from mailfs.store.store import Store
from mailfs.views import announce
from mailfs.views.announce import Place
from mailfs.views.areas import make_area
from mailfs.views.letters import KEYWORDS_FILE
from mailfs.views.membership import end_lingering
from tests.oracle import problems_of
from tests.views.kernel_model import Mounted, nothing
from tests.views.world import World, run

T = TypeVar("T")

FOLDERS = ("cur", "new")
VIEWS = ("inbox", "work", "unread", "all")
WORDS = ("inbox", "work")
BASES = (b"a", b"b", b"c,U=1")
INFOS = (b"", b":2,", b":2,S", b":2,FS", b":2,a")
QUERIES = ("tag:work", "tag:work and is:unread", "tag:inbox or tag:work", "is:flagged")
SEARCHES = ("work", "work/deep", "lists/one")
LETTERS = ("", "0 work\n", "0 $Forwarded\n")


OTHERS = (
    "follow",
    "others_flag",
    "others_tag",
    "others_deliver",
    "others_rename",
    "others_unlink",
    "others_expunge",
    "others_save",
    "others_forget",
    "others_write_letters",
)
CLIENTS = (
    "client_lists",
    "client_looks",
    "client_renames",
    "client_moves",
    "client_links",
    "client_unlinks",
    "client_makes_a_search",
    "client_forgets_a_search",
    "client_renames_a_search",
    "client_watches",
    "evict",
    "load_wanted",
    "time_passes",
)

# What happens in a history: of others, and of clients and the mount. Few things that happen often meet sooner than many.
THEMES = (
    (
        ("others_flag", "others_deliver"),
        ("client_renames", "client_unlinks", "client_watches"),
    ),
    (
        ("others_rename", "others_unlink", "others_flag"),
        ("client_links", "client_renames", "client_unlinks"),
    ),
    (
        ("others_tag", "others_expunge"),
        ("client_moves", "client_links", "client_watches", "time_passes"),
    ),
    (
        ("others_save", "others_forget"),
        (
            "client_makes_a_search",
            "client_forgets_a_search",
            "client_renames_a_search",
            "client_watches",
        ),
    ),
    (
        ("others_save", "others_flag", "others_tag", "others_write_letters"),
        ("client_renames", "client_watches", "load_wanted"),
    ),
    (OTHERS, CLIENTS),
)


class Histories(RuleBasedStateMachine):
    """One mount of a store, the model kernel over it, and another mount that nobody watches."""

    def __init__(self) -> None:
        super().__init__()
        logging.getLogger("mailfs").setLevel(logging.ERROR)  # clients are refused all the time
        self._limits = announce.EVENTS_A_SECOND, announce._MOST_TAKEN
        self._folder = tempfile.TemporaryDirectory()
        self.store = Store.create(Path(self._folder.name) / "store")
        self.mounted = Mounted(self.store)
        self.world, self.kernel, self.client = (
            self.mounted.world,
            self.mounted.kernel,
            self.mounted.client,
        )
        self.world.save("work", "tag:work")
        self.world.refresh()
        self.other = World(self.store)
        self.data: st.DataObject | None = None
        self._is_coarse = False

    def teardown(self) -> None:
        try:
            self.mounted.settle(is_coarse=self._is_coarse)
            assert problems_of(self.store) == []
        finally:
            logging.getLogger("mailfs").setLevel(logging.NOTSET)
            announce.EVENTS_A_SECOND, announce._MOST_TAKEN = self._limits
            self.store.close()
            self._folder.cleanup()

    @initialize(
        mail=st.lists(
            st.tuples(st.sets(st.sampled_from(WORDS)), st.sampled_from((0, SEEN, RECENT))),
            max_size=3,
        ),
        watched=st.sets(st.sampled_from(VIEWS), min_size=1, max_size=2),
        is_narrow=st.booleans(),
        theme=st.sampled_from(THEMES),
        views=st.sets(st.sampled_from(VIEWS), min_size=1, max_size=2),
    )
    def begin(
        self,
        mail: list[tuple[set[str], int]],
        watched: set[str],
        is_narrow: bool,
        theme: tuple[tuple[str, ...], tuple[str, ...]],
        views: set[str],
    ) -> None:
        # Few things that happen often meet sooner than many.
        self._others, self._clients = theme
        self._views = sorted(views)
        if is_narrow:
            announce.EVENTS_A_SECOND, announce._MOST_TAKEN, self._is_coarse = 2, 2, True
        for keywords, flags in mail:
            self.world.deliver(keywords=sorted(keywords), flags=flags)
        self.kernel.watch(b"", self.client)
        for view in sorted(watched | views):
            for folder in FOLDERS:
                self.kernel.watch(f"{view}/{folder}".encode(), self.client)

    # --- what is drawn

    def _draw(self, strategy: st.SearchStrategy[T]) -> T:
        assert self.data is not None
        return self.data.draw(strategy)

    def _one(self, of: Sequence[T]) -> T | None:
        return self._draw(st.sampled_from(of)) if of else None

    def _docid(self) -> Docid | None:
        return self._one(self.world.matching(self.world.tree.views["all"]))

    def _folder_place(self, others: tuple[str, ...] = ()) -> bytes:
        views = [*self._views, *others]
        view, folder = self._draw(st.sampled_from(views)), self._draw(st.sampled_from(FOLDERS))
        return f"{view}/{folder}".encode()

    def _any_name(self) -> tuple[bytes, bytes] | None:
        """A folder and a name in it: one that is there, one the kernel has, or one that was seen."""
        path = self._folder_place()
        try:
            directory = self.world.directory(path.decode())
        except AssertionError:
            return None
        names = {name for ino, name in self.kernel.names if ino == directory.ino}
        names |= self.mounted.true_names(directory.ino)
        name = self._one(sorted(names))
        return None if name is None else (path, name)

    def _new_name(self, old: bytes) -> bytes:
        base = old.partition(b":")[0]
        live = self.world.matching(self.world.tree.views["all"])
        canonical = [self.world.name(docid).partition(b":")[0] for docid in live]
        return self._draw(st.sampled_from([base, base, *BASES, *canonical])) + self._draw(
            st.sampled_from(INFOS)
        )

    # --- others, whom nobody hears

    def others_deliver(self) -> None:
        words = self._draw(st.sets(st.sampled_from(WORDS)))
        self.world.deliver(
            keywords=sorted(words), flags=self._draw(st.sampled_from((0, SEEN, RECENT)))
        )

    def others_flag(self) -> None:
        docid, flag = self._docid(), self._draw(st.sampled_from((SEEN, FLAGGED, RECENT)))
        if docid is not None:
            is_on = self.world.flags(docid) & flag
            self.world.set_flags(docid, 0 if is_on else flag, flag if is_on else 0)

    def others_tag(self) -> None:
        docid, word = self._docid(), self._draw(st.sampled_from(WORDS))
        if docid is not None:
            is_on = word in self.world.keywords(docid)
            self.world.set_keywords(docid, () if is_on else (word,), (word,) if is_on else ())

    def others_expunge(self) -> None:
        docid = self._docid()
        if docid is not None:
            self.world.expunge(docid)

    def others_rename(self) -> None:
        """A client of another mount."""
        self.other.refresh()
        view, folder = (
            self._draw(st.sampled_from(self._views)),
            self._draw(st.sampled_from(FOLDERS)),
        )
        if view in self.other.tree.views:
            self.other.load(view)
            path = f"{view}/{folder}"
            name = self._one(sorted(self.other.names(path)))
            if name is not None:
                new_name = self._new_name(name)
                self._refusable(lambda: self.other.rename(path, name, path, new_name))

    def others_unlink(self) -> None:
        self.other.refresh()
        view, folder = (
            self._draw(st.sampled_from(self._views)),
            self._draw(st.sampled_from(FOLDERS)),
        )
        if view in self.other.tree.views:
            self.other.load(view)
            path = f"{view}/{folder}"
            name = self._one(sorted(self.other.names(path)))
            if name is not None:
                self._refusable(lambda: self.other.unlink(path, name))

    def others_save(self) -> None:
        name, query = self._draw(st.sampled_from(SEARCHES)), self._draw(st.sampled_from(QUERIES))
        # What another query brings is told as a whole where it is much.
        self._is_coarse |= name in self.world.tree.views
        self._refusable(lambda: self.world.save(name, query, replace=True))

    def others_forget(self) -> None:
        name = self._draw(st.sampled_from(SEARCHES))
        self._refusable(lambda: self.world.forget(name))

    def others_write_letters(self) -> None:
        area = self.world.tree.area(self.world.directory("inbox"))
        make_area(area)
        path = os.path.join(area, KEYWORDS_FILE)
        with open(path + b".lock", "w") as file:
            file.write(self._draw(st.sampled_from(LETTERS)))
        os.rename(path + b".lock", path)

    def _refusable(self, change: Callable[[], object]) -> None:
        with contextlib.suppress(MailfsError):
            change()

    # --- the mount itself

    def follow(self) -> None:
        self.mounted.changes.sync_tree()

    def time_passes(self) -> None:
        self.mounted.teller.now_s += 1
        self.mounted.changes.publish(end_lingering(self.world.tree, time.monotonic() + 301))
        run(self.mounted.changes.forget_stale_names())

    def evict(self) -> None:
        self.kernel.evict()

    def load_wanted(self) -> None:
        run(self.mounted.changes.load_wanted())

    # --- clients

    def client_goes_by_a_name(self) -> None:
        """Any name the kernel has; no lock is taken."""
        place = self._one(sorted(self.kernel.names))
        if place is not None:
            self.kernel.revalidate(place, self.client)

    def client_looks(self) -> None:
        self._call(lambda path, name: self.kernel.look((self._ino(path), name), self.client))

    def client_lists(self) -> None:
        path = self._folder_place(("lists/one", "work/deep"))
        self._do(lambda: self.kernel.list_all(self._ino(path), self.client))

    def client_watches(self) -> None:
        """Some come late, some leave again."""
        path = self._draw(
            st.sampled_from([self._folder_place(), b"work", b"lists", b"lists/one/cur"])
        )
        self._do(lambda: self.kernel.watch(path, self.client))
        del self.kernel.watchers[:-8]

    def client_renames(self) -> None:
        def rename(path: bytes, name: bytes) -> None:
            folder = self._draw(st.sampled_from((b"cur", b"new")))
            new_path = path.rpartition(b"/")[0] + b"/" + folder
            new_name = self._new_name(name)
            self.kernel.rename(
                (self._ino(path), name), (self._ino(new_path), new_name), self.client
            )

        self._call(rename)

    def client_moves(self) -> None:
        def rename(path: bytes, name: bytes) -> None:
            new_place = (self._ino(self._folder_place()), self._new_name(name))
            self.kernel.rename((self._ino(path), name), new_place, self.client)

        self._call(rename)

    def client_links(self) -> None:
        def link(path: bytes, name: bytes) -> None:
            new_place = (self._ino(self._folder_place()), self._new_name(name))
            self.kernel.link((self._ino(path), name), new_place, self.client)

        self._call(link)

    def client_unlinks(self) -> None:
        self._call(lambda path, name: self.kernel.unlink((self._ino(path), name), self.client))

    def client_makes_a_search(self) -> None:
        name = self._draw(st.sampled_from(SEARCHES)).encode()
        self._do(lambda: self.kernel.mkdir(self._place(name), self.client))

    def client_forgets_a_search(self) -> None:
        name = self._draw(st.sampled_from(SEARCHES)).encode()
        self._do(lambda: self.kernel.unlink(self._place(name), self.client, is_directory=True))

    def client_renames_a_search(self) -> None:
        old, new = (self._draw(st.sampled_from(SEARCHES)).encode() for _ in range(2))
        self._do(lambda: self.kernel.rename(self._place(old), self._place(new), self.client))

    def _place(self, path: bytes) -> Place:
        above, _, name = path.rpartition(b"/")
        return self._ino(above), name

    def _ino(self, path: bytes) -> Ino:
        return self.kernel.walk(path, self.client)

    def _call(self, call: Callable[[bytes, bytes], object]) -> None:
        found = self._any_name()
        if found is not None:
            self._do(lambda: call(*found))

    def _do(self, call: Callable[[], object]) -> None:
        with contextlib.suppress(OSError):  # as clients are answered
            call()

    # --- histories

    def _act(self, actions: tuple[str, ...]) -> None:
        getattr(self, self._draw(st.sampled_from(actions)))()
        self.mounted.notice()

    @rule(data=st.data(), count=st.integers(1, 3))
    def others_change(self, data: st.DataObject, count: int) -> None:
        self.data = data
        for _ in range(count):
            self._act(self._others)

    @rule(data=st.data())
    def client_acts(self, data: st.DataObject) -> None:
        self.data = data
        self._act(self._clients)

    @rule(data=st.data(), is_disturbed=st.booleans())
    def tell(self, data: st.DataObject, is_disturbed: bool) -> None:
        self.data = data
        if is_disturbed:
            self.kernel.between, self.kernel.within = self._between, self._within
        try:
            self.mounted.begin_telling()
        finally:
            self.kernel.between = self.kernel.within = nothing
        self.mounted.notice()

    def _between(self) -> None:
        between, within = self.kernel.between, self.kernel.within
        self.kernel.between = self.kernel.within = nothing
        if self._draw(st.integers(0, 2)) == 2:
            self._act((*self._clients, *self._others))
        self.kernel.between, self.kernel.within = between, within

    def _within(self) -> None:
        between, within = self.kernel.between, self.kernel.within
        self.kernel.between = self.kernel.within = nothing
        if self._draw(st.integers(0, 2)) == 2:
            self._act(("client_goes_by_a_name", *self._others))
        self.kernel.between, self.kernel.within = between, within


Histories.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=12,
    deadline=None,
    # The same histories each time; more are to be had with another seed and number.
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)
TestHistories = Histories.TestCase
