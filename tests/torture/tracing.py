"""Processes whose calls are counted, killed and made to fail at the n-th call that concerns the store.

shim.c is compiled and loaded before libc into one process, the stage, which has imported all of mailfs; everything that is
done to a store is done by children forked from it, because a fork costs milliseconds and a start of Python a second.
What is to be harmed stands in a file that stage and children map: struct control of shim.c.
"""

import ctypes
import mmap
import os
import pickle
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import NamedTuple, TypeVar

from tests.fakes import PROJECT

T = TypeVar("T")

SHIM_SOURCE = Path(__file__).with_name("shim.c")
_SHIM, _CONTROL, _LOG = "LD_PRELOAD", "TORTURE_CONTROL", "TORTURE_LOG"
# Set where a program is watched from its start.
_SUBJECT = "TORTURE_SUBJECT"
_PATH_BYTES = 512
# A command takes some milliseconds; who is not back by then hangs.
DEADLINE_S = 60.0


class Kind(IntFlag):
    """What a call does: enum kind of shim.c."""

    OPEN_READ = 1
    OPEN_WRITE = 2
    OPEN_MAKE = 4
    READ = 8
    WRITE = 16
    RESIZE = 32
    SYNC = 64
    MAKE_NAME = 128
    REMOVE_NAME = 256
    ATTRIBUTES = 512


# What a crash can stand before or behind: everything but opens and reads of what is there.
CHANGES = (
    Kind.OPEN_MAKE
    | Kind.WRITE
    | Kind.RESIZE
    | Kind.SYNC
    | Kind.MAKE_NAME
    | Kind.REMOVE_NAME
    | Kind.ATTRIBUTES
)


class Harm(IntEnum):
    """What happens to the call: enum harm of shim.c."""

    NOTHING = 0
    KILL = 1
    KILL_HALF_WAY = 2  # half of the bytes are written first
    FAIL = 3
    CUT_SHORT = 4  # write(2) writes half, and says so


class Order(NamedTuple):
    """Harm call number `at`, from 1, of those of these kinds; with `for_good` all behind it too."""

    harm: Harm = Harm.NOTHING
    at: int = 0
    kinds: Kind = CHANGES
    error: int = 0
    for_good: bool = False


_NOTHING = Order()


class Hit(NamedTuple):
    """What was counted while armed, how many calls were harmed, and the first of these."""

    calls: int
    harmed: int
    call: str
    path: str

    def __str__(self) -> str:
        return f"{self.call} {self.path}" if self.harmed else "nothing harmed"


class Control(ctypes.Structure):
    """struct control of shim.c, in the file that all processes map."""

    _fields_ = (
        ("armed", ctypes.c_uint32),
        ("harm", ctypes.c_uint32),
        ("at", ctypes.c_uint64),
        ("for_good", ctypes.c_uint32),
        ("error", ctypes.c_int32),
        ("kinds", ctypes.c_uint32),
        ("logged", ctypes.c_uint32),
        ("count", ctypes.c_uint64),
        ("harmed", ctypes.c_uint64),
        ("prefix", ctypes.c_char * _PATH_BYTES),
        ("call", ctypes.c_char * 32),
        ("path", ctypes.c_char * _PATH_BYTES),
    )


def arm_control(control: Control, prefix: Path, order: Order, logged: "Logged") -> None:
    """From now on calls of subjects that concern what lies below `prefix` are counted, from 1."""
    control.armed = 0
    control.prefix = os.fsencode(prefix)
    control.harm, control.at, control.for_good = order.harm, order.at, order.for_good
    control.error, control.kinds, control.logged = order.error, order.kinds, logged
    control.count = control.harmed = 0
    control.call = control.path = b""
    control.armed = 1


class Logged(IntEnum):
    """What goes into the log: nothing, the counted calls, or what a failed fsync could lose (see losing.py)."""

    NOTHING = 0
    CALLS = 1
    PAGES = 2


