"""What people type for dates, and the seconds it stands for.

Every date stands for a *span* of time, half open: `2015-06` is the whole of that month. In a range the lower
bound gives the start of its span and the upper bound the end of its own, as in notmuch and mu. Calendar
words are read in local time, or in the zone given. Invariant: a text that is accepted once is accepted at any
time and in any zone; what lies before the year 1 or after 9999 is clamped. Days, weeks, months and years tile
time without gap or overlap, whatever daylight saving does to the clock.
"""

import re
from calendar import monthrange
from datetime import UTC, datetime, timedelta, tzinfo
from typing import NamedTuple


class Span(NamedTuple):
    """Seconds since 1970 UTC; `start_s` is inside, `end_s` is not."""

    start_s: int
    end_s: int


EARLIEST_S = -62_135_596_800  # 0001-01-01
LATEST_S = 253_402_300_800  # 10000-01-01
# Longer than any date a person types; keeps work on hostile input small.
MAX_DATE_CHARS = 80

_NS = 1_000_000_000
_MAX_INT64 = 2**63 - 1
_EPOCH = datetime(1970, 1, 1)

_ISO = re.compile(
    r"(\d{4})(?:([-/.])(\d\d?)(?:\2(\d\d?)(?:[Tt ](\d\d?)(?::(\d\d)(?::(\d\d))?)?)?)?)?", re.ASCII
)
_SECONDS = re.compile(r"@(-?\d{1,11})", re.ASCII)
_AGO = re.compile(r"(?:\d{1,6} ?[a-z]+ ?)+", re.ASCII | re.IGNORECASE)
_AGO_STEP = re.compile(r"(\d{1,6}) ?([a-z]+)", re.ASCII | re.IGNORECASE)

_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_WEEKDAY_OF = {name[:n]: i for i, name in enumerate(_WEEKDAYS) for n in (3, len(name))}
_MONTH_OF = {name[:n]: i for i, name in enumerate(_MONTHS, start=1) for n in (3, len(name))}

# The unit each word means. A single M is minutes and m months, as in mu; all else in any case.
_UNIT_OF = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), "second"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "minute"),
    **dict.fromkeys(("h", "hour", "hours"), "hour"),
    **dict.fromkeys(("d", "day", "days"), "day"),
    **dict.fromkeys(("w", "week", "weeks"), "week"),
    **dict.fromkeys(("m", "month", "months"), "month"),
    **dict.fromkeys(("y", "year", "years"), "year"),
}
_CLOCK_UNITS = {"second": 1, "minute": 60, "hour": 3600}
_DAYS_OF = {"day": 1, "week": 7}
_MONTHS_OF = {"month": 1, "year": 12}


def date_span(text: str, now_s: float, tz: tzinfo | None = None) -> Span:
    """The span `text` stands for at `now_s` (seconds since 1970 UTC), in local time where `tz` is None.

    Raises ValueError, its text fit for a person, for what is not a date.
    """
    if len(text) > MAX_DATE_CHARS:
        raise ValueError("this is too long for a date")
    if iso := _ISO.fullmatch(text):
        return _iso_span(iso, tz)
    if seconds := _SECONDS.fullmatch(text):
        start_s = min(max(int(seconds[1]), EARLIEST_S), LATEST_S - 1)
        return Span(start_s, start_s + 1)
    return _relative_span(text, now_s, tz)


def range_span(low: str, high: str, now_s: float, tz: tzinfo | None = None) -> Span:
    """From the start of `low` to the end of `high`; '' is an open side. May be empty (`2016..2015`)."""
    start_s = date_span(low, now_s, tz).start_s if low else EARLIEST_S
    end_s = date_span(high, now_s, tz).end_s if high else LATEST_S
    return Span(start_s, end_s)


def is_relative(text: str) -> bool:
    """Whether this date, known to be one, moves with the clock."""
    return not (text == "" or _ISO.fullmatch(text) or _SECONDS.fullmatch(text))


