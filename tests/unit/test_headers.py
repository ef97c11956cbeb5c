"""Header blocks, encoded words, ids and parameters."""

from email.header import Header
from email.utils import encode_rfc2231

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailfs.message.headers import (
    MAX_MESSAGE_ID_CHARS,
    MAX_REFERENCES,
    decode_value,
    decode_values,
    parameter_text,
    read_content_type,
    read_disposition,
    read_fields,
    read_message_id,
    read_parameters,
    read_references,
    skip_mbox_line,
    split_head,
    unify_lines,
)


def _split(raw: bytes) -> tuple[bytes, bytes]:
    data = unify_lines(raw)
    start = skip_mbox_line(data, 0, len(data))
    head_end, body = split_head(data, start, len(data))
    return data[start:head_end], data[body:]


@pytest.mark.parametrize(
    ("raw", "unified"),
    [
        (b"a\nb", b"\na\nb"),
        (b"a\r\nb\r\n", b"\na\nb\n"),
        (b"a\rb\r", b"\na\nb\n"),
        (b"a\r\r\nb", b"\na\nb"),
        (b"a\r\nb\rc", b"\na\nb\rc"),
        (b"a\nb\rc", b"\na\nb\rc"),
        (b"a\rb\nc", b"\na\nb\nc"),
        (b"\r", b"\n\n"),
        (b"", b"\n"),
    ],
)
def test_every_line_end_becomes_lf(raw: bytes, unified: bytes) -> None:
    assert unify_lines(raw) == unified


@pytest.mark.parametrize(
    ("raw", "head", "body"),
    [
        (b"A: b\n\nbody", b"\nA: b", b"body"),
        (b"A: b\n", b"\nA: b", b""),
        (b"A: b", b"\nA: b", b""),
        (b"A: b\nnot a field\nmore", b"\nA: b", b"not a field\nmore"),
        (b"A: b\n c\nD: e\nno", b"\nA: b\n c\nD: e", b"no"),
        (b"A: b\nno field\nC: d\n\nbody", b"\nA: b\nno field\nC: d", b"body"),
        (b"just text\n\nmore", b"", b"just text\n\nmore"),
        (b"\nbody", b"", b"body"),
        (b"\n", b"", b""),
        (b"", b"", b""),
        (b"\0", b"", b"\0"),
        (b"From a@b Mon\nA: b\n\nbody", b"\nA: b", b"body"),
        (b"From a@b Mon\n>From c@d Tue\nA: b\n\nbody", b"\nA: b", b"body"),
        (b"From a@b Mon", b"", b""),
    ],
)
def test_the_header_ends_where_it_should(raw: bytes, head: bytes, body: bytes) -> None:
    assert _split(raw) == (head, body)


def test_only_needed_fields_are_read_whatever_their_case_and_folds() -> None:
    data = b"\nSUBJECT: a\n\tb\nX-Other: c\nto : d\nTo: e\nSubjects: f\n X-To: g\nCC:h"
    fields, is_cut = read_fields(data, 0, len(data))
    assert fields == {b"subject": [b" a\n\tb"], b"to": [b" d", b" e"], b"cc": [b"h"]}
    assert not is_cut


def test_fields_behind_the_end_are_not_read() -> None:
    data = b"\nTo: a\n\nCc: b"
    assert read_fields(data, 0, 6)[0] == {b"to": [b" a"]}


def test_a_block_with_too_many_fields_says_that_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailfs.message.headers.MAX_FIELDS", 3)
    data = b"\nTo: a" * 4
    fields, is_cut = read_fields(data, 0, len(data))
    assert fields == {b"to": [b" a"] * 3}
    assert is_cut


