"""The index is lost in many ways and made anew, with the program killed meanwhile; it must be what it was, row by row.

`count` messages, in threads, some with keywords, flags, names that clients chose; some expunged, some reclaimed; in several
packs, some of them compacted. For each way to lose the index: `mailfs reindex` is killed some times at moments of chance,
after each of which the old index is as it was or the new one whole; run once more, it must come to its end, with every
table as before but for what a way takes away for good. What is told then is verified.
"""

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from mailfs.ids import Docid, Keyword
from mailfs.message.keywords import ANSWERED, FLAGGED, RECENT, SEEN
from mailfs.message.maildir import ChosenName, Form
from mailfs.store import packs
from mailfs.store.database import open_reader
from mailfs.store.prepare import prepare_message
from mailfs.store.store import Store
from mailfs.store.upkeep.compact import compact
from mailfs.store.upkeep.dump import save_own_dump
from tests.fakes import PROJECT, make_message
from tests.oracle import problems_of
from tests.torture.report import Report

DEADLINE_S = 600.0
_KILLS = 6
_PACKS = 6
_SLICE = 500
_WORDS = 3000
_PAGE_BYTES = 4096
_KEYWORDS = ("todo", "lists/linux", "größe", "$label1", "a", "b")
# Beside these the mtimes a mount leaves, which hold for one mount only.
TABLES = (
    "state",
    "message",
    "envelope",
    "pack",
    "dead_pack",
    "dictionary",
    "keyword",
    "message_keyword",
    "reference",
    "search",
    "entry",
    "journal",
    "journal_change",
    "journal_event",
    "sqlite_sequence",
)
JOURNAL = ("journal", "journal_change", "journal_event")
_BYTES = "SELECT docid, hash, pack, offset, stored, raw FROM message_blob JOIN blob USING (blob_id)"

Rows = dict[str, set[Any]]


def rows_of(root: Path) -> Rows:
    """All rows of an index, by table; blobs by message, without their numbers; words as message, column and place."""
    index = root / "index.sqlite3"
    connection = open_reader(index)
    try:
        found: Rows = {
            table: set(connection.execute(f"SELECT * FROM {table}").fetchall()) for table in TABLES
        }
        found["bytes"] = set(connection.execute(_BYTES).fetchall())
        connection.execute("PRAGMA query_only = OFF")
        connection.execute(
            "CREATE VIRTUAL TABLE temp.words USING fts5vocab(main, message_text, instance)"
        )
        found["words"] = {hash(row) for row in connection.execute("SELECT * FROM temp.words")}
    finally:
        connection.close()
    return found


def differences(before: Rows, after: Rows, leave_out: tuple[str, ...] = ()) -> list[str]:
    """What is not the same, a line a table."""
    return [
        f"{table}: {len(before[table] - after[table])} rows lost, {len(after[table] - before[table])} "
        f"new: {sorted(before[table] ^ after[table], key=repr)[:4]}"
        for table in before
        if table not in leave_out and before[table] != after[table]
    ]


# --- a store to be harmed


