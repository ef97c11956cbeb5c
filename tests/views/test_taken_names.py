"""Names that are taken: refused, replaced, given back, and dropped when their message has left."""

import errno

import pytest

from mailfs.message.keywords import SEEN
from mailfs.views.arrivals import (
    commit_arrival,
    plan_arrival,
)
from mailfs.views.edits import plan_unlink
from tests.fakes import make_message
from tests.oracle import docids_of
from tests.views.world import World, error_of, listed

# Of no message that World.deliver makes.
RAW = make_message(1001, subject="pears")
OTHER = make_message(1002, subject="plums")
LETTERS = b":2,S"


# --- names that are taken


@pytest.mark.parametrize("name", [b"one:2,S", b"one:2,", b"one"])
@pytest.mark.parametrize("path", ["work/cur", "work/new"])
def test_link_to_a_base_of_another_message_is_refused(ready: World, path: str, name: bytes) -> None:
    docid = ready.bring("work/cur", b"one:2,S", RAW)
    assert error_of(ready.bring, path, name, OTHER) == errno.EEXIST
    assert docids_of(ready.store) == [docid]
    assert listed(ready, "work") == {b"one:2,S"}


def test_rename_to_a_base_of_another_message_with_other_letters_is_refused(ready: World) -> None:
    ready.bring("work/cur", b"one:2,S", RAW)
    taken = error_of(ready.bring, "work/cur", b"one:2,F", OTHER, is_exclusive=False)
    assert taken == errno.EEXIST
    assert listed(ready, "work") == {b"one:2,S"}


def test_the_same_base_in_another_view_is_free(ready: World) -> None:
    docid = ready.bring("work/cur", b"one:2,", RAW)
    other = ready.bring("inbox/cur", b"one:2,", OTHER)
    assert ready.find_or_none("work/cur", b"one:2,") == docid
    assert ready.find_or_none("inbox/cur", b"one:2,") == other


def test_a_name_somebody_else_took_since_the_plan_is_taken(ready: World) -> None:
    cur = ready.directory("work/cur")
    arrival = plan_arrival(ready.tree, ready.spool(RAW), cur, b"one:2,", is_exclusive=True)
    other = ready.bring("work/cur", b"one:2,", OTHER)
    assert error_of(commit_arrival, ready.store, arrival) == errno.EEXIST
    assert docids_of(ready.store) == [other]


def test_the_same_bytes_under_the_same_base_join_their_letters(ready: World) -> None:
    """A file restored beside the one that is there: nobody's name is in the way."""
    docid = ready.bring("work/cur", b"one:2,S", RAW)
    assert ready.bring("work/cur", b"one:2,F", RAW, is_exclusive=False) == docid
    assert listed(ready, "work") == {b"one:2,FS"}


def test_a_name_is_free_when_its_message_has_left_the_view(ready: World) -> None:
    docid = ready.bring("work/cur", b"one:2,S", RAW)
    ready.set_keywords(docid, add=["inbox"], remove=["work"])
    ready.refresh()
    other = ready.bring("work/cur", b"one:2,F", OTHER)
    assert listed(ready, "work") == {b"one:2,F"}
    assert ready.find_or_none("work/cur", b"one:2,F") == other


def test_a_rename_may_take_the_name_of_a_message_that_has_left_the_view(ready: World) -> None:
    docid = ready.bring("work/cur", b"one:2,S", RAW)
    other = ready.bring("work/cur", b"two:2,S", OTHER)
    ready.set_keywords(docid, add=["inbox"], remove=["work"])
    ready.refresh()
    ready.rename("work/cur", b"two:2,S", "work/cur", b"one:2,S")
    assert listed(ready, "work") == {b"one:2,S"}
    assert ready.find_or_none("work/cur", b"one:2,S") == other


def test_a_message_whose_canonical_name_another_has_is_called_otherwise_until_that_leaves(
    ready: World,
) -> None:
    """An editor writes a new message over the old one, which then comes back into the view."""
    docid = ready.deliver(keywords=("inbox",), flags=SEEN)
    ready.refresh()
    base = ready.name(docid).removesuffix(LETTERS)
    other = ready.bring("work/cur", base + LETTERS, OTHER)
    ready.set_keywords(docid, add=["work"])
    ready.refresh()
    assert listed(ready, "work") == {base + LETTERS, base + b",C=1" + LETTERS}
    assert ready.find_or_none("work/cur", base + LETTERS) == other
    assert ready.find_or_none("work/cur", base + b",C=1" + LETTERS) == docid
    ready.unlink("work/cur", base + LETTERS)
    assert listed(ready, "work") == {base + LETTERS}
    assert ready.find_or_none("work/cur", base + LETTERS) == docid


