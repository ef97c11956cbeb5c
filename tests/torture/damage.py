"""Bytes of a store are damaged in one place: verify notices, readers get EIO or the right bytes, repair loses that record only.

A small store with everything in it is made once, in two states: closed, and as a killed process leaves it, with its last
changes in the log of the index. Each step copies one of them, damages one file in one place, looks, reads, repairs and
looks again. Which bytes mean nothing (free pages, slack, the lock) is not guessed: a damage nobody noticed must have left
all rows, all messages and all files' meaning as they were.
"""

import hashlib
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from mailfs.errors import Corrupt, MailfsError, StoreError
from mailfs.ids import Docid, Keyword, PackNumber, SearchId
from mailfs.message.maildir import ChosenName
from mailfs.store.config import read_config
from mailfs.store.database import open_reader
from mailfs.store.prepare import prepare_message
from mailfs.store.records import CODEC_TOMBSTONES, HEADER_BYTES, Dictionary, parse_tombstones
from mailfs.store.rescue import checks_words
from mailfs.store.rescue.findings import Finding
from mailfs.store.rescue.mending import Fate, Outcome
from mailfs.store.rescue.repair import repair
from mailfs.store.rescue.verify import examine
from mailfs.store.store import Store
from mailfs.store.upkeep.dump import save_own_dump
from mailfs.store.upkeep.seal import seal_full_packs
from mailfs.store.upkeep.training import introduce
from tests.fakes import make_dictionary, make_message
from tests.torture.report import Report

MESSAGES = 60
_CONFIG = "[mount]\nlinger = 77\nsync-interval = 2\n"
# Tables whose rows say nothing that could be lost.
_PASSING = ("view_state", "sqlite_sequence", "sqlite_stat1")


class Span(NamedTuple):
    """Bytes of a file from `start` to `end`."""

    start: int
    end: int

    def meets(self, other: "Span") -> bool:
        return self.start < other.end and other.start < self.end


class Damage(NamedTuple):
    """What was done to a file, and which of its bytes may be others now. `length_changed`: all behind them moved."""

    file: str
    kind: str
    spans: tuple[Span, ...]

    def __str__(self) -> str:
        return (
            f"{self.kind} of {self.file} at {', '.join(f'{s.start}-{s.end}' for s in self.spans)}"
        )


@dataclass(frozen=True)
class Held:
    """What a store holds. Messages are named by their docid; `places` are the bytes of the packs they lie in."""

    digests: dict[int, str]
    rows: dict[str, frozenset[Any]]
    states: dict[str, tuple[Any, ...]]
    places: dict[int, tuple[str, Span]]
    tombstones: tuple[tuple[str, Span], ...]


# --- the store


def build(root: Path) -> None:
    """A store with messages of all sizes in three packs, two of them sealed, a dictionary, and some of everything else."""
    rng = random.Random("damage")
    with Store.create(root) as store:
        docids = _deliver(store, rng, range(20))
        introduce(store, Dictionary(make_dictionary(1)))
        docids += _deliver(store, rng, range(20, 40))
        with store.writer.transaction("test", durable=True) as transaction:
            for docid in docids[3:9]:
                transaction.expunge(docid)
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.reclaim(docids[3:6])
        # The same bytes as one that was reclaimed: there are two records of them.
        _add(store, [message(random.Random(4), 4)])
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.begin_pack()
        docids += _deliver(store, rng, range(40, MESSAGES))
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.searches.save("work", "tag:work")
            for number, docid in enumerate(docids[10:30]):
                transaction.edit_keywords(docid, add=[Keyword(f"k{number % 5}"), Keyword("work")])
                transaction.edit_flags(docid, number % 32, 0)
            transaction.entries.put(SearchId(1), docids[12], ChosenName(b"chosen,U=1", b"a"))
        seal_full_packs(store)
    (root / "config").write_text(_CONFIG)
    (root / "config").chmod(0o600)
    with Store.open(root) as store:
        save_own_dump(store.layout)


