"""Other processes for tests of the store: `python -m tests.store.peer ROLE STORE ...`; they speak through pipes.

hold PURPOSE     holds the writer lock, says `held`, and lets go when its standard input ends
slices           a bulk writer: takes and drops the lock for ever, a line for each slice
add SEED LIMIT   adds messages for ever, with packs of LIMIT bytes; a line `docid sha256` for each one that is in
use              holds a share in the use of the store, and says `open`, until its standard input ends
migrate PLACE    opens a store and is killed when it calls what is at PLACE
large FILE       adds the message in FILE, compares and verifies it, then loads it whole; a line for the most memory
                 each of the two took, in bytes
threads          makes and reads records in several threads at once; STORE is not looked at
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from mailfs.store import packs
from mailfs.store.adding import Added, Outcome
from mailfs.store.in_use import InUse
from mailfs.store.layout import open_layout
from mailfs.store.lock import WriterLock
from mailfs.store.prepare import NewMessage, prepare_file
from mailfs.store.records import blob_hash, format_record, parse_record
from mailfs.store.rescue.verify import verify
from mailfs.store.store import Store
from tests.fakes import PROJECT, make_message, new_message
from tests.oracle import sha256

SLICE_S = 0.02


@contextmanager
def peer(role: str, *arguments: str | Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of this module, with pipes; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.store.peer", role, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=PROJECT,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()  # also one that is stopped


def line_of(process: "subprocess.Popen[bytes]") -> bytes:
    """The next line it says."""
    assert process.stdout is not None
    return process.stdout.readline()


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def hold(root: Path, purpose: str) -> None:
    with WriterLock(open_layout(root)).hold(purpose, 10.0):
        say("held")
        sys.stdin.read()


def slices(root: Path) -> None:
    lock = WriterLock(open_layout(root))
    while True:
        with lock.hold("slices", 10.0):
            end = time.monotonic() + SLICE_S
            while time.monotonic() < end:
                pass
            say("slice")


def add(root: Path, seed: int, limit: int) -> None:
    packs.PACK_LIMIT_BYTES = limit
    chance = random.Random(seed)
    with Store.open(root) as store:
        while True:
            added = []
            with store.writer.transaction("add", durable=True) as transaction:
                for _ in range(chance.randint(1, 4)):
                    # Bytes that do not compress, now and then more than one frame of them.
                    size = chance.choice((10, 1000, 20_000, 300_000))
                    body = chance.randbytes(size).hex()
                    raw = make_message(chance.getrandbits(60), body=body)
                    added.append((transaction.add(new_message(raw)).docid, sha256(raw)))
            for docid, digest in added:
                say(f"{docid} {digest}")


def use(root: Path) -> None:
    in_use = InUse(open_layout(root))
    say("open")
    sys.stdin.read()
    in_use.close()


def migrate(root: Path, place: str) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with patch(place, die):
        Store.open(root)


def most_memory() -> int:
    """The most this process has used since forget_most_memory(); getrusage() would count the parent's, too."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    )
    return int(line.split()[1]) * 1024


def forget_most_memory() -> int:
    """What is in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return most_memory()


def add_one(store: Store, new: NewMessage) -> Added:
    with store.writer.transaction("add", durable=True) as transaction:
        return transaction.add(new)


def large(root: Path, path: str) -> None:
    with Store.open(root) as store, open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        # What is taken once, for the first message of all, does not count.
        add_one(store, new_message(make_message(1)))
        before = forget_most_memory()
        new = prepare_file(file.fileno(), size, 0, (), None, store.layout)
        docid = add_one(store, new).docid
        assert add_one(store, new) == (docid, Outcome.KNOWN)
        new.record.close()
        location = store.index.location(docid)
        pieces = store.packs.raw_pieces(location)
        assert all(piece == file.read(len(piece)) for piece in pieces)
        assert list(verify(store)) == []
        say(str(most_memory() - before))
        before = forget_most_memory()
        assert len(store.load(docid)) == size
        say(str(most_memory() - before))


def threads() -> None:
    # Text, so that there is something to compress, and each its own.
    raws = [random.Random(seed).randbytes(30_000).hex().encode() * 6 for seed in range(6)]

    def work(raw: bytes) -> bool:
        record = format_record(raw, blob_hash(raw))
        return all(
            parse_record(record) == raw and format_record(raw, blob_hash(raw)) == record
            for _ in range(100)
        )

    with ThreadPoolExecutor(len(raws)) as pool:
        assert all(pool.map(work, raws))


def main(role: str, root: str, *rest: str) -> None:
    if role == "hold":
        hold(Path(root), *rest)
    elif role == "slices":
        slices(Path(root))
    elif role == "use":
        use(Path(root))
    elif role == "migrate":
        migrate(Path(root), *rest)
    elif role == "large":
        large(Path(root), *rest)
    elif role == "threads":
        threads()
    else:
        add(Path(root), *map(int, rest))


if __name__ == "__main__":
    main(*sys.argv[1:])
