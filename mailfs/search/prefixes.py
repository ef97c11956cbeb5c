"""What may stand before a colon, and what its value becomes.

Two tables: prefixes that look for words in columns of the text index, and prefixes that read their value
themselves. Invariant: a value is refused with ValueError or BadKeyword, whose text is fit for a person and
needs no position; query.py adds that.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import partial
from typing import Literal

from mailfs.ids import ThreadId
from mailfs.message.keywords import RECENT, SEEN, SYSTEM_KEYWORDS, parse_keyword
from mailfs.search.dates import check_date
from mailfs.search.tree import (
    AnyKeyword,
    Columns,
    Date,
    Flag,
    HasAttachment,
    HasKeyword,
    MessageId,
    Not,
    Query,
    Size,
    Text,
    Thread,
)

_MAX_INT64 = 2**63 - 1
_SIZE = re.compile(r"(\d{1,18})([kmg]?)b?", re.ASCII | re.IGNORECASE)
_SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def text_leaf(columns: Columns, text: str, is_phrase: bool, starred: bool) -> Text:
    """A leaf for a bare word or a phrase. ValueError for one that FTS5 could not look for."""
    if not is_phrase and text.endswith("*"):
        text, starred = text[:-1], True
    if not is_phrase and "*" in text:
        raise ValueError('"*" stands only at the end of a word')
    if not any(map(_is_token_character, text)):
        raise ValueError("nothing to search for in this: it has no letter and no digit")
    return Text(columns, text, is_phrase, starred)


def _is_token_character(sign: str) -> bool:
    # What FTS5's unicode61 keeps: letters, numbers and private use.
    return sign.isalnum() or unicodedata.category(sign) == "Co"


# Words after is: and flag: that are no keywords; and the one that is read so after tag: as well, because
# notmuch has a tag of that name. A keyword called `new` can still be asked for as tag:new.
_STATES: dict[str, Query] = {
    "unread": Not(Flag(SEEN)),
    "read": Flag(SEEN),
    "recent": Flag(RECENT),
    "new": Flag(RECENT),
    "tagged": AnyKeyword(),
    "untagged": Not(AnyKeyword()),
    "attachment": HasAttachment(),
}
_TAG_STATES = {"unread": _STATES["unread"]}


def _keyword(states: dict[str, Query], value: str) -> Query:
    state = states.get(value.lower())
    if state is not None:
        return state
    keyword = parse_keyword(value)
    bit = SYSTEM_KEYWORDS.get(keyword)
    return HasKeyword(keyword) if bit is None else Flag(bit)


def _message_id(value: str) -> Query:
    bare = value.strip().removeprefix("<").removesuffix(">").strip()
    if not bare:
        raise ValueError("this Message-ID is empty")
    return MessageId(bare)


def _date(field: Literal["date", "received"], value: str) -> Query:
    low, is_range, high = (part.strip() for part in value.partition(".."))
    if not low and not high:
        raise ValueError("a range of dates needs at least one end")
    for bound in filter(None, (low, high)):
        check_date(bound)
    return Date(field, low, high if is_range else low)


def _bytes(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError("not a size: write 100, 20k, 1M, 2G or a range such as 1M..5M")
    size = int(match[1]) * _SIZE_UNITS[match[2].lower()]
    if size > _MAX_INT64:
        raise ValueError("this size is too large")
    return size


def _size(value: str) -> Query:
    low, is_range, high = (part.strip() for part in value.partition(".."))
    if not low and not high:
        raise ValueError("a range of sizes needs at least one end")
    if not is_range:
        return Size(_bytes(low), _bytes(low))
    return Size(_bytes(low) if low else None, _bytes(high) if high else None)


def _larger(value: str) -> Query:
    return Size(min(_bytes(value) + 1, _MAX_INT64), None)


def _smaller(value: str) -> Query:
    size = _bytes(value)
    if size == 0:
        raise ValueError("no message is smaller than nothing")
    return Size(None, size - 1)


def _thread(value: str) -> Query:
    if not (value.isascii() and value.isdigit() and len(value) <= 18 and int(value) > 0):
        raise ValueError("thread: takes a number, or a query in braces as in thread:{from:alice}")
    return Thread(ThreadId(int(value)))


def _has(value: str) -> Query:
    if value.lower() != "attachment":
        raise ValueError("has: takes only attachment")
    return HasAttachment()


# The two tables that say what there is before a colon; every name is in man/mailfs-search.7.
TEXT_PREFIXES: dict[str, tuple[str, ...]] = {
    "from": ("sender",),
    "f": ("sender",),
    "to": ("recipient", "cc"),
    "t": ("recipient",),
    "cc": ("cc",),
    "c": ("cc",),
    "subject": ("subject",),
    "s": ("subject",),
    "body": ("body",),
    "b": ("body",),
    "attachment": ("attachment",),
    "file": ("attachment",),
    "n": ("attachment",),
    "list": ("list",),
    "l": ("list",),
}
VALUE_PREFIXES: dict[str, Callable[[str], Query]] = {
    **dict.fromkeys(("is", "flag"), partial(_keyword, _STATES)),
    **dict.fromkeys(("tag", "label", "keyword", "kw"), partial(_keyword, _TAG_STATES)),
    **dict.fromkeys(("id", "mid", "msgid"), _message_id),
    **dict.fromkeys(("date", "d"), partial(_date, "date")),
    **dict.fromkeys(("received", "rt"), partial(_date, "received")),
    **dict.fromkeys(("size", "z"), _size),
    "larger": _larger,
    "smaller": _smaller,
    "thread": _thread,
    "has": _has,
}
# The first name of each set of columns is the one format_query writes.
NAME_OF_COLUMNS: dict[Columns, str] = {
    columns: name for name, columns in reversed(TEXT_PREFIXES.items())
}
