"""Random histories of a store and its views, with several writers and restarts, against a plain model.

Two writers, each a store opened by itself with the tree of a mount over it, change the same store in turn: messages are
added, tagged, flagged, moved and removed through views, expunged, undeleted, reclaimed, brought again; operations are
undone; packs are sealed and compacted; the index is thrown away and rebuilt; writers are closed and come back. After each
step both writers must see what the model says, in the index and in every loaded view; at the end a new one must, the
bytes must be those that were brought, and verify must find nothing.
"""

import functools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Concatenate, ParamSpec
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mailfs.ids import Docid, Keyword, Modseq
from mailfs.message.keywords import FLAGGED, SEEN
from mailfs.store.adding import Outcome
from mailfs.store.layout import open_layout
from mailfs.store.prepare import prepare_message
from mailfs.store.records import Dictionary
from mailfs.store.rescue.reindex import Parser, reindex
from mailfs.store.store import Store
from mailfs.store.upkeep.compact import compact
from mailfs.store.upkeep.expire import expire
from mailfs.store.upkeep.log import iter_log
from mailfs.store.upkeep.seal import seal_full_packs
from mailfs.store.upkeep.training import introduce
from mailfs.store.upkeep.undo import newest_to_undo, undo
from mailfs.views.arrivals import StoredMessage, plan_arrival, plan_delivery
from tests.fakes import make_dictionary, make_message
from tests.oracle import contents_of, docids_of, problems_of
from tests.torture.report import Report
from tests.views.world import World

STEPS = 20
WRITERS = 2
LABELS = ("inbox", "work")
BITS = {"seen": SEEN, "flagged": FLAGGED}
RECEIVED_NS = 1_500_000_000_000_000_000
# Small, so that a history of some messages has several packs.
PACK_BYTES = 1500
DICTIONARIES = [make_dictionary(number) for number in range(2)]

writers = st.integers(0, WRITERS - 1)
labels = st.frozensets(st.sampled_from(LABELS))
flags = st.frozensets(st.sampled_from(sorted(BITS)))


@dataclass(frozen=True)
class Mail:
    """What a message is by the model. `is_live` is False while it is expunged."""

    body: int
    flags: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()
    is_live: bool = True


@dataclass
class Model:
    """Messages by docid, those that are reclaimed left out; the docids given so far."""

    mails: dict[Docid, Mail] = field(default_factory=dict)
    given: int = 0

    def copy(self) -> "Model":
        return Model(dict(self.mails), self.given)

    def live(self) -> dict[Docid, Mail]:
        return {docid: mail for docid, mail in self.mails.items() if mail.is_live}

    def of_body(self, body: int) -> Docid | None:
        return next((docid for docid, mail in self.mails.items() if mail.body == body), None)

    def change(self, docid: Docid, **facts: object) -> None:
        self.mails[docid] = replace(self.mails[docid], **facts)  # type: ignore[arg-type]

    def members(self, view: str) -> set[Docid]:
        """Who is in one of the views."""
        return {
            docid
            for docid, mail in self.live().items()
            if view == "all"
            or view in mail.labels
            or view in mail.flags
            or (view == "unread" and "seen" not in mail.flags)
        }


VIEWS = ("all", "flagged", "inbox", "unread", "work")


def raw_of(body: int) -> bytes:
    """Four small messages, and a larger one."""
    return make_message(body, body="text " * (400 if body == 4 else 5 + body))


def bits(names: Iterable[str]) -> int:
    """The flags of these names."""
    return sum(BITS[name] for name in names)


