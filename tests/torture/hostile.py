"""Hostile input: messages, queries, trees, hashes that collide and clients that mean harm.

`count` is the number of messages; with 300 or more everything is of full size. Each message must come back byte for byte,
be listed, shown and found, within LIMIT_S of processor time a step and LIMIT_BYTES above its own size; and one twice as
large may take RATIO times as long.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TypeVar

from mailfs.errors import QuerySyntaxError
from mailfs.ids import Docid
from mailfs.search.match import matching
from mailfs.search.plan import plan
from mailfs.search.query import format_query, parse_query
from mailfs.store.source import IndexSource
from mailfs.store.store import Store
from tests.fakes import PROJECT, make_message
from tests.mount.accounts import ourselves
from tests.mount.mounting import Mailfs
from tests.oracle import assert_sound, docids_of, sha256
from tests.torture.hostile_mail import File, Place, Shape, all_files, all_shapes
from tests.torture.hostile_mount import look_up_absent, make_noise, many_open, mounted, places_of
from tests.torture.hostile_queries import QUERIES
from tests.torture.hostile_trees import CHANGES, make_tree, problems_of_change
from tests.torture.report import Report
from tests.torture.weighing import Weight, in_child, seconds_to_read, weigh

T = TypeVar("T")

LIMIT_S = 1.0
LIMIT_BYTES = 64 << 20
RATIO = 2.2
# Where less is measured, the clock and fixed costs are all one sees.
_MEASURABLE_S = 0.02
_WHOLE_COUNT = 300
_SMALL_SCALE = 1 / 20
_QUERY_CHARS = 100_000
_COMMAND_DEADLINE_S = 300.0


def run(seed: int, count: int, directory: Path) -> Report:
    """Everything; a mount only where one can be made."""
    report = Report("hostile", seed)
    is_whole = count >= _WHOLE_COUNT
    scale = 1.0 if is_whole else _SMALL_SCALE
    weigh_messages(
        report, all_files(seed)[: max(count, 1) if not is_whole else None], scale, directory
    )
    shapes = all_shapes()
    Random(seed).shuffle(shapes)
    double(report, shapes if is_whole else shapes[: count // 4], scale, directory)
    bring(report, directory, scale if is_whole else scale / 4, None if is_whole else count)
    # The smaller ones are accepted where the largest have too many words.
    for size in (100 * _QUERY_CHARS, _QUERY_CHARS, _QUERY_CHARS // 2, _QUERY_CHARS // 4):
        ask(report, directory / "weighed", size)
    import_tree(report, directory / "tree")
    collide(report, directory / "collisions", 1000 if is_whole else 100)
    if not why_not():
        harass(report, directory / "mount", 100_000 if is_whole else 300)
    return report


def why_not() -> str:
    """Why nothing can be mounted here; empty where it can."""
    from tests.mount.conftest import why_not as reason

    return reason()


# --- messages


def weigh_messages(report: Report, files: list[File], scale: float, directory: Path) -> None:
    """Each in a process of its own, all into one store, which must be sound at the end."""
    root, path = directory / "weighed", directory / "message"
    Store.create(root).close()
    slowest, largest = (0.0, ""), (0, "")
    contents: dict[Docid, str] = {}
    for file in files:
        with report.step(file.number, file.name):
            raw = file.build(scale)
            path.write_bytes(raw)
            weight = _weigh(path, root, file)
            contents[weight.docid] = sha256(raw)
            slowest = max(slowest, (weight.slowest_s, file.name))
            largest = max(largest, (weight.largest_bytes - len(raw), file.name))
            assert not weight.faults, weight.faults
            assert weight.slowest_s <= LIMIT_S, f"took {weight.seconds} s"
            assert weight.largest_bytes - len(raw) <= LIMIT_BYTES, (len(raw), weight.above_bytes)
        report.counts[f"class {file.shape.number:02d}"] += 1
    for kind in [kind for kind in report.counts if kind[0].isdigit()]:
        # The names were for the failures.
        del report.counts[kind]
    report.note(f"slowest step {slowest[0]:.2f} s of processor time: {slowest[1]}")
    report.note(f"largest step {largest[0] / 1e6:.0f} MB above its message: {largest[1]}")
    with report.step(0, "store of hostile messages"):
        assert_sound(root)
        with Store.open(root) as store:
            found = {docid: sha256(store.load(docid)) for docid in docids_of(store)}
        assert found == contents


def _weigh(path: Path, root: Path, file: File) -> Weight:
    mark = file.mark if file.has_words else ""
    return in_child(weigh, path, root, mark, file.behind if file.shows_behind else "")


def double(report: Report, shapes: list[Shape], scale: float, directory: Path) -> None:
    """Twice the size, at most RATIO times the time, for every shape that takes long enough to be measured."""
    for number, shape in enumerate(shapes):
        if shape.size * scale < 20_000:
            continue
        with report.step(number, "doubled"):
            ratio = least_ratio(shape, scale, directory / "message")
            assert ratio <= RATIO, f"{shape.name}: twice the size takes {ratio:.2f} times as long"


def least_ratio(shape: Shape, scale: float, path: Path) -> float:
    """How many times as long twice the size takes; 0 where it cannot be measured. Other load makes it larger: the least of some tries."""
    place = Place.TOP if Place.TOP in shape.all_places else shape.all_places[0]
    file = File(shape, place, 1, 1)
    least = float("inf")
    path.write_bytes(file.build(scale * 2))
    if in_child(seconds_to_read, path, 1) < 2 * _MEASURABLE_S:
        return 0.0
    for _ in range(4):
        seconds = []
        for factor in (1, 2):
            path.write_bytes(file.build(scale * factor))
            seconds.append(in_child(seconds_to_read, path, 3))
        least = min(least, seconds[1] / seconds[0])
        if least <= RATIO:
            break
    return least


def bring(report: Report, directory: Path, scale: float, count: int | None) -> None:
    """All of them by `mailfs import`, twice, and some by `mailfs deliver`."""
    source, root = directory / "source", directory / "imported"
    (source / "cur").mkdir(parents=True)
    wanted = set()
    files = all_files(report.seed)[:count]
    for file in files:
        raw = file.build(scale)
        (source / "cur" / f"{file.number}:2,").write_bytes(raw)
        wanted.add(sha256(raw))
    with report.step(0, "imported"):
        _mailfs(root, "init")
        _mailfs(root, "import", source)
        _assert_holds(root, wanted)
        assert "nothing new" in _mailfs(root, "import", source)
    for file in files[:20]:
        with report.step(file.number, "delivered"):
            raw = file.build(scale / 2)
            wanted.add(sha256(raw))
            _mailfs(root, "deliver", input=raw)
    with report.step(0, "delivered and imported"):
        _assert_holds(root, wanted)


def _assert_holds(root: Path, wanted: set[str]) -> None:
    with Store.open(root) as store:
        found = [sha256(store.load(docid)) for docid in docids_of(store)]
    assert len(found) == len(wanted), f"{len(found)} messages, not {len(wanted)}"
    assert set(found) == wanted
    assert_sound(root)


def _mailfs(
    root: Path, *words: str | Path, input: bytes = b"", module: str = "mailfs", code: int = 0
) -> str:
    """What the command says; it must end with this code."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", module, "--store", str(root), *map(str, words)],
        input=input,
        capture_output=True,
        cwd=PROJECT,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(root.parent),
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
        },
        timeout=_COMMAND_DEADLINE_S,
        check=False,
    )
    assert done.returncode == code, (words, done.returncode, done.stderr[-1000:])
    return done.stdout.decode(errors="replace")


