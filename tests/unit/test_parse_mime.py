"""The tree of parts."""

import base64

import pytest

from mailfs.message import mime
from mailfs.message.parse import parse_message


def _part(header: str, body: str) -> str:
    return f"{header}\n\n{body}\n" if header else f"\n{body}\n"


def _multipart(kind: str, boundary: str, *parts: str) -> str:
    lines = "".join(f"--{boundary}\n{part}" for part in parts)
    return f'Content-Type: multipart/{kind}; boundary="{boundary}"\n\npreamble\n{lines}--{boundary}--\nepilogue\n'


def _body(source: str) -> str:
    return parse_message(source.encode()).body


PLAIN = _part("Content-Type: text/plain", "plain")
HTML = _part("Content-Type: text/html", "<p>rich</p>")


def test_all_texts_of_nested_multiparts_are_indexed_in_order() -> None:
    source = _multipart(
        "mixed",
        "a",
        _multipart("alternative", "b", PLAIN, HTML),
        _part("", "last"),
        "\nno header\n",
    )
    message = parse_message(source.encode())
    assert message.body == "plain\nrich\nlast\nno header"
    assert not message.is_partial
    assert not message.has_attachment


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_every_line_end_gives_the_same_parts(line_end: str) -> None:
    source = _multipart("mixed", "a", PLAIN, HTML).replace("\n", line_end)
    assert parse_message(source.encode()).body == "plain\nrich"


def test_text_is_decoded_by_its_transfer_encoding_and_charset() -> None:
    encoded = base64.encodebytes("grüße".encode("latin-1")).decode()
    source = _multipart(
        "mixed",
        "a",
        _part(
            "Content-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: BASE64 ",
            encoded,
        ),
        _part(
            "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: Quoted-Printable",
            "na=C3=AFve so=\nft",
        ),
    )
    assert _body(source) == "grüße\nnaïve soft"


def test_attachments_that_are_no_text_give_their_name_only() -> None:
    source = _multipart(
        "mixed",
        "a",
        PLAIN,
        _part('Content-Type: image/png; name="by type.png"', "iVBORw0KGgo="),
        _part(
            "Content-Type: application/pdf; name=other.pdf\n"
            "Content-Disposition: attachment; filename*=utf-8''caf%C3%A9.pdf",
            "JVBERi0=",
        ),
    )
    message = parse_message(source.encode())
    assert message.body == "plain"
    assert message.attachment == "by type.png\ncafé.pdf"
    assert message.has_attachment


def test_an_attachment_without_a_name_is_one() -> None:
    source = _multipart("mixed", "a", PLAIN, _part("Content-Disposition: ATTACHMENT", "text"))
    message = parse_message(source.encode())
    assert message.has_attachment
    assert message.attachment == ""


def test_an_inline_image_without_a_name_is_no_attachment() -> None:
    part = _part("Content-Type: image/png\nContent-Disposition: inline", "iVBORw0KGgo=")
    assert not parse_message(_multipart("related", "a", HTML, part).encode()).has_attachment


@pytest.mark.parametrize(
    ("kind", "is_indexed"),
    [
        ("text/calendar", True),
        ("text/x-patch", True),
        ("text/rfc822-headers", True),
        ("message/delivery-status", True),
        ("text/css", False),
        ("text/rtf", False),
        ("application/octet-stream", False),
        ("image/svg+xml", False),
    ],
)
def test_text_is_indexed_where_it_is_for_people(kind: str, is_indexed: bool) -> None:
    assert _body(f"Content-Type: {kind}\n\nword") == ("word" if is_indexed else "")


@pytest.mark.parametrize("kind", ["message/rfc822", "message/global"])
def test_a_nested_message_gives_its_subject_sender_and_text(kind: str) -> None:
    inner = "From: =?utf-8?q?J=C3=B6?= <j@x>\nSubject: inner\nTo: k@x\n\ntext"
    source = _multipart("mixed", "a", PLAIN, _part(f"Content-Type: {kind}", inner))
    assert _body(source) == "plain\ninner\nJö <j@x>\ntext"


def test_a_nested_message_may_begin_with_an_mbox_line() -> None:
    source = "Content-Type: message/rfc822\n\nFrom j@x Mon\nSubject: inner\n\ntext"
    assert _body(source) == "inner\ntext"


def test_a_nested_message_in_base64_is_read() -> None:
    inner = base64.encodebytes(b"Subject: inner\r\n\r\ntext\r\n").decode()
    source = f"Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n{inner}"
    assert _body(source) == "inner\ntext\n"


def test_parts_of_a_digest_are_messages_unless_they_say_otherwise() -> None:
    source = _multipart(
        "digest",
        "a",
        "\nSubject: one\n\nfirst\n",
        _part("Content-Type: text/plain", "Subject: two"),
    )
    assert _body(source) == "one\nfirst\nSubject: two"


