"""scripts/bench and scripts/corpus: they run, and what they write has the shape their documentation promises."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import TypedDict

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"

NOTICED = [
    *(
        f"{kind} {how}"
        for kind in ("deliver", "tag", "expunge")
        for how in (
            *("heard, from the commit", "listed, from the commit", "command, start to end"),
            *("heard, from the command's start", "listed, from the command's start"),
        )
    ),
    *(
        f"rename {where} {how}"
        for where in ("in another view", "at a second mount")
        for how in ("heard", "listed")
    ),
    "deliver heard at a second mount",
]
MEASURED_BESIDE = [
    *("import, nothing mounted", "import, watched", "import, busy", "events heard, watched"),
    *("flag change", "flag change, longest", "stat in another view", "readdir of another view"),
    *("flag change, 3 views loaded", "flag change, 323 views loaded"),
    *("longest request meanwhile", "command, start to end", "events heard"),
    *("processor for it, 3 views", "processor for it, 323 views"),
]


class Figure(TypedDict):
    part: str
    name: str
    unit: str
    samples: list[float]
    median: float
    p95: float | None
    aim: str | None
    aim_value: float | None
    ratio: float | None
    met: bool | None


class Result(TypedDict):
    mailfs: str
    commit: str | None
    date: str
    machine: dict[str, object]
    settings: dict[str, object]
    corpus: dict[str, object]
    figures: list[Figure]
    skipped: list[dict[str, str]]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=120, check=False
    )


def contents(maildir: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(maildir)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in maildir.rglob("*")
        if path.is_file()
    }


def test_a_corpus_is_reproducible_and_no_message_is_a_copy(tmp_path: Path) -> None:
    made = []
    facts = []
    for name in ("one", "two"):
        source = tmp_path / "no archives here"
        done = run(SCRIPTS / "corpus", "--messages", "40", "--source", source, tmp_path / name)
        assert done.returncode == 0, done.stderr
        made.append(contents(tmp_path / name))
        facts.append(json.loads(done.stdout))
    assert made[0] == made[1]
    assert len(made[0]) == len({raw for raw, _ in made[0].values()}) == 40
    assert facts[0] == facts[1]
    assert facts[0] == {
        "messages": 40,
        "bytes": sum(len(raw) for raw, _ in made[0].values()),
        "bodies": "made up",
        "seed": 1,
    }


def bench(parts: list[str], folder: Path, *words: str) -> tuple[Result, str]:
    """A run with few messages; what it wrote, and its table. Nothing of it is left behind."""
    output = folder / "result.json"
    sizes = ("--messages", "200", "--rounds", "2", "--only", ",".join(parts))
    done = run(SCRIPTS / "bench", *sizes, *words, "--dir", folder, "--output", output)
    assert done.returncode == 0, done.stderr
    assert os.listdir(folder) == ["result.json"]
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    result: Result = json.loads(output.read_text())
    assert set(result) == Result.__required_keys__
    assert result["settings"]["parts"] == parts
    skipped = {skip["part"] for skip in result["skipped"]}
    assert {figure["part"] for figure in result["figures"]} == set(parts) - skipped
    for figure in result["figures"]:
        check_figure(figure)
    return result, done.stderr


def check_figure(figure: Figure) -> None:
    assert set(figure) == set(Figure.__annotations__)
    assert min(figure["samples"]) <= figure["median"] <= max(figure["samples"])
    if figure["aim_value"] is None or figure["ratio"] is None:
        assert [figure["aim"], figure["ratio"], figure["met"]] == [None, None, None]
    else:
        ratio = figure["median"] / figure["aim_value"]
        assert figure["ratio"] == pytest.approx(ratio, rel=0.01, abs=0.0001)
    if figure["p95"] is None:
        assert len(figure["samples"]) < 20
    else:
        assert figure["median"] <= figure["p95"] <= max(figure["samples"])


@pytest.mark.mount
@pytest.mark.slow
def test_a_small_run_writes_every_figure_in_the_documented_shape(tmp_path: Path) -> None:
    result, table = bench(["import", "mutt", "listing", "open"], tmp_path)
    assert result["settings"]["messages"] == 200
    assert result["settings"]["rounds"] == 2
    assert {"cpu", "cores", "kernel", "python", "pyfuse3", "libfuse", "sqlite"} <= set(
        result["machine"]
    )
    assert result["corpus"]["messages"] == 200
    for figure in result["figures"]:
        assert len(figure["samples"]) == 2
        assert min(figure["samples"]) > 0
        assert figure["p95"] is None
    assert "mailfs, first" in table


@pytest.mark.mount
@pytest.mark.slow
def test_a_small_run_measures_how_soon_each_kind_of_change_is_noticed(tmp_path: Path) -> None:
    result, table = bench(["notice"], tmp_path, "--samples", "2")
    assert {name for name in NOTICED if name not in names_of(result)} == set()
    for figure in result["figures"]:
        assert len(figure["samples"]) == 2
        assert min(figure["samples"]) > 0
    aims = [figure for figure in result["figures"] if figure["aim"] is not None]
    assert re.search(r"^aims met: \d+ of (\d+)$", table, re.MULTILINE)
    assert table.rstrip().endswith(f" of {len(aims)}")


@pytest.mark.mount
@pytest.mark.slow
def test_a_small_run_measures_what_others_cost(tmp_path: Path) -> None:
    sizes = ("--samples", "20", "--imported", "300", "--idle", "0.5")
    result, _ = bench(["under_import", "storm", "many_views", "idle"], tmp_path, *sizes)
    figures = {figure["name"]: figure for figure in result["figures"]}
    assert {name for name in MEASURED_BESIDE if name not in figures} == set()
    for name in MEASURED_BESIDE:
        assert min(figures[name]["samples"]) > 0
    assert len(figures["flag change, 3 views loaded"]["samples"]) == 20
    assert figures["flag change, 3 views loaded"]["p95"] is not None
    assert min(figures["processor time in 10 s"]["samples"]) >= 0


def names_of(result: Result) -> set[str]:
    return {figure["name"] for figure in result["figures"]}


def test_an_unknown_part_is_a_usage_error() -> None:
    done = run(SCRIPTS / "bench", "--only", "import,everything")
    assert done.returncode == 2
    assert "everything" in done.stderr
