"""Two implementations of one meaning, SQL in plan.py and set algebra in match.py, held equal on a real index."""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import NamedTuple

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailfs.ids import Docid, Keyword, ThreadId
from mailfs.message.keywords import ATTACHMENT, FLAGGED, SEEN
from mailfs.search.match import MessageFacts, matching
from mailfs.search.plan import Plan, plan
from mailfs.search.query import parse_query
from mailfs.search.tree import Query
from mailfs.store.schema import TABLES
from tests.unit.test_query import DEEPEST, QUERIES, with_frames_left

NOW_S = datetime(2015, 6, 17, 14, 35, tzinfo=UTC).timestamp()
_COLUMNS = ("sender", "recipient", "cc", "subject", "body", "attachment", "list")


class Mail(NamedTuple):
    """A message as the index knows it; `text` goes with `_COLUMNS`."""

    flags: int = 0
    is_expunged: bool = False
    size: int = 1000
    received_s: int = int(NOW_S)
    date: int = int(NOW_S)
    thread: int = 1
    message_id: str = ""
    keywords: frozenset[str] = frozenset()
    text: tuple[str, ...] = ("",) * len(_COLUMNS)


def index_of(mails: Sequence[Mail]) -> apsw.Connection:
    """An index in memory with these messages, numbered from 1."""
    connection = apsw.Connection(":memory:")
    for statement in TABLES:
        connection.execute(statement)
    add_mails(connection, mails)
    return connection


def add_mails(connection: apsw.Connection, mails: Sequence[Mail]) -> None:
    for docid, mail in enumerate(mails, start=1):
        connection.execute(
            "INSERT INTO message VALUES (?, 1, ?, ?, ?, ?, 0, ?, ?)",
            (
                docid,
                mail.flags,
                int(mail.is_expunged),
                mail.size,
                mail.received_s * 10**9,
                mail.date,
                mail.thread,
            ),
        )
        connection.execute(
            "INSERT INTO envelope VALUES (?, ?, '', '', '')", (docid, mail.message_id)
        )
        connection.execute(
            f"INSERT INTO message_text(rowid, {', '.join(_COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (docid, *mail.text),
        )
        for keyword in mail.keywords:
            connection.execute("INSERT OR IGNORE INTO keyword(name) VALUES (?)", (keyword,))
            connection.execute(
                "INSERT INTO message_keyword SELECT keyword_id, ? FROM keyword WHERE name = ?",
                (docid, keyword),
            )


def planned(connection: apsw.Connection, query: Query) -> set[Docid]:
    """What the plan finds among all messages, expunged ones too."""
    where, parameters = plan(query, NOW_S, UTC)
    return {
        Docid(row[0])
        for row in connection.execute(f"SELECT docid FROM message WHERE {where}", parameters)
    }


