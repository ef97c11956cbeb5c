"""Generated mail, queries and histories: what refresh() makes of a view is what asking its query anew finds.

Views are asked about changed messages only, yet a conversation that was joined, an answer that was flagged, a
negation, or a clock that moved on, can bring in or take out any message. After every step each loaded view is held
against its query in SQL, against the query asked about every message, and against the names in a new tree; and a
folder's time moves exactly when its listing did.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mailfs.errors import MailfsError
from mailfs.ids import Docid, Keyword, SearchId
from mailfs.message.keywords import FLAGGED, RECENT, SEEN
from mailfs.message.maildir import ChosenName, Form
from mailfs.search.match import matching
from mailfs.search.plan import plan
from mailfs.search.query import format_query
from mailfs.search.tree import All
from mailfs.store.adding import Outcome
from mailfs.store.prepare import prepare_message
from mailfs.store.source import IndexSource
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from mailfs.views.areas import make_area
from mailfs.views.edits import EntryEdit, commit, plan_rename
from mailfs.views.evaluation import evaluate, install
from mailfs.views.letters import KEYWORDS_FILE
from mailfs.views.membership import end_lingering
from mailfs.views.refresh import moved_by_clock, refresh, sync_letters
from mailfs.views.searches import RenamedSearches, commit_search
from mailfs.views.tree import Kind, NameChange, News, Shown
from mailfs.views.view import View
from tests.oracle import problems_of
from tests.unit.test_query import QUERIES
from tests.views.world import World

# The zone of the machine does not matter: both sides read dates in the same one.
START_S = datetime(2015, 6, 17, 14, 35, tzinfo=UTC).timestamp()
DAY_S = 86_400
KEYWORDS = ("work", "home", "lists/x", "a:b")
VIEWS = ("work", "home", "lists/x", "one", "two")
MESSAGE_IDS = ("1@x", "2@x", "3@x", "4@x", "5@x", "6@x", "7@x", "8@x")


class Mail(NamedTuple):
    """A message somebody sends; times are days before START_S."""

    message_id: str
    references: tuple[str, ...] = ()
    sender: str = ""
    subject: str = ""
    body: str = ""
    list_id: str = ""
    date_days: float = 1.0
    received_days: float = 1.0
    padding: int = 0
    has_attachment: bool = False

    def raw(self) -> bytes:
        date = datetime.fromtimestamp(START_S - self.date_days * DAY_S, UTC)
        fields = [
            f"From: {self.sender} <ann@example.org>",
            "To: bob@example.org",
            f"Subject: {self.subject}",
            f"Date: {format_datetime(date)}",
            f"Message-ID: <{self.message_id}>",
        ]
        if self.references:
            fields.append("References: " + " ".join(f"<{each}>" for each in self.references))
        if self.list_id:
            fields.append(f"List-Id: <{self.list_id}>")
        if self.has_attachment:
            fields.append("Content-Disposition: attachment; filename=blue.txt")
        return ("\n".join(fields) + f"\n\n{self.body}\n" + "." * self.padding + "\n").encode()


# --- what another writer does; messages go by a number, in the order of their coming, and around


class Add(NamedTuple):
    """Deliver; what is there expunged comes back."""

    mail: Mail
    keywords: tuple[Keyword, ...]
    flags: int

    def write(self, tx: Transaction) -> None:
        received_ns = int(START_S - self.mail.received_days * DAY_S) * 10**9
        docid, outcome = tx.add(
            prepare_message(self.mail.raw(), self.flags, self.keywords, received_ns)
        )
        if outcome is Outcome.EXPUNGED:
            tx.revive(docid)


class Mark(NamedTuple):
    """Flags and keywords of one message."""

    number: int
    add: int = 0
    remove: int = 0
    keywords: frozenset[Keyword] = frozenset()
    no_keywords: frozenset[Keyword] = frozenset()

    def write(self, tx: Transaction) -> None:
        docid = _docid(tx, self.number)
        tx.edit_flags(docid, self.add, self.remove)
        tx.edit_keywords(docid, self.keywords, self.no_keywords)


class FlagAll(NamedTuple):
    """Every message is changed: a flag comes or goes."""

    flag: int

    def write(self, tx: Transaction) -> None:
        for docid, flags in tx.rows("SELECT docid, flags FROM message"):
            tx.edit_flags(docid, self.flag & ~flags, self.flag & flags)


class Expunge(NamedTuple):
    number: int
    is_undone: bool = False

    def write(self, tx: Transaction) -> None:
        (tx.revive if self.is_undone else tx.expunge)(_docid(tx, self.number))


class RenameKeyword(NamedTuple):
    old: Keyword
    new: Keyword

    def write(self, tx: Transaction) -> None:
        tx.rename_keyword(self.old, self.new)


class Save(NamedTuple):
    """A new search, or another query for one."""

    name: str
    query: str

    def write(self, tx: Transaction) -> None:
        tx.searches.save(self.name, self.query, replace=True)


class Forget(NamedTuple):
    name: str

    def write(self, tx: Transaction) -> None:
        tx.searches.forget(self.name)


class RenameSearch(NamedTuple):
    """mv of a view, and of the keyword called like it."""

    old: str
    new: str

    def write(self, tx: Transaction) -> None:
        commit_search(tx, RenamedSearches(self.old, self.new, ((self.old, self.new),)))


class Choose(NamedTuple):
    """A client of another mount gives a message a name, or takes one away.

    `base` is such a name, or the number of a message whose canonical name it is.
    """

    number: int
    view: str
    base: bytes | int
    extra: bytes
    form: Form
    is_removed: bool

    def write(self, tx: Transaction) -> None:
        base = self.base if isinstance(self.base, bytes) else tx.base_of(_docid(tx, self.base))
        for (search_id,) in tx.rows("SELECT search_id FROM search WHERE name = ?", (self.view,)):
            if self.is_removed:
                tx.entries.remove(SearchId(search_id), base)
            else:
                name = ChosenName(base, self.extra, self.form)
                tx.entries.put(SearchId(search_id), _docid(tx, self.number), name)


def _docid(tx: Transaction, number: int) -> Docid:
    rows = tx.rows("SELECT docid FROM message ORDER BY docid")
    return Docid(rows[number % len(rows)][0])


Change = Add | Mark | FlagAll | Expunge | RenameKeyword | Save | Forget | RenameSearch | Choose

# --- how these are generated: few words, so that much is in common

_NUMBERS = st.integers(0, 11)
_KEYWORDS = st.sampled_from(KEYWORDS).map(Keyword)
_SOME_KEYWORDS = st.frozensets(_KEYWORDS, max_size=2)
_FLAGS = st.sets(st.sampled_from((SEEN, FLAGGED, RECENT))).map(sum)
_WORDS = st.lists(st.sampled_from(("red", "green", "blue", "o'neil")), max_size=2).map(" ".join)
_DAYS = st.one_of(
    st.sampled_from((-1.0, 0.0, 0.0001, 0.01, 0.5, 1.0, 1.5, 6.9, 7.0, 8.0, 31.0)),
    st.integers(-40, 40).map(float),
)
_MAILS = st.builds(
    Mail,
    st.sampled_from(MESSAGE_IDS),
    # Mostly none: conversations are small, until somebody answers to two of them.
    st.just(()) | st.lists(st.sampled_from(MESSAGE_IDS), min_size=1, max_size=2).map(tuple),
    *[_WORDS] * 3,
    st.sampled_from(("", "red.example.org")),
    *[_DAYS] * 2,
    st.integers(0, 4000),
    st.booleans(),
)
_LEAVES = st.sampled_from(
    (
        *("is:seen", "is:flagged", "is:recent", "is:tagged", "tag:later", "red", "s:green", "blu*"),
        *("date:today", "date:today..", "date:1w..", "date:5M..", "date:last_week", "date:now"),
        *("received:..yesterday", "received:..2h", "received:monday", "larger:1k"),
        *(f"tag:{keyword}" for keyword in KEYWORDS),
        *(f"id:{each}" for each in MESSAGE_IDS),
    )
)
_FORMS = st.sampled_from(
    (
        *("{0}", "not {0}", "{0} or {1}", "tag:work -{0}", "tag:home is:unread {0}"),
        *("thread:{{{0}}}", "not thread:{{{0}}}", "not thread:{{-{0}}}", "thread:{{{0}}} -{1}"),
        *("{0} or thread:{{{1}}}", "thread:{{thread:{{{0}}} -{1}}}", "tag:work thread:{{{0}}}"),
    )
)
_QUERIES = st.builds(str.format, _FORMS, _LEAVES, _LEAVES) | QUERIES.map(format_query)
_NAMES = st.sampled_from(VIEWS)
_ADDS = st.builds(Add, _MAILS, _SOME_KEYWORDS.map(sorted).map(tuple), _FLAGS)
_CHANGES: st.SearchStrategy[Change] = st.one_of(
    _ADDS,
    st.builds(Mark, _NUMBERS, _FLAGS, _FLAGS, _SOME_KEYWORDS, _SOME_KEYWORDS),
    st.builds(Expunge, _NUMBERS),
    st.builds(Expunge, _NUMBERS, st.just(True)),
    st.builds(RenameKeyword, _KEYWORDS, _KEYWORDS | st.just(Keyword("later"))),
    st.builds(RenameKeyword, st.just(Keyword("later")), _KEYWORDS),
    st.sampled_from((SEEN, FLAGGED)).map(FlagAll),
    st.builds(Save, _NAMES, _QUERIES),
    st.builds(Forget, _NAMES),
    st.builds(RenameSearch, _NAMES, _NAMES),
    st.builds(
        Choose,
        _NUMBERS,
        _NAMES,
        st.sampled_from((b"mine", b"other,U=7")) | _NUMBERS,
        st.sampled_from((b"", b"a", b"bz")),
        st.sampled_from(Form),
        st.booleans(),
    ),
)
_TRANSACTIONS = st.lists(st.lists(_CHANGES, min_size=1, max_size=4), min_size=1, max_size=3)
# Forwards mostly: by a little, into another hour, over midnight, over weeks.
_SECONDS = st.sampled_from((1, 3600, 11 * 3600, DAY_S, DAY_S, 8 * DAY_S, 40 * DAY_S, -3600, -DAY_S))

Listing = dict[Docid, frozenset[Shown]]


class Seen(NamedTuple):
    """What was seen of a view when it was listed last; the times are those of its folders."""

    view: View
    listing: Listing
    times: dict[Kind, int]


class History:
    """A store others write to, and a tree in which all views are loaded; time.time() is `now_s`."""

    def __init__(self, root: Path) -> None:
        self.now_s = START_S
        self._clock = pytest.MonkeyPatch()
        self._clock.setattr(time, "time", lambda: self.now_s)
        self.world = World(Store.create(root))
        self.tree = self.world.tree
        self._seen: dict[SearchId, Seen] = {}
        self._seen_s = START_S
        self._heard: list[NameChange] = []
        self._refreshes = 0

    def close(self) -> None:
        self._clock.undo()
        assert problems_of(self.world.store) == []
        self.world.store.close()

    def write(self, transactions: Sequence[Sequence[Change]]) -> None:
        for changes in transactions:
            with self.world.store.writer.transaction("test", durable=True) as tx:
                for change in changes:
                    with contextlib.suppress(MailfsError):  # what is refused is no change
                        change.write(tx)

    def hear(self, news: Iterable[News]) -> None:
        self._heard += [each for each in news if isinstance(each, NameChange)]

    def refresh(self) -> None:
        self._refreshes += 1
        self.hear(refresh(self.tree))

    def _load_all(self) -> None:
        """Views that are new or have another query."""
        for name, view in self.tree.views.items():
            if not view.is_loaded:
                self.world.load(name)

    def _see_all(self) -> None:
        self._seen = {
            view.search.search_id: Seen(view, _listing(self.world, view), _times(view))
            for view in self.tree.views.values()
        }
        self._seen_s, self._heard, self._refreshes = self.now_s, [], 0

    def check(self) -> None:
        """Bring the tree up to the store and the clock, and compare all of it."""
        self.refresh()
        assert refresh(self.tree) == []
        for view in self.tree.views.values():
            view.next_look_s = 0.0  # at once
        self.hear(moved_by_clock(self.tree, self.now_s))
        assert moved_by_clock(self.tree, self.now_s) == []
        self._load_all()
        self._compare_with_the_index()
        self._compare_with_a_new_tree()
        for seen in self._seen.values():
            now = self.tree.view_of_or_none(seen.view.search.search_id)
            if now is seen.view:
                self._compare_news(seen)
                self._compare_times(seen)
            elif now is not None:  # another query
                assert all(seen.times[kind] < time_ns for kind, time_ns in _times(now).items())
        self._see_all()

    def _compare_with_the_index(self) -> None:
        """The query in SQL, and asked about every message."""
        index = self.world.store.index
        live = index.docids(plan(All(), self.now_s))
        for view in self.tree.views.values():
            assert view.is_loaded
            members = set(view.docids) - view.lingering
            assert members == set(index.docids(plan(view.query, self.now_s))), view.search.query
            assert members == matching(view.query, live, IndexSource(index), self.now_s)
            assert list(view.docids) == sorted(set(view.docids))
            assert view.lingering <= set(view.docids) <= set(live)

    def _compare_with_a_new_tree(self) -> None:
        """Names, but of messages that linger, and of those whose canonical name one of these has."""
        again = World(self.world.store)
        assert again.tree.views.keys() == self.tree.views.keys()
        for view in self.tree.views.values():
            fresh = _listing(again, again.load(view.search.name))
            taken = {row.base for docid in view.lingering for row in view.chosen.get(docid, ())}
            listing = _listing(self.world, view)
            for docid in (listing.keys() | fresh.keys()) - view.lingering:
                is_same = listing.get(docid) == fresh.get(docid)
                assert is_same or again.tree.names.base_of(docid) in taken, view.search.query

    def _compare_news(self, seen: Seen) -> None:
        """What was told first of a message is what was listed; and who is listed otherwise was told of."""
        listing = _listing(self.world, seen.view)
        first: Listing = {}
        for change in self._heard:
            if change.view is seen.view:
                first.setdefault(change.docid, change.before)
        for docid in seen.listing.keys() | listing.keys() | first.keys():
            before = seen.listing.get(docid, _NO_NAMES)
            assert first.get(docid, listing.get(docid, _NO_NAMES)) == before

    def _compare_times(self, seen: Seen) -> None:
        """A folder's time moved if its names have, or did on the way, with the clock; else it is the same."""
        view, listing = seen.view, _listing(self.world, seen.view)
        told = [change for change in self._heard if change.view is view]
        touched = {kind for each in told for kind, _ in each.before ^ each.after}
        changed = {
            kind
            for docid in listing.keys() | seen.listing.keys()
            for kind, _ in listing.get(docid, _NO_NAMES) ^ seen.listing.get(docid, _NO_NAMES)
        }
        assert changed <= touched
        if self._refreshes == 1 and self.now_s == self._seen_s:
            assert touched == changed, view.search.query
        for kind, time_ns in _times(view).items():
            assert time_ns <= time.time_ns()
            if kind in touched:
                assert time_ns > seen.times[kind], view.search.query
            else:
                assert time_ns == seen.times[kind], view.search.query


