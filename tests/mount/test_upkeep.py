"""What a mount does beside serving: maintenance when it is due, memory when it is short, and a log of limited length."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mailfs.ids import Docid
from mailfs.store.store import Store
from mailfs.store.upkeep.spool import Spool
from tests.fakes import make_message
from tests.mount.mounting import Mailfs
from tests.mount.waiting import wait_until
from tests.store.test_maintenance import expunge_long_ago

NOW = "[maintenance]\ndelay = 0\n"
DAY_S = 86400


def configure(mailfs: Mailfs, text: str) -> None:
    path = mailfs.store / "config"
    path.write_text(text)
    path.chmod(0o600)


def status_of(mailfs: Mailfs) -> dict[str, Any]:
    found = json.loads(mailfs.path(".mailfs/status.json").read_bytes())
    assert isinstance(found, dict)
    return found


def last_of(mailfs: Mailfs) -> dict[str, Any] | None:
    found = status_of(mailfs)["maintenance"]["last"]
    assert found is None or isinstance(found, dict)
    return found


def maintained(mailfs: Mailfs) -> dict[str, Any]:
    wait_until(lambda: last_of(mailfs) is not None, "maintenance", 30)
    found = last_of(mailfs)
    assert found is not None
    return found


def make_old(mailfs: Mailfs) -> None:
    """As if maintenance had been done the day before yesterday."""
    path = mailfs.store / "maintained"
    record = json.loads(path.read_bytes())
    record["began_s"] -= 2 * DAY_S
    path.write_text(json.dumps(record))


# --- maintenance


def test_a_mount_takes_care_of_its_store(mailfs: Mailfs) -> None:
    mailfs.create(messages=4)
    with Store.open(mailfs.store) as store:
        expunge_long_ago(store, Docid(1), 31)
        Spool(store).remove(Docid(2))
    configure(mailfs, NOW)
    mailfs.mount()
    found = maintained(mailfs)
    assert (found["expired"], found["problems"]) == (1, [])
    assert (mailfs.store / "dump").stat().st_size > 0
    status = mailfs.say("status")
    assert "maintained 20" in status
    assert "1 messages reclaimed" in status
    assert "expunged   1 messages" in status
    wait_until(lambda: "maintenance: 1 messages reclaimed" in mailfs.log_text(), "a line of it")
    assert status_of(mailfs)["maintenance"]["next"].startswith("20")
    mailfs.umount()


@pytest.mark.slow
def test_it_is_done_once_a_day_and_after_a_mount_that_comes_late(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    configure(mailfs, NOW)
    mailfs.mount()
    first = maintained(mailfs)
    mailfs.umount()
    mailfs.mount()
    assert last_of(mailfs) == first
    assert status_of(mailfs)["maintenance"]["running_since"] is None
    mailfs.umount()
    make_old(mailfs)
    mailfs.mount()
    wait_until(lambda: (last_of(mailfs) or first)["began_s"] >= first["began_s"], "maintenance", 30)
    mailfs.umount()


def test_a_mount_that_is_told_never_to_does_not(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    configure(mailfs, '[maintenance]\ndelay = 0\ninterval = "never"\n')
    mailfs.mount()
    assert status_of(mailfs)["maintenance"] == {"last": None, "running_since": None, "next": None}
    mailfs.umount()
    assert not (mailfs.store / "maintained").exists()


def test_by_hand_it_is_done_at_once_and_with_due_when_it_is_due(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    assert mailfs.say("maintain") == (
        "0 messages reclaimed, 0 packs rewritten, 0 leftovers removed, 0 B freed\n"
    )
    assert mailfs.say("maintain", "--due") == "not due yet\n"
    make_old(mailfs)
    assert "reclaimed" in mailfs.say("maintain", "--due")


@pytest.mark.slow
def test_clients_read_on_while_packs_are_rewritten(mailfs: Mailfs) -> None:
    mailfs.create()
    with Store.open(mailfs.store) as store:
        spool = Spool(store)
        for number in range(300):
            raw = make_message(number, body=os.urandom(2000).hex())
            spool.store(raw, force_sync=False, keywords=())
        for docid in range(1, 300, 2):
            expunge_long_ago(store, Docid(docid), 31)
    configure(mailfs, NOW)
    mailfs.mount()
    names = mailfs.names("all", "cur") + mailfs.names("all", "new")
    assert len(names) == 150
    file = mailfs.path("all/cur", names[0]).open("rb")
    before = file.read(100)
    started = time.monotonic()
    while not last_of(mailfs):
        assert time.monotonic() - started < 60
        for name in names:
            assert mailfs.path("all/cur", name).stat().st_size > 4000
            assert mailfs.path("all/cur", name).read_bytes().startswith(b"From: ")
    file.seek(0)
    assert file.read(100) == before
    file.close()
    assert maintained(mailfs)["expired"] == 150
    mailfs.umount()


# --- memory


@pytest.fixture
def squeezed() -> Iterator[Callable[[int], None]]:
    """Puts processes into a control group of their own, with little memory and pressure stall information."""
    groups = [
        Path(f"/sys/fs/cgroup/{name}/mailfs-test-{os.getpid()}") for name in ("unified", "memory")
    ]
    made = []
    try:
        for group in groups:
            group.mkdir()
            made.append(group)
        if not (groups[0] / "memory.pressure").exists():
            pytest.skip("control groups have no pressure stall information here")
        (groups[1] / "memory.limit_in_bytes").write_text(str(80 << 20))
    except OSError as error:
        pytest.skip(f"no control group with a limit of memory can be made here: {error.strerror}")
    else:

        def squeeze(pid: int) -> None:
            for group in groups:
                (group / "cgroup.procs").write_text(str(pid))

        yield squeeze
    finally:
        for group in made:
            wait_until(partial(is_empty, group), "its processes' end")
            group.rmdir()


def is_empty(group: Path) -> bool:
    return not (group / "cgroup.procs").read_text()


# Reads a file larger than the memory it may have again and again: all of the group waits for memory.
THRASH = """
import mmap, os, sys, time
file = open(sys.argv[1], "w+b")
for start in range(128):
    file.write(bytes(1 << 20))
