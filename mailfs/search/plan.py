"""Tree -> SQL and FTS5.

Whatever of a tree is only words becomes one FTS5 expression, however it is nested; the rest is SQL about the
alias `message`. Invariant: values a user typed are bound or stand inside a doubly quoted FTS5 string, and the
SQL is no deeper than SQLite allows for any tree `parse_query` returns. Numbers are written out: they are
ours, and so only words count against SQLite's 32,766 parameters.
"""

import heapq
from collections.abc import Callable, Sequence
from datetime import tzinfo
from typing import NamedTuple, TypeAlias

from mailfs.message.keywords import ATTACHMENT
from mailfs.search.dates import Span, range_span, span_ns
from mailfs.search.tree import (
    All,
    And,
    AnyKeyword,
    Date,
    FactLeaf,
    Flag,
    HasAttachment,
    HasKeyword,
    MessageId,
    Not,
    Or,
    Query,
    RowLeaf,
    Size,
    Text,
    Thread,
    ThreadOf,
)

Parameters: TypeAlias = tuple[int | str, ...]


class Plan(NamedTuple):
    """A boolean SQL expression over `message`, and what to bind. It does not look at `message.expunged`."""

    where: str
    parameters: Parameters


def plan(query: Query, now_s: float, tz: tzinfo | None = None) -> Plan:
    """The plan of a query at `now_s` (seconds since 1970 UTC); dates are local time where `tz` is None.

    A plan with relative dates is good for the moment only. Linear in the tree but for sorting by height.
    """
    where, parameters, _ = _as_sql(_Planner(now_s, tz).fragment(query))
    return Plan(where, parameters)


def text_expression(leaf: Text) -> str:
    """The FTS5 expression of one word or phrase. unicode61 cuts it into words as it cut the mail."""
    # A NUL would end the expression; to unicode61 it is a blank like any other sign.
    quoted = '"' + leaf.text.replace("\0", " ").replace('"', '""') + '"'
    if leaf.is_prefix:
        quoted += " *"
    return quoted if leaf.columns is None else f"{{{' '.join(leaf.columns)}}} : {quoted}"


def any_of_text(expressions: Sequence[str]) -> str:
    """FTS5's OR of expressions."""
    return _joined(" OR ", expressions)


def all_of_text(expressions: Sequence[str]) -> str:
    """FTS5's AND of expressions."""
    return _joined(" AND ", expressions)


def words_or_none(query: Query) -> tuple[str, bool] | None:
    """What is only words, however nested, as an operand for the two above, and whether what is meant is all else.

    None where there is more than words in it, or deeper than FTS5 can take.
    """
    fragment = _only_words_or_none(query)
    return None if fragment is None else (fragment.operand(), fragment.negated)


def _only_words_or_none(query: Query) -> "_Fts | None":
    match query:
        case Text():
            return _Fts(text_expression(query), False, 0, True)
        case Not(child):
            inner = _only_words_or_none(child)
            return None if inner is None else inner.inverted()
        case And(children) | Or(children):
            parts: list[_Fts] = []
            for child in children:
                part = _only_words_or_none(child)
                if part is None:
                    return None
                parts.append(part)
            whole = _all_of_fts(parts) if isinstance(query, And) else _any_of_fts(parts)
            return whole if whole.depth < _MAX_FTS_DEPTH else None
        case _:
            return None


# FTS5 copies the list of operands for every one it adds, which makes 50,000 of them take seconds; in
# groups, which it flattens again, they take milliseconds.
_GROUP = 256
# FTS5's parser has a stack of a hundred symbols and spends three on a parenthesis.
_MAX_FTS_DEPTH = 20


def _joined(operator: str, expressions: Sequence[str]) -> str:
    while len(expressions) > _GROUP:
        expressions = [
            f"({operator.join(expressions[i : i + _GROUP])})"
            for i in range(0, len(expressions), _GROUP)
        ]
    return operator.join(expressions)


class _Sql(NamedTuple):
    """`height` is that of SQLite's expression tree, of which it allows 1000."""

    where: str
    parameters: Parameters
    height: int


class _Fts(NamedTuple):
    """What matches `expression`, or if `negated` all else. `is_bare`: stands beside any operator as it is."""

    expression: str
    negated: bool
    depth: int
    is_bare: bool

    def inverted(self) -> "_Fts":
        return self._replace(negated=not self.negated)

    def operand(self) -> str:
        return self.expression if self.is_bare else f"({self.expression})"


_Fragment: TypeAlias = _Sql | _Fts


def _all_of_fts(parts: Sequence[_Fts]) -> _Fts:
    """The conjunction. FTS5's NOT is binary, so `not a and not b` is the negation of `a or b`."""
    if len(parts) == 1:
        return parts[0]
    # Deep operands first: FTS5's parser stacks what stands before a parenthesis it is in.
    ordered = sorted(parts, key=lambda part: -part.depth)
    wanted = [part.operand() for part in ordered if not part.negated]
    unwanted = [part.operand() for part in ordered if part.negated]
    depth = ordered[0].depth + 1 + (len(parts) > _GROUP)
    if not wanted:
        return _Fts(any_of_text(unwanted), True, depth, False)
    expression = all_of_text(wanted)
    if unwanted:
        expression = f"({expression}) NOT ({any_of_text(unwanted)})"
        depth += 1
    return _Fts(expression, False, depth, False)


def _any_of_fts(parts: Sequence[_Fts]) -> _Fts:
    return _all_of_fts([part.inverted() for part in parts]).inverted()


def _as_sql(fragment: _Fragment) -> _Sql:
    if isinstance(fragment, _Sql):
        return fragment
    isin = "NOT IN" if fragment.negated else "IN"
    where = f"message.docid {isin} (SELECT rowid FROM message_text WHERE message_text MATCH ?)"
    return _Sql(where, (fragment.expression,), 4)


