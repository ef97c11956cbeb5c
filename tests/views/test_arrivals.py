"""A message enters a view: what it needs to be shown there, and what becomes of one that is known."""

import errno
import os

import pytest

from mailfs.errors import EditRefused, MailfsError, NoSuchMessage, NotFound
from mailfs.ids import Docid
from mailfs.message.keywords import ANSWERED, FLAGGED, RECENT, SEEN
from mailfs.message.maildir import Form
from mailfs.views import entries
from mailfs.views.arrivals import (
    SpooledFile,
    StoredMessage,
    commit_arrival,
    plan_arrival,
    plan_link,
    plan_move,
)
from tests.fakes import make_message
from tests.oracle import docids_of
from tests.views.world import World, error_of, listed

# Of no message that World.deliver makes.
RAW = make_message(1001, subject="pears")
OTHER = make_message(1002, subject="plums")
LETTERS = b":2,S"


# --- delivery


def test_a_file_delivered_into_a_label_view_gets_its_keyword_and_keeps_its_name(
    ready: World,
) -> None:
    docid = ready.bring("work/new", b"1.x.host", RAW)
    assert ready.keywords(docid) == {"work"}
    assert ready.flags(docid) == RECENT
    assert listed(ready, "work") == {b"1.x.host"}
    assert listed(ready, "all") == {ready.name(docid)}
    assert listed(ready, "inbox") == set()
    assert ready.store.load(docid) == RAW


def test_the_time_of_the_file_is_the_messages(ready: World) -> None:
    source = ready.spool(RAW, received_s=1_234_567_890)
    cur = ready.directory("work/cur")
    docid = ready.arrive(plan_arrival(ready.tree, source, cur, b"x", is_exclusive=True))
    assert ready.store.index.entry(docid).received_ns == 1_234_567_890 * 10**9
    assert os.path.exists(source.path)


def test_entering_takes_off_what_the_view_negates(ready: World) -> None:
    docid = ready.deliver(keywords=("inbox", "work"))
    ready.refresh()
    ready.link(docid, "todo/cur", b"x:2,S")
    assert ready.keywords(docid) == {"work", "todo"}
    assert listed(ready, "inbox") == set()
    assert listed(ready, "todo") == {b"x:2,S"}


@pytest.mark.parametrize(
    ("view", "name", "flags"),
    [
        ("flagged", b"x:2,", FLAGGED),
        ("flagged", b"x:2,S", FLAGGED | SEEN),
        ("unread", b"x:2,FS", FLAGGED),
        ("unread", b"x:2,", 0),
        ("all", b"x:2,RS", ANSWERED | SEEN),
    ],
)
def test_entering_a_query_view_sets_and_clears_the_flags_it_names(
    ready: World, view: str, name: bytes, flags: int
) -> None:
    docid = ready.bring(f"{view}/cur", name, RAW)
    assert ready.flags(docid) == flags
    assert ready.keywords(docid) == set()
    assert {shown.partition(b":")[0] for shown in listed(ready, view)} == {b"x"}


@pytest.mark.parametrize("view", ["plums", "either", "none", "threads"])
def test_a_message_the_query_would_not_show_is_refused_and_nothing_of_it_stays(
    ready: World, view: str
) -> None:
    ready.save("plums", "tag:work subject:plums")
    ready.save("either", "tag:work or tag:todo")
    ready.save("none", "tag:work and not tag:work")
    ready.save("threads", "thread:{is:flagged}")
    ready.refresh()
    source = ready.spool(RAW)
    before = ready.store.index.state()
    arrival = plan_arrival(
        ready.tree, source, ready.directory(f"{view}/new"), b"x", is_exclusive=True
    )
    assert error_of(commit_arrival, ready.store, arrival) == errno.EPERM
    assert ready.store.index.state() == before
    assert docids_of(ready.store) == []
    assert os.path.exists(source.path)
    assert listed(ready, view) == set()


def test_a_stored_message_that_is_refused_stays_as_it_is(ready: World) -> None:
    docid = ready.deliver(keywords=("inbox",), flags=SEEN)
    ready.save("plums", "tag:work subject:plums")
    ready.refresh()
    assert error_of(ready.link, docid, "plums/new", b"x") == errno.EPERM
    assert (ready.keywords(docid), ready.flags(docid)) == ({"inbox"}, SEEN)


def test_a_message_with_the_words_a_view_asks_for_is_taken(ready: World) -> None:
    ready.save("plums", "tag:work subject:plums")
    ready.refresh()
    docid = ready.bring("plums/new", b"x", OTHER)
    assert listed(ready, "plums") == {b"x"}
    assert ready.keywords(docid) == {"work"}


