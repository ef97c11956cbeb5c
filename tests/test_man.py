"""The manual against the code: man/mailfs.1 against the parser, man/mailfs-clients.7 against the tests with real clients.

Complete, nothing made up, its examples are commands and tested configurations, its numbers those of the code, sound roff.
"""

import argparse
import errno
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from mailfs import __version__, errors
from mailfs.cli.main import build_parser, main, parse_arguments
from mailfs.cli.tagging import split_tag_words
from mailfs.fuse.changes import EDIT_DEADLINE_S
from mailfs.message.keywords import (
    LETTER_BITS,
    is_mark,
    keywords_of_flags,
    letters_of_flags,
    parse_keyword,
)
from mailfs.search.names import MAX_NAME_BYTES, RESERVED
from mailfs.store.prepare import PARSED_BYTES
from mailfs.store.schema import FIRST_SEARCHES, FORMAT_VERSION
from mailfs.views.announce import EVENTS_A_SECOND, STIRRED
from mailfs.views.edits import MAX_BASE_BYTES
from mailfs.views.entries import MAX_NAMES
from mailfs.views.evaluation import EVALUATION_DEADLINE_S
from mailfs.views.tree import LINGER_S
from tests.fakes import PROJECT

PAGES = sorted((PROJECT / "man").iterdir())
PAGE = PROJECT / "man" / "mailfs.1"
CLIENTS_PAGE = PROJECT / "man" / "mailfs-clients.7"
SEARCH_PAGE = PROJECT / "man" / "mailfs-search.7"
CLIENT_TESTS = PROJECT / "tests" / "clients"
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


def _split(request: str, roff: str) -> dict[str, str]:
    """The roff below each .SH or .SS, by its title."""
    _, *pieces = re.split(rf"^\.{request} ", roff, flags=re.MULTILINE)
    titled = (piece.partition("\n") for piece in pieces)
    return {_plain(title.strip('"')): below for title, _, below in titled}


@cache
def _sections(page: Path = PAGE) -> dict[str, str]:
    return _split("SH", page.read_text("utf-8"))


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


def _examples(roff: str) -> list[str]:
    """The lines that are shown as commands, or as configuration."""
    blocks = re.findall(r"^\.EX\n(.*?)^\.EE", roff, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in _plain(block).splitlines() if line]


def _commands_shown() -> list[str]:
    """The examples of both pages that begin with our name."""
    lines = [line for page in (PAGE, CLIENTS_PAGE) for line in _examples(page.read_text("utf-8"))]
    return [line for line in lines if line.startswith("mailfs ")]


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
    shown = {word for line in _commands_shown() for word in line.split()} & set(_commands())
    assert shown >= {"init", "import", "mount", "umount", "search", "show", "tag", "save"}


@pytest.mark.parametrize("example", _commands_shown())
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


def test_the_words_called_marks_are_marks() -> None:
    terms = _split("SS", _sections()["DESCRIPTION"])["Terminology"]
    text = terms.partition("\n.I mark\n")[2].partition(".TP")[0]
    words = re.findall(r"^\.BR? ([a-z]+)", text, re.MULTILINE)
    assert len(words) > 1
    assert all(is_mark(parse_keyword(word)) for word in [*words, "$label1"])


def test_the_first_searches_are_those_of_the_code() -> None:
    text = " ".join(_parts()["init"].text.split())
    for name, query in FIRST_SEARCHES:
        assert f"{name} ({query})" in text


def _part(title: str, section: str = "THE MOUNT") -> str:
    return _split("SS", _sections()[section])[title]


def _errors() -> dict[str, str]:
    """What the page says of each errno, by its name."""
    entries = re.split(r"^\.TP\n", _part("Errors"), flags=re.MULTILINE)[1:]
    said: dict[str, str] = {}
    for entry in entries:
        tag, _, text = entry.partition("\n")
        said |= {name: " ".join(_plain(text).split()) for name in re.findall(r"\bE[A-Z]+", tag)}
    return said


def test_every_errno_named_is_one_that_the_code_gives() -> None:
    code = "\n".join(path.read_text("utf-8") for path in (PROJECT / "mailfs").rglob("*.py"))
    assert set(_errors()) >= {"EPERM", "EEXIST", "EXDEV", "EAGAIN", "ENAMETOOLONG", "ENOSPC"}
    for name in _errors():
        assert hasattr(errno, name)
        assert _has_word(name, code), name


