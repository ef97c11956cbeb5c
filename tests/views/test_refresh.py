"""After a change in the store: what views show, which names the kernel must forget, and whose mtime moved."""

import time
from collections.abc import Collection, Iterable

import pytest

from mailfs.errors import Busy, StoreError
from mailfs.ids import Docid
from mailfs.message.keywords import FLAGGED, RECENT, SEEN
from mailfs.search.match import MatchSource, matching
from mailfs.search.tree import Query
from mailfs.store import index as index_module
from mailfs.store.index import EntryRow
from mailfs.store.saved import ViewState
from mailfs.views import evaluation, membership
from mailfs.views import refresh as refresh_module
from mailfs.views.edits import plan_rename
from mailfs.views.evaluation import evaluate, install
from mailfs.views.facts import Facts
from mailfs.views.membership import end_lingering
from mailfs.views.names import Names
from mailfs.views.refresh import refresh
from mailfs.views.tree import FoldersChanged, Invalidation, Kind, Tree
from mailfs.views.view import View
from tests.views.world import World


def gone(world: World, path: str, *names: bytes) -> set[Invalidation]:
    return {Invalidation(world.directory(path).ino, name) for name in names}


def test_nothing_new_is_nothing_to_do(world: World) -> None:
    world.deliver()
    assert world.refresh() == []
    assert world.refresh() == []


def test_a_delivery_shows_in_every_loaded_view_it_matches_and_takes_no_name_away(
    world: World,
) -> None:
    for name in ("inbox", "unread", "flagged", "all"):
        world.load(name)
    docid = world.deliver(flags=RECENT)
    assert world.refresh() == []
    for name in ("inbox", "unread", "all"):
        assert world.names(f"{name}/new") == [world.name(docid)]
    assert world.names("flagged/new") == []


def test_a_flag_changed_elsewhere_renames_in_all_views_and_tells_the_kernel_each(
    world: World,
) -> None:
    docid = world.deliver(flags=SEEN)
    world.refresh()
    for name in ("inbox", "flagged", "all"):
        world.load(name)
    old = world.name(docid)
    world.set_flags(docid, add=FLAGGED)
    invalidations = world.refresh()
    assert set(invalidations) == gone(world, "inbox/cur", old) | gone(world, "all/cur", old)
    assert len(invalidations) == 2
    for name in ("inbox", "flagged", "all"):
        assert world.names(f"{name}/cur") == [world.name(docid)]


def test_an_expunged_message_leaves_all_views(world: World) -> None:
    docid = world.deliver(flags=RECENT)
    world.refresh()
    world.load("inbox")
    world.load("unread")
    name = world.name(docid)
    world.expunge(docid)
    expected = gone(world, "inbox/new", name) | gone(world, "unread/new", name)
    assert set(world.refresh()) == expected
    assert world.names("inbox/new") == world.names("unread/new") == []


def test_a_forgotten_search_takes_its_directories_names_away(world: World) -> None:
    world.save("lists/linux", "tag:linux")
    world.refresh()
    linux = world.directory("lists/linux").ino
    expected = gone(world, "", b"lists") | gone(world, "lists", b"linux")
    expected |= {Invalidation(linux, part) for part in (b"cur", b"new", b"tmp")}
    world.forget("lists/linux")
    assert set(world.refresh()) == expected


def test_a_replaced_query_is_asked_anew_and_other_views_stay_loaded(world: World) -> None:
    flagged = world.deliver(flags=FLAGGED)
    world.deliver(flags=SEEN)
    world.save("mine", "is:seen")
    world.refresh()
    world.load("mine")
    inbox = world.load("inbox")
    before = max(world.mtimes("mine"))
    world.save("mine", "is:flagged", replace=True)
    world.refresh()
    assert not world.tree.views["mine"].is_loaded
    assert world.tree.views["inbox"] is inbox
    assert list(world.load("mine").docids) == [flagged]
    assert min(world.mtimes("mine")) > before


def test_a_change_committed_between_evaluation_and_installation_is_not_lost(world: World) -> None:
    flagged, unflagged = world.deliver(flags=FLAGGED), world.deliver(flags=SEEN)
    world.refresh()
    view = world.tree.views["flagged"]
    evaluation = evaluate(world.store.layout, view, world.tree.facts)
    world.set_flags(flagged, remove=FLAGGED)
    world.set_flags(unflagged, add=FLAGGED)
    added = world.deliver(flags=FLAGGED)
    install(world.tree, view, evaluation)
    assert list(view.docids) == [unflagged, added]
    assert world.names("flagged/cur") == [world.name(unflagged), world.name(added)]