def span_ns(span: Span) -> Span:
    """The same in nanoseconds, clamped to what a signed 64-bit column holds (the years 1677 to 2262)."""
    return Span(*(min(max(s * _NS, -_MAX_INT64), _MAX_INT64) for s in span))


def check_date(text: str) -> None:
    """Raises ValueError as `date_span` would, at whatever time."""
    date_span(text, 0.0, UTC)


def _iso_span(iso: re.Match[str], tz: tzinfo | None) -> Span:
    year, _, month, day, hour, minute, second = iso.groups()
    try:
        start = datetime(
            int(year),
            int(month or 1),
            int(day or 1),
            int(hour or 0),
            int(minute or 0),
            int(second or 0),
        )
    except ValueError as error:
        raise ValueError(f"there is no such date ({error})") from error
    given = (month, day, hour, minute, second)
    units = ("year", "month", "day", "hour", "minute", "second")
    return _wall_span(start, units[sum(part is not None for part in given)], tz)


def _relative_span(text: str, now_s: float, tz: tzinfo | None) -> Span:
    words = " ".join(text.replace("_", " ").replace(".", " ").replace("-", " ").split())
    name = words.lower()
    if name == "now":
        return Span(int(now_s // 1), int(now_s // 1) + 1)
    today = _midnight(_local(now_s, tz))
    if name in ("today", "yesterday"):
        return _wall_span(today - timedelta(days=name == "yesterday"), "day", tz)
    if name in _WEEKDAY_OF:
        return _wall_span(today - timedelta((today.weekday() - _WEEKDAY_OF[name]) % 7), "day", tz)
    if name in _MONTH_OF:
        back = (today.month - _MONTH_OF[name]) % 12
        return _wall_span(_months_back(today.replace(day=1), back), "month", tz)
    which, _, unit = name.partition(" ")
    if which in ("this", "last") and unit in ("week", "month", "year"):
        return _calendar_span(today, unit, int(which == "last"), tz)
    steps = words.removesuffix(" ago")
    if _AGO.fullmatch(steps):
        return _ago_span(_AGO_STEP.findall(steps), now_s, tz)
    raise ValueError(
        "not a date: write 2015-06-01, 2015-06, yesterday, monday, last_week, 3d or 2weeks"
    )


def _calendar_span(today: datetime, unit: str, back: int, tz: tzinfo | None) -> Span:
    """The calendar week (from Monday, ISO 8601), month or year of today, or the one before."""
    if unit == "week":
        start = today - timedelta(days=today.weekday() + 7 * back)
    elif unit == "month":
        start = _months_back(today.replace(day=1), back)
    else:
        start = _months_back(today.replace(month=1, day=1), 12 * back)
    return _wall_span(start, unit, tz)


def moment_ago(text: str, now_s: float, tz: tzinfo | None = None) -> float:
    """The moment so long before now, to the second: `30d`, `2 weeks`, `1y 6m`. Raises ValueError as date_span does."""
    steps = " ".join(text.split())
    if len(text) > MAX_DATE_CHARS or not _AGO.fullmatch(steps):
        raise ValueError("not a length of time: write 30d, 2w, 6m or 1y")
    ago = _ago(_AGO_STEP.findall(steps))
    return _before(now_s, ago, tz) - ago.seconds


class _Ago(NamedTuple):
    """How long ago, by calendar and by clock; `finest` is the finest unit named, in seconds, a day for all above."""

    months: int
    days: int
    seconds: int
    finest: int


def _ago(steps: list[tuple[str, str]]) -> _Ago:
    seconds = days = months = 0
    finest = 86_400
    for digits, word in steps:
        unit = "minute" if word == "M" else _UNIT_OF.get(word.lower())
        if unit is None:
            raise ValueError(f"no unit of time is called {word}: use h d w m y, M for minutes")
        amount = int(digits)
        if unit in _CLOCK_UNITS:
            seconds += amount * _CLOCK_UNITS[unit]
            finest = min(finest, _CLOCK_UNITS[unit])
        else:
            days += amount * _DAYS_OF.get(unit, 0)
            months += amount * _MONTHS_OF.get(unit, 0)
    return _Ago(months, days, seconds, finest)


def _before(now_s: float, ago: _Ago, tz: tzinfo | None) -> float:
    """So many months and days earlier, when the clock on the wall shows the same."""
    if not ago.months and not ago.days:
        return now_s
    wall = _days_back(_months_back(_local(now_s, tz), ago.months), ago.days)
    return _seconds_of(wall, tz)


def _ago_span(steps: list[tuple[str, str]], now_s: float, tz: tzinfo | None) -> Span:
    """So long before now. Hours and less give the hour, minute or second; days and more give the day."""
    ago = _ago(steps)
    if ago.finest == 86_400:
        wall = _days_back(_months_back(_local(now_s, tz), ago.months), ago.days)
        return _wall_span(_midnight(wall), "day", tz)
    return _clock_span(_before(now_s, ago, tz) - ago.seconds, ago.finest, tz)


def _clock_span(moment_s: float, unit_s: int, tz: tzinfo | None) -> Span:
    """The hour, minute or second of the local clock that holds this moment.

    Counted in seconds, not on the wall: an hour the clock shows twice stays two hours.
    """
    moment = min(max(int(moment_s // 1), EARLIEST_S + 86_400 * 366), LATEST_S - 86_400 * 366)
    local = _local(moment, tz)
    offset_s = (local - _EPOCH) // timedelta(seconds=1) - moment
    start_s = moment - (moment + offset_s) % unit_s
    return Span(start_s, start_s + unit_s)


def _local(moment_s: float, tz: tzinfo | None) -> datetime:
    """What a clock on the wall shows."""
    return datetime.fromtimestamp(moment_s, tz).replace(tzinfo=None)


def _midnight(wall: datetime) -> datetime:
    return wall.replace(hour=0, minute=0, second=0, microsecond=0)


def _months_back(wall: datetime, months: int) -> datetime:
    """As many months earlier, on the same day or the last the month has; never before the year 1."""
    count = wall.year * 12 + wall.month - 1 - months
    if count < 12:
        return datetime.min
    year, month = divmod(count, 12)
    last = monthrange(year, month + 1)[1]
    return wall.replace(year=year, month=month + 1, day=min(wall.day, last))


def _days_back(wall: datetime, days: int) -> datetime:
    try:
        return wall - timedelta(days=days)
    except OverflowError:
        return datetime.min


def _next(start: datetime, unit: str) -> datetime:
    """Where the calendar unit that begins at `start` ends. OverflowError or ValueError after the year 9999."""
    if unit == "year":
        return start.replace(year=start.year + 1)
    if unit == "month":
        return start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    return start + timedelta(days=_DAYS_OF[unit])


def _wall_span(start: datetime, unit: str, tz: tzinfo | None) -> Span:
    """The span of one unit of the clock on the wall; from the first showing to the last of what it shows twice."""
    start_s = _seconds_of(start, tz)
    if unit in _CLOCK_UNITS:
        return Span(start_s, max(start_s, _seconds_of(start, tz, fold=1)) + _CLOCK_UNITS[unit])
    try:
        return Span(start_s, _seconds_of(_next(start, unit), tz))
    except (OverflowError, ValueError):
        return Span(start_s, LATEST_S)


def _seconds_of(wall: datetime, tz: tzinfo | None, fold: int = 0) -> int:
    """When the clock shows this: the first time, or with `fold=1` the second (PEP 495)."""
    if not 2 <= wall.year <= 9998:
        # Here a zone's offset can leave what datetime can hold; a day more or less does not matter.
        return (wall - _EPOCH) // timedelta(seconds=1)
    return int(wall.replace(microsecond=0, tzinfo=tz, fold=fold).timestamp())
