"""Programs the benchmark runs, mounts it makes, and what the system says of processes."""

import contextlib
import os
import platform
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mailfs.fuse.mounts import living_records
from tests.bench.report import Skip
from tests.fakes import PROJECT

COMMAND_DEADLINE_S = 300.0
MAILFS = (sys.executable, "-m", "mailfs")


def run(command: Sequence[str | Path], **environment: str) -> str:
    """Run a command of the project's folder; its standard output. A failure ends the benchmark."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def mailfs(store: Path, *words: str | Path) -> str:
    """The output of a command that works on a store."""
    return run([*MAILFS, "--store", store, *words])


def timed(function: Callable[[], object]) -> float:
    """Seconds a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(names: Sequence[str], round_number: int) -> list[str]:
    """The contestants of a round: each round another one begins."""
    first = round_number % len(names)
    return [*names[first:], *names[:first]]


@contextlib.contextmanager
def mounted(store: Path, mountpoint: Path) -> Iterator[int]:
    """A mount of the store; the daemon's pid. Ends with the unmount, whatever happens."""
    mailfs(store, "mount", mountpoint)
    try:
        yield next(pid for pid, path in living_records(store).items() if path == mountpoint)
    finally:
        end_mount(mountpoint, *MAILFS, "--store", store, "umount", mountpoint)


def end_mount(mountpoint: Path, *unmount: str | Path) -> None:
    """Unmount; lazily where that fails or was interrupted, because the folder is about to be removed."""
    try:
        run(unmount)
    finally:
        if f" {mountpoint} " in Path("/proc/self/mountinfo").read_text():
            run(["fusermount3", "-u", "-z", mountpoint])


@contextlib.contextmanager
def floor(mountpoint: Path, sizes: Path, mode: str) -> Iterator[None]:
    """The bare file system of scripts/floor, in a process of its own."""
    mountpoint.mkdir(exist_ok=True)
    command = [sys.executable, PROJECT / "scripts/floor", mountpoint, sizes, mode]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("the floor could not be mounted")
            yield
        finally:
            # Its mount may outlive a lazy unmount while we hold a file open: it must not outlive us.
            try:
                end_mount(mountpoint, "fusermount3", "-u", mountpoint)
            finally:
                process.terminate()


def run_in_terminal(command: Sequence[str], environment: dict[str, str]) -> str:
    """Run a full-screen program on a terminal of its own; what it drew."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(command[0], list(command), environment)
    drawn = b""
    give_up = time.monotonic() + COMMAND_DEADLINE_S
    try:
        while select.select([terminal], [], [], max(0.0, give_up - time.monotonic()))[0]:
            try:
                drawn += os.read(terminal, 65536)
            except OSError:  # EIO: nobody has the terminal open any more
                break
        else:
            os.kill(pid, signal.SIGKILL)
            raise RuntimeError(f"{command[0]} did not end within {COMMAND_DEADLINE_S:g} s")
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    return drawn.decode(errors="replace")


def drop_caches() -> None:
    """Cold caches: pages, names and inodes, those of FUSE too; the daemon's own memory stays."""
    if os.geteuid() != 0:
        raise Skip("dropping the caches needs root")
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def memory_mb(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/{pid}/status has no {name}")


def first_line(*command: str) -> str | None:
    """The first line a program prints, None where it is missing."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    return (done.stdout.splitlines() or [""])[0] if done.returncode == 0 else None


def describe_machine(folder: Path) -> dict[str, object]:
    import pyfuse3

    from mailfs.store.database import sqlite_version

    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    file_system = run(["df", "--output=fstype", folder]).split()[-1]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "file_system": file_system,
        "python": platform.python_version(),
        "pyfuse3": pyfuse3.__version__,
        "libfuse": first_line("fusermount3", "--version"),
        "sqlite": sqlite_version(),
        "mutt": first_line("mutt", "-v"),
        "notmuch": first_line("notmuch", "--version"),
        "load": os.getloadavg()[0],
    }
