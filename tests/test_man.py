"""man/mailfs.1 against the parser: complete, nothing made up, its examples are commands, sound roff."""

import argparse
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import pytest

from mailfs import __version__, errors
from mailfs.cli.main import build_parser, main, parse_arguments
from mailfs.cli.searching import split_tag_words
from mailfs.message.keywords import LETTER_BITS, keywords_of_flags, letters_of_flags
from mailfs.store.schema import FIRST_SEARCHES
from tests.fakes import PROJECT

PAGE = PROJECT / "man" / "mailfs.1"
_OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
# In every command, and described once.
_HELP = {"-h", "--help"}


class Part(NamedTuple):
    """What the page says of one command. `tags` are the headings of its lists."""

    synopsis: str
    tags: list[str]
    text: str


def _plain(roff: str) -> str:
    """The words of some lines of roff: no requests, fonts or escapes."""
    roff = re.sub(r"\\f[BIRP]", "", roff).replace("\\-", "-").replace("\\&", "")
    lines = []
    for line in roff.splitlines():
        request = re.match(r"\.([A-Za-z]+) ?", line)
        words = line[request.end() :] if request else line
        if request and re.fullmatch("[BIR]{2}", request[1]):
            words = "".join(_arguments(words))
        lines.append(words)
    return "\n".join(lines)


def _arguments(words: str) -> list[str]:
    """The arguments of a request, as .BR and its like join them."""
    return [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', words)]


@cache
def _sections() -> dict[str, str]:
    """The roff below each .SH, by its title."""
    _, *pieces = re.split(r"^\.SH ", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    return {
        title.strip('"'): roff for title, _, roff in (piece.partition("\n") for piece in pieces)
    }


def _tags(roff: str) -> list[str]:
    return [_plain(tag) for tag in re.findall(r"^\.TP.*\n(.*)$", roff, re.MULTILINE)]


@cache
def _parts() -> dict[str, Part]:
    """What the page says of each command, by its name."""
    _, *pieces = re.split(r"^\.SS mailfs ", _sections()["COMMANDS"], flags=re.MULTILINE)
    parts = {}
    for piece in pieces:
        synopsis, _, roff = piece.partition("\n")
        parts[synopsis.split()[0]] = Part(_plain(synopsis), _tags(roff), _plain(roff))
    return parts


@cache
def _commands() -> dict[str, argparse.ArgumentParser]:
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("the parser has no commands")


def _options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The options of a parser but --help, which is described once."""
    return (
        action
        for action in parser._actions
        if action.option_strings and not _HELP & set(action.option_strings)
    )


def _has_word(word: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) is not None


def _examples() -> list[str]:
    """The lines of the page that are shown as commands."""
    page = _plain(
        PAGE.read_text("utf-8").replace("\n.EX\n", "\n{{{\n").replace("\n.EE\n", "\n}}}\n")
    )
    return [
        line
        for block in re.findall(r"\{{3}\n(.*?)\}{3}", page, re.DOTALL)
        for line in block.splitlines()
    ]


def test_the_page_has_a_part_for_every_command_and_for_no_other() -> None:
    assert sorted(_parts()) == sorted(_commands())


@pytest.mark.parametrize("name", sorted(_commands()))
def test_every_option_of_a_command_is_a_heading_of_its_part(name: str) -> None:
    described = {option for tag in _parts()[name].tags for option in _OPTION.findall(tag)}
    exists = {word for action in _options(_commands()[name]) for word in action.option_strings}
    assert described == exists


@pytest.mark.parametrize("name", sorted(_commands()))
def test_a_synopsis_names_every_option_and_argument(name: str) -> None:
    synopsis = _parts()[name].synopsis
    in_synopsis = set(_OPTION.findall(synopsis))
    exists = {word for action in _options(_commands()[name]) for word in action.option_strings}
    assert in_synopsis <= exists
    for action in _commands()[name]._actions:
        if action.option_strings:
            assert _HELP & set(action.option_strings) or in_synopsis & set(action.option_strings)
        else:
            assert re.findall("[A-Z]+", str(action.metavar))[-1] in re.findall("[A-Z]+", synopsis)


@pytest.mark.parametrize("name", sorted(_commands()))
def test_every_choice_is_named_and_none_that_does_not_exist(name: str) -> None:
    part = _parts()[name]
    choices = {
        str(choice) for action in _options(_commands()[name]) for choice in action.choices or ()
    }
    assert {choice for choice in choices if not _has_word(choice, part.text)} == set()
    assert {tag for tag in part.tags if not tag.startswith("-")} <= choices


@pytest.mark.parametrize("name", ["", *sorted(_commands())])
def test_every_command_and_option_has_a_help_text(name: str) -> None:
    parser = _commands()[name] if name else build_parser()
    assert parser.description
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            assert action.help, action


def test_the_options_before_the_command_are_described() -> None:
    tags = _tags(_sections()["OPTIONS"])
    exists = {word for action in build_parser()._actions for word in action.option_strings}
    assert {option for tag in tags for option in _OPTION.findall(tag)} == exists
    assert set(_OPTION.findall(_plain(_sections()["SYNOPSIS"]))) <= exists


def test_every_exit_code_is_in_the_table_and_no_other() -> None:
    codes = {code for name, code in vars(errors).items() if name.startswith("EX_")}
    assert {int(tag) for tag in _tags(_sections()["EXIT STATUS"])} == {0, *codes}


def test_a_command_line_that_cannot_be_understood_exits_with_a_code_of_the_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        code: object = main(["nonsense"])
    except SystemExit as end:
        code = end.code
    assert "nonsense" in capsys.readouterr().err
    assert code == errors.EX_USAGE


def test_the_commands_a_user_begins_with_are_shown() -> None:
    shown = {word for line in _examples() for word in line.split()} & set(_commands())
    assert shown >= {"init", "import", "mount", "umount", "search", "show", "tag", "save"}


@pytest.mark.parametrize("example", [line for line in _examples() if line.startswith("mailfs ")])
def test_every_example_is_a_command(example: str) -> None:
    words = shlex.split(example.partition(" > ")[0])[1:]
    parsed = parse_arguments(words)
    if parsed.command == "tag":
        split_tag_words(parsed.words)


def test_the_letters_are_those_of_the_code() -> None:
    table = re.findall(r"^([A-Z])@(\$\w+)@", _sections()["THE MOUNT"], re.MULTILINE)
    bits = [1 << n for n in range(LETTER_BITS.bit_length()) if LETTER_BITS & 1 << n]
    assert dict(table) == {
        letters_of_flags(bit).decode(): keywords_of_flags(bit)[0] for bit in bits
    }
    assert table == sorted(table)


def test_the_first_searches_are_those_of_the_code() -> None:
    text = " ".join(_parts()["init"].text.split())
    for name, query in FIRST_SEARCHES:
        assert f"{name} ({query})" in text


def test_the_title_names_the_version() -> None:
    title = re.search(
        r'^\.TH MAILFS 1 [\d-]+ "mailfs ([\d.]+)"', PAGE.read_text("utf-8"), re.MULTILINE
    )
    assert title is not None
    assert __version__.startswith(title[1])


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
def test_mandoc_finds_nothing_to_warn_of() -> None:
    lint = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", str(PAGE)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (lint.stdout, lint.returncode) == ("", 0)
