"""The grammar: what each form means, where errors point, and that text and tree go into each other and back."""

import contextlib
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailfs.errors import BadKeyword, QuerySyntaxError
from mailfs.ids import Keyword, ThreadId
from mailfs.message.keywords import FLAGGED, RECENT, SEEN, SYSTEM_KEYWORDS, parse_keyword
from mailfs.search.prefixes import NAME_OF_COLUMNS, TEXT_PREFIXES, VALUE_PREFIXES
from mailfs.search.query import (
    MAX_QUERY_CHARS,
    MAX_TERMS,
    MAX_THREADS,
    format_query,
    parse_query,
)
from mailfs.search.tree import (
    MAX_HEIGHT,
    MAX_NESTING,
    MAX_THREAD_NESTING,
    All,
    And,
    AnyKeyword,
    Date,
    Flag,
    HasAttachment,
    HasKeyword,
    MessageId,
    Not,
    Or,
    Query,
    Size,
    Text,
    Thread,
    ThreadOf,
    leaves,
)

a, b, c = Text(None, "a"), Text(None, "b"), Text(None, "c")


def alice(text: str = "alice") -> Text:
    return Text(("sender",), text)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("*", All()),
        ("a", a),
        ("a b", And((a, b))),
        ("a AND b", And((a, b))),
        ("a or b c", Or((a, And((b, c))))),
        ("(a Or b) c", And((Or((a, b)), c))),
        ("((a))", a),
        ("not a b", And((Not(a), b))),
        ("-a !b", And((Not(a), Not(b)))),
        ("a and not b", And((a, Not(b)))),
        ("--a", Not(Not(a))),
        ("-(a b)", Not(And((a, b)))),
        ('-"a b"', Not(Text(None, "a b", is_phrase=True))),
        ('"and"', Text(None, "and", is_phrase=True)),
        ('"say ""hi"""', Text(None, 'say "hi"', is_phrase=True)),
        ("pay*", Text(None, "pay", is_prefix=True)),
        ('"to pay"*', Text(None, "to pay", is_phrase=True, is_prefix=True)),
        ("o'brien a-b c++ x@y.z 12:30", And(tuple(map(
            lambda word: Text(None, word), ("o'brien", "a-b", "c++", "x@y.z", "12:30")
        )))),
        ("from:alice", alice()),
        ("F:alice", alice()),
        ("from:-alice", alice("-alice")),
        ("from:http://x", alice("http://x")),
        ('from:"alice b"', Text(("sender",), "alice b", is_phrase=True)),
        ("from:(alice or bob -eve)", Or((alice(), And((alice("bob"), Not(alice("eve"))))))),
        ("to:alice", Text(("recipient", "cc"), "alice")),
        ("t:alice", Text(("recipient",), "alice")),
        ("tag:(work or home)", Or((HasKeyword(Keyword("work")), HasKeyword(Keyword("home"))))),
        ("from:(alice) a tag:work", And((alice(), a, HasKeyword(Keyword("work"))))),
        ("tag:Work", HasKeyword(Keyword("work"))),
        ("kw:$seen", Flag(SEEN)),
        ("tag:starred", Flag(FLAGGED)),
        ("is:unread", Not(Flag(SEEN))),
        ("tag:unread", Not(Flag(SEEN))),
        ("is:read", Flag(SEEN)),
        ("is:new", Flag(RECENT)),
        ("is:recent", Flag(RECENT)),
        ("tag:new", HasKeyword(Keyword("new"))),
        ("is:tagged", AnyKeyword()),
        ("is:untagged", Not(AnyKeyword())),
        ("is:attachment", HasAttachment()),
        ("has:attachment", HasAttachment()),
        ("id:<x@y>", MessageId("x@y")),
        ('mid:"x(1)@y"', MessageId("x(1)@y")),
        ("date:2015..2016", Date("date", "2015", "2016")),
        ("d:2015-06..", Date("date", "2015-06", "")),
        ("rt:..3d", Date("received", "", "3d")),
        ("date:yesterday", Date("date", "yesterday", "yesterday")),
        ("date:2.weeks.ago..1.week.ago", Date("date", "2.weeks.ago", "1.week.ago")),
        ('date:"2 weeks ago..today"', Date("date", "2 weeks ago", "today")),
        ("size:100", Size(100, 100)),
        ("z:1k..2Mb", Size(1024, 2 * 1024**2)),
        ("size:..1G", Size(None, 1024**3)),
        ("larger:1k", Size(1025, None)),
        ("smaller:1k", Size(None, 1023)),
        ("thread:17", Thread(ThreadId(17))),
        ("thread:{a b}", ThreadOf(And((a, b)))),
        ("-thread:{from:alice}", Not(ThreadOf(alice()))),
        ("a\u3000b\n\tc", And((a, b, c))),
    ],
)  # fmt: skip
def test_each_form_means_what_the_man_page_says(text: str, tree: Query) -> None:
    assert parse_query(text) == tree


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("", 0, "use * for everything"),
        ("   ", 0, "use * for everything"),
        ("a (b", 2, "never closed"),
        ("a b)", 3, "no ( for this to close"),
        ("a }", 2, "no { for this to close"),
        ("thread:{a)", 9, "no ( for this to close"),
        ("x thread:{a", 9, "never closed"),
        ("a {b}", 2, "only after thread:"),
        ("from:{b}", 0, "nothing follows from:"),
        ("a or", 4, "should stand here"),
        ("or a", 0, "should stand here"),
        ("a and and b", 6, "should stand here"),
        ("a not", 5, "should stand here"),
        ("a ()", 3, "should stand here"),
        ('a ""', 2, "empty phrase"),
        ('a "  "', 2, "empty phrase"),
        ('a "b c', 2, "never closed"),
        ("a ++ b", 2, "nothing to search for"),
        ("a - b", 2, "nothing to search for"),
        ("a fo*o", 2, "end of a word"),
        ("a from:*", 2, "nothing to search for"),
        ("a from: b", 2, "nothing follows from:"),
        ("a tag:", 2, "nothing follows tag:"),
        ('a tag:""', 2, "nothing follows tag:"),
        ('a tag:"b"*', 2, "means nothing"),
        ("a subjct:b", 2, "did you mean subject:?"),
        ("a http://x", 2, "quote it"),
        ("a from:(b tag:c)", 10, "cannot stand inside from:"),
        ("a date:2015-13", 2, "no such date"),
        ("a date:soon", 2, "not a date"),
        ("a date:..", 2, "at least one end"),
        ("a date:3parsecs", 2, "no unit of time"),
        ("a size:big", 2, "not a size"),
        ("a size:..", 2, "at least one end"),
        ("a size:99999999999999999G", 2, "too large"),
        ("a smaller:0", 2, "smaller than nothing"),
        ("a thread:x", 2, "takes a number"),
        ("a thread:0", 2, "takes a number"),
        ("a has:wings", 2, "only attachment"),
        ("a id:<>", 2, "empty"),
        ("a tag:b*", 2, "cannot contain"),
        ("a \udcff", 2, "not UTF-8"),
        ("thread:{" * (MAX_THREAD_NESTING + 1) + "a", 8 * MAX_THREAD_NESTING, "the limit"),
        ("(" * (MAX_NESTING + 1), MAX_NESTING, "too deeply"),
        ("-" * (MAX_NESTING + 1) + "a", MAX_NESTING, "too deeply"),
        ("a" * (MAX_QUERY_CHARS + 1), MAX_QUERY_CHARS, "at most 100,000"),
        ("a " * (MAX_TERMS + 1), 2 * MAX_TERMS, "at most 5,000 words"),
        ('b "' + "a " * MAX_TERMS + '"', 2, "at most 5,000 words"),
        ("b " + "a\0" * MAX_TERMS, 2, "at most 5,000 words"),
        ("tag:a " * (MAX_TERMS + 1), 6 * MAX_TERMS, "at most 5,000 words"),
        ("thread:{a} " * (MAX_THREADS + 1), 11 * MAX_THREADS, "200 thread:{...} are the limit"),
        ("a" * 200 + ":b", 0, "there is no prefix " + "a" * 40 + "...:"),
    ],
)  # fmt: skip
def test_an_error_says_what_and_where(text: str, position: int, reason: str) -> None:
    with pytest.raises(QuerySyntaxError) as caught:
        parse_query(text)
    assert reason in caught.value.reason
    assert caught.value.position == position


