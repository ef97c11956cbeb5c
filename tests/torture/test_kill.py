"""A sample of scripts/torture kill, and the proof that it sees what the kernel sees."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mailfs.store.store import Store
from tests.fakes import PROJECT, make_message
from tests.mount.conftest import why_not
from tests.torture import kill
from tests.torture.oracle import Content, differences, strangers
from tests.torture.tracing import watched_environment

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
needs_mounts = pytest.mark.skipif(bool(why_not()), reason=why_not() or "mounts work")

# What changes something, as strace names it: the calls of shim.c, and others it would have to have.
_TRACED = (
    "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,sendfile,copy_file_range,splice,ftruncate,truncate,"
    "fallocate,fsync,fdatasync,sync_file_range,syncfs,sync,msync,rename,renameat,renameat2,link,linkat,symlink,symlinkat,"
    "unlink,unlinkat,mkdir,mkdirat,rmdir,mknod,mknodat,chmod,fchmod,fchmodat,chown,fchown,fchownat,lchown,utimensat,"
    "setxattr,fsetxattr,lsetxattr,removexattr,fremovexattr"
)
# Its names -> ours.
_NAMES = {"pwrite64": "pwrite", "fchmod": "chmod", "fchown": "chown"}
_LINE = re.compile(r"(?:\d+ +)?(\w+)\((.*)\) += +(-?\d+)")


@needs_gcc
@pytest.mark.slow
def test_commands_killed_anywhere_lose_nothing(tmp_path: Path) -> None:
    names = ("deliver beside a reader", "expunge", "compact", "undo")
    report = kill.run(1, 20, tmp_path, names)
    assert report.is_sound, "\n".join(report.lines())
    assert report.total >= 16


@needs_gcc
@needs_mounts
@pytest.mark.mount
@pytest.mark.slow
def test_mounts_killed_anywhere_lose_nothing(tmp_path: Path) -> None:
    names = ("mount: deliver by link", "mount: copy")
    report = kill.run(1, 8, tmp_path, names)
    assert report.is_sound, "\n".join(report.lines())
    assert report.total >= 6


@needs_gcc
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_every_change_that_strace_sees_is_counted(tmp_path: Path) -> None:
    root = tmp_path / "store"
    Store.create(root).close()
    trace = tmp_path / "trace"
    command = [sys.executable, "-m", "mailfs", "--store", str(root), "deliver", "-k", "work"]
    subprocess.run(
        ["strace", "-f", "-y", "-s", "0", "-o", str(trace), "-e", f"trace={_TRACED}", *command],
        input=make_message(1, body="text\n" * 400_000),
        env=watched_environment(tmp_path, root),
        cwd=PROJECT,
        check=True,
    )
    counted = (tmp_path / "log").read_text().replace(" (deleted)", "").splitlines()
    assert len(counted) > 50
    assert counted == list(_changes(trace.read_text(), str(root)))


def _changes(trace: str, root: str) -> list[str]:
    """What strace saw of changes below `root`, as shim.c writes them."""
    found = []
    for line in trace.splitlines():
        call = _LINE.match(line)
        if call is None:
            continue
        name, arguments, _ = call.groups()
        # The path of a descriptor in <>, or a name in quotes: of two names the last.
        opened = re.match(r"\d+<([^<>]*)>", arguments)
        names = re.findall(r'"([^"]*)"', arguments)
        path = opened[1] if opened else names[-1] if names else ""
        if not (path == root or path.startswith(f"{root}/")):
            continue
        if name in ("open", "openat"):
            if not re.search(r"O_CREAT|O_TRUNC|O_TMPFILE", arguments):
                continue
            name = "open"
        found.append(f"{_NAMES.get(name, name)} {path.removeprefix(root)}")
    return found


def test_the_oracle_says_what_is_missing_and_what_is_wrong() -> None:
    before = Content(messages={"a": "live 0x0"}, searches={"inbox": "tag:inbox"})
    after = Content(messages={"a": "live 0x1", "b": "live 0x0"}, searches={"inbox": "tag:inbox"})
    half = Content(messages={"a": "live 0x0", "b": "live 0x0"}, searches={"inbox": "tag:inbox"})
    assert strangers(half, [before, after]) == []
    assert len(strangers(half, [after])) == 1
    assert len(strangers(Content(messages={"b": "live 0x1"}), [before, after])) == 3
    assert differences(after, after) == []
    assert len(differences(half, before)) == 1
