"""Transfer encodings, charsets and HTML."""

import base64
import quopri
from encodings.aliases import aliases

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailfs.message.text import (
    decode_base64,
    decode_charset,
    decode_transfer,
    decode_undeclared,
    html_to_text,
    without_armour,
)


@pytest.mark.parametrize(
    ("data", "charset", "text"),
    [
        (b"caf\xc3\xa9", "utf-8", "café"),
        (b"caf\xc3\xa9", "UTF8", "café"),
        (b"caf\xe9", "iso-8859-1", "café"),
        (b"\x93caf\xe9\x94", "iso-8859-1", "“café”"),
        (b"caf\xe9 \xa4", "ISO_8859-15", "café €"),
        (b"caf\xc3\xa9", "us-ascii", "café"),
        (b"caf\xe9", "us-ascii", "café"),
        (b"caf\xc3\xa9", "x-nonsense", "café"),
        (b"caf\xe9", "x-nonsense", "café"),
        (b"caf\xe9", "", "café"),
        (b"caf\xe9", "x" * 100_000, "café"),
        (b"caf\xe9", "windows-1252\0", "café"),
        ("日本語".encode("iso2022_jp"), "ISO-2022-JP", "日本語"),
        ("日本語".encode("shift_jis"), "Shift_JIS", "日本語"),
        ("中文".encode("gbk"), "GB2312", "中文"),
        ("中文".encode("big5"), "Big5", "中文"),
        ("한국어".encode("cp949"), "ks_c_5601-1987", "한국어"),
        (b"Hi Mom -+Jjo--!", "UTF-7", "Hi Mom -☺-!"),
        (b"\xff\xfea\0", "utf-16", "a"),
    ],
)
def test_declared_charsets_are_decoded_and_unknown_ones_guessed(
    data: bytes, charset: str, text: str
) -> None:
    assert decode_charset(data, charset) == text


@pytest.mark.parametrize("charset", ["zip", "rot13", "base64", "idna", "unicode_escape", "hex"])
def test_codecs_that_are_no_charsets_are_not_used(charset: str) -> None:
    assert decode_charset(rb"NQXI \d \u0041", charset) == rb"NQXI \d \u0041".decode()


@given(st.sampled_from(sorted({*aliases, *aliases.values()})), st.binary(max_size=60))
@settings(max_examples=400)
def test_no_charset_python_knows_raises_or_gives_lone_surrogates(charset: str, data: bytes) -> None:
    decode_charset(data, charset).encode()


def test_lone_surrogates_of_utf_7_are_replaced() -> None:
    assert decode_charset(b"a+2AA-b", "utf-7") == "a?b"


def test_wrong_bytes_in_a_declared_charset_become_replacement_characters() -> None:
    assert decode_charset(b"a\xffb", "utf-8") == "a�b"


def test_undeclared_japanese_is_told_by_its_escapes() -> None:
    assert decode_undeclared("日本語".encode("iso2022_jp")) == "日本語"


def test_utf_8_text_with_an_escape_sequence_stays_utf_8() -> None:
    assert decode_undeclared("é \x1b$B".encode()) == "é \x1b$B"


def test_undeclared_utf_8_cut_in_its_last_character_is_still_utf_8() -> None:
    assert decode_undeclared("naïve ☺".encode()[:-1]) == "naïve �"


@pytest.mark.parametrize(
    ("data", "decoded"),
    [
        (b"aGVsbG8=", b"hello"),
        (b"aGVs\r\nbG8=\r\n", b"hello"),
        (b"aGVsbG8", b"hello"),
        (b"aGVsb", b"hel"),
        (b"aGVs*(bG8", b"hello"),
        (b"a", b""),
        (b"=", b""),
        (b"====", b""),
        (b"", b""),
        (b"\0\xff", b""),
    ],
)
def test_bad_base64_is_decoded_as_far_as_it_goes(data: bytes, decoded: bytes) -> None:
    assert decode_base64(data) == decoded


