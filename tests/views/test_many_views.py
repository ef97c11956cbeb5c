"""Hundreds of views are loaded and one message changes: it costs no more than the views that it can concern."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import apsw
import pytest

from mailfs.ids import Docid
from mailfs.message.keywords import FLAGGED, SEEN
from mailfs.store.store import Store
from tests.oracle import problems_of
from tests.views.world import World

# A conjunction that names a keyword shows no message without it, whatever stands beside it, before or behind.
LABEL_FORMS = (
    "tag:label{0}",
    "tag:label{0} and not tag:spam",
    "is:unread tag:label{0}",
    "subject:apples tag:label{0}",
    "thread:{{is:flagged}} tag:label{0}",
    "id:1@example.org tag:label{0}",
    "(tag:label{0} (is:seen or -pears))",
    "not thread:{{tag:label{0} pears}} tag:label{0} tag:inbox",
)
FEW_LABELS = [f"labels/{number}" for number in range(len(LABEL_FORMS))]
MANY_LABELS = [f"labels/{number}" for number in range(300)]
TEXTS = [f"texts/{number}" for number in range(30)]


class Watched:
    """A store and all that its index is asked."""

    def __init__(self, root: Path) -> None:
        self._told: list[str] = []
        apsw.connection_hooks.append(self._follow)
        try:
            self.writer = World(Store.create(root))
        finally:
            apsw.connection_hooks.remove(self._follow)
        self.store = self.writer.store

    def _follow(self, connection: apsw.Connection) -> None:
        connection.set_exec_trace(self._tell)

    def _tell(self, _: apsw.Cursor, statement: str, __: object) -> bool:
        self._told.append(statement)
        return True

    def look(self, names: Iterable[str]) -> World:
        """A tree in which these views are loaded."""
        world = World(self.store)
        for name in names:
            world.load(name)
        return world

    def cost(self, world: World) -> list[str]:
        """What a refresh asks."""
        self._told.clear()
        world.refresh()
        assert len(self._told) > 3  # something is new
        return list(self._told)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    """A store with all the searches, three messages of one conversation among others, and none of them seen."""
    found = Watched(tmp_path / "store")
    world = found.writer
    for number in range(10):
        world.deliver("apples", keywords=("inbox", f"label{number}"), flags=0)
    for name, number in ("pears", 1), ("cherries", 2):
        world.deliver(name, keywords=("inbox",), flags=0, references=[f"{number}@example.org"])
    with found.store.writer.transaction("test", durable=False) as transaction:
        for number, name in enumerate(MANY_LABELS):
            query = LABEL_FORMS[number % len(LABEL_FORMS)].format(number)
            transaction.searches.save(name, query)
        for number, name in enumerate(TEXTS):
            transaction.searches.save(name, f"subject:(apples or word{number})")
    yield found
    assert problems_of(found.store) == []
    found.store.close()


CHANGES: dict[str, Callable[[World], object]] = {
    "flagged": lambda world: world.set_flags(Docid(1), add=FLAGGED),
    "seen": lambda world: world.set_flags(Docid(3), add=SEEN),
    "given a keyword": lambda world: world.set_keywords(Docid(1), add=["label4"]),
    "given a word of no view": lambda world: world.set_keywords(Docid(1), add=["other"]),
    "taken a keyword": lambda world: world.set_keywords(Docid(3), remove=["label2"]),
    "expunged": lambda world: world.expunge(Docid(2)),
    "delivered": lambda world: world.deliver("apples", keywords=("label3",)),
    "delivered into a conversation": lambda world: world.deliver(
        "apples", keywords=("label7",), flags=FLAGGED, references=["1@example.org", "2@example.org"]
    ),
    "delivered without a keyword": lambda world: world.deliver("apples", keywords=()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_costs_no_more_with_hundreds_of_label_views(
    watched: Watched, change: Callable[[World], object]
) -> None:
    few, many = watched.look(FEW_LABELS + TEXTS), watched.look(MANY_LABELS + TEXTS)
    change(watched.writer)
    assert sorted(watched.cost(few)) == sorted(watched.cost(many))
    for name in FEW_LABELS + TEXTS:
        view = many.tree.views[name]
        assert list(view.docids) == list(few.tree.views[name].docids) == many.matching(view)
    for name in MANY_LABELS:
        view = many.tree.views[name]
        assert list(view.docids) == many.matching(view)


def test_a_change_costs_one_question_for_each_view_of_words(watched: Watched) -> None:
    one, many = watched.look(TEXTS[:1]), watched.look(TEXTS)
    watched.writer.set_flags(Docid(1), add=FLAGGED)
    cost = len(watched.cost(one))
    assert len(watched.cost(many)) - cost == len(TEXTS) - 1
    assert all(Docid(1) in many.tree.views[name] for name in TEXTS)


def test_views_that_are_not_loaded_cost_nothing(watched: Watched) -> None:
    none = watched.look([])
    watched.writer.set_flags(Docid(1), add=FLAGGED)
    assert len(watched.cost(none)) < len(TEXTS)