class IndexSource:
    """A MatchSource over an index; `asked` says which questions came, and none may come for nothing."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self.asked: list[str] = []

    def _hits(
        self, what: str, where: str, parameters: tuple[int | str, ...], docids: AbstractSet[Docid]
    ) -> set[Docid]:
        assert docids, f"{what} was asked about no message"
        self.asked.append(what)
        marks = ", ".join(str(docid) for docid in docids)
        rows = self._connection.execute(
            f"SELECT docid FROM message WHERE docid IN ({marks}) AND ({where})", parameters
        )
        return {Docid(row[0]) for row in rows}

    def facts(self, docids: AbstractSet[Docid]) -> Mapping[Docid, MessageFacts]:
        self.asked.append("facts")
        found = {}
        for docid in docids:
            for flags, size, received_ns, date, thread in self._connection.execute(
                "SELECT flags, size, received_ns, date, thread FROM message WHERE docid = ?",
                (docid,),
            ):
                found[docid] = MessageFacts(flags, size, received_ns, date, ThreadId(thread))
        return found

    def text_hits(self, expression: str, docids: AbstractSet[Docid]) -> set[Docid]:
        where = "docid IN (SELECT rowid FROM message_text(?))"
        return self._hits("text", where, (expression,), docids)

    def keyword_hits(self, keyword: Keyword, docids: AbstractSet[Docid]) -> set[Docid]:
        where = "docid IN (SELECT docid FROM message_keyword JOIN keyword USING (keyword_id) WHERE name = ?)"
        return self._hits("keyword", where, (keyword,), docids)

    def any_keyword_hits(self, docids: AbstractSet[Docid]) -> set[Docid]:
        where = "EXISTS (SELECT 1 FROM message_keyword AS k WHERE k.docid = message.docid)"
        return self._hits("any keyword", where, (), docids)

    def message_id_hits(self, message_id: str, docids: AbstractSet[Docid]) -> set[Docid]:
        where = "(SELECT e.message_id FROM envelope AS e WHERE e.docid = message.docid) = ?"
        return self._hits("message id", where, (message_id,), docids)

    def thread_hits(self, plan: Plan, docids: AbstractSet[Docid]) -> set[Docid]:
        threads = {
            row[0]
            for row in self._connection.execute(
                f"SELECT thread FROM message WHERE expunged = 0 AND ({plan.where})", plan.parameters
            )
        }
        among = ", ".join(map(str, threads))
        return self._hits("thread", f"thread IN ({among})", (), docids)


_TEXT = st.lists(
    st.sampled_from(
        [
            "red",
            "green",
            "blue",
            "sky",
            "gré",
            "greens",
            "o'neil",
            "x@y.z",
            "c++",
            "12",
            "30",
            "and",
        ]
    ),
    max_size=4,
).map(" ".join)
_SECONDS = st.one_of(
    st.integers(int(NOW_S) - 40 * 86_400, int(NOW_S)),
    st.integers(int(datetime(2014, 12, 31, 23, tzinfo=UTC).timestamp()), int(NOW_S) + 86_400),
    st.sampled_from([0, 1_433_160_000, int(NOW_S)]),
)
_MAILS = st.lists(
    st.builds(
        Mail,
        flags=st.integers(0, 255),
        is_expunged=st.booleans(),
        size=st.integers(0, 5000),
        received_s=_SECONDS,
        date=_SECONDS,
        thread=st.integers(1, 9),
        message_id=st.sampled_from(["", "1@x", "2@x", 'odd "(id)@x', "3@x*"]),
        keywords=st.frozensets(st.sampled_from(["work", "home", "new", "a:b", "lists/x"])),
        text=st.tuples(*[_TEXT] * len(_COLUMNS)),
    ),
    max_size=8,
)


@pytest.fixture(scope="module")
def index() -> Iterator[apsw.Connection]:
    """One index for all examples: making the tables is most of the time."""
    connection = index_of([])
    yield connection
    connection.close()


def _refill(connection: apsw.Connection, mails: Sequence[Mail]) -> None:
    for table in ("message", "envelope", "keyword", "message_keyword", "message_text"):
        connection.execute(f"DELETE FROM {table}")
    add_mails(connection, mails)


@settings(max_examples=250, deadline=None)
@given(mails=_MAILS, queries=st.lists(QUERIES, min_size=1, max_size=6), data=st.data())
def test_plan_and_match_agree(
    index: apsw.Connection, mails: Sequence[Mail], queries: Sequence[Query], data: st.DataObject
) -> None:
    with index:
        _refill(index, mails)
        some = data.draw(st.frozensets(st.integers(1, 9).map(Docid)))
        for query in queries:
            assert matching(query, some, IndexSource(index), NOW_S, UTC) == (
                planned(index, query) & some
            )


def _from(word: str) -> tuple[str, ...]:
    return (word, *("",) * 6)


@pytest.fixture
def colours(index: apsw.Connection) -> apsw.Connection:
    """1 red, 2 green and seen, 3 red green of the second thread, 4 blue, expunged, of the same."""
    work = frozenset({"work"})
    _refill(
        index,
        [
            Mail(text=_from("red")),
            Mail(text=_from("green"), flags=SEEN | ATTACHMENT),
            Mail(text=_from("red green"), thread=2, size=10, keywords=work),
            Mail(text=_from("blue"), thread=2, is_expunged=True, flags=FLAGGED, message_id="4@x"),
        ],
    )
    return index


@pytest.mark.parametrize(
    ("text", "docids"),
    [
        ("*", {1, 2, 3, 4}),
        ("red", {1, 3}),
        ("red green", {3}),
        ("red or green", {1, 2, 3}),
        ("not red", {2, 4}),
        ("not red not green", {4}),
        ("not red or not green", {1, 2, 4}),
        ("red or not green", {1, 3, 4}),
        ("not (red or not green)", {2}),
        ("gre*", {2, 3}),
        ("RED", {1, 3}),
        ("subject:red", set()),
        ("from:red", {1, 3}),
        ('"red green"', {3}),
        ('"green red"', set()),
        ("is:read", {2}),
        ("has:attachment", {2}),
        ("is:unread red", {1, 3}),
        ("red or is:seen", {1, 2, 3}),
        ("not red or is:unread", {1, 2, 3, 4}),
        ("tag:work", {3}),
        ("is:untagged", {1, 2, 4}),
        ("tag:work or tag:home or id:4@x or id:5@x", {3, 4}),
        ("id:<4@x>", {4}),
        ("size:10..999", {3}),
        ("size:..10", {3}),
        ("size:1000", {1, 2, 4}),
        ("size:11..999", set()),
        ("larger:999", {1, 2, 4}),
        ("larger:1000", set()),
        ("smaller:10", set()),
        ("thread:2", {3, 4}),
        ("thread:{red -green}", {1, 2}),
        ("thread:{tag:work}", {3, 4}),
        # An expunged message no longer pulls in its conversation.
        ("thread:{blue}", set()),
        ("date:today", {1, 2, 3, 4}),
        ("received:..yesterday", set()),
    ],
)
def test_both_find_what_a_person_expects(
    colours: apsw.Connection, text: str, docids: set[int]
) -> None:
    query = parse_query(text)
    everything = {Docid(docid) for docid in range(1, 6)}
    assert planned(colours, query) == docids
    assert matching(query, everything, IndexSource(colours), NOW_S, UTC) == docids


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("red green blue", ["facts", "text"]),
        ("red or green or -blue", ["facts", "text", "text"]),
        ("red is:flagged is:seen", ["facts"]),
        ("red or *", ["facts"]),
        ("tag:home red", ["facts", "keyword"]),
        ("tag:work is:draft", ["facts"]),
        ("tag:work or *", ["facts"]),
        ("red tag:work is:flagged", ["facts", "keyword"]),
        ("is:seen or is:unread or tag:work", ["facts"]),
    ],
)
def test_no_more_is_asked_than_can_matter(
    colours: apsw.Connection, text: str, asked: list[str]
) -> None:
    source = IndexSource(colours)
    matching(parse_query(text), {Docid(1), Docid(2), Docid(4)}, source, NOW_S, UTC)
    assert source.asked == asked


def test_nothing_is_asked_about_no_messages(colours: apsw.Connection) -> None:
    source = IndexSource(colours)
    assert matching(parse_query("red"), [], source, NOW_S, UTC) == set()
    assert source.asked == []


def test_the_deepest_query_is_matched_and_planned_alike(colours: apsw.Connection) -> None:
    def both() -> None:
        query = parse_query(DEEPEST)
        every = [Docid(docid) for docid in range(1, 5)]
        found = matching(query, every, IndexSource(colours), NOW_S, UTC)
        assert found == planned(colours, query) == set()

    with_frames_left(600, both)


def test_a_message_that_is_not_there_matches_nothing_not_even_a_negation(
    colours: apsw.Connection,
) -> None:
    for text in ("*", "not red", "not is:seen"):
        assert matching(parse_query(text), [Docid(99)], IndexSource(colours), NOW_S) == set()
