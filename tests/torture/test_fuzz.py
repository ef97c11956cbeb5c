"""Each target of the fuzzer for a moment, by Hypothesis and by our own changes; and what fuzzing found before."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailfs.search.query import format_query, parse_query
from mailfs.search.tree import Text
from tests.torture import fuzz
from tests.torture.fuzz_targets import Target, targets
from tests.torture.report import Report

_NAMES = [target.name for target in targets()]


def _target(name: str) -> Target:
    return next(target for target in targets() if target.name == name)


@pytest.mark.parametrize("name", _NAMES)
def test_every_seed_is_taken(name: str) -> None:
    target = _target(name)
    assert target.seeds
    for data in target.seeds[:100]:
        target.run(data)


@pytest.mark.parametrize("name", _NAMES)
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_are_taken(name: str, data: st.DataObject) -> None:
    target = _target(name)
    pieces = st.one_of(st.binary(max_size=60), st.sampled_from((*target.words, *target.seeds)))
    target.run(b"".join(data.draw(st.lists(pieces, max_size=12))))


def test_a_run_of_all_targets_finds_nothing(tmp_path: Path) -> None:
    report = fuzz.run(5, 600, tmp_path)
    assert report.is_sound, "\n".join(report.lines())
    assert set(report.counts) == set(_NAMES)


def test_inputs_are_the_same_each_time() -> None:
    target = _target("query")

    def inputs() -> list[bytes]:
        random = Random(3)
        return [fuzz.mutate(random, list(target.seeds), target.words) for _ in range(200)]

    assert inputs() == inputs()


def test_what_fails_is_told_small_with_its_seed_and_kept(tmp_path: Path) -> None:
    def fail(data: bytes) -> None:
        assert b"bad" not in data, "bad"

    target = Target("test", fail, (b"bad",), (b"good " * 20,))
    report = Report("fuzz", 1)
    fuzz.fuzz(report, target, tmp_path, lambda done: done < 50)
    assert report.failures
    assert "for b'bad'" in str(report.failures[0])
    kept = tmp_path / f"test-{report.failures[0].n}"
    assert b"bad" in kept.read_bytes()


def test_an_input_that_reaches_another_line_is_noticed() -> None:
    reached = fuzz.Reached()
    target = _target("entry name")
    found = []
    for data in (b"x", b"x", b"1700000000.M1.abcdefgh,S=10:2,FS"):
        reached.watch(target.run, data)
        found.append(reached.is_new)
    assert found == [True, False, True]


# --- found by it, and mended


def test_an_operator_with_a_star_is_written_as_the_word_it_is() -> None:
    query = parse_query("or*")
    assert query == Text(None, "or", is_prefix=True)
    assert parse_query(format_query(query)) == query
    assert parse_query(format_query(parse_query('"or"'))) == parse_query('"or"')
