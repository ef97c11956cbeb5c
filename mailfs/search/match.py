"""Tree on a handful of known messages: which of these match, by set algebra.

A view that hears of a change asks this for the changed messages only. It is a second implementation of what
plan.py says in SQL, on purpose: tests hold the two equal. Invariant: what is returned is a subset of what
was asked about, and a leaf is asked about no message whose answer cannot matter any more.
"""

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import tzinfo
from typing import NamedTuple, Protocol

from mailfs.ids import Docid, Keyword, ThreadId
from mailfs.message.keywords import ATTACHMENT
from mailfs.search.dates import range_span, span_ns
from mailfs.search.plan import (
    Plan,
    all_of_text,
    any_of_text,
    plan,
    text_expression,
    words_or_none,
)
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


class MessageFacts(NamedTuple):
    """What the `message` row says; units as in store/schema.py."""

    flags: int
    size: int
    received_ns: int
    date: int
    thread: ThreadId


class MatchSource(Protocol):
    """What leaves ask. Every `_hits` returns those of `docids` for which it is so; none is called with none."""

    def facts(self, docids: AbstractSet[Docid]) -> Mapping[Docid, MessageFacts]:
        """The rows of these messages; one that is not there has none and matches nothing."""
        ...

    def text_hits(self, expression: str, docids: AbstractSet[Docid]) -> set[Docid]:
        """The FTS5 expression matches."""
        ...

    def keyword_hits(self, keyword: Keyword, docids: AbstractSet[Docid]) -> set[Docid]:
        """The message has this keyword of the user's own."""
        ...

    def any_keyword_hits(self, docids: AbstractSet[Docid]) -> set[Docid]:
        """The message has any keyword of the user's own."""
        ...

    def message_id_hits(self, message_id: str, docids: AbstractSet[Docid]) -> set[Docid]:
        """The message has this Message-ID."""
        ...

    def thread_hits(self, plan: Plan, docids: AbstractSet[Docid]) -> set[Docid]:
        """A live message of the same thread matches the plan."""
        ...


def matching(
    query: Query,
    docids: Collection[Docid],
    source: MatchSource,
    now_s: float,
    tz: tzinfo | None = None,
) -> set[Docid]:
    """Those of `docids` that match at `now_s` (seconds since 1970 UTC), live or expunged alike.

    One call of `facts`, then one call of the source for each leaf that it must answer, fewer where
    nothing is left to ask about.
    """
    if not docids:
        return set()
    facts = source.facts(frozenset(docids))
    return set(_Matcher(facts, source, now_s, tz).hits(query, facts.keys()))


class _Matcher:
    __slots__ = ("_facts", "_now_s", "_source", "_tz")

    def __init__(
        self,
        facts: Mapping[Docid, MessageFacts],
        source: MatchSource,
        now_s: float,
        tz: tzinfo | None,
    ) -> None:
        self._facts = facts
        self._source = source
        self._now_s = now_s
        self._tz = tz

    def hits(self, query: Query, docids: AbstractSet[Docid]) -> AbstractSet[Docid]:
        if not docids:
            return docids
        match query:
            case And(children):
                return self._all_of(children, docids)
            case Or(children):
                return self._any_of(children, docids)
            case Not(child):
                return docids - self.hits(child, docids)
            case Text():
                return self._source.text_hits(text_expression(query), docids)
            case HasKeyword() | AnyKeyword() | MessageId() | ThreadOf():
                return self._row_hits(query, docids)
            case _:
                return self._fact_hits(query, docids)

    def _all_of(self, children: Sequence[Query], docids: AbstractSet[Docid]) -> AbstractSet[Docid]:
        texts, unwanted, others = _words_apart(children)
        left = docids
        for child in others:
            left = self.hits(child, left)
        if texts and left:
            left = self._source.text_hits(all_of_text(texts), left)
        if unwanted and left:
            left = left - self._source.text_hits(any_of_text(unwanted), left)
        return left

    def _any_of(self, children: Sequence[Query], docids: AbstractSet[Docid]) -> AbstractSet[Docid]:
        texts, unwanted, others = _words_apart(children)
        found: set[Docid] = set()
        for child in others:
            found |= self.hits(child, docids - found)
        left = docids - found
        if texts and left:
            found |= self._source.text_hits(any_of_text(texts), left)
            left = docids - found
        if unwanted and left:
            found |= left - self._source.text_hits(all_of_text(unwanted), left)
        return found

    def _row_hits(self, leaf: RowLeaf, docids: AbstractSet[Docid]) -> set[Docid]:
        match leaf:
            case HasKeyword(keyword):
                return self._source.keyword_hits(keyword, docids)
            case AnyKeyword():
                return self._source.any_keyword_hits(docids)
            case MessageId(message_id):
                return self._source.message_id_hits(message_id, docids)
            case ThreadOf(child):
                return self._source.thread_hits(plan(child, self._now_s, self._tz), docids)

    def _fact_hits(self, leaf: FactLeaf, docids: AbstractSet[Docid]) -> AbstractSet[Docid]:
        facts = self._facts
        match leaf:
            case All():
                return docids
            case Flag(bit):
                return {docid for docid in docids if facts[docid].flags & bit}
            case HasAttachment():
                return {docid for docid in docids if facts[docid].flags & ATTACHMENT}
            case Thread(thread):
                return {docid for docid in docids if facts[docid].thread == thread}
            case Size(low, high):
                return {docid for docid in docids if _fits(facts[docid].size, low, high)}
            case Date():
                return self._date_hits(leaf, docids)

    def _date_hits(self, leaf: Date, docids: AbstractSet[Docid]) -> set[Docid]:
        span = range_span(leaf.low, leaf.high, self._now_s, self._tz)
        facts = self._facts
        if leaf.field == "date":
            return {docid for docid in docids if span.start_s <= facts[docid].date < span.end_s}
        start_ns, end_ns = span_ns(span)
        return {docid for docid in docids if start_ns <= facts[docid].received_ns < end_ns}


def _words_apart(children: Sequence[Query]) -> tuple[list[str], list[str], list[Query]]:
    """The words among the children and the negated ones, for one question together each; then the others.

    Of these come first what costs nothing. Words are asked about last, when fewest messages are left: they are the dearest.
    """
    texts: list[str] = []
    unwanted: list[str] = []
    others: list[Query] = []
    for child in children:
        words = words_or_none(child)
        if words is None:
            others.append(child)
        elif words[1]:
            unwanted.append(words[0])
        else:
            texts.append(words[0])
    others.sort(key=lambda child: not isinstance(child, FactLeaf))
    return texts, unwanted, others


def _fits(size: int, low: int | None, high: int | None) -> bool:
    return (low is None or size >= low) and (high is None or size <= high)
