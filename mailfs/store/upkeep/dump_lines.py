"""The lines of a dump: JSON objects in ASCII, one a line, each of one kind; man/mailfs-store.5 describes them.

What is read comes from anywhere: every field is checked, and what is wrong with it raises BadDump. Bytes (names that
clients chose) are written as the string of the same code points, 0 to 255.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import xxhash

from mailfs.errors import BadDump, BadKeyword, EditRefused
from mailfs.ids import Docid, Keyword, Modseq, PackNumber, SearchId, ThreadId
from mailfs.message.keywords import (
    ANSWERED,
    ATTACHMENT,
    DELETED,
    DELETED_BY_ENTRY,
    DRAFT,
    FLAGGED,
    FORWARDED,
    RECENT,
    SEEN,
    SYSTEM_KEYWORDS,
    parse_keyword,
)
from mailfs.message.maildir import MAX_NAME_BYTES, ChosenName, Form, split_name
from mailfs.search.names import check_search_name
from mailfs.store.records import HASH_BYTES

DUMP_VERSION = 1
ON_RM = ("", "unlink", "untag", "expunge", "refuse")
_FLAG_WORDS = {
    "seen": SEEN,
    "answered": ANSWERED,
    "flagged": FLAGGED,
    "draft": DRAFT,
    "forwarded": FORWARDED,
    "deleted": DELETED,
    "recent": RECENT,
    "attachment": ATTACHMENT,
    "deleted-by-entry": DELETED_BY_ENTRY,
}
# What SQLite keeps in an integer.
_LARGEST = 2**63 - 1


class DumpHeader(NamedTuple):
    """The first line: of which store, and what it had given out. `query`: only these messages, and no threads."""

    store_id: str
    modseq: Modseq
    searches_modseq: Modseq
    reclaimed_modseq: Modseq
    last_docid: Docid
    last_search_id: SearchId
    query: str | None


class DumpedKeyword(NamedTuple):
    """A keyword of the user's own and its number in the index."""

    keyword_id: int
    keyword: Keyword


class DumpedDictionary(NamedTuple):
    """What the packs do not tell of a dictionary that lies in them."""

    dictionary_id: int
    made_ns: int
    messages: int


class DumpedSearch(NamedTuple):
    """A saved search. Whether its query can be parsed is for who saves it to ask."""

    search_id: SearchId
    name: str
    query: str
    on_rm: str
    changed_ns: int


class DumpedThread(NamedTuple):
    """Message-IDs of a thread; a long one has several lines."""

    thread: ThreadId
    message_ids: tuple[str, ...]


class DumpedBlob(NamedTuple):
    """Bytes of a message, and where they lay: told by place where two have the same hash."""

    hash: bytes
    size: int
    pack: PackNumber
    offset: int


@dataclass(frozen=True, slots=True)
class DumpedMessage:
    """A message: its row, its bytes, its keywords and the names clients chose for it."""

    docid: Docid
    flags: int
    keywords: tuple[Keyword, ...]
    expunged: int
    received_ns: int
    modseq: Modseq
    changed_ns: int
    thread: ThreadId
    size: int
    blobs: tuple[DumpedBlob, ...]
    names: tuple[tuple[SearchId, ChosenName], ...]


class DumpEnd(NamedTuple):
    """The last line; without it the dump is cut off. `check`: xxh3-64 of all bytes before it, in hexadecimal, or ''."""

    check: str = ""


Line = (
    DumpHeader
    | DumpedKeyword
    | DumpedDictionary
    | DumpedSearch
    | DumpedThread
    | DumpedMessage
    | DumpEnd
)


# --- writing


def dump_hasher() -> xxhash.xxh3_64:
    """What the checksum of a dump is made with."""
    return xxhash.xxh3_64()


def format_line(line: Line) -> bytes:
    """One line, with its newline."""
    fields = _FIELDS[type(line)](line)
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _header_fields(line: DumpHeader) -> dict[str, object]:
    return {
        "mailfs-dump": DUMP_VERSION,
        "store-id": line.store_id,
        "modseq": line.modseq,
        "searches-modseq": line.searches_modseq,
        "reclaimed-modseq": line.reclaimed_modseq,
        "last-docid": line.last_docid,
        "last-search-id": line.last_search_id,
        "query": line.query,
    }


def _keyword_fields(line: DumpedKeyword) -> dict[str, object]:
    return {"keyword": line.keyword, "id": line.keyword_id}


