"""mbox files: where each message lies in the file, and what its bytes are.

Owns the grammar of From_ lines, the splitting, the quoting and the status fields; knows nothing of
folders. Invariant: the ranges of a file are in order and never overlap, and each begins with a strict
From_ line. Between them lie at most single blank lines, before the first only what is told as Junk.

mbox has no one definition (RFC 4155 only names a type); the dialects are those of qmail's mbox(5). What no
reader can know: whether a blank line at the end of a file ends the file or belongs to the message. Here,
as for messages in the middle, one blank line is the file's.
"""

import errno
import mmap
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import NamedTuple

from mailfs.errors import BadKeyword
from mailfs.ids import Keyword
from mailfs.message.keywords import (
    ANSWERED,
    DELETED,
    DRAFT,
    FLAGGED,
    RECENT,
    SEEN,
    parse_keyword,
    split_keywords,
)


class Quoting(Enum):
    """What a reader takes away from lines that begin with `>From `."""

    NONE = "mboxcl2"
    ONE = "mboxo"  # the sign of `>From `, but not of `>>From `
    EVERY = "mboxrd"  # one sign of any number of them


class Dialect(NamedTuple):
    """How to read a file. `by_length`: a believable Content-Length ends a message, which is then unquoted."""

    by_length: bool
    quoting: Quoting


# A writer of mboxcl2 counts what it stores; a body that was quoted after its length was counted no longer
# fits, so a length that fits also says that there is nothing to unquote.
ANY = Dialect(by_length=True, quoting=Quoting.EVERY)
MBOXO = Dialect(by_length=False, quoting=Quoting.ONE)
MBOXRD = Dialect(by_length=False, quoting=Quoting.EVERY)
MBOXCL2 = Dialect(by_length=True, quoting=Quoting.NONE)


class MboxRange(NamedTuple):
    """Bytes [start, end) of one message: its From_ line is in, the blank line that separates is not."""

    start: int
    end: int
    quoting: Quoting


class Junk(NamedTuple):
    """This many bytes before the first From_ line, not all of them blank."""

    size_bytes: int


class MboxMessage(NamedTuple):
    """A message as a Maildir would hold it. `received_ns` is the date of its From_ line, UTC."""

    raw: bytes
    flags: int
    keywords: tuple[Keyword, ...]
    received_ns: int | None


# A longer line is no From_ line: addresses end at 254 characters (RFC 5321), the rest is a date.
MAX_FROM_LINE_BYTES = 1024
# Status fields are looked for in this much of a header.
_MAX_HEADER_BYTES = 1 << 20
_MAX_KEYWORDS = 100
# So much is searched between two looks at the file's size, and between two chances for Ctrl-C.
_WINDOW_BYTES = 16 << 20
_FROM = b"From "
_NEWLINE = ord("\n")

_MONTHS = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_MONTH = rb"(?P<month>" + b"|".join(_MONTHS) + rb")"
_WEEKDAY = rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),?\s+"
_CLOCK = rb"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2}))?"
_YEAR = rb"(?P<year>\d{4}|\d{2})"
_SENDER = rb"From (?:.*?[ \t])?"
_END = rb"(?:\s+remote from \S+)?\s*"
_ZONE_WORD = rb"(?:[+-]\d{4}|[A-Z]{1,5})"
# `Mon Jan  1 00:00:00 2001`, a zone before or after the year, at times of two words (`MET DST`).
_ASCTIME_LINE = re.compile(
    _SENDER + _WEEKDAY + _MONTH + rb"\s+(?P<day>\d{1,2})\s+" + _CLOCK
    + rb"(?:\s+(?P<zone>" + _ZONE_WORD + rb")(?:\s+" + _ZONE_WORD + rb")?)?\s+" + _YEAR
    + rb"(?:\s+(?P<late_zone>" + _ZONE_WORD + rb")(?:\s+" + _ZONE_WORD + rb")?)?" + _END
)  # fmt: skip
# `Mon, 1 Jan 2001 00:00:00 -0500 (EST)`, as Pipermail writes it for some lists.
_RFC822_LINE = re.compile(
    _SENDER + rb"(?:" + _WEEKDAY + rb")?(?P<day>\d{1,2})\s+" + _MONTH + rb"\s+" + _YEAR + rb"\s+" + _CLOCK
    + rb"(?:\s+(?P<zone>" + _ZONE_WORD + rb"))?(?P<late_zone>)(?:\s+\([^()]*\))?" + _END
)  # fmt: skip