def message(rng: random.Random, number: int) -> bytes:
    """The same for the same number: small ones, some that do not compress, and two that are chains."""
    words = [f"w{rng.randrange(4000):x}" for _ in range(rng.choice((5, 60, 400)))]
    body = " ".join(words)
    if number % 9 == 4:
        body = "".join(chr(rng.randrange(0x4E00, 0x9FA0)) for _ in range(900))
    if number in (17, 47):
        # Longer than a frame, and no words in it.
        lines = "".join(f"{rng.randbytes(3).hex()}{'A' * 70}\n" for _ in range(3600))
        return b"Content-Type: image/png\nContent-Transfer-Encoding: base64\n" + make_message(
            number, subject=f"picture {number}", body=lines
        )
    references = [f"{number - 1}@example.org"] if number % 4 == 1 else []
    return make_message(number, subject=f"subject {number}", body=body, references=references)


def _deliver(store: Store, rng: random.Random, numbers: range) -> list[Docid]:
    return [
        docid
        for number in numbers
        for docid in _add(store, [message(random.Random(number), number)])
    ]


def _add(store: Store, raws: list[bytes]) -> list[Docid]:
    dictionary = store.newest_dictionary_or_none()
    with store.writer.transaction("test", durable=True) as transaction:
        return [
            transaction.add(prepare_message(raw, 0, (), None, dictionary)).docid for raw in raws
        ]


def build_crashed(closed: Path, root: Path) -> None:
    """The same with changes that a process made that was killed: they are in the log of the index only."""
    work = root.with_name(f"{root.name}.work")
    shutil.copytree(closed, work)
    with Store.open(work) as store:
        _add(store, [message(random.Random(n), n) for n in (100, 101)])
        for number, docid in enumerate(store.index.rows("SELECT docid FROM message LIMIT 9")):
            with store.writer.transaction("test", durable=True) as transaction:
                transaction.edit_flags(Docid(docid[0]), 1 << number % 5, 0)
        shutil.copytree(work, root)
    shutil.rmtree(work)


# --- what it holds


def held_by(root: Path) -> Held:
    """Opens the store, as any program would. Raises StoreError where it cannot be."""
    with Store.open(root) as store:
        connection = open_reader(store.layout.index)
        try:
            tables = [
                name
                for (name,) in connection.execute(
                    "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'message_text%'"
                )
                if name not in _PASSING
            ]
            rows = {
                name: frozenset(connection.execute(f"SELECT * FROM {name}").fetchall())
                for name in tables
            }
            rows["words"] = frozenset(
                connection.execute("SELECT id, sz FROM message_text_docsize").fetchall()
            )
            places = {
                docid: (store.layout.pack(PackNumber(pack)).name, Span(offset, offset + stored))
                for docid, pack, offset, stored in connection.execute(
                    "SELECT docid, pack, offset, stored FROM message_blob JOIN blob USING (blob_id)"
                )
            }
            states = _states(connection)
        finally:
            connection.close()
        digests = {docid: _digest(store, Docid(docid)) for docid in places}
        tombstones = tuple(_tombstones(store))
    return Held(digests, rows, states, places, tombstones)


def _tombstones(store: Store) -> Iterator[tuple[str, Span]]:
    """Where it is said that messages were reclaimed, and where those lie."""
    for path in sorted(store.layout.packs.iterdir()):
        with suppress(MailfsError):
            number = PackNumber(int(path.stem))
            for offset, header in store.packs.iter_records(number):
                if header.codec == CODEC_TOMBSTONES:
                    yield path.name, Span(offset, offset + HEADER_BYTES + header.stored)
                    for dead in parse_tombstones(store.packs.file(number).record(offset)):
                        header = store.packs.file(dead.pack).header(dead.offset)
                        end = dead.offset + HEADER_BYTES + header.stored
                        yield store.layout.pack(dead.pack).name, Span(dead.offset, end)


