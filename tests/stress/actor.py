"""The life of a process that works on the store until the deadline, and is killed and started again meanwhile.

    python -m tests.stress.actor SETTINGS NAME NUMBER

NAME is a role with a number behind it (`reader-1`), NUMBER says how often it has been started. What it does next
is decided by the seed, its name and number; what comes of it depends on all the others.
"""

import os
import signal
import sys
import time
from pathlib import Path
from random import Random

from tests.mount.waiting import pause
from tests.stress.commands import KILLED, Hangs, run_mailfs
from tests.stress.ledger import Ledger
from tests.stress.settings import Settings
from tests.stress.tally import Given, Tally

_EX_TEMPFAIL = 75
# Between two steps at most: ten processes are to leave two processors something for the daemons.
_PAUSE_S = 0.03


class Actor:
    """One such process. `step` does one thing; what it gives up is counted, what it did not expect is a fault."""

    def __init__(self, settings: Settings, name: str, number: int) -> None:
        self.settings = settings
        self.name = name
        self.random = Random(f"{settings.seed} {name} {number}")
        self.tally = Tally(settings.tally / name, f"{name}.{number}")
        self.ledger = Ledger(settings.ledger / name)
        # The first of a kind works on the first mount, the second on the second; ends like `-1` decide.
        self.mount = settings.mounts[int(name.rpartition("-")[2]) % 2]

    def step(self) -> None:
        """One thing it does."""
        raise NotImplementedError

    def finish(self) -> None:
        """What is to be done when the deadline has come."""

    def run(self) -> None:
        """Step by step to the deadline."""
        while not self.settings.is_over():
            self.tally.beat()
            try:
                self.step()
            except Given:
                pass
            except Exception:  # noqa: BLE001  # a fault of the store or of this program: both must be seen
                self.tally.fault_now()
            pause(self.random.uniform(0, _PAUSE_S))
        self.finish()
        self.tally.flush()

    def command(
        self, *words: str | Path, given: bytes = b"", allowed: tuple[int, ...] = ()
    ) -> None:
        """Run `mailfs`. Raises Given when it was killed, said that it was busy, or ended with an allowed code."""
        kind = f"mailfs {words[0]}"
        start = time.monotonic()
        try:
            done = run_mailfs(self.settings.store, *words, given=given)
        except Hangs as error:
            self.tally.fault(str(error))
            raise Given from None
        if done.returncode == 0:
            self.tally.took(kind, time.monotonic() - start)
            return
        self.tally.error(kind, str(done.returncode))
        if done.returncode not in (KILLED, _EX_TEMPFAIL, *allowed):
            self.tally.fault(f"{words} ended with {done.returncode}: {done.stderr.decode()}")
        raise Given

    def listed(self, folder: Path) -> list[str]:
        """The names in a folder of messages, in the order they come."""
        with self.tally.doing("list"):
            return os.listdir(folder)

    def some_message(self, views: tuple[str, ...], *parts: str) -> Path:
        """A message of one of these views, in cur/ or new/ unless `parts` say where. Raises Given when there is none."""
        part = self.random.choice(parts or ("cur", "cur", "new"))
        folder = self.mount / self.random.choice(views) / part
        names = self.listed(folder)
        if not names:
            raise Given
        return folder / self.random.choice(names)


def main(arguments: list[str]) -> None:
    """Be the actor of this name."""
    from tests.stress.bringing import Deliverer, Importer
    from tests.stress.filing import Filer, Remover
    from tests.stress.ordering import Orderer
    from tests.stress.readers import Reader
    from tests.stress.watching import Watcher

    roles: dict[str, type[Actor]] = {
        "reader": Reader,
        "filer": Filer,
        "deliverer": Deliverer,
        "importer": Importer,
        "remover": Remover,
        "orderer": Orderer,
        "watcher": Watcher,
    }
    settings, name, number = Settings.read(Path(arguments[0])), arguments[1], int(arguments[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started us says when it is over
    roles[name.partition("-")[0]](settings, name, number).run()


if __name__ == "__main__":
    main(sys.argv[1:])
