"""Who brings mail: deliveries into the mount and by command, and imports. What is acknowledged goes into the ledger.

Who was killed between the delivery and its line does it again when it is started anew, as delivery agents do: it must
still be there once.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

from tests.fakes import make_mbox
from tests.mount.waiting import pause
from tests.stress.actor import Actor
from tests.stress.commands import has_command
from tests.stress.ledger import Mark, read_lines
from tests.stress.mail import Letter, make_letter
from tests.stress.settings import LABELS, Settings
from tests.stress.tally import Given

_IMPORTED_AT_ONCE = 150
# A daemon that was killed is not back at once.
_AGAIN_S = 0.05
_EXTRA_WORDS: tuple[tuple[str, ...], ...] = ((), ("-k", "play"))


class Deliverer(Actor):
    """Delivers into views of labels, one message after the other."""

    def __init__(self, settings: Settings, name: str, number: int) -> None:
        super().__init__(settings, name, number)
        self._ways: list[Callable[[Letter], None]] = [self._by_link, self._by_rename]
        if has_command("deliver"):
            self._ways.append(self._by_command)
        self._origin = f"{name}.{number}"
        self._number = 0
        self._spare = settings.folder / f"{name}.letter"
        self._retry()

    def _retry(self) -> None:
        """Deliver again what the one before us was delivering when it was killed."""
        lines = list(read_lines(self.settings.ledger / self.name))
        if lines and lines[-1][1] is Mark.BRINGING:
            (digest,) = lines[-1][2]
            self._deliver(Letter("", digest, self._spare.read_bytes()))

    def step(self) -> None:
        letter = make_letter(self._origin, self._number, self.random)
        self._number += 1
        self._spare.write_bytes(letter.raw)
        self._deliver(letter)

    def _deliver(self, letter: Letter) -> None:
        """Until it is acknowledged, as a mail server does."""
        while not self.settings.is_over():
            self.tally.beat()
            self.ledger.write(Mark.BRINGING, [letter.digest])
            try:
                self._bring(letter)
            except Given:
                pause(_AGAIN_S)
                continue
            return

    def _bring(self, letter: Letter) -> None:
        self.random.choice(self._ways)(letter)
        self.ledger.write(Mark.BROUGHT, [letter.digest])

    def _spool(self, letter: Letter) -> tuple[Path, Path]:
        """The file in tmp/, synced, and where it is to go."""
        view = self.mount / self.random.choice(LABELS)
        name = f"{self._number}.{self.random.getrandbits(40):x}.{self.name}"
        path = view / "tmp" / name
        with self.tally.doing("write into tmp"), path.open("xb") as file:
            file.write(letter.raw)
            os.fsync(file.fileno())
        if self.random.random() < 0.2:
            return path, view / "cur" / f"{name}:2,S"
        return path, view / "new" / name

    def _by_link(self, letter: Letter) -> None:
        path, target = self._spool(letter)
        with self.tally.doing("deliver by link"):
            os.link(path, target)
        with self.tally.doing("rm in tmp"):
            path.unlink()

    def _by_rename(self, letter: Letter) -> None:
        path, target = self._spool(letter)
        with self.tally.doing("deliver by rename"):
            path.rename(target)

    def _by_command(self, letter: Letter) -> None:
        self.command("deliver", self.random.choice(LABELS), given=letter.raw)


class Importer(Actor):
    """Imports Maildirs and mbox files, each again until the command says that all of it is in."""

    def __init__(self, settings: Settings, name: str, number: int) -> None:
        super().__init__(settings, name, number)
        self._origin = f"{name}.{number}"
        self._number = 0
        self._source = settings.sources / name
        self._digests = settings.sources / f"{name}.digests"
        if self._digests.exists():
            self._import()

    def step(self) -> None:
        letters = []
        for _ in range(self.random.randrange(1, _IMPORTED_AT_ONCE)):
            letters.append(make_letter(self._origin, self._number, self.random))
            self._number += 1
        self._make_source(letters)
        # From here on whoever has this name imports it to the end.
        digests = [letter.digest for letter in letters]
        self.ledger.write(Mark.BRINGING, digests)
        waiting = self._digests.with_suffix(".waiting")
        waiting.write_text(json.dumps(digests))
        waiting.rename(self._digests)
        self._import()

    def _make_source(self, letters: list[Letter]) -> None:
        rmtree(self._source, ignore_errors=True)
        self._source.unlink(missing_ok=True)
        if self.random.random() < 0.4:
            self._source.write_bytes(b"".join(make_mbox(letter.raw for letter in letters)))
            return
        for number, letter in enumerate(letters):
            label = self.random.choice((".", *(f".{label}" for label in LABELS)))
            folder = self._source / label
            for part in ("cur", "new", "tmp"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            (folder / "cur" / f"{number}.{self.name}:2,{self.random.choice('FRS')}").write_bytes(
                letter.raw
            )

    def _import(self) -> None:
        digests = json.loads(self._digests.read_text())
        while not self.settings.is_over():
            self.tally.beat()
            try:
                self.command("import", *self.random.choice(_EXTRA_WORDS), self._source)
            except Given:
                pause(_AGAIN_S)
                continue
            self.ledger.write(Mark.BROUGHT, digests)
            self._digests.unlink()
            return