def test_a_block_longer_than_the_limit_says_that_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailfs.message.headers.MAX_HEADER_BYTES", 8)
    assert read_fields(b"\nTo: ab\nCc: d", 0, 13) == ({b"to": [b" ab"]}, True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b" plain ", "plain"),
        (b" two\n\tlines\n more", "two lines more"),
        (b"=?utf-8?q?caf=C3=A9_noir?=", "café noir"),
        (b"=?UTF-8?B?Y2Fmw6k=?=", "café"),
        (b"=?utf-8?q?a?= =?utf-8?q?b?=", "ab"),
        (b"=?utf-8?q?a?=\n =?iso-8859-1?q?=E9?=", "aé"),
        (b"=?utf-8?q?a?==?utf-8?q?b?=", "ab"),
        (b"=?utf-8?q?a?= b =?utf-8?q?c?=", "a b c"),
        (b"x =?utf-8?q?a?= y", "x a y"),
        # A character cut in two by the sender.
        (b"=?utf-8?q?=C3?= =?utf-8?q?=A9?=", "é"),
        (b"=?utf-8?b?4pi?= =?utf-8?b?6?=", "�"),
        (b"=?iso-2022-jp?b?GyRCRnxLXBsoQg==?=", "日本"),
        (b"=?utf-8*en?q?a?=", "a"),
        (b"=?x-unknown?q?caf=E9?=", "café"),
        (b"=?utf-8?q??=", ""),
        (b"=?utf-8?q?a", "=?utf-8?q?a"),
        (b"=?utf-8?x?a?=", "=?utf-8?x?a?="),
        (b"=?utf-8?b?****?=", ""),
        (b'"=?utf-8?q?J=C3=B6?=" <j@example.org>', '"Jö" <j@example.org>'),
        ("raw é".encode(), "raw é"),
        ("raw é".encode("latin-1"), "raw é"),
        ("é =?utf-8?q?a?=".encode("latin-1"), "é a"),
        (b"=?utf-8?q?a=00=0D=0ABcc:_x?=", "a Bcc: x"),
        (b"a\0b\x7fc\rd", "a b c d"),
        ("a\u2028b\u0085c".encode(), "a b c"),
        (b"", ""),
    ],
)
def test_values_become_one_line_of_text(value: bytes, text: str) -> None:
    assert decode_value(value) == text


@given(
    st.text(
        st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp", "Zs"), max_codepoint=0x1F9FF),
        min_size=1,
        max_size=120,
    )
)
def test_every_encoded_header_the_standard_library_writes_is_read_back(text: str) -> None:
    encoded = Header(text, "utf-8", maxlinelen=60).encode()
    assert decode_value(encoded.encode()) == text


def test_values_of_a_repeated_field_are_joined_and_cut() -> None:
    assert decode_values([b" a", b" b"], 100) == ("a, b", False)
    assert decode_values([b"x" * 11], 10) == ("x" * 10, True)
    assert decode_values([b"x" * 10], 10) == ("x" * 10, False)
    assert decode_values([b"x" * 1000], 10) == ("x" * 10, True)
    assert decode_values([b"x"] * 100, 10)[1]
    assert decode_values(None, 10) == ("", False)


@pytest.mark.parametrize(
    ("value", "message_id"),
    [
        (b" <a@b>", "a@b"),
        (b" <a@b> (added by x)", "a@b"),
        (b" <a\n b @c>", "ab@c"),
        (b" <a\0\x07b>", "ab"),
        (b" a@b ", "a@b"),
        (b" <a@b", "a@b"),
        (b" a@b>", "a@b"),
        ("<é@b>".encode("latin-1"), "é@b"),
        (b"<>", ""),
        (b"", ""),
        (b"<" + b"x" * 1_000_000 + b">", "x" * MAX_MESSAGE_ID_CHARS),
    ],
)
def test_message_ids_are_read(value: bytes, message_id: str) -> None:
    assert read_message_id(value) == message_id


@pytest.mark.parametrize(
    ("references", "in_reply_to", "ids"),
    [
        (b"<a@x> <b@x>\n <c@x>", b"<c@x>", ("a@x", "b@x", "c@x")),
        (b"<a@x><b@x>", b"<d@x>", ("a@x", "b@x", "d@x")),
        (b"<a@x> <own@x> <a@x>", b"", ("a@x",)),
        (b"", b" <a@x> <b@x>", ("a@x", "b@x")),
        (b"", b'<a@x> (Joe <joe@x>\'s message of "Monday")', ("a@x",)),
        (b"", b'Message from Joe <joe@x> of "Monday" <a@x> ', ("a@x",)),
        (b"", b"Joe <joe@x>'s message of \"Monday\"", ()),
        (b"", b"someone@example.org", ()),
        (b"", b"CABeprjwo_rjNRpZ9rXpLzB6gO00@mail.example.org", ("CABeprjwo_rjNRpZ9rXpLzB6gO00@mail.example.org",)),
        (b"<> < > <a", b"", ()),
        (b"", b"", ()),
    ],
)  # fmt: skip
def test_references_are_collected(
    references: bytes, in_reply_to: bytes, ids: tuple[str, ...]
) -> None:
    assert read_references(references, in_reply_to, "own@x") == ids