_CANDIDATE = re.compile(rb"\n\r?\nFrom ")
# One byte less than the longest candidate: what the next window must see again.
_OVERLAP_BYTES = 7
_LINE_ENDS = re.compile(rb"[\r\n]*")
_NOT_BLANK = re.compile(rb"\S")
_HEADER_END = re.compile(rb"\n\r?\n")
_CONTENT_LENGTH = re.compile(rb"\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r?\n", re.IGNORECASE)
_SEPARATOR = re.compile(rb"(?:\r?\n)?")
_BEHIND_END = re.compile(rb"(?:\r?\n){0,2}(?:From |\Z)")
_QUOTED = {
    Quoting.ONE: re.compile(rb"^>(?=From )", re.MULTILINE),
    Quoting.EVERY: re.compile(rb"^>(?=>*From )", re.MULTILINE),
}
# Possessive, because a megabyte of blanks could be divided between the two runs in a million ways.
_STATUS = re.compile(rb"^(?:x-)?status:[ \t]*+([A-Z]*+)[ \t]*+\r?$", re.MULTILINE | re.IGNORECASE)
_X_KEYWORDS = re.compile(
    rb"^x-keywords:([^\r\n]*(?:\r?\n[ \t][^\r\n]*)*)", re.MULTILINE | re.IGNORECASE
)
# `R`ead, `O`ld, `A`nswered, `F`lagged, draf`T`, `D`eleted; N and U (new, unread) say nothing more. A value
# with other letters is some other program's field of that name.
_STATUS_LETTERS = frozenset(b"ROAFTDNU")
_BIT_OF_STATUS = {
    ord("R"): SEEN,
    ord("A"): ANSWERED,
    ord("F"): FLAGGED,
    ord("T"): DRAFT,
    ord("D"): DELETED,
}

# RFC 5322 section 4.3; every other word there is read as UTC, as it asks.
_ZONE_HOURS = {b"EST": -5, b"EDT": -4, b"CST": -6, b"CDT": -5}
_ZONE_HOURS |= {b"MST": -7, b"MDT": -6, b"PST": -8, b"PDT": -7}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _match_from_line(line: bytes) -> re.Match[bytes] | None:
    if not line.startswith(_FROM):
        return None
    return _ASCTIME_LINE.fullmatch(line) or _RFC822_LINE.fullmatch(line)


def is_from_line(line: bytes) -> bool:
    """Whether a line (with or without its end) is `From `, something, and a date at the end.

    Dates: asctime(3) with or without seconds, with a zone on either side of the year; RFC 5322's order;
    years of two digits; UUCP's `remote from host` behind it.
    """
    return len(line) <= MAX_FROM_LINE_BYTES and _match_from_line(line) is not None


def starts_mbox(head: bytes) -> bool:
    """Whether a file whose first MAX_FROM_LINE_BYTES are `head` is an mbox: its first line is a From_ line.

    Blank lines before it are allowed.
    """
    line, newline, _ = head.lstrip(b"\r\n").partition(b"\n")
    return (bool(newline) or len(head) < MAX_FROM_LINE_BYTES) and is_from_line(line)


