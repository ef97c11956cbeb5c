"""Running `mailfs`, and what a mount says of itself."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.fakes import PROJECT

COMMAND_DEADLINE_S = 60.0
STATUS_DEADLINE_S = 10.0
KILLED = -9


def mailfs_arguments(store: Path, *words: str | Path) -> list[str]:
    """`python -m mailfs`, with Python's warnings as errors."""
    command = (sys.executable, "-W", "error", "-m", "mailfs", "--store", store, *words)
    return [str(word) for word in command]


class Hangs(Exception):
    """A command did not end before the deadline; where it stood."""


def run_mailfs(
    store: Path, *words: str | Path, given: bytes = b""
) -> "subprocess.CompletedProcess[bytes]":
    """Run a command; `given` is its standard input. Raises Hangs."""
    arguments = mailfs_arguments(store, *words)
    with subprocess.Popen(
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=PROJECT,
        env=os.environ | {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONPATH": str(PROJECT)},
    ) as process:
        try:
            said, complained = process.communicate(given, timeout=COMMAND_DEADLINE_S)
        except subprocess.TimeoutExpired:
            where = where_is(process.pid)
            process.kill()
            raise Hangs(f"{words} does not end:\n{where}") from None
    return subprocess.CompletedProcess(arguments, process.returncode, said, complained)


def where_is(pid: int) -> str:
    """What the kernel says of a process that does not get on, of its threads, and of what it runs."""
    told = []
    for each in (pid, *children_of(pid)):
        for task in Path(f"/proc/{each}/task").glob("*"):
            told.append(f"process {each}, thread {task.name}")
            for what in ("cmdline", "stat", "wchan", "syscall", "stack"):
                with suppress(OSError):
                    text = (task / what).read_bytes().replace(b"\0", b" ")
                    told.append(f"  {what}: {text.decode(errors='replace').strip()}")
    return "\n".join(told)


def children_of(pid: int) -> list[int]:
    """The processes this one has started and that run."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(word) for word in text.split()]


def has_command(name: str) -> bool:
    """Whether this mailfs knows a command."""
    return run_mailfs(Path("unused"), name, "--help").returncode == 0


def status_or_none(mountpoint: Path) -> dict[str, object] | None:
    """What the daemon of a mount says of itself; None while it is dead or says nothing."""
    path = mountpoint / ".mailfs/status.json"
    # In a process of its own: a daemon that hangs must not hang us.
    try:
        done = subprocess.run(
            ["cat", str(path)], capture_output=True, timeout=STATUS_DEADLINE_S, check=False
        )
        found = json.loads(done.stdout) if done.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError):
        return None
    return found if isinstance(found, dict) else None


def daemons(store: Path) -> dict[Path, int]:
    """The processes that say they serve a mount of this store, the dead left out."""
    found = {}
    for record in (store / "mounts").iterdir() if (store / "mounts").is_dir() else ():
        pid = int(record.name)
        if is_alive(pid):
            try:
                found[Path(os.fsdecode(record.read_bytes()))] = pid
            except FileNotFoundError:
                continue  # it has just ended
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not, unless one of its threads still waits for something."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
        return state not in (b"Z", b"X") or len(os.listdir(f"/proc/{pid}/task")) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


def connection_or_none(mountpoint: Path) -> Path | None:
    """The folder of a mount in /sys/fs/fuse/connections, None where nothing is mounted."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[4] == str(mountpoint):
            found = Path("/sys/fs/fuse/connections") / words[2].partition(":")[2]
    return found


def abort(mountpoint: Path) -> None:
    """Take the connection away from a mount: whoever waits for an answer gets an error, also the daemon itself."""
    connection = connection_or_none(mountpoint)
    if connection is not None:
        with suppress(OSError):
            (connection / "abort").write_text("1")
