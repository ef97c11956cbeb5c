"""A program that reads: lists a view, opens and reads all of it, and believes what Maildir programs believe.

a message is whole, or it is not there
one inode is one message, in all views and for ever
a folder's mtime never goes back, and while it is the same so are the names
"""

import os
from pathlib import Path
from typing import NamedTuple

from mailfs.message.maildir import parse_base_or_none, split_name
from mailfs.views.files import is_file_ino
from tests.stress.actor import Actor
from tests.stress.mail import letter_of_or_none
from tests.stress.settings import STANDING, Settings
from tests.stress.tally import Given

# Names kept for the end, when those that are gone must not be found.
_MAX_SHOWN = 3000


class Listing(NamedTuple):
    """What a folder held while its mtime was this."""

    mtime_ns: int
    names: frozenset[str]


class Reader(Actor):
    def __init__(self, settings: Settings, name: str, number: int) -> None:
        super().__init__(settings, name, number)
        self._digests: dict[int, str] = {}
        self._listings: dict[Path, Listing] = {}
        self._shown: set[str] = set()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._shown_fd = os.open(settings.shown / f"{self.mount.name}.names", flags, 0o600)

    def step(self) -> None:
        view = self.random.choice((*STANDING, "changing"))
        for part in ("new", "cur"):
            folder = self.mount / view / part
            names = self._list(folder, is_standing=view != "changing")
            self.random.shuffle(names)
            for name in names:
                if self.settings.is_over():
                    return
                self.tally.beat()
                try:
                    self._read(folder / name)
                except Given:
                    continue

    def _list(self, folder: Path, *, is_standing: bool) -> list[str]:
        with self.tally.doing("stat of a folder"):
            before_ns = os.stat(folder).st_mtime_ns
        names = self.listed(folder)
        with self.tally.doing("stat of a folder"):
            after_ns = os.stat(folder).st_mtime_ns
        found = Listing(after_ns, frozenset(names))
        if len(found.names) < len(names):
            self.tally.fault(f"{folder}: some names are listed twice")
        last = self._listings.get(folder, Listing(0, frozenset()))
        if not last.mtime_ns <= before_ns <= after_ns:
            times = (last.mtime_ns, before_ns, after_ns)
            self.tally.fault(f"{folder}: its mtime went back: {times}")
        if before_ns == after_ns:
            if last.mtime_ns == after_ns and last.names != found.names:
                others = sorted(last.names ^ found.names)
                self.tally.fault(f"{folder}: the same mtime {after_ns}, other names: {others[:6]}")
            self._listings[folder] = found
        if is_standing:
            self._remember(folder, names)
        return names

    def _remember(self, folder: Path, names: list[str]) -> None:
        paths = {str((folder / name).relative_to(self.mount)) for name in names[:200]}
        if new := sorted(paths - self._shown)[: _MAX_SHOWN - len(self._shown)]:
            self._shown |= set(new)
            os.write(self._shown_fd, os.fsencode("".join(f"{path}\n" for path in new)))

    def _read(self, path: Path) -> None:
        with self.tally.doing("read"), path.open("rb") as file:
            facts = os.fstat(file.fileno())
            raw = file.read()
        letter = letter_of_or_none(raw)
        if letter is None or len(raw) != facts.st_size:
            sizes = f"{len(raw)} bytes read, {facts.st_size} said"
            self.tally.fault(f"{path} is no whole message: {sizes}: {raw[:200]!r}")
            return
        base = parse_base_or_none(os.fsencode(split_name(os.fsencode(path.name)).base))
        if base is not None and base.size_bytes != len(raw):
            self.tally.fault(f"{path} has {len(raw)} bytes")
        if is_file_ino(facts.st_ino):
            return  # its delivery is not over
        if self._digests.setdefault(facts.st_ino, letter.digest) != letter.digest:
            self.tally.fault(f"{path}: inode {facts.st_ino} was another message before")
