"""What is done to a store to keep it well, while whoever does it is harmed."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from unittest import mock

from mailfs.cli.main import main
from mailfs.ids import Keyword
from mailfs.message.keywords import SEEN
from mailfs.store.prepare import prepare_message
from mailfs.store.store import Store
from mailfs.store.upkeep.log import iter_log
from tests.fakes import make_message
from tests.torture.oracle import look
from tests.torture.scenarios import (
    COMING,
    NO_CLOCK,
    Place,
    Prepare,
    Scenario,
    Step,
    command,
    set_constants,
    store_with_mail,
)

# A pack is followed by the next after some eight letters.
_PACKS = ("PACK_LIMIT_BYTES", 6000)
_LETTERS = 60
_LONG_AGO_S = 400 * 24 * 3600
# A dictionary is worth it from here on.
_FEW = (("LEAST_MESSAGES", 40), ("DICTIONARY_BYTES", 4096))


@contextmanager
def _long_ago() -> Iterator[None]:
    """What is expunged here is old enough to be reclaimed."""
    then_ns = time.time_ns() - _LONG_AGO_S * 1_000_000_000
    with mock.patch("time.time_ns", return_value=then_ns):
        yield


def _many_letters(place: Place, random: Random) -> None:
    """In many packs; every other one expunged long ago."""
    store_with_mail(place, random)
    set_constants((_PACKS,))
    words = [f"{random.getrandbits(64):x}" for _ in range(200)]
    with Store.open(place.store) as store, _long_ago():
        for start in range(0, _LETTERS, 10):
            with store.writer.transaction("prepare", durable=True) as transaction:
                for number in range(2000 + start, 2000 + start + 10):
                    body = "".join(f"a line of {random.choice(words)}\n" for _ in range(60))
                    raw = make_message(number, subject=f"letter {number}", body=body)
                    new = prepare_message(raw, SEEN, (Keyword("inbox"),), None)
                    docid = transaction.add(new).docid
                    if number % 2:
                        transaction.expunge(docid)


def _reclaimed(place: Place, random: Random) -> None:
    """The same, with every other one reclaimed: packs with dead bytes."""
    _many_letters(place, random)
    _succeed(place, "expire", "--older", "1d")


def _tagged(place: Place, random: Random) -> None:
    """The last thing done is an operation to be undone; its number is kept."""
    store_with_mail(place, random)
    _succeed(place, "tag", "+later", "-todo", "+flagged", "*")
    with Store.open(place.store) as store:
        operation = next(iter(iter_log(store.index)))
    (place.letters / "number").write_text(str(operation.number))


def _expunged(place: Place, random: Random) -> None:
    store_with_mail(place, random)
    _succeed(place, "expunge", "tag:todo", "or", "tag:work")


def _dumped(place: Place, random: Random) -> None:
    """A dump outside of the store, and what it says is not so any more."""
    store_with_mail(place, random)
    _succeed(place, "dump", str(place.folder / "saved"))
    _succeed(place, "tag", "+later", "-todo", "+flagged", "*")
    _succeed(place, "forget", "work")
    _succeed(place, "save", "later", "tag:later")


def _without_index(place: Place, random: Random) -> None:
    """The index is gone; a dump is in the store."""
    store_with_mail(place, random)
    _succeed(place, "dump", str(place.store / "dump"))
    for path in place.store.glob("index.sqlite3*"):
        path.unlink()


def _succeed(place: Place, *words: str) -> None:
    code = main(["--store", str(place.store), *words])
    assert code == 0, (words, code)


def _damaged(harm: Callable[[Place], None]) -> Prepare:
    """A store that needs mending."""

    def prepare(place: Place, random: Random) -> None:
        store_with_mail(place, random)
        _succeed(place, "dump", str(place.store / "dump"))
        harm(place)

    prepare.__name__ = f"damaged_{harm.__name__.strip('_')}"
    return prepare


def _lost_bytes(place: Place) -> None:
    """A letter in the middle of a pack cannot be read any more."""
    path = next((place.store / "packs").iterdir())
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(8)
    path.write_bytes(content)


def _lost_rows(place: Place) -> None:
    """Pages of the index cannot be read any more."""
    path = place.store / "index.sqlite3"
    content = bytearray(path.read_bytes())
    for page in range(3, len(content) // 4096, 3):
        content[page * 4096 + 100 : page * 4096 + 140] = bytes(40)
    path.write_bytes(content)


def _undo() -> Step:
    def work(place: Place) -> int:
        number = (place.letters / "number").read_text()
        return main(["--store", str(place.store), "undo", number])

    return Step("undo", work)


def _backup() -> Step:
    """Then each snapshot that has a name is whole."""

    def work(place: Place) -> int:
        return main(["--store", str(place.store), "backup", str(place.folder / "snapshots")])

    return Step("backup", work)


def bad_snapshots(place: Place) -> list[str]:
    """What is wrong with the snapshots, each compared with the store itself."""
    problems = []
    right = look(place.store).content.messages
    folder = place.folder / "snapshots"
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if path.name.startswith(".") or path.is_symlink():
            continue
        found = look(path)
        problems += [f"snapshot: {problem}" for problem in found.problems]
        if found.content.messages != right:
            problems.append("a snapshot does not hold what the store holds")
    return problems


def _write_config(place: Place) -> None:
    (place.store / "config").write_text('[maintenance]\nexpire = "30d"\n')


def _to_be_maintained(place: Place, random: Random) -> None:
    _many_letters(place, random)
    _write_config(place)


KEEPING = (
    Scenario(
        "expire",
        (command("expire", "--older", "1d"),),
        _many_letters,
        constants=(("SLICE_S", NO_CLOCK), _PACKS),
    ),
    Scenario(
        "compact",
        (command("compact"), command("deliver", letter=COMING[0])),
        _reclaimed,
        constants=(("SLICE_S", NO_CLOCK), ("_BATCH_RECORDS", 8), _PACKS),
    ),
    Scenario(
        "compact beside a reader",
        (command("compact"),),
        _reclaimed,
        has_reader=True,
        constants=(("SLICE_S", NO_CLOCK), _PACKS),
    ),
    Scenario(
        "compact with a dictionary",
        (command("compact", "--all"), command("deliver", letter=COMING[0])),
        _many_letters,
        constants=(("SLICE_S", NO_CLOCK), ("PACK_LIMIT_BYTES", 12_000), *_FEW),
    ),
    Scenario(
        "import into many packs",
        (command("import", "{mbox}"),),
        store_with_mail,
        constants=(
            ("SLICE_S", NO_CLOCK),
            ("SLICE_MESSAGES", 150),
            ("PACK_LIMIT_BYTES", 40_000),
            *_FEW,
        ),
    ),
    Scenario("undo", (_undo(),), _tagged),
    Scenario("undelete", (command("undelete", "tag:work"),), _expunged),
    Scenario("restore", (command("restore", "{folder}/saved"),), _dumped),
    Scenario("restore and add", (command("restore", "--accumulate", "{folder}/saved"),), _dumped),
    Scenario("dump", (command("dump", "{store}/dump"), command("tag", "+later", "*")), _dumped),
    Scenario("reindex", (command("reindex"),), _dumped),
    Scenario("reindex without an index", (command("reindex"),), _without_index, is_broken=True),
    Scenario(
        "repair lost bytes",
        (command("verify", "--repair", done=frozenset({0, 65})),),
        _damaged(_lost_bytes),
        is_broken=True,
    ),
    Scenario(
        "repair the index",
        (command("verify", "--repair", done=frozenset({0, 65})),),
        _damaged(_lost_rows),
        is_broken=True,
    ),
    Scenario("backup", (_backup(),), store_with_mail, extra=bad_snapshots),
    Scenario(
        "maintain",
        (command("maintain"), command("deliver", letter=COMING[0])),
        _to_be_maintained,
        constants=(("SLICE_S", NO_CLOCK), _PACKS, *_FEW),
    ),
)
