"""Random histories of names: two mounts of one store show what a plain model says, loaded views and others alike.

Each step is one change, by a client of either mount or by another process; then every name of the model is found in
every view, and no other; listings have no name twice; and the kernel has heard of every name that vanished from a
loaded view.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mailfs.errors import MailfsError
from mailfs.ids import Docid, Keyword
from mailfs.message.keywords import (
    DELETED,
    DELETED_BY_ENTRY,
    RECENT,
    flags_of_letters,
    letters_of_flags,
)
from mailfs.message.maildir import Base, format_base
from mailfs.store.prepare import prepare_message
from mailfs.store.store import Store
from mailfs.views.areas import make_area
from mailfs.views.arrivals import Arrival, StoredMessage, plan_arrival, plan_link, plan_move
from mailfs.views.edits import EntryEdit, Removal, plan_rename, plan_unlink
from mailfs.views.letters import KEYWORDS_FILE
from mailfs.views.membership import end_lingering
from mailfs.views.view import View
from tests.fakes import make_message
from tests.oracle import problems_of
from tests.views.name_model import FLAGS, RULES, Mail, Model, Refused, Skipped, split
from tests.views.world import Told, World, changes_of, run

VIEWS = tuple(RULES)
FOLDERS = ("cur", "new")
RECEIVED_S = 1_500_000_000
LETTERS: tuple[dict[int, str], ...] = (
    {},
    {ord("a"): "work"},
    {ord("b"): "work", ord("a"): "$forwarded"},
    {ord("a"): "todo", ord("b"): "inbox"},
)
KEYWORDS = st.sets(st.sampled_from(("inbox", "work", "todo")))
INFO = st.none() | st.sets(st.sampled_from(b"FSPTXzab"), max_size=4)
Place = tuple[str, str]


class Seen(NamedTuple):
    """A folder of a loaded view as it was listed last."""

    view: View
    names: frozenset[bytes]
    mtime_ns: int


class Mount:
    """What one mount has: its tree, and what it told the kernel."""

    def __init__(self, store: Store) -> None:
        self.world = World(store)
        self.changes = changes_of(self.world.tree)
        assert isinstance(self.changes.announcements, Told)
        self.told = self.changes.announcements
        self.before: dict[Place, Seen] = {}

    def visit(self) -> None:
        """Look at every folder, as lookups and listings do."""
        for view in VIEWS:
            for folder in FOLDERS:
                self.changes.directory(self.world.directory(f"{view}/{folder}").ino)

    def commit(self, change: Arrival | EntryEdit | Removal | None) -> Docid | None:
        if isinstance(change, Arrival):
            return run(self.changes.arrive(change))
        if change is not None:
            run(self.changes.edit_entry(change))
        return None


class NameHistories(RuleBasedStateMachine):
    """The store, two mounts of it, and the model."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.store = Store.create(Path(self._folder.name) / "store")
        with self.store.writer.transaction("test", durable=False) as transaction:
            for name, each in RULES.items():
                transaction.searches.save(name, each.query, replace=True)
        self.mounts = [Mount(self.store), Mount(self.store)]
        self.model = Model()

    def teardown(self) -> None:
        self._compare_with_a_new_mount()
        assert problems_of(self.store) == []
        self.store.close()
        self._folder.cleanup()

    def _compare_with_a_new_mount(self) -> None:
        self.model.lingering[0] = {view: set() for view in VIEWS}
        mount = Mount(self.store)
        mount.visit()
        self._look(0, mount)
        for view in VIEWS:
            mount.world.load(view)
        self._look(0, mount)

    @initialize(
        mail=st.lists(
            st.tuples(KEYWORDS, st.sets(st.sampled_from(b"FS")), st.booleans()), max_size=3
        ),
        loaded=st.lists(st.sets(st.sampled_from(VIEWS)), min_size=2, max_size=2),
    )
    def begin(self, mail: list[tuple[set[str], set[int], bool]], loaded: list[set[str]]) -> None:
        for body, (keywords, letters, is_recent) in enumerate(mail):
            self._add(body, frozenset(keywords), frozenset(letters), is_recent)
        for mount, views in enumerate(loaded):
            for view in sorted(views):
                self.load(mount, view)

    def _add(
        self, body: int, keywords: frozenset[str], letters: frozenset[int], is_recent: bool
    ) -> None:
        flags = flags_of_letters(bytes(letters)) | (RECENT if is_recent else 0)
        new = prepare_message(
            make_message(body), flags, tuple(map(Keyword, keywords)), RECEIVED_S * 1_000_000_000
        )
        with self.store.writer.transaction("test", durable=True) as transaction:
            docid = transaction.add(new).docid
        self.model.mails[docid] = Mail(
            body, self._base(docid, body), letters, is_recent, "", keywords
        )

    def _base(self, docid: int, body: int) -> bytes:
        size = len(make_message(body))
        return format_base(Base(RECEIVED_S, Docid(docid), self.store.layout.store_id, size))

    # --- what is drawn

    def _live(self) -> list[int]:
        return [docid for docid, mail in self.model.mails.items() if mail.is_live]

    def _entry(
        self, data: st.DataObject, mount: int, views: tuple[str, ...] = VIEWS
    ) -> tuple[str, str, bytes] | None:
        """A name that a mount shows."""
        found = [
            (view, folder, name)
            for view in views
            for folder in FOLDERS
            for name in sorted(self.model.shown(mount, view, folder))
        ]
        return data.draw(st.sampled_from(found)) if found else None

    def _name(self, data: st.DataObject, view: str, own: tuple[bytes, ...] = ()) -> bytes:
        """A name for this view: of one of a few bases, some the canonical ones of messages."""
        canonical = sorted(mail.base for mail in self.model.mails.values())
        base = data.draw(st.sampled_from((*own, b"a", b"b", b"c,U=1", *canonical)), "base")
        info = data.draw(INFO, "letters")
        if info is None:
            return base
        for letter, word in self.model.letters[view].items():
            if word == "$forwarded":  # its two letters come and go together
                info = info | {letter} if ord("P") in info else info - {letter}
        return base + b":2," + bytes(sorted(info))

    # --- clients

    @rule(
        mount=st.integers(0, 1),
        body=st.integers(0, 3),
        view=st.sampled_from(VIEWS),
        folder=st.sampled_from(FOLDERS),
        is_exclusive=st.booleans(),
        is_lenient=st.booleans(),
        data=st.data(),
    )
    def deliver(
        self,
        mount: int,
        body: int,
        view: str,
        folder: str,
        is_exclusive: bool,
        is_lenient: bool,
        data: st.DataObject,
    ) -> None:
        name = self._name(data, view)
        is_exclusive = is_exclusive and not is_lenient
        model = self.model.copy()
        docid = next((each for each, mail in model.mails.items() if mail.body == body), 0)
        if not docid:
            docid = len(model.mails) + 1
            model.mails[docid] = Mail(body, self._base(docid, body), is_live=False)
        world = self.mounts[mount].world
        self._do(
            mount,
            model,
            lambda: model.enter(
                mount, (view, folder, name), docid, is_exclusive=is_exclusive, is_lenient=is_lenient
            ),
            lambda: plan_arrival(
                world.tree,
                world.spool(make_message(body), RECEIVED_S),
                world.directory(f"{view}/{folder}"),
                name,
                is_exclusive=is_exclusive,
                is_lenient=is_lenient,
            ),
            docid,
        )

    @precondition(lambda self: bool(self.model.mails))
    @rule(
        mount=st.integers(0, 1),
        view=st.sampled_from(VIEWS),
        folder=st.sampled_from(FOLDERS),
        data=st.data(),
    )
    def link(self, mount: int, view: str, folder: str, data: st.DataObject) -> None:
        """Of a message that somebody may have open still, when all its names are gone."""
        docid = data.draw(st.sampled_from(sorted(self.model.mails)))
        name = self._name(data, view)
        model, world = self.model.copy(), self.mounts[mount].world
        self._do(
            mount,
            model,
            lambda: model.enter(mount, (view, folder, name), docid, is_exclusive=True),
            lambda: plan_link(
                world.tree,
                StoredMessage(Docid(docid), is_revived=True),
                world.directory(f"{view}/{folder}"),
                name,
            ),
            docid,
        )

    @rule(
        mount=st.integers(0, 1),
        folder=st.sampled_from(FOLDERS),
        is_exclusive=st.booleans(),
        data=st.data(),
    )
    def rename(self, mount: int, folder: str, is_exclusive: bool, data: st.DataObject) -> None:
        """Within a view; often only the letters."""
        found = self._entry(data, mount)
        if found is None:
            return
        view, old_folder, old_name = found
        new_name = self._name(data, view, (split(old_name).base,) * 3)
        model, world = self.model.copy(), self.mounts[mount].world
        self._do(
            mount,
            model,
            lambda: model.rename(
                mount, view, (old_folder, old_name), (folder, new_name), is_exclusive=is_exclusive
            ),
            lambda: plan_rename(
                world.tree,
                world.directory(f"{view}/{old_folder}"),
                old_name,
                world.directory(f"{view}/{folder}"),
                new_name,
                is_exclusive=is_exclusive,
            ),
        )

    @rule(
        mount=st.integers(0, 1),
        view=st.sampled_from(VIEWS),
        folder=st.sampled_from(FOLDERS),
        is_exclusive=st.booleans(),
        data=st.data(),
    )
    def move(
        self, mount: int, view: str, folder: str, is_exclusive: bool, data: st.DataObject
    ) -> None:
        found = self._entry(data, mount, tuple(each for each in VIEWS if each != view))
        if found is None:
            return
        old_view, old_folder, old_name = found
        new_name = self._name(data, view, (split(old_name).base,) * 2)
        model, world = self.model.copy(), self.mounts[mount].world
        self._do(
            mount,
            model,
            lambda: model.move(mount, found, (view, folder, new_name), is_exclusive=is_exclusive),
            lambda: plan_move(
                world.tree,
                world.directory(f"{old_view}/{old_folder}"),
                old_name,
                world.directory(f"{view}/{folder}"),
                new_name,
                is_exclusive=is_exclusive,
            ),
        )

    @rule(mount=st.integers(0, 1), data=st.data())
    def unlink(self, mount: int, data: st.DataObject) -> None:
        found = self._entry(data, mount)
        if found is None:
            return
        view, folder, name = found
        model, world = self.model.copy(), self.mounts[mount].world
        self._do(
            mount,
            model,
            lambda: model.unlink(mount, view, folder, name),
            lambda: plan_unlink(world.tree, world.directory(f"{view}/{folder}"), name),
        )

    def _do(
        self,
        mount: int,
        model: Model,
        foretell: Callable[[], None],
        plan: Callable[[], Arrival | EntryEdit | Removal | None],
        docid: int | None = None,
    ) -> None:
        """Let a client do something: done or refused as the model has it, which is then as foretold."""
        try:
            foretell()
        except Skipped:
            return
        except Refused as refused:
            code = refused.errno
        else:
            code = 0
        if code:
            with pytest.raises(MailfsError) as caught:
                self.mounts[mount].commit(plan())
            assert caught.value.errno == code
            return
        done = self.mounts[mount].commit(plan())
        assert docid is None or done == docid
        self.model = model
        model.settle()

    @rule(mount=st.integers(0, 1), view=st.sampled_from(VIEWS))
    def load(self, mount: int, view: str) -> None:
        world = self.mounts[mount].world
        if not world.tree.views[view].is_loaded:
            world.load(view)
            self.model.loaded[mount].add(view)

    @rule(mount=st.integers(0, 1))
    def readers_go(self, mount: int) -> None:
        made = self.mounts[mount]
        made.changes.publish(end_lingering(made.world.tree, time.monotonic() + 301))
        self.model.lingering[mount] = {view: set() for view in VIEWS}

    # --- others

    @precondition(lambda self: bool(self._live()))
    @rule(changes=st.integers(1, 3), data=st.data())
    def change(self, changes: int, data: st.DataObject) -> None:
        """Some changes by other processes before any mount looks."""
        for _ in range(changes):
            docid = data.draw(st.sampled_from(self._live()))
            kind = data.draw(st.sampled_from(("tag", "flag", "delete", "recent")))
            add, remove = data.draw(KEYWORDS), data.draw(KEYWORDS)
            getattr(self, f"_{kind}")(docid, add, remove)

    def _tag(self, docid: int, add: set[str], remove: set[str]) -> None:
        self.mounts[0].world.set_keywords(Docid(docid), sorted(add), sorted(remove - add))
        mail = self.model.mails[docid]
        mail.keywords = (mail.keywords | add) - (remove - add)

    def _flag(self, docid: int, add: set[str], remove: set[str]) -> None:
        letters = {"inbox": ord("S"), "work": ord("F"), "todo": ord("P")}
        more, less = ({letters[word] for word in words} for words in (add, remove - add))
        self.mounts[0].world.set_flags(
            Docid(docid), flags_of_letters(bytes(more)), flags_of_letters(bytes(less))
        )
        mail = self.model.mails[docid]
        mail.flags = (mail.flags | more) - less

    def _delete(self, docid: int, add: set[str], remove: set[str]) -> None:
        """As `mailfs tag +deleted` or -deleted."""
        say = DELETED if add else 0
        self.mounts[0].world.set_flags(Docid(docid), say, (DELETED & ~say) | DELETED_BY_ENTRY)
        self.model.say_deleted(docid, is_deleted=bool(add))

    def _recent(self, docid: int, add: set[str], remove: set[str]) -> None:
        say = RECENT if add else 0
        self.mounts[0].world.set_flags(Docid(docid), say, RECENT & ~say)
        self.model.mails[docid].is_recent = bool(add)

    @precondition(lambda self: bool(self._live()))
    @rule(data=st.data())
    def expunge(self, data: st.DataObject) -> None:
        docid = data.draw(st.sampled_from(self._live()))
        self.mounts[0].world.expunge(Docid(docid))
        self.model.mails[docid].is_live = False

    @rule(view=st.sampled_from(VIEWS), letters=st.sampled_from(LETTERS))
    def write_letters(self, view: str, letters: dict[int, str]) -> None:
        """As Dovecot does it, by a new file."""
        world = self.mounts[0].world
        area = world.tree.area(world.directory(view))
        make_area(area)
        path = os.path.join(area, KEYWORDS_FILE)
        with open(path + b".lock", "w") as file:
            file.writelines(f"{letter - ord('a')} {word}\n" for letter, word in letters.items())
        os.rename(path + b".lock", path)
        self.model.write_letters(view, letters)

    # --- what must hold

    @invariant()
    def both_mounts_show_what_the_model_says(self) -> None:
        self.model.settle()
        self.model.forget_stale()
        self.model.settle()
        for _ in range(2):  # what one mount settles or forgets, the other hears of
            for mount in self.mounts:
                mount.visit()
                trio.run(mount.changes.tick)
                trio.run(mount.changes.forget_stale_names)
        self._look_at_the_store()
        for number, mount in enumerate(self.mounts):
            self._look(number, mount)
            self._listen(mount)

    def _look_at_the_store(self) -> None:
        for docid, mail in self.model.mails.items():
            entry = self.store.index.entry(Docid(docid), live=False)
            assert bool(entry.expunged) != mail.is_live
            if mail.is_live:
                letters = letters_of_flags(entry.flags & ~DELETED)
                assert frozenset(letters) == mail.flags & FLAGS
                assert bool(entry.flags & RECENT) == mail.is_recent
                assert bool(entry.flags & DELETED) == bool(mail.deleted)
                assert self.mounts[0].world.keywords(Docid(docid)) == mail.keywords

    def _look(self, number: int, mount: Mount) -> None:
        """The listings are the model's, every name is found, and none that is another's or nobody's."""
        world = mount.world
        asked = {
            name
            for view in VIEWS
            for folder in FOLDERS
            for name in self.model.shown(number, view, folder)
        }
        asked |= {split(name).base for name in asked} | {
            mail.base for mail in self.model.mails.values()
        }
        asked |= {name + b",C=1:2," for name in asked} | {name + b":2,S" for name in asked}
        for view in VIEWS:
            for folder in FOLDERS:
                shown = self.model.shown(number, view, folder)
                listed = self._listed(world, view, folder)
                assert sorted(listed) == sorted(shown), (number, view, folder, listed)
                directory = world.directory(f"{view}/{folder}")
                for name in shown:
                    found = world.tree.find_message_or_none(directory, name)
                    assert found is not None, (view, folder, name)
                    assert (found.docid, found.is_exact) == (shown[name].docid, True)
                for name in asked - shown.keys():
                    is_meant = self.model.meets(number, view, folder, name)
                    assert world.find_or_none(f"{view}/{folder}", name) == (
                        None if is_meant is None else is_meant.docid
                    ), (view, folder, name)

    def _listed(self, world: World, name: str, folder: str) -> list[bytes]:
        view = world.tree.views[name]
        if view.is_loaded:
            return world.names(f"{name}/{folder}")
        return [
            shown
            for docid in world.matching(view)
            if world.tree.names.know(docid)
            and bool(world.flags(docid) & RECENT) == (folder == "new")
            for shown in world.tree.names.names(view, docid, world.flags(docid))
        ]

    def _listen(self, mount: Mount) -> None:
        """The kernel has heard of every name that vanished, and a folder's time moved when its listing did."""
        before, mount.before = mount.before, {}
        for name, view in mount.world.tree.views.items():
            mtimes = dict(zip(("new", "cur"), mount.world.mtimes(name), strict=True))
            for folder in FOLDERS:
                if not view.is_loaded:
                    continue
                names = frozenset(mount.world.names(f"{name}/{folder}"))
                mount.before[name, folder] = Seen(view, names, mtimes[folder])
                seen = before.get((name, folder))
                if seen is not None and seen.view is view:
                    ino = mount.world.directory(f"{name}/{folder}").ino
                    told = {each.name for each in mount.told.invalidations if each.parent == ino}
                    assert seen.names - names <= told, (name, folder)
                    assert mtimes[folder] >= seen.mtime_ns
                    assert names == seen.names or mtimes[folder] > seen.mtime_ns, (name, folder)
        mount.told.invalidations.clear()


NameHistories.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=20,
    deadline=None,
    # Making a history shorter would take longer than a test may.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)
TestNameHistories = NameHistories.TestCase
