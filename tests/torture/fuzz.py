"""Bytes nobody meant for mailfs, made from those somebody did: targets of fuzz_targets.py.

    python -m tests.torture.fuzz SECONDS SEED [TARGET ...]     a while, each target an equal share

`count` is the number of inputs of a run, all targets together. Each input is a seed that was changed in some places: bits,
pieces of other seeds, words that mean something to the target; those that reach a line no other did are changed further.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import CodeType, FrameType
from typing import TYPE_CHECKING

from tests.torture.fuzz_targets import Target, targets
from tests.torture.report import Report

if TYPE_CHECKING:
    from _typeshed import TraceFunction

LIMIT_S = 1.0
MAX_BYTES = 20_000
_KEPT = 2_000
_SHOWN_BYTES = 300


def run(seed: int, count: int, directory: Path) -> Report:
    """So many inputs; what fails is kept in `directory`, made small."""
    report = Report("fuzz", seed)
    share = max(count // len(targets()), 1)
    for target in targets():
        fuzz(report, target, directory, lambda done, share=share: done < share)  # type: ignore[misc]  # the share of now
    return report


def run_for(seed: int, seconds: float, directory: Path, names: list[str]) -> Report:
    """The same for so many seconds."""
    report = Report("fuzz", seed)
    chosen = [target for target in targets() if not names or target.name in names]
    for target in chosen:
        end_s = time.monotonic() + seconds / len(chosen)
        fuzz(report, target, directory, lambda _, end_s=end_s: time.monotonic() < end_s)  # type: ignore[misc]  # the end of now
    return report


def fuzz(report: Report, target: Target, directory: Path, goes_on: Callable[[int], bool]) -> None:
    """Inputs for one target, one after the other; those that reach something new are changed further."""
    random = Random(f"{report.seed} {target.name}")
    corpus = list(target.seeds)
    reached = Reached()
    slowest_s, done = 0.0, 0
    while goes_on(done):
        data = corpus[done] if done < len(target.seeds) else mutate(random, corpus, target.words)
        start_s = time.process_time()
        # Watching takes ten times as long: one in a few is enough to find new ground.
        problem = reached.watch(target.run, data) if done % 4 == 0 else _problem(target.run, data)
        took_s = time.process_time() - start_s
        slowest_s = max(slowest_s, took_s)
        if reached.is_new:
            corpus.append(data)
            if len(corpus) > _KEPT:
                del corpus[random.randrange(len(target.seeds), len(corpus))]
        if took_s > LIMIT_S:
            problem = problem or f"took {took_s:.2f} s"
        if problem is not None:
            _tell(report, target, directory, data, problem, done)
        report.did(target.name)
        done += 1
    report.note(f"{target.name}: {reached.lines} lines reached, slowest input {slowest_s:.3f} s")


def _problem(run_target: Callable[[bytes], None], data: bytes) -> str | None:
    try:
        run_target(data)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what is looked for
        return f"{type(error).__name__}: {error}"
    return None


def _tell(
    report: Report, target: Target, directory: Path, data: bytes, problem: str, number: int
) -> None:
    kind = problem.partition(":")[0]
    small = data
    if not problem.startswith("took"):
        small = shrink(data, lambda less: (_problem(target.run, less) or "").startswith(kind))
    path = directory / f"{target.name.replace(' ', '-')}-{number}"
    path.write_bytes(data)
    report.fail(
        number, f"{target.name}: {problem[:_SHOWN_BYTES]} for {small[:_SHOWN_BYTES]!r}, see {path}"
    )


def shrink(data: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """A shorter input that fails in the same way: pieces are left out, larger ones first."""
    length = len(data) // 2
    while length:
        position = 0
        while position < len(data):
            less = data[:position] + data[position + length :]
            if fails(less):
                data = less
            else:
                position += length
        length //= 2
    return data


def mutate(random: Random, corpus: list[bytes], words: tuple[bytes, ...]) -> bytes:
    """One of the corpus, changed in a few places."""
    data = random.choice(corpus)
    for _ in range(random.randint(1, 6)):
        data = random.choice(_CHANGES)(random, data, corpus, words)
    return data[:MAX_BYTES]


def _span(random: Random, data: bytes) -> tuple[int, int]:
    start = random.randint(0, len(data))
    return start, min(len(data), start + random.choice((0, 1, 1, 2, 4, 16, 64, 1000)))


def _flip(random: Random, data: bytes, corpus: list[bytes], words: tuple[bytes, ...]) -> bytes:
    if not data:
        return bytes((random.getrandbits(8),))
    position = random.randrange(len(data))
    return data[:position] + bytes((random.getrandbits(8),)) + data[position + 1 :]


def _cut(random: Random, data: bytes, corpus: list[bytes], words: tuple[bytes, ...]) -> bytes:
    start, end = _span(random, data)
    return data[:start] + data[end:]


def _word(random: Random, data: bytes, corpus: list[bytes], words: tuple[bytes, ...]) -> bytes:
    start, end = _span(random, data)
    return data[:start] + random.choice(words) * random.choice((1, 1, 1, 2, 30)) + data[end:]


def _again(random: Random, data: bytes, corpus: list[bytes], words: tuple[bytes, ...]) -> bytes:
    start, end = _span(random, data)
    return data[:end] + data[start:end] * random.choice((1, 2, 50)) + data[end:]


def _splice(random: Random, data: bytes, corpus: list[bytes], words: tuple[bytes, ...]) -> bytes:
    other = random.choice(corpus)
    return data[: random.randint(0, len(data))] + other[random.randint(0, len(other)) :]


def _noise(random: Random, data: bytes, corpus: list[bytes], words: tuple[bytes, ...]) -> bytes:
    start, end = _span(random, data)
    return data[:start] + random.randbytes(random.choice((1, 2, 8, 64))) + data[end:]


_CHANGES = (_flip, _cut, _word, _word, _again, _splice, _noise)


class Reached:
    """The lines of mailfs that inputs have reached. `is_new`: the last one reached another."""

    def __init__(self) -> None:
        self._seen: set[tuple[CodeType, int]] = set()
        self.is_new = False

    @property
    def lines(self) -> int:
        return len(self._seen)

    def watch(self, run_target: Callable[[bytes], None], data: bytes) -> str | None:
        """Run with one input; what went wrong."""
        before = len(self._seen)
        tracing = sys.gettrace()
        sys.settrace(self._call)
        try:
            return _problem(run_target, data)
        finally:
            sys.settrace(tracing)
            self.is_new = len(self._seen) > before

    def _call(self, frame: FrameType, event: str, argument: object) -> "TraceFunction | None":
        return self._line if "/mailfs/" in frame.f_code.co_filename else None

    def _line(self, frame: FrameType, event: str, argument: object) -> "TraceFunction | None":
        self._seen.add((frame.f_code, frame.f_lineno))
        return self._line


def main(arguments: list[str]) -> int:
    """As the module says."""
    seconds, seed, *names = arguments
    directory = Path(tempfile.mkdtemp(prefix="mailfs-fuzz-"))
    report = run_for(int(seed), float(seconds), directory, names)
    sys.stdout.write("".join(f"{line}\n" for line in report.lines()))
    return 0 if report.is_sound else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
