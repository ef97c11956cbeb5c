"""The man page of the query language: complete, true, and sound roff."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mailfs.search.prefixes import TEXT_PREFIXES, VALUE_PREFIXES
from mailfs.search.query import MAX_QUERY_CHARS, MAX_TERMS, MAX_THREADS, parse_query
from mailfs.search.tree import MAX_NESTING, MAX_THREAD_NESTING

PAGE = Path(__file__).resolve().parents[2] / "man" / "mailfs-search.7"


def _text() -> str:
    return PAGE.read_text("utf-8").replace("\\-", "-")


def _examples() -> list[str]:
    blocks = re.findall(r"^\.EX\n(.*?)^\.EE$", _text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def _headings() -> str:
    """The tags of the lists, where what is described stands."""
    return "\n".join(re.findall(r"^\.TP\n(.*)$", _text(), re.MULTILINE))


@pytest.mark.parametrize("name", [*TEXT_PREFIXES, *VALUE_PREFIXES])
def test_every_prefix_is_described_and_shown(name: str) -> None:
    assert re.search(rf"(?<!\w){name}:", _headings())
    assert any(re.search(rf"(?<!\w){name}:", example) for example in _examples())


def test_every_prefix_the_page_describes_exists() -> None:
    described = set(re.findall(r"(?<!\w)([a-z]+):", _headings()))
    assert described == {*TEXT_PREFIXES, *VALUE_PREFIXES}


@pytest.mark.parametrize("example", _examples())
def test_every_example_is_a_query(example: str) -> None:
    parse_query(example)


def test_the_limits_are_those_of_the_code() -> None:
    limits = _text().partition(".SH LIMITS")[2].partition(".SH")[0]
    assert f"{MAX_QUERY_CHARS:,} characters" in limits
    assert f"{MAX_TERMS:,} words and values" in limits
    assert f"and {MAX_THREADS}\n.BR thread:{{}}" in limits
    assert f"{MAX_NESTING} deep" in limits
    assert f"{MAX_THREAD_NESTING} deep" in limits


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
def test_mandoc_finds_no_error() -> None:
    lint = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", str(PAGE)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert lint.stdout == ""
    assert lint.returncode == 0
