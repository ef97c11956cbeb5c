"""The invariants of a store, each a function that yields what breaks it. The oracle of every test that writes.

Takes no lock: one read transaction holds the index still, and acknowledged pack bytes never change. Costs one read of
all packs. Records behind a pack's acknowledged end are a note, not a problem: they were never promised.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import apsw

from mailfs.errors import Corrupt, QuerySyntaxError, StoreError
from mailfs.ids import PackNumber
from mailfs.search.query import parse_query
from mailfs.store.database import open_reader, translated
from mailfs.store.packs import PACK_HEAD, Location
from mailfs.store.records import HEADER_BYTES
from mailfs.store.store import Store


class Severity(Enum):
    """PROBLEM: a promise is broken. NOTE: bytes that nothing refers to, harmless."""

    PROBLEM = "problem"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, and where."""

    severity: Severity
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.severity.value}: {self.where}: {self.what}"


@dataclass(frozen=True, slots=True)
class Counts:
    """What verify looked at."""

    messages: int
    expunged: int
    blobs: int
    packs: int


def counts(store: Store) -> Counts:
    """How much there is to verify."""
    connection = open_reader(store.layout.index)
    try:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM message WHERE expunged = 0), "
            "(SELECT count(*) FROM message WHERE expunged <> 0), "
            "(SELECT count(*) FROM blob), (SELECT count(*) FROM pack)"
        ).fetchone()
        assert row is not None
        return Counts(*row)
    finally:
        connection.close()


def verify(store: Store) -> Iterator[Finding]:
    """Everything wrong with a store; nothing when all is well."""
    with translated(store.layout.index):
        connection = open_reader(store.layout.index)
        try:
            connection.execute("BEGIN")
            for check in (
                _check_sqlite,
                _check_rows,
                _check_words,
                _check_searches,
            ):
                yield from check(connection)
            yield from _check_blobs(connection, store)
            yield from _check_packs(connection, store)
        finally:
            connection.close()


def _problem(where: str, what: str) -> Finding:
    return Finding(Severity.PROBLEM, where, what)


def _check_sqlite(connection: apsw.Connection) -> Iterator[Finding]:
    for (message,) in connection.execute("PRAGMA integrity_check"):
        if message != "ok":
            yield _problem("index", str(message))


# Each statement selects what must not be: a place and what is wrong with it.
_FORBIDDEN_ROWS = (
    (
        "SELECT docid FROM message WHERE NOT EXISTS "
        "(SELECT 1 FROM message_blob WHERE docid = message.docid)",
        "message {}",
        "has no bytes",
    ),
    (
        "SELECT docid FROM message_blob WHERE docid NOT IN (SELECT docid FROM message)",
        "message {}",
        "has bytes but no row",
    ),
    (
        "SELECT blob_id FROM blob WHERE blob_id NOT IN (SELECT blob_id FROM message_blob)",
        "blob {}",
        "belongs to no message",
    ),
    (
        "SELECT docid FROM message JOIN message_blob USING (docid) JOIN blob USING (blob_id) "
        "GROUP BY docid HAVING message.size NOT IN (max(raw), min(raw))",
        "message {}",
        "has another size than its bytes",
    ),
    (
        "SELECT docid FROM message_blob WHERE blob_id NOT IN (SELECT blob_id FROM blob)",
        "message {}",
        "names a blob that is not there",
    ),
    (
        "SELECT docid FROM message LEFT JOIN envelope USING (docid) WHERE envelope.docid IS NULL",
        "message {}",
        "has no envelope",
    ),
    (
        "SELECT docid FROM message WHERE modseq > (SELECT modseq FROM state)",
        "message {}",
        "has a modseq that was never given",
    ),
    (
        "SELECT docid FROM message_keyword WHERE keyword_id NOT IN (SELECT keyword_id FROM keyword)",
        "message {}",
        "has a keyword that is not there",
    ),
    (
        "SELECT docid FROM message_keyword WHERE docid NOT IN (SELECT docid FROM message)",
        "message {}",
        "has keywords but no row",
    ),
    (
        "SELECT DISTINCT docid FROM entry WHERE docid NOT IN (SELECT docid FROM message)",
        "message {}",
        "has chosen names but no row",
    ),
    (
        "SELECT DISTINCT docid FROM entry JOIN message USING (docid) WHERE expunged <> 0",
        "message {}",
        "is expunged but has chosen names",
    ),
    (
        "SELECT DISTINCT search_id FROM entry WHERE search_id NOT IN (SELECT search_id FROM search)",
        "search {}",
        "is not there but has chosen names",
    ),
    (
        "SELECT docid FROM message WHERE thread > docid",
        "message {}",
        "has a thread younger than itself",
    ),
    (
        "SELECT blob.blob_id FROM blob LEFT JOIN pack USING (pack) "
        "WHERE pack.pack IS NULL OR offset + stored > pack.size",
        "blob {}",
        "lies behind the end of its pack",
    ),
)