file.flush()
pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
started = time.monotonic()
while time.monotonic() - started < 30:
    for start in range(0, len(pages), 4096):
        pages[start]
"""


def test_a_mount_gives_memory_back_when_the_kernel_says_that_it_is_short(
    mailfs: Mailfs, squeezed: Callable[[int], None], tmp_path: Path
) -> None:
    mailfs.create(messages=20)

    def become_squeezed() -> None:
        squeezed(os.getpid())

    # Its own control group is asked for when the mount begins.
    subprocess.run(
        mailfs.account.mailfs_arguments(mailfs.store, "mount", mailfs.mountpoint),
        preexec_fn=become_squeezed,  # no threads here
        env=mailfs.account.environment(),
        cwd=mailfs.account.folder(),
        check=True,
    )
    assert len(mailfs.names("all")) == 20
    with subprocess.Popen(
        [sys.executable, "-c", THRASH, tmp_path / "large"],
        preexec_fn=become_squeezed,
    ) as thrashing:
        try:
            wait_until(lambda: status_of(mailfs)["memory_given"]["times"], "the kernel's word", 30)
        finally:
            thrashing.kill()
    assert "memory is short: let go of" in mailfs.log_text()
    assert "of memory 1 times" in mailfs.path(".mailfs/status").read_text()
    assert len(mailfs.names("inbox")) == 20
    mailfs.umount()


# --- the log


def test_a_log_that_is_long_enough_is_begun_anew_by_the_next_mount(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    mailfs.log.write_bytes(b"an old line\n" * 100_000)
    mailfs.log.chmod(0o600)
    mailfs.log_start = 0
    mailfs.say("mount", mailfs.mountpoint)
    wait_until(lambda: "mounted at" in mailfs.log_text(), "the log")
    assert mailfs.log.stat().st_size < 10_000
    old = mailfs.store / "mount.log.1"
    assert old.stat().st_size == 1_200_000
    assert old.stat().st_mode & 0o777 == 0o600
    mailfs.umount()


def test_nothing_of_this_uses_the_processor_while_nothing_happens(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    stat = Path(f"/proc/{mailfs.pid}/stat")

    def ticks() -> int:
        fields = stat.read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before, started = ticks(), time.monotonic()
    wait_until(lambda: time.monotonic() - started > 2, "two seconds")
    assert (ticks() - before) / os.sysconf("SC_CLK_TCK") < 0.1
    mailfs.umount()
