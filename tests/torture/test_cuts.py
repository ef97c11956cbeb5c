"""A sample of scripts/torture cuts, the proof that it finds what it looks for, and the ledger it judges by."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import PROJECT
from tests.mount.conftest import why_not as why_no_mounts
from tests.mount.waiting import wait_until
from tests.torture import cuts
from tests.torture.cuts_ledger import (
    EXPUNGED,
    GONE,
    RECOVERED,
    Key,
    Ledger,
    Operation,
    Power,
    State,
    judge,
    live,
)
from tests.torture.loopdisk import why_not

REASON = why_not() or why_no_mounts()
needs_disks = pytest.mark.skipif(bool(REASON), reason=REASON or "disks and mounts work")


@needs_disks
@pytest.mark.mount
@pytest.mark.slow
def test_power_cuts_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    report = cuts.run(1, 12, tmp_path)
    assert report.is_sound, "\n".join(report.lines())
    assert report.total == 12


@needs_disks
@pytest.mark.slow
@pytest.mark.parametrize(
    ("undone", "loss"),
    [
        ("os.fsync", "cannot be read|problem"),
        ("mailfs.store.writer.set_durable", "is gone|is live"),
    ],
)
def test_a_store_that_does_not_sync_is_found_out(tmp_path: Path, undone: str, loss: str) -> None:
    report = cuts.run(3, 60, tmp_path, undone=(undone,))
    texts = [failure.what for failure in report.failures]
    assert any(word in text for text in texts for word in loss.split("|")), "\n".join(texts)


@needs_disks
@pytest.mark.slow
def test_a_run_that_is_killed_leaves_nothing_mounted(tmp_path: Path) -> None:
    run = f"from pathlib import Path; from tests.torture import cuts; cuts.run(1, 1000, Path({str(tmp_path)!r}))"
    process = subprocess.Popen([sys.executable, "-c", run], cwd=PROJECT, start_new_session=True)
    try:
        (controller,) = wait_until(lambda: controllers_in(tmp_path), "the controller", 60.0)
        wait_until(lambda: mounts_of(controller, tmp_path), "a disk of its own", 60.0)
        assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not controllers_in(tmp_path), "the controller's end", 60.0)


def controllers_in(folder: Path) -> list[int]:
    """Processes whose command line names the folder, and that are the first of their namespace."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
            status = (path.parent / "status").read_text()
        except OSError:
            continue
        if os.fsencode(folder) in words and "NSpid:" in status:
            numbers = status.partition("NSpid:")[2].splitlines()[0].split()
            if len(numbers) > 1 and numbers[-1] == "1":
                found.append(int(path.parent.name))
    return found


def mounts_of(pid: int, folder: Path) -> bool:
    """Whether a process sees a mount below the folder."""
    return str(folder) in Path(f"/proc/{pid}/mountinfo").read_text()


# --- the ledger


def operation(
    to: dict[Key, State], *, durable: bool = False, barrier: bool = False, recover: bool = False
) -> Operation:
    return Operation("somebody", "does it", to, durable, durable or barrier, may_recover=recover)


def done(ledger: Ledger, *operations: Operation) -> None:
    """One after the other, all acknowledged."""
    for each in operations:
        number = len(ledger.operations)
        ledger.begin("somebody", number, each)
        ledger.acknowledge("somebody", number)


def begun(ledger: Ledger, each: Operation) -> None:
    """Never acknowledged."""
    ledger.begin("somebody", len(ledger.operations), each)


def test_an_acknowledged_delivery_must_be_there() -> None:
    ledger = Ledger()
    done(ledger, operation({"a": live()}, durable=True))
    assert judge(ledger, {"a": live()}) == []
    assert "a is gone" in judge(ledger, {})[0]


def test_a_delivery_that_was_not_acknowledged_may_be_there_or_not() -> None:
    ledger = Ledger()
    begun(ledger, operation({"a": live("S")}, durable=True))
    assert judge(ledger, {}) == []
    assert judge(ledger, {"a": live("S")}) == []
    assert judge(ledger, {"a": live("F")})