class LateFacts(Facts):
    """Facts that are filled only after something has happened: a commit while a search is evaluated."""

    def __init__(self, world: World, docid: Docid) -> None:
        super().__init__()
        self._world = world
        self._docid = docid

    def fill(self, rows: Iterable[EntryRow]) -> None:
        self._world.set_flags(self._docid, add=FLAGGED)
        self._world.refresh()
        super().fill(rows)


def test_a_change_shown_while_a_search_is_evaluated_is_not_overwritten_by_what_it_read(
    world: World,
) -> None:
    docid = world.deliver(flags=SEEN)
    world.refresh()
    world.tree.facts = LateFacts(world, docid)
    world.tree.names = Names(world.store, world.tree.facts)
    view = world.tree.views["inbox"]
    install(world.tree, view, evaluate(world.store.layout, view, world.tree.facts))
    assert world.names("inbox/cur") == [world.name(docid)]


# --- mtimes


def test_unchanged_views_keep_their_times_and_changed_ones_move_strictly_up(world: World) -> None:
    docid = world.deliver(flags=SEEN)
    world.refresh()
    for name in ("inbox", "unread", "flagged"):
        world.load(name)
    inbox, unread, flagged = map(world.mtimes, ("inbox", "unread", "flagged"))
    world.set_flags(docid, add=FLAGGED)
    world.refresh()
    assert world.mtimes("unread") == unread
    assert world.mtimes("inbox")[0] == inbox[0]
    assert world.mtimes("inbox")[1] > inbox[1]
    assert world.mtimes("flagged")[0] == flagged[0]
    assert world.mtimes("flagged")[1] > flagged[1]
    assert world.mtimes("inbox")[1] <= time.time_ns()


def test_a_keyword_that_changes_no_listing_moves_no_time(world: World) -> None:
    docid = world.deliver()
    world.refresh()
    world.load("inbox")
    before = world.mtimes("inbox")
    world.set_keywords(docid, add=["other"])
    world.refresh()
    assert world.mtimes("inbox") == before


def test_a_move_from_new_to_cur_moves_both_times(world: World) -> None:
    docid = world.deliver(flags=RECENT)
    world.refresh()
    world.load("inbox")
    before = world.mtimes("inbox")
    world.set_flags(docid, remove=RECENT)
    world.refresh()
    assert all(new > old for new, old in zip(world.mtimes("inbox"), before, strict=True))


def test_an_unloaded_views_times_move_with_every_change(world: World) -> None:
    """Nobody has looked whether it is concerned; a client that trusts the mtime must look."""
    docid = world.deliver()
    world.refresh()
    before = world.mtimes("flagged")
    world.set_flags(docid, remove=SEEN)
    world.refresh()
    assert all(new > old for new, old in zip(world.mtimes("flagged"), before, strict=True))