# --- queries


def ask(report: Report, root: Path, size: int) -> None:
    """Every query, of about `size` characters, on a store: an answer or a QuerySyntaxError, in LIMIT_S."""
    slowest = (0.0, "")
    with Store.open(root) as store:
        docids = docids_of(store)[:5]
        for number, shape in enumerate(QUERIES):
            with report.step(number, f"query of {size // 1000} kB"):
                # A thousand characters less: what is built may be a little longer than it was asked to be.
                text = shape.build(size)[: size - 1 if size > _QUERY_CHARS else None]
                for what, took_s in _ask(store, text, docids).items():
                    slowest = max(slowest, (took_s, f"{shape.name}, {what}"))
                    assert took_s <= LIMIT_S, f"{shape.name}: {what} took {took_s:.2f} s"
    report.note(f"slowest query of {size // 1000} kB {slowest[0]:.2f} s: {slowest[1]}")


def _ask(store: Store, text: str, docids: list[Docid]) -> dict[str, float]:
    """Processor time of each step. What a query means does not depend on how it is asked."""
    took: dict[str, float] = {}
    try:
        query = _timed(took, "parsed", lambda: parse_query(text))
    except QuerySyntaxError as error:
        if len(str(error)) > 1000:
            raise AssertionError(f"an error of {len(str(error))} signs") from error
        return took
    assert len(text) <= _QUERY_CHARS, f"{len(text)} signs were accepted"
    written = _timed(took, "written", lambda: format_query(query))
    if len(written) <= _QUERY_CHARS:
        assert parse_query(written) == query
    found = _timed(took, "looked for", lambda: store.index.docids(plan(query, 0.0)))
    source = IndexSource(store.index)
    matched = _timed(took, "matched", lambda: matching(query, docids, source, 0.0))
    assert matched == {*found} & {*docids}
    return took


