"""mailfs status without a mount, and what commands say of themselves when they get SIGUSR2."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from mailfs.cli.commands import plan_of
from mailfs.cli.status import answering, progress_told_by
from mailfs.errors import EX_NOINPUT
from mailfs.store.lock import WriterLock
from mailfs.store.store import Store
from mailfs.views.areas import make_area
from tests.fakes import PROJECT, Deliver, RunMailfs, make_mbox, make_message
from tests.mount.waiting import DEADLINE_S, wait_until
from tests.store.peer import line_of, peer


@pytest.fixture
def mailfs(store: Store, run_mailfs: RunMailfs) -> RunMailfs:
    """The command with the store of this test."""
    return partial(run_mailfs, store=store.layout.root)


def lines_of(mailfs: RunMailfs) -> dict[str, str]:
    """What `mailfs status` says, by the first word of each line."""
    done = mailfs("status")
    assert (done.returncode, done.stderr) == (0, "")
    return {line.split()[0]: line.partition(" ")[2].strip() for line in done.stdout.splitlines()}


def test_status_counts_what_is_in_the_store(
    store: Store, deliver: Deliver, mailfs: RunMailfs
) -> None:
    said = lines_of(mailfs)
    assert re.fullmatch(
        r"healthy; [\d.]+ [kMG]B of the disk are free, 16\.8 MB of it are kept so",
        said.pop("health"),
    )
    assert said == {
        "store": f"{store.layout.root}, format {store.layout.version}",
        "messages": "0, modseq 1, 4 saved searches",
        "maintained": "never",
        "writing": "nobody",
    }
    deliver()
    deliver()
    assert lines_of(mailfs)["messages"] == "2, modseq 3, 4 saved searches"


def test_status_as_json_has_the_same_facts(
    store: Store, deliver: Deliver, mailfs: RunMailfs
) -> None:
    deliver()
    done = mailfs("status", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found.pop("health")["reason"] is None
    assert found == {
        "store": str(store.layout.root),
        "format": store.layout.version,
        "modseq": 2,
        "messages": 1,
        "searches": 4,
        "holder": None,
        "waiting_files": 0,
        "spool_files": 0,
        "maintenance": None,
        "expunged": {"messages": 0, "bytes": 0, "first_goes": None},
        "mounts": [],
    }


@pytest.mark.parametrize(("expire", "days"), [("30d", 30), ("1w", 7)])
def test_status_says_when_the_first_expunged_message_goes(
    store: Store, deliver: Deliver, mailfs: RunMailfs, expire: str, days: int
) -> None:
    config = store.layout.root / "config"
    config.write_text(f'[maintenance]\nexpire = "{expire}"\n')
    config.chmod(0o600)
    docids = [deliver(), deliver()]
    with store.writer.transaction("test", durable=False) as transaction:
        for docid in docids:
            transaction.expunge(docid)
    goes = [
        time.strftime("%Y-%m-%d", time.gmtime(time.time() + days * 86400 - passed))
        for passed in (0, 60)
    ]
    said = lines_of(mailfs)["expunged"]
    assert said in [f"2 messages, {said.split()[2]} B; the first goes on {day}" for day in goes]
    config.write_text('[maintenance]\nexpire = "never"\n')
    assert lines_of(mailfs)["expunged"].endswith("; they stay")


def test_status_counts_files_that_wait_to_be_messages(store: Store, mailfs: RunMailfs) -> None:
    for name in ("1/cur/waits", "1/cur/.hidden", "1/new/waits", "2/tmp/half"):
        path = store.layout.spool / name
        make_area(os.fsencode(path.parent))
        path.write_text("mail")
    assert lines_of(mailfs)["files"] == "2 to be taken in, 2 in tmp"


def test_status_names_the_writer_without_waiting_for_it(store: Store, mailfs: RunMailfs) -> None:
    with peer("hold", store.layout.root, "sleeping") as holder:
        assert line_of(holder) == b"held\n"
        holder.send_signal(signal.SIGSTOP)
        assert lines_of(mailfs)["writing"].startswith(f"pid {holder.pid} (python")
        assert ", sleeping, since 2" in lines_of(mailfs)["writing"]
        told = json.loads(mailfs("status", "--json").stdout)["holder"]
        assert (told["pid"], told["purpose"]) == (holder.pid, "sleeping")
        holder.kill()
        holder.wait(DEADLINE_S)
        assert lines_of(mailfs)["writing"] == "nobody"


def test_status_changes_nothing_in_a_store_of_an_older_format(
    store: Store, mailfs: RunMailfs
) -> None:
    path = store.layout.root / "format"
    now = path.read_text()
    old = now.partition("check ")[0].replace(f"version {store.layout.version}", "version 1")
    path.write_text(old)
    said = lines_of(mailfs)
    assert said["store"].endswith(", format 1")
    assert said["messages"].startswith("not counted")
    assert json.loads(mailfs("status", "--json").stdout)["messages"] is None
    assert path.read_text() == old
    path.write_text(now)


def test_status_forgets_the_records_of_mounts_that_died(store: Store, mailfs: RunMailfs) -> None:
    process = subprocess.Popen(["true"])
    process.wait(DEADLINE_S)
    record = store.layout.root / "mounts" / str(process.pid)
    record.parent.mkdir(0o700)
    record.write_text("/nowhere")
    assert mailfs("status").returncode == 0
    assert not record.exists()


def test_without_a_store_status_says_so(run_mailfs: RunMailfs, tmp_path: Path) -> None:
    done = run_mailfs("status", store=tmp_path / "nothing")
    assert done.returncode == EX_NOINPUT
    assert "no mailfs store" in done.stderr


# --- SIGUSR2


@contextmanager
def running(store: Store, *words: str) -> "Iterator[subprocess.Popen[bytes]]":
    """A command that reads from a pipe, which is closed at the end; then it must end well."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mailfs", "--store", str(store.layout.root), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=PROJECT,
    )
    with process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise
        process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0