def from_line_date_ns(line: bytes) -> int | None:
    """The date of a From_ line in ns since 1970; no zone is UTC. None where there is no such day or time.

    None too before 1970 and after 2262, where 64 bits of nanoseconds end.
    """
    match = _match_from_line(line)
    if match is None:
        return None
    year = int(match["year"])
    if len(match["year"]) == 2:
        year += 2000 if year < 70 else 1900
    # A leap second (60) is no time that datetime knows.
    second = min(int(match["second"] or 0), 59)
    try:
        local = datetime(
            year, _MONTHS.index(match["month"]) + 1, int(match["day"]),
            int(match["hour"]), int(match["minute"]), second, tzinfo=UTC,
        )  # fmt: skip
        age = local - _EPOCH - _zone_offset(match["zone"] or match["late_zone"] or b"")
    except (ValueError, OverflowError):
        return None
    received_ns = (age.days * 86_400 + age.seconds) * 1_000_000_000
    return received_ns if 0 <= received_ns < 1 << 63 else None


def _zone_offset(zone: bytes) -> timedelta:
    if zone[:1] in (b"+", b"-"):
        minutes = int(zone[1:3]) * 60 + int(zone[3:5])
        return timedelta(minutes=-minutes if zone[:1] == b"-" else minutes)
    return timedelta(hours=_ZONE_HOURS.get(zone, 0))


# An mbox that a mail program shortens while it is scanned can kill us where it is mapped (SIGBUS). Those in use,
# /var/mail's, are below this; what is larger is an archive.
WHOLE_BYTES = 64 << 20


def iter_ranges(fd: int, dialect: Dialect) -> Iterator[MboxRange | Junk]:
    """Every message of an open regular file, in order; junk before the first is told once.

    A From_ line counts only at the file's start, behind a blank line, or where a Content-Length says so.
    Some hundred MB/s. A file up to WHOLE_BYTES is read into memory, a larger one is mapped. Raises OSError,
    also (ESTALE) where the file grows shorter meanwhile.
    """
    size = os.fstat(fd).st_size
    if size == 0:
        return
    if size <= WHOLE_BYTES:
        whole = os.pread(fd, size, 0)
        if len(whole) < size:
            raise _changed()
        yield from _Scanner(fd, whole, dialect).ranges()
        return
    try:
        data = mmap.mmap(fd, size, prot=mmap.PROT_READ)
    except ValueError as error:  # shorter than it was a moment ago
        raise _changed() from error
    with data:
        yield from _Scanner(fd, data, dialect).ranges()


def _changed() -> OSError:
    return OSError(errno.ESTALE, "the file was changed while it was read")


class _Scanner:
    """One pass over a file in memory, read or mapped."""

    def __init__(self, fd: int, data: bytes | mmap.mmap, dialect: Dialect) -> None:
        self._fd = fd
        self._data = data
        self._size = len(data)
        self._dialect = dialect

    def ranges(self) -> Iterator[MboxRange | Junk]:
        self._check_size()
        blank = _LINE_ENDS.match(self._data)
        start = blank.end() if blank else 0
        if not self._is_from_line(start):
            start = self._next_from(0)
            if _NOT_BLANK.search(self._data, 0, start):
                yield Junk(start)
        while start < self._size:
            self._check_size()
            by_length = self._end_by_length(start) if self._dialect.by_length else None
            if by_length is None:
                following = self._next_from(start)
                yield MboxRange(start, self._without_blank_line(following), self._dialect.quoting)
            else:
                end, following = by_length
                yield MboxRange(start, end, Quoting.NONE)
            start = following

    def _check_size(self) -> None:
        # Reading a mapped page that the file no longer has would kill the process (SIGBUS). A look before
        # every window keeps the time in which that can happen to milliseconds.
        if os.fstat(self._fd).st_size < self._size:
            raise _changed()

    def _is_from_line(self, at: int) -> bool:
        line = self._data[at : at + MAX_FROM_LINE_BYTES]
        end = line.find(b"\n")
        if end < 0 and at + len(line) < self._size:
            return False
        return is_from_line(line if end < 0 else line[:end])

    def _next_from(self, position: int) -> int:
        """Where the next From_ line behind a blank line begins, or the file ends."""
        while True:
            self._check_size()
            stop = min(position + _WINDOW_BYTES, self._size)
            for match in _CANDIDATE.finditer(self._data, position, stop):
                at = match.end() - len(_FROM)
                if self._is_from_line(at):
                    return at
            if stop == self._size:
                return self._size
            position = stop - _OVERLAP_BYTES

    def _without_blank_line(self, end: int) -> int:
        tail = self._data[max(end - 3, 0) : end]
        if tail.endswith(b"\n\r\n"):
            return end - 2
        return end - 1 if tail.endswith(b"\n\n") else end

    def _end_by_length(self, start: int) -> tuple[int, int] | None:
        """(end, start of the next message) by Content-Length; None where it is not to be believed."""
        header_end = _HEADER_END.search(self._data, start, start + _MAX_HEADER_BYTES)
        if header_end is None:
            return None
        length = _CONTENT_LENGTH.search(self._data, start, header_end.end())
        if length is None:
            return None
        end = header_end.end() + int(length[1])
        following = self._start_behind(end) if end <= self._size else None
        return None if following is None else (end, following)

    def _start_behind(self, end: int) -> int | None:
        """Where the next message begins, if a body may end here: at a From_ line or the file's end.

        One line end may stand between.
        """
        separator = _SEPARATOR.match(self._data, end)
        following = separator.end() if separator else end
        if following == self._size:
            # Mail that came with a Content-Length which leaves out its last line end would lose it.
            torn = following > end and self._data[end - 1] != _NEWLINE
            return None if torn and self._dialect.quoting is not Quoting.NONE else following
        at_line_start = self._data[following - 1] == _NEWLINE
        return following if at_line_start and self._is_from_line(following) else None