def test_signatures_are_neither_text_nor_attachments() -> None:
    signature = _part(
        "Content-Type: application/pgp-signature; name=signature.asc", "-----BEGIN PGP SIGNATURE"
    )
    message = parse_message(_multipart("signed", "a", PLAIN, signature).encode())
    assert (message.body, message.attachment, message.has_attachment) == ("plain", "", False)


def test_encrypted_parts_are_not_looked_at() -> None:
    source = _multipart("encrypted", "a", _part("Content-Type: text/plain; name=x", "hidden"))
    message = parse_message(source.encode())
    assert (message.body, message.attachment) == ("", "")


def test_a_boundary_that_begins_with_the_parents_is_another_one() -> None:
    source = _multipart("mixed", "ab", _multipart("mixed", "abc", PLAIN), HTML)
    assert _body(source) == "plain\nrich"


def test_a_line_that_goes_on_behind_the_boundary_is_text() -> None:
    source = _multipart("mixed", "a", _part("", "--a is not the end\n--a-- neither"))
    assert _body(source) == "--a is not the end\n--a-- neither"


def test_blanks_behind_a_delimiter_are_allowed() -> None:
    source = _multipart("mixed", "a", PLAIN, HTML).replace("--a\n", "--a \t\n")
    assert _body(source) == "plain\nrich"


def test_an_inner_multipart_never_closed_ends_with_its_parent() -> None:
    inner = _multipart("alternative", "b", PLAIN).replace("--b--\nepilogue\n", "")
    message = parse_message(_multipart("mixed", "a", inner, HTML).encode())
    assert message.body == "plain\nrich"
    assert message.is_partial


@pytest.mark.parametrize(
    "content_type",
    ["multipart/mixed", "multipart/mixed; boundary=", 'multipart/mixed; boundary="absent"'],
)
def test_a_multipart_without_its_boundary_is_plain_text(content_type: str) -> None:
    message = parse_message(f"Content-Type: {content_type}\n\nwords\n--b\n".encode())
    assert message.body == "words\n--b\n"
    assert message.is_partial


@pytest.mark.parametrize("end", ["", "\n", "\n--", "\n--a", "\n--a-", "\n--a\n", "\n--a\nContent-"])
def test_a_message_cut_anywhere_in_a_delimiter_keeps_its_text(end: str) -> None:
    source = "Content-Type: multipart/mixed; boundary=a\n\n--a\n\nwords" + end
    message = parse_message(source.encode())
    assert message.body.startswith("words")
    assert message.is_partial


def test_an_empty_part_ends_before_the_next() -> None:
    source = "Content-Type: multipart/mixed; boundary=a\n\n--a\n--a\n\n--a\nX: y\n\n--a\n\nz\n--a--"
    assert _body(source) == "z"


def test_text_beyond_the_limit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mime, "MAX_TEXT_CHARS", 7)
    message = parse_message(_multipart("mixed", "a", PLAIN, HTML).encode())
    assert message.body == "plain\nri"
    assert message.is_partial


def test_bytes_beyond_the_limit_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mime, "MAX_TEXT_BYTES", 9)
    message = parse_message(_multipart("mixed", "a", PLAIN, PLAIN).encode())
    assert message.body == "plain\nplai"
    assert message.is_partial


def test_parts_beyond_the_limit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mime, "MAX_PARTS", 3)
    message = parse_message(_multipart("mixed", "a", *[_part("", "x")] * 5).encode())
    assert message.body == "x\nx"
    assert message.is_partial


def test_file_names_beyond_the_limit_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mime, "MAX_NAMES_CHARS", 5)
    message = parse_message(b"Content-Type: image/png; name=abcdefgh\n\nx")
    assert message.attachment == "abcde"
    assert message.is_partial


@pytest.mark.parametrize("depth", [mime.MAX_DEPTH - 1, mime.MAX_DEPTH])
def test_nesting_is_followed_to_the_limit(depth: int) -> None:
    source = PLAIN
    for level in range(depth):
        source = _multipart("mixed", f"b{level:03}", source)
    message = parse_message((_multipart("mixed", "top", source, HTML)).encode())
    is_within = depth < mime.MAX_DEPTH
    assert message.body == ("plain\nrich" if is_within else "rich")
    assert message.is_partial is not is_within


def test_bytes_are_scanned_for_delimiters_only_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    source = PLAIN * 50
    for level in range(5):
        source = _multipart("mixed", f"b{level}", source)
    monkeypatch.setattr(mime, "_FREE_SCAN_BYTES", 0)
    assert not parse_message(source.encode()).is_partial
    monkeypatch.setattr(mime, "MAX_SCANS", 2)
    assert parse_message(source.encode()).is_partial


def test_messages_in_messages_are_followed_to_the_limit() -> None:
    source = "Content-Type: message/rfc822\n\n" * 1000 + "Subject: deep\n\ntext"
    message = parse_message(source.encode())
    assert message.is_partial
    assert _body("Content-Type: message/rfc822\n\n" * 90 + "Subject: deep\n\ntext") == "deep\ntext"