def _digest(store: Store, docid: Docid) -> str:
    try:
        pieces = store.packs.raw_pieces(store.index.location(docid))
        hasher = hashlib.sha256()
        for piece in pieces:
            hasher.update(piece)
        return hasher.hexdigest()
    except Corrupt:
        return "EIO"


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _states(connection: apsw.Connection) -> dict[str, tuple[Any, ...]]:
    """What a person would miss of a message, by its Message-ID."""
    return {
        message_id: tuple(state)
        for message_id, *state in connection.execute(
            "SELECT message_id, message.docid, flags, expunged <> 0, received_ns, subject, (SELECT "
            "group_concat(name, ' ') FROM (SELECT name FROM message_keyword JOIN keyword "
            "USING (keyword_id) WHERE message_keyword.docid = message.docid ORDER BY name)), "
            "(SELECT count(*) FROM entry WHERE entry.docid = message.docid) "
            "FROM message JOIN envelope USING (docid)"
        )
    }


# --- damages


def _pick_file(rng: random.Random, root: Path, *, is_crashed: bool) -> str:
    if is_crashed:
        return "index.sqlite3-wal"
    kind = rng.choices(("pack", "index", "format", "other"), weights=(50, 38, 6, 6))[0]
    if kind == "pack":
        packs = sorted(path.name for path in (root / "packs").iterdir())
        return f"packs/{rng.choice(packs)}"
    if kind == "index":
        return "index.sqlite3"
    if kind == "format":
        return rng.choice(("format", "format.bak"))
    return rng.choice(("lock", "config", "dump"))


def _pick_place(rng: random.Random, root: Path, file: str, boundaries: list[int]) -> int:
    """Any byte; in packs often one of a header, a footer, the dictionary or the head."""
    size = (root / file).stat().st_size
    if boundaries and rng.random() < 0.4:
        return min(rng.choice(boundaries) + rng.randrange(64), size - 1)
    return rng.randrange(size)


def _flip(rng: random.Random, content: bytearray, at: int) -> list[Span]:
    content[at] ^= 1 << rng.randrange(8)
    return [Span(at, at + 1)]


def _zero(rng: random.Random, content: bytearray, at: int) -> list[Span]:
    end = min(at + rng.choice((1, 8, 64, 512, 4096)), len(content))
    content[at:end] = bytes(end - at)
    return [Span(at, end)]


def _cut(rng: random.Random, content: bytearray, at: int) -> list[Span]:
    before = len(content)
    del content[at:]
    return [Span(at, before)]


def _append(rng: random.Random, content: bytearray, at: int) -> list[Span]:
    before = len(content)
    content += rng.randbytes(rng.choice((1, 50, 5000)))
    return [Span(before, len(content))]


def _swap(rng: random.Random, content: bytearray, at: int) -> list[Span]:
    length = rng.choice((1, 16, 300, 4096))
    other = rng.randrange(len(content))
    first, second = sorted((at, other))
    length = min(length, second - first, len(content) - second)
    content[first : first + length], content[second : second + length] = (
        content[second : second + length],
        content[first : first + length],
    )
    return [Span(first, first + length), Span(second, second + length)]


def _duplicate(rng: random.Random, content: bytearray, at: int) -> list[Span]:
    length = min(rng.choice((1, 16, 300, 4096)), len(content) - at)
    to = rng.randrange(len(content) - length + 1)
    content[to : to + length] = content[at : at + length]
    return [Span(to, to + length)]


_KINDS: dict[str, Callable[[random.Random, bytearray, int], list[Span]]] = {
    "flip": _flip,
    "zero": _zero,
    "cut": _cut,
    "append": _append,
    "swap": _swap,
    "duplicate": _duplicate,
}
_WEIGHTS = (40, 20, 8, 8, 12, 12)