def _timed(took: dict[str, float], what: str, work: Callable[[], T]) -> T:
    start_s = time.process_time()
    try:
        return work()
    finally:
        took[what] = time.process_time() - start_s


# --- trees


def import_tree(report: Report, directory: Path) -> None:
    """A tree of links, devices and evil names; and files that become something else meanwhile."""
    directory.mkdir()
    root = directory / "store"
    wanted = make_tree(directory / "tree", directory / "outside")
    with report.step(0, "tree"):
        _mailfs(root, "init")
        # 74: something in it could not be read.
        said = _mailfs(root, "import", directory / "tree", code=74)
        assert all(sign.isprintable() or sign == "\n" for sign in said), said
        _assert_holds(root, set(map(sha256, wanted)))
        assert "nothing new" in _mailfs(root, "import", directory / "tree", code=74)
    for number, (name, change) in enumerate(CHANGES.items()):
        for is_mbox in (False, True):
            with report.step(number, "changed meanwhile"):
                folder = directory / f"{number}-{is_mbox}"
                folder.mkdir()
                problems = problems_of_change(folder, change, is_mbox=is_mbox)
                assert not problems, (name, problems)


# --- collisions


def collide(report: Report, directory: Path, count: int) -> None:
    """Messages of one length under hashes of 8 bits: imported, delivered, mounted, verified, and each is itself."""
    directory.mkdir()
    root, source = directory / "store", directory / "source"
    (source / "cur").mkdir(parents=True)
    # All of one length: the bytes alone tell them apart.
    raws = [make_message(number, body=f"{number:08}") for number in range(10_000, 10_000 + count)]
    for number, raw in enumerate(raws[:-5]):
        (source / "cur" / f"{number}:2,").write_bytes(raw)

    def short(*words: str | Path, input: bytes = b"") -> str:
        return _mailfs(root, *words, input=input, module="tests.torture.short_hash")

    with report.step(0, "collisions: brought"):
        short("init")
        short("import", source)
        assert "nothing new" in short("import", source)
        for raw in raws[-5:] * 2:
            short("deliver", input=raw)
        short("verify")
        assert int(short("count", "*")) == count
    for number, raw in enumerate(raws[: max(count // 20, 1)]):
        with report.step(number, "collisions: shown"):
            assert (
                short("show", "--format=raw", f"id:{10_000 + number}@example.org").encode() == raw
            )
    if not why_not():
        with report.step(0, "collisions: mounted"):
            _read_mounted(root, directory, set(map(sha256, raws)))


def _read_mounted(root: Path, directory: Path, wanted: set[str]) -> None:
    mountpoint = directory / "mail"
    _mailfs(root, "mount", mountpoint, module="tests.torture.short_hash")
    try:
        found = [
            sha256(path.read_bytes())
            for part in ("cur", "new")
            for path in (mountpoint / "all" / part).iterdir()
        ]
    finally:
        _mailfs(root, "umount", mountpoint)
    assert len(found) == len(wanted)
    assert set(found) == wanted


# --- a mount


def harass(report: Report, directory: Path, count: int) -> None:
    """Noise, absent names and open files, and a mount that goes on."""
    directory.mkdir()
    mailfs = Mailfs(ourselves(directory), directory)
    mailfs.create(20)
    random = Random(report.seed)
    with mounted(mailfs):
        for place in places_of(mailfs):
            _step(report, "noise", lambda place=place: make_noise(place, random))  # type: ignore[misc]  # the place of now
        _step(report, "absent names", lambda: look_up_absent(mailfs, count))
        _step(report, "many open files", lambda: _open_many(report, mailfs, count))
        assert len(mailfs.names("inbox")) == 20
    assert_sound(mailfs.store)


def _step(report: Report, kind: str, work: Callable[[], object]) -> None:
    with report.step(0, kind):
        work()


def _open_many(report: Report, mailfs: Mailfs, count: int) -> None:
    with many_open(mailfs, count) as opened:
        report.note(f"open at once: {opened}")
        assert opened.messages >= count // 2
        name = mailfs.names("inbox")[0]
        path = mailfs.path("inbox", "cur", name)
        renamed = path.with_name(
            f"{name}F" if name.endswith(":2,") else f"{name.partition(':')[0]}:2,FS"
        )
        path.rename(renamed)
        assert renamed.read_bytes()
