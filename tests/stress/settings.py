"""What one run is: where its store and its mounts are, when it ends, and which views there are."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

# Keywords that messages are moved between, in views of these names.
LABELS = ("inbox", "work", "spam", "play")
# Searches a new store has not; with those it has they are what is compared at the end.
SEARCHES = {
    "work": "tag:work and not tag:spam",
    "spam": "tag:spam",
    "play": "tag:play",
    "lists/apples": "subject:apples",
    "lists/neither": "not (tag:inbox or tag:work)",
    "ann": "from:ann and not tag:spam",
    "conversations": "thread:{is:flagged}",
    "recent": "date:1h..",
    "changing": "is:flagged or tag:play",
}
# What `changing` is from time to time.
CHANGING = (
    "is:flagged or tag:play",
    "tag:play and not is:seen",
    "subject:pears",
    "thread:{tag:spam} and is:unread",
    "not is:seen and not tag:inbox",
)
# A message that was read in `unread` stays there so long, and so it is gone when the judgement comes.
CONFIG = "[mount]\nlinger = 1\n"
# Whose members move with the clock.
BY_THE_CLOCK = frozenset({"recent"})
# Views that are listed, watched and removed from; `changing` and the scratch views come and go.
STANDING = ("inbox", "unread", "flagged", "all", *sorted(set(SEARCHES) - {"changing"}))


@dataclass(frozen=True)
class Settings:
    """One run. `end_s` is on the monotonic clock, which all processes share."""

    folder: Path
    seed: int
    messages: int
    end_s: float

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def mounts(self) -> tuple[Path, Path]:
        return self.folder / "one", self.folder / "two"

    @property
    def ledger(self) -> Path:
        """A file for each process that brings or removes."""
        return self.folder / "ledger"

    @property
    def tally(self) -> Path:
        """A file for each process: counts, and what went wrong."""
        return self.folder / "tally"

    @property
    def shown(self) -> Path:
        """A file for each mount: names that were listed there."""
        return self.folder / "shown"

    @property
    def pictures(self) -> Path:
        """What watchers believe, written at the end."""
        return self.folder / "pictures"

    @property
    def sources(self) -> Path:
        """Mailboxes to import."""
        return self.folder / "sources"

    def folders(self) -> tuple[Path, ...]:
        return (*self.mounts, self.ledger, self.tally, self.shown, self.pictures, self.sources)

    def is_over(self) -> bool:
        return time.monotonic() >= self.end_s

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self) | {"folder": str(self.folder)}))

    @classmethod
    def read(cls, path: Path) -> "Settings":
        values = json.loads(path.read_text())
        return cls(Path(values["folder"]), values["seed"], values["messages"], values["end_s"])