def _check_rows(connection: apsw.Connection) -> Iterator[Finding]:
    for statement, where, what in _FORBIDDEN_ROWS:
        for (number,) in connection.execute(statement):
            yield _problem(where.format(number), what)


def _check_words(connection: apsw.Connection) -> Iterator[Finding]:
    for (docid,) in connection.execute(
        "SELECT docid FROM message WHERE docid NOT IN (SELECT id FROM message_text_docsize)"
    ):
        yield _problem(f"message {docid}", "has no words in the search index")
    for (docid,) in connection.execute(
        "SELECT id FROM message_text_docsize WHERE id NOT IN (SELECT docid FROM message)"
    ):
        yield _problem(f"message {docid}", "has words in the search index but no row")


def _check_searches(connection: apsw.Connection) -> Iterator[Finding]:
    for name, query in connection.execute("SELECT name, query FROM search"):
        try:
            parse_query(str(query))
        except QuerySyntaxError as error:
            yield _problem(f"search {name}", str(error))


def _check_blobs(connection: apsw.Connection, store: Store) -> Iterator[Finding]:
    """Index against packs, packs against hashes."""
    for blob_id, digest, pack, offset, stored, raw in connection.execute(
        "SELECT blob_id, hash, pack, offset, stored, raw FROM blob ORDER BY pack, offset"
    ):
        location = Location(PackNumber(pack), offset, stored, raw)
        try:
            header = store.packs.header(location)
            length = sum(map(len, store.packs.raw_pieces(location)))
        except (Corrupt, OSError) as error:
            yield _problem(f"blob {blob_id}", str(error))
            continue
        if header.hash != digest or header.stored + HEADER_BYTES != stored or length != raw:
            yield _problem(f"blob {blob_id}", "is not the record the index describes")


def _check_packs(connection: apsw.Connection, store: Store) -> Iterator[Finding]:
    """Packs against the index: every acknowledged byte belongs to a record the index knows."""
    sizes = {
        PackNumber(pack): int(size)
        for pack, size in connection.execute("SELECT pack, size FROM pack")
    }
    for path in sorted(store.layout.packs.iterdir()):
        if not path.name.endswith(".pack") or not path.stem.isdigit():
            yield Finding(Severity.NOTE, path.name, "is no pack")
        elif PackNumber(int(path.stem)) not in sizes:
            yield Finding(Severity.NOTE, path.name, "is a pack the index does not know")
    for pack, size in sizes.items():
        known = {
            offset
            for (offset,) in connection.execute("SELECT offset FROM blob WHERE pack = ?", (pack,))
        }
        yield from _check_pack(store, pack, size, known)


def _check_pack(store: Store, pack: PackNumber, size: int, known: set[object]) -> Iterator[Finding]:
    where = store.layout.pack(pack).name
    end = len(PACK_HEAD)
    try:
        if store.packs.head(pack) != PACK_HEAD:
            yield _problem(where, "does not begin as a pack does")
        for offset, header in store.packs.iter_records(pack):
            end = offset + HEADER_BYTES + header.stored
            if offset not in known:
                yield Finding(Severity.NOTE, where, f"the record at {offset} is not in the index")
    except (Corrupt, StoreError, OSError) as error:
        severity = Severity.PROBLEM if end < size else Severity.NOTE
        yield Finding(severity, where, f"behind {end}: {error}")
    if end < size:
        yield _problem(where, f"ends at {end}, the index knows {size}")
