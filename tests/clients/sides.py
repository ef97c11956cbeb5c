"""The two places every client is tried in: a plain folder on disk, and a mount.

A test does the same steps on both and compares what the client said and what is left: which messages, with which flags.
"""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.mount.accounts import Account
from tests.mount.mounting import Mailfs


class Mail(NamedTuple):
    """One message of a folder, without its name: part is cur or new, letters are sorted."""

    part: str
    letters: str
    digest: str


@dataclass(frozen=True)
class Side:
    """A folder that holds Maildirs. `mailfs` is None for the plain one."""

    name: str
    root: Path
    account: Account
    mailfs: Mailfs | None

    def folder(self, name: str = "inbox") -> Path:
        """A Maildir of this name, made as programs make it."""
        path = self.root / name
        for part in ("cur", "new", "tmp"):
            (path / part).mkdir(parents=True, exist_ok=True)
        return path

    def deliver(self, raw: bytes, name: str, folder: str = "inbox") -> Path:
        """Put a message into a folder as delivery agents do: tmp/, then rename. `name` with letters goes to cur/."""
        path = self.folder(folder)
        base = name.partition(":")[0]
        with (path / "tmp" / base).open("xb") as file:
            file.write(raw)
            os.fsync(file.fileno())
        target = path / ("cur" if ":2," in name else "new") / name
        (path / "tmp" / base).rename(target)
        return target

    def mails(self, folder: str = "inbox") -> Counter[Mail]:
        """What is in a folder. Names beginning with a dot are no messages (maildir(5))."""
        found: Counter[Mail] = Counter()
        for part in ("cur", "new"):
            for name in os.listdir(self.root / folder / part):
                if name.startswith("."):
                    continue
                raw = (self.root / folder / part / name).read_bytes()
                letters = "".join(sorted(name.partition(":2,")[2]))
                found[Mail(part, letters, hashlib.sha256(raw).hexdigest())] += 1
        return found

    def files(self, folder: str = "inbox") -> set[str]:
        """Everything in a folder that is no message, as paths from it."""
        root = self.root / folder
        return {
            str(path.relative_to(root))
            for path in root.rglob("*")
            if path.parent.name not in ("cur", "new") or path.name.startswith(".")
        }