def test_of_many_references_the_first_and_the_last_are_kept() -> None:
    every = [f"{number}@x" for number in range(200)]
    kept = read_references("".join(f"<{one}>" for one in every).encode(), b"", "")
    assert kept == (every[0], *every[-(MAX_REFERENCES - 1) :])
    assert len(kept) == MAX_REFERENCES


@pytest.mark.parametrize(
    ("value", "kind", "charset", "boundary"),
    [
        (b" text/plain", b"text/plain", "", b""),
        (b" Text/HTML; charset=UTF-8", b"text/html", "UTF-8", b""),
        (b'text/plain;charset="utf-8"; format=flowed', b"text/plain", "utf-8", b""),
        (b"text/plain; charset = us-ascii (Plain text)", b"text/plain", "us-ascii", b""),
        (b'multipart/mixed;\n\tboundary="a b;c=d"', b"multipart/mixed", "", b"a b;c=d"),
        (b'multipart/mixed; boundary="a\\"b "', b"multipart/mixed", "", b'a"b'),
        (b"multipart/mixed; BOUNDARY=abc;", b"multipart/mixed", "", b"abc"),
        (b'multipart/mixed; boundary="unclosed', b"multipart/mixed", "", b"unclosed"),
        (b"multipart/mixed; boundary=a; boundary=b", b"multipart/mixed", "", b"a"),
        (b"text", b"text/plain", "", b""),
        (b"", b"text/plain", "", b""),
        (b";", b"text/plain", "", b""),
    ],
)
def test_content_types_are_read(value: bytes, kind: bytes, charset: str, boundary: bytes) -> None:
    content = read_content_type(value)
    assert (content.kind, content.charset, content.boundary) == (kind, charset, boundary)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (b"x; filename=a.txt", "a.txt"),
        (b"x; filename=my file.txt", "my file.txt"),
        (b'x; filename="a;b.txt"', "a;b.txt"),
        (b'x; filename="=?utf-8?q?caf=C3=A9.txt?="', "café.txt"),
        ('x; filename="café.txt"'.encode(), "café.txt"),
        (b"x; filename*=utf-8''caf%C3%A9.txt", "café.txt"),
        (b"x; filename*=iso-8859-1'fr'caf%E9.txt", "café.txt"),
        (b"x; filename=plain; filename*=utf-8''better", "better"),
        (b"x; filename*0=one; filename*1=two", "onetwo"),
        (b"x; filename*1=two; filename*0=one", "onetwo"),
        (b"x; filename*0=one; filename*2=three", "one"),
        (b"x; filename*0*=utf-8''a%C3; filename*1*=%A9b", "aéb"),
        (b"x; filename*0*=utf-8''%41; filename*1=\"%41\"", "A%41"),
        (b"x; filename*=no-quotes%41", "no-quotesA"),
        (b"x; filename*=x'y", "x'y"),
        (b"x; filename*=utf-8''100%zz", "100%zz"),
        (b'x; filename="a\\\\b"', "a\\b"),
        (b"x; filename*=utf-8''a%0Ab%00c", "a b c"),
        (b"x; filename", ""),
        (b"x", ""),
    ],
)
def test_file_names_are_read(value: bytes, name: str) -> None:
    assert read_disposition(value) == (b"x", name)


@given(st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp", "Zs")), min_size=1))
def test_every_rfc_2231_parameter_the_standard_library_writes_is_read_back(name: str) -> None:
    value = "attachment; filename*=" + encode_rfc2231(name, "utf-8")
    assert parameter_text(read_parameters(value.encode()), b"filename") == name


@given(st.binary(max_size=100))
def test_no_value_raises(value: bytes) -> None:
    decode_value(value).encode()
    read_message_id(value).encode()
    read_references(value, value, "")
    read_content_type(b"a/b;" + value).name.encode()
    read_disposition(b"x;filename*0*=" + value)[1].encode()