@pytest.mark.parametrize("path", ["work", "work/tmp", ""])
def test_messages_live_in_cur_and_new(ready: World, path: str) -> None:
    directory = ready.directory(path)
    with pytest.raises(EditRefused, match="cur and new"):
        plan_arrival(ready.tree, StoredMessage(Docid(1)), directory, b"x", is_exclusive=True)


@pytest.mark.parametrize(
    ("name", "code"),
    [(b":2,S", errno.EINVAL), (b"x" * 250, errno.ENAMETOOLONG), (b"x" * 255, errno.ENAMETOOLONG)],
)
def test_a_name_leaves_room_for_letters(ready: World, name: bytes, code: int) -> None:
    assert error_of(ready.bring, "work/cur", name, RAW) == code
    assert docids_of(ready.store) == []


def test_a_file_that_vanished_before_it_was_delivered_is_not_found(ready: World) -> None:
    source = ready.spool(RAW)
    arrival = plan_arrival(ready.tree, source, ready.directory("work/new"), b"x", is_exclusive=True)
    os.unlink(source.path)
    with pytest.raises(NotFound):
        commit_arrival(ready.store, arrival)


def test_a_link_is_not_followed_to_be_delivered(ready: World) -> None:
    source = ready.spool(RAW)
    link = SpooledFile(source.ino, source.path + b".link")
    os.symlink(source.path, link.path)
    arrival = plan_arrival(ready.tree, link, ready.directory("work/new"), b"x", is_exclusive=True)
    with pytest.raises((MailfsError, OSError)):
        commit_arrival(ready.store, arrival)
    assert docids_of(ready.store) == []


def test_what_link_from_tmp_acknowledges_is_durable_and_mv_between_views_need_not_be(
    ready: World,
) -> None:
    docid = ready.deliver(keywords=("inbox",))
    ready.refresh()
    cur = ready.directory("work/cur")
    assert plan_arrival(ready.tree, ready.spool(RAW), cur, b"x", is_exclusive=True).is_durable
    assert plan_link(ready.tree, StoredMessage(docid, is_revived=True), cur, b"x").is_durable
    name = ready.name(docid)
    inbox = ready.directory("inbox/cur")
    assert not plan_move(ready.tree, inbox, name, cur, name, is_exclusive=False).is_durable


@pytest.mark.parametrize(
    ("path", "name", "form"),
    [
        ("work/new", b"x", Form.USUAL),
        ("work/new", b"x:2,", Form.INFO_IN_NEW),
        ("work/cur", b"x:2,", Form.USUAL),
        ("work/cur", b"x", Form.BARE_IN_CUR),
    ],
)
def test_a_name_without_letters_stays_with_or_without_its_separator(
    ready: World, path: str, name: bytes, form: Form
) -> None:
    docid = ready.bring(path, name, RAW)
    assert listed(ready, "work") == {name}
    ((_, _, row),) = ready.store.index.chosen_names_of([docid])
    assert row.form == form


@pytest.mark.parametrize("name", [b"x:2,F:2,", b"x:2,:2,S", b"x:2,a:2,T"])
def test_a_base_that_ends_like_letters_is_refused(ready: World, name: bytes) -> None:
    """Where it stands without letters it would be read as another name."""
    assert error_of(ready.bring, "work/cur", name, RAW) == errno.EINVAL
    assert docids_of(ready.store) == []


# --- messages that are known


def test_a_known_message_is_stored_once_and_has_both_names(ready: World) -> None:
    docid = ready.bring("work/cur", b"one:2,S", RAW)
    assert ready.bring("work/cur", b"two:2,F", RAW) == docid
    assert docids_of(ready.store) == [docid]
    assert listed(ready, "work") == {b"one:2,FS", b"two:2,FS"}
    assert ready.flags(docid) == FLAGGED | SEEN


def test_a_known_message_in_the_view_keeps_its_canonical_name_beside_the_new_one(
    ready: World,
) -> None:
    docid = ready.deliver(keywords=("work",), flags=SEEN)
    ready.refresh()
    canonical = ready.name(docid)
    ready.link(docid, "work/cur", b"two:2,S")
    assert listed(ready, "work") == {canonical, b"two:2,S"}


def test_a_known_message_that_is_put_into_cur_leaves_new_in_all_views(ready: World) -> None:
    docid = ready.bring("inbox/new", b"one:2,S", RAW)
    ready.bring("work/cur", b"two", RAW)
    assert ready.flags(docid) == SEEN
    for view, base in (("inbox", b"one"), ("work", b"two")):
        assert ready.find_or_none(f"{view}/cur", base + b":2,S") == docid


