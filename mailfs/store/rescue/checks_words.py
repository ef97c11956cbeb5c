"""What the index says of messages against their bytes: envelope, time and words, of some messages or of all.

The words are held against those of an index of the same kind, made in memory from the bytes of some messages at a time.
What differs is mostly a note: another version of mailfs may have read the message otherwise. Damage is what the checksums
of the index tell of; but a Message-ID that is not that of the bytes says that the bytes are another message's.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import apsw

from mailfs.errors import Corrupt, StoreError
from mailfs.ids import Docid
from mailfs.message.keywords import ATTACHMENT
from mailfs.message.parse import ParsedMessage
from mailfs.store.database import Row
from mailfs.store.packs import Location, PackReader
from mailfs.store.prepare import PARSED_BYTES, parse_start
from mailfs.store.records import FRAME_BYTES
from mailfs.store.rescue.findings import Finding, Kind, note, problem
from mailfs.store.schema import ENVELOPE, MESSAGE_TEXT
from mailfs.store.source import marks
from mailfs.store.texts import put_texts

# Of a store with more messages so many are looked at, evenly spread, unless all are asked for.
SAMPLE = 500
# What is held in memory at a time.
_BATCH = 200
# Unless all are looked at, so many words of a message are asked for; how many there are, is held against each.
_WORDS_ASKED = 5
_NS = 1_000_000_000
_VOCABULARY = "CREATE VIRTUAL TABLE temp.word USING fts5vocab(main, message_text, instance)"
_PLAIN_WORD = re.compile(r"\s[A-Za-z0-9]{2,30}\s")
_OTHER_WORDS = "has words in the search index that are not those of its bytes"


class WordChecks:
    """Some messages against their bytes. Those whose bytes cannot be read are left out: the packs' check tells of them.

    `connection` is in a read transaction, which stays.
    """

    def __init__(self, connection: apsw.Connection, packs: PackReader, *, full: bool) -> None:
        self._sql = connection
        self._packs = packs
        self._full = full
        self._memory = apsw.Connection(":memory:")
        self._memory.execute(ENVELOPE)
        self._memory.execute(MESSAGE_TEXT)
        self._memory.execute(_VOCABULARY)
        self._expected: dict[int, int] = {}

    def check(self) -> Iterator[Finding]:
        """Everything that is not as the bytes say."""
        docids = iter(self._chosen())
        while batch := list(islice(docids, _BATCH)):
            parsed = dict(self._parsed(batch))
            yield from self._check_envelopes(parsed)
            self._index(parsed)
            if self._full:
                _add_words(self._memory, self._expected)
            else:
                yield from self._check_words(parsed)
        if self._full:
            yield from self._check_all_words()

    def _chosen(self) -> list[Docid]:
        rows: list[Row] = self._sql.execute("SELECT docid FROM message ORDER BY docid").fetchall()
        every = 1 if self._full else max(len(rows) // SAMPLE, 1)
        return [Docid(docid) for (docid,) in rows[::every]]

    def _parsed(self, docids: Sequence[Docid]) -> Iterator[tuple[Docid, ParsedMessage]]:
        for docid in docids:
            location = location_or_none(self._sql, docid)
            if location is not None:
                try:
                    yield docid, parse_record_at(self._packs, location)
                except (Corrupt, StoreError, OSError):
                    continue

    def _check_envelopes(self, parsed: dict[Docid, ParsedMessage]) -> Iterator[Finding]:
        chunk = list(parsed)
        rows: Iterable[Row] = self._sql.execute(
            "SELECT docid, message_id, sender, recipient, subject, flags, date, received_ns "
            f"FROM message JOIN envelope USING (docid) WHERE docid IN ({marks(chunk)})",
            chunk,
        )
        for docid, message_id, sender, recipient, subject, flags, date, received_ns in rows:
            found = parsed[Docid(docid)]
            date_s = received_ns // _NS if found.date_s is None else found.date_s
            said = (sender, recipient, subject, bool(flags & ATTACHMENT), date)
            read = (found.sender, found.recipient, found.subject, found.has_attachment, date_s)
            if message_id != found.message_id:
                what = "has another Message-ID than its bytes"
                yield problem(f"message {docid}", what, Kind.ENVELOPE, docid)
            elif said != read:
                what = "has an envelope that is not that of its bytes"
                yield note(f"message {docid}", what, Kind.ENVELOPE, docid)

    # --- words

    def _index(self, parsed: dict[Docid, ParsedMessage]) -> None:
        self._memory.execute("BEGIN")
        self._memory.execute("DELETE FROM envelope")
        self._memory.execute("DELETE FROM message_text")
        for docid, found in parsed.items():
            put_texts(self._memory, docid, found)
        self._memory.execute("COMMIT")

    def _check_words(self, parsed: dict[Docid, ParsedMessage]) -> Iterator[Finding]:
        chunk = list(parsed)
        counts = f"SELECT id, sz FROM message_text_docsize WHERE id IN ({marks(chunk)})"
        expected, found = (
            {docid: size for docid, size in connection.execute(counts, chunk)}
            for connection in (self._memory, self._sql)
        )
        for docid, message in parsed.items():
            # One that has none at all is told of elsewhere.
            if docid in found and (
                found[docid] != expected[docid] or not self._has_words(docid, message)
            ):
                yield note(f"message {docid}", _OTHER_WORDS, Kind.WORDS, docid)

    def _has_words(self, docid: Docid, message: ParsedMessage) -> bool:
        return all(
            self._sql.execute(
                "SELECT 1 FROM message_text WHERE message_text MATCH ? AND rowid = ?",
                (f'{column}:"{word}"', docid),
            ).fetchone()
            for column, text in (("subject", message.subject), ("body", message.body))
            for word in _some_words(text)
        )

    def _check_all_words(self) -> Iterator[Finding]:
        found: dict[int, int] = {}
        # A table of this connection alone; nothing is written to the index.
        self._sql.execute("PRAGMA query_only = OFF")
        try:
            self._sql.execute(_VOCABULARY)
            _add_words(self._sql, found)
            self._sql.execute("DROP TABLE temp.word")
        finally:
            self._sql.execute("PRAGMA query_only = ON")
        for docid, words in sorted(self._expected.items()):
            if docid in found and found[docid] != words:
                yield note(f"message {docid}", _OTHER_WORDS, Kind.WORDS, docid)


def _some_words(text: str) -> list[str]:
    """A few words, from all over a text, of which it is plain that the search index has them."""
    every = max(len(text) // _WORDS_ASKED, 1)
    found = (_PLAIN_WORD.search(text, start) for start in range(0, len(text), every))
    return [match[0].strip() for match in found if match]


def _add_words(connection: apsw.Connection, sums: dict[int, int]) -> None:
    """A number for all words of each message with their places; good for comparing within this process."""
    rows: Iterable[Row] = connection.execute("SELECT doc, term, col, offset FROM temp.word")
    for docid, term, column, offset in rows:
        sums[docid] = sums.get(docid, 0) + hash((term, column, offset))


def location_or_none(connection: apsw.Connection, docid: Docid) -> Location | None:
    """Where the bytes lie that a client reads; None where the index does not know."""
    row = connection.execute(
        "SELECT pack, offset, stored, raw FROM message_blob JOIN blob USING (blob_id) "
        "WHERE docid = ? ORDER BY blob_id LIMIT 1",
        (docid,),
    ).fetchone()
    return None if row is None else Location(*row)


def parse_record_at(packs: PackReader, location: Location) -> ParsedMessage:
    """What is known of the message in a record. Raises Corrupt, StoreError."""
    pieces = islice(packs.raw_pieces(location), PARSED_BYTES // FRAME_BYTES)
    return parse_start(b"".join(pieces), location.raw)