def test_every_prefix_of_words_looks_in_its_columns() -> None:
    for name, columns in TEXT_PREFIXES.items():
        assert parse_query(f"{name}:word") == Text(columns, "word")


def test_every_prefix_of_values_reads_them_with_and_without_quotes() -> None:
    values = {"thread": "1", "has": "attachment", "is": "seen", "flag": "seen"}
    values |= dict.fromkeys(("date", "d", "received", "rt"), "2015")
    values |= dict.fromkeys(("size", "z", "larger", "smaller"), "5")
    for name in VALUE_PREFIXES:
        value = values.get(name, "word")
        assert parse_query(f"{name}:{value}") == parse_query(f'{name}:"{value}"')
        assert not isinstance(parse_query(f"{name}:{value}"), Text)


@pytest.mark.parametrize("name", [*TEXT_PREFIXES, *VALUE_PREFIXES])
def test_no_prefix_stands_alone(name: str) -> None:
    with pytest.raises(QuerySyntaxError) as caught:
        parse_query(f"a {name}: b")
    assert caught.value.position == 2


# Characters that mean something to one of the grammars, and some that trouble everybody.
_SIGNS = st.sampled_from("ab1 \t()\"{}*:-!.,'@<>$&|+é😀\u0301\u3000\0")
_TEXTS = st.text(_SIGNS, max_size=40)