def _dictionary_fields(line: DumpedDictionary) -> dict[str, object]:
    return {"dictionary": line.dictionary_id, "made-ns": line.made_ns, "messages": line.messages}


def _search_fields(line: DumpedSearch) -> dict[str, object]:
    return {
        "search": line.name,
        "id": line.search_id,
        "query": line.query,
        "on-rm": line.on_rm,
        "changed-ns": line.changed_ns,
    }


def _thread_fields(line: DumpedThread) -> dict[str, object]:
    return {"thread": line.thread, "message-ids": line.message_ids}


def _message_fields(line: DumpedMessage) -> dict[str, object]:
    return {
        "message": line.docid,
        "size": line.size,
        "flags": [word for word, bit in _FLAG_WORDS.items() if line.flags & bit],
        "keywords": line.keywords,
        "expunged": line.expunged,
        "received-ns": line.received_ns,
        "modseq": line.modseq,
        "changed-ns": line.changed_ns,
        "thread": line.thread,
        "blobs": [
            {"hash": blob.hash.hex(), "size": blob.size, "pack": blob.pack, "offset": blob.offset}
            for blob in line.blobs
        ],
        "names": [
            {
                "search": search_id,
                "base": name.base.decode("latin-1"),
                "extra": name.extra.decode("latin-1"),
                "form": int(name.form),
                "copy": name.is_copy,
            }
            for search_id, name in line.names
        ],
    }


def _end_fields(line: DumpEnd) -> dict[str, object]:
    return {"end": True, "check": line.check} if line.check else {"end": True}


_FIELDS: dict[type, Callable[[Any], dict[str, object]]] = {
    DumpHeader: _header_fields,
    DumpedKeyword: _keyword_fields,
    DumpedDictionary: _dictionary_fields,
    DumpedSearch: _search_fields,
    DumpedThread: _thread_fields,
    DumpedMessage: _message_fields,
    DumpEnd: _end_fields,
}


# --- reading


class _Fields:
    """The fields of one line. What is asked for must be there and be of its kind; what nobody asks for is let be."""

    def __init__(self, fields: object) -> None:
        if not isinstance(fields, dict):
            raise BadDump("is no JSON object")
        self._fields = fields

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def _get(self, name: str) -> object:
        if name not in self._fields:
            raise BadDump(f"has no field {name!r}")
        return self._fields[name]

    def number(self, name: str) -> int:
        value = self._get(name)
        # To Python true is a number.
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST:
            raise BadDump(f"field {name!r} is no number from 0 to 2^63 - 1")
        return value

    def truth(self, name: str) -> bool:
        value = self._get(name)
        if not isinstance(value, bool):
            raise BadDump(f"field {name!r} is neither true nor false")
        return value

    def text(self, name: str) -> str:
        return _text(name, self._get(name))

    def raw(self, name: str) -> bytes:
        try:
            return self.text(name).encode("latin-1")
        except UnicodeEncodeError:
            raise BadDump(f"field {name!r} has signs above U+00FF, which are no bytes") from None

    def texts(self, name: str) -> list[str]:
        return [_text(name, item) for item in self._list(name)]

    def objects(self, name: str) -> "list[_Fields]":
        return [_Fields(item) for item in self._list(name)]

    def _list(self, name: str) -> list[object]:
        value = self._get(name)
        if not isinstance(value, list):
            raise BadDump(f"field {name!r} is no list")
        return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadDump(f"field {name!r} is no text")
    if "\0" in value or not _is_unicode(value):
        raise BadDump(f"field {name!r} has a NUL or half a surrogate pair in it")
    return value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_line(line: bytes) -> Line:
    """One line of a dump. Raises BadDump, which says what is wrong in it."""
    try:
        fields = _Fields(json.loads(line.decode()))
    except UnicodeDecodeError:
        raise BadDump("is not UTF-8") from None
    except ValueError as error:
        raise BadDump(f"is no JSON ({error})") from None
    except RecursionError:
        raise BadDump("is nested too deep") from None
    for key, parse in _PARSERS.items():
        if key in fields:
            return parse(fields)
    raise BadDump("is of no kind that is known")


def _parse_header(fields: _Fields) -> DumpHeader:
    version = fields.number("mailfs-dump")
    if version != DUMP_VERSION:
        raise BadDump(f"has version {version}; this mailfs reads {DUMP_VERSION}")
    store_id = fields.text("store-id")
    if not (store_id.isascii() and store_id.isalnum()):
        raise BadDump("has a store-id that is none")
    has_query = "query" in fields and fields._get("query") is not None
    return DumpHeader(
        store_id,
        Modseq(fields.number("modseq")),
        Modseq(fields.number("searches-modseq")),
        Modseq(fields.number("reclaimed-modseq")),
        Docid(fields.number("last-docid")),
        SearchId(fields.number("last-search-id")),
        fields.text("query") if has_query else None,
    )


