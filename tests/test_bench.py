"""scripts/bench and scripts/corpus: they run, and what they write has the shape their documentation promises."""

import json
import os
import subprocess
from pathlib import Path
from typing import TypedDict

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


class Figure(TypedDict):
    part: str
    name: str
    unit: str
    samples: list[float]
    median: float
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


@pytest.mark.mount
@pytest.mark.slow
def test_a_small_run_writes_every_figure_in_the_documented_shape(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    parts = ["import", "mutt", "listing", "open"]
    done = run(
        *(SCRIPTS / "bench", "--messages", "200", "--rounds", "2", "--only", ",".join(parts)),
        *("--dir", tmp_path, "--output", output),
    )
    assert done.returncode == 0, done.stderr
    result: Result = json.loads(output.read_text())
    assert set(result) == Result.__required_keys__
    assert result["settings"] == {"messages": 200, "rounds": 2, "parts": parts}
    assert {"cpu", "cores", "kernel", "python", "pyfuse3", "libfuse", "sqlite"} <= set(
        result["machine"]
    )
    assert result["corpus"]["messages"] == 200
    skipped = {skip["part"] for skip in result["skipped"]}
    assert {figure["part"] for figure in result["figures"]} == set(parts) - skipped
    for figure in result["figures"]:
        assert set(figure) == set(Figure.__annotations__)
        assert len(figure["samples"]) == 2
        assert min(figure["samples"]) > 0
        assert min(figure["samples"]) <= figure["median"] <= max(figure["samples"])
        if figure["aim_value"] is None or figure["ratio"] is None:
            assert [figure["aim"], figure["ratio"], figure["met"]] == [None, None, None]
        else:
            assert figure["ratio"] == pytest.approx(figure["median"] / figure["aim_value"], 0.01)
    assert "mailfs, first" in done.stderr  # the table for people
    assert os.listdir(tmp_path) == ["result.json"]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_an_unknown_part_is_a_usage_error() -> None:
    done = run(SCRIPTS / "bench", "--only", "import,everything")
    assert done.returncode == 2
    assert "everything" in done.stderr
