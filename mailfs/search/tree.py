"""The tree a query becomes, and what can be said of it without an index.

Grammar (query.py), plan (plan.py) and match (match.py) meet here and nowhere else. Invariant: a tree that
came from `parse_query` is at most MAX_HEIGHT nodes high, so walking it by recursion is safe.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from mailfs.ids import Keyword, ThreadId
from mailfs.message.keywords import LETTER_BITS, SYSTEM_KEYWORDS
from mailfs.search.dates import is_relative

# Parentheses, braces and negations inside each other. Machines write deep queries, people do not; the limit
# keeps parser and walkers (six Python frames a level at most) far from the interpreter's own.
MAX_NESTING = 50
# Each is a query of its own to SQLite, which counts it dearly against the height it allows.
MAX_THREAD_NESTING = 5
# A level is an Or of Ands, one of braces a ThreadOf as well; what is innermost is a leaf.
MAX_HEIGHT = 2 * (MAX_NESTING + 1) + MAX_THREAD_NESTING + 1

# The columns of `message_text` a word is looked for in; None for all of them.
Columns: TypeAlias = tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class And:
    """All of these; two children or more."""

    children: "tuple[Query, ...]"


@dataclass(frozen=True, slots=True)
class Or:
    """Any of these; two children or more."""

    children: "tuple[Query, ...]"


@dataclass(frozen=True, slots=True)
class Not:
    """Every message but these."""

    child: "Query"


@dataclass(frozen=True, slots=True)
class All:
    """Every message."""


@dataclass(frozen=True, slots=True)
class Text:
    """A word or phrase. `is_phrase`: it was written in quotes; `is_prefix`: the last word may go on."""

    columns: Columns
    text: str
    is_phrase: bool = False
    is_prefix: bool = False


@dataclass(frozen=True, slots=True)
class Flag:
    """A bit of message/keywords.py that is a system keyword or RECENT."""

    bit: int


@dataclass(frozen=True, slots=True)
class HasAttachment:
    """The message has an attachment; a fact of its text, so it never changes."""


@dataclass(frozen=True, slots=True)
class HasKeyword:
    """A keyword of the user's own."""

    keyword: Keyword


@dataclass(frozen=True, slots=True)
class AnyKeyword:
    """At least one keyword of the user's own."""


@dataclass(frozen=True, slots=True)
class Date:
    """From the start of `low` to the end of `high`, as typed (dates.py); '' where that side is open."""

    field: Literal["date", "received"]
    low: str
    high: str


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes, both bounds included; None where that side is open."""

    low: int | None
    high: int | None


@dataclass(frozen=True, slots=True)
class MessageId:
    """The Message-ID field, without angle brackets, compared exactly."""

    message_id: str


@dataclass(frozen=True, slots=True)
class Thread:
    """The messages of one conversation."""

    thread: ThreadId


@dataclass(frozen=True, slots=True)
class ThreadOf:
    """The messages of every conversation in which a live message matches."""

    child: "Query"


# What the `message` row alone answers, what the words answer, what other tables answer.
FactLeaf: TypeAlias = All | Flag | HasAttachment | Date | Size | Thread
RowLeaf: TypeAlias = HasKeyword | AnyKeyword | MessageId | ThreadOf
Leaf: TypeAlias = FactLeaf | Text | RowLeaf
Query: TypeAlias = And | Or | Not | Leaf


def leaves(query: Query) -> Iterator[Leaf]:
    """Every leaf, also those inside `thread:{...}`; a ThreadOf comes before what is in it."""
    waiting: list[Query] = [query]
    while waiting:
        node = waiting.pop()
        if isinstance(node, And | Or):
            waiting.extend(reversed(node.children))
        elif isinstance(node, Not):
            waiting.append(node.child)
        else:
            yield node
            if isinstance(node, ThreadOf):
                waiting.append(node.child)


def depends_on_threads(query: Query) -> bool:
    """Whether a message can begin or cease to match by what happens to another of its conversation."""
    return any(isinstance(leaf, Thread | ThreadOf) for leaf in leaves(query))


def moving_dates(query: Query) -> tuple[Date, ...]:
    """The dates of a query that mean something else as time goes by, in the order of `leaves`."""
    return tuple(
        leaf
        for leaf in leaves(query)
        if isinstance(leaf, Date) and (is_relative(leaf.low) or is_relative(leaf.high))
    )


def depends_on_now(query: Query) -> bool:
    """Whether messages begin or cease to match as time goes by."""
    return bool(moving_dates(query))


def matches_everything(query: Query) -> bool:
    """Whether the query is `*`, in any dress that can be seen through without thinking about leaves."""
    match query:
        case All():
            return True
        case And(children):
            return all(map(matches_everything, children))
        case Or(children):
            return any(map(matches_everything, children))
        case _:
            return False


def rename_keyword(query: Query, old: Keyword, new: Keyword) -> Query:
    """The query with one of the user's own keywords called differently."""
    match query:
        case And(children):
            return And(tuple(rename_keyword(child, old, new) for child in children))
        case Or(children):
            return Or(tuple(rename_keyword(child, old, new) for child in children))
        case Not(child):
            return Not(rename_keyword(child, old, new))
        case ThreadOf(child):
            return ThreadOf(rename_keyword(child, old, new))
        case HasKeyword(keyword) if keyword == old:
            return HasKeyword(new)
        case _:
            return query


class LabelRule(NamedTuple):
    """What entering a label view puts on a message and takes off; leaving takes `adds` off."""

    adds: frozenset[Keyword]
    removes: frozenset[Keyword]


def label_rule(query: Query) -> LabelRule | None:
    """The rule of a label view; None for a query view.

    A label view is a conjunction that names a keyword of the user's own: user keywords are links. One that
    both names and negates the same keyword has no members, so nothing can be put in: None.
    """
    adds: set[Keyword] = set()
    removes: set[Keyword] = set()
    for term in _conjuncts(query):
        if isinstance(term, HasKeyword) and term.keyword not in SYSTEM_KEYWORDS:
            adds.add(term.keyword)
        elif isinstance(term, Not) and isinstance(term.child, HasKeyword):
            removes.add(term.child.keyword)
    if not adds or adds & removes:
        return None
    return LabelRule(frozenset(adds), frozenset(removes))


class FlagRule(NamedTuple):
    """The bits a message must have, and must not have, to match: what entering a view sets and clears."""

    sets: int
    clears: int


def flag_rule(query: Query) -> FlagRule:
    """The flags a query's conjunction names. `is:recent` is left out: it says which folder, not which mark."""
    sets = clears = 0
    for term in _conjuncts(query):
        if isinstance(term, Flag):
            sets |= term.bit
        elif isinstance(term, Not) and isinstance(term.child, Flag):
            clears |= term.child.bit
    return FlagRule(sets & LETTER_BITS & ~clears, clears & LETTER_BITS & ~sets)


def _conjuncts(query: Query) -> Iterator[Query]:
    waiting = [query]
    while waiting:
        node = waiting.pop()
        if isinstance(node, And):
            waiting.extend(node.children)
        else:
            yield node