def test_what_nobody_brought_is_found() -> None:
    assert "nobody touched it" in judge(Ledger(), {"a": live()})[0]


def test_flags_may_be_lost_until_somebody_syncs() -> None:
    ledger = Ledger()
    done(ledger, operation({"a": live()}, durable=True), operation({"a": live("S")}))
    assert judge(ledger, {"a": live()}) == []
    assert judge(ledger, {"a": live("S")}) == []
    done(ledger, operation({}, barrier=True))
    assert judge(ledger, {"a": live("S")}) == []
    assert judge(ledger, {"a": live()})


def test_a_barrier_begun_before_the_acknowledgement_promises_nothing() -> None:
    ledger = Ledger()
    done(ledger, operation({"a": live()}, durable=True))
    ledger.begin("other", 1, operation({}, barrier=True))
    done(ledger, operation({"a": EXPUNGED}))
    ledger.acknowledge("other", 1)
    assert judge(ledger, {"a": live()}) == []


def test_an_expunge_that_was_synced_is_not_undone() -> None:
    ledger = Ledger()
    done(
        ledger,
        operation({"a": live()}, durable=True),
        operation({"a": EXPUNGED}),
        operation({}, barrier=True),
    )
    assert judge(ledger, {"a": EXPUNGED}) == []
    assert judge(ledger, {"a": live()})


def test_a_call_under_way_in_the_cut_promises_nothing_and_one_begun_later_does() -> None:
    ledger = Ledger()
    ledger.begin("early", 1, operation({"a": live()}, durable=True))
    ledger.cut(Power.GOING)
    ledger.cut(Power.OFF)
    ledger.begin("late", 1, operation({"b": live()}, durable=True))
    ledger.acknowledge("early", 1)
    ledger.acknowledge("late", 1)
    (wrong, _) = judge(ledger, {})
    assert "b is gone" in wrong


def test_an_unseen_cut_keeps_what_may_be_and_forgets_what_was_not_durable() -> None:
    ledger = Ledger()
    done(ledger, operation({"a": live()}, durable=True), operation({"a": live("S")}))
    ledger.settle_unseen()
    # A barrier of today promises nothing of what was lost yesterday.
    done(ledger, operation({}, barrier=True))
    assert judge(ledger, {"a": live()}) == []
    assert judge(ledger, {"a": live("S")}) == []
    assert judge(ledger, {"a": live("F")})


def test_a_copied_file_may_become_a_message_at_any_later_start() -> None:
    ledger = Ledger()
    begun(ledger, Operation("client", "copy", {"a": live()}, False, False, is_later=True))
    ledger.settle({})
    assert judge(ledger, {"a": live()}) == []
    assert judge(ledger, {}) == []
    assert judge(ledger, {"a": live("S")})


def test_only_what_was_expunged_may_be_reclaimed() -> None:
    ledger = Ledger()
    ledger.settle({"a": EXPUNGED, "b": live()})
    done(ledger, Operation("keeper", "expire", {}, True, True, may_reclaim=True))
    assert judge(ledger, {"b": live()}) == []
    assert judge(ledger, {"a": EXPUNGED})


def test_what_was_never_acknowledged_may_be_recovered_and_what_was_reclaimed_may_not() -> None:
    ledger = Ledger()
    begun(ledger, operation({"lost": live()}, durable=True))
    done(
        ledger, operation({"old": live()}, durable=True), operation({"old": EXPUNGED}, durable=True)
    )
    done(ledger, Operation("keeper", "expire", {}, True, True, may_reclaim=True))
    ledger.settle({})
    recovered = live("", RECOVERED.keywords)
    assert judge(ledger, {"lost": recovered})
    done(ledger, operation({}, durable=True, recover=True))
    assert judge(ledger, {"lost": recovered}) == []
    assert judge(ledger, {"old": recovered})
    assert ledger.allowed()["lost"] == {GONE, RECOVERED}
