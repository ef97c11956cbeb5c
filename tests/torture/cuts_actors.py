"""Those who work on the store when the power fails: writers of their own, commands, clients of a mount, and the kernel.

Each is a process. Before it does something it says what the messages concerned will be then, and afterwards that it was
done; see cuts_ledger.py. It goes on after the cut, when every call fails, until it is killed: what is acknowledged then
has to be true as well.
"""

import ctypes
import errno
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple, NoReturn

from mailfs.cli.main import main as mailfs_main
from mailfs.errors import EX_TEMPFAIL, Busy
from mailfs.ids import Docid
from tests.fakes import make_message
from tests.mount.waiting import pause
from tests.oracle import sha256
from tests.torture.cuts_ledger import EXPUNGED, GONE, Key, State, fields_of, live

VIEWS = ("inbox", "work", "home")
# Searches that come and go begin with this.
SCRATCH = "scratch-"
# Numbers of messages begin here; smaller ones mark a moment.
NUMBERS_FROM = 1 << 60
_LETTERS = "DFPRS"
_SIZES = (10, 300, 2000, 20_000, 300_000)
_SIZE_WEIGHTS = (40, 30, 25, 4, 1)
# Who fails always has said enough.
_MAX_FAULTS = 3
_AFTER_FAULT_S = 0.002
_COMMAND_DEADLINE_S = 60.0
_FRAMES = 6


@dataclass(frozen=True)
class Letter:
    """A message that nobody made before."""

    number: int
    raw: bytes

    @property
    def key(self) -> Key:
        return sha256(self.raw)


@dataclass
class Known:
    """A message an actor may change: nobody else does. `number` is in its Message-ID."""

    docid: Docid
    number: int
    state: State


@dataclass
class Part:
    """What an actor is given: its name, the store, its chance, its messages, and where it speaks."""

    name: str
    store: Path
    mountpoint: Path
    outside: Path
    random: Random
    known: dict[Key, Known] = field(default_factory=dict)


