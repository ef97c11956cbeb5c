"""What the kernel and its watchers are told: single stories, against a model of the kernel (kernel_model.py)."""

import pytest

from mailfs.ids import Docid, Ino
from mailfs.message.keywords import FLAGGED, RECENT, SEEN
from mailfs.store.store import Store
from mailfs.views import announce
from mailfs.views.announce import STIRRED
from mailfs.views.tree import message_ino
from tests.views.kernel_model import Mounted
from tests.views.world import World


@pytest.fixture
def mounted(store: Store) -> Mounted:
    """A mount with a message, $seen, in inbox/cur, whose folders somebody listed and watches."""
    made = Mounted(store)
    made.world.deliver()
    made.changes.sync_tree()
    for path in (b"", b"inbox/cur", b"inbox/new"):
        made.watch(path)
    return made


def cur_of(mounted: Mounted) -> Ino:
    return mounted.ino(b"inbox/cur")


# --- what clients do while a batch is on its way


def test_a_client_that_removes_what_is_just_being_made_has_the_last_word(mounted: Mounted) -> None:
    docid = mounted.world.deliver()
    mounted.begin_telling()
    mounted.kernel.unlink((cur_of(mounted), mounted.world.name(docid)), mounted.client)
    mounted.settle()


@pytest.mark.parametrize("letters", [None, b"FS", b"FRS", b""])
def test_a_client_that_removes_or_renames_what_is_just_being_renamed_has_the_last_word(
    mounted: Mounted, letters: bytes | None
) -> None:
    docid, cur = Docid(1), cur_of(mounted)
    mounted.world.set_flags(docid, FLAGGED)
    mounted.begin_telling()
    name = mounted.world.name(docid)
    if letters is None:
        mounted.kernel.unlink((cur, name), mounted.client)
    else:
        new_name = name.partition(b":")[0] + b":2," + letters
        mounted.kernel.rename((cur, name), (cur, new_name), mounted.client)
    mounted.settle()


@pytest.mark.parametrize("is_on_its_way", [False, True])
def test_a_name_that_goes_and_is_given_to_another_message_is_there(
    mounted: Mounted, is_on_its_way: bool
) -> None:
    """An editor writes a message anew under its name, after another process expunged it."""
    docid = mounted.world.deliver(keywords=["work"])
    cur, everywhere = cur_of(mounted), mounted.ino(b"all/cur")
    mounted.kernel.rename((cur, mounted.world.name(Docid(1))), (cur, b"a:2,S"), mounted.client)
    mounted.settle()
    mounted.world.expunge(Docid(1))
    mounted.changes.sync_tree()
    if is_on_its_way:
        mounted.begin_telling()
    old = (everywhere, mounted.world.name(docid))
    mounted.kernel.link(old, (cur, b"a:2,S"), mounted.client)
    mounted.settle()


def test_a_search_made_again_while_its_end_is_being_told_is_there(mounted: Mounted) -> None:
    mounted.world.save("work", "tag:work")
    mounted.settle()
    mounted.world.forget("work")
    mounted.begin_telling()
    mounted.kernel.mkdir((mounted.ino(b""), b"work"), mounted.client)
    mounted.settle()


def test_a_folder_a_client_found_before_it_was_told_of_is_forgotten_with_its_search(
    mounted: Mounted,
) -> None:
    mounted.world.save("lists/one", "tag:work")
    mounted.kernel.unlink((mounted.ino(b"lists"), b"one"), mounted.client, is_directory=True)
    mounted.settle()


# --- what is told


def test_who_lists_between_a_change_and_its_reversal_hears_of_that(mounted: Mounted) -> None:
    mounted.world.set_flags(Docid(1), FLAGGED)
    mounted.changes.sync_tree()
    mounted.watch(b"inbox/cur")
    mounted.world.set_flags(Docid(1), 0, FLAGGED)
    mounted.settle()


