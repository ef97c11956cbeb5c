"""What one message costs, in a process of its own: processor time and memory of being read, stored, found and shown.

The process is forked from a small one that has only imported mailfs, so that nothing else's memory is in the figures.
"""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from mailfs.cli import searching
from mailfs.ids import Docid
from mailfs.ingest.mailboxes import FileRef, read_ref
from mailfs.message.parse import parse_message
from mailfs.search.plan import plan
from mailfs.search.query import parse_query
from mailfs.store.prepare import NewMessage, prepare_file, prepare_message
from mailfs.store.store import Store

# Far above what any message may take, far below what would take the machine with it.
_SAFETY_BYTES = 2 << 30
_DEADLINE_S = 120.0

T = TypeVar("T")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


@dataclass
class Weight:
    """What it took: processor seconds of each step, bytes above what the process had before, and what was wrong."""

    seconds: dict[str, float] = field(default_factory=dict)
    above_bytes: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    docid: Docid = field(default=Docid(0))  # a number, and nothing is called

    @property
    def slowest_s(self) -> float:
        return max(self.seconds.values(), default=0.0)

    @property
    def largest_bytes(self) -> int:
        return max(self.above_bytes.values(), default=0)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure what the block takes."""
        before = _resident_bytes()
        _reset_peak()
        start_s = time.process_time()
        yield
        self.seconds[name] = time.process_time() - start_s
        self.above_bytes[name] = _peak_bytes() - before

    def expect(self, is_so: bool, what: str) -> None:
        if not is_so:
            self.faults.append(what)


def in_child(work: Callable[..., T], *arguments: object) -> T:
    """The result of `work` in a fresh process. Raises RuntimeError where it died, or took longer than any deadline."""
    ours, theirs = _context.Pipe(duplex=False)
    process = _context.Process(target=_run, args=(theirs, work, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(_DEADLINE_S):
            raise RuntimeError(f"no end within {_DEADLINE_S:g} s")
        result: T = ours.recv()
    except EOFError:
        process.join(_DEADLINE_S)
        raise RuntimeError(f"the process died: exit code {process.exitcode}") from None
    finally:
        ours.close()
        process.kill()
        process.join(_DEADLINE_S)
    return result


def _run(pipe: Connection, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_SAFETY_BYTES, _SAFETY_BYTES))
    pipe.send(work(*arguments))
    pipe.close()


def weigh(path: Path, root: Path, mark: str, behind: str) -> Weight:
    """Bring the message at `path` into the store at `root`, both ways, and look for its words."""
    weight = Weight()
    with Store.open(root) as store:
        # What is made once a process is not the message's.
        store.index.count(plan(parse_query("subject:x"), 0.0))
        delivered = _read_both_ways(weight, path, store)
        with (
            weight.step("add"),
            store.writer.transaction("test", durable=True) as transaction,
        ):
            weight.docid = transaction.add(delivered).docid
        with weight.step("load"):
            raw = store.load(weight.docid)
        weight.expect(raw == path.read_bytes(), "other bytes came back")
        _show(weight, store, raw)
        _find(weight, store, delivered, mark, behind)
    return weight


def _read_both_ways(weight: Weight, path: Path, store: Store) -> NewMessage:
    """As an import reads it, and as a delivery does: that of the delivery."""
    size = path.stat().st_size
    with weight.step("import"):
        read = read_ref(FileRef(os.fsencode(path), 0, (), ""))
        imported = prepare_message(read.raw, 0, (), None)
    known = (imported.digest, imported.size, imported.parsed)
    # The one is given back before the other is weighed.
    del read, imported
    fd = os.open(path, os.O_RDONLY)
    try:
        with weight.step("deliver"):
            delivered = prepare_file(fd, size, 0, (), None, store.layout)
    finally:
        os.close(fd)
    weight.expect(
        known == (delivered.digest, delivered.size, delivered.parsed), "import and delivery differ"
    )
    return delivered


def _show(weight: Weight, store: Store, raw: bytes) -> None:
    with weight.step("show"):
        (summary,) = store.index.summaries([weight.docid])
        text = searching._as_text(raw, summary)
        (line,) = searching._lines(summary, "summary")
    for shown in (text, line):
        weight.expect(_is_harmless(shown), "a terminal would obey what is shown")
    weight.expect("\n" not in line, "a summary has two lines")


def _is_harmless(text: str) -> bool:
    return all(sign.isprintable() or sign in "\n\t" for sign in text)


def _find(weight: Weight, store: Store, new: NewMessage, mark: str, behind: str) -> None:
    with weight.step("search"):
        listed = store.index.docids(plan(parse_query("*"), 0.0))
        marked = _docids(store, f"subject:{mark}") if mark else [weight.docid]
        found = _docids(store, f"body:{behind}") if behind else [weight.docid]
    weight.expect(weight.docid in listed, "not listed")
    weight.expect(marked == [weight.docid], f"{mark} finds {marked}")
    weight.expect(found == [weight.docid] or new.parsed.is_partial, f"{behind} finds {found}")
    for text in (new.parsed.subject, new.parsed.sender, new.parsed.body, new.parsed.message_id):
        weight.expect("\0" not in text, "a NUL in what is indexed")


def _docids(store: Store, query: str) -> list[Docid]:
    return store.index.docids(plan(parse_query(query), 0.0))


def seconds_to_read(path: Path, runs: int) -> float:
    """The least processor time a message takes to be parsed, of several runs."""
    raw = path.read_bytes()
    least = float("inf")
    for _ in range(runs):
        start_s = time.process_time()
        parse_message(raw)
        least = min(least, time.process_time() - start_s)
    return least


def _resident_bytes() -> int:
    return _field_of_status("VmRSS:")


def _peak_bytes() -> int:
    return _field_of_status("VmHWM:")


def _field_of_status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


def _reset_peak() -> None:
    """proc(5): 5 sets the peak back to what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
