"""Whole messages: fields, limits, and that nothing raises; the corpus against the standard library."""

import email
import email.message
import email.utils
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailfs.message.headers import MAX_ADDRESS_CHARS, MAX_SUBJECT_CHARS, decode_value
from mailfs.message.parse import ParsedMessage, parse_message

_CORPUS = Path(__file__).resolve().parents[2] / "../shared/corpus"

_MESSAGE = b"""\
Received: from b by c; Fri, 21 Nov 1997 10:01:22 -0600
Received: from a by b; Fri, 21 Nov 1997 10:01:10 -0600
From: =?utf-8?q?J=C3=B6?= <joe@example.org>
To: a@example.org,
 b@example.org
Cc: c@example.org
Bcc: d@example.org
Subject: A =?utf-8?q?caf=C3=A9?=
List-Id: A list <list.example.org>
Message-ID: <3@example.org>
References: <1@example.org>
In-Reply-To: <2@example.org>
Date: Fri, 21 Nov 1997 09:55:06 -0600

Hello
> quoted
"""


def test_every_field_of_a_usual_message_is_read() -> None:
    assert parse_message(_MESSAGE) == ParsedMessage(
        message_id="3@example.org",
        references=("1@example.org", "2@example.org"),
        date_s=880127706,
        received_s=880128082,
        subject="A café",
        sender="Jö <joe@example.org>",
        recipient="a@example.org, b@example.org",
        cc="c@example.org, d@example.org",
        list_id="A list <list.example.org>",
        body="Hello\n> quoted\n",
        attachment="",
        has_attachment=False,
        is_partial=False,
    )


@pytest.mark.parametrize("line_end", [b"\r\n", b"\r", b"\r\r\n"])
def test_line_ends_make_no_difference(line_end: bytes) -> None:
    assert parse_message(_MESSAGE.replace(b"\n", line_end)) == parse_message(_MESSAGE)


def test_an_mbox_line_before_the_header_is_skipped() -> None:
    assert parse_message(b"From joe@example.org Fri Nov 21\n" + _MESSAGE) == parse_message(_MESSAGE)


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"", ""),
        (b"\0", " "),
        (b"\n", ""),
        (b"\r", ""),
        (b"no header\nat all\n", "no header\nat all\n"),
        (b"\nbody only", "body only"),
        (b"Subject: header only", ""),
        (b" folded first line\nSubject: x\n\nbody", " folded first line\nSubject: x\n\nbody"),
        (b"\xff\xfe", "ÿþ"),
    ],
)
def test_what_is_hardly_a_message_gives_what_it_has(raw: bytes, body: str) -> None:
    assert parse_message(raw).body == body


def test_missing_fields_are_empty() -> None:
    message = parse_message(b"X: y\n\nbody")
    assert message.message_id == message.subject == message.sender == message.recipient == ""
    assert message.cc == message.list_id == message.attachment == ""
    assert message.references == ()
    assert message.date_s is None
    assert message.received_s is None


def test_of_repeated_fields_the_first_counts_but_recipients_are_joined() -> None:
    message = parse_message(
        b"Subject: a\nSubject: b\nFrom: c\nFrom: d\nDate: 1 Jan 1970 00:00:01 +0000\n"
        b"Date: 1 Jan 1970 00:00:02 +0000\nMessage-ID: <e>\nMessage-ID: <f>\n"
        b"To: g\nTo: h\nCc: i\nBcc: j\nCc: k\n\n"
    )
    assert (message.subject, message.sender, message.date_s) == ("a", "c", 1)
    assert (message.message_id, message.recipient, message.cc) == ("e", "g, h", "i, k, j")


def test_sender_stands_in_for_a_missing_from() -> None:
    assert parse_message(b"Sender: a@example.org\n\n").sender == "a@example.org"
    assert parse_message(b"Sender: a@example.org\nFrom: b\n\n").sender == "b"


def test_the_topmost_believable_received_date_counts() -> None:
    message = parse_message(
        b"Received: x; nonsense\nReceived: x; 1 Jan 2200 00:00:00 +0000\n"
        b"Received: x; 1 Jan 1970 00:00:09 +0000\nReceived: x; 1 Jan 1970 00:00:05 +0000\n\n"
    )
    assert message.received_s == 9


@pytest.mark.parametrize(
    ("field", "limit"),
    [(b"Subject", MAX_SUBJECT_CHARS), (b"To", MAX_ADDRESS_CHARS), (b"Bcc", MAX_ADDRESS_CHARS)],
)
def test_long_fields_are_cut_and_the_message_says_so(field: bytes, limit: int) -> None:
    whole = parse_message(field + b": " + b"x" * limit + b"\n\n")
    # The blank behind the colon is no character of the text.
    assert max(map(len, (whole.subject, whole.recipient, whole.cc))) == limit
    assert not whole.is_partial
    cut = parse_message(field + b": " + b"x" * (limit + 1) + b"\n\n")
    assert max(map(len, (cut.subject, cut.recipient, cut.cc))) == limit
    assert cut.is_partial