class Shim:
    """The loaded shim of this process. Made once, in the stage."""

    def __init__(self) -> None:
        self.log = Path(os.environ[_LOG])
        with open(os.environ[_CONTROL], "r+b") as file:
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(Control))
        self._control = Control.from_buffer(self._map)
        self._library = ctypes.CDLL(os.environ[_SHIM])

    def arm(self, prefix: Path, order: Order, logged: Logged = Logged.NOTHING) -> None:
        """From now on calls of subjects that concern what lies below `prefix` are counted, from 1."""
        arm_control(self._control, prefix, order, logged)

    def disarm(self) -> Hit:
        """Nothing is counted and harmed any more."""
        control = self._control
        control.armed = 0
        return Hit(control.count, control.harmed, control.call.decode(), os.fsdecode(control.path))

    @property
    def is_killing(self) -> bool:
        """Whether somebody has been killed since it was armed."""
        control = self._control
        return bool(control.armed and control.harmed) and control.harm <= Harm.KILL_HALF_WAY

    def become_subject(self) -> None:
        """Calls of this process and its children count."""
        self._library.torture_subject(1)


@dataclass(frozen=True)
class Ended:
    """How a child ended. `code` is None where it was killed; `is_late` where it was killed because it hung."""

    code: int | None
    output: str
    errors: str
    is_late: bool = False

    def __str__(self) -> str:
        end = "hangs" if self.is_late else "was killed" if self.code is None else f"{self.code}"
        return f"{end}: {self.errors.strip() or self.output.strip()}"


class Child:
    """A forked child at work. What it prints goes into files in `folder`."""

    def __init__(self, work: Callable[[], int], folder: Path, shim: Shim | None = None) -> None:
        number = time.monotonic_ns()
        self._output, self._errors = folder / f"{number}.out", folder / f"{number}.err"
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(work, shim)
        self._pidfd = os.pidfd_open(self.pid)

    def _live(self, work: Callable[[], int], shim: Shim | None) -> None:
        code = 1
        try:
            os.setsid()
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            for path, fd in ((self._output, 1), (self._errors, 2)):
                os.dup2(os.open(path, flags, 0o600), fd)
            if shim is not None:
                shim.become_subject()
            code = work()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:  # noqa: BLE001  # a forked child must end here, whatever happens
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def kill(self) -> None:
        """SIGKILL, for it alone."""
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def is_running(self) -> bool:
        return self._pidfd >= 0 and not select.select([self._pidfd], [], [], 0)[0]

    @property
    def errors(self) -> str:
        """What it has said on stderr until now."""
        return self._errors.read_text(errors="replace") if self._errors.exists() else ""

    def wait(self, deadline_s: float = DEADLINE_S) -> Ended:
        """Its end; it is killed where that does not come in time."""
        is_late = not select.select([self._pidfd], [], [], deadline_s)[0]
        if is_late:
            self.kill()
        _, status = os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        self._pidfd = -1
        output, errors = self._output.read_text(errors="replace"), self.errors
        self._output.unlink()
        self._errors.unlink()
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        return Ended(code, output, errors, is_late)


def ask(question: Callable[[], T], folder: Path) -> T:
    """What `question` answers in a child: its open files, memory and crashes are not the stage's."""
    path = folder / f"answer-{time.monotonic_ns()}"

    def answer() -> int:
        path.write_bytes(pickle.dumps(question()))
        return 0

    ended = Child(answer, folder).wait()
    if ended.code != 0:
        lines = ended.errors.strip().splitlines() or [str(ended)]
        raise AssertionError(f"{lines[-1]}\n{ended.errors}" if ended.code else f"{ended}")
    found: T = pickle.loads(path.read_bytes())
    path.unlink()
    return found


def build_shim(folder: Path) -> Path:
    """Compile shim.c."""
    path = folder / "shim.so"
    subprocess.run(
        ["gcc", "-O1", "-shared", "-fPIC", "-o", path, SHIM_SOURCE, "-ldl"],
        check=True,
        capture_output=True,
    )
    return path


def watched_environment(
    folder: Path, prefix: Path, order: Order = _NOTHING, logged: Logged = Logged.CALLS
) -> dict[str, str]:
    """What makes a program a subject from its start; its log is `folder`/log."""
    control = Control()
    arm_control(control, prefix, order, logged)
    return _environment(folder, bytes(control)) | {_SUBJECT: "1"}


def _environment(folder: Path, control: bytes) -> dict[str, str]:
    (folder / "control").write_bytes(control)
    environment = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    return environment | {
        _SHIM: str(build_shim(folder)),
        _CONTROL: str(folder / "control"),
        _LOG: str(folder / "log"),
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
    }


def run_stage(module: str, words: list[str], folder: Path) -> bytes:
    """Run `python -m module words...` with the shim loaded; what it writes to stdout. Its stderr is ours."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=_environment(folder, bytes(Control())),
        cwd=PROJECT,
        check=True,
    )
    return done.stdout
