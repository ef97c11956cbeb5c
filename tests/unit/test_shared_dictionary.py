"""A dictionary made after the workers of an import were forked reaches them; the import makes one when there is mail enough."""

import multiprocessing
import random
from pathlib import Path

import pytest

from mailfs.ingest import importer
from mailfs.ingest.importer import Importer, Labels
from mailfs.ingest.mailboxes import Format, iter_source
from mailfs.ingest.shared_dictionary import SharedDictionary
from mailfs.ingest.workers import Workers
from mailfs.store.records import Dictionary
from mailfs.store.store import Store
from mailfs.store.upkeep import training
from tests.fakes import make_dictionary, make_message
from tests.oracle import contents_of


def test_what_one_process_puts_another_gets() -> None:
    shared = SharedDictionary()
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def answer() -> None:
        while theirs.recv():
            found = shared.get()
            theirs.send(None if found is None else found.raw)

    process = context.Process(target=answer, daemon=True)
    process.start()
    for raw in (None, make_dictionary(1), make_dictionary(2), None):
        shared.put(None if raw is None else Dictionary(raw))
        ours.send(True)
        assert ours.poll(10)
        assert ours.recv() == raw
    ours.send(False)
    process.join(10)
    assert process.exitcode == 0


def test_half_a_dictionary_is_none() -> None:
    shared = SharedDictionary()
    reader = SharedDictionary()
    reader._memory = shared._memory
    shared.put(Dictionary(make_dictionary(1)))
    half = bytearray(shared._memory)
    shared.put(Dictionary(make_dictionary(2)))
    assert reader.get() is not None
    end = len(make_dictionary(1)) // 2
    shared._memory[8:end] = bytes(half[8:end])  # as while the next one is being written
    other = SharedDictionary()
    other._memory = shared._memory
    assert other.get() is None


def maildir(path: Path, count: int) -> list[bytes]:
    """Mail with much in common."""
    words = [random.Random(number).randbytes(5).hex() for number in range(300)]
    chance = random.Random(1)
    raws = []
    for folder in ("cur", "new", "tmp"):
        (path / folder).mkdir(parents=True)
    for number in range(count):
        body = "\n".join(" ".join(chance.choices(words, k=10)) for _ in range(30))
        raws.append(make_message(number, body=body))
        (path / "cur" / f"{number}.host:2,S").write_bytes(raws[-1])
    return raws


@pytest.mark.parametrize("processes", [1, 2])
def test_an_import_makes_a_dictionary_and_compresses_what_comes_then_with_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    raws = maildir(tmp_path / "mail", 1200)
    monkeypatch.setattr(importer, "_TRAINED_AFTER", 300)
    monkeypatch.setattr(training, "LEAST_MESSAGES", 200)
    labels = Labels("inbox")
    with Workers(labels, processes) as workers:
        refs = iter_source(tmp_path / "mail", Format.MAILDIR)
        for _ in Importer(store, labels).add_all(workers.prepare_for(store, refs)):
            pass
    assert sorted(contents_of(store).values()) == sorted(raws)
    newest = store.newest_dictionary_or_none()
    assert newest is not None
    used = [
        store.packs.header(store.index.location(docid)).dictionary for docid in contents_of(store)
    ]
    assert used.count(0) < 800
    assert set(used) - {0}
    # What was full is sealed.
    assert store.index.rows("SELECT count(*) FROM pack WHERE sealed = 0") == [(1,)]


def test_a_small_import_makes_none(store: Store, tmp_path: Path) -> None:
    maildir(tmp_path / "mail", 20)
    labels = Labels("inbox")
    with Workers(labels, 1) as workers:
        refs = iter_source(tmp_path / "mail", Format.MAILDIR)
        for _ in Importer(store, labels).add_all(workers.prepare_for(store, refs)):
            pass
    assert store.newest_dictionary_or_none() is None
