"""Copies, which outlive what they were copied from, moves between views, and letters on the way."""

import errno

import pytest

from mailfs.errors import NotFound
from mailfs.message.keywords import ANSWERED, DELETED, DELETED_BY_ENTRY, FLAGGED, SEEN
from tests.fakes import make_message
from tests.oracle import docids_of
from tests.views.world import World, error_of, listed

# Of no message that World.deliver makes.
RAW = make_message(1001, subject="pears")
OTHER = make_message(1002, subject="plums")
LETTERS = b":2,S"


# --- copies


def test_a_copy_in_another_view_outlives_rm_once(ready: World) -> None:
    """What a client does that has no move: copy, then delete here."""
    docid = ready.bring("all/cur", b"x:2,S", RAW)
    ready.link(docid, "work/cur", b"copy:2,S")
    ready.unlink("all/cur", b"x:2,S")
    assert docids_of(ready.store) == [docid]
    assert listed(ready, "work") == {b"copy:2,S"}
    assert ready.keywords(docid) == {"work"}
    ready.unlink("all/cur", ready.name(docid))
    assert docids_of(ready.store) == []
    assert listed(ready, "work") == set()


@pytest.mark.parametrize("how", ["link", "bytes"])
def test_a_copy_and_rm_is_a_move_between_label_views(ready: World, how: str) -> None:
    docid = ready.bring("inbox/cur", b"x:2,S", RAW)
    if how == "link":
        ready.link(docid, "work/cur", b"copy:2,S")
    else:
        ready.bring("work/cur", b"copy:2,S", RAW)
    ready.unlink("inbox/cur", b"x:2,S")
    assert ready.keywords(docid) == {"work"}
    assert listed(ready, "work") == {b"copy:2,S"}
    ready.unlink("work/cur", b"copy:2,S")
    assert docids_of(ready.store) == []


def test_rm_in_a_query_view_takes_off_all_keywords_but_those_of_copies(ready: World) -> None:
    docid = ready.bring("inbox/cur", b"x:2,S", RAW)
    ready.set_keywords(docid, add=["urgent"])
    ready.refresh()
    ready.link(docid, "work/cur", b"copy:2,S")
    ready.unlink("all/cur", ready.name(docid))
    assert ready.keywords(docid) == {"work"}
    assert listed(ready, "inbox") == set()


def test_rm_of_the_copy_itself_is_not_held_up_by_it(ready: World) -> None:
    docid = ready.bring("all/cur", b"x:2,S", RAW)
    ready.link(docid, "work/cur", b"copy:2,S")
    ready.unlink("work/cur", b"copy:2,S")
    assert docids_of(ready.store) == []


def test_a_copy_in_the_same_view_is_only_another_name(ready: World) -> None:
    docid = ready.bring("work/cur", b"x:2,S", RAW)
    ready.link(docid, "work/cur", b"copy:2,S")
    ready.unlink("work/cur", b"x:2,S")
    assert docids_of(ready.store) == [docid]
    ready.unlink("work/cur", b"copy:2,S")
    assert docids_of(ready.store) == []


def test_a_copy_that_has_left_its_view_holds_nothing(ready: World) -> None:
    docid = ready.bring("all/cur", b"x:2,S", RAW)
    ready.link(docid, "work/cur", b"copy:2,S")
    ready.set_keywords(docid, remove=["work"])
    ready.refresh()
    ready.unlink("all/cur", b"x:2,S")
    assert docids_of(ready.store) == []


def test_mv_makes_no_copy(ready: World) -> None:
    docid = ready.bring("inbox/cur", b"x:2,S", RAW)
    ready.move("inbox/cur", b"x:2,S", "work/cur", b"x:2,S")
    assert ready.keywords(docid) == {"work"}
    ready.unlink("all/cur", ready.name(docid))
    assert docids_of(ready.store) == []


