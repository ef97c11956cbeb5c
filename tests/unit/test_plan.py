"""Plans: what becomes of words, how large a query may be, and that the indexes are used."""

import time
import unicodedata
from collections.abc import Iterator
from datetime import UTC

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailfs.ids import Keyword
from mailfs.search.plan import Plan, plan
from mailfs.search.prefixes import text_leaf
from mailfs.search.query import parse_query
from mailfs.search.tree import HasKeyword, Text
from tests.unit.test_match import NOW_S, Mail, index_of, planned
from tests.unit.test_query import DEEPEST


@pytest.fixture(scope="module")
def index() -> Iterator[apsw.Connection]:
    words = [f"w{n % 7} common x{n}" for n in range(40)]
    connection = index_of(
        [
            Mail(
                text=("", "", "", word, "", "", ""),
                message_id=f"{n}@x",
                keywords=frozenset({f"k{n % 5}"}),
            )
            for n, word in enumerate(words)
        ]
    )
    yield connection
    connection.close()


def _plan(text: str) -> Plan:
    return plan(parse_query(text), NOW_S, UTC)


_MATCH = "message.docid {} (SELECT rowid FROM message_text WHERE message_text MATCH ?)"


@pytest.mark.parametrize(
    ("text", "isin", "expression"),
    [
        ("a", "IN", '"a"'),
        ("a*", "IN", '"a" *'),
        ("a b", "IN", '"a" AND "b"'),
        ("a or b c", "IN", '("b" AND "c") OR "a"'),
        ("from:a", "IN", '{sender} : "a"'),
        ("to:a*", "IN", '{recipient cc} : "a" *'),
        ('"say ""a"""', "IN", '"say ""a"""'),
        ("a -b", "IN", '("a") NOT ("b")'),
        ("a -b -c", "IN", '("a") NOT ("b" OR "c")'),
        ("-a", "NOT IN", '"a"'),
        ("-a -b", "NOT IN", '"a" OR "b"'),
        ("-a or -b", "NOT IN", '"a" AND "b"'),
        ("a or -b", "NOT IN", '("b") NOT ("a")'),
        ("--a", "IN", '"a"'),
        ("-(a -b)", "NOT IN", '("a") NOT ("b")'),
    ],
)
def test_words_alone_become_one_expression(text: str, isin: str, expression: str) -> None:
    assert _plan(text) == Plan(_MATCH.format(isin), (expression,))


def test_many_words_stand_in_groups_because_fts5_is_slow_to_add_to_a_long_list() -> None:
    (expression,) = _plan("a " * 1000).parameters
    assert isinstance(expression, str)
    groups = expression.split(") AND (")
    assert len(groups) == 4
    assert sum(group.count('"a"') for group in groups) == 1000


def test_words_among_other_terms_are_asked_in_one_expression() -> None:
    where, parameters = _plan("a is:seen b tag:work -c")
    assert where.count("MATCH") == 1
    assert '("a" AND "b") NOT ("c")' in parameters
    assert Keyword("work") in parameters


def test_what_a_user_typed_is_never_in_the_sql() -> None:
    evil = "x'); DROP TABLE message; --"
    where, parameters = plan(HasKeyword(Keyword(evil)), NOW_S)
    assert evil not in where
    assert parameters == (evil,)


def _found(connection: apsw.Connection, text: str) -> int:
    return len(planned(connection, parse_query(text)))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" or ".join(f"w{n}" for n in range(5_000)), 40),
        ("common " * 5_000, 40),
        ("common " + "-nothing " * 4_999, 40),
        ("is:seen or " + "-common or " * 4_998 + "nothing", 0),
        (" or ".join(f"id:{n}@x" for n in range(5_000)), 40),
        (" ".join(f"-id:{n}@x" for n in range(5, 5_000)), 5),
        (" or ".join(f"tag:k{n}" for n in range(1, 5_000)), 32),
        ("d:today " * 5_000, 40),
        ("d:3d or " * 4_999 + "d:4d", 0),
        ("thread:{is:unread} " * 200, 40),
        (" ".join(f"(w{n % 7} or is:unread)" for n in range(2_500)), 40),
        ("(common or nothing (" * 25 + "common" + "))" * 25, 40),
        ("(common and not (" * 11 + "common" + "))" * 11, 0),
        ("-(common -(" * 12 + "common" + "))" * 12, 40),
        (("common " + "-b " * 200 + "-(") * 23 + "nothing" + ")" * 23, 40),
        (DEEPEST.replace("a or b", "common or nothing"), 40),
        ("thread:{common or is:seen id:x " * 5 + "(" * 45 + "common" + " or is:seen)" * 45 + "}" * 5, 40),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)  # fmt: skip