def test_the_limits_are_those_of_the_code() -> None:
    said = _errors()
    assert f"{MAX_NAMES} names" in said["EMLINK"]
    assert f"more than {MAX_BASE_BYTES} bytes" in said["ENAMETOOLONG"]
    assert f"more than {MAX_NAME_BYTES}." in said["ENAMETOOLONG"]
    assert (EDIT_DEADLINE_S, EVALUATION_DEADLINE_S, LINGER_S) == (10, 2 * 60, 5 * 60)
    assert "ten seconds" in said["EAGAIN"]
    assert "two minutes" in said["EAGAIN"]
    assert "five minutes" in _plain(_part("Directories"))
    clients = _plain(_sections(CLIENTS_PAGE)["DESCRIPTION"])
    assert f"more than {EVENTS_A_SECOND} messages of a folder change in a second" in clients
    assert STIRRED.decode() in clients
    assert f"version is {FORMAT_VERSION}." in _plain(_sections()["FILES"])
    searched = _plain(_sections(SEARCH_PAGE)["LIMITS"])
    assert f"the first {PARSED_BYTES >> 20} MiB" in searched


def test_the_names_no_search_can_have_are_those_of_the_code() -> None:
    words = re.findall(r"^\.BR? (\S+)", _sections()["COMMANDS"], re.MULTILINE)
    assert set(words) >= RESERVED


def _clients() -> dict[str, str]:
    """What mailfs-clients.7 says of each client, by the heading, which names one or more."""
    kinds = ("MAIL READERS", "SERVERS AND SYNCHRONISERS", "DELIVERY", "INDEXERS", "BY HAND")
    sections = _sections(CLIENTS_PAGE)
    return {
        heading: roff for kind in kinds for heading, roff in _split("SS", sections[kind]).items()
    }


def _tests_of(client: str) -> dict[str, str]:
    """The modules in tests/clients that name a client, by their names."""
    modules = {path.stem: path.read_text("utf-8") for path in CLIENT_TESTS.glob("*.py")}
    return {name: text for name, text in modules.items() if _has_word(client, text)}


@pytest.mark.parametrize("heading", _clients())
def test_every_client_with_a_heading_has_tests(heading: str) -> None:
    for client in heading.split(", "):
        assert any(name.startswith("test_") for name in _tests_of(client)), client


@pytest.mark.parametrize("module", sorted(path.stem for path in CLIENT_TESTS.glob("test_*.py")))
def test_every_module_of_client_tests_is_about_a_client_with_a_heading(module: str) -> None:
    clients = [client for heading in _clients() for client in heading.split(", ")]
    assert [client for client in clients if module in _tests_of(client)]


def _words_of_configuration(line: str) -> list[str]:
    """Names and values; not the paths, which a test has elsewhere, nor what is only an example of something."""
    line = re.sub(r"(?<!\w)(~|\$HOME|\$MAILDIR|%h|/)[^\s\"':;]*", "", line)
    line = re.sub(r"\S+\.example\.org|\bmailfs mount\b.*|\S+\.eml", "", line)
    return re.findall(r"--[a-z-]+|[A-Za-z$][\w$-]*", line)


@pytest.mark.parametrize("heading", _clients())
def test_every_word_of_a_configuration_shown_is_in_the_tests_of_that_client(heading: str) -> None:
    texts = [text for client in heading.split(", ") for text in _tests_of(client).values()]
    for line in _examples(_clients()[heading]):
        missing = [
            word
            for word in _words_of_configuration(line)
            if not any(_has_word(word, text) for text in texts)
        ]
        assert missing == [], line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_title_names_the_page_and_the_version(page: Path) -> None:
    name = f"{page.stem.upper()} {page.suffix[1:]}"
    title = re.search(
        rf'^\.TH {name} [\d-]+ "mailfs ([\d.]+)"', page.read_text("utf-8"), re.MULTILINE
    )
    assert title is not None
    assert __version__.startswith(title[1])


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_finds_nothing_to_warn_of(page: Path) -> None:
    lint = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", str(page)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (lint.stdout, lint.returncode) == ("", 0)
