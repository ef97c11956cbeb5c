"""What a store holds, told in a way that two stores can be compared by.

No numbers that a second try gives out anew (docids, modseqs, times, places in packs), but everything a person would miss:
the bytes of all messages, their flags and keywords, what is expunged, the saved searches, the names clients chose.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mailfs.errors import Corrupt
from mailfs.ids import Docid
from mailfs.message.keywords import LETTER_BITS, RECENT
from mailfs.store.database import open_reader
from mailfs.store.store import Store
from tests.oracle import problems_of

_KEPT_BITS = LETTER_BITS | RECENT


@dataclass(frozen=True)
class Content:
    """A store at one moment. Messages are named by the SHA-256 of their bytes.

    `messages`: what is said of each: flags, keywords, whether it is expunged. `searches`: query and what rm does.
    `names`: those that clients chose, by view and base name. `files`: what lies in spool and sidecar.
    """

    messages: dict[str, str] = field(default_factory=dict)
    searches: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def live(self) -> set[str]:
        """The messages that are not expunged."""
        return {digest for digest, state in self.messages.items() if state.startswith("live")}


@dataclass(frozen=True)
class Found:
    """A store as it was opened: what it holds, and what is wrong with it by itself."""

    content: Content
    problems: tuple[str, ...]


def digest_of(raw: bytes) -> str:
    """How messages are named here: not with the hash that the store itself uses."""
    return hashlib.sha256(raw).hexdigest()[:16]


def look(root: Path) -> Found:
    """Open a store, as the next program will, and verify it. One that is not made yet holds nothing."""
    if not (root / "format").exists():
        return Found(Content(), ())
    with Store.open(root) as store:
        problems = [str(problem) for problem in problems_of(store)]
        content = content_of(store)
        copies = Counter(docid_digests(store).values())
    problems += [
        f"{digest} is there {count} times" for digest, count in copies.items() if count > 1
    ]
    return Found(content, tuple(problems))


def docid_digests(store: Store) -> dict[Docid, str]:
    """The messages, expunged ones too, by docid; one that cannot be read has no digest but its number."""
    connection = open_reader(store.layout.index)
    try:
        docids = [Docid(docid) for (docid,) in connection.execute("SELECT docid FROM message")]
    finally:
        connection.close()
    return {docid: _digest_of(store, docid) for docid in docids}


def _digest_of(store: Store, docid: Docid) -> str:
    try:
        return digest_of(store.load(docid))
    except Corrupt:
        return f"unreadable {docid}"


def content_of(store: Store) -> Content:
    """What an open store holds."""
    digests = docid_digests(store)
    connection = open_reader(store.layout.index)
    try:
        messages = {
            digests[docid]: _state(flags, keywords, is_expunged)
            for docid, flags, is_expunged, keywords in connection.execute(
                "SELECT docid, flags, expunged <> 0, (SELECT group_concat(name, ' ') FROM "
                "(SELECT name FROM message_keyword JOIN keyword USING (keyword_id) "
                "WHERE message_keyword.docid = message.docid ORDER BY name)) FROM message"
            )
        }
        searches = {
            name: f"{query} on-rm={on_rm}"
            for name, query, on_rm in connection.execute("SELECT name, query, on_rm FROM search")
        }
        names = {
            f"{name}/{base!r}": f"{digests.get(docid, docid)} {extra!r} {form} {is_copy}"
            for name, base, docid, extra, form, is_copy in connection.execute(
                "SELECT name, base, docid, extra, form, is_copy "
                "FROM entry LEFT JOIN search USING (search_id)"
            )
        }
    finally:
        connection.close()
    files = _files_of(store.layout.root, ("spool", "sidecar"))
    return Content(messages, searches, names, files)


def _state(flags: int, keywords: str | None, is_expunged: int) -> str:
    what = "expunged" if is_expunged else "live"
    return f"{what} {flags & _KEPT_BITS:#x} {keywords or ''}".strip()


def _files_of(root: Path, folders: Iterable[str]) -> dict[str, str]:
    return {
        str(path.relative_to(root)): digest_of(path.read_bytes())
        for folder in folders
        for path in sorted((root / folder).rglob("*"))
        if path.is_file()
    }


def differences(found: Content, right: Content) -> list[str]:
    """What is not as it should be, a line each."""
    return [
        f"{what} {key}: {shown.get(key, 'not there')}, and should be {wanted.get(key, 'not there')}"
        for what, shown, wanted in _pairs(found, right)
        for key in sorted(shown.keys() | wanted.keys())
        if shown.get(key) != wanted.get(key)
    ]


def strangers(found: Content, allowed: Sequence[Content]) -> list[str]:
    """What is in none of the states that it can be in, while a step was on its way: a line each.

    Spool and sidecar may hold what is on its way.
    """
    lines = []
    for number, (what, shown, _) in enumerate(_pairs(found, found)[:3]):
        tables = [_pairs(each, each)[number][1] for each in allowed]
        for key in sorted(set(shown).union(*tables)):
            states = [table.get(key, "not there") for table in tables]
            if (state := shown.get(key, "not there")) not in states:
                right = " or ".join(dict.fromkeys(states))
                lines.append(f"{what} {key}: {state}, and should be {right}")
    return lines


def _pairs(one: Content, other: Content) -> list[tuple[str, dict[str, str], dict[str, str]]]:
    return [
        ("message", one.messages, other.messages),
        ("search", one.searches, other.searches),
        ("name", one.names, other.names),
        ("file", one.files, other.files),
    ]