def told(error: BaseException) -> str:
    """An exception in one line, with where it came from."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
    return f"{type(error).__name__}: {error} [{places}]"


def search_key(name: str) -> Key:
    """What a saved search is called in the ledger; its keyword there is its query."""
    return f"search:{name}"


class Given(Exception):
    """An operation was given up; nothing is known of what it did."""


class Actor:
    """One process. `step` does one thing."""

    def __init__(self, part: Part, said: socket.socket) -> None:
        self.part = part
        self.random = part.random
        self._said = said
        self._operations = 0
        self._faults = 0

    def step(self) -> None:
        """One thing it does."""
        raise NotImplementedError

    def run(self) -> NoReturn:
        """Until it is killed."""
        while True:
            try:
                self.step()
            except Given:
                pause(_AFTER_FAULT_S)
            except Exception as error:  # noqa: BLE001  # a fault of the store or of this program: both must be seen
                self.fault(told(error))

    # --- what it says

    def say(self, **line: object) -> None:
        self._said.send(json.dumps({"who": self.part.name, **line}).encode())

    def fault(self, text: str) -> None:
        """Something that must not be, unless the power is gone."""
        self._faults += 1
        if self._faults <= _MAX_FAULTS:
            self.say(do="fault", text=text)
        pause(_AFTER_FAULT_S)

    @contextmanager
    def doing(
        self,
        what: str,
        to: Mapping[Key, State],
        *,
        durable: bool,
        barrier: bool | None = None,
        reclaims: bool = False,
        recovers: bool = False,
        later: bool = False,
    ) -> Iterator[None]:
        """One operation, acknowledged when the block ends. Raises Given where others were in the way.

        `later`: nobody is told when it is done.
        """
        self._operations += 1
        number = self._operations
        self.say(
            do="begin",
            n=number,
            what=what,
            to={key: fields_of(state) for key, state in to.items()},
            durable=durable,
            barrier=durable if barrier is None else barrier,
            reclaims=reclaims,
            recovers=recovers,
            later=later,
        )
        try:
            yield
        except BaseException as error:
            for key in to:
                # What it is now is not known, so nobody changes it any more.
                self.part.known.pop(key, None)
            if isinstance(error, Busy) or getattr(error, "errno", 0) == errno.EAGAIN:
                raise Given from error
            raise
        if not later:
            self.say(do="ack", n=number)

    # --- what it works with

    def letter(self) -> Letter:
        """A new message; some do not compress, few have more than one frame."""
        number = NUMBERS_FROM + self.random.getrandbits(60)
        (size,) = self.random.choices(_SIZES, _SIZE_WEIGHTS)
        body = self.random.randbytes(size).hex() if self.random.random() < 0.5 else "text\n" * size
        raw = make_message(number, subject=f"letter {number}", body=body)
        return Letter(number, raw)

    def letters_of_flags(self) -> str:
        """Some flags."""
        return "".join(sorted(self.random.sample(_LETTERS, self.random.randrange(4))))

    def mine(self, life: State | None = None) -> tuple[Key, Known]:
        """One of the messages only this actor changes, live unless `life` says otherwise. Raises Given."""
        wanted = "live" if life is None else life.life
        keys = [key for key, known in self.part.known.items() if known.state.life == wanted]
        if not keys:
            raise Given
        key = self.random.choice(keys)
        return key, self.part.known[key]


class Ended(NamedTuple):
    """A command that has ended. `text` is all it said."""

    pid: int
    code: int
    text: str


def in_child(words: Sequence[str | Path], given: bytes = b"") -> Ended:
    """Run `mailfs` in a forked process."""
    taken, said = os.memfd_create("in"), os.memfd_create("out")
    try:
        os.write(taken, given)
        os.lseek(taken, 0, os.SEEK_SET)
        child = os.fork()
        if child == 0:
            _be_command(words, taken, said)
        _, status = os.waitpid(child, 0)
        text = os.pread(said, os.fstat(said).st_size, 0).decode(errors="replace")
        return Ended(child, os.waitstatus_to_exitcode(status), text)
    finally:
        os.close(taken)
        os.close(said)


def _be_command(words: Sequence[str | Path], taken: int, said: int) -> NoReturn:
    code = 70
    try:
        os.dup2(taken, 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  # for the life of the process
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        signal.alarm(int(_COMMAND_DEADLINE_S))
        code = mailfs_main([str(word) for word in words])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001  # a forked child must end here, whatever happens
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Commands(Actor):
    """Whoever works with the command: each is a process of its own, which opens the store and closes it."""

    def step(self) -> None:
        ways = (
            *(self._deliver,) * 3,
            self._import,
            *(self._tag,) * 3,
            self._expunge,
            self._save,
        )
        self.random.choice(ways)()

    def command(
        self, *words: str | Path, given: bytes = b"", allowed: tuple[int, ...] = (0,)
    ) -> int:
        """The number its process had. Raises Given when it ended with 75, AssertionError for any other failure."""
        return self.output(*words, given=given, allowed=allowed).pid

    def output(
        self, *words: str | Path, given: bytes = b"", allowed: tuple[int, ...] = (0,)
    ) -> Ended:
        """The same, and what it said."""
        ended = in_child(["--store", self.part.store, *words], given)
        if ended.code == EX_TEMPFAIL:
            raise Given
        assert ended.code in allowed, f"{words} ended with {ended.code}: {ended.text}"
        return ended

    def _deliver(self) -> None:
        letter, view = self.letter(), self.random.choice(VIEWS)
        with self.doing("mailfs deliver", {letter.key: live("", {view})}, durable=True):
            self.command("deliver", view, given=letter.raw)
        self.part.known[letter.key] = Known(Docid(0), letter.number, live("", {view}))

    def _import(self) -> None:
        letters = [self.letter() for _ in range(self.random.randrange(1, 20))]
        folder = self.part.outside / f"{self.part.name}.maildir"
        for part in ("cur", "new", "tmp"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for path in (folder / "cur").iterdir():
            path.unlink()
        states = {}
        for letter in letters:
            flags = self.letters_of_flags()
            (folder / "cur" / f"{letter.number}.x:2,{flags}").write_bytes(letter.raw)
            states[letter.key] = live(flags, {"imported"})
        with self.doing("mailfs import", states, durable=True):
            self.command("import", "--no-folders", "-k", "imported", folder)
        for letter in letters:
            self.part.known[letter.key] = Known(Docid(0), letter.number, states[letter.key])

    def _tag(self) -> None:
        self._tag_one(*self.mine())

    def _tag_one(self, key: Key, known: Known) -> int:
        """Put a keyword on, or take it off. The number of the process that did."""
        assert known.state.keywords is not None
        word = self.random.choice(("todo", *VIEWS))
        sign = "-" if word in known.state.keywords else "+"
        state = live(known.state.letters, known.state.keywords ^ {word})
        with self.doing("mailfs tag", {key: state}, durable=True):
            pid = self.command("tag", f"{sign}{word}", "--", f"id:{known.number}@example.org")
        known.state = state
        return pid

    def _save(self) -> None:
        """A search is saved, and mostly forgotten again."""
        name = f"{SCRATCH}{self.random.getrandbits(40)}"
        key, query = search_key(name), f"from:ann subject:{name}"
        with self.doing("mailfs save", {key: live("", {query})}, durable=True):
            self.command("save", name, query)
        if self.random.random() < 0.8:
            with self.doing("mailfs forget", {key: GONE}, durable=True):
                self.command("forget", name)

    def _expunge(self) -> None:
        self._expunge_one(*self.mine())

    def _expunge_one(self, key: Key, known: Known) -> int:
        with self.doing("mailfs expunge", {key: EXPUNGED}, durable=True):
            pid = self.command("expunge", f"id:{known.number}@example.org")
        known.state = EXPUNGED
        return pid


class Kernel(Actor):
    """What a kernel may do at any time: write some pages of some file, in an order nobody promised."""

    _SYNC_FILE_RANGE_WAIT_BEFORE_WRITE_AFTER = 7

    def __init__(self, part: Part, said: socket.socket) -> None:
        super().__init__(part, said)
        self._libc = ctypes.CDLL(None, use_errno=True)

    def step(self) -> None:
        pause(self.random.expovariate(300))
        paths = [*self.part.store.glob("index.*"), *self.part.store.glob("packs/*.pack")]
        path = self.random.choice(paths)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return  # gone, or the power is
        try:
            self._write(fd)
        finally:
            os.close(fd)

    def _write(self, fd: int) -> None:
        if self.random.random() < 0.05:
            self._libc.syncfs(fd)
            return
        pages = max(os.fstat(fd).st_size // 4096, 1)
        start = self.random.randrange(pages)
        length = self.random.choice((1, 1, 4, pages))
        self._libc.sync_file_range(
            fd,
            ctypes.c_int64(start * 4096),
            ctypes.c_int64(length * 4096),
            self._SYNC_FILE_RANGE_WAIT_BEFORE_WRITE_AFTER,
        )


def run_actor(
    make: Callable[[Part, socket.socket], Actor], part: Part, said: socket.socket, go: int
) -> NoReturn:
    """The life of an actor's process, from the moment `go` ends."""
    try:
        actor = make(part, said)
        actor.say(do="ready")
        os.read(go, 1)
        actor.run()
    except BaseException as error:  # noqa: BLE001  # a forked child must end here, whatever happens
        line = {"who": part.name, "do": "fault", "text": told(error)}
        said.send(json.dumps(line).encode())
    finally:
        os._exit(0)
