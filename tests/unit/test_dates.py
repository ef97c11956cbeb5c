"""Dates: what each form stands for, in zones with daylight saving, and that any text is a span or a ValueError."""

import time
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailfs.search.dates import (
    EARLIEST_S,
    LATEST_S,
    MAX_DATE_CHARS,
    Span,
    check_date,
    date_span,
    is_relative,
    range_span,
    span_ns,
)

# A Wednesday.
NOW = datetime(2015, 6, 17, 14, 35, 20, 500_000, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


def seconds(text: str, zone: tzinfo = UTC) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp())


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2015", "2015-01-01", "2016-01-01"),
        ("2015-06", "2015-06-01", "2015-07-01"),
        ("2015-12", "2015-12-01", "2016-01-01"),
        ("2016-02", "2016-02-01", "2016-03-01"),
        ("2015-06-01", "2015-06-01", "2015-06-02"),
        ("2015/6/1", "2015-06-01", "2015-06-02"),
        ("2015.06.01", "2015-06-01", "2015-06-02"),
        ("2015-12-31", "2015-12-31", "2016-01-01"),
        ("2015-06-01T12", "2015-06-01T12:00", "2015-06-01T13:00"),
        ("2015-06-01T12:05", "2015-06-01T12:05", "2015-06-01T12:06"),
        ("2015-06-01 12:05:09", "2015-06-01T12:05:09", "2015-06-01T12:05:10"),
        ("@1433160000", "2015-06-01T12:00:00", "2015-06-01T12:00:01"),
        ("now", "2015-06-17T14:35:20", "2015-06-17T14:35:21"),
        ("today", "2015-06-17", "2015-06-18"),
        ("Yesterday", "2015-06-16", "2015-06-17"),
        ("wednesday", "2015-06-17", "2015-06-18"),
        ("tue", "2015-06-16", "2015-06-17"),
        ("thursday", "2015-06-11", "2015-06-12"),
        ("june", "2015-06-01", "2015-07-01"),
        ("may", "2015-05-01", "2015-06-01"),
        ("july", "2014-07-01", "2014-08-01"),
        ("this_week", "2015-06-15", "2015-06-22"),
        ("last week", "2015-06-08", "2015-06-15"),
        ("last.month", "2015-05-01", "2015-06-01"),
        ("this_month", "2015-06-01", "2015-07-01"),
        ("last_year", "2014-01-01", "2015-01-01"),
        ("this_year", "2015-01-01", "2016-01-01"),
        ("3d", "2015-06-14", "2015-06-15"),
        ("2w", "2015-06-03", "2015-06-04"),
        ("5m", "2015-01-17", "2015-01-18"),
        ("1y", "2014-06-17", "2014-06-18"),
        ("2h", "2015-06-17T12:00", "2015-06-17T13:00"),
        ("30M", "2015-06-17T14:05", "2015-06-17T14:06"),
        ("30min", "2015-06-17T14:05", "2015-06-17T14:06"),
        ("20s", "2015-06-17T14:35:00", "2015-06-17T14:35:01"),
        ("2weeks", "2015-06-03", "2015-06-04"),
        ("2_weeks_ago", "2015-06-03", "2015-06-04"),
        ("2.weeks.ago", "2015-06-03", "2015-06-04"),
        ("2 weeks ago", "2015-06-03", "2015-06-04"),
        ("1y 2m", "2014-04-17", "2014-04-18"),
        ("1d 2h", "2015-06-16T12:00", "2015-06-16T13:00"),
    ],
)
def test_each_form_stands_for_a_span(text: str, start: str, end: str) -> None:
    assert date_span(text, NOW.timestamp(), UTC) == Span(seconds(start), seconds(end))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "soon",
        "2015-",
        "2015-13",
        "2015-02-30",
        "2015-06-01T25",
        "2015-06/01",
        "20150601",
        "15-06-01",
        "0000",
        "@",
        "@x",
        "@123456789012",
        "3",
        "d",
        "3x",
        "ago",
        "3d ago ago",
        "next week",
        "last_day",
        "-3d x",
        "٣d",
        "2" * (MAX_DATE_CHARS + 1),
        "1d" * MAX_DATE_CHARS,
    ],
)
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"date|unit"):
        check_date(text)


def test_a_range_reaches_from_the_start_of_one_to_the_end_of_the_other() -> None:
    now = NOW.timestamp()
    assert range_span("2014", "2015-06", now, UTC) == (seconds("2014-01-01"), seconds("2015-07-01"))
    assert range_span("2d", "", now, UTC) == (seconds("2015-06-15"), LATEST_S)
    assert range_span("", "yesterday", now, UTC) == (EARLIEST_S, seconds("2015-06-17"))


def test_a_month_back_from_the_31st_is_the_last_day_the_month_has() -> None:
    now = datetime(2015, 3, 31, 12, tzinfo=UTC).timestamp()
    assert date_span("1m", now, UTC).start_s == seconds("2015-02-28")


@pytest.mark.parametrize(
    ("text", "relative"),
    [
        ("2015", False),
        ("2015-06-01T12:30", False),
        ("@5", False),
        ("", False),
        ("now", True),
        ("3d", True),
        ("monday", True),
        ("last_year", True),
        ("june", True),
    ],
)
def test_only_what_moves_with_the_clock_is_relative(text: str, relative: bool) -> None:
    assert is_relative(text) is relative
    if text:
        moved = date_span(text, NOW.timestamp() + 86_400 * 800, UTC)
        assert (moved != date_span(text, NOW.timestamp(), UTC)) is relative