def test_a_message_that_is_called_otherwise_can_get_a_second_name(ready: World) -> None:
    docid = ready.deliver(keywords=("inbox",), flags=SEEN)
    ready.refresh()
    base = ready.name(docid).removesuffix(LETTERS)
    ready.bring("work/cur", base + LETTERS, OTHER)
    ready.set_keywords(docid, add=["work"])
    ready.refresh()
    ready.link(docid, "work/cur", b"two:2,S")
    assert listed(ready, "work") == {base + LETTERS, base + b",C=1" + LETTERS, b"two:2,S"}


def test_the_kernel_hears_of_a_name_that_its_message_gives_back(world: World) -> None:
    """The claimed name is free again, in a folder that nothing else happened in."""
    docid = world.deliver(keywords=("inbox",), flags=SEEN)
    world.save("work", "tag:work")
    world.refresh()
    base = world.name(docid).removesuffix(LETTERS)
    other = world.bring("work/new", base, OTHER)
    world.set_keywords(docid, add=["work"])
    world.refresh()
    world.load("work")
    assert world.names("work/cur") == [base + b",C=1" + LETTERS]
    before = world.mtimes("work")[1]
    world.expunge(other)
    told = world.refresh()
    assert world.names("work/cur") == [base + LETTERS]
    assert (world.directory("work/cur").ino, base + b",C=1" + LETTERS) in told
    assert world.mtimes("work")[1] > before


# --- replacement


def test_rename_over_the_exact_name_of_a_message_replaces_it(ready: World) -> None:
    docid = ready.bring("work/cur", b"one:2,S", RAW)
    other = ready.bring("work/cur", b"one:2,S", OTHER, is_exclusive=False)
    assert docids_of(ready.store) == [other]
    assert listed(ready, "work") == {b"one:2,S"}
    assert docid != other


def test_a_replacement_gets_the_keywords_that_the_replaced_message_loses(ready: World) -> None:
    docid = ready.bring("work/cur", b"one:2,S", RAW)
    ready.set_keywords(docid, add=["urgent"])
    ready.refresh()
    name = ready.name(docid)
    other = ready.bring("all/cur", name, OTHER, is_exclusive=False)
    assert docids_of(ready.store) == [other]
    assert ready.keywords(other) == {"work", "urgent"}
    assert listed(ready, "all") == {name}


def test_a_replaced_message_leaves_by_the_views_rule(ready: World) -> None:
    docid = ready.deliver(keywords=("inbox", "work"))
    ready.refresh()
    name = ready.name(docid)
    other = ready.bring("work/cur", name, OTHER, is_exclusive=False)
    assert ready.keywords(docid) == {"inbox"}
    assert ready.keywords(other) == {"work"}
    assert listed(ready, "work") == {name}
    assert ready.find_or_none("work/cur", name) == other
    assert ready.find_or_none("inbox/cur", name) == docid


def test_of_two_names_only_the_replaced_one_goes(ready: World) -> None:
    docid = ready.bring("work/cur", b"one:2,", RAW)
    ready.link(docid, "work/cur", b"two:2,")
    other = ready.bring("work/cur", b"one:2,", OTHER, is_exclusive=False)
    assert docids_of(ready.store) == [docid, other]
    assert listed(ready, "work") == {b"one:2,", b"two:2,"}
    assert ready.keywords(docid) == {"work"}


def test_a_view_that_refuses_rm_refuses_replacement(ready: World) -> None:
    ready.save("work", "tag:work", "refuse", replace=True)
    ready.refresh()
    docid = ready.bring("work/cur", b"one:2,", RAW)
    assert error_of(ready.bring, "work/cur", b"one:2,", OTHER, is_exclusive=False) == errno.EPERM
    assert docids_of(ready.store) == [docid]


def test_a_replacement_that_is_refused_leaves_the_other_in_its_place(ready: World) -> None:
    ready.save("plums", "tag:work subject:plums")
    ready.refresh()
    docid = ready.bring("plums/cur", b"one:2,", OTHER)
    assert error_of(ready.bring, "plums/cur", b"one:2,", RAW, is_exclusive=False) == errno.EPERM
    assert docids_of(ready.store) == [docid]
    assert listed(ready, "plums") == {b"one:2,"}


