"""What is interrupted: a store, and steps that change it. Each step can be taken again, whatever became of it before.

A scenario says how its store is made and which steps are taken; kill.py and faults.py do the harm and judge. To add one:
a function that makes the store, and steps.
"""

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from mailfs.cli.main import main
from mailfs.ids import Keyword
from mailfs.message.keywords import FLAGGED, RECENT, SEEN
from mailfs.store.prepare import prepare_message
from mailfs.store.store import Store
from tests.fakes import make_mbox, make_message
from tests.store.test_migrate import unpack

# Letters that are there from the beginning, and those that come; numbers name them everywhere.
FIRST = range(12)
COMING = range(100, 104)
# Longer than a frame and than what is held in memory, so it goes through a file in the spool.
LARGE = 103
_LARGE_LINES = 60_000
IMPORTED = range(1000, 1300)
_DONE = frozenset({0})
_LABELS = ("inbox", "work", "todo")


@dataclass(frozen=True)
class Place:
    """Where a scenario takes place: the store, where it is mounted, and letters outside of both."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def mount(self) -> Path:
        """Outside of the folder: what the daemon does there are requests to itself."""
        return self.folder.with_name(f"{self.folder.name}-mail")

    @property
    def letters(self) -> Path:
        """Outside of the folder, too: who brings mail is not harmed."""
        return self.folder.with_name(f"{self.folder.name}-letters")

    def letter(self, number: int) -> Path:
        return self.letters / str(number)

    @property
    def mbox(self) -> Path:
        return self.letters / "folder.mbox"


Work = Callable[[Place], int]
Prepare = Callable[[Place, Random], None]


@dataclass(frozen=True)
class Step:
    """What a person waits for. `work` is done in a process of its own; `done` are exit codes that acknowledge it.

    `is_durable`: it survives power loss when it was acknowledged; others survive the death of any process. What a deferred
    one brings is there a little later, and surely with the next step.
    """

    what: str
    work: Work
    done: frozenset[int] = _DONE
    is_durable: bool = True
    is_deferred: bool = False


@dataclass(frozen=True)
class Scenario:
    """`is_mounted`: the steps are a client's, and the daemon is harmed. `has_reader`: another process has the store open.
    `has_mount`: a daemon that is not harmed shows what others do.

    `constants` of mailfs are others while it is played: limits so small that little mail passes them, and slices that
    do not end with the clock, so that there are as many calls each time. A store that is broken in the beginning is looked
    at when all steps were taken, not before. `extra` says what else is wrong, of what is outside of the store. With
    `is_harmed_throughout` a daemon is harmed from its start to its end, not only while the steps are taken.
    """

    name: str
    steps: tuple[Step, ...]
    prepare: Prepare
    is_mounted: bool = False
    has_reader: bool = False
    has_mount: bool = False
    constants: tuple[tuple[str, float], ...] = ()
    is_broken: bool = False
    is_harmed_throughout: bool = False
    extra: Callable[[Place], list[str]] | None = None


def set_constants(constants: Iterable[tuple[str, float]]) -> None:
    """In this process, in all modules that have them."""
    for name, value in constants:
        modules = [each for key, each in sys.modules.items() if key.startswith("mailfs.")]
        having = [each for each in modules if hasattr(each, name)]
        assert having, f"nothing in mailfs is called {name}"
        for module in having:
            setattr(module, name, value)


def command(*words: str, letter: int | None = None, done: frozenset[int] = _DONE) -> Step:
    """A command as a person types it; `{mbox}`, `{folder}` and `{store}` in its words are paths of the place."""

    def work(place: Place) -> int:
        if letter is not None:
            os.dup2(os.open(place.letter(letter), os.O_RDONLY), 0)
        paths = {"mbox": place.mbox, "folder": place.folder, "store": place.store}
        return main(["--store", str(place.store), *(word.format(**paths) for word in words)])

    return Step(" ".join(words), work, done)


# --- what is there at the beginning


def letter_bytes(number: int, random: Random) -> bytes:
    """Letter `number`: answers the one before, and is long if it is LARGE."""
    line = f"{random.getrandbits(128):x} text\n"
    lines = _LARGE_LINES if number == LARGE else random.randrange(60)
    return make_message(
        number,
        subject=f"letter {number}",
        sender=f"ann{number % 3}@example.org",
        body=line * lines if number != LARGE else "".join(f"{n} {line}" for n in range(lines)),
        references=[f"{number - 1}@example.org"] if number % 4 else [],
    )


def write_letters(place: Place, random: Random) -> None:
    """Every letter that comes, and the mbox that is imported."""
    place.folder.mkdir()
    place.letters.mkdir()
    for number in (*FIRST, *COMING):
        place.letter(number).write_bytes(letter_bytes(number, random))
    with place.mbox.open("wb") as file:
        for piece in make_mbox(letter_bytes(number, random) for number in IMPORTED):
            file.write(piece)


def empty_store(place: Place, random: Random) -> None:
    write_letters(place, random)
    Store.create(place.store).close()


def store_with_mail(place: Place, random: Random) -> None:
    """Some letters in all states, in three label views; one is expunged."""
    write_letters(place, random)
    with Store.create(place.store) as store:
        for number in FIRST:
            flags = (0, SEEN, SEEN | FLAGGED, RECENT)[number % 4]
            keyword = Keyword(_LABELS[number % len(_LABELS)])
            raw = place.letter(number).read_bytes()
            with store.writer.transaction("prepare", durable=True) as transaction:
                docid = transaction.add(prepare_message(raw, flags, (keyword,), None)).docid
                if number == FIRST[-1]:
                    transaction.expunge(docid)
        with store.writer.transaction("prepare", durable=True) as transaction:
            for name in _LABELS[1:]:
                transaction.searches.save(name, f"tag:{name}")


def no_store(place: Place, random: Random) -> None:
    write_letters(place, random)


def old_store(version: int) -> Prepare:
    """A store as the program of this format has left it."""

    def prepare(place: Place, random: Random) -> None:
        write_letters(place, random)
        unpack(version, place.folder)

    prepare.__name__ = f"store_of_format_{version}"
    return prepare


NO_CLOCK = 1e9
# A pack is followed by the next after two or three letters.
_SMALL_PACKS = ("PACK_LIMIT_BYTES", 1500)
_BUSY_TAG = ("tag", "+later", "-todo", "+flagged", "*")

COMMANDS = (
    Scenario(
        "deliver",
        tuple(command("deliver", "-k", "work", letter=number) for number in (*COMING, FIRST[-1])),
        store_with_mail,
    ),
    Scenario(
        "deliver beside a reader",
        (command("deliver", letter=COMING[0]), command("deliver", letter=COMING[1])),
        store_with_mail,
        has_reader=True,
    ),
    Scenario("deliver into an empty store", (command("deliver", letter=COMING[0]),), empty_store),
    Scenario("tag", (command(*_BUSY_TAG), command("tag", "-work", "tag:work")), store_with_mail),
    Scenario(
        "tag beside a reader",
        (command(*_BUSY_TAG),),
        store_with_mail,
        has_reader=True,
    ),
    Scenario(
        "expunge",
        (command("expunge", "tag:work"), command("deliver", letter=1)),
        store_with_mail,
    ),
    Scenario(
        "save and forget",
        (
            command("save", "flagged work", "tag:work", "is:flagged", done=frozenset({0, 73})),
            command("save", "--replace", "todo", "tag:todo", "or", "tag:later"),
            command("forget", "flagged", done=frozenset({0, 66})),
        ),
        store_with_mail,
    ),
    Scenario(
        "import",
        (command("import", "{mbox}"),),
        store_with_mail,
        constants=(("SLICE_S", NO_CLOCK), ("SLICE_MESSAGES", 100)),
    ),
    Scenario(
        "deliver into many packs",
        tuple(command("deliver", letter=number) for number in COMING[:3]),
        store_with_mail,
        constants=(_SMALL_PACKS,),
    ),
    Scenario(
        "commands beside a mount",
        (
            command("deliver", letter=COMING[0]),
            command("tag", "+later", "-todo", "tag:todo"),
            command("expunge", "tag:work"),
        ),
        store_with_mail,
        has_mount=True,
    ),
    Scenario("init", (command("init", done=frozenset({0, 73})),), no_store),
    *(
        Scenario(
            f"migrate from format {version}",
            (command("count", "*"), command("deliver", letter=COMING[0])),
            old_store(version),
        )
        for version in (1, 2)
    ),
)


def all_scenarios() -> tuple[Scenario, ...]:
    """Everything there is to be interrupted."""
    from tests.torture.scenarios_mount import MOUNTED
    from tests.torture.scenarios_store import KEEPING

    return (*COMMANDS, *MOUNTED, *KEEPING)