def damage(
    rng: random.Random, root: Path, boundaries: dict[str, list[int]], *, is_crashed: bool
) -> Damage:
    """Damage one file of a store in one place; never so that nothing is changed."""
    file = _pick_file(rng, root, is_crashed=is_crashed)
    path = root / file
    before = path.read_bytes()
    while True:
        kind = rng.choices(tuple(_KINDS), weights=_WEIGHTS)[0]
        content = bytearray(before)
        at = _pick_place(rng, root, file, boundaries.get(file, []))
        spans = _KINDS[kind](rng, content, at)
        if content != before:
            break
    mode = path.stat().st_mode
    path.write_bytes(content)
    path.chmod(mode & 0o777)
    return Damage(file, kind, tuple(spans))


# --- a step


@dataclass
class Stage:
    """The two stores, what they hold, and where damaged ones are looked at."""

    closed: Path
    crashed: Path
    work: Path
    held: dict[Path, Held]
    usual: dict[Path, frozenset[str]]
    boundaries: dict[str, list[int]]

    def take(self, base: Path) -> Path:
        if self.work.exists():
            shutil.rmtree(self.work)
        shutil.copytree(base, self.work)
        return self.work


@contextmanager
def staged() -> Iterator[Stage]:
    """In memory where there is a /dev/shm, because each step writes a few megabytes."""
    # What is looked at here is damage, which other checks find; words take half of the time.
    sample, checks_words.SAMPLE = checks_words.SAMPLE, 6
    memory = Path("/dev/shm")
    folder = Path(
        tempfile.mkdtemp(prefix="mailfs-damage-", dir=memory if memory.is_dir() else None)
    )
    try:
        closed, crashed = folder / "closed", folder / "crashed"
        build(closed)
        build_crashed(closed, crashed)
        stage = Stage(closed, crashed, folder / "work", {}, {}, _boundaries(closed))
        for base in (closed, crashed):
            stage.usual[base] = frozenset(map(str, _findings(stage.take(base))))
            stage.held[base] = held_by(stage.work)
            assert "EIO" not in stage.held[base].digests.values()
            assert not [line for line in stage.usual[base] if line.startswith("problem")]
        yield stage
    finally:
        checks_words.SAMPLE = sample
        shutil.rmtree(folder)


def _boundaries(root: Path) -> dict[str, list[int]]:
    with Store.open(root) as store:
        return {
            f"packs/{path.name}": [
                0,
                *(offset for offset, _ in store.packs.iter_records(PackNumber(int(path.stem)))),
            ]
            for path in sorted(store.layout.packs.iterdir())
        }


def _findings(root: Path) -> list[Finding]:
    return [found for found in examine(root) if isinstance(found, Finding)]


def step(stage: Stage, seed: int, n: int) -> str:
    """One damage. What it came to; raises AssertionError for what must not be."""
    rng = random.Random(f"{seed} {n}")
    is_crashed = rng.random() < 0.12
    base = stage.crashed if is_crashed else stage.closed
    root, right = stage.take(base), stage.held[base]
    done = damage(rng, root, stage.boundaries, is_crashed=is_crashed)
    with _naming(done):
        found = _findings(root)
        news = [finding for finding in found if str(finding) not in stage.usual[base]]
        _check_reading(root, right, done)
        if not news:
            _check_harmless(root, right, done)
            return "config, other words" if _says_something_else(root, done) else "harmless"
        _check_repair(root, right, done, stage)
        return _group(done)


@contextmanager
def _naming(done: Damage) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{done}: {type(error).__name__}: {error}") from error


def _group(done: Damage) -> str:
    return f"{done.file.partition('/')[0]} {done.kind}"


def _hit(done: Damage, right: Held) -> set[int]:
    """The messages whose record the damage touched."""
    return {
        docid
        for docid, (pack, place) in right.places.items()
        if done.file == f"packs/{pack}" and any(place.meets(span) for span in done.spans)
    }