@given(st.binary(max_size=300), st.binary(max_size=20))
def test_base64_round_trips_and_no_tail_raises(data: bytes, tail: bytes) -> None:
    assert decode_transfer(base64.encodebytes(data), b"base64") == data
    decode_base64(base64.b64encode(data) + tail)


@given(st.binary(max_size=300).map(lambda data: data.replace(b"\r", b"")))
def test_quoted_printable_round_trips(data: bytes) -> None:
    assert decode_transfer(quopri.encodestring(data), b"quoted-printable") == data


def test_an_unknown_transfer_encoding_changes_nothing() -> None:
    assert decode_transfer(b"=41 aGVs", b"x-own") == b"=41 aGVs"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("<p>one<b>two</b></p>", "one two"),
        ("no tags at all", "no tags at all"),
        ("before<br>after", "before after"),
        ("<html><head><title>Title</title></head><body>text</body>", "Title text"),
        ("a<style>b { c > d }</style>e", "a e"),
        ("a<STYLE type='x'>b</STYLE >c", "a c"),
        ("a<script>if (x < y) { alert('z') }</script>b", "a b"),
        ("a<Script\n>x</sCRIPT>b<style>y</style>c", "a b c"),
        ("<strong>kept</strong><s>kept too</s>", "kept kept too"),
        ("a<!-- hidden <b>also</b> -->b", "a b"),
        ("a<!-->b", "a b"),
        ("a<!---->b", "a b"),
        ("a<!-->b<!-- c -->d", "a b d"),
        ("a<!--->b-->c", "a b-->c"),
        ("a<!--[if mso]>no<![endif]-->b", "a b"),
        ("a<!-- never closed <b>kept</b>", "a kept"),
        ("a<script>never closed", "a never closed"),
        ("a<!-- x --><style>never closed <i>kept</i>", "a never closed kept"),
        ("1 < 2 and 3 > 2", "1 2 and 3 > 2"),
        ("<p>price <100 each</p>", "price 100 each"),
        ("fish &amp; chips &lt;b&gt; &eacute;&#233;&#xe9;", "fish & chips <b> ééé"),
        ("a&nbsp;b", "a b"),
        ("&#xD800;&#0;x", "��x"),
        ("lost <tag never closed", "lost"),
        ("", ""),
        ("<", ""),
        ("<>", ">"),
        ("&", "&"),
    ],
)
def test_html_becomes_its_words(source: str, words: str) -> None:
    assert " ".join(html_to_text(source).split()) == words


def test_an_entity_too_long_to_be_a_number_is_left_alone() -> None:
    source = "word &amp; &#" + "1" * 5000 + ";"
    assert html_to_text(source) == source


@given(
    st.lists(
        st.sampled_from(
            ["<!--", "-->", "<style", "</style>", "<script>", "</script", "<", ">", "&#", "x", " "]
        )
    ).map("".join)
)
def test_no_html_raises_or_grows(source: str) -> None:
    assert len(html_to_text(source)) <= len(source) + 1


def test_pgp_blocks_and_uuencoded_files_are_left_out_of_plain_text() -> None:
    text = (
        "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA1\n\nhello\n"
        "-----BEGIN PGP SIGNATURE-----\niQEcBAEB\n-----END PGP SIGNATURE-----\nmiddle\n"
        "\nbegin 644 file.bin\nM1234\n`\nend\nlast"
    )
    words = without_armour(text)
    assert "iQEcBAEB" not in words
    assert "M1234" not in words
    assert all(word in words for word in ("hello", "middle", "last"))


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN PGP SIGNATURE-----\nnever closed",
        "text\nbegin 644 times\nand go on\nend",
        "\nbegin 644 x\nMnever closed",
    ],
)
def test_what_only_looks_like_armour_is_kept(text: str) -> None:
    assert without_armour(text) == text