def _parse_keyword(fields: _Fields) -> DumpedKeyword:
    return DumpedKeyword(fields.number("id"), _own_keyword(fields.text("keyword")))


def _own_keyword(word: str) -> Keyword:
    """A user's own keyword, written as the index does."""
    try:
        keyword = parse_keyword(word)
    except BadKeyword as error:
        raise BadDump(str(error)) from None
    if keyword in SYSTEM_KEYWORDS or keyword != word:
        raise BadDump(f"has {word[:60]!r} among the user's own keywords: write {keyword!r}")
    return keyword


def _parse_dictionary(fields: _Fields) -> DumpedDictionary:
    return DumpedDictionary(
        fields.number("dictionary"), fields.number("made-ns"), fields.number("messages")
    )


def _parse_search(fields: _Fields) -> DumpedSearch:
    name, query, on_rm = fields.text("search"), fields.text("query"), fields.text("on-rm")
    try:
        check_search_name(name)
    except EditRefused as error:
        raise BadDump(str(error)) from None
    if on_rm not in ON_RM:
        raise BadDump(f"has an on-rm that is none: {on_rm[:60]!r}")
    return DumpedSearch(
        SearchId(fields.number("id")), name, query, on_rm, fields.number("changed-ns")
    )


def _parse_thread(fields: _Fields) -> DumpedThread:
    return DumpedThread(ThreadId(fields.number("thread")), tuple(fields.texts("message-ids")))


def _parse_message(fields: _Fields) -> DumpedMessage:
    flags = 0
    for word in fields.texts("flags"):
        if word not in _FLAG_WORDS:
            raise BadDump(f"has a flag that is none: {word[:60]!r}")
        flags |= _FLAG_WORDS[word]
    return DumpedMessage(
        docid=Docid(fields.number("message")),
        flags=flags,
        keywords=tuple(map(_own_keyword, fields.texts("keywords"))),
        expunged=fields.number("expunged"),
        received_ns=fields.number("received-ns"),
        modseq=Modseq(fields.number("modseq")),
        changed_ns=fields.number("changed-ns"),
        thread=ThreadId(fields.number("thread")),
        size=fields.number("size"),
        blobs=tuple(map(_parse_blob, fields.objects("blobs"))),
        names=tuple(map(_parse_name, fields.objects("names"))),
    )


def _parse_blob(fields: _Fields) -> DumpedBlob:
    try:
        digest = bytes.fromhex(fields.text("hash"))
    except ValueError:
        digest = b""
    if len(digest) != HASH_BYTES:
        raise BadDump(f"has a hash that is not {2 * HASH_BYTES} hexadecimal digits")
    pack = PackNumber(fields.number("pack"))
    return DumpedBlob(digest, fields.number("size"), pack, fields.number("offset"))


def _parse_name(fields: _Fields) -> tuple[SearchId, ChosenName]:
    base, extra, form = fields.raw("base"), fields.raw("extra"), fields.number("form")
    if (
        not 0 < len(base) <= MAX_NAME_BYTES
        or b"/" in base
        or base in (b".", b"..")
        or split_name(base).letters is not None
    ):
        raise BadDump(f"has a name that is none: {base[:60]!r}")
    if extra and not (extra.isalpha() and sorted(set(extra)) == list(extra)):
        raise BadDump(f"has letters that are none, or not sorted: {extra[:60]!r}")
    if form not in list(Form):
        raise BadDump(f"has an unknown form of a name: {form}")
    name = ChosenName(base, extra, Form(form), fields.truth("copy"))
    return SearchId(fields.number("search")), name


def _parse_end(fields: _Fields) -> DumpEnd:
    return DumpEnd(fields.text("check") if "check" in fields else "")


# By the field that only lines of this kind have; a message and a search have further ones of the same names.
_PARSERS: dict[str, Callable[[_Fields], Line]] = {
    "mailfs-dump": _parse_header,
    "message": _parse_message,
    "keyword": _parse_keyword,
    "dictionary": _parse_dictionary,
    "search": _parse_search,
    "thread": _parse_thread,
    "end": _parse_end,
}