def test_a_copy_keeps_being_one_when_its_letters_change(ready: World) -> None:
    docid = ready.bring("all/cur", b"x:2,", RAW)
    ready.link(docid, "work/cur", b"copy:2,")
    ready.rename("work/cur", b"copy:2,", "work/cur", b"copy,U=3:2,S")
    ready.unlink("all/cur", b"x:2,S")
    assert listed(ready, "work") == {b"copy,U=3:2,S"}


# --- moves


def test_mv_between_label_views_is_one_change_of_keywords(ready: World) -> None:
    docid = ready.bring("inbox/new", b"x", RAW)
    before = ready.store.index.state().modseq
    ready.move("inbox/new", b"x", "work/cur", b"y:2,S")
    assert ready.store.index.state().modseq == before + 1
    assert ready.keywords(docid) == {"work"}
    assert ready.flags(docid) == SEEN
    assert listed(ready, "inbox") == set()
    assert listed(ready, "work") == {b"y:2,S"}


def test_mv_out_of_a_query_view_only_enters(ready: World) -> None:
    docid = ready.deliver(keywords=("inbox",), flags=SEEN)
    ready.refresh()
    name = ready.name(docid)
    ready.move("all/cur", name, "work/cur", name)
    assert ready.keywords(docid) == {"inbox", "work"}
    assert listed(ready, "all") == listed(ready, "work") == listed(ready, "inbox") == {name}


def test_mv_into_a_query_view_leaves_the_label_view(ready: World) -> None:
    docid = ready.bring("inbox/cur", b"x:2,S", RAW)
    ready.move("inbox/cur", b"x:2,S", "flagged/cur", b"x:2,S")
    assert ready.keywords(docid) == set()
    assert ready.flags(docid) == SEEN | FLAGGED
    assert listed(ready, "flagged") == {b"x:2,FS"}
    assert docids_of(ready.store) == [docid]


def test_the_letters_of_the_new_name_are_the_flags(ready: World) -> None:
    docid = ready.bring("inbox/cur", b"x:2,FS", RAW)
    ready.move("inbox/cur", b"x:2,FS", "work/cur", b"x:2,R")
    assert ready.flags(docid) == ANSWERED


def test_one_of_two_names_moves_and_the_other_stays(ready: World) -> None:
    docid = ready.bring("inbox/cur", b"x:2,S", RAW)
    ready.link(docid, "inbox/cur", b"y:2,S")
    ready.move("inbox/cur", b"x:2,S", "work/cur", b"x:2,S")
    assert ready.keywords(docid) == {"inbox", "work"}
    assert listed(ready, "inbox") == {b"y:2,S"}
    assert listed(ready, "work") == {b"x:2,S"}


def test_mv_to_where_the_message_is_already_adds_a_name(ready: World) -> None:
    docid = ready.deliver(keywords=("inbox", "work"), flags=SEEN)
    ready.refresh()
    name = ready.name(docid)
    ready.move("inbox/cur", name, "work/cur", b"y:2,S")
    assert ready.keywords(docid) == {"work"}
    assert listed(ready, "work") == {name, b"y:2,S"}


def test_mv_that_the_new_view_refuses_leaves_it_where_it_was(ready: World) -> None:
    ready.save("plums", "tag:work subject:plums")
    ready.refresh()
    docid = ready.bring("inbox/cur", b"x:2,S", RAW)
    assert error_of(ready.move, "inbox/cur", b"x:2,S", "plums/cur", b"x:2,S") == errno.EPERM
    assert ready.keywords(docid) == {"inbox"}
    assert listed(ready, "inbox") == {b"x:2,S"}


def test_mv_out_of_a_view_that_refuses_rm_is_refused(ready: World) -> None:
    ready.save("work", "tag:work", "refuse", replace=True)
    ready.refresh()
    docid = ready.bring("work/cur", b"x:2,", RAW)
    assert error_of(ready.move, "work/cur", b"x:2,", "inbox/cur", b"x:2,") == errno.EPERM
    assert ready.keywords(docid) == {"work"}


