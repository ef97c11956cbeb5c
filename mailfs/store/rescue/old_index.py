"""What can still be read of an index, put into a new one: a damaged table loses only the rows on its damaged pages.

Rows of lost leaves are told by their shape. What is there twice (a table, and an index that holds all its columns) is
taken from the other tree when the first is damaged; what only indexes know of a lost message is put together again.
"""

import functools
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from mailfs.ids import Docid
from mailfs.store.rescue.btree import Cell, Trees, Value
from mailfs.store.schema import TABLES

Row = tuple[Value, ...]

_TYPES: dict[str, type] = {"INTEGER": int, "TEXT": str, "BLOB": bytes, "": object}
_COPIED = (
    "state",
    "message",
    "blob",
    "message_blob",
    "pack",
    "dead_pack",
    "dictionary",
    "keyword",
    "message_keyword",
    "reference",
    "search",
    "entry",
    "journal",
    "journal_change",
    "journal_event",
    "sqlite_sequence",
)
# Indexes that hold whole rows of two columns, in the other order.
_SECOND_COPIES = {
    "keyword": "sqlite_autoindex_keyword_1",
    "message_keyword": "message_keyword_docid",
    "message_blob": "message_blob_blob",
    "reference": "reference_thread",
}
# Rows of these look like those of others, and so do their leaves.
_AMBIGUOUS = {
    "state",
    "pack",
    "dead_pack",
    "message_keyword",
    "message_blob",
    "reference",
    "sqlite_sequence",
}
_SCHEMA_ROOT = 1
_BATCH_ROWS = 10_000


class _Column(NamedTuple):
    type: type
    is_rowid: bool
    default: Value


class _Shape(NamedTuple):
    """What a row of a table looks like: its columns as declared, and where each stands in a record."""

    columns: tuple[_Column, ...]
    places: tuple[int, ...]
    is_table: bool  # not WITHOUT ROWID

    def row_or_none(self, cell: Cell) -> Row | None:
        """The row in a cell; None where it is no row of this table."""
        if len(cell.values) > len(self.columns):
            return None
        row = []
        for column, place in zip(self.columns, self.places, strict=True):
            value = cell.values[place] if place < len(cell.values) else column.default
            if column.is_rowid and value is None:
                value = cell.rowid
            if not isinstance(value, column.type):
                return None
            row.append(value)
        return tuple(row)