class Hand:
    """One writer: a store of its own, and a mount's tree over it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.open()

    def open(self) -> None:
        self.store = Store.open(self.root)
        self.world = World(self.store)

    def close(self) -> None:
        self.store.close()

    def live(self) -> dict[Docid, Mail]:
        """What the index says, but for the bytes."""
        found = {}
        for summary in self.store.index.summaries(docids_of(self.store)):
            names = frozenset(name for name, bit in BITS.items() if summary.flags & bit)
            body = int(summary.message_id.partition("@")[0])
            found[summary.docid] = Mail(body, names, frozenset(map(str, summary.keywords)))
        return found


P = ParamSpec("P")


def undoable(
    method: Callable[Concatenate["StoreHistories", P], None],
) -> Callable[Concatenate["StoreHistories", P], None]:
    """A rule that is one operation of the journal, if it changes anything."""

    @functools.wraps(method)
    def changing(self: "StoreHistories", /, *args: P.args, **kwargs: P.kwargs) -> None:
        before, newest = self.model.copy(), self.newest()
        method(self, *args, **kwargs)
        if self.newest() != newest:
            self.before = before

    return changing


class StoreHistories(RuleBasedStateMachine):
    """The store, two writers of it, and the model."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._stack.enter_context(patch("mailfs.store.packs.PACK_LIMIT_BYTES", PACK_BYTES))
        folder = tempfile.mkdtemp(prefix="mailfs-model-", dir=FOLDER)
        self._stack.callback(shutil.rmtree, folder)
        self.root = Path(folder) / "store"
        with (
            Store.create(self.root) as store,
            store.writer.transaction("test", durable=False) as tx,
        ):
            tx.searches.save("work", "tag:work")
        self.hands = [Hand(self.root) for _ in range(WRITERS)]
        self.model = Model()
        # What the model was before the last change, as long as it can be undone.
        self.before: Model | None = None

    def teardown(self) -> None:
        try:
            for hand in self.hands:
                hand.close()
            with Store.open(self.root) as store:
                assert problems_of(store) == []
                live = self.model.live()
                assert contents_of(store) == {d: raw_of(mail.body) for d, mail in live.items()}
            self._look(Hand(self.root), is_new=True)
        finally:
            self._stack.close()

    def _look(self, hand: Hand, *, is_new: bool = False) -> None:
        """One writer sees what is in the model."""
        model, tree = self.model, hand.world.tree
        assert hand.live() == model.live()
        expunged = sorted(docid for docid, mail in model.mails.items() if not mail.is_live)
        assert hand.store.index.expunged_docids() == expunged
        hand.world.refresh()
        for name in VIEWS:
            view = tree.views[name]
            if is_new:
                hand.world.load(name)
            if view.is_loaded:
                assert set(view.docids) - view.lingering == model.members(name), name
        if is_new:
            hand.close()

    @invariant()
    def all_see_the_same(self) -> None:
        for hand in self.hands:
            self._look(hand)

    # --- what is drawn

    def _docid(self, data: st.DataObject, docids: Iterable[Docid]) -> Docid:
        return data.draw(st.sampled_from(sorted(docids)))

    # --- commands

    @initialize(loaded=st.lists(st.frozensets(st.sampled_from(VIEWS)), min_size=2, max_size=2))
    def load(self, loaded: list[frozenset[str]]) -> None:
        for hand, names in zip(self.hands, loaded, strict=True):
            for name in sorted(names):
                hand.world.load(name)

    def newest(self) -> Modseq | None:
        """The last operation in the journal."""
        return next((each.number for each in iter_log(self.hands[0].store.index)), None)

    @precondition(lambda self: self.before is not None)
    @rule(by=writers)
    def undo(self, by: int) -> None:
        """Everything is as before the last change, but that what it added is expunged now."""
        store, before = self.hands[by].store, self.before
        assert before is not None
        for _ in undo(store, newest_to_undo(store.index)):
            pass
        for docid, mail in self.model.mails.items():
            if docid not in before.mails:
                before.mails[docid] = replace(mail, is_live=False)
        self.model, self.before = Model(before.mails, self.model.given), None

    @precondition(lambda self: len(self.model.live()) < len(self.model.mails))
    @rule(by=writers)
    def expire(self, by: int) -> None:
        for _ in expire(self.hands[by].store, time.time() + 1):
            pass
        self.model.mails, self.before = self.model.live(), None

    @rule(by=writers, body=st.integers(0, 4), words=labels, marks=flags)
    @undoable
    def add(self, by: int, body: int, words: frozenset[str], marks: frozenset[str]) -> None:
        """As an import does it."""
        new = prepare_message(raw_of(body), bits(marks), tuple(map(Keyword, words)), RECEIVED_NS)
        known = self.model.of_body(body)
        with self.hands[by].store.writer.transaction("test", durable=True) as tx:
            docid, outcome = tx.add(new)
        if known is None:
            self.model.given += 1
            assert (docid, outcome) == (self.model.given, Outcome.ADDED)
            self.model.mails[docid] = Mail(body, marks, words)
        else:
            is_live = self.model.mails[known].is_live
            assert (docid, outcome) == (known, Outcome.KNOWN if is_live else Outcome.EXPUNGED)

    @rule(by=writers, body=st.integers(0, 4), view=st.sampled_from(LABELS))
    @undoable
    def deliver(self, by: int, body: int, view: str) -> None:
        """What was expunged is back as if new; what is known enters the view."""
        hand = self.hands[by]
        new = prepare_message(raw_of(body), 0, (), RECEIVED_NS)
        search = hand.store.index.search(view)
        docid = hand.world.arrive(plan_delivery(search, new, ()))
        known = self.model.of_body(body)
        if known is None:
            self.model.given += 1
            assert docid == self.model.given
            self.model.mails[docid] = Mail(body, labels=frozenset({view}))
            return
        assert docid == known
        if not self.model.mails[docid].is_live:
            self.model.mails[docid] = Mail(body)
        self.model.change(docid, labels=self.model.mails[docid].labels | {view})

    @precondition(lambda self: self.model.live())
    @rule(by=writers, add=labels, remove=labels, mark=flags, clear=flags, data=st.data())
    @undoable
    def tag(
        self,
        by: int,
        add: frozenset[str],
        remove: frozenset[str],
        mark: frozenset[str],
        clear: frozenset[str],
        data: st.DataObject,
    ) -> None:
        docid = self._docid(data, self.model.live())
        with self.hands[by].store.writer.transaction("test", durable=False) as tx:
            tx.edit_flags(docid, bits(mark), bits(clear - mark))
            tx.edit_keywords(docid, map(Keyword, add), map(Keyword, remove - add))
        mail = self.model.mails[docid]
        self.model.change(
            docid,
            labels=mail.labels - (remove - add) | add,
            flags=mail.flags - (clear - mark) | mark,
        )

    @precondition(lambda self: self.model.live())
    @rule(by=writers, data=st.data())
    @undoable
    def expunge(self, by: int, data: st.DataObject) -> None:
        docid = self._docid(data, self.model.live())
        with self.hands[by].store.writer.transaction("test", durable=False) as tx:
            tx.expunge(docid)
        self.model.change(docid, is_live=False)

    @precondition(lambda self: self.model.mails)
    @rule(by=writers, data=st.data())
    @undoable
    def undelete(self, by: int, data: st.DataObject) -> None:
        docid = self._docid(data, self.model.mails)
        with self.hands[by].store.writer.transaction("test", durable=False) as tx:
            assert tx.undelete(docid) != self.model.mails[docid].is_live
        self.model.change(docid, is_live=True)

    # --- clients of a mount

    @precondition(lambda self: self.model.live())
    @rule(by=writers, view=st.sampled_from(VIEWS), data=st.data())
    @undoable
    def unlink(self, by: int, view: str, data: st.DataObject) -> None:
        world, members = self.hands[by].world, self.model.members(view)
        if not members:
            return
        docid = self._docid(data, members)
        world.unlink(*self._entry(world, view, docid))
        mail = self.model.mails[docid]
        if view in LABELS and mail.labels != {view}:
            self.model.change(docid, labels=mail.labels - {view})
        else:
            self.model.change(docid, is_live=False)

    def _entry(self, world: World, view: str, docid: Docid) -> tuple[str, bytes]:
        """Where a member stands in a view."""
        assert world.tree.names.know(docid)
        for folder in ("cur", "new"):
            directory = world.directory(f"{view}/{folder}")
            shown = world.tree.names.names(
                world.tree.views[view], docid, world.store.index.entry(docid).flags
            )
            for name in sorted(shown):
                if world.tree.find_message_or_none(directory, name) is not None:
                    return f"{view}/{folder}", name
        raise AssertionError(f"message {docid} is not shown in {view}")

    @precondition(lambda self: self.model.live())
    @rule(by=writers, view=st.sampled_from(VIEWS), marks=flags, data=st.data())
    @undoable
    def rename(self, by: int, view: str, marks: frozenset[str], data: st.DataObject) -> None:
        world, members = self.hands[by].world, self.model.members(view)
        if not members:
            return
        docid = self._docid(data, members)
        path, name = self._entry(world, view, docid)
        letters = ("F" if "flagged" in marks else "") + ("S" if "seen" in marks else "")
        base = name.partition(b":2,")[0]
        world.rename(path, name, f"{view}/cur", base + f":2,{letters}".encode())
        self.model.change(docid, flags=marks)

    @precondition(lambda self: self.model.live())
    @rule(by=writers, view=st.sampled_from(LABELS), data=st.data())
    @undoable
    def move(self, by: int, view: str, data: st.DataObject) -> None:
        """From one label view to the other."""
        other = LABELS[1 - LABELS.index(view)]
        world, members = self.hands[by].world, self.model.members(view)
        if not members:
            return
        docid = self._docid(data, members)
        path, name = self._entry(world, view, docid)
        if other in self.model.mails[docid].labels:
            return  # it would have two names there, which is another model's matter
        world.move(path, name, f"{other}/cur", name)
        self.model.change(docid, labels=frozenset({other}))

    @precondition(lambda self: len(self.model.live()) < len(self.model.mails))
    @rule(by=writers, view=st.sampled_from(LABELS), data=st.data())
    @undoable
    def take_out_of_expunged(self, by: int, view: str, data: st.DataObject) -> None:
        world = self.hands[by].world
        docid = self._docid(data, self.model.mails.keys() - self.model.live().keys())
        source = StoredMessage(docid, is_undeleted=True)
        directory = world.directory(f"{view}/cur")
        base = b"%d.M%d" % (RECEIVED_NS, docid)
        world.arrive(plan_arrival(world.tree, source, directory, base, is_exclusive=True))
        mail = self.model.mails[docid]
        self.model.change(docid, is_live=True, labels=mail.labels | {view})

    # --- processes

    @rule(by=writers)
    def restart(self, by: int) -> None:
        self.hands[by].close()
        self.hands[by].open()

    @rule(by=writers, everything=st.booleans())
    def compact(self, by: int, everything: bool) -> None:
        for _ in compact(self.hands[by].store, everything=everything):
            pass

    @rule(by=writers)
    def seal(self, by: int) -> None:
        seal_full_packs(self.hands[by].store)

    @rule(by=writers, number=st.integers(0, 1))
    def introduce(self, by: int, number: int) -> None:
        """Another dictionary, which records from now on are made with."""
        introduce(self.hands[by].store, Dictionary(DICTIONARIES[number]))

    @rule()
    def rebuild(self) -> None:
        """The index made anew, while nobody has the store open."""
        for hand in self.hands:
            hand.close()
        layout = open_layout(self.root)
        assert reindex(layout, Parser(layout).prepare).problems == []
        for hand in self.hands:
            hand.open()


# In memory where there is a file system for it: what survives power loss is not the question here.
FOLDER = "/dev/shm" if Path("/dev/shm").is_dir() else None


def run(seed_number: int, count: int, directory: Path) -> Report:
    """`count` histories; the first that goes wrong ends the run, and is told as short as it could be made."""
    report = Report("model", seed_number)
    machine = seed(seed_number)(StoreHistories)
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=count,
                stateful_step_count=STEPS,
                database=None,
                deadline=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )
    except Exception as error:  # noqa: BLE001  # an assertion, or whatever the store raises
        report.fail(
            0, "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
        )
    report.did("histories", count)
    return report