def test_mv_over_another_message_replaces_it(ready: World) -> None:
    docid = ready.bring("inbox/cur", b"x:2,S", RAW)
    other = ready.bring("work/cur", b"x:2,S", OTHER)
    taken = error_of(ready.move, "inbox/cur", b"x:2,S", "work/cur", b"x:2,S", is_exclusive=True)
    assert taken == errno.EEXIST
    assert docids_of(ready.store) == [docid, other]
    ready.move("inbox/cur", b"x:2,S", "work/cur", b"x:2,S")
    assert docids_of(ready.store) == [docid]
    assert listed(ready, "work") == {b"x:2,S"}


def test_mv_of_a_name_that_is_not_true_any_more_is_not_found(ready: World) -> None:
    ready.bring("inbox/cur", b"x:2,S", RAW)
    with pytest.raises(NotFound):
        ready.move("inbox/cur", b"x:2,", "work/cur", b"x:2,")


# --- letters


def test_letters_of_an_arrival_are_keywords_as_the_new_view_has_them(ready: World) -> None:
    ready.write_letters("work", "0 $Forwarded\n1 urgent\n")
    docid = ready.bring("work/cur", b"x:2,Sbz", RAW)
    assert ready.keywords(docid) == {"work", "urgent"}
    assert ready.flags(docid) == SEEN
    assert ready.find_or_none("work/cur", b"x:2,Sbz") == docid
    ready.link(docid, "inbox/cur", b"y:2,Sb")
    assert ready.keywords(docid) == {"work", "urgent", "inbox"}
    assert ready.find_or_none("inbox/cur", b"y:2,Sb") == docid
    ready.set_keywords(docid, remove=["urgent"])
    ready.refresh()
    assert ready.find_or_none("work/cur", b"x:2,Sz") == docid
    assert ready.find_or_none("inbox/cur", b"y:2,Sb") == docid


def test_t_marks_the_name_it_was_put_on_and_no_copy(ready: World) -> None:
    """IMAP's \\Deleted, which a synchroniser would carry out in every folder that shows it."""
    docid = ready.bring("inbox/cur", b"x:2,S", RAW)
    ready.link(docid, "work/cur", b"y:2,S")
    ready.rename("inbox/cur", b"x:2,S", "inbox/cur", b"x:2,ST")
    assert listed(ready, "inbox") == {b"x:2,ST"}
    assert listed(ready, "work") == {b"y:2,S"}
    assert ready.flags(docid) & DELETED
    ready.unlink("inbox/cur", b"x:2,ST")
    assert not ready.flags(docid) & DELETED
    assert listed(ready, "work") == {b"y:2,S"}


def test_t_that_was_taken_off_the_message_does_not_come_back_with_another(ready: World) -> None:
    docid = ready.bring("inbox/cur", b"x:2,T", RAW)
    ready.link(docid, "work/cur", b"y:2,")
    # As `mailfs tag -deleted` does it.
    ready.set_flags(docid, remove=DELETED | DELETED_BY_ENTRY)
    ready.refresh()
    assert listed(ready, "inbox") == {b"x:2,"}
    ready.rename("work/cur", b"y:2,", "work/cur", b"y:2,T")
    assert listed(ready, "work") == {b"y:2,T"}
    assert listed(ready, "inbox") == {b"x:2,"}


def test_t_said_of_the_message_stays_in_all_views_when_a_copy_with_t_comes(ready: World) -> None:
    docid = ready.bring("inbox/cur", b"x:2,", RAW)
    ready.set_flags(docid, add=DELETED)
    ready.refresh()
    ready.link(docid, "work/cur", b"y:2,T")
    assert listed(ready, "work") == {b"y:2,T"}
    assert listed(ready, "inbox") == {b"x:2,T"}
