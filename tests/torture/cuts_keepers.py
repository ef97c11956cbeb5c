"""Those who keep the store in order while the power fails: they reclaim, compact, back up, undo, restore, make it anew."""

import json
import socket
import time
from pathlib import Path

from mailfs.errors import EX_DATAERR, EX_IOERR
from mailfs.ids import Docid
from tests.fakes import make_message
from tests.oracle import sha256
from tests.torture.cuts_actors import VIEWS, Commands, Given, Known, Part
from tests.torture.cuts_ledger import EXPUNGED, Key, State, live

# The newest snapshot, in the ledger; its keyword is the number of the newest mark in it.
SNAPSHOT: Key = "file:snapshot"
_SHOWN_IN_LOG = "30"


def backups_of(store: Path) -> Path:
    """Where snapshots go: to the same disk, so that they lose power with it."""
    return store.parent / "backups"


def mark_number() -> int:
    """A number that is larger than all before, also those of earlier processes, and that no other message has."""
    return time.time_ns() >> 16


class Keeper(Commands):
    """Runs what a daemon runs at night, at once and all the time; no live message changes by it."""

    def step(self) -> None:
        ways = (
            *(self._expire,) * 3,
            *(self._compact,) * 3,
            self._back_up,
            self._dump,
            self._maintain,
            self._expunge,
            self._expunge,
            self._import,
        )
        self.random.choice(ways)()

    def _expire(self) -> None:
        """Of this round's expunged ones those of the seconds before, of earlier rounds' all."""
        with self.doing("mailfs expire", {}, durable=True, reclaims=True):
            self.command("expire", "--older", self.random.choice(("0h", "0h", "1h")))

    def _compact(self) -> None:
        words = self.random.choice(((), ("--dead", "1"), ("--dead", "1", "--all")))
        with self.doing("mailfs compact", {}, durable=True):
            # What the index has lost is not compact's to throw away: it says so, and goes on with the rest.
            self.command("compact", *words, allowed=(0, EX_DATAERR))

    def _back_up(self) -> None:
        """A snapshot holds what was acknowledged before it was begun."""
        number = mark_number()
        raw = make_message(number, subject=f"letter {number}", body="a mark")
        state = live("", {VIEWS[0]})
        with self.doing("mailfs deliver", {sha256(raw): state}, durable=True):
            self.command("deliver", VIEWS[0], given=raw)
        with self.doing("mailfs backup", {SNAPSHOT: live("", {str(number)})}, durable=True):
            self.command("backup", "--keep", "2", backups_of(self.part.store))

    def _dump(self) -> None:
        with self.doing("mailfs dump", {}, durable=False):
            self.command("dump", self.part.outside / f"{self.part.name}.dump")

    def _maintain(self) -> None:
        with self.doing("mailfs maintain", {}, durable=False, reclaims=True):
            self.command("maintain", allowed=(0, EX_IOERR))


class Undoer(Commands):
    """Changes its mind."""

    def step(self) -> None:
        ways = (self._undo_tag, self._undo_expunge, self._undelete, self._undo_deliver)
        self.random.choice(ways)()

    def _number_of(self, pid: int) -> str:
        """What the log calls the last operation of a process that has ended."""
        ended = self.output("log", "--json", "--limit", _SHOWN_IN_LOG)
        for row in json.loads(ended.text):
            if row["pid"] == pid:
                return str(row["operation"])
        raise Given

    def _undo(self, pid: int, key: Key, state: State) -> None:
        number = self._number_of(pid)
        with self.doing("mailfs undo", {key: state}, durable=True):
            self.command("undo", number)

    def _undo_tag(self) -> None:
        key, known = self.mine()
        before = known.state
        self._undo(self._tag_one(key, known), key, before)
        known.state = before

    def _undo_expunge(self) -> None:
        key, known = self.mine()
        before = known.state
        self._undo(self._expunge_one(key, known), key, before)
        known.state = before

    def _undo_deliver(self) -> None:
        letter = self.letter()
        with self.doing("mailfs deliver", {letter.key: live("", {VIEWS[0]})}, durable=True):
            pid = self.command("deliver", VIEWS[0], given=letter.raw)
        self._undo(pid, letter.key, EXPUNGED)

    def _undelete(self) -> None:
        key, known = self.mine(EXPUNGED if self.random.random() < 0.5 else None)
        before = known.state
        if before != EXPUNGED:
            self._expunge_one(key, known)
        state = live(None, None) if before == EXPUNGED else before
        with self.doing("mailfs undelete", {key: state}, durable=True):
            self.command("undelete", f"id:{known.number}@example.org")
        known.state = before
        if before == EXPUNGED:
            del self.part.known[key]  # as it was, which we do not know


class Restorer(Commands):
    """Alone with the store: a dump, changes, and all is put back."""

    def step(self) -> None:
        path = self.part.outside / f"{self.part.name}.dump"
        with self.doing("mailfs dump", {}, durable=False):
            self.command("dump", path)
        before: dict[Key, State] = {}
        for _ in range(self.random.randrange(1, 4)):
            key, known = self.mine()
            before.setdefault(key, known.state)
            self._tag_one(key, known)
        with self.doing("mailfs restore", before, durable=True):
            self.command("restore", path)
        for key, state in before.items():
            self.part.known[key].state = state


class Rebuilder(Commands):
    """Alone with the store: the index is made anew, with the store's own dump or another, and then there is new mail."""

    def __init__(self, part: Part, said: socket.socket) -> None:
        super().__init__(part, said)
        self._dump = part.outside / f"{part.name}.dump"

    def step(self) -> None:
        words: tuple[str | Path, ...] = ()
        if self.random.random() < 0.5:
            with self.doing("mailfs dump", {}, durable=False):
                self.command("dump", self._dump)
            words = ("--dump", self._dump)
        with self.doing("mailfs reindex", {}, durable=True, recovers=True):
            self.command("reindex", *words)
        letter = self.letter()
        state = live("", {VIEWS[0]})
        with self.doing("mailfs deliver", {letter.key: state}, durable=True):
            self.command("deliver", VIEWS[0], given=letter.raw)
        self.part.known[letter.key] = Known(Docid(0), letter.number, state)
        if self.random.random() < 0.5:
            self._tag()