def test_a_large_query_stays_inside_the_limits(
    index: apsw.Connection, text: str, found: int
) -> None:
    assert len(text) <= 100_000
    start = time.perf_counter()
    assert _found(index, text) == found
    # A second at most on an idle machine; the square of the length would be minutes.
    assert time.perf_counter() - start < 5


def _steps(connection: apsw.Connection, text: str) -> str:
    where, parameters = _plan(text)
    rows = connection.execute(
        f"EXPLAIN QUERY PLAN SELECT docid FROM message WHERE message.expunged = 0 AND {where}",
        parameters,
    )
    return "\n".join(row[3] for row in rows)


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("id:1@x", "envelope_message_id (message_id=?)"),
        ("id:1@x or id:2@x", "envelope_message_id (message_id=?)"),
        ("tag:k1", "SEARCH message_keyword USING PRIMARY KEY (keyword_id=?)"),
        ("tag:k1 or tag:k2", "SEARCH message_keyword USING PRIMARY KEY (keyword_id=?)"),
        ("thread:5", "message_thread (thread=?)"),
        ("thread:{tag:k1}", "message_thread (thread=?)"),
        ("date:2015", "message_date (date>? AND date<?)"),
        ("common", "SEARCH message USING INTEGER PRIMARY KEY (rowid=?)"),
    ],
)
def test_the_index_answers(index: apsw.Connection, text: str, step: str) -> None:
    assert step in _steps(index, text)
    assert "SCAN message\n" not in _steps(index, text) + "\n"


_SIGNS = st.characters(codec="utf-8")


@settings(max_examples=300, deadline=None)
@given(st.text(_SIGNS, min_size=1, max_size=8), st.booleans())
def test_any_accepted_text_is_an_expression_to_fts5(
    index: apsw.Connection, text: str, is_prefix: bool
) -> None:
    try:
        leaf = text_leaf(("subject",), text, is_phrase=True, starred=is_prefix)
    except ValueError:
        return
    planned(index, leaf)


@settings(max_examples=200, deadline=None)
@given(st.text(_SIGNS, min_size=1, max_size=8))
def test_a_text_finds_the_message_it_stands_in(text: str) -> None:
    if "\0" in text or not any(map(str.isalpha, text)):
        return
    if any(ord(sign) > 0x24F for sign in text):
        # Scripts FTS5 has younger or older tables for are another test's.
        return
    connection = index_of([Mail(text=(f"before {text} after", *("",) * 6))])
    try:
        assert planned(connection, Text(("sender",), text, is_phrase=True)) == {1}
    finally:
        connection.close()


def test_fts5_knows_almost_every_character_we_take_for_a_letter() -> None:
    connection = apsw.Connection(":memory:")
    connection.execute("CREATE VIRTUAL TABLE t USING fts5(x, content='', tokenize='unicode61')")
    connection.execute("CREATE VIRTUAL TABLE v USING fts5vocab(t, 'instance')")
    ours = set()
    for code in (*range(1, 0xD800), *range(0xE000, 0x1_1000), *range(0x2_0000, 0x2_0100)):
        sign = chr(code)
        if sign.isalnum() or unicodedata.category(sign) == "Co":
            ours.add(code)
    with connection:
        connection.executemany(
            "INSERT INTO t(rowid, x) VALUES (?, ?)", [(code, chr(code)) for code in sorted(ours)]
        )
    theirs = {row[0] for row in connection.execute("SELECT doc FROM v")}
    connection.close()
    # Signs of New Tai Lue and Vedic, letters only since FTS5's tables were made: they find nothing.
    assert len(ours - theirs) <= 30
    for sign in "+-.,'!?/@€…«»\0 \t":
        with pytest.raises(ValueError, match="nothing to search for"):
            text_leaf(None, sign, is_phrase=True, starred=False)