def test_a_message_that_lingers_can_be_replaced_as_any_other(world: World) -> None:
    """Read in `unread`, then edited: the old one does not come back beside the new one."""
    docid = world.deliver(flags=0)
    world.load("unread")
    name = world.name(docid)
    read = name + b"S"
    world.rename("unread/cur", name, "unread/cur", read)
    assert world.names("unread/cur") == [read]
    other = world.bring("unread/cur", read, OTHER, is_exclusive=False)
    assert docids_of(world.store) == [other]
    assert world.names("unread/cur") == [name]


def test_a_replaced_message_that_a_copy_keeps_gives_its_name_up(ready: World) -> None:
    """It still matches `all`, as after rm, and is called otherwise there."""
    docid = ready.deliver(keywords=("inbox",), flags=SEEN)
    ready.refresh()
    name = ready.name(docid)
    ready.link(docid, "work/cur", b"copy:2,S")
    other = ready.bring("all/cur", name, OTHER, is_exclusive=False)
    assert ready.find_or_none("all/cur", name) == other
    assert listed(ready, "all") == {name, name.replace(LETTERS, b",C=1" + LETTERS)}
    assert ready.keywords(docid) == {"work"}


def test_rename_within_a_view_over_another_message_replaces_it(ready: World) -> None:
    ready.bring("work/cur", b"one:2,", RAW)
    other = ready.bring("work/cur", b"two:2,", OTHER)
    taken = error_of(ready.rename, "work/cur", b"two:2,", "work/cur", b"one:2,", is_exclusive=True)
    assert taken == errno.EEXIST
    ready.rename("work/cur", b"two:2,", "work/cur", b"one:2,")
    assert docids_of(ready.store) == [other]
    assert listed(ready, "work") == {b"one:2,"}


# --- messages that leave and come back


def test_a_chosen_name_is_dropped_when_its_message_has_left_and_comes_back(world: World) -> None:
    """To a synchroniser the old `,U=12` is a message that was expunged."""
    world.save("work", "tag:work")
    world.refresh()
    world.load("work")
    docid = world.bring("work/cur", b"x,U=12:2,S", RAW)
    world.set_keywords(docid, add=["inbox"], remove=["work"])
    world.tick()
    world.set_keywords(docid, add=["work"])
    world.refresh()
    assert listed(world, "work") == {world.name(docid)}


def test_a_chosen_name_is_dropped_when_the_view_is_opened_without_its_message(
    world: World,
) -> None:
    world.save("work", "tag:work")
    world.refresh()
    docid = world.bring("work/cur", b"x,U=12:2,S", RAW)
    world.set_keywords(docid, add=["inbox"], remove=["work"])
    world.refresh()
    world.load("work")
    world.tick()
    assert world.store.index.chosen_names_of([docid]) == []


def test_a_message_that_comes_back_before_anybody_looked_keeps_its_name(world: World) -> None:
    world.save("work", "tag:work")
    world.refresh()
    world.load("work")
    docid = world.bring("work/cur", b"x,U=12:2,S", RAW)
    world.set_keywords(docid, add=["inbox"], remove=["work"])
    world.refresh()
    world.set_keywords(docid, add=["work"])
    world.tick()
    assert listed(world, "work") == {b"x,U=12:2,S"}


def test_a_lingering_message_keeps_its_name_until_its_reader_goes(world: World) -> None:
    world.load("unread")
    docid = world.bring("unread/cur", b"x:2,", RAW)
    world.tree.views["unread"].use()
    world.rename("unread/cur", b"x:2,", "unread/cur", b"x:2,S")
    world.tick()
    assert world.names("unread/cur") == [b"x:2,S"]
    assert world.find_or_none("unread/cur", b"x:2,S") == docid


def test_rm_of_a_lingering_message_that_a_copy_keeps_takes_it_out_of_the_listing(
    world: World,
) -> None:
    world.load("unread")
    docid = world.bring("unread/cur", b"x:2,", RAW)
    world.link(docid, "inbox/cur", b"copy:2,")
    world.rename("unread/cur", b"x:2,", "unread/cur", b"x:2,S")
    world.edit(plan_unlink(world.tree, world.directory("unread/cur"), b"x:2,S"))
    assert world.names("unread/cur") == []
    assert listed(world, "inbox") == {b"copy:2,S"}