def _check_reading(root: Path, right: Held, done: Damage) -> None:
    """Before any repair: EIO for what was touched, the right bytes for everything else."""
    try:
        with Store.open(root) as store:
            for docid, digest in right.digests.items():
                try:
                    found = _digest(store, Docid(docid))
                except MailfsError:
                    assert done.file.startswith("index"), f"message {docid} cannot be read"
                    continue
                assert found in (digest, "EIO"), f"message {docid} has wrong bytes"
                if found == "EIO" and not done.file.startswith("index"):
                    assert docid in _hit(done, right), f"message {docid} was not touched"
    except StoreError:
        assert not done.file.startswith("packs"), "the store does not open"


def _check_harmless(root: Path, right: Held, done: Damage) -> None:
    """Nobody noticed, and nobody would: everything means what it meant."""
    found = held_by(root)
    assert found.digests == right.digests, "not noticed, and messages are others"
    for table, rows in right.rows.items():
        assert found.rows[table] == rows, f"not noticed, and rows of {table} are others"
    assert done.file not in ("format", "format.bak", "dump"), "not noticed"


def _says_something_else(root: Path, done: Damage) -> bool:
    """A configuration is its user's text and has no checksum: another value that may be is what somebody wrote."""
    if done.file != "config":
        return False
    with Store.open(root) as store:
        config = read_config(store.layout)
    return (config.linger_s, config.sync_s) != (77.0, 2.0)


def _check_repair(root: Path, right: Held, done: Damage, stage: Stage) -> None:
    for outcome in repair(root):
        if isinstance(outcome, Outcome) and outcome.fate is Fate.KEPT:
            assert done.file == "config", f"not mended: {outcome}"
    _check_kept(held_by(root), right, done)
    # A second one begins with a verify: it finds nothing but what is lost, and has nothing to do.
    for outcome in repair(root):
        if isinstance(outcome, Outcome):
            is_known = outcome.fate is Fate.LOST or done.file == "config"
            assert is_known, f"after the repair: {outcome}"


def _check_kept(found: Held, right: Held, done: Damage) -> None:
    """At most the damaged record is lost, and of the others nothing."""
    hit = _hit(done, right)
    lost = [docid for docid, digest in right.digests.items() if found.digests.get(docid) != digest]
    # Of what only the log knew the bytes are there, perhaps as another message.
    rescued = set(found.digests.values())
    gone = [d for d in lost if d not in hit and right.digests[d] not in rescued]
    assert not gone, f"messages {gone} are lost"
    strange = rescued - set(right.digests.values()) - {"EIO"}
    if any(
        done.file == f"packs/{pack}" and any(place.meets(span) for span in done.spans)
        for pack, place in right.tombstones
    ):
        # What says that they were reclaimed is lost, or it says so of another place.
        strange -= {_sha256(message(random.Random(n), n)) for n in range(MESSAGES)}
    assert not strange, "there are messages that never were"
    if done.file.endswith("-wal"):
        return
    for message_id, state in right.states.items():
        if state[0] not in hit:
            assert found.states.get(message_id) == state, (
                f"<{message_id}> was {state}, is {found.states.get(message_id)}"
            )
    for table in ("search", "entry", "keyword"):
        # A repair may have added the keyword `recovered`; what is expunged has no chosen names.
        theirs = {row for row in right.rows[table] if table == "entry" and row[2] in hit}
        assert right.rows[table] - theirs <= found.rows[table], f"rows of {table} are others"


def run(seed: int, count: int, directory: Path) -> Report:
    """So many damages, each a step; `directory` is not needed, the stores are in memory."""
    report = Report("damage", seed)
    with staged() as stage:
        for n in range(count):
            kind = "failed"
            try:
                kind = step(stage, seed, n)
            except Exception as error:  # noqa: BLE001  # whatever it is, it goes into the report, and the run goes on
                report.fail(n, error)
            report.did(kind)
    return report
