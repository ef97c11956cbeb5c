"""Other processes for tests of the store: `python -m tests.store.peer ROLE STORE ...`; they speak through pipes.

hold PURPOSE     holds the writer lock, says `held`, and lets go when its standard input ends
slices           a bulk writer: takes and drops the lock for ever, a line for each slice
add SEED LIMIT   adds messages for ever, with packs of LIMIT bytes; a line `docid sha256` for each one that is in
"""

import random
import sys
import time
from pathlib import Path

from mailfs.store import packs
from mailfs.store.layout import open_layout
from mailfs.store.lock import WriterLock
from mailfs.store.store import Store
from tests.fakes import make_message, new_message
from tests.oracle import sha256

SLICE_S = 0.02


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


def main(role: str, root: str, *rest: str) -> None:
    if role == "hold":
        hold(Path(root), *rest)
    elif role == "slices":
        slices(Path(root))
    else:
        add(Path(root), *map(int, rest))


if __name__ == "__main__":
    main(*sys.argv[1:])
