"""What is on the disk when power is back: a store is opened as after any other start, verified, read, and delivered to."""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from mailfs.errors import MailfsError
from mailfs.ids import Docid
from mailfs.message.keywords import letters_of_flags
from mailfs.store.prepare import prepare_message
from mailfs.store.store import Store
from mailfs.views.arrivals import commit_arrival, plan_delivery
from tests.fakes import make_message
from tests.oracle import problems_of, sha256
from tests.torture.cuts_actors import NUMBERS_FROM, SCRATCH, search_key, told
from tests.torture.cuts_clients import STATE_FILE, file_key, version_of
from tests.torture.cuts_keepers import SNAPSHOT, backups_of
from tests.torture.cuts_ledger import EXPUNGED, Key, State, fields_of, live, state_of

_NUMBER = re.compile(rb"^Message-ID: <([0-9]+)@example.org>$", re.MULTILINE)


@dataclass(frozen=True)
class Seen:
    """One message, or one of the clients' own files."""

    key: Key
    docid: Docid
    number: int
    state: State


@dataclass(frozen=True)
class Found:
    """What a disk held. `delivered` was brought after all was seen. `wrong` are broken promises."""

    seen: tuple[Seen, ...]
    delivered: Seen
    wrong: tuple[str, ...]
    snapshots: tuple[str, ...]
    opened_s: float

    def write(self, fd: int) -> None:
        """To the process that judges."""
        everything = [
            (each.key, each.docid, each.number, fields_of(each.state))
            for each in (*self.seen, self.delivered)
        ]
        raw = json.dumps((everything, self.wrong, self.snapshots, self.opened_s)).encode()
        view = memoryview(raw)
        while view:
            view = view[os.write(fd, view) :]

    @classmethod
    def parse(cls, raw: bytes) -> "Found":
        """What write() wrote."""
        everything, wrong, snapshots, opened_s = json.loads(raw)
        *seen, delivered = (
            Seen(key, Docid(docid), number, state_of(fields))
            for key, docid, number, fields in everything
        )
        return cls(tuple(seen), delivered, tuple(wrong), tuple(snapshots), opened_s)


def look(root: Path, random: Random, known_snapshots: Collection[str], said: int) -> None:
    """Open, verify, read everything, deliver one more, and say so. Any exception is a failure of the store.

    Snapshots are looked at once: nobody writes them. Mostly the store is not closed: the last to close it writes the log
    to the index, and then there is nothing to recover.
    """
    start = time.monotonic()
    store = Store.open(root)
    opened_s = time.monotonic() - start
    wrong = [str(problem) for problem in problems_of(store)]
    seen = [*_messages(store, wrong), *_files(store), *_searches(store)]
    snapshots = sorted(backups_of(root).glob("2*"))
    for path in snapshots:
        if path.name not in known_snapshots:
            wrong += _problems_of_snapshot(path)
    if snapshots:
        seen.append(_newest_mark(snapshots[-1]))
    twice = Counter(each.key for each in seen)
    wrong += [f"{key} is there {times} times" for key, times in twice.items() if times > 1]
    delivered = _deliver(store, random)
    names = tuple(path.name for path in snapshots)
    Found(tuple(seen), delivered, tuple(wrong), names, opened_s).write(said)
    if random.random() < 0.3:
        store.close()


def _messages(store: Store, wrong: list[str]) -> list[Seen]:
    keywords: dict[int, set[str]] = {}
    for docid, name in store.index.rows(
        "SELECT docid, name FROM message_keyword JOIN keyword USING (keyword_id)"
    ):
        keywords.setdefault(docid, set()).add(name)
    seen = []
    for docid, flags, expunged in store.index.rows("SELECT docid, flags, expunged FROM message"):
        try:
            raw = store.load(Docid(docid))
        except MailfsError as error:
            wrong.append(f"message {docid} cannot be read: {told(error)}")
            continue
        number = _NUMBER.search(raw)
        state = live(letters_of_flags(flags).decode(), keywords.get(docid, set()))
        state = EXPUNGED if expunged else state
        seen.append(Seen(sha256(raw), Docid(docid), int(number[1]) if number else 0, state))
    return seen


def _files(store: Store) -> list[Seen]:
    folder = store.layout.sidecar
    return [
        Seen(file_key(path.name), Docid(0), 0, live("", {version_of(path.read_bytes())}))
        for path in folder.rglob(f"{STATE_FILE}-*")
        if path.suffix != ".new"
    ]


def _searches(store: Store) -> list[Seen]:
    return [
        Seen(search_key(each.name), Docid(0), 0, live("", {each.query}))
        for each in store.index.searches()
        if each.name.startswith(SCRATCH)
    ]


def _problems_of_snapshot(path: Path) -> Iterator[str]:
    """It is a whole store."""
    with Store.open(path) as store:
        for problem in problems_of(store):
            yield f"snapshot {path.name}: {problem}"


def _newest_mark(snapshot: Path) -> Seen:
    """The snapshot for the ledger: how new what it holds is."""
    with Store.open(snapshot) as store:
        rows = store.index.rows("SELECT message_id FROM envelope WHERE message_id <> ''")
    numbers = [int(message_id.partition("@")[0]) for (message_id,) in rows]
    newest = max((number for number in numbers if number < NUMBERS_FROM), default=0)
    return Seen(SNAPSHOT, Docid(0), 0, live("", {str(newest)}))


def _deliver(store: Store, random: Random) -> Seen:
    number = NUMBERS_FROM + random.getrandbits(60)
    raw = make_message(number, subject=f"letter {number}", body="after the cut")
    new = prepare_message(raw, 0, (), time.time_ns())
    docid = commit_arrival(store, plan_delivery(store.index.search("inbox"), new, ()))
    if store.load(docid) != raw:
        raise AssertionError(f"message {docid} is not what was delivered")
    return Seen(sha256(raw), docid, number, live("", {"inbox"}))