@pytest.mark.parametrize(
    ("text", "start", "length_h"),
    [
        # Clocks go back at 03:00: the day has 25 hours, the hour from two to three happens twice.
        ("2015-10-25", "2015-10-24T22:00", 25),
        ("2015-10-25T02", "2015-10-25T00:00", 2),
        ("2015-10-25T01", "2015-10-24T23:00", 1),
        # And forward at 02:00.
        ("2015-03-29", "2015-03-28T23:00", 23),
        ("2015-06-01", "2015-05-31T22:00", 24),
    ],
)
def test_days_and_hours_are_those_of_the_local_clock(
    text: str, start: str, length_h: float
) -> None:
    span = date_span(text, 0.0, BERLIN)
    assert span.start_s == seconds(start)
    assert span.end_s - span.start_s == length_h * 3600


def test_an_hour_the_clock_leaves_out_is_not_empty() -> None:
    span = date_span("2015-03-29T02:30", 0.0, BERLIN)
    assert span.start_s < span.end_s


def test_hours_back_are_counted_in_seconds_across_a_change_of_clocks() -> None:
    # 03:10 winter time; two hours earlier the clock showed 02:10 for the first time.
    now = datetime(2015, 10, 25, 2, 10, tzinfo=UTC).timestamp()
    assert date_span("2h", now, BERLIN) == (
        seconds("2015-10-25T00:00"),
        seconds("2015-10-25T01:00"),
    )


def test_hours_begin_where_a_zone_of_half_hours_has_them() -> None:
    span = date_span("1h", NOW.timestamp(), ZoneInfo("Asia/Kolkata"))
    assert span == (seconds("2015-06-17T13:30"), seconds("2015-06-17T14:30"))


def test_no_zone_is_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        for text in ("2015-06-01", "2015-01", "today", "3d", "2h", "last_week", "2015-06-01T12:00"):
            local = date_span(text, NOW.timestamp())
            assert local == date_span(text, NOW.timestamp(), ZoneInfo("America/New_York"))
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "text",
    [
        "0001",
        "0001-01-01",
        "9999",
        "9999-12",
        "9999-12-31",
        "9999-12-31T23:59:59",
        "999999y",
        "999999w",
        "999999d",
        "999999h",
        "999999m 999999h",
        "@-99999999999",
        "@99999999999",
    ],
)
@pytest.mark.parametrize("zone", [UTC, BERLIN, ZoneInfo("Pacific/Kiritimati")])
def test_the_ends_of_the_calendar_are_spans_too(text: str, zone: tzinfo) -> None:
    span = date_span(text, NOW.timestamp(), zone)
    assert EARLIEST_S <= span.start_s < span.end_s <= LATEST_S + 86_400
    assert all(-(2**63) < bound < 2**63 for bound in span_ns(span))


_WORDS = st.sampled_from(
    [
        "2015",
        "-",
        "/",
        ".",
        "_",
        "T",
        ":",
        "06",
        "31",
        "@",
        "3",
        "d",
        "weeks",
        "ago",
        "last",
        "this",
        "month",
        "monday",
        "m",
        "M",
        "h",
        "y",
        "now",
        "999999",
    ]
) | st.sampled_from([" ", "x", "²", "\0"])


@settings(max_examples=400, deadline=None)
@given(st.lists(_WORDS, max_size=8).map("".join))
def test_any_text_is_a_date_always_or_never(text: str) -> None:
    def is_date(now_s: float, zone: tzinfo) -> bool:
        try:
            span = date_span(text, now_s, zone)
        except ValueError:
            return False
        assert span.start_s < span.end_s
        return True

    moments = [0.0, NOW.timestamp(), 1_456_747_199.9, 4e9]
    assert len({is_date(now, zone) for now in moments for zone in (UTC, BERLIN)}) == 1


_ZONES = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/Havana", "America/Sao_Paulo", "Asia/Beirut", "Asia/Kolkata"]
).map(ZoneInfo)


@settings(max_examples=300, deadline=None)
@given(st.dates(datetime(1970, 1, 3).date(), datetime(2037, 12, 30).date()), _ZONES)
def test_days_tile_time(day: datetime, zone: ZoneInfo) -> None:
    # Havana changes at midnight, Beirut and Sao Paulo have days that begin at one o'clock.
    today, tomorrow = (
        date_span((day + timedelta(days=n)).isoformat(), 0.0, zone) for n in (0, 1)
    )  # fmt: skip
    assert today.end_s == tomorrow.start_s
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=zone).timestamp()
    assert today.start_s <= noon < today.end_s


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2_100_000_000), st.sampled_from(["1h", "5M", "3s", "7h"]), _ZONES)
def test_hours_and_less_back_hold_the_very_moment(now: int, text: str, zone: ZoneInfo) -> None:
    amount, unit_s = int(text[:-1]), {"h": 3600, "M": 60, "s": 1}[text[-1]]
    span = date_span(text, float(now), zone)
    assert span.start_s <= now - amount * unit_s < span.end_s
    assert span.end_s - span.start_s == unit_s
