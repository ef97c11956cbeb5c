"""What can be said of a query without an index."""

from collections.abc import Callable

import pytest

from mailfs.ids import Keyword
from mailfs.search.query import parse_query
from mailfs.search.tree import (
    And,
    Flag,
    HasKeyword,
    LabelRule,
    Query,
    depends_on_now,
    depends_on_threads,
    label_rule,
    leaves,
    matches_everything,
)

_NOW, _THREADS = depends_on_now, depends_on_threads


@pytest.mark.parametrize(
    ("text", "on"),
    [
        ("*", set()),
        ("from:alice date:2015 size:5 id:x has:attachment", set()),
        ("is:unread tag:work", set()),
        ("date:3d..", {_NOW}),
        ("date:..yesterday", {_NOW}),
        ("date:2015..now", {_NOW}),
        ("received:@5..2016", set()),
        ("thread:5", {_THREADS}),
        ("thread:{a}", {_THREADS}),
        ("thread:{thread:{is:unread tag:work} date:3d..}", {_NOW, _THREADS}),
    ],
)
def test_what_a_query_depends_on(text: str, on: set[Callable[[Query], bool]]) -> None:
    query = parse_query(text)
    assert {depends for depends in (_NOW, _THREADS) if depends(query)} == on


@pytest.mark.parametrize(
    ("text", "everything"),
    [
        ("*", True),
        ("* *", True),
        ("a or *", True),
        ("a or (* and *)", True),
        ("a *", False),
        ("not *", False),
        ("thread:{*}", False),
        ("a", False),
    ],
)
def test_only_what_plainly_matches_everything_is_said_to(text: str, everything: bool) -> None:
    assert matches_everything(parse_query(text)) is everything


def _rule(adds: str, removes: str = "") -> LabelRule:
    return LabelRule(
        frozenset(map(Keyword, adds.split())), frozenset(map(Keyword, removes.split()))
    )


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("tag:work", _rule("work")),
        ("tag:work not tag:spam", _rule("work", "spam")),
        ("tag:a (tag:b (tag:c -tag:d))", _rule("a b c", "d")),
        ("tag:work is:unread from:alice", _rule("work")),
        ("tag:work (tag:a or tag:b)", _rule("work")),
        ("tag:new", _rule("new")),
        ("not tag:spam", None),
        ("tag:a or tag:b", None),
        ("not (tag:a tag:b)", None),
        ("thread:{tag:work}", None),
        ("tag:seen", None),
        ("is:tagged", None),
        ("from:alice", None),
        ("*", None),
        ("tag:a -tag:a", None),
    ],
)
def test_user_keywords_of_a_conjunction_are_links(text: str, rule: LabelRule | None) -> None:
    assert label_rule(parse_query(text)) == rule


def test_a_system_keyword_is_no_link_even_in_a_tree_made_by_hand() -> None:
    assert label_rule(And((HasKeyword(Keyword("$seen")), Flag(1)))) is None


def test_leaves_come_in_the_order_they_are_written() -> None:
    written = [parse_query(word) for word in ("a", "is:seen", "tag:b", "c")]
    assert list(leaves(parse_query("a (is:seen or -(tag:b c))"))) == written
