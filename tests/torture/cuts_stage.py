"""Starts the actors, cuts the power, and looks at what is left: again and again on one disk.

Runs as the first process of a process and mount namespace of its own (see cuts.py): all others in it were started here.
"""

import gc
import importlib
import json
import os
import pkgutil
import resource
import select
import shutil
import signal
import socket
import statistics
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import NamedTuple, NoReturn

import mailfs
from mailfs.store import packs
from mailfs.store.store import Store
from mailfs.store.upkeep import training
from tests.torture.cuts_actors import (
    VIEWS,
    Actor,
    Commands,
    Kernel,
    Known,
    Part,
    in_child,
    run_actor,
    told,
)
from tests.torture.cuts_check import Found, look
from tests.torture.cuts_clients import Client
from tests.torture.cuts_keepers import Keeper, Rebuilder, Restorer, Undoer
from tests.torture.cuts_ledger import Key, Ledger, Operation, Power, State, judge, state_of
from tests.torture.cuts_writers import Writer
from tests.torture.loopdisk import LoopDisk

_DISK_BYTES = 128 << 20
# Small packs are sealed, rewritten and removed often.
_PACK_LIMITS = (256 << 20, 1 << 20, 100_000)
# Mail made up here has little in common, and there are few messages on a disk.
_DICTIONARY_BYTES, _DICTIONARY_MESSAGES = 8192, 50
# A disk with less room is made anew: a full one is another part's.
_ROOM_BYTES = 24 << 20
# So many cuts a disk lives; what is looked at after each grows with it.
_CUTS_A_DISK = (10, 80)
_CHECK_DEADLINE_S = 60.0
_READY_DEADLINE_S = 30.0
_SILENCE_DEADLINE_S = 30.0
_END_DEADLINE_S = 30.0
_LINE_BYTES = 1 << 18
_UNSEEN = 0.1
# How many words of the actors, or of the slow one, come before a cut that waits for them, on the average; and how long it
# waits. One that comes at any time comes in a tenth of that.
_WORDS, _SLOW_WORDS = 15.0, 3.0
_LONGEST_S, _LONGEST_SLOW_S = 2.0, 10.0

Make = Callable[[Part, socket.socket], Actor]


class Failed(Exception):
    """Something that must not be; the disk is not used any more."""


class Line(NamedTuple):
    """What somebody said."""

    who: str
    do: str
    fields: dict[str, object]


class Kind(NamedTuple):
    """Who works at once, and how often this is tried. `is_slow`: the first of them is waited for, and takes its time."""

    name: str
    weight: int
    actors: tuple[Make, ...]
    is_mounted: bool = False
    is_slow: bool = False


KINDS = (
    Kind("writers", 30, (Writer, Writer, Kernel)),
    Kind("one writer", 10, (Writer,)),
    Kind("commands", 20, (Commands, Writer, Kernel), is_slow=True),
    Kind("clients", 25, (Client, Client, Kernel), is_mounted=True),
    Kind("clients and writers", 20, (Client, Writer, Commands), is_mounted=True),
    Kind("keepers", 30, (Keeper, Writer, Kernel), is_slow=True),
    Kind("keepers and clients", 15, (Keeper, Client), is_mounted=True, is_slow=True),
    Kind("undoers", 10, (Undoer, Writer, Kernel), is_slow=True),
    Kind("restorer", 8, (Restorer, Kernel), is_slow=True),
    Kind("rebuilder", 12, (Rebuilder, Kernel), is_slow=True),
)


