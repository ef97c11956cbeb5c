"""Who gives orders on the command line and in the tree: keywords by query, searches made, changed, renamed, forgotten."""

import errno
from pathlib import Path

from tests.stress.actor import Actor
from tests.stress.settings import CHANGING, LABELS

_KEYWORDS = (*LABELS, "$flagged", "$seen", "$label1")
_SUBJECTS = ("apples", "pears", "plums", "minutes")
_SENDERS = ("ann", "bob", "list")
_SCRATCH = 4
# Exit codes of who came too late: no such search; the name is taken; files wait in its view.
_TOO_LATE = (66, 73, 77)


class Orderer(Actor):
    """One order after the other."""

    def step(self) -> None:
        ways = (self._tag, self._tag, self._tag, self._change, self._make, self._forget)
        self.random.choice(ways)()

    def _tag(self) -> None:
        """Of a few messages, or of hundreds."""
        keyword = self.random.choice(_KEYWORDS)
        sign = self.random.choice("+-")
        query = f"subject:{self.random.choice(_SUBJECTS)} from:{self.random.choice(_SENDERS)}"
        if self.random.random() < 0.8:
            low = self.random.randrange(4000)
            query += f" size:{low}..{low + 200}"
        self.command("tag", f"{sign}{keyword}", "--", query)

    def _change(self) -> None:
        self.command("save", "--replace", "changing", self.random.choice(CHANGING))

    def _scratch(self) -> str:
        return f"scratch-{self.random.randrange(_SCRATCH)}"

    def _make(self) -> None:
        """A view of a label, or one of a query, which then has a few messages; by mkdir or by command."""
        name = self._scratch()
        if self.random.random() < 0.5:
            with self.tally.doing("mkdir"):
                (self.mount / name).mkdir()
            self._fill(self.mount / name)
        else:
            query = self.random.choice(CHANGING)
            self.command("save", name, query, allowed=_TOO_LATE)

    def _fill(self, view: Path) -> None:
        source = self.some_message(("all",))
        with self.tally.doing("link into a new view", errno.EPERM):
            (view / source.parent.name / source.name).hardlink_to(source)

    def _forget(self) -> None:
        """Or another name for it, which renames its keyword too."""
        name = self._scratch()
        match self.random.randrange(3):
            case 0:
                with self.tally.doing("rmdir", errno.ENOTEMPTY):
                    (self.mount / name).rmdir()
            case 1:
                self.command("forget", name, allowed=_TOO_LATE)
            case _:
                # Refused where its messages would get a keyword that others have already.
                with self.tally.doing("mv of a view", errno.ENOTEMPTY, errno.EPERM):
                    (self.mount / name).rename(self.mount / self._scratch())
