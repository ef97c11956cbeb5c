"""A mount whose disk is full, read-only or failing: it stays up, all can be read, it says why, and it comes back by itself."""

import errno
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailfs.errors import EX_TEMPFAIL
from mailfs.store.health import QUIET_S
from tests import disks
from tests.disks import SmallDisk, small_disk
from tests.fakes import make_message
from tests.mount.failing import FailingDisk
from tests.mount.mounting import Mailfs
from tests.mount.waiting import wait_until
from tests.oracle import assert_sound
from tests.torture import tracing

on_a_disk = pytest.mark.skipif(bool(disks.why_not()), reason=disks.why_not())
# The latch lets one through after this, twice as long when that one failed as well.
COMES_BACK_S = 4 * QUIET_S


def code_of(act: Callable[[], object]) -> int:
    """The errno a client gets; 0 for none."""
    try:
        act()
    except OSError as error:
        return error.errno or 0
    return 0


def deliver(mailfs: Mailfs, number: int, body: str = "some text") -> None:
    """As a delivery agent does: tmp/, fsync, link."""
    tmp = mailfs.path("inbox/tmp", f"{number}.delivered")
    try:
        with tmp.open("wb") as file:
            file.write(make_message(number, body=body))
            file.flush()
            os.fsync(file.fileno())
        tmp.rename(mailfs.path("inbox/new", tmp.name))
    except OSError:
        tmp.unlink(missing_ok=True)
        raise


def flag(path: Path) -> Path:
    """Toggle F; the new name."""
    name = path.name.removesuffix("F") if path.name.endswith("F") else f"{path.name}F"
    return path.rename(path.with_name(name))


def health_of(mailfs: Mailfs) -> dict[str, object]:
    found = json.loads(mailfs.path(".mailfs/status.json").read_bytes())["health"]
    assert isinstance(found, dict)
    return found


def errors_of(mailfs: Mailfs) -> str:
    return mailfs.path(".mailfs/errors").read_text()


def read_all(mailfs: Mailfs, view: str = "all") -> int:
    return sum(
        bool(mailfs.path(view, part, name).read_bytes())
        for part in ("cur", "new")
        for name in mailfs.names(view, part)
    )


# --- full


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path, 32 << 20) as made:
        yield made


@pytest.fixture
def on_disk(disk: SmallDisk, mailfs: Mailfs) -> Mailfs:
    """A mount of a store that is on the small disk."""
    mailfs.folder = disk.path
    mailfs.__post_init__()
    mailfs.create(messages=20)
    mailfs.mountpoint.mkdir()
    return mailfs


@on_a_disk
def test_a_disk_that_gets_full_refuses_deliveries_and_takes_flags_and_removals(
    disk: SmallDisk, on_disk: Mailfs
) -> None:
    mailfs = on_disk
    mailfs.mount()
    deliver(mailfs, 100)
    disk.fill(left_bytes=1 << 20)  # the reserve of such a small disk is two
    wait_until(lambda: health_of(mailfs)["sheds"] == "additions", "the daemon's notice")
    acknowledged = 21
    for number in range(200, 210):
        assert code_of(lambda number=number: deliver(mailfs, number)) == errno.ENOSPC  # type: ignore[misc]  # the loop's number of now
    done = mailfs.command("deliver", input=make_message(300).decode())
    assert (done.returncode, done.stdout) == (EX_TEMPFAIL, "")
    assert "of the disk are free" in done.stderr
    paths = [mailfs.path("inbox/cur", name) for name in mailfs.names("inbox")]
    for path in paths[:10]:
        flag(path)
    paths[-1].unlink()
    assert mailfs.count("is:flagged") == 10
    assert read_all(mailfs) == acknowledged - 1
    assert "of the disk are free" in errors_of(mailfs)
    assert "additions are refused" in mailfs.say("status")
    assert not mailfs.names("inbox", "tmp")
    disk.free()
    wait_until(lambda: code_of(lambda: deliver(mailfs, 400)) == 0, "room", COMES_BACK_S)
    assert health_of(mailfs)["reason"] is None
    assert mailfs.command("deliver", input=make_message(300).decode()).returncode == 0
    mailfs.umount()
    assert_sound(mailfs.store)
    assert mailfs.count("*") == acknowledged + 1


