"""One run: where things lie, how often to measure, and the report."""

import json
import os
from pathlib import Path

from tests.bench.programs import mailfs, run
from tests.bench.report import Report
from tests.fakes import PROJECT


class Setting:
    """One run. `samples` are of single changes, `rounds` of whole passes over all mail.

    `imported` messages are brought while others work. Makes the corpus.
    """

    def __init__(
        self, work: Path, messages: int, rounds: int, samples: int, imported: int, idle_s: float
    ) -> None:
        self.work = work
        self.messages = messages
        self.rounds = rounds
        self.samples = samples
        self.imported = imported
        self.idle_s = idle_s
        self.report = Report()
        self.maildir = work / "maildir"
        self.store = work / "store"
        self.mountpoint = work / "mnt"
        self.corpus = make_corpus(self.maildir, messages, 1)

    def need_store(self) -> None:
        """A store with all mail of the corpus, if no part before has made it."""
        if not self.store.exists():
            self.import_all(self.store)

    def import_all(self, store: Path) -> None:
        """Make a store and import the corpus."""
        mailfs(store, "init")
        mailfs(store, "import", self.maildir)

    @property
    def view(self) -> Path:
        """The view of all messages."""
        return self.mountpoint / "all"


def make_corpus(folder: Path, messages: int, seed: int) -> dict[str, object]:
    """A Maildir of made-up history, another one for another seed; what scripts/corpus says of it."""
    command = (PROJECT / "scripts/corpus", "--messages", str(messages), "--seed", str(seed), folder)
    facts: dict[str, object] = json.loads(run(command))
    # The first contestant must not pay for writing what we have just made.
    os.sync()
    return facts
