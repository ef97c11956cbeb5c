"""What search.match asks about a handful of messages, answered by the index."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

from mailfs.ids import Docid, Keyword, ThreadId
from mailfs.search.match import MessageFacts
from mailfs.search.plan import Plan
from mailfs.store.database import Row

# Below SQLite's 32,766 parameters, and few enough that a statement is compiled once and found again.
# FTS5 begins its search anew for each rowid that is named: 26 us, and as much for every few words. A range is one search.
_FEW = 100
_FEW_CHARS = 20_000
_CHUNK = 500


class Rows(Protocol):
    """A connection to the index: the reader's, or the one of a write transaction."""

    def rows(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        """All rows of a statement."""
        ...


def chunks(docids: Sequence[Docid]) -> Iterator[Sequence[Docid]]:
    """Few enough docids at a time for the parameters of one statement."""
    for start in range(0, len(docids), _CHUNK):
        yield docids[start : start + _CHUNK]


def marks(chunk: Sequence[Docid]) -> str:
    """A question mark for each."""
    return ",".join("?" * len(chunk))


class IndexSource:
    """The answers search.match needs, for a handful of docids at a time."""

    def __init__(self, index: Rows) -> None:
        self._index = index

    def _hits(
        self, docids: AbstractSet[Docid], condition: str, parameters: Iterable[object]
    ) -> set[Docid]:
        hits: set[Docid] = set()
        parameters = tuple(parameters)
        for chunk in chunks(list(docids)):
            rows = self._index.rows(
                condition.replace("{docids}", marks(chunk)), (*parameters, *chunk)
            )
            hits.update(Docid(row[0]) for row in rows)
        return hits

    def facts(self, docids: AbstractSet[Docid]) -> Mapping[Docid, MessageFacts]:
        found: dict[Docid, MessageFacts] = {}
        for chunk in chunks(list(docids)):
            for docid, flags, size, received_ns, date, thread in self._index.rows(
                "SELECT docid, flags, size, received_ns, date, thread FROM message "
                f"WHERE docid IN ({marks(chunk)})",
                chunk,
            ):
                found[Docid(docid)] = MessageFacts(flags, size, received_ns, date, ThreadId(thread))
        return found

    def text_hits(self, expression: str, docids: AbstractSet[Docid]) -> set[Docid]:
        if len(docids) > _FEW or len(docids) * len(expression) > _FEW_CHARS:
            rows = self._index.rows(
                "SELECT rowid FROM message_text WHERE message_text MATCH ? AND rowid BETWEEN ? AND ?",
                (expression, min(docids), max(docids)),
            )
            return {Docid(row[0]) for row in rows} & docids
        return self._hits(
            docids,
            "SELECT rowid FROM message_text WHERE message_text MATCH ? AND rowid IN ({docids})",
            (expression,),
        )

    def keyword_hits(self, keyword: Keyword, docids: AbstractSet[Docid]) -> set[Docid]:
        return self._hits(
            docids,
            "SELECT docid FROM message_keyword WHERE keyword_id = "
            "(SELECT keyword_id FROM keyword WHERE name = ?) AND docid IN ({docids})",
            (keyword,),
        )

    def any_keyword_hits(self, docids: AbstractSet[Docid]) -> set[Docid]:
        return self._hits(
            docids, "SELECT DISTINCT docid FROM message_keyword WHERE docid IN ({docids})", ()
        )

    def message_id_hits(self, message_id: str, docids: AbstractSet[Docid]) -> set[Docid]:
        return self._hits(
            docids,
            "SELECT docid FROM envelope WHERE message_id = ? AND docid IN ({docids})",
            (message_id,),
        )

    def thread_hits(self, plan: Plan, docids: AbstractSet[Docid]) -> set[Docid]:
        return self._hits(
            docids,
            "SELECT docid FROM message WHERE thread IN "
            f"(SELECT thread FROM message WHERE expunged = 0 AND ({plan.where})) "
            "AND docid IN ({docids})",
            plan.parameters,
        )


class PrefetchedSource(IndexSource):
    """The same for docids known beforehand, whose facts and keywords are read once for all who ask."""

    def __init__(self, index: Rows, docids: AbstractSet[Docid]) -> None:
        super().__init__(index)
        self._facts = super().facts(docids)
        self._docids_of: dict[Keyword, set[Docid]] = {}
        for chunk in chunks(list(docids)):
            for docid, name in index.rows(
                "SELECT docid, name FROM message_keyword JOIN keyword USING (keyword_id) "
                f"WHERE docid IN ({marks(chunk)})",
                chunk,
            ):
                self._docids_of.setdefault(Keyword(name), set()).add(Docid(docid))

    @property
    def keywords(self) -> AbstractSet[Keyword]:
        """The user's own keywords that any of the messages has."""
        return self._docids_of.keys()

    def facts(self, docids: AbstractSet[Docid]) -> Mapping[Docid, MessageFacts]:
        return {docid: self._facts[docid] for docid in docids if docid in self._facts}

    def keyword_hits(self, keyword: Keyword, docids: AbstractSet[Docid]) -> set[Docid]:
        return self._docids_of.get(keyword, set()) & docids

    def any_keyword_hits(self, docids: AbstractSet[Docid]) -> set[Docid]:
        return set().union(*self._docids_of.values()) & docids
