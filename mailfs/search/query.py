"""The grammar: text -> tree, and tree -> text.

    any     = all { "or" all }
    all     = operand { [ "and" ] operand }
    operand = { "not" | "-" | "!" } ( "(" any ")" | "*" | word | phrase | prefix ":" value )
    value   = word | phrase | "(" any-of-bare-values ")" | "{" any "}"      braces after thread: only

Invariant: `parse_query(format_query(tree)) == tree`, and a text either becomes a tree or a QuerySyntaxError
that says where; in time linear in its length. man/mailfs-search.7 is the description for people.
"""

import re
from typing import NamedTuple, NoReturn

from mailfs.errors import BadKeyword, QuerySyntaxError
from mailfs.message.keywords import RECENT, SYSTEM_KEYWORDS
from mailfs.search.prefixes import NAME_OF_COLUMNS, TEXT_PREFIXES, VALUE_PREFIXES, text_leaf
from mailfs.search.tree import (
    MAX_NESTING,
    MAX_THREAD_NESTING,
    All,
    And,
    AnyKeyword,
    Columns,
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

MAX_QUERY_CHARS = 100_000
# Words, of phrases too, and prefixes with their values: each costs SQLite some 0.1 ms at most, whatever it finds.
MAX_TERMS = 5_000
# Each is a query of its own to SQLite, which takes it longer to understand than to answer.
MAX_THREADS = 200
# So much of a prefix that is none is repeated in an error.
_MAX_PREFIX_CHARS = 40


class _Token(NamedTuple):
    """`kind` is a sign, an operator in small letters, `word`, `phrase` or `end`. `starred`: a phrase before `*`."""

    kind: str
    text: str
    start: int
    end: int
    starred: bool = False


# A phrase ends at a quote that is not doubled; the possessive `*+` keeps an unclosed one linear.
_TOKEN = re.compile(r'\s*(?:([(){}])|"((?:[^"]|"")*+)"(\*?)|([^\s(){}"]+))')
_WORD = re.compile(r'[^\s(){}"]+')
# About what the index takes for a word.
_INDEX_WORD = re.compile(r"[^\W_]+")
_PREFIXED = re.compile(r"([A-Za-z][A-Za-z0-9_-]*):")
_OPENS = {")": "(", "}": "{"}
_BRACES = "braces stand only after thread:"
_OPERATORS = frozenset(("and", "or", "not"))
_BEGINS_OPERAND = frozenset(("word", "phrase", "(", "not"))


_NAME_OF_BIT = {RECENT: "recent"} | {
    bit: keyword.removeprefix("$") for keyword, bit in SYSTEM_KEYWORDS.items()
}


def parse_query(text: str) -> Query:
    """The tree of a query. Raises QuerySyntaxError; its position is the index of the offending token."""
    return _Parser(text).whole()


class _Parser:
    """Recursive descent with one token of look-ahead. `_group` is the prefix whose parentheses we are in."""

    __slots__ = ("_braces", "_depth", "_group", "_terms", "_text", "_threads", "_token")

    def __init__(self, text: str) -> None:
        self._text = text
        self._depth = 0
        self._braces = 0
        self._group = ""
        self._terms = 0
        self._threads = 0
        if len(text) > MAX_QUERY_CHARS:
            self._fail(f"a query has at most {MAX_QUERY_CHARS:,} characters", MAX_QUERY_CHARS)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            self._fail("this is not UTF-8 text", error.start)
        self._token = self._scan(0)

    def whole(self) -> Query:
        if self._token.kind == "end":
            self._fail("an empty query: use * for everything", 0)
        query = self._any()
        if self._token.kind != "end":
            self._stray()
        return query

    def _fail(self, reason: str, position: int) -> NoReturn:
        raise QuerySyntaxError(reason, self._text, position)

    def _stray(self) -> NoReturn:
        """The query should have ended, or gone on, but not with this sign."""
        opening = _OPENS.get(self._token.kind)
        reason = f"there is no {opening} for this to close" if opening else _BRACES
        self._fail(reason, self._token.start)

    def _scan(self, position: int) -> _Token:
        """The token at or after `position`."""
        match = _TOKEN.match(self._text, position)
        if match is None:
            rest = self._text[position:]
            start = position + len(rest) - len(rest.lstrip())
            if start < len(self._text):
                self._fail("this quote is never closed", start)
            return _Token("end", "", start, start)
        end = match.end()
        group = match.lastindex
        if group == 1:
            return _Token(match[1], "", end - 1, end)
        if group == 3:
            phrase = match[2].replace('""', '"')
            return _Token("phrase", phrase, match.start(2) - 1, end, starred=bool(match[3]))
        word, start = match[4], match.start(4)
        if word[0] in "-!" and self._text[start + 1 : start + 2].strip():
            return _Token("not", "", start, start + 1)
        kind = word.lower()
        return _Token(kind if kind in _OPERATORS else "word", word, start, end)

    def _advance(self) -> _Token:
        token = self._token
        self._token = self._scan(token.end)
        return token

    def _enter(self, position: int) -> None:
        self._depth += 1
        if self._depth > MAX_NESTING:
            self._fail(f"nested too deeply: {MAX_NESTING} levels are the limit", position)

    def _any(self) -> Query:
        children = [self._all()]
        while self._token.kind == "or":
            self._advance()
            children.append(self._all())
        return children[0] if len(children) == 1 else Or(tuple(children))

    def _all(self) -> Query:
        children = [self._operand()]
        while True:
            if self._token.kind == "and":
                self._advance()
            elif self._token.kind not in _BEGINS_OPERAND:
                break
            children.append(self._operand())
        return children[0] if len(children) == 1 else And(tuple(children))

    def _operand(self) -> Query:
        negations = 0
        while self._token.kind == "not":
            self._enter(self._advance().start)
            negations += 1
        query: Query = self._inside(")") if self._token.kind == "(" else self._term()
        self._depth -= negations
        for _ in range(negations):
            query = Not(query)
        return query

    def _inside(self, closing: str) -> Query:
        """What stands between the sign we are at and the one that closes it."""
        opening = self._advance()
        self._enter(opening.start)
        query = self._any()
        if self._token.kind == "end":
            self._fail(f"this {opening.kind} is never closed", opening.start)
        if self._token.kind != closing:
            self._stray()
        self._advance()
        self._depth -= 1
        return query

    def _count(self, terms: int, position: int) -> None:
        self._terms += terms
        if self._terms > MAX_TERMS:
            self._fail(f"a query has at most {MAX_TERMS:,} words and values", position)

    def _term(self) -> Query:
        token = self._token
        if token.kind == "{":
            self._fail(_BRACES, token.start)
        if token.kind not in ("word", "phrase"):
            what = "not the end of the query" if token.kind == "end" else "not this"
            self._fail(f"a word, a phrase or a parenthesis should stand here, {what}", token.start)
        self._advance()
        self._count(1, token.start)
        prefixed = _PREFIXED.match(token.text) if token.kind == "word" else None
        if prefixed is not None:
            return self._prefixed(token, prefixed[1])
        if self._group:
            return self._value(self._group, token, token.start)
        if token.kind == "word" and token.text == "*":
            return All()
        return self._words(None, token, token.start)

    def _prefixed(self, token: _Token, typed: str) -> Query:
        name = typed.lower()
        if self._group:
            self._fail(
                f"{typed[:_MAX_PREFIX_CHARS]}: cannot stand inside {self._group}:(...); quote it to search for it",
                token.start,
            )
        if name not in TEXT_PREFIXES and name not in VALUE_PREFIXES:
            self._fail(_unknown_prefix(typed), token.start)
        rest = token.text[len(typed) + 1 :]
        if rest:
            return self._value(name, token._replace(text=rest), token.start)
        after = self._token
        if after.start != token.end:
            self._fail(f"nothing follows {typed}: here (no blank may)", token.start)
        if after.kind == "phrase":
            return self._value(name, self._advance(), token.start)
        if after.kind == "{" and name == "thread":
            return self._braced(token.start)
        if after.kind == "(":
            self._group = name
            query = self._inside(")")
            self._group = ""
            return query
        self._fail(f"nothing follows {typed}: here", token.start)

    def _braced(self, position: int) -> Query:
        """What thread:{...} says; we are at the brace."""
        if self._braces == MAX_THREAD_NESTING:
            self._fail(
                f"{MAX_THREAD_NESTING} thread:{{...}} inside each other are the limit", position
            )
        self._threads += 1
        if self._threads > MAX_THREADS:
            self._fail(f"{MAX_THREADS} thread:{{...}} are the limit", position)
        self._braces += 1
        inner = self._inside("}")
        self._braces -= 1
        return ThreadOf(inner)

    def _value(self, name: str, token: _Token, position: int) -> Query:
        """The leaf of a prefix and its value."""
        if name in TEXT_PREFIXES:
            return self._words(TEXT_PREFIXES[name], token, position)
        if token.starred:
            self._fail(f'"*" means nothing after a phrase of {name}:', position)
        if not token.text.strip():
            self._fail(f"nothing follows {name}: here", position)
        try:
            return VALUE_PREFIXES[name](token.text.strip())
        except (ValueError, BadKeyword) as error:
            raise QuerySyntaxError(str(error), self._text, position) from error

    def _words(self, columns: Columns, token: _Token, position: int) -> Query:
        if not token.text.strip():
            self._fail("an empty phrase", position)
        # Signs cut what is written as one word into a phrase of several.
        self._count(sum(1 for _ in _INDEX_WORD.finditer(token.text)) - 1, position)
        try:
            return text_leaf(columns, token.text, token.kind == "phrase", token.starred)
        except ValueError as error:
            raise QuerySyntaxError(str(error), self._text, position) from error


def _unknown_prefix(typed: str) -> str:
    if len(typed) > _MAX_PREFIX_CHARS:
        return f"there is no prefix {typed[:_MAX_PREFIX_CHARS]}...: (to search for the text itself, quote it)"
    # Only here, because only a mistake needs it: a few milliseconds.
    from difflib import get_close_matches

    names = (*TEXT_PREFIXES, *VALUE_PREFIXES)
    near = get_close_matches(typed.lower(), names, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]}:? " if near else ""
    return f"there is no prefix {typed}: ({guess}to search for the text itself, quote it)"