class OldIndex:
    """An index of any format, as far as it can be read. Nothing of it is changed. close() it.

    `problems`: what could not be read, in words. `damaged`: the tables of which rows may be missing or wrong; all of them
    where there is no index. `doubtful`: keys of rows that were read from a page that does not match its checksum, by table.
    `incomplete`: messages of which only indexes tell; what these do not know is 0.
    """

    def __init__(self, path: Path) -> None:
        """Raises StoreError when the file cannot be read."""
        self._trees = Trees(path)
        self.problems: list[str] = []
        self.damaged: set[str] = set()
        self.doubtful: dict[str, set[Value]] = {}
        self.incomplete: set[Docid] = set()
        # The schema cannot be read, so it is not known which tree is which.
        self._is_guessing = False
        self._roots = self._find_roots()

    def close(self) -> None:
        self._trees.close()

    def _find_roots(self) -> dict[str, int]:
        """The root pages by name. A table the schema does not name lies where it does in a new index."""
        problems: list[str] = []
        found = {
            str(cell.values[1]): int(cell.values[3])
            for cell in self._trees.cells(_SCHEMA_ROOT, problems)
            if len(cell.values) == 5 and isinstance(cell.values[3], int) and cell.values[3]
        }
        if self._trees.is_empty:
            self.problems.append("there is no old index")
            self.damaged.update(_COPIED)
            return {}
        self._note("the schema", problems)
        if problems or "message" not in found:
            self.damaged.update(_COPIED)
            self._is_guessing = True
            taken = set(found.values())
            found = {name: root for name, root in _new_roots().items() if root not in taken} | found
        return found

    def _note(self, where: str, problems: Iterable[str]) -> None:
        self.problems += [f"the old index, {where}: {problem}" for problem in problems]

    # --- tables

    def copy_into(self, new: apsw.Connection) -> None:
        """Insert all rows that can be read into the tables of an index that has none, within a transaction."""
        if self._trees.is_empty:
            return
        for table in _COPIED:
            self._copy(new, table)
        if self.problems:
            for table, rows in self._lost_rows().items():
                _insert(new, table, rows)
        if self.damaged & {"message", "blob"}:
            self._complete(new)

    def _copy(self, new: apsw.Connection, table: str) -> None:
        if self._is_guessing and table in _AMBIGUOUS:
            self._copy_if_sure(new, table)
            return
        problems: list[str] = []
        _insert(new, table, self._rows(table, table, problems))
        if not problems:
            return
        self._note(f"table {table}", problems)
        self.damaged.add(table)
        if table in _SECOND_COPIES:
            problems_of_second: list[str] = []
            rows = self._second_rows(table, problems_of_second)
            if rows and not problems_of_second:
                new.execute(f"DELETE FROM {table}")
                self.damaged.discard(table)
                self.doubtful.pop(table, None)
            _insert(new, table, rows)

    def _copy_if_sure(self, new: apsw.Connection, table: str) -> None:
        """Both copies say the same: then they are what they were taken for."""
        if table in _SECOND_COPIES:
            rows = self._second_rows(table, [])
            if set(rows) == set(self._rows(table, table, [])):
                _insert(new, table, rows)

    def _second_rows(self, table: str, problems: list[str]) -> list[Row]:
        return [row[::-1] for row in self._rows(_SECOND_COPIES[table], table, problems)]

    def _rows(self, tree: str, table: str, problems: list[str]) -> Iterator[Row]:
        """The rows of a table in one of its trees."""
        shape = _shapes()[table]
        if tree != table:
            shape = shape._replace(
                columns=tuple(column._replace(is_rowid=False) for column in shape.columns[::-1]),
                places=(0, 1),
            )
        for cell in self._trees.cells(self._roots[tree], problems) if tree in self._roots else ():
            row = shape.row_or_none(cell)
            if row is None:
                problems.append("a row has another shape")
                continue
            if cell.is_doubtful:
                self.doubtful.setdefault(table, set()).add(row[0])
            yield row

    def _lost_rows(self) -> dict[str, list[Row]]:
        """Rows of leaves no tree leads to. They may have been changed since: what is known already is better."""
        found: dict[str, list[Row]] = {}
        shapes = {
            table: shape
            for table, shape in _shapes().items()
            if table in self.damaged and table not in _AMBIGUOUS
        }
        for is_table, cells in self._trees.lost_leaves():
            for cell in cells:
                for table, shape in shapes.items():
                    row = shape.row_or_none(cell) if shape.is_table == is_table else None
                    if row is not None:
                        self.doubtful.setdefault(table, set()).add(row[0])
                        found.setdefault(table, []).append(row)
        return found

    def envelopes(self, docids: set[Docid]) -> Iterator[Row]:
        """The rows of `envelope` of these messages."""
        problems: list[str] = []
        for row in self._rows("envelope", "envelope", problems):
            if row[0] in docids:
                yield row

    # --- messages whose row is lost

    def _complete(self, new: apsw.Connection) -> None:
        """Put rows together of what indexes know: where a blob lies, what became of a message."""
        places = self._index_rows("blob_place", 3)
        _insert(
            new, "blob", ((blob_id, b"", pack, offset, 0, 0) for pack, offset, blob_id in places)
        )
        missing = {
            int(docid): size
            for docid, size in new.execute(
                "SELECT docid, max(raw) FROM message_blob LEFT JOIN blob USING (blob_id) "
                "WHERE docid NOT IN (SELECT docid FROM message) GROUP BY docid"
            )
        }
        known = {
            name: {docid: value for value, docid in self._index_rows(name, 2) if docid in missing}
            for name in ("message_modseq", "message_thread", "message_date", "message_expunged")
        }
        flags: dict[int, int] = {}
        flags.update(
            (docid, after)
            for docid, after in new.execute(
                "SELECT docid, flags_after FROM journal_change ORDER BY modseq"
            )
            if docid in missing
        )
        for docid, size in missing.items():
            modseq, thread, date, expunged = (known[name].get(docid, 0) for name in known)
            # In the order of the columns.
            row = (docid, modseq, flags.get(docid, 0), expunged, size or 0, 0, 0, date, thread)
            _insert(new, "message", [row])
            self.incomplete.add(Docid(docid))

    def _index_rows(self, name: str, columns: int) -> Iterator[tuple[int, ...]]:
        """The rows of an index of numbers."""
        problems: list[str] = []
        for cell in self._trees.cells(self._roots[name], problems) if name in self._roots else ():
            numbers = tuple(value for value in cell.values if isinstance(value, int))
            if len(numbers) == columns == len(cell.values):
                yield numbers


def _insert(new: apsw.Connection, table: str, rows: Iterable[Row]) -> None:
    """Insert rows; those whose key is there already are left out."""
    if table == "sqlite_sequence":
        for name, seq in rows:
            raise_sequence(new, str(name), seq if isinstance(seq, int) else 0)
        return
    marks = ",".join("?" * len(_shapes()[table].columns))
    iterator = iter(rows)
    while batch := list(islice(iterator, _BATCH_ROWS)):
        new.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", batch)


def raise_sequence(new: apsw.Connection, table: str, last: int) -> None:
    """Say that a table has given out this number, so that no number is given twice."""
    new.execute("UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?", (last, table))
    if not new.changes():
        new.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (table, last))


@functools.cache
def _shapes() -> dict[str, _Shape]:
    """The tables as schema.py has them."""
    with closing(_empty_index()) as connection:
        tables = [
            (str(name), not without_rowid)
            for _, name, kind, _, without_rowid, _ in connection.execute("PRAGMA table_list")
            if kind == "table" and name in (*_COPIED, "envelope")
        ]
        return {name: _shape(connection, name, is_table) for name, is_table in tables}


def _shape(connection: apsw.Connection, table: str, is_table: bool) -> _Shape:
    rows: list[Any] = connection.execute(f"PRAGMA table_info({table})").fetchall()
    columns = tuple(
        _Column(_TYPES[kind], bool(is_table and key), None if default is None else int(default))
        for _, _, kind, _, default, key in rows
    )
    order = list(range(len(rows)))
    if not is_table:
        # The columns of the key come first.
        order.sort(key=lambda number: rows[number][5] or len(rows) + number)
    return _Shape(columns, tuple(order.index(number) for number in range(len(rows))), is_table)


@functools.cache
def _new_roots() -> dict[str, int]:
    with closing(_empty_index()) as connection:
        rows: list[Any] = connection.execute("SELECT name, rootpage FROM sqlite_schema").fetchall()
        return {name: root for name, root in rows if root}


def _empty_index() -> apsw.Connection:
    connection = apsw.Connection(":memory:")
    for statements in TABLES:
        connection.execute(statements)
    return connection
