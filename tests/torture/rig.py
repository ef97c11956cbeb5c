"""A scenario played: a fresh store, a daemon where one is needed, one step after the other, and what the store holds then."""

import importlib
import os
import pkgutil
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import mailfs
from mailfs.cli.main import main
from mailfs.store.store import Store
from tests.mount.waiting import wait_until
from tests.torture.oracle import Content, Found, digest_of, look
from tests.torture.scenarios import Place, Scenario, Step, set_constants
from tests.torture.tracing import Child, Ended, Hit, Kind, Logged, Order, Shim, ask

_READY_S = 20.0


@dataclass(frozen=True)
class Played:
    """How the steps of a scenario ended, in order; a scenario that was cut off has fewer than it has steps."""

    scenario: Scenario
    ended: tuple[Ended, ...]

    @property
    def acknowledged(self) -> int:
        """How many steps, from the first on, were acknowledged without a gap."""
        for number, (step, ended) in enumerate(zip(self.scenario.steps, self.ended, strict=False)):
            if ended.code not in step.done:
                return number
        return len(self.ended)

    @property
    def durable(self) -> int:
        """How many of these survive power loss: all up to the last durable one."""
        steps = self.scenario.steps[: self.acknowledged]
        return max((number for number, step in enumerate(steps, 1) if step.is_durable), default=0)


@dataclass
class Golden:
    """A scenario played without harm: what the store held before, and behind each step."""

    template: Path
    states: list[Content]
    counts: dict[Kind, int] = field(default_factory=dict)


