"""Views of relative dates while the clock goes on: at midnight, with the hour, at daylight saving, and set back."""

import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from email.utils import format_datetime
from typing import Literal, NoReturn
from zoneinfo import ZoneInfo

import pytest

from mailfs.errors import StoreError
from mailfs.ids import Docid
from mailfs.message.keywords import FLAGGED, SEEN
from mailfs.search.dates import Span
from mailfs.store.index import Index
from mailfs.store.prepare import prepare_message
from mailfs.store.store import Store
from mailfs.views import membership
from mailfs.views.edits import plan_rename
from mailfs.views.evaluation import evaluate, install
from mailfs.views.membership import end_lingering
from mailfs.views.refresh import moved_by_clock
from mailfs.views.tree import NameChange, News
from tests.views.world import World

ZONE = ZoneInfo("Europe/Berlin")


def at(text: str) -> datetime:
    """A moment on the wall: `17T14:35` of June 2015, a Wednesday, or a whole date."""
    return datetime.fromisoformat(text if len(text) > 12 else f"2015-06-{text}").replace(
        tzinfo=ZONE
    )


def day(number: str) -> Span:
    """A day of that June."""
    start_s = int(at(f"{number}T00:00").timestamp())
    return Span(start_s, start_s + 86_400)


def changes(news: Iterable[News]) -> list[NameChange]:
    return [each for each in news if isinstance(each, NameChange)]


