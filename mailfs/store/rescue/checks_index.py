"""The index alone: SQLite's own check with the checksums of the pages, the tables there should be, and what rows must not say."""

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

import apsw

from mailfs.errors import Corrupt, QuerySyntaxError
from mailfs.message.keywords import ATTACHMENT, DELETED_BY_ENTRY, RECENT, SYSTEM_KEYWORDS
from mailfs.message.maildir import MAX_NAME_BYTES, Form
from mailfs.search.query import parse_query
from mailfs.store.database import Row
from mailfs.store.records import Dictionary, blob_hash
from mailfs.store.rescue.findings import Finding, Kind, Severity, one_line, problem
from mailfs.store.schema import FORMAT_VERSION, TABLES

# SQLite says the same of each page of a damaged tree.
_MOST_MESSAGES = 20
_NO_MEND = ""
_FLAGS = sum(SYSTEM_KEYWORDS.values()) | RECENT | ATTACHMENT | DELETED_BY_ENTRY


def check_structure(connection: apsw.Connection) -> Iterator[Finding]:
    """Every page, its checksum and its place in the trees, the words' own structure, and the tables as they should be."""
    connection.execute("PRAGMA cell_size_check = ON")
    for (message,) in connection.execute(f"PRAGMA integrity_check({_MOST_MESSAGES})"):
        if message != "ok":
            yield from _structure_problems(str(message))
    version = connection.execute("PRAGMA user_version").fetchone()
    if version != (FORMAT_VERSION,):
        said = version and version[0]
        yield problem("index", f"says that its tables have format {said}", Kind.INDEX)
    yield from _check_tables(connection)


def _structure_problems(message: str) -> Iterator[Finding]:
    for line in message.splitlines()[:_MOST_MESSAGES]:
        if not line.startswith("***"):
            said = line.replace(
                "unable to get the page. error code=8202", "it does not match its checksum"
            )
            yield problem("index", said, Kind.INDEX)


def _check_tables(connection: apsw.Connection) -> Iterator[Finding]:
    expected, found = _expected_tables(), _tables(connection)
    for name in sorted(expected.keys() - found.keys()):
        yield problem("index", f"{name} is missing", Kind.INDEX)
    for name in sorted(found.keys() - expected.keys()):
        yield problem("index", f"{name} does not belong there", Kind.INDEX)
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name]:
            yield problem("index", f"{name} is not as it should be", Kind.INDEX)


@functools.cache
def _expected_tables() -> dict[str, str]:
    fresh = apsw.Connection(":memory:")
    try:
        for statements in TABLES:
            fresh.execute(statements)
        return _tables(fresh)
    finally:
        fresh.close()


def _tables(connection: apsw.Connection) -> dict[str, str]:
    """Kind and name of each, and the statement that made it, without blanks: ALTER TABLE puts others."""
    return {
        f"{kind} {name}": re.sub(r"\s", "", sql or "")
        for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_schema")
    }


class Rule(NamedTuple):
    """Rows that must not be: `select` gives the number of a place and perhaps more to say of it; `mend` puts it right."""

    select: str
    where: str
    what: str
    kind: Kind
    mend: str = _NO_MEND


