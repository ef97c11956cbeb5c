"""Mail programs at work on a mount: flags, moves and links between views, chosen names, removals."""

import errno
import os
from pathlib import Path

from mailfs.message.maildir import split_name
from tests.stress.actor import Actor
from tests.stress.commands import has_command
from tests.stress.ledger import Mark
from tests.stress.mail import letter_of_or_none
from tests.stress.settings import LABELS, STANDING, Settings
from tests.stress.tally import Given

_LETTERS = "DFPRS"
# A mail program sets flags of many messages at once.
_MOST_AT_ONCE = 8


class Filer(Actor):
    """Sets flags, moves, links and names messages."""

    def step(self) -> None:
        ways = (self._set_flags, self._set_flags, self._move, self._link, self._choose_name)
        self.random.choice(ways)()

    def _set_flags(self) -> None:
        folder = self.some_message(STANDING).parent
        names = self.listed(folder)
        for name in self.random.sample(names, min(len(names), _MOST_AT_ONCE)):
            try:
                self._change_letters(folder / name)
            except Given:
                continue

    def _change_letters(self, path: Path) -> None:
        """As a reader does: out of new/ into cur/, and some letters on or off."""
        base, letters = split_name(os.fsencode(path.name))
        changed = set((letters or b"").decode()) ^ set(self.random.sample(_LETTERS, 2))
        name = f"{os.fsdecode(base)}:2,{''.join(sorted(changed))}"
        kind = "flags" if path.parent.name == "cur" else "new to cur"
        with self.tally.doing(kind):
            os.rename(path, path.parent.parent / "cur" / name)

    def _move(self) -> None:
        """mv of a message to a view of a label; a query view is left only as far as it does not match."""
        path = self.some_message(STANDING)
        target = self.mount / self.random.choice(LABELS) / path.parent.name / path.name
        with self.tally.doing("move"):
            os.rename(path, target)

    def _link(self) -> None:
        path = self.some_message(STANDING)
        target = self.mount / self.random.choice(LABELS) / path.parent.name / path.name
        with self.tally.doing("link"):
            os.link(path, target)

    def _choose_name(self) -> None:
        """As a synchroniser does, who puts a number into the name."""
        path = self.some_message(STANDING, "cur")
        base, letters = split_name(os.fsencode(path.name))
        stem = os.fsdecode(base).partition(",U=")[0]
        name = f"{stem},U={self.random.randrange(10**6)}:2,{(letters or b'').decode()}"
        with self.tally.doing("choose a name"):
            os.rename(path, path.with_name(name))


class Remover(Actor):
    """Removes messages from views, and expunges some by command. Says so in the ledger before."""

    def __init__(self, settings: Settings, name: str, number: int) -> None:
        super().__init__(settings, name, number)
        self._can_expunge = has_command("expunge")

    def step(self) -> None:
        path = self.some_message(STANDING)
        with self.tally.doing("read"):
            raw = path.read_bytes()
        letter = letter_of_or_none(raw)
        if letter is None:
            self.tally.fault(f"{path} is no whole message: {raw[:200]!r}")
            raise Given
        self.ledger.write(Mark.REMOVING, [letter.digest], str(path))
        if self._can_expunge and self.random.random() < 0.3:
            self.command("expunge", f"id:{letter.message_id}")
            self.ledger.write(Mark.EXPUNGED, [letter.digest])
            return
        with self.tally.doing("rm", errno.EPERM):
            path.unlink()
