"""What a-z letters mean in a view: the file read, names read and written, and what a view does when it changes."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailfs.ids import Docid, Keyword
from mailfs.message.keywords import (
    ANSWERED,
    FLAGGED,
    FORWARDED,
    LETTER_BITS,
    RECENT,
    SEEN,
)
from mailfs.views.letters import (
    KEYWORDS_FILE,
    NO_LETTERS,
    LetterMap,
    Meaning,
    parse_letters,
    read_letters,
    stamp_or_none,
)
from mailfs.views.tree import Invalidation
from tests.views.world import World

CAPITALS = b"DFPRST"
# As parse_letters makes them: no keyword and no flag has two letters.
WORDS = ("work", "spam", "urgent", "$forwarded", "$junk", "todo")
MAPS = st.permutations(WORDS).flatmap(
    lambda words: st.lists(st.integers(0, 25), min_size=0, max_size=len(words), unique=True).map(
        lambda numbers: _map(zip(numbers, words, strict=False))
    )
)
FLAGS = st.integers(0, LETTER_BITS)


def _map(pairs: "zip[tuple[int, str]]") -> LetterMap:
    return parse_letters("".join(f"{number} {word}\n" for number, word in pairs).encode())


# --- the file


def test_a_file_as_dovecot_writes_it_gives_each_number_its_letter() -> None:
    found = parse_letters(b"0 $Forwarded\n1 Work\n2 NonJunk\n25 last\n")
    assert found.flags == {ord("a"): FORWARDED}
    assert found.keywords == {ord("b"): "work", ord("c"): "nonjunk", ord("z"): "last"}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"0",
        b"0 ",
        b" work",
        b"work",
        b"a work",
        b"-1 work",
        b"26 work",
        b"100 work",
        b"\xb2 work",
        b"0 two words",
        b"0 un(balanced",
        b"0 unread",
        b"0 -work",
        b"0 \xff\xfe",
        b"0 " + b"w" * 300,
        b"0 work\0",
    ],
)
def test_a_line_that_makes_no_sense_is_left_out_and_its_neighbours_stay(line: bytes) -> None:
    found = parse_letters(b"3 before\n" + line + b"\n4 after\n")
    assert found == LetterMap({}, {ord("d"): Keyword("before"), ord("e"): Keyword("after")})


def test_the_first_letter_of_a_keyword_and_the_first_keyword_of_a_letter_count() -> None:
    found = parse_letters(b"0 work\n1 WORK\n0 spam\n2 $Forwarded\n3 Passed\n2 todo\n")
    assert found == LetterMap({ord("c"): FORWARDED}, {ord("a"): Keyword("work")})


def test_an_end_without_a_line_end_is_read_too() -> None:
    assert parse_letters(b"0 work") == LetterMap({}, {ord("a"): Keyword("work")})


@given(data=st.binary(max_size=200) | st.text("0123456789 \nabc$", max_size=60).map(str.encode))
def test_no_file_makes_two_letters_of_one_keyword_or_one_letter_of_two(data: bytes) -> None:
    found = parse_letters(data)
    assert not found.flags.keys() & found.keywords.keys()
    assert len(set(found.flags.values())) == len(found.flags)
    assert len(set(found.keywords.values())) == len(found.keywords)
    assert all(
        letter in b"abcdefghijklmnopqrstuvwxyz" for letter in (*found.flags, *found.keywords)
    )
    assert all(bit & LETTER_BITS == bit and bit for bit in found.flags.values())


def test_without_a_file_that_can_be_read_no_letter_means_anything(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    file = tmp_path / os.fsdecode(KEYWORDS_FILE)
    assert read_letters(folder) == NO_LETTERS
    assert stamp_or_none(folder) is None
    assert read_letters(folder + b"/absent") == NO_LETTERS
    target = tmp_path / "target"
    target.write_text("0 work\n")
    file.symlink_to(target)
    assert read_letters(folder) == NO_LETTERS
    file.unlink()
    file.mkdir()
    assert read_letters(folder) == NO_LETTERS
    file.rmdir()
    os.mkfifo(file)
    assert stat.S_ISFIFO(file.lstat().st_mode)
    assert read_letters(folder) == NO_LETTERS


def test_a_stamp_tells_one_file_from_the_next(tmp_path: Path) -> None:
    folder, file = os.fsencode(tmp_path), tmp_path / os.fsdecode(KEYWORDS_FILE)
    file.write_text("0 work\n")
    os.utime(file, ns=(5, 5))
    before = stamp_or_none(folder)
    assert before is not None
    assert stamp_or_none(folder) == before
    other = tmp_path / "other"
    other.write_text("0 spam\n")
    os.utime(other, ns=(5, 5))
    other.rename(file)
    assert stamp_or_none(folder) != before


# --- names


@pytest.mark.parametrize(
    ("letters", "meaning"),
    [
        (b"", Meaning(0, frozenset(), b"")),
        (b"FS", Meaning(FLAGGED | SEEN, frozenset(), b"")),
        (b"Sa", Meaning(SEEN | FORWARDED, frozenset(), b"")),
        (b"bS", Meaning(SEEN, frozenset({Keyword("work")}), b"")),
        (b"zXcSX", Meaning(SEEN, frozenset(), b"Xcz")),
        (b"abz", Meaning(FORWARDED, frozenset({Keyword("work")}), b"z")),
    ],
)
def test_letters_are_flags_keywords_or_nothing_we_know(letters: bytes, meaning: Meaning) -> None:
    assert parse_letters(b"0 $Forwarded\n1 work\n").meaning(letters) == meaning


def test_a_flag_with_a_letter_of_its_own_is_written_with_both() -> None:
    letters = parse_letters(b"0 $Forwarded\n1 work\n")
    assert letters.letters(FORWARDED | SEEN, b"b", b"X") == b"PSXab"
    assert letters.letters(SEEN | RECENT, b"", b"") == b"S"


@given(letters=MAPS, flags=FLAGS, data=st.data())
def test_what_is_written_is_read_back(letters: LetterMap, flags: int, data: st.DataObject) -> None:
    words = sorted(letters.keywords.values())
    keywords = data.draw(st.sets(st.sampled_from(words)) if words else st.just(set[Keyword]()))
    free = bytes(
        letter
        for letter in b"ABCXYZabcdefghijklmnopqrstuvwxyz"
        if letter not in letters.flags and letter not in letters.keywords
    )
    extra = bytes(sorted(data.draw(st.sets(st.sampled_from(free)))))
    written = letters.letters(flags, _own(letters, keywords), extra)
    assert list(written) == sorted(set(written))
    assert letters.meaning(written) == Meaning(flags, frozenset(keywords), extra)


@given(
    letters=MAPS,
    name=st.text("DFPRSTXYabcdefghijklmnopqrstuvwxyz", max_size=12).map(str.encode),
)
def test_what_is_read_is_written_back_sorted_and_once(letters: LetterMap, name: bytes) -> None:
    flags, keywords, extra = letters.meaning(name)
    written = letters.letters(flags, _own(letters, keywords), extra)
    # A flag is always written with its capital; and with its own letter where it has one.
    both = {CAPITALS[i] for i, bit in enumerate(_bits()) if flags & bit}
    both |= {letter for letter, bit in letters.flags.items() if flags & bit}
    assert set(written) == set(name) | both


def _bits() -> tuple[int, ...]:
    return tuple(NO_LETTERS.meaning(bytes((capital,))).flags for capital in CAPITALS)


def _own(letters: LetterMap, keywords: Iterable[Keyword]) -> bytes:
    """The letters keywords have in a map."""
    return bytes(sorted(each for each, word in letters.keywords.items() if word in set(keywords)))


# --- in a view


def _name(world: World, docid: Docid, letters: bytes) -> bytes:
    return world.name(docid).partition(b":")[0] + b":2," + letters


def _gone(world: World, path: str, *names: bytes) -> set[Invalidation]:
    return {Invalidation(world.directory(path).ino, name) for name in names}


@pytest.mark.parametrize("is_loaded", [True, False])
def test_letters_show_the_keywords_of_this_view_only(world: World, is_loaded: bool) -> None:
    docid = world.deliver(keywords=("inbox", "work"))
    world.refresh()
    if is_loaded:
        world.load("inbox")
    world.write_letters("inbox", "0 $Forwarded\n1 work\n")
    assert world.find_or_none("inbox/cur", _name(world, docid, b"Sb")) == docid
    assert world.find_or_none("inbox/cur", _name(world, docid, b"bS")) == docid
    assert world.find_or_none("inbox/cur", _name(world, docid, b"S")) is None
    assert world.find_or_none("all/cur", _name(world, docid, b"S")) == docid
    assert world.load("inbox").letters.keywords == {ord("b"): "work"}
    assert world.names("inbox/cur") == [_name(world, docid, b"Sb")]


def test_another_file_renames_who_has_a_letter_and_tells_the_kernel(world: World) -> None:
    docid = world.deliver(keywords=("inbox", "work"))
    world.deliver(keywords=("inbox",))
    recent = world.deliver(keywords=("inbox", "work"), flags=RECENT)
    world.load("inbox")
    before = world.mtimes("inbox")
    told = world.write_letters("inbox", "0 work\n")
    base = world.name(recent)
    assert set(told) == {
        *_gone(world, "inbox/cur", _name(world, docid, b"S")),
        *_gone(world, "inbox/new", base),
    }
    assert world.names("inbox/new") == [base + b":2,a"]
    after = world.mtimes("inbox")
    assert after[0] > before[0]
    assert after[1] > before[1]
    told = world.write_letters("inbox", "1 work\n")
    assert set(told) == {
        *_gone(world, "inbox/cur", _name(world, docid, b"Sa")),
        *_gone(world, "inbox/new", base + b":2,a"),
    }


def test_a_file_of_other_bytes_that_says_the_same_changes_nothing(world: World) -> None:
    world.deliver(keywords=("inbox", "work"))
    world.load("inbox")
    world.write_letters("inbox", "0 work\n")
    before = world.mtimes("inbox")
    assert world.write_letters("inbox", "0 Work\n") == []
    assert world.mtimes("inbox") == before


def test_a_flag_that_gets_another_letter_is_another_name(world: World) -> None:
    docid = world.deliver(flags=FORWARDED)
    world.load("inbox")
    world.write_letters("inbox", "0 $Forwarded\n")
    before = world.mtimes("inbox")[1]
    told = world.write_letters("inbox", "1 $Forwarded\n")
    assert world.names("inbox/cur") == [_name(world, docid, b"Pb")]
    assert set(told) == _gone(world, "inbox/cur", _name(world, docid, b"Pa"))
    assert world.mtimes("inbox")[1] > before


def test_two_flags_that_change_letters_are_other_names(world: World) -> None:
    docid = world.deliver(flags=FORWARDED | ANSWERED)
    only = world.deliver(flags=FORWARDED)
    world.load("inbox")
    world.write_letters("inbox", "0 $Forwarded\n1 $Answered\n")
    told = world.write_letters("inbox", "1 $Forwarded\n0 $Answered\n")
    assert world.names("inbox/cur") == [_name(world, docid, b"PRab"), _name(world, only, b"Pb")]
    assert set(told) == _gone(world, "inbox/cur", _name(world, only, b"Pa"))


# --- renames


def test_a_letter_put_on_and_taken_off_by_rename_is_the_keyword(world: World) -> None:
    docid = world.deliver(keywords=("inbox",))
    world.save("work", "tag:work")
    world.refresh()
    world.load("inbox")
    world.load("work")
    world.write_letters("inbox", "0 $Forwarded\n1 work\n")
    bare, worked = _name(world, docid, b"S"), _name(world, docid, b"Sb")
    world.rename("inbox/cur", bare, "inbox/cur", worked)
    assert world.keywords(docid) == {"inbox", "work"}
    assert world.names("inbox/cur") == [worked]
    assert world.names("work/cur") == [bare]
    world.rename("inbox/cur", worked, "inbox/cur", bare)
    assert world.keywords(docid) == {"inbox"}
    assert world.names("work/cur") == []


def test_a_keyword_that_has_no_letter_here_stays_when_letters_are_taken_off(world: World) -> None:
    docid = world.deliver(keywords=("inbox", "work", "todo"))
    world.refresh()
    world.write_letters("inbox", "0 work\n")
    world.rename("inbox/cur", _name(world, docid, b"Sa"), "inbox/cur", _name(world, docid, b""))
    assert world.keywords(docid) == {"inbox", "todo"}
    assert world.flags(docid) == 0


@pytest.mark.parametrize("is_loaded", [True, False])
def test_a_letter_without_a_meaning_stays_in_the_name(world: World, is_loaded: bool) -> None:
    docid = world.deliver(keywords=("inbox",))
    world.refresh()
    if is_loaded:
        world.load("inbox")
    wanted = _name(world, docid, b"SXz")
    world.rename("inbox/cur", world.name(docid), "inbox/cur", wanted)
    assert world.keywords(docid) == {"inbox"}
    world.set_flags(docid, add=FLAGGED)
    world.refresh()
    assert world.find_or_none("inbox/cur", _name(world, docid, b"FSXz")) == docid
    assert world.find_or_none("inbox/cur", wanted) is None
    assert world.find_or_none("all/cur", _name(world, docid, b"FS")) == docid


def test_a_letter_that_gets_its_meaning_after_it_was_written_stays_in_the_name(
    world: World,
) -> None:
    """Who writes the name first and the file then means the keyword by it."""
    docid = world.deliver(keywords=("inbox",))
    world.load("inbox")
    world.rename("inbox/cur", world.name(docid), "inbox/cur", _name(world, docid, b"Sa"))
    world.write_letters("inbox", "0 work\n")
    assert world.names("inbox/cur") == [_name(world, docid, b"Sa")]
    world.rename("inbox/cur", _name(world, docid, b"Sa"), "inbox/cur", _name(world, docid, b"FSa"))
    assert world.names("inbox/cur") == [_name(world, docid, b"FSa")]
    world.rename("inbox/cur", _name(world, docid, b"FSa"), "inbox/cur", _name(world, docid, b"F"))
    assert world.names("inbox/cur") == [_name(world, docid, b"F")]
    assert world.keywords(docid) == {"inbox"}


def test_either_letter_of_a_flag_taken_off_by_rename_takes_the_flag_off(world: World) -> None:
    """Dovecot writes $Forwarded as its letter, and leaves the capital P as it found it."""
    docid = world.deliver(flags=SEEN)
    world.load("inbox")
    world.write_letters("inbox", "0 $Forwarded\n")
    for less in (b"PS", b"Sa"):
        world.rename(
            "inbox/cur", _name(world, docid, b"S"), "inbox/cur", _name(world, docid, b"Sa")
        )
        assert world.flags(docid) == SEEN | FORWARDED
        both = _name(world, docid, b"PSa")
        assert world.names("inbox/cur") == [both]
        world.rename("inbox/cur", both, "inbox/cur", _name(world, docid, less))
        assert world.flags(docid) == SEEN
