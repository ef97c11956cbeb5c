"""A process that adds messages is killed at any moment: what it was told is in is in, whole."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mailfs.ids import Docid
from mailfs.store.store import Store
from tests.fakes import PROJECT, make_message, new_message
from tests.oracle import count_of, problems_of, sha256

KILLS = 10


def acknowledged_until_killed(root: Path, seed: int, pack_limit: int) -> dict[Docid, str]:
    """Let a process add messages, kill it in the middle, and return what it said was in."""
    chance = random.Random(seed)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.store.peer", "add", str(root), str(seed), str(pack_limit)],
        stdout=subprocess.PIPE,
        cwd=PROJECT,
    )
    assert process.stdout is not None
    with process:
        lines = [process.stdout.readline() for _ in range(chance.randint(1, 12))]
        # Some way into the next transaction: up to 8 ms, about as long as one takes.
        end = time.monotonic() + chance.random() * 0.008
        while time.monotonic() < end:
            pass
        process.kill()
        # What was on its way through the pipe has been acknowledged too; a cut line has not.
        lines += process.stdout.read().splitlines(keepends=True)
    told = [line.split() for line in lines if line.endswith(b"\n")]
    return {Docid(int(docid)): digest.decode() for docid, digest in told}


@pytest.mark.slow
@pytest.mark.parametrize("pack_limit", [1 << 28, 200_000], ids=["one pack", "many packs"])
def test_whatever_was_acknowledged_is_there_after_sigkill(tmp_path: Path, pack_limit: int) -> None:
    root = tmp_path / "store"
    Store.create(root).close()
    acknowledged: dict[Docid, str] = {}
    for seed in range(KILLS):
        told = acknowledged_until_killed(root, seed, pack_limit)
        assert told
        assert not told.keys() & acknowledged.keys()
        acknowledged |= told
        with Store.open(root) as store:
            assert problems_of(store) == []
            assert {docid: sha256(store.load(docid)) for docid in acknowledged} == acknowledged
    with Store.open(root) as store:
        # The next writer needs no help to go on.
        with store.writer.transaction("test", durable=True) as transaction:
            added = transaction.add(new_message(make_message(1)))
        assert store.load(added.docid) == make_message(1)
        assert count_of(store) > len(acknowledged)
        assert problems_of(store) == []