_WORDS = st.sampled_from(
    [
        *("Subject: ", "From: ", "To: ", "Date: ", "Message-ID: ", "References: ", "Received: "),
        *("Content-Type: ", "Content-Disposition: ", "Content-Transfer-Encoding: "),
        *("multipart/mixed; ", "boundary=b", "message/rfc822", "text/html", "text/plain; "),
        *("charset=", "utf-7", "utf-16", "iso-2022-jp", "big5", "name*0*=", "filename=", '"'),
        *("base64", "quoted-printable", "\n--b\n", "\n--b--\n", "=?utf-8?q?", "?=", "<a@b>"),
        *("\n", "\n\n", "\r\n", "\r", "\t", " ", ";", "%41", "=41", "YWJj", "<b>", "<!--", "&lt;"),
        *("1 Jan 2000 00:00:00 +0000", "\0", "é", "\\"),
    ]
)
_MAIL = st.lists(st.one_of(_WORDS.map(str.encode), st.binary(max_size=4)), max_size=60).map(
    b"".join
)


@given(st.one_of(st.binary(max_size=200), _MAIL))
@settings(max_examples=300)
def test_nothing_raises_and_every_fact_keeps_its_bounds(raw: bytes) -> None:
    _check(parse_message(raw))


def _check(message: ParsedMessage) -> None:
    lines = (message.message_id, message.subject, message.sender, message.recipient)
    for text in (*lines, message.cc, message.list_id, *message.references):
        assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029]", text)
        text.encode()
    assert not re.search(r"\s", message.message_id)
    assert "\0" not in message.body
    message.body.encode()
    message.attachment.encode()
    assert message.message_id not in message.references
    assert len(set(message.references)) == len(message.references) <= 50
    assert message.date_s is None or 0 <= message.date_s <= 253_402_300_799
    assert message.received_s is None or 0 <= message.received_s <= 4_102_444_800
    assert message.has_attachment or not message.attachment


def _mails() -> Iterator[bytes]:
    for archive in sorted(_CORPUS.glob("*.tar.gz")):
        with tarfile.open(archive) as opened:
            for member in opened:
                reader = opened.extractfile(member) if member.isfile() else None
                if reader is not None:
                    with reader:
                        yield reader.read()


@pytest.fixture(scope="module")
def pairs() -> list[tuple[ParsedMessage, email.message.Message]]:
    """What mailfs and the standard library make of each message of the corpus."""
    if not _CORPUS.is_dir():
        pytest.skip("no corpus beside the project")
    return [
        # The body takes the library most of the time and is not compared.
        (parse_message(raw), email.message_from_bytes(_head(raw)))
        for raw in _mails()
    ]


def _head(raw: bytes) -> bytes:
    return re.split(rb"(?<=\n)\r?\n|\r\r", raw, maxsplit=1)[0]


def _flat(text: object) -> str:
    return "".join(str(text or "").split())


@pytest.mark.corpus
def test_every_message_of_the_corpus_keeps_its_bounds(
    pairs: list[tuple[ParsedMessage, email.message.Message]],
) -> None:
    assert len(pairs) > 2000
    for message, _ in pairs:
        _check(message)
    # Nearly all real mail is read whole.
    assert sum(message.is_partial for message, _ in pairs) <= 0.03 * len(pairs)


@pytest.mark.corpus
def test_message_ids_agree_with_the_standard_library(
    pairs: list[tuple[ParsedMessage, email.message.Message]],
) -> None:
    # The library ends a header at the first line that is no field; mailfs skips that line.
    agreed = 0
    for message, other in pairs:
        value = _flat(other["Message-ID"])
        match = re.search("<(.*?)>", value)
        agreed += message.message_id == (match[1] if match else value)
    assert agreed >= 0.99 * len(pairs)


@pytest.mark.corpus
def test_dates_agree_with_the_standard_library(
    pairs: list[tuple[ParsedMessage, email.message.Message]],
) -> None:
    # The library gives dates before 1970 and of the year 102 too, and takes `59:10` for a time.
    agreed = 0
    for message, other in pairs:
        fields = email.utils.parsedate_tz(str(other["Date"] or ""))
        expected = None
        if fields is not None:
            expected = email.utils.mktime_tz((*fields[:9], fields[9] or 0))
        agreed += message.date_s == expected
    assert agreed >= 0.99 * len(pairs)


@pytest.mark.corpus
@pytest.mark.parametrize(("name", "attribute"), [("Subject", "subject"), ("From", "sender")])
def test_texts_agree_with_the_standard_library(
    pairs: list[tuple[ParsedMessage, email.message.Message]], name: str, attribute: str
) -> None:
    # Raw 8-bit fields differ (the library keeps no text of them), and folds within encoded words.
    agreed = 0
    for message, other in pairs:
        expected = decode_value(str(other[name] or "").encode("utf-8", "replace"))
        agreed += _flat(getattr(message, attribute)) == _flat(expected)
    assert agreed >= 0.97 * len(pairs)
