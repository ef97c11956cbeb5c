"""Dates of mail."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailfs.message.dates import MAX_DATE_S, parse_date, parse_received


def _utc(*fields: int) -> int:
    year, month, day, hour, minute, second = fields
    return int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b" Fri, 21 Nov 1997 09:55:06 -0600", _utc(1997, 11, 21, 15, 55, 6)),
        (b"Fri, 21 Nov 1997 09:55:06 -0600 (CST)", _utc(1997, 11, 21, 15, 55, 6)),
        (b"\n Fri,\n 21 Nov 1997\n\t09:55:06 +0530", _utc(1997, 11, 21, 4, 25, 6)),
        (b"21 Nov 97 09:55:06 GMT", _utc(1997, 11, 21, 9, 55, 6)),
        (b"21 Nov 49 09:55:06 GMT", _utc(2049, 11, 21, 9, 55, 6)),
        (b"21 Nov 101 09:55:06 GMT", _utc(2001, 11, 21, 9, 55, 6)),
        (b"Fri, 21 Nov 1997 09:55", _utc(1997, 11, 21, 9, 55, 0)),
        (b"Fri,21 Nov 1997 9:55:06 EST", _utc(1997, 11, 21, 14, 55, 6)),
        (b"Friday, 21-Nov-97 09:55:06 GMT", _utc(1997, 11, 21, 9, 55, 6)),
        (b"21 November 1997 09:55:06 +0100", _utc(1997, 11, 21, 8, 55, 6)),
        (b"21 Nov 1997 09:55:06 GMT+0200", _utc(1997, 11, 21, 7, 55, 6)),
        (b"21 Nov 1997 09:55:06 +02:00", _utc(1997, 11, 21, 7, 55, 6)),
        (b"21 Nov 1997 09:55:06 -600", _utc(1997, 11, 21, 15, 55, 6)),
        (b"21 Nov 1997 09:55:06.250 +0000", _utc(1997, 11, 21, 9, 55, 6)),
        (b"21 Nov 1997 09:55:06 XYZ", _utc(1997, 11, 21, 9, 55, 6)),
        (b"21 Nov 1997 09:55:06 -0000", _utc(1997, 11, 21, 9, 55, 6)),
        (b"31 Dec 1998 23:59:60 +0000", _utc(1999, 1, 1, 0, 0, 0)),
        (b"31 Feb 1999 00:00:00 +0000", _utc(1999, 3, 3, 0, 0, 0)),
        # Other forms, read by the standard library.
        (b"Fri Nov 21 09:55:06 1997", _utc(1997, 11, 21, 9, 55, 6)),
        (b"Nov 21, 1997 09:55:06 +0000", _utc(1997, 11, 21, 9, 55, 6)),
        # The edges.
        (b"1 Jan 1970 00:00:00 +0000", 0),
        (b"31 Dec 9999 23:59:59 +0000", MAX_DATE_S),
    ],
)
def test_dates_are_read(value: bytes, seconds: int) -> None:
    assert parse_date(value) == seconds


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XYZ-09:00")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_east")
@pytest.mark.parametrize("value", [b"21 Nov 1997 09:55:06", b"Fri Nov 21 09:55:06 1997"])
def test_a_date_without_a_zone_does_not_depend_on_this_machines(value: bytes) -> None:
    assert parse_date(value) == _utc(1997, 11, 21, 9, 55, 6)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"\0",
        b"yesterday",
        b"31 Dec 1969 23:59:59 +0000",
        b"31 Dec 9999 23:59:59 -0001",
        b"21 Nov 50 09:55:06 GMT",
        b"1 Jan 20200 00:00:00 +0000",
        b"1 Jan 99999999999999999999 00:00:00 +0000",
        b"1 Jan 0000 00:00:00 +0000",
        b"32 Jan 2000 00:00:00 +0000",
        b"0 Jan 2000 00:00:00 +0000",
        b"1 Foo 2000 00:00:00 +0000",
        b"1 Jan 2000 25:00:00 +0000",
        b"1 Jan 2000 00:60:00 +0000",
        b"Tue, 27 Aug 0102 20:59:44 -0200",
        b"1" * 100_000,
        b" " * 100_000,
    ],
)
def test_impossible_dates_are_none(value: bytes) -> None:
    assert parse_date(value) is None


@given(
    st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(9999, 12, 30)),
    st.integers(min_value=-14 * 60, max_value=14 * 60),
)
def test_every_date_the_standard_library_writes_is_read_back(
    local: datetime, offset_minutes: int
) -> None:
    when = local.replace(microsecond=0, tzinfo=timezone(timedelta(minutes=offset_minutes)))
    expected = int((when - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    assert parse_date(format_datetime(when).encode()) == expected


@given(
    st.one_of(
        st.binary(max_size=60),
        st.lists(
            st.sampled_from(
                [
                    "Mon",
                    ",",
                    " ",
                    "12",
                    "May",
                    "2002",
                    "12:00:00",
                    "12.00.00",
                    "+0100",
                    "(",
                    "T",
                    "-",
                ]
            ),
            max_size=12,
        ).map(lambda words: "".join(words).encode()),
    )
)
def test_no_date_raises_or_leaves_its_range(value: bytes) -> None:
    seconds = parse_date(value)
    assert seconds is None or 0 <= seconds <= MAX_DATE_S


def test_a_received_date_stands_behind_the_last_semicolon() -> None:
    value = b" from a (x; y) by b;\n\tFri, 21 Nov 1997 09:55:06 +0000"
    assert parse_received(value) == _utc(1997, 11, 21, 9, 55, 6)


def test_a_received_date_after_2100_is_not_believed() -> None:
    assert parse_received(b"x; 1 Jan 2101 00:00:00 +0000") is None
    assert parse_received(b"x; 31 Dec 2099 00:00:00 +0000") is not None
