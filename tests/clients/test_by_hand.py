"""Mail handled with the programs every system has: what a shell does to a Maildir on disk it does to a view."""

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.clients.sides import Side
from tests.fakes import make_message
from tests.mount.mounting import Mailfs
from tests.mount.waiting import wait_until

DATE_S = 1_600_000_000


class Told(NamedTuple):
    """What a shell script said, and how it ended."""

    status: int
    output: str
    errors: str


def shell(side: Side, script: str) -> Told:
    """Run a script in the folder that holds the Maildirs."""
    done = side.account.run("env", "-C", side.root, "sh", "-c", script)
    return Told(done.returncode, done.stdout, done.stderr)


def listing(side: Side, folder: str) -> list[tuple[str, str]] | None:
    """(path from the folder, digest) of each file in it; None when there is no such folder."""
    root = side.root / folder
    if not root.exists():
        return None
    return sorted(
        (str(path.relative_to(root)), hashlib.sha256(path.read_bytes()).hexdigest())
        for path in root.rglob("*")
        if path.is_file()
    )


def deliver_dated(side: Side, number: int, name: str, folder: str, date_s: int) -> Path:
    """Deliver with the date of the file set, as `cp -p` and mbsync's CopyArrivalDate do."""
    path = side.folder(folder)
    base = name.partition(":")[0]
    (path / "tmp" / base).write_bytes(make_message(number, body="line\n" * number))
    os.utime(path / "tmp" / base, (date_s, date_s))
    target = path / ("cur" if ":2," in name else "new") / name
    (path / "tmp" / base).rename(target)
    return target


def two_folders(side: Side) -> None:
    """work has two messages in cur/ and one in new/, lists has one; two files wait in the home folder."""
    deliver_dated(side, 1, "1.x:2,S", "work", DATE_S)
    deliver_dated(side, 2, "2.x:2,", "work", DATE_S + 86400)
    deliver_dated(side, 3, "3.x", "work", DATE_S + 2 * 86400)
    deliver_dated(side, 4, "4.x:2,F", "lists", DATE_S + 3 * 86400)
    for number in (5, 6):
        (side.account.home / f"{number}.eml").write_bytes(make_message(number))


# --- cp, mv, ln, rm