@pytest.mark.slow
@on_a_disk
def test_a_disk_that_others_fill_to_the_last_block_loses_nothing_and_comes_back(
    disk: SmallDisk, on_disk: Mailfs
) -> None:
    mailfs = on_disk
    mailfs.mount()
    for number in range(100, 110):
        deliver(mailfs, number, body="text\n" * 1000)
    disk.fill()
    assert code_of(lambda: deliver(mailfs, 200)) == errno.ENOSPC
    refused = 0
    for name in mailfs.names("inbox"):
        code = code_of(lambda name=name: flag(mailfs.path("inbox/cur", name)))  # type: ignore[misc]  # the loop's name of now
        assert code in (0, errno.ENOSPC)
        refused += bool(code)
    flagged = 20 - refused
    assert mailfs.count("is:flagged") == flagged
    assert len([name for name in mailfs.names("inbox") if name.endswith("F")]) == flagged
    assert read_all(mailfs) == 30
    done = mailfs.command("tag", "+work", "*")
    assert done.returncode in (0, EX_TEMPFAIL), done.stderr
    assert mailfs.command("search", "*").returncode == 0
    disk.free()
    wait_until(lambda: code_of(lambda: deliver(mailfs, 300)) == 0, "room", COMES_BACK_S)
    for name in mailfs.names("inbox"):
        flag(mailfs.path("inbox/cur", name))
    assert mailfs.count("is:flagged") == 20 - flagged
    mailfs.umount()
    assert_sound(mailfs.store)
    assert mailfs.count("*") == 31


@on_a_disk
def test_a_full_disk_can_be_mounted_read_and_exported(
    disk: SmallDisk, on_disk: Mailfs, tmp_path: Path
) -> None:
    mailfs = on_disk
    Path(f"{mailfs.store}/index.sqlite3-shm").unlink()
    disk.fill()
    mailfs.mount()
    assert read_all(mailfs) == 20
    name = mailfs.names("inbox")[0]
    assert code_of(lambda: flag(mailfs.path("inbox/cur", name))) == errno.ENOSPC
    disk.free()

    def is_flagged() -> bool:
        return code_of(lambda: flag(mailfs.path("inbox/cur", mailfs.names("inbox")[0]))) == 0

    wait_until(is_flagged, "room", COMES_BACK_S)
    assert mailfs.count("is:flagged") == 1
    assert [name for name in mailfs.names("inbox") if name.endswith("F")]
    mailfs.umount()


# --- read-only


@on_a_disk
def test_a_read_only_disk_is_mounted_and_read_and_when_it_is_writable_changed(
    disk: SmallDisk, on_disk: Mailfs
) -> None:
    mailfs = on_disk
    disk.set_read_only(True)
    mailfs.mount()
    assert read_all(mailfs) == 20
    path = mailfs.path("inbox/cur", mailfs.names("inbox")[0])
    for act in (lambda: flag(path), path.unlink, lambda: deliver(mailfs, 100)):
        assert code_of(act) == errno.EROFS
    assert "read-only" in errors_of(mailfs)
    assert re.search(
        "changes are refused since .*: the file system is read-only",
        mailfs.path(".mailfs/status").read_text(),
    )
    assert mailfs.count("*") == 20
    assert mailfs.command("show", "*").returncode == 0
    assert mailfs.command("status").returncode == 0
    done = mailfs.command("deliver", input=make_message(100).decode())
    assert done.returncode == EX_TEMPFAIL
    assert "read-only" in done.stderr.lower()
    disk.set_read_only(False)
    wait_until(lambda: code_of(lambda: deliver(mailfs, 100)) == 0, "a change", COMES_BACK_S)
    flag(path)
    assert mailfs.command("deliver", input=make_message(200).decode()).returncode == 0
    wait_until(lambda: len(mailfs.names("inbox", "new")) == 2, "what another process delivered")
    mailfs.umount()
    assert mailfs.count("*") == 22
    assert mailfs.count("is:flagged") == 1


# --- failing