def test_a_known_message_does_not_go_back_to_new(ready: World) -> None:
    """Who lists new/ and then cur/ of some view would miss it."""
    docid = ready.bring("inbox/cur", b"one:2,S", RAW)
    ready.bring("work/new", b"two", RAW)
    assert ready.flags(docid) == SEEN
    for view, base in (("inbox", b"one"), ("work", b"two")):
        assert ready.find_or_none(f"{view}/cur", base + b":2,S") == docid


def test_removing_one_of_two_names_leaves_the_other_and_the_last_leaves_the_view(
    ready: World,
) -> None:
    docid = ready.bring("work/cur", b"one:2,", RAW)
    ready.bring("work/cur", b"two:2,", RAW)
    ready.unlink("work/cur", b"one:2,")
    assert listed(ready, "work") == {b"two:2,"}
    assert ready.keywords(docid) == {"work"}
    ready.unlink("work/cur", b"two:2,")
    assert listed(ready, "work") == set()
    assert docids_of(ready.store) == []


def test_one_name_taken_away_can_be_given_again(ready: World) -> None:
    docid = ready.bring("work/cur", b"one:2,", RAW)
    ready.bring("work/cur", b"two:2,", RAW)
    ready.unlink("work/cur", b"one:2,")
    ready.link(docid, "work/cur", b"one:2,")
    assert listed(ready, "work") == {b"one:2,", b"two:2,"}


def test_an_expunged_message_that_is_delivered_again_comes_back_as_if_new(ready: World) -> None:
    docid = ready.bring("work/cur", b"one:2,FS", RAW)
    ready.set_keywords(docid, add=["todo"])
    ready.expunge(docid)
    ready.refresh()
    assert ready.bring("inbox/new", b"two", RAW) == docid
    assert ready.keywords(docid) == {"inbox"}
    assert ready.flags(docid) == RECENT
    assert listed(ready, "inbox") == {b"two"}
    assert listed(ready, "work") == set()
    ready.unlink("inbox/new", b"two")
    assert docids_of(ready.store) == []


def test_a_link_of_an_expunged_message_needs_somebody_who_holds_it(ready: World) -> None:
    docid = ready.bring("work/cur", b"one:2,S", RAW)
    ready.expunge(docid)
    ready.refresh()
    with pytest.raises(NoSuchMessage):
        ready.link(docid, "inbox/cur", b"two:2,")
    ready.link(docid, "inbox/cur", b"two:2,", is_revived=True)
    assert listed(ready, "inbox") == {b"two:2,"}
    assert ready.keywords(docid) == {"inbox"}
    assert ready.flags(docid) == 0


def test_one_message_has_no_more_copies_in_a_view_than_a_listing_can_number(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "MAX_NAMES", 3)
    docid = world.bring("inbox/cur", b"1:2,", RAW)
    world.link(docid, "inbox/cur", b"2:2,")
    world.link(docid, "inbox/cur", b"3:2,")
    assert error_of(world.link, docid, "inbox/cur", b"4:2,") == errno.EMLINK
    assert listed(world, "inbox") == {b"1:2,", b"2:2,", b"3:2,"}


# --- taking in


def test_a_file_written_into_cur_keeps_a_name_that_is_free(ready: World) -> None:
    docid = ready.bring("work/cur", b"mine:2,S", RAW, is_exclusive=False, is_lenient=True)
    assert listed(ready, "work") == {b"mine:2,S"}
    assert ready.keywords(docid) == {"work"}


def test_a_file_written_into_cur_under_a_taken_name_gets_its_canonical_one(ready: World) -> None:
    other = ready.bring("work/cur", b"mine:2,S", OTHER)
    docid = ready.bring("work/cur", b"mine:2,", RAW, is_exclusive=False, is_lenient=True)
    assert listed(ready, "work") == {b"mine:2,S", ready.name(docid)}
    assert ready.find_or_none("work/cur", b"mine:2,S") == other


def test_a_known_file_written_into_cur_under_a_taken_name_keeps_the_names_it_has(
    ready: World,
) -> None:
    ready.bring("work/cur", b"mine:2,", OTHER)
    ready.bring("work/cur", b"known:2,", RAW)
    ready.bring("work/cur", b"mine:2,S", RAW, is_exclusive=False, is_lenient=True)
    assert listed(ready, "work") == {b"mine:2,", b"known:2,S"}


def test_a_file_that_a_view_would_not_show_is_not_taken_in(ready: World) -> None:
    ready.save("plums", "tag:work subject:plums")
    ready.refresh()
    code = error_of(ready.bring, "plums/cur", b"mine", RAW, is_exclusive=False, is_lenient=True)
    assert code == errno.EPERM
    assert docids_of(ready.store) == []
