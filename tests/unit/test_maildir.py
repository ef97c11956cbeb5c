"""Names of entries: whatever a name says is read back, and a name we show is found again."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailfs.ids import Docid
from mailfs.message.maildir import (
    Base,
    Form,
    SplitName,
    form_of,
    format_base,
    format_name,
    parse_base_or_none,
    split_name,
)

# Anything a directory entry can be; the separator and letters more often than by chance.
_SIGNS = st.integers(1, 255).filter(lambda sign: sign != ord("/")).map(lambda sign: bytes((sign,)))
NAMES = st.lists(
    st.one_of(_SIGNS, st.sampled_from((b":2,", b":2", b",", b":1,", b"S", b"a", b"FS", b"1"))),
    min_size=1,
    max_size=8,
).map(b"".join)
LETTERS = st.sets(st.sampled_from(b"DFPRSTXYabcz")).map(lambda letters: bytes(sorted(letters)))
BASES = NAMES.filter(lambda name: split_name(name).letters is None)


@pytest.mark.parametrize(
    ("name", "base", "letters"),
    [
        (b"1.M2.host", b"1.M2.host", None),
        (b"1.M2.host:2,", b"1.M2.host", b""),
        (b"1.M2.host:2,FS", b"1.M2.host", b"FS"),
        (b"1.M2.host:2,aXz", b"1.M2.host", b"aXz"),
        (b"1.host,U=7,FMD5=0af:2,S", b"1.host,U=7,FMD5=0af", b"S"),
        (b"1.host:1,S", b"1.host:1,S", None),
        (b"1.host:2,S,T", b"1.host:2,S,T", None),
        (b"1.host:2,S1", b"1.host:2,S1", None),
        (b"1.host:2,\xe4", b"1.host:2,\xe4", None),
        (b"1.host:2,F:2,S", b"1.host:2,F", b"S"),
        (b"1.host!2,S", b"1.host!2,S", None),
        (b":2,S", b"", b"S"),
        (b"", b"", None),
    ],
)
def test_a_name_is_cut_at_its_last_separator_where_only_letters_follow(
    name: bytes, base: bytes, letters: bytes | None
) -> None:
    assert split_name(name) == SplitName(base, letters)


@given(name=NAMES)
@example(b"a:2,:2,")
def test_no_byte_of_a_name_is_lost_by_cutting(name: bytes) -> None:
    base, letters = split_name(name)
    assert name == (base if letters is None else base + b":2," + letters)
    assert letters is None or not letters or letters.isalpha()


@given(base=BASES, letters=LETTERS, in_new=st.booleans(), form=st.sampled_from(Form))
def test_a_name_we_make_is_cut_into_what_it_was_made_of(
    base: bytes, letters: bytes, in_new: bool, form: Form
) -> None:
    found = split_name(format_name(base, letters, in_new=in_new, form=form))
    assert found.base == base
    assert (found.letters or b"") == letters


@given(base=BASES, letters=st.none() | LETTERS, in_new=st.booleans())
def test_a_name_a_client_wrote_is_shown_as_it_wrote_it(
    base: bytes, letters: bytes | None, in_new: bool
) -> None:
    name = base if letters is None else base + b":2," + letters
    form = form_of(letters, in_new=in_new)
    assert format_name(base, letters or b"", in_new=in_new, form=form) == name


@pytest.mark.parametrize(
    ("form", "in_new", "name"),
    [
        (Form.USUAL, False, b"x:2,"),
        (Form.USUAL, True, b"x"),
        (Form.INFO_IN_NEW, False, b"x:2,"),
        (Form.INFO_IN_NEW, True, b"x:2,"),
        (Form.BARE_IN_CUR, False, b"x"),
        (Form.BARE_IN_CUR, True, b"x"),
    ],
)
def test_without_letters_the_form_says_how_a_name_ends_in_each_folder(
    form: Form, in_new: bool, name: bytes
) -> None:
    assert format_name(b"x", b"", in_new=in_new, form=form) == name


@pytest.mark.parametrize("in_new", [True, False])
@given(form=st.sampled_from(Form), letters=LETTERS.filter(bool))
def test_letters_stand_behind_the_separator_whatever_the_form(
    in_new: bool, form: Form, letters: bytes
) -> None:
    assert format_name(b"x", letters, in_new=in_new, form=form) == b"x:2," + letters


@given(
    base=st.builds(
        Base,
        st.integers(0, 10**11),
        st.integers(1, 10**12).map(Docid),
        st.from_regex(rb"[0-9a-z]{1,32}", fullmatch=True),
        st.integers(0, 10**12),
    )
)
def test_a_canonical_base_says_what_it_was_made_of_and_is_no_name_with_letters(base: Base) -> None:
    written = format_base(base)
    assert parse_base_or_none(written) == base
    assert split_name(written) == SplitName(written, None)


@pytest.mark.parametrize(
    "base",
    [
        b"01.M2.abc,S=3",
        b"1.M02.abc,S=3",
        b"1.M2.abc,S=03",
        b"1.M2.ABC,S=3",
        b"1.M2.abc,S=3,U=1",
        b"1.M2.abc,S=3,C=1",
        b"1.M2.abc,S=3:2,",
        b"1.M2.abc,S=3\n",
        b"-1.M2.abc,S=3",
        "\u0661.M2.abc,S=3".encode(),
        b"",
    ],
)
def test_what_we_would_not_have_written_is_no_canonical_base(base: bytes) -> None:
    assert parse_base_or_none(base) is None