@pytest.fixture
def failing(mailfs: Mailfs, tmp_path: Path) -> FailingDisk:
    mailfs.create(messages=10)
    return FailingDisk(mailfs, tmp_path / "shim")


@pytest.mark.parametrize(
    "code",
    [
        errno.EIO,
        pytest.param(errno.EROFS, marks=pytest.mark.slow),
        pytest.param(errno.ENOSPC, marks=pytest.mark.slow),
    ],
    ids=errno.errorcode.get,
)
def test_a_disk_that_fails_under_a_mount_ends_no_mount(
    failing: FailingDisk, mailfs: Mailfs, code: int
) -> None:
    failing.mount()
    deliver(mailfs, 100)
    names = mailfs.names("inbox")
    with failing.failing(code):
        assert code_of(lambda: flag(mailfs.path("inbox/cur", names[0]))) == code
        assert health_of(mailfs)["sheds"] == "changes"
        before = failing.harmed
        for name in names:
            assert code_of(lambda name=name: flag(mailfs.path("inbox/cur", name))) == code  # type: ignore[misc]  # the loop's name of now
            assert code_of(mailfs.path("inbox/cur", name).unlink) == code
        # What is refused is said in the log once each; that is in the store, too.
        assert failing.harmed - before < len(names), "shed without a try"
        assert code_of(lambda: deliver(mailfs, 200)) == code
        assert read_all(mailfs) == 11
        assert "so changes are refused; that is tried again by itself" in errors_of(mailfs)
        status = mailfs.path(".mailfs/status").read_text()
        assert "changes are refused since" in status
    wait_until(
        lambda: code_of(lambda: flag(mailfs.path("inbox/cur", names[0]))) == 0,
        "a change",
        COMES_BACK_S,
    )
    deliver(mailfs, 200)
    assert health_of(mailfs)["reason"] is None
    assert mailfs.count("is:flagged") == 1
    mailfs.umount()
    assert_sound(mailfs.store)
    assert mailfs.count("*") == 12


@pytest.mark.slow
def test_a_sync_that_fails_is_told_and_the_next_one_counts(
    failing: FailingDisk, mailfs: Mailfs
) -> None:
    failing.mount()
    path = flag(mailfs.path("inbox/cur", mailfs.names("inbox")[0]))
    with path.open("rb") as file:
        with failing.failing(errno.EIO, tracing.Kind.SYNC):
            assert code_of(lambda: os.fsync(file.fileno())) == errno.EIO
            assert code_of(lambda: os.fsync(file.fileno())) == errno.EIO
        wait_until(lambda: code_of(lambda: os.fsync(file.fileno())) == 0, "a sync", COMES_BACK_S)
    assert mailfs.count("is:flagged") == 1
    mailfs.umount()


def test_a_daemon_without_descriptors_goes_on_when_clients_close_some(mailfs: Mailfs) -> None:
    mailfs.create(messages=5)
    mailfs.mount()
    subprocess.run(["prlimit", f"--pid={mailfs.pid}", "--nofile=40:40"], check=True)
    opened, codes = [], set()
    for number in range(60):
        path = mailfs.path("inbox", f"side-car-{number}")
        try:
            opened.append(path.open("wb"))
        except OSError as error:
            codes.add(error.errno)
    assert codes == {errno.EMFILE}
    assert code_of(lambda: deliver(mailfs, 100)) in (errno.EMFILE, errno.EAGAIN)
    assert "Too many open files" in errors_of(mailfs)
    for file in opened:
        file.close()
    wait_until(lambda: code_of(lambda: deliver(mailfs, 100)) == 0, "a delivery")
    assert health_of(mailfs)["reason"] is None
    assert read_all(mailfs) == 6
    for path in mailfs.path("inbox").glob("side-car-*"):
        path.unlink()
    mailfs.umount()


def test_status_as_json_says_how_the_store_is(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    found = json.loads(mailfs.say("status", "--json"))
    for health in (found["health"], found["mounts"][0]["health"]):
        assert (health["reason"], health["sheds"]) == (None, "")
        assert health["free_bytes"] > 0
        assert health["reserve_bytes"] > 0