def _parsed_words(text: str) -> list[Text]:
    """Words as only the parser makes them, so that trees hold nothing a query cannot say."""
    try:
        return [leaf for leaf in leaves(parse_query(text)) if isinstance(leaf, Text)]
    except QuerySyntaxError:
        return []


def _is_own_keyword(word: str) -> bool:
    try:
        return parse_keyword(word) == word and word not in SYSTEM_KEYWORDS and word != "unread"
    except BadKeyword:
        return False


_COLUMNS = st.sampled_from((None, *NAME_OF_COLUMNS))
_SIMPLE_WORDS = st.sampled_from(("red", "green", "blue", "o'neil", "x@y.z", "gr", "c++", "12:30"))
WORDS: st.SearchStrategy[Query] = st.builds(
    Text, _COLUMNS, _SIMPLE_WORDS, st.just(False), st.booleans()
) | st.builds(
    Text,
    _COLUMNS,
    st.sampled_from(("red green", 'blue "sky"', "and", "-red", "from:red", "green blue")),
    st.just(True),
    st.booleans(),
)  # fmt: skip
DATES = st.sampled_from(
    [
        "2015",
        "2015-06",
        "2015/06/01",
        "2015-06-01T12:30",
        "@1433160000",
        "3d",
        "yesterday",
        "last_month",
        "monday",
        "2 weeks ago",
        "5h",
        "now",
    ]
)
_OPEN_DATES = st.one_of(st.just(""), DATES)
_SIZES = st.integers(0, 5000)
OTHER_LEAVES: st.SearchStrategy[Query] = st.one_of(
    st.just(All()),
    st.sampled_from([*SYSTEM_KEYWORDS.values(), RECENT]).map(Flag),
    st.just(HasAttachment()),
    st.sampled_from(("work", "home", "new", "a:b", "lists/x")).map(Keyword).map(HasKeyword),
    st.just(AnyKeyword()),
    st.builds(Date, st.sampled_from(("date", "received")), DATES, _OPEN_DATES),
    st.builds(Date, st.sampled_from(("date", "received")), st.just(""), DATES),
    st.builds(Size, _SIZES, st.none() | _SIZES),
    st.builds(Size, st.none(), _SIZES),
    st.sampled_from(("1@x", "2@x", 'odd "(id)@x', "3@x*")).map(MessageId),
    st.integers(1, 9).map(ThreadId).map(Thread),
)


def _nodes(children: st.SearchStrategy[Query]) -> st.SearchStrategy[Query]:
    several = st.lists(children, min_size=2, max_size=4).map(tuple)
    return st.one_of(
        several.map(And), several.map(Or), children.map(Not), children.map(ThreadOf)
    )  # fmt: skip


def _braces(query: Query) -> int:
    """How many ThreadOf stand inside each other."""
    match query:
        case And(children) | Or(children):
            return max(map(_braces, children))
        case Not(child):
            return _braces(child)
        case ThreadOf(child):
            return 1 + _braces(child)
        case _:
            return 0