def make_store(root: Path, count: int, chance: random.Random) -> None:
    """A store of `count` messages, with something of everything, and a dump of its own that is up to date."""
    with Store.create(root) as store:
        limit = max(200 * count // _PACKS, 4096)
        with patch.object(packs, "PACK_LIMIT_BYTES", limit):
            _fill(store, count, chance)
        _edit(store, count, chance)
        _reclaim(store, count, chance)
        with patch.object(packs, "PACK_LIMIT_BYTES", limit):
            for _ in compact(store, 0.02):
                pass
        save_own_dump(store.layout)


def _fill(store: Store, count: int, chance: random.Random) -> None:
    words = [chance.randbytes(chance.randint(2, 5)).hex() for _ in range(_WORDS)]
    for start in range(0, count, _SLICE):
        with store.writer.transaction("test", durable=True) as transaction:
            for number in range(start, min(start + _SLICE, count)):
                raw = make_message(
                    number,
                    subject=" ".join(chance.choices(words, k=4)),
                    sender=f"{chance.choice(words)} <{chance.choice(words)}@example.org>",
                    body=" ".join(chance.choices(words, k=chance.randint(5, 200))),
                    references=[
                        f"{chance.randint(max(number - 40, 0), number)}@example.org"
                        for _ in range(chance.choice((0, 0, 1, 2)))
                    ],
                )
                received_ns = (1_600_000_000 + number * 97) * 1_000_000_000 + number
                transaction.add(prepare_message(raw, RECENT, (Keyword("inbox"),), received_ns))


def _edit(store: Store, count: int, chance: random.Random) -> None:
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.searches.save("lists/linux", "tag:lists/linux")
        transaction.searches.save("schön", "from:ann or is:unread", "refuse")
        transaction.searches.forget("flagged")
    inbox = store.index.search("inbox").search_id
    with store.writer.transaction("test", durable=False) as transaction:
        for docid in map(Docid, chance.sample(range(1, count + 1), count // 2)):
            transaction.edit_flags(docid, chance.choice((SEEN, SEEN | FLAGGED, ANSWERED)), RECENT)
            add = map(Keyword, chance.sample(_KEYWORDS, k=2))
            remove = [Keyword("inbox")] if chance.random() < 0.5 else []
            transaction.edit_keywords(docid, add=add, remove=remove)
        for docid in map(Docid, chance.sample(range(1, count + 1), count // 10)):
            signs = bytes(chance.choices([*range(1, ord("/")), *range(ord("/") + 1, 256)], k=4))
            base = b'%d.M\xff\n"%s_' % (docid, signs)
            name = ChosenName(base, chance.choice((b"", b"ab")), chance.choice(list(Form)))
            transaction.entries.put(inbox, docid, name)


def _reclaim(store: Store, count: int, chance: random.Random) -> None:
    gone = list(map(Docid, chance.sample(range(1, count + 1), count // 10)))
    with store.writer.transaction("test", durable=True) as transaction:
        for docid in gone:
            transaction.expunge(docid)
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.reclaim(gone[::2])


# --- ways to lose an index


def _index(root: Path) -> Path:
    return root / "index.sqlite3"


def _remove(root: Path, chance: random.Random) -> None:
    for path in root.glob("index.sqlite3*"):
        path.unlink()


def _keep(root: Path, chance: random.Random) -> None:
    """Nothing is wrong with it."""


def _flip(root: Path, places: Iterator[int], chance: random.Random) -> None:
    with _index(root).open("r+b") as file:
        for place in places:
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ chance.randint(1, 255)]))


def _flip_one(root: Path, chance: random.Random) -> None:
    size = _index(root).stat().st_size
    _flip(root, iter([chance.randrange(size)]), chance)


def _wipe_pages(root: Path, chance: random.Random) -> None:
    """One page in forty is nothing any more, and some others hold the bytes of another."""
    size = _index(root).stat().st_size
    with _index(root).open("r+b") as file:
        for number in range(size // _PAGE_BYTES):
            if chance.random() < 1 / 40:
                file.seek(number * _PAGE_BYTES)
                file.write(chance.choice((bytes(_PAGE_BYTES), chance.randbytes(_PAGE_BYTES))))


def _wipe_start(root: Path, chance: random.Random) -> None:
    with _index(root).open("r+b") as file:
        file.write(bytes(chance.choice((16, 100, _PAGE_BYTES, 20 * _PAGE_BYTES))))


def _cut(root: Path, chance: random.Random) -> None:
    os.truncate(_index(root), int(_index(root).stat().st_size * chance.random()))


def _replace(root: Path, chance: random.Random) -> None:
    _remove(root, chance)
    _index(root).write_bytes(b"no database at all\n" * 999)


class Kept(Enum):
    """What must be the same when an index that was lost in some way has been made anew."""

    ALL = "all, without a dump"
    WITH_DUMP = "all but the journal, with the dump"
    BYTES = "the bytes of every message, without a dump"


class Way(NamedTuple):
    """A way to lose an index."""

    harm: Callable[[Path, random.Random], None]
    kept: Kept


WAYS = {
    "sound": Way(_keep, Kept.ALL),
    "removed": Way(_remove, Kept.WITH_DUMP),
    "one byte": Way(_flip_one, Kept.WITH_DUMP),
    "pages": Way(_wipe_pages, Kept.WITH_DUMP),
    "start": Way(_wipe_start, Kept.WITH_DUMP),
    "cut": Way(_cut, Kept.WITH_DUMP),
    "replaced": Way(_replace, Kept.WITH_DUMP),
    "removed, no dump": Way(_remove, Kept.BYTES),
    "pages, no dump": Way(_wipe_pages, Kept.BYTES),
    "cut, no dump": Way(_cut, Kept.BYTES),
}


# --- the run


def run(
    seed: int,
    count: int,
    directory: Path,
    kills: int = _KILLS,
    ways: Mapping[str, Way] = WAYS,
) -> Report:
    """Harm the index of a store of `count` messages in all ways; the report counts messages rebuilt."""
    report = Report("rebuild", seed)
    chance = random.Random(seed)
    made = directory / "made"
    began_s = time.monotonic()
    make_store(made, count, chance)
    before = rows_of(made)
    report.note(f"a store of {count} messages made in {time.monotonic() - began_s:.0f} s")
    usual_s = _usual_s(made, directory)
    for number, (name, way) in enumerate(ways.items()):
        root = directory / "store"
        shutil.copytree(made, root)
        way.harm(root, chance)
        if way.kept is not Kept.WITH_DUMP:
            (root / "dump").unlink()
        try:
            took_s = _rebuild(root, way, before, report, _moments(chance, kills, usual_s))
        except Exception as error:  # noqa: BLE001  # whatever it is, it goes into the report, and the run goes on
            report.fail(number, f"{name}: {type(error).__name__}: {error}")
            root.rename(directory / f"wrong-{number}")
            continue
        report.did("messages rebuilt", count)
        report.note(f"{name}: {took_s:.1f} s, {count / took_s:.0f} messages/s")
        shutil.rmtree(root)
    return report


def _usual_s(made: Path, directory: Path) -> float:
    """How long it takes where nobody kills it."""
    root = directory / "timed"
    shutil.copytree(made, root)
    began_s = time.monotonic()
    assert _start(root).wait(DEADLINE_S) == 0
    shutil.rmtree(root)
    return time.monotonic() - began_s


def _moments(chance: random.Random, kills: int, usual_s: float) -> list[float]:
    """When to kill it, the last one towards its end."""
    moments = [chance.uniform(0.1, 1.1 * usual_s) for _ in range(kills)]
    return [*moments[1:], usual_s * chance.uniform(0.9, 1.1)] if moments else []


def _rebuild(root: Path, way: Way, before: Rows, report: Report, moments: Sequence[float]) -> float:
    """Kill it some times, then let it come to its end; how long that took."""
    for moment in moments:
        old = _digest(root)
        is_done = _killed(root, moment)
        report.counts["ended before it was killed" if is_done else "killed"] += 1
        if (root / "index.ready").exists():
            report.counts["killed with the new index ready"] += 1
        elif _digest(root) != old:
            _check(root, way, before)
    began_s = time.monotonic()
    done = _start(root).wait(DEADLINE_S)
    assert done == 0, f"reindex ended with {done}"
    took_s = time.monotonic() - began_s
    _check(root, way, before)
    assert not list(root.glob("index.new*")), "what was built lies there still"
    return took_s


def _start(root: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "mailfs", "--store", str(root), "reindex"],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _killed(root: Path, after_s: float) -> bool:
    """Whether it had ended before."""
    with _start(root) as process:
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return False
    return True


def _digest(root: Path) -> bytes:
    """Of what a rebuild must leave alone until the new index is ready."""
    names = ("index.sqlite3", "index.sqlite3-wal")
    return b"".join(
        hashlib.sha256((root / name).read_bytes()).digest()
        for name in names
        if (root / name).exists()
    )


def _check(root: Path, way: Way, before: Rows) -> None:
    with Store.open(root) as store:
        problems = problems_of(store)
    assert problems == [], problems
    after = rows_of(root)
    if way.kept is Kept.BYTES:
        told = differences(_only_bytes(before), _only_bytes(after))
    else:
        told = differences(before, after, () if way.kept is Kept.ALL else JOURNAL)
    assert told == [], told


def _only_bytes(rows: Rows) -> Rows:
    """Hash, pack, offset, stored and raw length."""
    return {"bytes": {row[1:] for row in rows["bytes"]}}