_NO_NAMES: frozenset[Shown] = frozenset()


def _times(view: View) -> dict[Kind, int]:
    return {Kind.NEW: view.new_mtime_ns, Kind.CUR: view.cur_mtime_ns}


def _listing(world: World, view: View) -> Listing:
    """What is listed in cur/ and new/ of a loaded view; no name stands there twice."""
    listing: Listing = {}
    for kind in (Kind.NEW, Kind.CUR):
        folder = world.tree.directory(world.tree.subfolder_ino(view, kind))
        entries = [(docid, name) for docid, _, name in world.tree.iter_messages(folder, Docid(0))]
        assert len({name for _, name in entries}) == len(entries)
        for docid, name in entries:
            listing[Docid(docid)] = listing.get(Docid(docid), _NO_NAMES) | {(kind, name)}
    return listing


class Incremental(RuleBasedStateMachine):
    """What happens to a history, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.history = History(Path(self._folder.name) / "store")

    def teardown(self) -> None:
        self.history.close()
        self._folder.cleanup()

    @initialize(
        adds=st.lists(_ADDS, min_size=6, max_size=10),
        queries=st.tuples(*[_QUERIES] * len(VIEWS)),
    )
    def begin(self, adds: list[Change], queries: tuple[str, ...]) -> None:
        saved = [Save(name, query) for name, query in zip(VIEWS, queries, strict=True)]
        self.history.write([[*adds, *saved]])

    @invariant()
    def every_view_is_what_its_query_says(self) -> None:
        self.history.check()

    @rule(transactions=_TRANSACTIONS)
    def others_write(self, transactions: list[list[Change]]) -> None:
        self.history.write(transactions)

    @rule(name=_NAMES, query=_QUERIES, transactions=_TRANSACTIONS, is_seen=st.booleans())
    def others_write_while_a_view_is_evaluated(
        self, name: str, query: str, transactions: list[list[Change]], is_seen: bool
    ) -> None:
        history, world = self.history, self.history.world
        history.write([[Save(name, query)]])
        history.refresh()
        view = history.tree.views[name]
        evaluation = evaluate(world.store.layout, view, history.tree.facts)
        history.write(transactions)
        if is_seen:
            history.refresh()
        history.hear(install(history.tree, view, evaluation))

    @rule(
        steps=st.lists(
            st.tuples(_SECONDS, st.sampled_from(([], [[FlagAll(FLAGGED)]])) | _TRANSACTIONS),
            min_size=1,
            max_size=3,
        )
    )
    def time_passes(self, steps: list[tuple[int, list[list[Change]]]]) -> None:
        """And changes are seen before views are moved with the clock."""
        for seconds, transactions in steps:
            self.history.now_s += seconds
            self.history.write(transactions)
            self.history.refresh()

    @rule(
        name=_NAMES | st.sampled_from(("unread", "flagged")),
        number=_NUMBERS,
        letters=st.sampled_from((b"", b"F", b"FS", b"S")),
    )
    def a_client_marks(self, name: str, number: int, letters: bytes) -> None:
        """In a view, where the message lingers if it stops matching."""
        history, tree = self.history, self.history.tree
        if (view := tree.views.get(name)) is None:
            return
        cur = tree.directory(tree.subfolder_ino(view, Kind.CUR))
        shown = [entry for _, _, entry in tree.iter_messages(cur, Docid(0))]
        if not shown:
            return
        old = shown[number % len(shown)]
        edit = plan_rename(tree, cur, old, cur, old.partition(b":")[0] + b":2," + letters)
        if isinstance(edit, EntryEdit):
            view.being_edited.add(edit.docid)
            commit(history.world.store, edit)
            history.refresh()
            view.being_edited.discard(edit.docid)

    @rule()
    def readers_go(self) -> None:
        self.history.hear(end_lingering(self.history.tree, time.monotonic() + 10**6))

    @rule(name=_NAMES, keywords=st.lists(_KEYWORDS, max_size=2, unique=True))
    def letters_get_a_meaning(self, name: str, keywords: list[Keyword]) -> None:
        tree, view = self.history.tree, self.history.tree.views.get(name)
        if view is not None:
            area = tree.area(self.history.world.directory(name))
            make_area(area)
            lines = [f"{number} {keyword}\n" for number, keyword in enumerate(keywords)]
            made = Path(os.fsdecode(area), "made")
            made.write_text("".join(lines))
            made.rename(made.with_name(os.fsdecode(KEYWORDS_FILE)))
            self.history.hear(sync_letters(tree, view))


Incremental.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestIncremental = Incremental.TestCase


# --- the same without chance: each of these changes, and all of these queries

QUERIES_HELD = (
    *("*", "tag:work", "not tag:work", "tag:work and not tag:home", "tag:home or tag:later"),
    *("is:untagged", "is:tagged", "is:unread", "is:flagged", "not is:recent", "has:attachment"),
    *("red", "not red", "from:red -subject:green", "re*", '"red green"', "list:red", "id:2@x"),
    *("larger:1k", "size:..1k", "thread:1", "not thread:3", "thread:4 or thread:5"),
    *("date:today", "not date:yesterday..", "date:1week..", "received:..5M", "received:now"),
    *("thread:{red}", "not thread:{red}", "thread:{red} -red", "thread:{not is:flagged}"),
    *("thread:{is:flagged}", "not thread:{not is:unread}", "thread:{tag:work}", "thread:{id:2@x}"),
    *("thread:{thread:{red} is:flagged}", "thread:{not thread:{tag:work}}", "thread:{date:today}"),
    *(
        "tag:work thread:{tag:home}",
        "thread:{is:recent} or thread:{date:now}",
        "thread:{tag:later}",
    ),
)


WORK, HOME, LATER = Keyword("work"), Keyword("home"), Keyword("later")
# 1 and 2 are a conversation, 3 and 4 another, 5 is alone; 6 was expunged, and 7 answers to it.
FIRST_MAILS = (
    Add(Mail("1@x", subject="red green"), (WORK,), 0),
    Add(Mail("2@x", ("1@x",), date_days=0.0), (HOME,), SEEN),
    Add(Mail("3@x", subject="green", padding=4000), (), FLAGGED),
    Add(Mail("4@x", ("3@x",), sender="red", received_days=0.0), (WORK, HOME), SEEN),
    Add(Mail("5@x", list_id="red.example.org", date_days=7.0), (), RECENT),
    Add(Mail("6@x", body="red", date_days=-1.0), (WORK,), FLAGGED),
    Add(Mail("7@x", ("6@x",)), (), SEEN),
    Expunge(5),
)
HELD_CHANGES: dict[str, tuple[Change, ...]] = {
    "a flag comes": (Mark(1, FLAGGED, 0),),
    "a flag goes": (Mark(2, 0, FLAGGED),),
    "a message is read": (Mark(0, SEEN, 0),),
    "a message is moved to cur": (Mark(4, 0, RECENT),),
    "a keyword comes": (Mark(4, keywords=frozenset({WORK})),),
    "a keyword goes": (Mark(0, no_keywords=frozenset({WORK})),),
    "a keyword is renamed": (RenameKeyword(WORK, LATER),),
    "a keyword is renamed and comes back": (
        RenameKeyword(WORK, LATER),
        Mark(1, keywords=frozenset({WORK})),
    ),
    "what made a conversation match is expunged": (Expunge(0),),
    "all that made conversations match is expunged": (Expunge(0), Expunge(3), Expunge(2)),
    "an expunged message comes back": (Expunge(5, is_undone=True),),
    "an expunged message is delivered again": (FIRST_MAILS[5],),
    "an expunged message gets a keyword": (Mark(5, keywords=frozenset({HOME})),),
    "an answer comes": (Add(Mail("8@x", ("3@x",), subject="red", date_days=0.0), (LATER,), 0),),
    "an answer joins two conversations": (Add(Mail("8@x", ("2@x", "4@x")), (), 0),),
    "an answer joins what is gone to what is alone": (Add(Mail("8@x", ("5@x", "6@x")), (), SEEN),),
    "an answer joins and goes": (Add(Mail("8@x", ("2@x", "4@x")), (), FLAGGED), Expunge(7)),
    "the same message comes again": (FIRST_MAILS[0],),
    "everything is flagged or not": (FlagAll(FLAGGED),),
}


@pytest.mark.parametrize("changes", HELD_CHANGES.values(), ids=HELD_CHANGES.keys())
def test_every_kind_of_view_follows(tmp_path: Path, changes: tuple[Change, ...]) -> None:
    history = History(tmp_path / "store")
    try:
        saved = [Save(str(n), query) for n, query in enumerate(QUERIES_HELD)]
        history.write([FIRST_MAILS, saved])
        history.check()
        history.write([changes])
        history.check()
        history.now_s += 12 * 3600
        history.write([[FlagAll(FLAGGED)]])
        history.refresh()
        history.now_s += DAY_S
        history.check()
    finally:
        history.close()