QUERIES: st.SearchStrategy[Query] = st.recursive(WORDS | OTHER_LEAVES, _nodes, max_leaves=12).filter(
    lambda query: _braces(query) <= MAX_THREAD_NESTING
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(QUERIES)
def test_a_tree_comes_back_from_its_text(query: Query) -> None:
    assert parse_query(format_query(query)) == query


@pytest.mark.parametrize("text", ["-red", "!red", "AND", "from:red", "two words", "a*b", 'a"b'])
def test_a_word_that_would_be_read_as_something_else_is_quoted(text: str) -> None:
    leaf = Text(None, text)
    assert parse_query(format_query(leaf)) == Text(None, text, is_phrase=True)


@pytest.mark.parametrize(
    ("text", "formatted"),
    [
        ("a b or c", "a and b or c"),
        ("a (b or c) -(a b)", "a and (b or c) and not (a and b)"),
        ("(a b) c", "(a and b) and c"),
        ("TAG:Work -kw:spam", "tag:work and not tag:spam"),
        ("is:unread", "not is:seen"),
        ("f:(alice or bob)", "from:alice or from:bob"),
        ("d:2015..2015 z:1k", "date:2015 and size:1024"),
        ('mid:"a (b)"', 'id:"a (b)"'),
    ],
)
def test_a_tree_is_written_as_a_person_would(text: str, formatted: str) -> None:
    assert format_query(parse_query(text)) == formatted


@settings(max_examples=400, deadline=None)
@given(_TEXTS)
def test_any_text_is_a_tree_that_keeps_its_text_or_an_error_inside_it(text: str) -> None:
    error: QuerySyntaxError | None = None
    try:
        query = parse_query(text)
    except QuerySyntaxError as caught:
        error = caught
    else:
        assert parse_query(format_query(query)) == query
    assert error is None or 0 <= error.position <= len(text)


@settings(max_examples=200, deadline=None)
@given(_TEXTS)
def test_words_of_any_text_come_back_under_every_prefix(text: str) -> None:
    for leaf in _parsed_words(text):
        for columns in (None, ("sender",), ("recipient", "cc")):
            moved = Text(columns, leaf.text, is_phrase=True, is_prefix=leaf.is_prefix)
            assert parse_query(format_query(moved)) == moved


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=12))
def test_any_keyword_comes_back_from_its_text(word: str) -> None:
    if _is_own_keyword(word):
        keyword = HasKeyword(Keyword(word))
        assert parse_query(format_query(keyword)) == keyword


_PARENS = MAX_NESTING - MAX_THREAD_NESTING
_OPENING = "a or b (" * _PARENS + "a or b thread:{" * MAX_THREAD_NESTING
DEEPEST = _OPENING + "is:seen or a b" + "}" * MAX_THREAD_NESTING + ")" * _PARENS


def _height(query: Query) -> int:
    match query:
        case And(children) | Or(children):
            return 1 + max(map(_height, children))
        case Not(child) | ThreadOf(child):
            return 1 + _height(child)
        case _:
            return 1


def with_frames_left(frames: int, run: Callable[[], None]) -> None:
    """Run with no more than so many Python frames to go, as deep inside a server."""
    depth = 0
    frame = sys._getframe()
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + frames)
    try:
        run()
    finally:
        sys.setrecursionlimit(before)


def test_the_deepest_query_needs_no_deep_stack() -> None:
    def everything() -> None:
        query = parse_query(DEEPEST)
        assert MAX_HEIGHT - 2 <= _height(query) <= MAX_HEIGHT
        assert parse_query(format_query(query)) == query

    with_frames_left(600, everything)


@pytest.mark.parametrize("piece", ["a ", "-a ", "(a or b) ", '"a" ', "f:a or ", "d:1d ", '"', " "])
def test_time_grows_no_faster_than_the_text(piece: str) -> None:
    def seconds(chars: int) -> float:
        text = (piece * (chars // len(piece))) + "a"
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            with contextlib.suppress(QuerySyntaxError):
                parse_query(text)
            best = min(best, time.perf_counter() - start)
        return best

    # Eight times the text: a quadratic parser would take 64 times as long.
    assert seconds(40_000) < 30 * seconds(5_000) + 0.01
