"""Hostile queries: what a person, or a program for a person, may type or write into a file (Cyrus CVE-2024-34055)."""

from collections.abc import Callable
from typing import NamedTuple


class QueryShape(NamedTuple):
    """One idea, built to about so many characters."""

    name: str
    build: Callable[[int], str]


def _repeat(unit: str, before: str = "", after: str = "") -> Callable[[int], str]:
    return lambda size: before + unit * max(1, size // len(unit)) + after


def _joined(unit: str, between: str) -> Callable[[int], str]:
    """`%d` in the unit counts."""
    return lambda size: between.join(
        unit % number if "%d" in unit else unit
        for number in range(max(1, size // (len(unit) + len(between) + 3)))
    )


def _nested(opening: str, inner: str, closing: str, levels: int) -> Callable[[int], str]:
    """As deep as is allowed, and in the middle as much as there is room for."""
    return lambda size: opening * levels + _joined(inner, " or ")(size // 2) + closing * levels


QUERIES: tuple[QueryShape, ...] = (
    QueryShape("terms", _joined("w%d", " ")),
    QueryShape("alternatives", _joined("w%d", " or ")),
    QueryShape("negations of terms", _joined("-w%d", " ")),
    QueryShape("one letter and a star", _joined("a*", " or ")),
    QueryShape("letters and stars", _joined("%d*", " or ")),
    QueryShape("phrases", _joined('"a b %d"', " or ")),
    QueryShape("keywords", _joined("tag:k%d", " or ")),
    QueryShape("keywords that must all be there", _joined("tag:k%d", " ")),
    QueryShape("message ids", _joined("id:%d@example.org", " or ")),
    QueryShape("threads", _joined("thread:%d", " or ")),
    QueryShape("threads of queries", _joined("thread:{a%d}", " or ")),
    QueryShape("threads of everything", _joined("thread:{*}", " ")),
    QueryShape("dates", _joined("date:20%d..", " or ")),
    QueryShape("relative dates", _joined("date:%dd..now", " or ")),
    QueryShape("sizes", _joined("size:%d..", " ")),
    QueryShape("prefixes in turn", _joined("from:a%d (subject:b or not body:c)", " or ")),
    QueryShape("groups of a prefix", _joined("from:(a or b%d)", " ")),
    QueryShape("flags", _joined("is:unread", " or ")),
    QueryShape("everything", _joined("*", " ")),
    QueryShape("everything or everything", _joined("*", " or ")),
    QueryShape("words and facts in turn", _joined("w%d or is:unread", " and ")),
    QueryShape("brackets", _nested("(", "a%d", ")", 49)),
    QueryShape("brackets of negations", _nested("not (", "a%d b", ")", 24)),
    QueryShape("braces", _nested("thread:{", "a%d is:unread", "}", 5)),
    QueryShape("too many brackets", _repeat("(")),
    QueryShape("closing brackets", _repeat(")")),
    QueryShape("brackets side by side", _repeat("(a)")),
    QueryShape("empty brackets", _repeat("()")),
    QueryShape("nots", _repeat("not ")),
    QueryShape("minus signs", _repeat("-")),
    QueryShape("minus signs and blanks", _repeat("- ")),
    QueryShape("open quote", _repeat("a ", '"')),
    QueryShape("quotes", _repeat('"')),
    QueryShape("doubled quotes", _repeat('""', '"', '"')),
    QueryShape("one word", _repeat("x")),
    QueryShape("one literal", _repeat("x ", '"', '"')),
    QueryShape("a word that ends in stars", _repeat("*", "a")),
    QueryShape("an unknown prefix", _repeat("x", "", ":y")),
    QueryShape("colons", _repeat(":")),
    QueryShape("a keyword of marks", _repeat("\u0301\u0316", "tag:a")),
    QueryShape("a word of marks", _repeat("\u0301\u0316", "a")),
    QueryShape("a date without an end", _repeat("1d", "date:")),
    QueryShape("a size without an end", _repeat("9", "size:")),
    QueryShape("blanks", _repeat(" ")),
    QueryShape("blanks of other alphabets", _repeat("\u3000\u2003a")),
    QueryShape("nul", _repeat("a\0")),
    QueryShape("line ends", _repeat("\n")),
    QueryShape("words of FTS5", _joined("NEAR(a b, 5) AND {sender} ^a + b", " ")),
    QueryShape("statements of SQL", _joined("'; DROP TABLE message; -- %d", " ")),
    QueryShape("lone surrogates", _repeat("\ud800")),
    QueryShape("wide signs", _repeat("😀")),
    QueryShape("operators", _repeat("and or not ")),
)