def _balanced(operator: str, parts: Sequence[_Sql]) -> _Sql:
    """The parts under a tree of binary operators that is as low as can be: lowest two first, like Huffman's."""
    heap = [(part.height, serial, part) for serial, part in enumerate(parts)]
    heapq.heapify(heap)
    serial = len(heap)
    while len(heap) > 1:
        _, _, left = heapq.heappop(heap)
        _, _, right = heapq.heappop(heap)
        both = _Sql(
            f"({left.where} {operator} {right.where})",
            left.parameters + right.parameters,
            max(left.height, right.height) + 1,
        )
        heapq.heappush(heap, (both.height, serial, both))
        serial += 1
    return heap[0][2]


class _Planner:
    """The moment and the zone a plan is made for."""

    __slots__ = ("_now_s", "_tz")

    def __init__(self, now_s: float, tz: tzinfo | None) -> None:
        self._now_s = now_s
        self._tz = tz

    def fragment(self, query: Query) -> _Fragment:
        match query:
            case Text():
                return _Fts(text_expression(query), False, 0, True)
            case And(children):
                return self._combined("AND", children, _all_of_fts)
            case Or(children):
                return self._combined("OR", children, _any_of_fts, _alternatives(children))
            case Not(child):
                return _negated(self.fragment(child))
            case HasKeyword() | AnyKeyword() | MessageId() | ThreadOf():
                return self._row_leaf(query)
            case _:
                return _Sql(self._fact_leaf(query), (), 4)

    def _combined(
        self,
        operator: str,
        children: Sequence[Query],
        fold: Callable[[Sequence[_Fts]], _Fts],
        alternatives: Sequence[_Sql] = (),
    ) -> _Fragment:
        """`alternatives` already stand for the children that are a MessageId or a HasKeyword."""
        texts: list[_Fts] = []
        rest: list[_Sql] = list(alternatives)
        for child in children:
            if alternatives and isinstance(child, MessageId | HasKeyword):
                continue
            fragment = self.fragment(child)
            if isinstance(fragment, _Fts) and fragment.depth < _MAX_FTS_DEPTH:
                texts.append(fragment)
            else:
                rest.append(_as_sql(fragment))
        if not rest:
            return fold(texts)
        if texts:
            rest.append(_as_sql(fold(texts)))
        return _balanced(operator, rest)

    def _fact_leaf(self, leaf: FactLeaf) -> str:
        match leaf:
            case All():
                return "1"
            case Flag(bit):
                return f"message.flags & {bit:d} <> 0"
            case HasAttachment():
                return f"message.flags & {ATTACHMENT:d} <> 0"
            case Thread(thread):
                return f"message.thread = {thread:d}"
            case Size(low, high):
                return _between("message.size", low, None if high is None else high + 1)
            case Date("received", low_text, high_text):
                span = span_ns(range_span(low_text, high_text, self._now_s, self._tz))
                return _in_span("message.received_ns", span)
            case Date(_, low_text, high_text):
                span = range_span(low_text, high_text, self._now_s, self._tz)
                return _in_span("message.date", span)

    def _row_leaf(self, leaf: RowLeaf) -> _Sql:
        match leaf:
            case HasKeyword(keyword):
                return _with_keyword([keyword])
            case AnyKeyword():
                return _Sql("message.docid IN (SELECT docid FROM message_keyword)", (), 4)
            case MessageId(message_id):
                return _with_message_id([message_id])
            case ThreadOf(child):
                inner = _as_sql(self.fragment(child))
                return _Sql(
                    "message.thread IN (SELECT message.thread FROM message"
                    f" WHERE message.expunged = 0 AND ({inner.where}))",
                    inner.parameters,
                    inner.height + 4,
                )


def _alternatives(children: Sequence[Query]) -> list[_Sql]:
    """One question for all Message-IDs of an Or and one for all its keywords: thousands are asked for."""
    ids = [child.message_id for child in children if isinstance(child, MessageId)]
    keywords = [child.keyword for child in children if isinstance(child, HasKeyword)]
    found = []
    if ids:
        found.append(_with_message_id(ids))
    if keywords:
        found.append(_with_keyword(keywords))
    return found


def _with_message_id(ids: Sequence[str]) -> _Sql:
    # The second condition is for the index, which leaves empty ones out.
    where = (
        "message.docid IN (SELECT docid FROM envelope"
        f" WHERE message_id IN ({_marks(ids)}) AND message_id <> '')"
    )
    return _Sql(where, tuple(ids), 6)


def _with_keyword(keywords: Sequence[str]) -> _Sql:
    where = (
        "message.docid IN (SELECT docid FROM message_keyword WHERE keyword_id IN"
        f" (SELECT keyword_id FROM keyword WHERE name IN ({_marks(keywords)})))"
    )
    return _Sql(where, tuple(keywords), 8)


def _marks(values: Sequence[str]) -> str:
    return ", ".join("?" * len(values))


def _negated(fragment: _Fragment) -> _Fragment:
    if isinstance(fragment, _Fts):
        return fragment.inverted()
    return _Sql(f"NOT ({fragment.where})", fragment.parameters, fragment.height + 1)


def _in_span(column: str, span: Span) -> str:
    return _between(column, span.start_s, span.end_s)


def _between(column: str, low: int | None, end: int | None) -> str:
    """`low` is inside, `end` is not."""
    if end is None:
        return f"{column} >= {low or 0:d}"
    if low is None:
        return f"{column} < {end:d}"
    return f"({column} >= {low:d} AND {column} < {end:d})"