_FORGET_MESSAGE_ROWS = (
    "DELETE FROM message_blob WHERE docid = ?1; DELETE FROM envelope WHERE docid = ?1; "
    "DELETE FROM message_keyword WHERE docid = ?1; DELETE FROM entry WHERE docid = ?1"
)
_RULES = (
    Rule(
        "SELECT docid FROM message WHERE NOT EXISTS "
        "(SELECT 1 FROM message_blob JOIN blob USING (blob_id) WHERE docid = message.docid)",
        "message {}",
        "has no bytes",
        Kind.BYTES,
    ),
    Rule(
        "SELECT DISTINCT docid FROM message_blob WHERE docid NOT IN (SELECT docid FROM message)",
        "message {}",
        "has bytes but no row",
        Kind.ROWS,
        _FORGET_MESSAGE_ROWS,
    ),
    Rule(
        "SELECT blob_id FROM blob WHERE blob_id NOT IN (SELECT blob_id FROM message_blob)",
        "blob {}",
        "belongs to no message",
        Kind.UNOWNED,
    ),
    Rule(
        "SELECT docid FROM message JOIN message_blob USING (docid) JOIN blob USING (blob_id) "
        "GROUP BY docid HAVING message.size NOT IN (max(raw), min(raw))",
        "message {}",
        "has another size than its bytes",
        Kind.ROWS,
        "UPDATE message SET size = (SELECT raw FROM message_blob JOIN blob USING (blob_id) "
        "WHERE docid = ?1 ORDER BY blob_id LIMIT 1) WHERE docid = ?1",
    ),
    Rule(
        "SELECT DISTINCT docid FROM message_blob WHERE blob_id NOT IN (SELECT blob_id FROM blob)",
        "message {}",
        "names a blob that is not there",
        Kind.ROWS,
        "DELETE FROM message_blob WHERE docid = ?1 AND blob_id NOT IN (SELECT blob_id FROM blob)",
    ),
    Rule(
        "SELECT docid FROM message LEFT JOIN envelope USING (docid) WHERE envelope.docid IS NULL",
        "message {}",
        "has no envelope",
        Kind.ENVELOPE,
    ),
    Rule(
        "SELECT docid FROM envelope WHERE docid NOT IN (SELECT docid FROM message)",
        "message {}",
        "has an envelope but no row",
        Kind.ROWS,
        _FORGET_MESSAGE_ROWS,
    ),
    Rule(
        "SELECT docid FROM message WHERE modseq > (SELECT modseq FROM state)",
        "message {}",
        "has a modseq that was never given",
        Kind.ROWS,
        "UPDATE state SET modseq = max(modseq, (SELECT modseq FROM message WHERE docid = ?1))",
    ),
    Rule(
        "SELECT DISTINCT docid FROM message_keyword "
        "WHERE keyword_id NOT IN (SELECT keyword_id FROM keyword)",
        "message {}",
        "has a keyword that is not there",
        Kind.ROWS,
        "DELETE FROM message_keyword "
        "WHERE docid = ?1 AND keyword_id NOT IN (SELECT keyword_id FROM keyword)",
    ),
    Rule(
        "SELECT DISTINCT docid FROM message_keyword WHERE docid NOT IN (SELECT docid FROM message)",
        "message {}",
        "has keywords but no row",
        Kind.ROWS,
        _FORGET_MESSAGE_ROWS,
    ),
    Rule(
        "SELECT DISTINCT docid FROM entry WHERE docid NOT IN (SELECT docid FROM message)",
        "message {}",
        "has chosen names but no row",
        Kind.ROWS,
        _FORGET_MESSAGE_ROWS,
    ),
    Rule(
        "SELECT DISTINCT docid FROM entry JOIN message USING (docid) WHERE expunged <> 0",
        "message {}",
        "is expunged but has chosen names",
        Kind.ROWS,
        "DELETE FROM entry WHERE docid = ?1",
    ),
    Rule(
        "SELECT DISTINCT search_id FROM entry WHERE search_id NOT IN (SELECT search_id FROM search)",
        "search {}",
        "is not there but has chosen names",
        Kind.ROWS,
        "DELETE FROM entry WHERE search_id = ?1",
    ),
    Rule(
        "SELECT search_id FROM view_state WHERE search_id NOT IN (SELECT search_id FROM search)",
        "search {}",
        "is not there but has times of its folders",
        Kind.ROWS,
        "DELETE FROM view_state WHERE search_id = ?1",
    ),
    Rule(
        "SELECT docid FROM message WHERE thread > docid OR thread <= 0",
        "message {}",
        "has a thread younger than itself",
        Kind.THREAD,
    ),
    Rule(
        "SELECT docid FROM message JOIN envelope USING (docid) LEFT JOIN reference USING (message_id) "
        "WHERE message_id <> '' AND reference.thread IS NOT message.thread",
        "message {}",
        "has another thread than its Message-ID",
        Kind.THREAD,
    ),
    Rule(
        f"SELECT docid FROM message WHERE flags & ~{_FLAGS}",
        "message {}",
        "has flags that mean nothing",
        Kind.ROWS,
        f"UPDATE message SET flags = flags & {_FLAGS} WHERE docid = ?1",
    ),
    Rule(
        "SELECT docid FROM message WHERE docid > coalesce("
        "(SELECT seq FROM sqlite_sequence WHERE name = 'message'), 0) ORDER BY docid DESC LIMIT 1",
        "message {}",
        "has a number that may be given again",
        Kind.ROWS,
        "DELETE FROM sqlite_sequence WHERE name = 'message'; "
        "INSERT INTO sqlite_sequence(name, seq) VALUES ('message', ?1)",
    ),
    Rule(
        "SELECT search_id FROM search WHERE search_id > coalesce("
        "(SELECT seq FROM sqlite_sequence WHERE name = 'search'), 0) ORDER BY search_id DESC LIMIT 1",
        "search {}",
        "has a number that may be given again",
        Kind.ROWS,
        "DELETE FROM sqlite_sequence WHERE name = 'search'; "
        "INSERT INTO sqlite_sequence(name, seq) VALUES ('search', ?1)",
    ),
    Rule(
        "SELECT blob.blob_id FROM blob LEFT JOIN pack USING (pack) "
        "WHERE (pack.pack IS NULL OR offset + stored > pack.size) AND EXISTS "
        "(SELECT 1 FROM message_blob JOIN message USING (docid) "
        "WHERE message_blob.blob_id = blob.blob_id AND expunged = 0)",
        "blob {}",
        "lies behind the end of its pack",
        Kind.BLOB_PLACE,
    ),
    Rule(
        "SELECT id FROM message_text_docsize WHERE id NOT IN (SELECT docid FROM message)",
        "message {}",
        "has words in the search index but no row",
        Kind.ROWS,
        "DELETE FROM message_text WHERE rowid = ?1",
    ),
    Rule(
        "SELECT docid FROM message WHERE docid NOT IN (SELECT id FROM message_text_docsize)",
        "message {}",
        "has no words in the search index",
        Kind.WORDS,
    ),
    Rule(
        "SELECT modseq FROM journal WHERE modseq > (SELECT modseq FROM state)",
        "journal {}",
        "has a modseq that was never given",
        Kind.ROWS,
        "UPDATE state SET modseq = max(modseq, ?1)",
    ),
    Rule(
        "SELECT DISTINCT modseq FROM journal_change WHERE modseq NOT IN (SELECT modseq FROM journal) "
        "UNION SELECT DISTINCT modseq FROM journal_event WHERE modseq NOT IN (SELECT modseq FROM journal)",
        "journal {}",
        "has changes but no row",
        Kind.ROWS,
        "DELETE FROM journal_change WHERE modseq = ?1; DELETE FROM journal_event WHERE modseq = ?1",
    ),
    Rule(
        "SELECT modseq FROM journal WHERE operation > modseq OR first_added > last_added "
        "OR last_added > coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'message'), 0)",
        "journal {}",
        "says what cannot be",
        Kind.ROWS,
        "DELETE FROM journal WHERE modseq = ?1",
    ),
    Rule(
        "SELECT pack FROM dead_pack WHERE pack IN (SELECT pack FROM pack)",
        "pack {}",
        "is to be removed and is not",
        Kind.ROWS,
        "DELETE FROM dead_pack WHERE pack = ?1",
    ),
)