def test_who_lists_while_a_message_is_away_hears_that_it_is_back(mounted: Mounted) -> None:
    mounted.world.set_keywords(Docid(1), remove=["inbox"])
    mounted.changes.sync_tree()
    mounted.watch(b"inbox/cur")
    mounted.world.set_keywords(Docid(1), add=["inbox"])
    mounted.settle()


@pytest.mark.parametrize("most_taken", [1, 1000])
def test_messages_may_exchange_their_names(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch, most_taken: int
) -> None:
    monkeypatch.setattr(announce, "_MOST_TAKEN", most_taken)
    cur, docid = cur_of(mounted), mounted.world.deliver()
    for number, name in ((Docid(1), b"a:2,S"), (docid, b"b:2,S")):
        old = (cur, mounted.world.name(number))
        mounted.kernel.rename(old, (cur, name), mounted.client)
    mounted.settle()
    other = World(mounted.world.store)
    other.load("inbox")
    for old_name, name in ((b"a:2,S", b"c:2,S"), (b"b:2,S", b"a:2,S"), (b"c:2,S", b"b:2,S")):
        other.rename("inbox/cur", old_name, "inbox/cur", name)
    mounted.settle()
    found = mounted.kernel.look((cur, b"a:2,S"), mounted.client)
    assert found is not None
    assert found.ino == message_ino(docid)


def test_a_change_between_an_edit_of_a_query_and_the_next_look_is_told(mounted: Mounted) -> None:
    mounted.world.save("inbox", "tag:inbox and is:flagged", replace=True)
    mounted.world.set_flags(Docid(1), 0, SEEN)
    mounted.settle(is_coarse=True)


def test_searches_in_a_folder_that_was_only_told_of_are_told_too(mounted: Mounted) -> None:
    mounted.world.save("lists/one", "tag:work")
    mounted.settle()
    watcher = mounted.watch(b"lists")
    mounted.world.save("lists/two", "tag:work")
    mounted.settle()
    assert watcher.names == {b"one", b"two"}


# --- how much is told


def test_a_flag_changed_elsewhere_is_one_move(mounted: Mounted) -> None:
    watcher = mounted.watch(b"inbox/cur")
    name = mounted.world.name(Docid(1))
    mounted.world.set_flags(Docid(1), FLAGGED)
    mounted.settle()
    new_name = mounted.world.name(Docid(1))
    assert watcher.events == [("MOVED_FROM", name), ("MOVED_TO", new_name)]


def test_what_is_too_much_for_a_second_is_one_event_behind_it(mounted: Mounted) -> None:
    watcher = mounted.watch(b"inbox/cur")
    for count in (announce.EVENTS_A_SECOND, 10):
        for _ in range(count):
            mounted.world.deliver()
        mounted.settle(is_coarse=True)
    assert len(watcher.events) == announce.EVENTS_A_SECOND + 2
    assert watcher.events[-2:] == [("CREATE", STIRRED), ("DELETE", STIRRED)]


def test_a_second_later_there_is_room_for_names_again(mounted: Mounted) -> None:
    watcher = mounted.watch(b"inbox/cur")
    for _ in range(2):
        for _ in range(announce.EVENTS_A_SECOND):
            mounted.world.deliver()
        mounted.settle()
        mounted.teller.now_s += 1
    assert len(watcher.events) == 2 * announce.EVENTS_A_SECOND


def test_a_storm_in_one_folder_leaves_room_in_another(mounted: Mounted) -> None:
    watcher = mounted.watch(b"inbox/new")
    for _ in range(announce.EVENTS_A_SECOND + 10):
        mounted.world.deliver()
    docid = mounted.world.deliver(flags=RECENT)
    mounted.begin_telling()
    mounted.teller.step()
    assert ("CREATE", mounted.world.name(docid)) in watcher.events
    mounted.settle(is_coarse=True)


def test_nothing_is_told_where_nobody_has_looked(store: Store) -> None:
    mounted = Mounted(store)
    mounted.world.load("inbox")
    mounted.world.deliver()
    mounted.changes.sync_tree()
    assert not mounted.changes.announcements
