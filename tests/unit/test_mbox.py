"""mbox: From_ lines, splitting, quoting, status fields."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryFile
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailfs.ingest import mbox
from mailfs.ingest.mbox import (
    ANY,
    MBOXCL2,
    MBOXO,
    MBOXRD,
    Dialect,
    Junk,
    MboxMessage,
    MboxRange,
    Quoting,
    from_line_date_ns,
    is_from_line,
    iter_ranges,
    read_range,
    starts_mbox,
    status_of,
    unquote,
)
from mailfs.message.keywords import ANSWERED, DELETED, DRAFT, FLAGGED, FORWARDED, RECENT, SEEN

FROM = b"From a@example.org Mon Jan  1 00:00:00 2001\n"


@pytest.fixture(autouse=True, scope="module", params=[0, mbox.WHOLE_BYTES], ids=["mapped", "read"])
def _way_of_reading(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test both ways: small files are read, large ones mapped."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(mbox, "WHOLE_BYTES", request.param)
        yield


@contextmanager
def opened(content: bytes) -> Iterator[int]:
    with TemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file.fileno()


def ranges_of(content: bytes, dialect: Dialect = ANY) -> list[MboxRange | Junk]:
    with opened(content) as fd:
        return list(iter_ranges(fd, dialect))


def messages_of(content: bytes, dialect: Dialect = ANY) -> list[MboxMessage]:
    with opened(content) as fd:
        found = list(iter_ranges(fd, dialect))
        return [read_range(fd, place) for place in found if isinstance(place, MboxRange)]


def raws_of(content: bytes, dialect: Dialect = ANY) -> list[bytes]:
    return [message.raw for message in messages_of(content, dialect)]


def epoch_ns(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * 1_000_000_000


@pytest.mark.parametrize(
    ("line", "date"),
    [
        (b"From a@b Mon Jan  1 00:00:00 2001", "2001-01-01T00:00:00+00:00"),
        (b"From a@b  Thu Dec 11 05:57:05 2003\r\n", "2003-12-11T05:57:05+00:00"),
        (b"From user at host.com  Mon May 10 10:44:39 2010", "2010-05-10T10:44:39+00:00"),
        (b"From - Tue Feb 29 07:01:02 2000", "2000-02-29T07:01:02+00:00"),
        (b"From Mon Jan  1 00:00:00 2001", "2001-01-01T00:00:00+00:00"),
        (b"From a@b Mon Jan  1 12:34 2001", "2001-01-01T12:34:00+00:00"),
        (b"From a@b Mon Jan  1 12:34:56 97", "1997-01-01T12:34:56+00:00"),
        (b"From a@b Mon Jan  1 12:34:56 EST 2001", "2001-01-01T12:34:56-05:00"),
        (b"From a@b Mon Jan  1 12:34:56 UT 2001", "2001-01-01T12:34:56+00:00"),
        (b"From a@b Mon Jan  1 12:34:56 MET DST 2001", "2001-01-01T12:34:56+00:00"),
        (b"From a@b Mon Jan  1 12:34:56 +0530 2001", "2001-01-01T12:34:56+05:30"),
        (b"From a@b Mon Jan  1 12:34:56 2001 -0800", "2001-01-01T12:34:56-08:00"),
        (b"From u Mon Jan  1 12:34:56 2001 remote from host", "2001-01-01T12:34:56+00:00"),
        (b"From a@b Thu, 6 Jan 2000 16:18:16 -0800 (PST)", "2000-01-06T16:18:16-08:00"),
        (b"From a@b Mon 1 Jan 2015 00:00:00 +0900", "2015-01-01T00:00:00+09:00"),
        (b"From a@b Sat Jul  1 23:59:60 1972", "1972-07-01T23:59:59+00:00"),
    ],
)
def test_a_from_line_of_the_wild_is_one_and_gives_its_date(line: bytes, date: str) -> None:
    assert is_from_line(line)
    assert from_line_date_ns(line) == epoch_ns(date)


@pytest.mark.parametrize(
    "line",
    [
        b"From my point of view this works",
        b"From email_test@me.nowhere",
        b"From Monday on it is Jan 2001",
        b"From a@b Mon Jan  1 00:00:00 2001 and so on",
        b"From a@b Mon Jan  1 2001",
        b"From: a@b Mon Jan  1 00:00:00 2001",
        b">From a@b Mon Jan  1 00:00:00 2001",
        b" From a@b Mon Jan  1 00:00:00 2001",
        b"From a@b Mon Jan  1 00:00:00 2001\rReturn-Path: <>",
        b"From " + b"a" * 1100 + b" Mon Jan  1 00:00:00 2001",
        b"",
    ],
)
def test_a_line_without_a_date_at_its_end_is_no_from_line(line: bytes) -> None:
    assert not is_from_line(line)


@pytest.mark.parametrize(
    "line",
    [
        b"From a@b Mon Feb 30 00:00:00 2001",
        b"From a@b Mon Jan  1 25:00:00 2001",
        b"From a@b Mon Jan  1 00:00:00 0000",
        b"From a@b Mon Jan  1 00:00:00 9999",
        b"From a@b Mon Jan  1 00:00:00 1969",
    ],
)
def test_a_from_line_with_an_impossible_date_separates_but_has_no_date(line: bytes) -> None:
    assert is_from_line(line)
    assert from_line_date_ns(line) is None


@given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2261, 1, 1)))
def test_a_written_date_is_read_back(date: datetime) -> None:
    utc = date.replace(microsecond=0, tzinfo=UTC)
    line = f"From x {utc:%a %b} {utc.day:2} {utc:%H:%M:%S} {utc.year}".encode()
    assert (
        from_line_date_ns(line)
        == (utc - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    )


def test_an_mbox_begins_with_a_from_line_also_behind_blank_lines() -> None:
    assert starts_mbox(FROM)
    assert starts_mbox(b"\r\n\n" + FROM + b"Subject: a\n")
    assert starts_mbox(FROM.rstrip())
    assert not starts_mbox(b"Subject: a\n" + FROM)
    assert not starts_mbox(b"")


def test_messages_are_split_at_from_lines_behind_blank_lines() -> None:
    content = FROM + b"Subject: a\n\none\n\n" + FROM + b"Subject: b\n\ntwo\n\n"
    first, second = messages_of(content)
    assert (first.raw, second.raw) == (b"Subject: a\n\none\n", b"Subject: b\n\ntwo\n")
    assert first.received_ns == epoch_ns("2001-01-01T00:00:00+00:00")


def test_an_origin_is_the_byte_where_the_from_line_starts() -> None:
    content = FROM + b"A: a\n\none\n\n" + FROM + b"B: b\n"
    starts = [place.start for place in ranges_of(content) if isinstance(place, MboxRange)]
    assert starts == [0, content.rindex(b"From ")]


def test_from_lines_in_a_body_do_not_split() -> None:
    body = b"A: a\n\ntext\n" + FROM + b"\nFrom here it goes on\n\n>quote\n"
    assert raws_of(FROM + body + b"\n" + FROM + b"B: b\n") == [body, b"B: b\n"]


def test_only_one_blank_line_belongs_to_the_file() -> None:
    assert raws_of(FROM + b"A: a\n\n\n\n" + FROM + b"B: b\n\n\n") == [b"A: a\n\n\n", b"B: b\n\n"]


def test_a_file_may_end_anywhere() -> None:
    assert raws_of(FROM + b"A: a\n\nno newline") == [b"A: a\n\nno newline"]
    assert raws_of(FROM) == [b""]
    assert raws_of(FROM.rstrip()) == [b""]
    assert raws_of(FROM + b"\n" + FROM + b"\n") == [b"", b""]
    assert raws_of(b"") == []


def test_crlf_files_lose_crlf_blank_lines() -> None:
    content = (FROM + b"A: a\n\none\n\n" + FROM + b"B: b\n\n").replace(b"\n", b"\r\n")
    assert raws_of(content) == [b"A: a\r\n\r\none\r\n", b"B: b\r\n"]


def test_junk_before_the_first_from_line_is_told_and_blank_lines_are_not() -> None:
    message = MboxRange(7, 7 + len(FROM), Quoting.EVERY)
    assert ranges_of(b"junk!\n\n" + FROM) == [Junk(7), message]
    assert ranges_of(b"\n\r\n\n\n\n\n" + FROM) == [message]
    assert ranges_of(b"nothing\n") == [Junk(8)]


def test_a_content_length_that_fits_ends_a_message_which_is_not_unquoted() -> None:
    body = b"one\n\n" + FROM + b">From x\n"
    message = b"Content-Length: %d\n\n%s" % (len(body), body)
    for dialect in (ANY, MBOXCL2):
        assert raws_of(FROM + message + b"\n" + FROM + b"B: b\n", dialect) == [message, b"B: b\n"]
        assert raws_of(FROM + message + FROM + b"B: b\n", dialect) == [message, b"B: b\n"]
        assert raws_of(FROM + message, dialect) == [message]
    for dialect in (MBOXO, MBOXRD):
        assert len(raws_of(FROM + message, dialect)) == 2


@pytest.mark.parametrize("length", [0, 3, 5, 999, 10**18 - 1, -1])
def test_a_content_length_that_does_not_fit_is_not_believed(length: int) -> None:
    first = b"Content-Length: %d\n\n>From\n>From you\n" % length
    kept = b"Content-Length: %d\n\n>From\nFrom you\n" % length
    assert raws_of(FROM + first + b"\n" + FROM + b"B: b\n") == [kept, b"B: b\n"]


def test_a_content_length_without_the_last_line_end_does_not_cut_it_off() -> None:
    message = b"Content-Length: 4\n\ntext\n"
    assert raws_of(FROM + message) == [message]
    assert raws_of(FROM + message, MBOXCL2) == [message[:-1]]


def test_a_content_length_that_ends_within_a_line_is_not_believed() -> None:
    message = b"Content-Length: 2\n\n> " + FROM + b"more\n"
    assert raws_of(FROM + message) == [message]


def test_a_content_length_in_a_body_counts_for_nothing() -> None:
    message = b"A: a\n\nContent-Length: 2\n\nx\nFrom me\n"
    assert raws_of(FROM + message + b"\n" + FROM) == [message, b""]


def test_quoting_is_taken_away_as_the_dialect_says() -> None:
    raw = b">From a\n>>From b\n>>>From c\n > From d\nx>From e\n>from f\n"
    assert unquote(raw, Quoting.NONE) == raw
    assert (
        unquote(raw, Quoting.ONE) == b"From a\n>>From b\n>>>From c\n > From d\nx>From e\n>from f\n"
    )
    assert (
        unquote(raw, Quoting.EVERY) == b"From a\n>From b\n>>From c\n > From d\nx>From e\n>from f\n"
    )


def test_status_fields_become_flags() -> None:
    assert status_of(b"Subject: a\n\nStatus: RO\n") == (RECENT, ())
    assert status_of(b"Status: O\n\n") == (0, ())
    assert status_of(b"Status: RO\r\nX-Status: AFTD \r\n\r\n") == (
        SEEN | ANSWERED | FLAGGED | DRAFT | DELETED,
        (),
    )
    assert status_of(b"Status: D\nX-STATUS: F\n") == (RECENT | DELETED | FLAGGED, ())


@pytest.mark.parametrize("value", [b"RESOLVED", b"RO?", b"ro", b"R O"])
def test_a_status_of_another_program_says_nothing(value: bytes) -> None:
    assert status_of(b"Status: " + value + b"\n\n") == (RECENT, ())


def test_x_keywords_become_keywords_and_bad_words_are_left_out() -> None:
    raw = b'X-Keywords: Work $Forwarded,\n\twork "(" urg\xc3\xa9nt   \nStatus: RO\n\n'
    assert status_of(raw) == (SEEN | FORWARDED, ("urgént", "work"))


def test_a_range_of_a_file_that_was_rewritten_is_refused() -> None:
    with opened(FROM + b"A: a\n\n" + FROM + b"B: b\n") as fd:
        first, second = iter_ranges(fd, ANY)
        assert isinstance(first, MboxRange)
        assert isinstance(second, MboxRange)
        os.pwrite(fd, b"X", second.start)
        for place in (first, second):
            with pytest.raises(OSError, match="changed") as caught:
                read_range(fd, place)
            assert caught.value.errno == errno.ESTALE


def test_a_range_of_a_file_that_grew_is_read() -> None:
    with opened(FROM + b"A: a\n\n") as fd:
        (place,) = iter_ranges(fd, ANY)
        assert isinstance(place, MboxRange)
        os.lseek(fd, 0, os.SEEK_END)
        os.write(fd, FROM + b"B: b\n")
        assert read_range(fd, place).raw == b"A: a\n"


def test_a_message_that_was_still_being_written_is_refused_later() -> None:
    with opened(FROM + b"A: a\n\nhal") as fd:
        (place,) = iter_ranges(fd, ANY)
        assert isinstance(place, MboxRange)
        os.pwrite(fd, b"half\n", len(FROM) + 6)
        with pytest.raises(OSError, match="changed"):
            read_range(fd, place)


def test_a_file_that_shrinks_while_it_is_scanned_is_an_error_and_no_crash() -> None:
    with opened((FROM + b"A: a\n\n" + b"x" * 100_000 + b"\n\n") * 3) as fd:
        scan = iter_ranges(fd, ANY)
        next(scan)
        os.ftruncate(fd, 10)
        with pytest.raises(OSError, match="changed"):
            next(scan)


def test_a_hostile_file_of_false_from_lines_takes_one_pass(tmp_path: Path) -> None:
    path = tmp_path / "mbox"
    path.write_bytes(FROM + b"\n\nFrom x" * 100_000 + b"\n\n" + FROM)
    with path.open("rb") as file:
        assert len(list(iter_ranges(file.fileno(), ANY))) == 2


LINES = st.sampled_from(
    [
        b"",
        b"",
        b"text",
        b"From ",
        b"From me",
        FROM[:-1],
        b">From x",
        b">>From y",
        b"> a",
        b"\r",
        b">",
    ]
)
LINE_ENDS = st.sampled_from([b"\n", b"\r\n"])


def quoted(raw: bytes, sign_if: tuple[bytes, ...], end: bytes) -> bytes:
    lines = raw.split(end)
    return end.join(b">" + line if line.startswith(sign_if) else line for line in lines)


@settings(max_examples=150)
@given(st.lists(st.lists(LINES, max_size=6), max_size=4), LINE_ENDS, st.integers(16, 200))
def test_mboxrd_written_is_read_back(
    bodies: list[list[bytes]], end: bytes, window_bytes: int
) -> None:
    # A message without a last line end gets one in an mbox: these have it.
    raws = [b"".join(line + end for line in lines) for lines in bodies]
    signs = tuple(b">" * depth + b"From " for depth in range(4))
    content = b"".join(FROM[:-1] + end + quoted(raw, signs, end) + end for raw in raws)
    with patch.object(mbox, "_WINDOW_BYTES", window_bytes):
        assert raws_of(content, MBOXRD) == raws
        assert raws_of(content, ANY) == raws


@settings(max_examples=100)
@given(st.lists(st.lists(LINES, max_size=6), max_size=4), LINE_ENDS)
def test_mboxo_written_is_read_back_but_for_lines_it_cannot_tell_apart(
    bodies: list[list[bytes]], end: bytes
) -> None:
    # mboxo writes `From x` and `>From x` alike.
    raws = [
        b"".join(line + end for line in lines if not line.startswith(b">From ")) for lines in bodies
    ]
    content = b"".join(FROM[:-1] + end + quoted(raw, (b"From ",), end) + end for raw in raws)
    assert raws_of(content, MBOXO) == raws


@settings(max_examples=150)
@given(st.lists(st.lists(LINES, max_size=6), max_size=4), LINE_ENDS)
def test_mboxcl2_written_is_read_back_to_the_last_byte(
    bodies: list[list[bytes]], end: bytes
) -> None:
    raws = []
    for lines in bodies:
        body = end.join(lines)
        raws.append(b"A: a" + end + b"Content-Length: %d" % len(body) + end + end + body)
    content = b"".join(FROM[:-1] + end + raw + end for raw in raws)
    assert raws_of(content, MBOXCL2) == raws


@settings(max_examples=100)
@given(st.binary(max_size=60) | st.lists(LINES | st.just(FROM[:-1])).map(b"\n".join))
def test_ranges_of_any_bytes_are_in_order_and_can_be_read(content: bytes) -> None:
    with opened(content) as fd:
        position = 0
        for place in iter_ranges(fd, ANY):
            if isinstance(place, MboxRange):
                assert position <= place.start < place.end <= len(content)
                assert not content[position : place.start].strip() or position == 0
                read_range(fd, place)
                position = place.end