def test_two_changes_within_one_tick_of_the_clock_have_two_times(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = world.load("inbox")
    monkeypatch.setattr(time, "time_ns", lambda: view.cur_mtime_ns)
    seen = [view.cur_mtime_ns]
    for _ in range(3):
        view.touch(in_new=False)
        seen.append(view.cur_mtime_ns)
    assert seen == sorted(set(seen))


@pytest.mark.parametrize("parent", ["", "lists", "inbox"])
def test_a_directorys_time_moves_when_a_search_is_saved_in_it(world: World, parent: str) -> None:
    world.save("lists/linux", "tag:linux")
    world.refresh()

    def mtime() -> int:
        return world.tree.directory_attributes(world.directory(parent)).mtime_ns

    before = mtime()
    name = f"{parent}/more" if parent else "more"
    world.save(name, "tag:more")
    world.refresh()
    saved = mtime()
    assert saved > before
    world.forget(name)
    world.refresh()
    assert mtime() > saved


# --- lingering


def read_in_unread(world: World) -> tuple[Docid, View]:
    """Read a message in `unread`, as mutt does; the view has it no longer, but its reader does."""
    docid = world.deliver(flags=0)
    world.refresh()
    view = world.load("unread")
    world.load("all")
    mark_seen(world, docid)
    return docid, view


def mark_seen(world: World, docid: Docid) -> None:
    rename_here(world, "unread/cur", docid, b":2,S")


def rename_here(world: World, path: str, docid: Docid, letters: bytes) -> None:
    """As the handler of rename does it."""
    cur, name = world.directory(path), world.name(docid)
    edit = plan_rename(world.tree, cur, name, cur, name.partition(b":")[0] + letters)
    assert edit is not None
    edit.view.use()
    world.edit(edit)


def test_a_message_read_in_unread_stays_there_until_its_reader_is_gone(world: World) -> None:
    docid, view = read_in_unread(world)
    assert world.matching(view) == []
    assert world.names("unread/cur") == [world.name(docid)]
    cur = world.directory("unread/cur")
    assert world.tree.find_message(cur, world.name(docid)).docid == docid
    assert end_lingering(world.tree, view.last_used_s + 299) == []
    assert world.names("unread/cur") == [world.name(docid)]
    before = world.mtimes("unread")
    expected = gone(world, "unread/cur", world.name(docid))
    assert set(world.forgotten(end_lingering(world.tree, view.last_used_s + 301))) == expected
    assert world.names("unread/cur") == []
    assert world.mtimes("unread")[1] > before[1]
    assert world.mtimes("unread")[0] == before[0]
    assert world.names("all/cur") == [world.name(docid)]


def test_lingering_does_not_end_while_a_handle_is_open(world: World) -> None:
    docid, view = read_in_unread(world)
    view.open_handles = 1
    assert end_lingering(world.tree, view.last_used_s + 10_000) == []
    assert world.names("unread/cur") == [world.name(docid)]
    view.open_handles = 0
    assert len(end_lingering(world.tree, view.last_used_s + 10_000)) == 1


def test_another_view_of_the_same_query_loses_the_message_at_once(world: World) -> None:
    world.save("also-unread", "is:unread")
    world.refresh()
    world.load("also-unread")
    docid, _ = read_in_unread(world)
    assert world.names("also-unread/cur") == []
    assert world.names("unread/cur") == [world.name(docid)]


def test_a_change_made_elsewhere_takes_effect_at_once(world: World) -> None:
    docid = world.deliver(flags=0)
    world.refresh()
    world.load("unread")
    name = world.name(docid)
    world.set_flags(docid, add=SEEN)
    assert set(world.refresh()) == gone(world, "unread/cur", name)
    assert world.names("unread/cur") == []


def test_a_lingering_message_that_is_expunged_leaves_at_once(world: World) -> None:
    docid, view = read_in_unread(world)
    name = world.name(docid)
    world.expunge(docid)
    assert Invalidation(world.directory("unread/cur").ino, name) in world.refresh()
    assert world.names("unread/cur") == []
    assert view.lingering == set()


def test_a_lingering_message_that_matches_again_is_an_ordinary_member(world: World) -> None:
    docid, view = read_in_unread(world)
    world.set_flags(docid, remove=SEEN)
    world.refresh()
    assert view.lingering == set()
    assert end_lingering(world.tree, view.last_used_s + 10_000) == []
    assert world.names("unread/cur") == [world.name(docid)]


def test_a_lingering_message_that_is_changed_again_is_still_renamed(world: World) -> None:
    docid, _ = read_in_unread(world)
    old = world.name(docid)
    world.set_flags(docid, add=FLAGGED)
    assert set(world.refresh()) >= gone(world, "unread/cur", old)
    assert world.names("unread/cur") == [world.name(docid)]


def test_a_lingering_message_that_its_thread_brings_back_is_not_let_go(world: World) -> None:
    first = world.deliver(flags=FLAGGED)
    world.save("threads", "thread:{is:flagged}")
    world.refresh()
    view = world.load("threads")
    rename_here(world, "threads/cur", first, b":2,")
    assert view.lingering == {first}
    answer = world.deliver(flags=FLAGGED, references=["1@example.org"])
    world.refresh()
    assert world.matching(view) == [first, answer]
    end_lingering(world.tree, view.last_used_s + 10_000)
    assert list(view.docids) == [first, answer]


# --- conversations


def test_a_thread_search_follows_changes_of_messages_that_are_not_in_it(world: World) -> None:
    root = world.deliver()
    world.save("threads", "thread:{is:flagged}")
    world.refresh()
    view = world.load("threads")
    answer = world.deliver(flags=FLAGGED, references=["1@example.org"])
    world.refresh()
    assert list(view.docids) == [root, answer] == world.matching(view)
    names = {world.name(root), world.name(answer)}
    world.set_flags(answer, remove=FLAGGED)
    told = {
        each.name for each in world.refresh() if each.parent == world.directory("threads/cur").ino
    }
    assert list(view.docids) == []
    # The root left because another message did.
    assert told == names


# --- very many changes at once


def test_after_very_many_changes_views_are_evaluated_anew_and_readers_keep_what_they_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    docids = [world.deliver(flags=0) for _ in range(10)]
    read, view = read_in_unread(world)
    times = world.mtimes("unread")
    monkeypatch.setattr(refresh_module, "_MOST_FOLLOWED", 3)
    for docid in docids[:4]:
        world.set_flags(docid, add=SEEN)
    news = refresh(world.tree)
    anew = world.tree.views["unread"]
    assert anew is not view
    assert not anew.is_loaded
    assert FoldersChanged(anew) in news
    assert all(after > before for before, after in zip(times, world.mtimes("unread"), strict=True))
    told = world.load_again("unread")
    assert {docid for docid in anew.docids if docid not in anew.lingering} == set(docids[4:])
    assert anew.lingering == {read}
    assert world.name(read) in world.names("unread/cur")
    assert {each.name.partition(b":")[0] for each in told} >= {
        world.name(docid).partition(b":")[0] for docid in docids[:4]
    }
    world.set_flags(docids[5], add=SEEN)
    world.refresh()
    assert docids[5] not in anew


# --- what was reclaimed


def reclaim(world: World, docid: Docid) -> None:
    with world.store.writer.transaction("test", durable=True) as transaction:
        assert transaction.reclaim([docid]).messages == 1


def test_what_was_expunged_and_reclaimed_while_the_mount_slept_is_gone(world: World) -> None:
    stays, goes = world.deliver(), world.deliver()
    lingers, view = read_in_unread(world)
    world.load("inbox")
    before = world.name(goes)
    for docid in (goes, lingers):
        world.expunge(docid)
        reclaim(world, docid)
    told = world.refresh()
    assert before in {each.name for each in told}
    assert world.names("inbox/cur") == [world.name(stays)]
    assert world.names("unread/cur") == []
    assert lingers not in view
    assert not {goes, lingers} & set(world.tree.facts.docids())


def test_a_view_of_conversations_asks_anew_when_one_is_gone_without_a_trace(world: World) -> None:
    first = world.deliver(keywords=("inbox", "todo"))
    answer = world.deliver(references=("1@example.org",))
    world.save("talk", "thread:{tag:todo}")
    world.refresh()
    world.load("talk")
    assert len(world.names("talk/cur")) == 2
    world.expunge(first)
    reclaim(world, first)
    news = refresh(world.tree)
    assert FoldersChanged(world.tree.views["talk"]) in news
    world.load_again("talk")
    assert world.names("talk/cur") == []
    assert world.is_live(answer)


def test_a_mount_that_saw_the_messages_go_has_nothing_to_do_when_they_are_reclaimed(
    world: World,
) -> None:
    docid = world.deliver()
    view = world.load("inbox")
    world.expunge(docid)
    world.refresh()
    times = world.mtimes("inbox")
    reclaim(world, docid)
    assert world.refresh() == []
    assert world.tree.views["inbox"] is view
    assert world.mtimes("inbox") == times


# --- what stays for the next mount


def close_and_open(world: World) -> tuple[Tree, dict[str, tuple[int, int]]]:
    """What a clean unmount and the next mount do with the mtimes."""
    before = {name: world.mtimes(name) for name in world.tree.views}
    states, modseq = world.tree.view_states()
    with world.store.writer.transaction("unmount", durable=True) as transaction:
        transaction.put_view_states(states, modseq)
    return open_again(world), before


def open_again(world: World) -> Tree:
    with world.store.writer.transaction("mount", durable=False) as transaction:
        held = transaction.take_view_states()
    world.tree = Tree(world.store, held)
    return world.tree


def test_the_times_are_the_same_after_a_clean_unmount(world: World) -> None:
    docid = world.deliver()
    world.refresh()
    world.load("inbox")
    world.set_flags(docid, add=FLAGGED)
    world.refresh()
    _, before = close_and_open(world)
    assert {name: world.mtimes(name) for name in world.tree.views} == before
    world.load("inbox")
    assert {name: world.mtimes(name) for name in world.tree.views} == before


def test_the_times_move_when_something_changed_while_nothing_was_mounted(world: World) -> None:
    docid = world.deliver()
    world.refresh()
    world.load("inbox")
    before = {name: world.mtimes(name) for name in world.tree.views}
    states, modseq = world.tree.view_states()
    with world.store.writer.transaction("unmount", durable=True) as transaction:
        transaction.put_view_states(states, modseq)
    world.set_flags(docid, add=FLAGGED)
    open_again(world)
    for name, times in before.items():
        assert all(new > old for new, old in zip(world.mtimes(name), times, strict=True)), name


def test_the_times_move_when_a_change_was_not_shown_before_the_unmount(world: World) -> None:
    docid = world.deliver()
    world.refresh()
    world.load("inbox")
    world.set_flags(docid, add=FLAGGED)
    _, before = close_and_open(world)
    assert all(new > old for new, old in zip(world.mtimes("inbox"), before["inbox"], strict=True))


def test_the_times_move_after_a_crash(world: World) -> None:
    world.deliver()
    world.refresh()
    _, before = close_and_open(world)
    open_again(world)  # the mount before this one took the times away and never put any
    for name, times in before.items():
        assert all(new > old for new, old in zip(world.mtimes(name), times, strict=True)), name


def test_a_view_with_lingering_messages_has_another_time_after_the_unmount(world: World) -> None:
    docid, _ = read_in_unread(world)
    _, before = close_and_open(world)
    world.load("unread")
    assert world.names("unread/cur") == []
    assert world.is_live(docid)
    assert world.mtimes("unread")[1] > before["unread"][1]
    assert world.mtimes("all") == before["all"]


def test_times_that_do_not_hold_any_more_are_not_kept(world: World) -> None:
    world.deliver()
    world.refresh()
    search_id = world.tree.views["inbox"].search.search_id
    with world.store.writer.transaction("unmount", durable=True) as transaction:
        transaction.put_view_states([ViewState(search_id, 1, 2)], world.tree.modseq)
    world.set_keywords(Docid(1), add=["other"])
    open_again(world)
    assert world.tree.directory_attributes(world.directory("inbox/cur")).mtime_ns != 2
    assert world.directory("inbox/cur").kind is Kind.CUR
    assert refresh(world.tree) == []


def test_a_search_saved_anew_takes_its_old_folders_back_from_the_kernel(world: World) -> None:
    """The inodes stay, so only an invalidation makes the kernel forget the names in them."""
    world.save("mine", "tag:one")
    world.refresh()
    view = world.directory("mine")
    world.save("mine", "tag:two", replace=True)
    told = world.refresh()
    assert {Invalidation(view.ino, b"cur"), Invalidation(view.ino, b"new")} <= set(told)


def test_what_a_refresh_owed_before_an_error_is_told_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    docid = world.deliver(flags=0)
    for view in ("all", "inbox"):
        world.load(view)
    name = world.name(docid)
    world.set_flags(docid, add=FLAGGED)
    asked: list[Query] = []

    def failing(
        query: Query, docids: Collection[Docid], source: MatchSource, now_s: float
    ) -> set[Docid]:
        asked.append(query)
        if len(asked) == 2:
            raise StoreError("the disk fails")
        return matching(query, docids, source, now_s)

    with monkeypatch.context() as patch:
        patch.setattr(membership, "matching", failing)
        with pytest.raises(StoreError):
            world.refresh()
    told = set(world.refresh())
    assert gone(world, "all/cur", name) | gone(world, "inbox/cur", name) <= told


def test_a_view_of_threads_moves_when_a_message_outside_it_changes(world: World) -> None:
    asked = world.deliver(subject="apples")
    answer = world.deliver(subject="re", references=["1@example.org"])
    world.save("threads", "thread:{is:flagged} subject:re")
    world.refresh()
    view = world.load("threads")
    assert list(view.docids) == []
    before = world.mtimes("threads")
    world.set_flags(asked, add=FLAGGED)
    world.refresh()
    assert list(view.docids) == [answer]
    assert world.mtimes("threads") > before


def test_a_search_that_takes_too_long_is_given_up_and_can_be_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    docids = [world.deliver() for _ in range(5)]
    view = world.tree.views["all"]
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "EVALUATION_DEADLINE_S", -1.0)
        patch.setattr(index_module, "_STEPS_A_LOOK", 1)
        with pytest.raises(Busy, match="too long"):
            evaluate(world.store.layout, view, world.tree.facts)
    assert not view.is_loaded
    assert list(world.load("all").docids) == docids
