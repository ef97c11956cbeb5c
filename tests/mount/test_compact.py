"""Compacting beneath a mount: clients read all the time, and files that are open stay what they were."""

import os
import random
import threading
from pathlib import Path

import pytest

from mailfs.ids import Docid, Keyword
from mailfs.store.prepare import prepare_message
from mailfs.store.store import Store
from tests.fakes import make_message
from tests.mount.mounting import Mailfs
from tests.mount.waiting import wait_until

# Three packs of one MiB, the smallest that can be chosen.
MESSAGES = 60
LARGE_BYTES = 700_000


def fill(mailfs: Mailfs) -> dict[str, bytes]:
    """Mail that does not compress in small packs, the odd ones in `inbox`; those by their subjects."""
    mailfs.create()
    (mailfs.store / "config").write_text("[store]\npack-size = 1\n")
    chance = random.Random(1)
    wanted = {}
    with Store.open(mailfs.store) as store:
        for number in range(MESSAGES):
            size = LARGE_BYTES if number == 31 else 20_000
            raw = make_message(
                number, subject=f"number {number}", body=chance.randbytes(size).hex()
            )
            keyword = Keyword("inbox" if number % 2 else "gone")
            new = prepare_message(raw, 0, (keyword,), 1_600_000_000 * 10**9)
            with store.writer.transaction("test", durable=True) as transaction:
                transaction.add(new)
            if number % 2:
                wanted[f"number {number}"] = raw
    return wanted


def subject_of(raw: bytes) -> str:
    (line,) = [line for line in raw[:2000].splitlines() if line.startswith(b"Subject: ")]
    return line.removeprefix(b"Subject: ").decode()


def read_all(folder: Path) -> dict[str, bytes]:
    """Every message of a folder as the store has it: what the kernel keeps of it is dropped first."""
    found = {}
    for path in folder.iterdir():
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            raw = b"".join(iter(lambda fd=fd: os.read(fd, 1 << 20), b""))  # type: ignore[misc]
        finally:
            os.close(fd)
        found[subject_of(raw)] = raw
    return found


class Reader(threading.Thread):
    """Reads everything again and again until it is told to stop; what was not as it should be."""

    def __init__(self, folder: Path, wanted: dict[str, bytes]) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._wanted = wanted
        self._is_over = threading.Event()
        self.rounds = 0
        self.problems: list[str] = []

    def run(self) -> None:
        while not self._is_over.is_set():
            try:
                found = read_all(self._folder)
                if found != self._wanted:
                    self.problems.append(f"round {self.rounds}: other bytes")
            except OSError as error:
                self.problems.append(f"round {self.rounds}: {error}")
            self.rounds += 1

    def end(self) -> None:
        self._is_over.set()
        self.join(60)


def packs_of(mailfs: Mailfs) -> set[str]:
    return {path.name for path in (mailfs.store / "packs").iterdir()}


def deleted_packs_open(mailfs: Mailfs) -> list[str]:
    """Packs the daemon still has open that no name leads to."""
    folder = Path(f"/proc/{mailfs.pid}/fd")
    links = (os.readlink(folder / name) for name in os.listdir(folder))
    return [link for link in links if ".pack" in link and "(deleted)" in link]


@pytest.mark.slow
def test_clients_read_on_while_all_packs_are_rewritten(mailfs: Mailfs) -> None:
    wanted = fill(mailfs)
    mailfs.mount()
    folder = mailfs.path("inbox", "cur")
    assert read_all(folder) == wanted
    large = next(p for p in folder.iterdir() if p.stat().st_size > LARGE_BYTES)
    small = next(p for p in folder.iterdir() if p.stat().st_size < LARGE_BYTES)
    with large.open("rb", buffering=0) as open_large, small.open("rb", buffering=0) as open_small:
        start = open_large.read(1000)
        before = packs_of(mailfs)
        assert len(before) > 2
        reader = Reader(folder, wanted)
        reader.start()
        mailfs.say("expunge", "tag:gone")
        mailfs.say("expire", "--older", "0s")
        wait_until(lambda: reader.rounds > 0, "a first round")
        said = mailfs.say("compact", "--dead", "1")
        rounds = reader.rounds
        wait_until(lambda: reader.rounds > rounds + 1 or reader.problems, "a round behind it")
        reader.end()
        assert reader.problems == []
        assert "messages moved out of" in said
        assert not before & packs_of(mailfs)
        # What was open is read on to its end.
        os.posix_fadvise(open_large.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        raw = start + b"".join(iter(lambda: open_large.read(1 << 20), b""))
        assert raw == wanted[subject_of(raw)]
        raw = b"".join(iter(lambda: open_small.read(1 << 20), b""))
        assert raw == wanted[subject_of(raw)]
    assert read_all(folder) == wanted
    wait_until(lambda: not deleted_packs_open(mailfs), "the room of the old packs given back")


def test_a_message_delivered_after_compacting_is_where_the_others_are(mailfs: Mailfs) -> None:
    wanted = fill(mailfs)
    mailfs.mount()
    mailfs.say("expunge", "tag:gone")
    mailfs.say("expire", "--older", "0s")
    mailfs.say("compact", "--dead", "1")
    raw = make_message(1000, subject="new")
    path = mailfs.path("inbox", "tmp", "new")
    path.write_bytes(raw)
    path.rename(mailfs.path("inbox", "new", "new"))
    assert mailfs.path("inbox", "new", "new").read_bytes() == raw
    assert read_all(mailfs.path("inbox", "cur")) == wanted
    mailfs.umount()
    with Store.open(mailfs.store) as store:
        docid = Docid(MESSAGES + 1)
        assert store.load(docid) == raw
        assert store.index.location(docid).pack == max(
            pack for (pack,) in store.index.rows("SELECT pack FROM pack")
        )