class Stage:
    """One disk and all who work on it. `fail` and `did` of cuts.py tell of failures and cuts."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._random = Random(f"cuts {seed}")
        self._seed = seed
        self._folder = folder
        self._disk = LoopDisk(folder / "disk", _DISK_BYTES)
        self._root = self._disk.path / "store"
        self._mountpoint = folder / "mail"
        self._mountpoint.mkdir()
        self._is_up = False
        self._cuts_left = 0
        self._groups: list[int] = []
        self._ledger = Ledger()
        self._known: dict[Key, Known] = {}
        self._snapshots: frozenset[str] = frozenset()
        self._faults: list[str] = []
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._made_of = self._mounted = self.how = ""
        self._opened_s: list[float] = []
        self._acked: Counter[str] = Counter()
        # A mapped page of a disk without power is SIGBUS, and whoever writes a core then ends late.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # What commands import when they need it, they find here.
        for module in pkgutil.walk_packages(mailfs.__path__, "mailfs."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        # What is forked must not be written to by the collector, or every page is copied.
        training.DICTIONARY_BYTES, training.LEAST_MESSAGES = _DICTIONARY_BYTES, _DICTIONARY_MESSAGES
        gc.collect()
        gc.freeze()

    # --- one cut

    def cut_once(self, n: int) -> str:
        """One cut from beginning to end; its kind. Raises Failed, and then the next is on a new disk."""
        try:
            if not self._is_up or not self._cuts_left or not self._has_room():
                made = self._make_store(n)
                if made:
                    return made
            return self._cut_everybody(n)
        except Failed:
            self._clear()
            raise

    def _cut_everybody(self, n: int) -> str:
        self._cuts_left -= 1
        (kind,) = self._random.choices(KINDS, [each.weight for each in KINDS])
        self._act(kind, n)
        if self._random.random() < _UNSEEN:
            # Power fails again before anybody has looked.
            self._ledger.settle_unseen()
            self._known = {}
            return f"{kind.name}, unseen"
        self._look(n)
        return kind.name

    def _clear(self) -> None:
        """After a failure: nobody is left, nothing is mounted, and the next disk is a new one."""
        self._kill_all()
        self._disk.unmount_by_force(self._disk.path)
        self._is_up = False

    def _has_room(self) -> bool:
        found = os.statvfs(self._disk.path)
        return found.f_bavail * found.f_frsize > _ROOM_BYTES

    def _make_store(self, n: int) -> str:
        """A new disk with a new store. Sometimes the power fails meanwhile: then the kind of that cut."""
        if self._is_up:
            self._disk.unmount()
        made = self._disk.make(self._random)
        self._ledger, self._known, self._is_up = Ledger(), {}, True
        self._snapshots = frozenset()
        self._cuts_left = self._random.randint(*_CUTS_A_DISK)
        packs.PACK_LIMIT_BYTES = self._random.choice(_PACK_LIMITS)
        self._made_of, self._mounted = made, self._disk.mount(self._random)
        self.how = f"{self._made_of}; {self._mounted}"
        kind = ""
        if self._random.random() < 0.5:
            kind = "init"
            self._cut_init()
        _, code, text = in_child(["--store", self._root, "init"])
        if code != 0 and "is a mailfs store already" not in text:
            raise Failed(f"init ended with {code}: {text}")
        for view in VIEWS[1:]:
            _, code, text = in_child(["--store", self._root, "save", view, f"tag:{view}"])
            if code != 0:
                raise Failed(f"save ended with {code}: {text}")
        self._sync()
        if kind:
            self._look(n)
        return kind

    def _sync(self) -> None:
        """The searches are not what this is about."""
        os.sync()

    def _cut_init(self) -> None:
        """The power fails while a store is made; init can then be run again, or it is there."""
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                Store.create(self._root)
                os.write(2, b"")
            os._exit(0)
        _spin(self._random.uniform(0, 0.03))
        self._disk.cut(self._random)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        self._disk.unmount()
        self._disk.mount(self._random)

    # --- the actors

    def _act(self, kind: Kind, n: int) -> None:
        """Let them work, cut the power, end them, and bring the power back."""
        self._faults = []
        self._drop_words()
        if kind.is_mounted:
            self._mount()
        ready, go = os.pipe()
        try:
            parts = self._parts(kind, n)
            for make, part in zip(kind.actors, parts, strict=True):
                self._start(make, part, ready, go)
            os.close(ready)
            ready = -1
            self._wait_for(len(parts))
            os.close(go)
            go = -1
            how = self._listen_and_cut(kind)
        finally:
            for fd in (ready, go):
                if fd >= 0:
                    os.close(fd)
            self._end()
        self._hear_last_words()
        self._disk.unmount()
        self.how = f"{self._made_of}; {self._mounted}; {how}"
        self._mount_disk()
        if self._faults:
            raise Failed(f"{kind.name}: before the cut: {self._faults[0]}")

    def _mount_disk(self) -> None:
        try:
            self._mounted = self._disk.mount(self._random)
        except OSError as error:
            raise Failed(f"the file system itself does not recover: {error}") from error

    def _parts(self, kind: Kind, n: int) -> list[Part]:
        parts = [
            Part(
                f"{make.__name__.lower()}-{number}",
                self._root,
                self._mountpoint,
                self._folder,
                Random(f"{self._seed} {n} {number}"),
            )
            for number, make in enumerate(kind.actors)
        ]
        changing = [part for part, make in zip(parts, kind.actors, strict=True) if make != Kernel]
        for key, known in self._known.items():
            self._random.choice(changing).known[key] = known
        return parts

    def _start(self, make: Make, part: Part, ready: int, go: int) -> None:
        child = self._fork()
        if child == 0:
            os.close(go)
            self._ours.close()
            run_actor(make, part, self._theirs, ready)

    def _fork(self) -> int:
        """A process in a group of its own, so that what it starts ends with it."""
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        else:
            with suppress(OSError):
                os.setpgid(child, child)
            self._groups.append(child)
        return child

    def _mount(self) -> None:
        """A daemon that serves the mount, until it is killed."""
        log = os.memfd_create("log")
        if self._fork() == 0:
            self._serve(log)
        give_up = time.monotonic() + _READY_DEADLINE_S
        while b"mounted at" not in (text := os.pread(log, 1 << 20, 0)):
            if b"Traceback" in text or time.monotonic() > give_up:
                raise Failed(f"the mount does not start: {text.decode(errors='replace')}")
            _spin(0.001)
        os.close(log)

    def _serve(self, log: int) -> NoReturn:
        try:
            os.dup2(log, 1)
            os.dup2(log, 2)
            import sys

            from mailfs.cli.main import main

            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  # for the life of the process
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            main(["--store", str(self._root), "mount", "-f", str(self._mountpoint)])
        except BaseException:  # noqa: BLE001  # a forked child must end here, whatever happens
            traceback.print_exc()
        finally:
            os._exit(1)

    def _wait_for(self, count: int) -> None:
        """Until so many have said that they are ready."""
        while count and not self._faults:
            if not select.select([self._ours], [], [], _READY_DEADLINE_S)[0]:
                raise Failed("an actor does not get ready")
            count -= self._hear().do == "ready"

    # --- the cut

    def _listen_and_cut(self, kind: Kind) -> str:
        """Hear what the actors say, and cut at a moment of three kinds: some time, in an operation, behind one."""
        how = self._random.choice(("at a time", "in an operation", "after an acknowledgement"))
        wanted = {"in an operation": "begin", "after an acknowledgement": "ack"}.get(how, "")
        count = 1 + int(self._random.expovariate(1 / (_SLOW_WORDS if kind.is_slow else _WORDS)))
        longest_s = _LONGEST_SLOW_S if kind.is_slow else _LONGEST_S
        for_s = longest_s if wanted else self._random.uniform(0, longest_s / 10)
        slow = f"{kind.actors[0].__name__.lower()}-0" if kind.is_slow else ""
        start_s = heard_s = time.monotonic()
        while count and (left_s := start_s + for_s - time.monotonic()) > 0:
            if not select.select([self._ours], [], [], left_s)[0]:
                continue
            heard_s = time.monotonic()
            line = self._hear()
            count -= line.do == wanted and slow in ("", line.who)
            if self._faults:
                break
        if how == "in an operation":
            _spin(self._random.expovariate(1 / (0.02 if kind.is_slow else 0.003)))
        self._hear_words()
        if time.monotonic() - heard_s > _SILENCE_DEADLINE_S:
            raise Failed("nobody gets on")
        # From here on errors are as they should be; who acknowledges something now has to be right all the same.
        self._say_power(Power.GOING)
        flag = self._disk.cut(self._random)
        self._say_power(Power.OFF)
        return f"{how}, {flag}"

    def _say_power(self, power: Power) -> None:
        """Among the words of the actors, so that it is known what was said before."""
        self._theirs.send(json.dumps({"who": "power", "do": power}).encode())

    def _hear(self) -> Line:
        fields = json.loads(self._ours.recv(_LINE_BYTES))
        line = Line(str(fields["who"]), str(fields["do"]), fields)
        match line.do:
            case "begin":
                self._ledger.begin(line.who, _number(fields["n"]), _operation(line.who, fields))
            case "ack":
                operation = self._ledger.acknowledge(line.who, _number(fields["n"]))
                self._acked[operation.what] += 1
            case Power.GOING | Power.OFF:
                self._ledger.cut(Power(line.do))
                self._is_lost = True
            case "fault" if not self._is_lost:
                self._faults.append(f"{line.who}: {fields['text']}")
        return line

    _is_lost = False

    def _hear_words(self) -> None:
        while select.select([self._ours], [], [], 0)[0]:
            self._hear()

    def _hear_last_words(self) -> None:
        self._hear_words()
        self._is_lost = False

    def _drop_words(self) -> None:
        while select.select([self._ours], [], [], 0)[0]:
            self._ours.recv(_LINE_BYTES)

    def _end(self) -> None:
        """Kill them all. Some go on for a moment without their disk, and might acknowledge what is not true."""
        if self._random.random() < 0.3:
            _spin(self._random.uniform(0, 0.02))
        self._kill_all()

    def _kill_all(self) -> None:
        """Kill everybody, and wait until the last has ended: what had lost its parent is ours, too."""
        for group in self._groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self._groups.clear()
        self._disk.unmount_by_force(self._mountpoint)
        give_up = time.monotonic() + _END_DEADLINE_S
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                if time.monotonic() > give_up:
                    raise Failed("a killed process does not end")
                _spin(0.001)

    # --- afterwards

    def _look(self, n: int) -> None:
        """Open the store in a process of its own, and judge what it says."""
        found = self._found(n)
        self._opened_s.append(found.opened_s)
        states = {each.key: each.state for each in found.seen}
        wrong = [*found.wrong, *judge(self._ledger, states)]
        if wrong:
            kept = self._keep(n, wrong)
            raise Failed(f"{len(wrong)} wrong, see {kept}: " + " | ".join(wrong[:3]))
        self._snapshots = frozenset(found.snapshots)
        states[found.delivered.key] = found.delivered.state
        self._ledger.settle(states)
        self._known = {
            each.key: Known(each.docid, each.number, each.state)
            for each in (*found.seen, found.delivered)
            if each.docid
        }

    def _found(self, n: int) -> Found:
        answer, said = os.pipe()
        child = self._fork()
        if child == 0:
            _be_checker(self._root, Random(f"{self._seed} {n} look"), self._snapshots, said)
        os.close(said)
        raw = b""
        give_up = time.monotonic() + _CHECK_DEADLINE_S
        while select.select([answer], [], [], max(0.0, give_up - time.monotonic()))[0]:
            piece = os.read(answer, 1 << 20)
            if not piece:
                break
            raw += piece
        else:
            raise Failed(f"the store could not be looked at within {_CHECK_DEADLINE_S:g} s")
        os.close(answer)
        _, status = os.waitpid(child, 0)
        self._groups.remove(child)
        if not raw:
            raise Failed(f"who looked at the store ended with {os.waitstatus_to_exitcode(status)}")
        if not raw.startswith(b"["):
            raise Failed(raw.decode(errors="replace"))
        return Found.parse(raw)

    def _keep(self, n: int, wrong: list[str]) -> Path:
        """What is on the disk now, and all that was said and is wrong."""
        target = self._folder / f"failed-{n}"
        target.mkdir()
        shutil.copytree(self._disk.path, target / "disk", symlinks=True)
        said = [*self._ledger.past, *self._ledger.operations.values()]
        (target / "wrong").write_text("\n".join([self.how, *wrong]) + "\n")
        (target / "said").write_text("\n".join(f"{each} {sorted(each.to)}" for each in said) + "\n")
        return target

    def notes(self) -> list[str]:
        """What was done in all, and how long the first start behind a cut took."""
        done = ", ".join(f"{times} {what}" for what, times in self._acked.most_common())
        notes = [f"acknowledged: {done}"]
        if self._opened_s:
            opened_s = sorted(self._opened_s)
            median, longest = 1000 * statistics.median(opened_s), 1000 * opened_s[-1]
            notes.append(f"opening the store took {median:.1f} ms, at most {longest:.0f}")
        return notes

    def close(self) -> None:
        """Nothing is left mounted."""
        if self._is_up:
            self._disk.unmount()
        self._disk.close()


def _spin(seconds: float) -> None:
    """Wait exactly so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


def _operation(who: str, fields: dict[str, object]) -> Operation:
    to = fields["to"]
    assert isinstance(to, dict)
    states: dict[Key, State] = {key: state_of(state) for key, state in to.items()}
    return Operation(
        who,
        str(fields["what"]),
        states,
        bool(fields["durable"]),
        bool(fields["barrier"]),
        bool(fields["reclaims"]),
        bool(fields["recovers"]),
        bool(fields["later"]),
    )


def _be_checker(root: Path, random: Random, snapshots: frozenset[str], said: int) -> NoReturn:
    try:
        look(root, random, snapshots, said)
    except BaseException as error:  # noqa: BLE001  # it is told, and it is a failure
        os.write(said, told(error).encode())
    finally:
        os._exit(0)