def read_range(fd: int, place: MboxRange) -> MboxMessage:
    """The message in this range of an open file.

    Raises OSError; ESTALE where the file no longer has a message from `start` to `end`, because somebody
    rewrote it since the range was found. What is appended behind is not in the way.
    """
    wanted = place.end - place.start
    # Two line ends and `From ` are the most that is looked at behind the message.
    with open(fd, "rb", closefd=False) as file:
        file.seek(place.start)
        block = file.read(wanted + 9)
    behind = block[wanted:]
    block = block[:wanted]
    line, _, raw = block.partition(b"\n")
    if len(block) < wanted or not is_from_line(line) or not _BEHIND_END.match(behind):
        raise _changed()
    raw = unquote(raw, place.quoting)
    flags, keywords = status_of(raw)
    return MboxMessage(raw, flags, keywords, from_line_date_ns(line))


def unquote(raw: bytes, quoting: Quoting) -> bytes:
    """The message as it was before `From ` was quoted at the beginning of its lines (qmail's mbox(5))."""
    if quoting is Quoting.NONE or b">From " not in raw:
        return raw
    return _QUOTED[quoting].sub(b"", raw)


def status_of(raw: bytes) -> tuple[int, tuple[Keyword, ...]]:
    """What Status, X-Status and X-Keywords say; RECENT where no Status has `O` or `R`.

    The fields stay in the message. Cost: one pass over the header, of 1 MiB at most.
    """
    header_end = _HEADER_END.search(raw, 0, _MAX_HEADER_BYTES)
    header = raw[: header_end.start() + 1 if header_end else _MAX_HEADER_BYTES]
    letters = b""
    for match in _STATUS.finditer(header):
        if _STATUS_LETTERS.issuperset(match[1]):
            letters += match[1]
    flags = 0 if b"R" in letters or b"O" in letters else RECENT
    for letter in letters:
        flags |= _BIT_OF_STATUS.get(letter, 0)
    bits, keywords = split_keywords(_listed_keywords(header))
    return flags | bits, tuple(sorted(keywords))


def _listed_keywords(header: bytes) -> Iterator[Keyword]:
    match = _X_KEYWORDS.search(header)
    if match is None:
        return
    for word in match[1].replace(b",", b" ").split()[:_MAX_KEYWORDS]:
        try:
            yield parse_keyword(word.decode("utf-8", "replace"))
        except BadKeyword:
            continue
