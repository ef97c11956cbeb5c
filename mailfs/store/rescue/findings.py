"""What a verify says: one line for each thing that is not as it should be, and what a repair needs to know of it."""

from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """PROBLEM: a promise is broken. LOST: it was, and a repair has done what could be done. NOTE: nothing is broken."""

    PROBLEM = "problem"
    LOST = "lost"
    NOTE = "note"


class Kind(Enum):
    """What is concerned, and so what mends it. The comments say what `number`, `place` and `mend` of a finding are."""

    FORMAT = "format"  # the file `format`
    FORMAT_COPY = "format-copy"
    CONFIG = "config"
    MODE = "mode"  # mend: the path within the store
    FILE = "file"  # a file of another type than it should be, or one that nobody knows
    DUMP = "dump"  # STORE/dump
    WAL = "wal"
    INDEX = "index"  # the index itself, whatever is in its rows
    ROWS = "rows"  # mend: SQL that puts it right, with `number` for its parameter
    ENVELOPE = (
        "envelope"  # number: docid; what the index says of a message is not what its bytes say
    )
    WORDS = "words"  # number: docid
    THREAD = "thread"  # number: docid
    SEARCH = "search"  # a query that cannot be parsed
    BYTES = "bytes"  # number: docid of a message whose bytes the index does not know
    BLOB = "blob"  # number: blob_id; the record cannot be read, or is not what the index says
    BLOB_PLACE = "blob-place"  # number: blob_id; it lies where its pack has no acknowledged record
    ORPHAN = "orphan"  # number: pack, place: offset of a whole message that no row knows
    UNOWNED = "unowned"  # number: blob_id of a blob of no message
    GAP = "gap"  # number: pack, place: offset; bytes that are no record and of no message
    RECORD = "record"  # number: pack, place: offset; a damaged record that is of no message
    PACK_HEAD = "pack-head"  # number: pack
    PACK_SIZE = "pack-size"  # number: pack; the index knows another end
    PACK_TAIL = "pack-tail"  # number: pack, place: where what was never promised begins
    PACK_FILE = "pack-file"  # number: pack; missing, or not to be read
    SEAL = "seal"  # number: pack; the footer, or whether there is one
    DICTIONARY = "dictionary"  # number: dictionary_id; the row of the index
    PACK_DICTIONARY = "pack-dictionary"  # number: pack
    DEAD_PACK = "dead-pack"  # number: pack


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, and where. `kind` and the fields behind it are for programs and for the repair."""

    severity: Severity
    where: str
    what: str
    kind: Kind
    number: int = 0
    place: int = 0
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.severity.value}: {self.where}: {self.what}"


@dataclass(frozen=True, slots=True)
class Step:
    """How far a verify is, in bytes of packs."""

    done: int
    total: int


def problem(where: str, what: object, kind: Kind, number: int = 0, place: int = 0) -> Finding:
    """A promise is broken."""
    return Finding(Severity.PROBLEM, where, one_line(what), kind, number, place)


def note(where: str, what: object, kind: Kind, number: int = 0, place: int = 0) -> Finding:
    """Something a person may want to know."""
    return Finding(Severity.NOTE, where, one_line(what), kind, number, place)


def one_line(what: object) -> str:
    """The words of a message on one line."""
    return " ".join(str(what).split())
