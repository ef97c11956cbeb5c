"""Many clients at once, some of them killed, each message judged at the end: tests/stress, as a part of the harness.

`count` are seconds. What the clients do, and what must hold of every message, stands in tests/stress.
"""

from pathlib import Path

from tests.stress.run import run_stress
from tests.torture.report import Report

_MESSAGES = 1000


def run(seed: int, count: int, directory: Path) -> Report:
    """One run of so many seconds."""
    found = run_stress(count, seed, _MESSAGES, directory)
    report = Report("clients", seed)
    report.did("messages brought", found.brought)
    for line in found.lines():
        report.note(line)
    if not found.is_sound:
        report.fail(0, "\n".join(found.lines()))
    return report