SCRIPTS = {
    "mv to another folder": "mv work/cur/1.x:2,S lists/cur/",
    "mv of all": "mv work/cur/* lists/cur/ && mv work/new/* lists/new/",
    "mv sets a flag": "mv work/cur/1.x:2,S work/cur/1.x:2,FS",
    "mv to cur": "mv work/new/3.x work/cur/3.x:2,S",
    "mv back to new": "mv work/cur/2.x:2, work/new/2.x",
    "mv over another message": "mv work/cur/1.x:2,S work/cur/2.x:2,",
    "mv over a message of another folder": "mv work/cur/1.x:2,S lists/cur/4.x:2,F",
    "mv -n leaves what is there": "mv -n work/cur/1.x:2,S work/cur/2.x:2,",
    "mv of nothing": "mv work/cur/missing lists/cur/",
    "mv from the disk": 'mv "$HOME/5.eml" work/new/5.x',
    "mv to the disk": 'mv work/cur/1.x:2,S "$HOME/out.eml"; cat "$HOME/out.eml"',
    "mv beside the folders": "mv work/cur/1.x:2,S lists/kept.eml",
    "cp to another folder": "cp work/cur/1.x:2,S lists/cur/",
    "cp, then rm the first": "cp work/cur/1.x:2,S lists/cur/ && rm work/cur/1.x:2,S",
    "cp, then rm the second": "cp work/cur/1.x:2,S lists/cur/ && rm lists/cur/1.x:2,S",
    "cp within a folder": "cp work/cur/1.x:2,S work/cur/7.x:2,S",
    "cp within a folder, then rm": "cp work/cur/1.x:2,S work/cur/7.x:2,S && rm work/cur/1.x:2,S",
    "cp from the disk": 'cp "$HOME/5.eml" work/cur/ && cp "$HOME/6.eml" work/new/6.x',
    "cp over what cannot be written": 'cp -f "$HOME/5.eml" work/cur/1.x:2,S',
    "cp --remove-destination": 'cp --remove-destination "$HOME/5.eml" work/cur/1.x:2,S',
    "cp of a folder": "cp -r work again",
    "cp -l of a folder": "cp -rl work again",
    "ln to another folder": "ln work/cur/1.x:2,S lists/cur/",
    "ln, then rm the first": "ln work/cur/1.x:2,S lists/cur/ && rm work/cur/1.x:2,S",
    "ln within a folder": "ln work/cur/1.x:2,S work/cur/7.x:2,S",
    "ln over a message": "ln work/cur/1.x:2,S work/cur/2.x:2,",
    "ln -f over a message": 'cp "$HOME/5.eml" work/cur/5.x:2,S && ln -f work/cur/1.x:2,S work/cur/5.x:2,S',
    "ln of nothing": "ln work/cur/missing lists/cur/",
    "rm": "rm work/cur/1.x:2,S",
    "rm of nothing": "rm work/cur/missing",
    "rm -r of a folder": "rm -r work",
    "rm -r and again": "rm -r work && mkdir work && mkdir -p work/cur work/new work/tmp",
    "mv of a folder": "mv work again",
    "mv of a folder below another": "mv work lists/deep",
    "mkdir -p": "mkdir -p lists/deep/cur lists/deep/new lists/deep/tmp && mv work/cur/1* lists/deep/cur/",
    "rmdir of a full folder's parts": "rmdir work/cur",
    "a file nobody knows": "echo text > work/notes && cat work/notes && mv work/notes work/.notes",
    "a folder nobody knows": "mkdir work/.state && echo 1 > work/.state/a && mv work/.state/a work/b",
    "ln of a side-car": "sed s/Subject:/Subject:Re/ work/new/3.x > lists/.draft && ln lists/.draft lists/cur/d.x:2,D && cat lists/.draft",
    "tmp": "echo a > work/tmp/a; echo b >> work/tmp/a; ln work/tmp/a work/tmp/b; cat work/tmp/b; rm work/tmp/*",
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_a_shell_does_to_a_view_what_it_does_to_a_maildir(
    sides: tuple[Side, Side], script: str
) -> None:
    plain, mounted = sides
    told = []
    for side in sides:
        two_folders(side)
        told.append(shell(side, script))
    assert told[1] == told[0]
    for folder in ("work", "lists", "again"):
        assert listing(mounted, folder) == listing(plain, folder), folder
    assert mounted.mailfs is not None
    mounted.mailfs.umount()
    mounted.mailfs.mount()
    for folder in ("work", "lists", "again"):
        assert listing(mounted, folder) == listing(plain, folder), folder


def test_a_copy_is_stored_once_and_is_in_both_views(mounted: Side) -> None:
    two_folders(mounted)
    assert mounted.mailfs is not None
    before = mounted.mailfs.count("*")
    assert shell(mounted, "cp work/cur/1.x:2,S lists/cur/").status == 0
    assert mounted.mailfs.count("*") == before
    assert mounted.mailfs.count("tag:work tag:lists") == 1
    assert shell(mounted, "mv lists/cur/1.x:2,S inbox/cur/").status == 0
    assert mounted.mailfs.count("tag:work tag:inbox not tag:lists") == 1


COPIES = 40


@pytest.mark.parametrize("target", ["work", "lists"])
def test_copies_made_by_cp_outlive_what_they_were_copied_from(
    sides: tuple[Side, Side], target: str
) -> None:
    """Each rm comes while the copy before it is still being taken in."""
    for side in sides:
        side.folder(target)
        for number in range(COPIES):
            side.deliver(make_message(number), f"{number}.x:2,S", "work")
        script = f"""for number in $(seq 0 {COPIES - 1}); do
            cp work/cur/$number.x:2,S {target}/cur/$number.y:2,S && rm work/cur/$number.x:2,S
        done"""
        assert shell(side, script) == Told(0, "", ""), side.name
    for folder in ("work", target):
        assert listing(sides[1], folder) == listing(sides[0], folder)


# --- searches by mkdir


def test_mkdir_of_a_query_shows_what_matches_and_rmdir_loses_nothing(mounted: Side) -> None:
    two_folders(mounted)
    name = "from:ann is:unread"
    assert shell(mounted, f"mkdir '{name}'") == Told(0, "", "")
    shown = shell(mounted, f"find '{name}/cur' '{name}/new' -type f | wc -l")
    assert shown.output.strip() == "3"
    assert mounted.mailfs is not None
    assert name in mounted.mailfs.say("searches")
    assert shell(mounted, f"rmdir '{name}'") == Told(0, "", "")
    assert mounted.mailfs.count("*") == 4
    assert name not in mounted.mailfs.say("searches")


# --- editing

EDITORS = {
    "sed": ["sed", "-i", "s/line/word/"],
    # Below /tmp vim writes in place (backupskip) unless told otherwise.
    "vim.tiny": [
        "vim.tiny",
        "-Nu",
        "NONE",
        "-es",
        "-c",
        "set bsk=",
        "-c",
        "%s/line/word/",
        "-c",
        "wq",
    ],
    "perl": ["perl", "-pi", "-e", "s/line/word/"],
}


@pytest.mark.parametrize("editor", EDITORS)
def test_an_editor_that_writes_a_new_file_edits_a_message(
    sides: tuple[Side, Side], editor: str
) -> None:
    words = EDITORS[editor]
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    for side in sides:
        two_folders(side)
        path = side.root / "work/cur/2.x:2,"
        side.account.output(*words, path)
        assert path.read_bytes().count(b"word") == 2
    assert listing(sides[1], "work") == listing(sides[0], "work")


def test_a_message_cannot_be_written_in_place(mounted: Side) -> None:
    two_folders(mounted)
    before = listing(mounted, "work")
    refused = "sh: 1: cannot create work/cur/1.x:2,S: Operation not permitted\n"
    assert shell(mounted, "echo more >> work/cur/1.x:2,S") == Told(2, "", refused)
    assert shell(mounted, "truncate -s 0 work/cur/1.x:2,S").status == 1
    with pytest.raises(PermissionError) as told:
        os.truncate(mounted.root / "work/cur/1.x:2,S", 1)
    assert told.value.errno == errno.EPERM
    assert listing(mounted, "work") == before


# --- attributes


HARMLESS = [
    "chmod 600 work/cur/* && chmod u+x work/cur && chmod 700 work work/tmp",
    'chown "$(id -u):$(id -g)" work/cur/* work/cur work',
    "touch work/cur/* work/cur work/new work",
    "touch -d 2001-02-03 work/cur/* work/cur",
    "touch -c work/cur/missing",
    "sync work/cur/1.x:2,S work/cur work",
    "test -r work/cur/1.x:2,S && test -w work/cur && test -x work",
]


def test_changing_attributes_is_harmless(sides: tuple[Side, Side]) -> None:
    for side in sides:
        two_folders(side)
        before = listing(side, "work")
        for script in HARMLESS:
            assert shell(side, script) == Told(0, "", ""), (side.name, script)
            assert listing(side, "work") == before, (side.name, script)


LOOKS = [
    "find work lists -type f -newermt '2020-09-14 12:00' | sort",
    "find work lists -type f -newer work/cur/2.x:2, | sort",
    "find work lists -type f -size -200c | sort",
    "find work lists -name '*:2,*S' | sort",
    "find work -mindepth 1 -type d | sort",
    "grep -rc line work lists | sort",
    "ls -1 work/cur work/new",
    "stat -c '%n %s %Y %F' work/cur/* work/new/*",
    "wc -c work/cur/* work/new/*",
    "du -bc work/cur/* work/new/* | tail -n 1",
    "cat work/cur/* work/new/* | sha256sum",
]


def test_what_is_shown_is_what_a_disk_shows(sides: tuple[Side, Side]) -> None:
    plain, mounted = sides
    for side in sides:
        two_folders(side)
    for script in LOOKS:
        wanted = shell(plain, script)
        assert wanted.status == 0
        assert wanted.output
        assert shell(mounted, script) == wanted, script


def test_df_shows_the_disk_of_the_store_and_du_counts_blocks(mounted: Side) -> None:
    two_folders(mounted)
    assert mounted.mailfs is not None
    ours = os.statvfs(mounted.root)
    disk = os.statvfs(mounted.mailfs.store)
    assert ours.f_blocks * ours.f_frsize == disk.f_blocks * disk.f_frsize
    assert 0 < ours.f_bavail * ours.f_frsize <= ours.f_blocks * ours.f_frsize
    assert ours.f_namemax == 255
    assert shell(mounted, "df -P . work").status == 0
    kilobytes = int(shell(mounted, "du -sk work/cur").output.split()[0])
    assert kilobytes > 0


# --- locks

HOLD_FCNTL = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def hold(side: Side, *words: str) -> "subprocess.Popen[str]":
    """Start a program that takes a lock, says so, and keeps it until its input ends."""
    process = subprocess.Popen(
        side.account.arguments(*words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=side.account.environment(),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def release(process: "subprocess.Popen[str]") -> None:
    process.communicate("", timeout=10)
    assert process.returncode == 0


@pytest.fixture(params=["inbox/.lock", "inbox/tmp/lock"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_flock_keeps_another_process_out(sides: tuple[Side, Side], place: str) -> None:
    for side in sides:
        side.folder()
        file = str(side.root / place)
        process = hold(side, "flock", file, "sh", "-c", "echo held; cat")
        assert side.account.run("flock", "-n", file, "true").returncode == 1, side.name
        assert side.account.run("flock", "-n", "-s", file, "true").returncode == 1, side.name
        release(process)
        assert side.account.run("flock", "-n", file, "true").returncode == 0, side.name


def can_lock(path: Path) -> bool:
    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (PermissionError, BlockingIOError):
            return False
    return True


def test_a_lock_of_fcntl_keeps_another_process_out(sides: tuple[Side, Side], place: str) -> None:
    for side in sides:
        side.folder()
        path = side.root / place
        path.write_bytes(b"lock\n")
        process = hold(side, sys.executable, "-c", HOLD_FCNTL, str(path))
        assert not can_lock(path), side.name
        release(process)
        assert can_lock(path), side.name


# --- open files, large files, many files


def leave_by_rm(path: Path) -> None:
    path.unlink()


def leave_by_mv(path: Path) -> None:
    path.rename(path.parents[2] / "lists/cur" / path.name)


def be_replaced(path: Path) -> None:
    (path.parents[1] / "tmp/9.x").write_bytes(make_message(9))
    (path.parents[1] / "tmp/9.x").rename(path)


@pytest.mark.parametrize("leave", [leave_by_rm, leave_by_mv, be_replaced])
def test_an_open_message_stays_readable_when_it_leaves(
    sides: tuple[Side, Side], leave: Callable[[Path], None]
) -> None:
    for side in sides:
        two_folders(side)
        path = side.root / "work/cur/2.x:2,"
        raw = path.read_bytes()
        with path.open("rb") as file:
            assert file.read(10) == raw[:10]
            leave(path)
            assert os.fstat(file.fileno()).st_size == len(raw), side.name
            assert file.read() == raw[10:], side.name
            assert os.pread(file.fileno(), 20, 5) == raw[5:25], side.name


LARGE_BYTES = 100 * 1000 * 1000
# The daemon may hold some pieces, never the whole.
EXTRA_KB = 48 * 1024


def peak_kb(pid: int) -> int:
    """The largest resident set since /proc/PID/clear_refs was told 5."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return int(fields["VmHWM"].split()[0])


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_a_message_of_100_mb_is_delivered_and_read_in_bounded_memory(mounted: Side) -> None:
    mailfs = mounted.mailfs
    assert mailfs is not None
    mounted.deliver(make_message(1), "1.x")
    assert len(os.listdir(mounted.folder() / "new")) == 1
    Path(f"/proc/{mailfs.pid}/clear_refs").write_text("5")
    before = peak_kb(mailfs.pid)
    temporary = mounted.folder() / "tmp/2.x"
    expected = hashlib.sha256()
    with temporary.open("xb") as file:
        written = 0
        head = make_message(2)
        while written < LARGE_BYTES:
            # Text that neither compresses to nothing nor repeats.
            piece = head or os.urandom(3 << 18).hex().encode()
            head = b""
            written += file.write(piece)
            expected.update(piece)
        os.fsync(file.fileno())
    path = mounted.folder() / "new/2.x"
    temporary.rename(path)
    assert path.stat().st_size == written
    assert digest_of(path) == expected.hexdigest()
    assert peak_kb(mailfs.pid) < before + EXTRA_KB
    mailfs.umount()
    mailfs.mount()
    before = peak_kb(mailfs.pid)
    assert digest_of(path) == expected.hexdigest()
    assert peak_kb(mailfs.pid) < before + EXTRA_KB
    assert mailfs.count("id:2@example.org") == 1


MANY = 10_000


@pytest.mark.slow
def test_ten_thousand_flag_changes_of_one_client_all_arrive(mailfs: Mailfs) -> None:
    mailfs.create(MANY)
    mailfs.mount()
    folder = mailfs.path("inbox/cur")
    before = mailfs.names("inbox")
    assert len(before) == MANY
    for name in before:
        os.rename(folder / name, folder / f"{name}S")
    after = [f"{name}S" for name in before]
    assert mailfs.names("inbox") == after
    assert mailfs.count("is:read") == MANY
    wait_until(lambda: not mailfs.names("unread"), "unread without a message")
    mailfs.umount()
    mailfs.mount()
    assert mailfs.names("inbox") == after