def answers_signals(pid: int) -> bool:
    """Whether a process has begun to catch SIGUSR2: before, it would die of it."""
    (mask,) = (
        line.split()[1]
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("SigCgt:")
    )
    return bool(int(mask, 16) >> (signal.SIGUSR2 - 1) & 1)


def ask(process: "subprocess.Popen[bytes]") -> str:
    """What a process says of itself."""
    wait_until(lambda: answers_signals(process.pid), "the command to begin")
    process.send_signal(signal.SIGUSR2)
    assert process.stderr is not None
    line = process.stderr.readline().decode()
    assert f": pid {process.pid}, since 2" in line
    return line


def test_an_import_says_how_far_it_is_and_goes_on(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source.mbox"
    source.write_bytes(b"".join(make_mbox(map(make_message, range(3000)))))
    with peer("hold", store.layout.root, "first") as holder:
        assert line_of(holder) == b"held\n"
        with running(store, "import", str(source)) as process:
            text = ask(process)
            while "has waited" not in text:
                text = ask(process)
            assert text.startswith("mailfs import: pid ")
            assert f"; {source}: nothing new so far; has waited for the writer lock" in text
            assert holder.stdin is not None
            holder.stdin.close()
            while " added so far" not in text:
                text = ask(process)
            assert "; took the lock " in text
    assert store.index.count(plan_of(["*"])) == 3000


def test_a_command_that_waits_says_for_whom(store: Store) -> None:
    with peer("hold", store.layout.root, "reading the paper") as holder:
        assert line_of(holder) == b"held\n"
        with running(store, "save", "work", "tag:work") as process:
            text = ask(process)
            while "has waited" not in text:
                text = ask(process)
            assert "has waited for the writer lock for " in text
            assert f" (save), which is held by pid {holder.pid} (" in text
            assert "reading the paper" in text
            assert holder.stdin is not None
            holder.stdin.close()
            holder.wait(DEADLINE_S)
    assert store.index.search("work").query == "tag:work"


def test_a_command_that_holds_the_lock_says_what_for(
    store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    with answering("tag"), WriterLock(store.layout).hold("tagging", 0.0):
        signal.raise_signal(signal.SIGUSR2)
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"mailfs tag: pid {os.getpid()}, since 2")
    assert "; has held the writer lock for 0.0 s (tagging)" in said


def test_the_answer_has_the_progress_of_the_moment(capfd: pytest.CaptureFixture[str]) -> None:
    done = 0
    with answering("count"), progress_told_by(lambda: f"{done} of 3"):
        done = 2
        signal.raise_signal(signal.SIGUSR2)
    assert "; 2 of 3" in capfd.readouterr().err


def test_after_the_command_the_signal_means_what_it_did_before() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    with answering("count"):
        assert signal.getsignal(signal.SIGUSR2) is not before
    assert signal.getsignal(signal.SIGUSR2) is before


def test_a_child_of_a_command_says_whose_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    with answering("import"):
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGUSR2)
            os._exit(0)
        os.waitpid(child, 0)
    said = capfd.readouterr().err
    assert said == f"mailfs import: pid {child} works for pid {os.getpid()}\n"