def check_rows(connection: apsw.Connection) -> Iterator[Finding]:
    """What the rows of each table say of those of the others."""
    states: list[Row] = connection.execute(
        "SELECT 0 <= searches_modseq AND searches_modseq <= modseq "
        "AND 0 <= reclaimed_modseq AND reclaimed_modseq <= modseq FROM state"
    ).fetchall()
    if states != [(1,)]:
        yield problem("index", "has no state, or one that cannot be", Kind.INDEX)
    for rule in _RULES:
        for (number,) in connection.execute(rule.select):
            yield Finding(
                Severity.PROBLEM,
                rule.where.format(number),
                rule.what,
                rule.kind,
                number,
                mend=rule.mend,
            )


def check_names(connection: apsw.Connection) -> Iterator[Finding]:
    """Names that clients chose are fit for a file. That each is there once in a view, the table's key sees to."""
    rows: Iterator[Row] = connection.execute(
        "SELECT search_id, base, docid, extra, form FROM entry"
    )
    for search_id, base, docid, extra, form in rows:
        if what := _wrong_name(base, extra, form):
            yield Finding(
                Severity.PROBLEM,
                f"message {docid} in the view of search {search_id}",
                what,
                Kind.ROWS,
                docid,
                mend="DELETE FROM entry WHERE docid = ?1",
            )


def _wrong_name(base: object, extra: object, form: object) -> str:
    if not isinstance(base, bytes) or not isinstance(extra, bytes):
        return "has a chosen name that is no name"
    if not 0 < len(base) <= MAX_NAME_BYTES or base in (b".", b"..") or set(base) & set(b"/\0"):
        return "has a chosen name that cannot be one"
    if (extra and not extra.isalpha()) or bytes(sorted(set(extra))) != extra:
        return "has letters that are none"
    if form not in set(Form):
        return "has a chosen name of a form that is none"
    return ""


def check_searches(connection: apsw.Connection) -> Iterator[Finding]:
    """Every saved search can be asked."""
    for search_id, name, query in connection.execute("SELECT search_id, name, query FROM search"):
        try:
            parse_query(str(query))
        except QuerySyntaxError as error:
            yield problem(f"search {name}", one_line(error), Kind.SEARCH, search_id)


def check_dictionaries(connection: apsw.Connection) -> Iterator[Finding]:
    """The copies in the index."""
    rows: list[Row] = connection.execute(
        "SELECT dictionary_id, hash, bytes FROM dictionary"
    ).fetchall()
    for number, digest, raw in rows:
        try:
            sound = blob_hash(raw) == digest and Dictionary(raw).id == number
        except (Corrupt, TypeError):
            sound = False
        if not sound:
            yield problem(
                f"dictionary {number}", "does not match its hash", Kind.DICTIONARY, number
            )