class Rig:
    """Plays scenarios in `folder`. One at a time."""

    def __init__(self, shim: Shim, folder: Path, seed: int) -> None:
        self.shim = shim
        self._folder = folder
        self._seed = seed
        self._place = Place(folder / "place")
        self._work = folder / "work"
        self._work.mkdir()
        self._daemon: Child | None = None
        # How the daemon ended that was harmed throughout.
        self.last: Ended | None = None
        _import_all()

    # --- beginnings

    def template(self, scenario: Scenario) -> Path:
        """The folder a scenario begins with, made once."""
        name = scenario.prepare.__name__
        path = self._folder / name
        if not path.exists():

            def prepare() -> None:
                scenario.prepare(Place(path), Random(f"{self._seed} {name}"))

            ask(prepare, self._work)
        return path

    def fresh(self, scenario: Scenario) -> Place:
        """A new copy of what the scenario begins with."""
        if self._place.folder.exists():
            shutil.rmtree(self._place.folder)
        template = Place(self.template(scenario))
        self._place.folder.mkdir()
        if template.store.exists():
            shutil.copytree(template.store, self._place.store)
        self._place.letters.unlink(missing_ok=True)
        os.symlink(template.letters, self._place.letters)
        for path in template.folder.iterdir():
            if path != template.store:
                shutil.copy(path, self._place.folder)
        return self._place

    # --- the daemon

    def begin(self, scenario: Scenario, *, is_harmed: bool) -> bool:
        """Mount, where the scenario is one of a mount. False where the daemon has ended before it served."""
        if not scenario.is_mounted and not scenario.has_mount:
            return True
        place = self._place
        words = ["--store", str(place.store), "mount", "-f", str(place.mount)]

        def serve() -> int:
            set_constants(scenario.constants)
            return main(words)

        shim = self.shim if is_harmed and scenario.is_mounted else None
        self._daemon = Child(serve, self._work, shim)
        wait_until(lambda: self._is_ready() or not self.is_served, "the mount", _READY_S)
        assert self.is_served or is_harmed, f"the daemon ended: {self._daemon.errors}"
        return self.is_served

    def _is_ready(self) -> bool:
        try:
            return os.stat(self._place.mount).st_dev != os.stat(self._place.folder).st_dev
        except OSError:
            return False

    @property
    def is_served(self) -> bool:
        """Whether the daemon, where there is one, still runs."""
        return self._daemon is None or self._daemon.is_running()

    @property
    def log(self) -> str:
        """What the daemon has said."""
        return "" if self._daemon is None else self._daemon.errors

    @property
    def has_daemon(self) -> bool:
        """Whether one has been begun and not ended."""
        return self._daemon is not None

    def errors(self) -> str:
        """What `.mailfs/errors` of the mount says."""
        return ask((self._place.mount / ".mailfs" / "errors").read_text, self._work)

    def shown(self) -> set[str]:
        """The messages that the mount shows, by their bytes."""
        folders = [self._place.mount / "all" / part for part in ("cur", "new")]

        def read() -> set[str]:
            return {digest_of(path.read_bytes()) for each in folders for path in each.iterdir()}

        return ask(read, self._work)

    def lose(self, lose: Callable[[Path, bytes], int]) -> None:
        """Everybody who has the store open dies, and what a failed fsync has lost is lost. Unmounts a dead mount point."""
        self.clear()
        lose(self._place.store, self.shim.log.read_bytes())

    def end(self) -> Ended | None:
        """Unmount in good order; how the daemon ended, or None where there is none. A dead one's mount point stays."""
        daemon, self._daemon = self._daemon, None
        if daemon is None:
            return None
        if daemon.is_running():
            words = ["--store", str(self._place.store), "umount", str(self._place.mount)]
            done = Child(lambda: main(words), self._work).wait()
            if done.code != 0:
                self._tear_down()
                daemon.kill()
                daemon.wait()
                raise AssertionError(f"umount: {done}")
        return daemon.wait()

    def _tear_down(self) -> None:
        """Whatever was left behind."""
        subprocess.run(
            ["fusermount3", "-u", "-z", "--", self._place.mount], capture_output=True, check=False
        )

    def clear(self) -> None:
        """After a failure: no daemon and no mount is left."""
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            daemon.kill()
            daemon.wait()
        if str(self._place.mount) in Path("/proc/self/mountinfo").read_text():
            self._tear_down()

    # --- the play

    @contextmanager
    def read_by(self, scenario: Scenario) -> Iterator[None]:
        """Another process that has the store open, where the scenario has one."""
        if not scenario.has_reader:
            yield
            return
        reader = Child(self._read_on, self._work)
        ready = self._work / "reading"
        wait_until(ready.exists, "the reader")
        ready.unlink()
        try:
            yield
        finally:
            reader.kill()
            reader.wait()

    def _read_on(self) -> int:
        with Store.open(self._place.store) as store:
            store.index.searches()
            (self._work / "reading").touch()
            while True:
                signal.pause()

    def play(self, scenario: Scenario, *, is_harmed: bool = False) -> Played:
        """Take the steps, until one is killed; a harmed daemon's death ends it, too."""
        ended = []
        shim = self.shim if is_harmed and not scenario.is_mounted else None
        for step in scenario.steps:
            ended.append(self._take(scenario, step, shim))
            if ended[-1].code is None or (ended[-1].code and not self._survives()):
                break
        return Played(scenario, tuple(ended))

    def _take(self, scenario: Scenario, step: Step, shim: Shim | None = None) -> Ended:
        def work() -> int:
            set_constants(scenario.constants)
            return step.work(self._place)

        return Child(work, self._work, shim).wait()

    def _survives(self) -> bool:
        """Whether the daemon lives; a client hears of its death a moment before it has gone."""
        if self._daemon is None:
            return True
        if self.shim.is_killing:
            wait_until(lambda: not self.is_served, "the daemon's end")
        return self._daemon.is_running()

    def golden(self, scenario: Scenario) -> Golden:
        """Play it without harm, looking behind each step; then count its calls."""
        self.fresh(scenario)
        states = [Content() if scenario.is_broken else self.look().content]
        # Who looks at an old store brings it up to date.
        self.fresh(scenario)
        self.begin(scenario, is_harmed=False)
        for number, step in enumerate(scenario.steps):
            ended = self._take(scenario, step)
            assert ended.code in step.done, f"{scenario.name}, step {number} ({step.what}): {ended}"
            found = self.look()
            assert not found.problems, f"{scenario.name}, step {number}: {found.problems}"
            states.append(states[-1] if step.is_deferred else found.content)
        self.end()
        return Golden(self.template(scenario), [*states[:-1], self.look().content])

    def count(self, scenario: Scenario, kinds: Kind) -> int:
        """How many calls of these kinds a scenario makes."""
        self.fresh(scenario)
        with self.read_by(scenario):
            _, hit = self.play_harmed(scenario, Order(kinds=kinds))
            self.end()
        return hit.calls

    def play_harmed(
        self, scenario: Scenario, order: Order, logged: Logged = Logged.NOTHING
    ) -> tuple[Played, Hit]:
        """Play it while it is harmed. A daemon that lives goes on, but for one that was harmed throughout."""
        shim = self.shim
        shim.log.write_bytes(b"")
        if not scenario.is_harmed_throughout:
            self.begin(scenario, is_harmed=True)
            shim.arm(self._place.folder, order, logged)
            played = self.play(scenario, is_harmed=True)
            return played, shim.disarm()
        shim.arm(self._place.folder, order, logged)
        is_served = self.begin(scenario, is_harmed=True)
        played = self.play(scenario, is_harmed=True) if is_served else Played(scenario, ())
        self.last = self.end()
        return played, shim.disarm()

    def look(self) -> Found:
        """The store as the next program finds it."""
        return ask(lambda: look(self._place.store), self._work)

    def look_beside(self, scenario: Scenario) -> list[str]:
        """What is wrong outside of the store."""
        extra = scenario.extra
        return [] if extra is None else ask(lambda: extra(self._place), self._work)

    def disarm(self) -> Hit:
        return self.shim.disarm()


def _import_all() -> None:
    """Everything of mailfs, once, so that no child has to."""
    for module in pkgutil.walk_packages(mailfs.__path__, "mailfs."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
