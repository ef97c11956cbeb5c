"""Dates of mail to seconds since 1970 UTC (RFC 5322 sections 3.3 and 4.3).

Invariant: no input raises; a date that cannot be read, or is no possible one, is None.
"""

import re
from datetime import date
from typing import Final

# A reader outside this range is reading noise; no clock of a mail system showed it.
MAX_DATE_S: Final = 253_402_300_799  # 9999-12-31T23:59:59Z
# A Received date later than this (2100) would keep a message at the top of a mailbox for ever.
MAX_RECEIVED_S: Final = 4_102_444_800
# A date takes 31 bytes, 80 with comments; what is longer is no date.
_MAX_DATE_BYTES = 200

_DATE = re.compile(
    rb"\s*+(?:[A-Za-z]{3,9}+\.?+,?+\s*+)?"
    rb"(\d{1,2}+)[\s-]++([A-Za-z]{3})[A-Za-z]*+\.?+[\s-]++(\d{2,4}+)\s++"
    rb"(\d{1,2}+):(\d\d)(?::(\d\d)(?:\.\d++)?)?\s*+"
    rb"(?:(?:GMT|UTC)?([+-])(\d{1,2}?):?+(\d\d)(?!\d)|([A-Za-z]{1,5}+))?",
)
_MONTH_NAMES = b"jan feb mar apr may jun jul aug sep oct nov dec"
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES.split(), start=1)}
# Seconds east of Greenwich. RFC 5322 names the American zones; the others are unambiguous ones of old mail.
# All other names, and RFC 822's military letters (which half the software had backwards), count as UTC.
_ZONES = {
    b"EST": -18_000,
    b"EDT": -14_400,
    b"CST": -21_600,
    b"CDT": -18_000,
    b"MST": -25_200,
    b"MDT": -21_600,
    b"PST": -28_800,
    b"PDT": -25_200,
    b"AST": -14_400,
    b"ADT": -10_800,
    b"CET": 3_600,
    b"MET": 3_600,
    b"CEST": 7_200,
    b"MEST": 7_200,
    b"EET": 7_200,
    b"EEST": 10_800,
    b"WEST": 3_600,
    b"JST": 32_400,
    b"KST": 32_400,
}
_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()


def parse_date(value: bytes) -> int | None:
    """Seconds since 1970 UTC of a Date value; None where unreadable or outside 1970 to 9999.

    A missing or unknown zone counts as UTC; `-600` is taken for -0600. A day behind its month's last runs into the next month, as in
    most mail software.
    """
    match = _DATE.match(value)
    seconds = _seconds_of_other_forms(value) if match is None else _seconds(match)
    return seconds if seconds is not None and 0 <= seconds <= MAX_DATE_S else None


def parse_received(value: bytes) -> int | None:
    """Seconds since 1970 UTC of a Received field's date (behind the last semicolon); None if before 1970 or
    after 2100."""
    seconds = parse_date(value[value.rfind(b";") + 1 :])
    return seconds if seconds is not None and seconds <= MAX_RECEIVED_S else None


def _seconds(match: re.Match[bytes]) -> int | None:
    day, month_name, year_digits, hour, minute, second, sign, zone_hour, zone_minute, zone = (
        match.groups()
    )
    month = _MONTHS.get(month_name.lower())
    year = int(year_digits)
    if len(year_digits) == 2:
        # RFC 5322 section 4.3.
        year += 2000 if year < 50 else 1900
    elif len(year_digits) == 3:
        year += 1900
    days = int(day)
    hours, minutes = int(hour), int(minute)
    if month is None or not year or not 1 <= days <= 31 or hours > 24 or minutes > 59:
        return None
    offset = 0
    if sign:
        offset = int(zone_hour) * 3600 + int(zone_minute) * 60
        if sign == b"-":
            offset = -offset
    elif zone:
        offset = _ZONES.get(zone.upper(), 0)
    days += date(year, month, 1).toordinal() - 1 - _EPOCH_DAY
    return days * 86_400 + hours * 3600 + minutes * 60 + int(second or 0) - offset


def _seconds_of_other_forms(value: bytes) -> int | None:
    """What the standard library can still make of it: ctime's form, ISO dates, month before day."""
    if len(value) > _MAX_DATE_BYTES or not value.strip():
        return None
    # Here, because it takes ten times as long to import as all of this package, and few mails need it.
    from email.utils import mktime_tz, parsedate_tz

    try:
        fields = parsedate_tz(value.decode("latin-1"))
        return None if fields is None else mktime_tz(fields)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