class Clock:
    """What time.time() and time.monotonic() say; mail goes by short names.

    `asked` are the stretches of time that messages were asked for since a look was last taken.
    """

    def __init__(self, world: World, patch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.now_s = at("17T14:35").timestamp()
        self.monotonic_s = 0.0
        self.look_takes_s = 0.0
        self.docids: dict[str, Docid] = {}
        self.asked: list[tuple[str, Span]] = []
        docids_dated = Index.docids_dated

        def spied(index: Index, field: Literal["date", "received"], span: Span) -> list[Docid]:
            self.asked.append((field, span))
            self.monotonic_s += self.look_takes_s
            return docids_dated(index, field, span)

        patch.setattr(Index, "docids_dated", spied)
        patch.setattr(time, "time", lambda: self.now_s)
        patch.setattr(time, "monotonic", lambda: self.monotonic_s)

    def advance_to(self, text: str) -> None:
        """Another time on the wall, an hour after the last one."""
        self.now_s = at(text).timestamp()
        self.monotonic_s += 3600.0

    def send(self, name: str, when: str, references: str = "") -> Docid:
        """Deliver a message that was sent and received at this time."""
        moment = at(when)
        fields = (
            f"Message-ID: <{name}@example.org>\nDate: {format_datetime(moment)}\n"
            f"References: {references}\nSubject: {name}\n\nA text.\n"
        )
        new = prepare_message(fields.encode(), 0, (), int(moment.timestamp()) * 10**9)
        with self.world.store.writer.transaction("test", durable=True) as transaction:
            self.docids[name] = transaction.add(new).docid
        return self.docids[name]

    def open(self, query: str, name: str = "it") -> None:
        """Save a search and list it."""
        self.world.save(name, query)
        self.world.refresh()
        self.world.load(name)

    def look(self) -> list[News]:
        """What a mount does now and then."""
        self.world.refresh()
        self.asked.clear()
        return moved_by_clock(self.world.tree, self.now_s)

    def members(self) -> set[str]:
        """Of `it`, which must be what its query says now."""
        view = self.world.tree.views["it"]
        shown = set(view.docids)
        assert shown - view.lingering == set(self.world.matching(view))
        return {name for name, docid in self.docids.items() if docid in shown}


@pytest.fixture
def clock(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield Clock(World(store), patch)
    time.tzset()


@pytest.fixture
def june(clock: Clock) -> Clock:
    """Mail before, on and after 17 June; `noon` answers `old`."""
    clock.send("old", "01T12:00")
    clock.send("week", "10T00:00")
    clock.send("tuesday", "16T23:59:30")
    clock.send("early", "17T00:00")
    clock.send("noon", "17T14:31", references="<old@example.org>")
    clock.send("ahead", "18T09:00")
    return clock


# The members at 14:35 and just before midnight on the 17th, at midnight, and a week later.
MOMENTS = ("17T14:35", "17T23:59:59", "18T00:00", "25T10:00")
EVERYTHING = "old week tuesday early noon ahead"


@pytest.mark.parametrize(
    ("query", "members"),
    [
        (
            "date:1week..",
            ("week tuesday early noon ahead",) * 2 + ("tuesday early noon ahead", "ahead"),
        ),
        ("date:today", ("early noon", "early noon", "ahead", "")),
        ("received:today", ("early noon", "early noon", "ahead", "")),
        ("date:yesterday", ("tuesday", "tuesday", "early noon", "")),
        ("not date:yesterday..", ("old week", "old week", "old week tuesday", EVERYTHING)),
        (
            "received:..5min",
            (
                "old week tuesday early",
                "old week tuesday early noon",
                "old week tuesday early noon",
                EVERYTHING,
            ),
        ),
        ("date:..now", ("old week tuesday early noon",) * 3 + (EVERYTHING,)),
        ("date:this_week", ("tuesday early noon ahead",) * 3 + ("",)),
        ("date:last_week", ("week",) * 3 + ("tuesday early noon ahead",)),
        ("date:wednesday", ("early noon", "early noon", "early noon", "")),
        ("thread:{date:today}", ("old early noon", "old early noon", "ahead", "")),
        ("thread:{date:today} -date:today", ("old", "old", "", "")),
        ("not thread:{date:today}", ("week tuesday ahead",) * 2 + ("old week tuesday early noon", EVERYTHING)),
        ("thread:{date:today thread:{subject:old}}", ("old noon", "old noon", "", "")),
        ("date:today or subject:week", ("week early noon", "week early noon", "week ahead", "week")),
        ("date:2015-06-17", ("early noon",) * 4),
    ],
)  # fmt: skip
def test_a_view_is_right_at_any_time_forwards_and_back(
    june: Clock, query: str, members: tuple[str, ...]
) -> None:
    june.open(query)
    for moment, expected in (*zip(MOMENTS, members, strict=True), (MOMENTS[0], members[0])):
        june.advance_to(moment)
        june.look()
        assert june.members() == set(expected.split()), moment


@pytest.mark.parametrize(
    ("query", "moments"),
    [
        ("date:today", ["18T00:00", "19T00:00"]),
        ("date:1week..", ["18T00:00", "19T00:00"]),
        ("date:this_week", ["22T00:00"]),
        ("date:last_month", ["2015-07-01T00:00"]),
        ("received:..5min", ["17T14:36", "17T14:37"]),
        ("received:2h..", ["17T15:00", "17T16:00"]),
        ("date:now..", ["17T14:35:01", "17T14:35:02"]),
        ("thread:{not date:today}", ["18T00:00"]),
        ("date:yesterday or received:2h..", ["17T15:00", "17T16:00"]),
    ],
)
def test_nothing_is_asked_until_what_the_dates_stand_for_changes(
    june: Clock, query: str, moments: list[str]
) -> None:
    june.open(query)
    for moment in moments:
        then_s = at(moment).timestamp()
        june.now_s, june.monotonic_s = then_s - 1, june.monotonic_s + 60
        june.look()
        assert june.asked == []
        june.now_s, june.monotonic_s = then_s, june.monotonic_s + 60
        june.look()
        assert june.asked != []


def test_messages_are_asked_for_by_the_time_that_passed(june: Clock) -> None:
    june.open("date:today")
    june.advance_to("18T08:00")
    june.look()
    assert june.asked == [("date", day("17")), ("date", day("18"))]
    june.open("received:1week..today", "week")
    june.advance_to("19T08:00")
    june.look()
    assert june.asked[2:] == [("received", day("11")), ("received", day("19"))]


@pytest.mark.parametrize("query", ["*", "date:2015-06-17", "date:..2015 -received:@1433160000"])
def test_the_clock_does_not_move_a_view_without_relative_dates(june: Clock, query: str) -> None:
    june.open(query)
    june.advance_to("2016-06-17T14:35")
    assert june.look() == []
    assert june.asked == []


def test_the_clock_moves_no_view_that_nobody_has_listed(june: Clock) -> None:
    june.world.save("it", "date:today")
    june.world.refresh()
    june.advance_to("2016-06-17T14:35")
    assert june.look() == []
    assert june.asked == []


def test_names_that_came_and_went_with_the_clock_are_told(june: Clock) -> None:
    june.open("date:today")
    june.advance_to("18T00:00")
    told = {(each.docid, not each.before, not each.after) for each in changes(june.look())}
    assert told == {
        (june.docids["early"], False, True),
        (june.docids["noon"], False, True),
        (june.docids["ahead"], True, False),
    }


def test_a_view_of_seconds_is_looked_at_once_a_second(june: Clock) -> None:
    june.open("received:..now")
    june.look()
    june.now_s += 10
    june.monotonic_s += 1.0
    june.look()
    assert june.asked != []
    june.now_s += 10
    june.monotonic_s += 0.9
    june.look()
    assert june.asked == []
    june.monotonic_s += 0.2
    june.look()
    assert june.asked != []


def test_a_look_that_takes_long_is_taken_seldom(june: Clock) -> None:
    june.open("received:..now")
    june.look_takes_s = 2.0
    june.advance_to("17T14:36")
    june.look()
    assert june.asked != []
    june.now_s, june.monotonic_s = june.now_s + 60, june.monotonic_s + 60
    june.look()
    assert june.asked == []
    june.now_s, june.monotonic_s = june.now_s + 140, june.monotonic_s + 140
    june.look()
    assert june.asked != []


def test_the_time_of_a_folder_moves_with_its_members_and_only_then(june: Clock) -> None:
    june.open("date:1week..")
    before = june.world.mtimes("it")
    june.advance_to("17T23:59:59")
    june.look()
    assert june.world.mtimes("it") == before
    june.advance_to("18T00:00")  # `week` leaves cur
    june.look()
    after = june.world.mtimes("it")
    assert after[0] == before[0]
    assert after[1] > before[1]
    june.advance_to("22T00:00")  # other days, the same members
    june.look()
    assert june.members() == {"tuesday", "early", "noon", "ahead"}
    assert june.world.mtimes("it") == after


def test_what_comes_after_midnight_before_the_view_is_moved_is_judged_rightly(june: Clock) -> None:
    june.open("date:today or received:yesterday")
    june.advance_to("18T08:00")
    june.send("late", "17T23:00")
    june.send("new", "18T07:00")
    june.world.set_flags(june.docids["early"], add=SEEN)
    june.world.set_flags(june.docids["tuesday"], add=SEEN)
    june.world.refresh()
    june.look()
    assert june.members() == {"early", "noon", "ahead", "late", "new"}


def test_what_changes_while_the_clock_is_wrong_is_right_when_it_is_mended(june: Clock) -> None:
    june.open("date:today")
    june.advance_to("2017-01-01T00:00")
    june.world.set_flags(june.docids["noon"], add=SEEN)
    june.world.refresh()
    june.advance_to("17T14:36")
    june.look()
    assert june.members() == {"early", "noon"}


def test_what_is_judged_between_two_looks_leaves_with_its_day(june: Clock) -> None:
    """A change seen on the 18th, of a message of the 18th, in a view that is looked at on the 17th and the 19th."""
    june.open("date:today")
    june.advance_to("18T09:00")
    june.world.set_flags(june.docids["ahead"], add=SEEN)
    june.world.set_flags(june.docids["noon"], add=SEEN)
    june.world.refresh()
    june.advance_to("19T09:00")
    june.look()
    assert june.members() == set()


def test_an_evaluation_that_lasted_over_midnight_is_moved(june: Clock) -> None:
    june.world.save("it", "date:today")
    june.world.refresh()
    view = june.world.tree.views["it"]
    evaluation = evaluate(june.world.store.layout, view, june.world.tree.facts)
    june.advance_to("18T00:00")
    june.world.set_flags(june.docids["ahead"], add=SEEN)
    install(june.world.tree, view, evaluation)
    june.look()
    assert june.members() == {"ahead"}


def test_the_clock_waits_for_what_others_have_changed(june: Clock) -> None:
    """Else a name would be told that is not listed before the next refresh."""
    june.open("date:today")
    june.advance_to("18T00:00")
    june.world.set_flags(june.docids["ahead"], add=SEEN)
    assert moved_by_clock(june.world.tree, june.now_s) == []
    june.look()
    assert june.members() == {"ahead"}


def test_a_day_of_25_hours_is_one_day(clock: Clock) -> None:
    clock.advance_to("2015-10-25T00:30")
    clock.send("first", "2015-10-25T02:30")
    clock.send("evening", "2015-10-25T23:30")
    clock.open("date:today")
    clock.now_s += 24 * 3600 - 1  # 23:29:59 on the wall
    assert clock.look() == []
    assert clock.members() == {"first", "evening"}
    clock.now_s, clock.monotonic_s = clock.now_s + 1801, 7200.0
    clock.look()
    assert clock.members() == set()


def test_a_day_of_23_hours_ends_earlier(clock: Clock) -> None:
    clock.advance_to("2015-03-29T00:00")
    clock.send("evening", "2015-03-29T23:30")
    clock.open("date:today")
    clock.now_s += 23 * 3600 - 1
    assert clock.look() == []
    clock.now_s, clock.monotonic_s = clock.now_s + 1, 7200.0
    clock.look()
    assert clock.members() == set()


def test_what_lingers_stays_over_midnight_until_its_reader_is_gone(june: Clock) -> None:
    june.open("is:unread date:today")
    tree = june.world.tree
    cur, name = june.world.directory("it/cur"), june.world.name(june.docids["noon"])
    edit = plan_rename(tree, cur, name, cur, name.partition(b":")[0] + b":2,S")
    assert edit is not None
    june.world.edit(edit)
    june.advance_to("18T00:00")
    june.look()
    assert june.members() == {"noon", "ahead"}
    end_lingering(tree, june.monotonic_s + 10**6)
    assert june.members() == {"ahead"}


# --- errors on the way


def failing(*_: object) -> NoReturn:
    raise StoreError("the disk fails")


def test_what_a_look_told_of_before_an_error_is_told_by_the_next(
    june: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    june.open("date:today", "a")
    june.open("received:today", "b")
    june.advance_to("18T00:00")
    docids_dated = Index.docids_dated

    def failing_once(index: Index, field: Literal["date", "received"], span: Span) -> list[Docid]:
        return failing() if field == "received" else docids_dated(index, field, span)

    with monkeypatch.context() as patch:
        patch.setattr(Index, "docids_dated", failing_once)
        with pytest.raises(StoreError):
            june.look()
    june.advance_to("18T00:00")
    told = {each.view.search.name for each in june.look() if isinstance(each, NameChange)}
    assert told == {"a", "b"}


def test_a_view_that_could_not_be_brought_up_to_now_is_loaded_by_the_next_try(
    june: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = june.world
    world.save("it", "is:flagged")
    world.refresh()
    view = world.tree.views["it"]
    evaluation = evaluate(world.store.layout, view, world.tree.facts)
    world.set_flags(june.docids["old"], add=FLAGGED)
    with monkeypatch.context() as patch:
        patch.setattr(membership, "matching", failing)
        with pytest.raises(StoreError):
            install(world.tree, view, evaluation)
    assert not view.is_loaded
    world.load("it")
    assert june.members() == {"old"}
