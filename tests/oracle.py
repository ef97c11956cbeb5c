"""What every test that wrote a store asks at its end: does it keep its promises?"""

import hashlib
from pathlib import Path

from mailfs.ids import Docid
from mailfs.search.plan import plan
from mailfs.search.query import parse_query
from mailfs.store.rescue.verify import Finding, Severity, verify
from mailfs.store.store import Store


def problems_of(store: Store) -> list[Finding]:
    """The promises a store breaks; notes about bytes that nobody was promised are left out."""
    return [finding for finding in verify(store) if finding.severity is Severity.PROBLEM]


def assert_sound(root: Path) -> None:
    """A store, opened anew, breaks no promise."""
    with Store.open(root) as store:
        assert problems_of(store) == []


def docids_of(store: Store, query: str = "*") -> list[Docid]:
    """The live messages that match now."""
    return store.index.docids(plan(parse_query(query), 0.0))


def count_of(store: Store, query: str = "*") -> int:
    """How many live messages match now."""
    return store.index.count(plan(parse_query(query), 0.0))


def contents_of(store: Store) -> dict[Docid, bytes]:
    """Every live message as it is read back."""
    return {docid: store.load(docid) for docid in docids_of(store)}


def sha256(raw: bytes) -> str:
    """How tests compare messages with their source: not with the hash that the store itself uses."""
    return hashlib.sha256(raw).hexdigest()