def format_query(query: Query) -> str:
    """The text of a tree, in the spelling the man page puts first."""
    match query:
        case And(children):
            return " and ".join(_bracketed(child, (And, Or)) for child in children)
        case Or(children):
            return " or ".join(_bracketed(child, (Or,)) for child in children)
        case Not(child):
            return f"not {_bracketed(child, (And, Or))}"
        case Text():
            return _format_text(query)
        case HasKeyword() | AnyKeyword() | MessageId() | ThreadOf():
            return _format_row_leaf(query)
        case _:
            return _format_fact_leaf(query)


def _bracketed(child: Query, inside: tuple[type[Query], ...]) -> str:
    text = format_query(child)
    return f"({text})" if isinstance(child, inside) else text


def _quoted(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'


def _format_value(value: str) -> str:
    return value if _WORD.fullmatch(value) else _quoted(value)


def _format_text(leaf: Text) -> str:
    prefix = "" if leaf.columns is None else NAME_OF_COLUMNS[leaf.columns] + ":"
    quoted = leaf.is_phrase or not _is_bare(leaf)
    return prefix + (_quoted(leaf.text) if quoted else leaf.text) + "*" * leaf.is_prefix


def _is_bare(leaf: Text) -> bool:
    """Whether the parser reads this text, unquoted, as the same word."""
    text = leaf.text
    if "*" in text or not _WORD.fullmatch(text):
        return False
    if leaf.columns is not None:
        return True
    # `or*` is a word, but `or` is none.
    is_operator = text.lower() in _OPERATORS and not leaf.is_prefix
    return not (text[0] in "-!" or is_operator or _PREFIXED.match(text))


def _format_row_leaf(leaf: RowLeaf) -> str:
    match leaf:
        case HasKeyword(keyword):
            return f"tag:{keyword}"
        case AnyKeyword():
            return "is:tagged"
        case MessageId(message_id):
            return f"id:{_format_value(message_id)}"
        case ThreadOf(child):
            return f"thread:{{{format_query(child)}}}"


def _format_fact_leaf(leaf: FactLeaf) -> str:
    match leaf:
        case All():
            return "*"
        case Flag(bit):
            return f"is:{_NAME_OF_BIT[bit]}"
        case HasAttachment():
            return "has:attachment"
        case Thread(thread):
            return f"thread:{thread}"
        case Date(field, low, high):
            return f"{field}:{_format_value(low if low == high else f'{low}..{high}')}"
        case Size(low_bytes, high_bytes):
            low_text, high_text = ("" if n is None else str(n) for n in (low_bytes, high_bytes))
            one = low_text == high_text
            return f"size:{low_text if one else f'{low_text}..{high_text}'}"
