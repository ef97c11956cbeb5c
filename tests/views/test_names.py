"""Names and inodes: only what is true now is found, and a listing survives what happens underneath."""

import random

import pytest

from mailfs.errors import NoSuchMessage, NotFound
from mailfs.ids import Docid
from mailfs.message.keywords import FLAGGED, RECENT, SEEN
from mailfs.views.tree import ROOT_INO, Kind, Tree, docid_of_or_none, message_ino
from tests.views.world import World


def found_or_none(world: World, path: str, name: bytes) -> Docid | None:
    try:
        return world.tree.find_message(world.directory(path), name).docid
    except NotFound:
        return None


@pytest.mark.parametrize("is_loaded", [True, False])
def test_the_true_name_is_found_and_every_other_is_not(world: World, is_loaded: bool) -> None:
    docid = world.deliver(flags=SEEN)
    world.refresh()
    if is_loaded:
        world.load("inbox")
    name = world.name(docid)
    base = name.partition(b":")[0]
    assert name == base + b":2,S"
    assert found_or_none(world, "inbox/cur", name) == docid
    assert found_or_none(world, "all/cur", name) == docid
    for other in (
        base,
        base + b":2,",
        base + b":2,FS",
        base + b":2,SS",
        base + b":1,S",
        b"0" + name,
        name.replace(b",S=", b",S=1"),
        name.replace(b".M", b".M0"),
        name.replace(world.store.layout.store_id, b"aaaaaaaa"),
        b"",
        b":2,S",
        b"\xff\xfe",
    ):
        assert found_or_none(world, "inbox/cur", other) is None, other
    for elsewhere in ("inbox/new", "inbox/tmp", "inbox", "unread/cur", "unread/new", ""):
        assert found_or_none(world, elsewhere, name) is None, elsewhere


@pytest.mark.parametrize("is_loaded", [True, False])
def test_a_name_is_gone_as_soon_as_the_flags_are_others(world: World, is_loaded: bool) -> None:
    docid = world.deliver(flags=SEEN)
    world.refresh()
    if is_loaded:
        world.load("inbox")
    before = world.name(docid)
    assert found_or_none(world, "inbox/cur", before) == docid
    world.set_flags(docid, add=FLAGGED)
    world.refresh()
    assert found_or_none(world, "inbox/cur", before) is None
    assert found_or_none(world, "inbox/cur", world.name(docid)) == docid


def test_in_new_both_spellings_of_no_letters_are_the_same_message(world: World) -> None:
    docid = world.deliver(flags=RECENT)
    flagged = world.deliver(flags=RECENT | FLAGGED)
    base = world.name(docid)
    assert b":" not in base
    assert found_or_none(world, "inbox/new", base) == docid
    assert found_or_none(world, "inbox/new", base + b":2,") == docid
    assert found_or_none(world, "inbox/new", base + b":2,S") is None
    assert found_or_none(world, "inbox/cur", base + b":2,") is None
    name = world.name(flagged)
    assert name.endswith(b":2,F")
    assert found_or_none(world, "inbox/new", name) == flagged
    assert found_or_none(world, "inbox/new", name.removesuffix(b":2,F")) is None
    assert found_or_none(world, "inbox/new", name.removesuffix(b"F")) is None


@pytest.mark.parametrize("looked_at", ["inbox", "all"])
def test_an_expunged_message_has_no_name_in_loaded_and_unloaded_views(
    world: World, looked_at: str
) -> None:
    docid = world.deliver()
    world.refresh()
    world.load("inbox")
    name = world.name(docid)
    assert found_or_none(world, f"{looked_at}/cur", name) == docid
    world.expunge(docid)
    world.refresh()
    assert found_or_none(world, f"{looked_at}/cur", name) is None


def test_an_expunged_message_has_no_attributes(world: World) -> None:
    docid = world.deliver()
    world.refresh()
    world.load("inbox")
    assert world.tree.message_attributes(docid).nlink == 1
    world.expunge(docid)
    world.refresh()
    with pytest.raises(NoSuchMessage):
        world.tree.message_attributes(docid)


def test_attributes_are_those_of_the_bytes_and_of_the_time_of_receipt(world: World) -> None:
    docid = world.deliver(received_s=1_234_567_890)
    attributes = world.tree.message_attributes(docid)
    assert attributes.size == len(world.store.load(docid))
    assert attributes.mtime_ns == 1_234_567_890_000_000_000
    assert attributes.ino == message_ino(docid)
    assert docid_of_or_none(attributes.ino) == docid
    assert not attributes.is_directory


def shown_inodes(tree: Tree) -> dict[str, int]:
    return {f"{each.path}/{each.kind.name}": each.ino for each in tree.iter_directories()}


def test_inodes_are_the_same_in_a_new_tree_and_different_from_each_other(world: World) -> None:
    for name in ("lists/linux", "lists/linux/old", "lists/python"):
        world.save(name, "is:flagged")
    docids = [world.deliver() for _ in range(20)]
    world.refresh()
    before = shown_inodes(world.tree)
    assert {"/FOLDER", "lists/FOLDER", "lists/linux/VIEW", "lists/linux/old/CUR"} <= set(before)
    again = Tree(world.store, {})
    assert shown_inodes(again) == before
    messages = [again.message_attributes(docid).ino for docid in docids]
    assert messages == [world.tree.message_attributes(docid).ino for docid in docids]
    assert len({*before.values(), *messages}) == len(before) + len(messages)


def test_a_forgotten_search_never_gives_its_inode_to_another(world: World) -> None:
    world.save("one", "is:flagged")
    world.refresh()
    before = {world.directory(path).ino for path in ("one", "one/cur", "one/new", "one/tmp")}
    world.forget("one")
    world.save("two", "is:flagged")
    world.save("one", "is:flagged")
    world.refresh()
    after = {each.ino for each in world.tree.iter_directories()}
    assert not before & after
    for ino in before:
        with pytest.raises(NotFound):
            world.tree.directory(ino)


def test_a_directory_counts_its_directories(world: World) -> None:
    world.save("lists/linux", "is:flagged")
    world.save("inbox/old", "is:flagged")
    world.refresh()

    def nlink(path: str) -> int:
        return world.tree.directory_attributes(world.directory(path)).nlink

    assert nlink("") == 2 + 5
    assert nlink("lists") == 2 + 1
    assert nlink("inbox") == 2 + 4
    assert nlink("inbox/cur") == 2
    assert [entry.name for entry in world.tree.entries(world.directory("inbox"))] == [
        b"cur",
        b"new",
        b"old",
        b"tmp",
    ]
    assert world.tree.parent(world.directory("inbox/old")) == world.directory("inbox")
    assert world.tree.parent(world.directory("inbox/cur")) == world.directory("inbox")
    assert world.tree.parent(world.directory("lists/linux")) == world.directory("lists")
    assert world.tree.parent(world.directory("")).ino == ROOT_INO


def test_a_view_of_no_messages_is_an_empty_maildir(world: World) -> None:
    view = world.load("flagged")
    assert list(view.docids) == []
    assert world.names("flagged/cur") == world.names("flagged/new") == []
    assert view.is_loaded


@pytest.mark.parametrize("seed", range(8))
def test_a_listing_in_pieces_skips_and_repeats_none_that_stayed(world: World, seed: int) -> None:
    """As a client lists a large folder: some entries, then the same again from the last cookie on."""
    chance = random.Random(seed)
    stayed = {world.deliver(keywords=("inbox", "kept")) for _ in range(60)}
    passing = [world.deliver() for _ in range(60)]
    world.refresh()
    world.load("inbox")
    directory = world.directory("inbox/cur")
    listed: list[int] = []
    after = Docid(0)
    while True:
        piece = []
        for cookie, _, name in world.tree.iter_messages(directory, after):
            piece.append(cookie)
            assert world.tree.find_message(directory, name).docid == cookie
            if len(piece) == 7:
                break
        if not piece:
            break
        listed += piece
        after = Docid(piece[-1])
        if passing:
            world.expunge(passing.pop(chance.randrange(len(passing))))
        if len(listed) < 80:
            world.deliver()
        world.refresh()
    assert len(listed) == len(set(listed))
    assert listed == sorted(listed)
    assert stayed <= set(listed)


def test_one_iteration_survives_changes_between_its_entries(world: World) -> None:
    stayed = {world.deliver(keywords=("inbox", "kept")) for _ in range(30)}
    leaving = [world.deliver() for _ in range(30)]
    world.refresh()
    view = world.load("inbox")
    seen = []
    for docid in view.iter_after(0):
        seen.append(docid)
        if leaving:
            world.expunge(leaving.pop())
            world.refresh()
    assert stayed <= set(seen)
    assert len(seen) == len(set(seen))


def test_a_message_moved_between_new_and_cur_is_listed_in_one_of_them(world: World) -> None:
    docid = world.deliver(flags=RECENT)
    world.refresh()
    world.load("inbox")
    assert len(world.names("inbox/new")) == 1
    assert world.names("inbox/cur") == []
    world.set_flags(docid, remove=RECENT)
    world.refresh()
    assert world.names("inbox/new") == []
    assert world.names("inbox/cur") == [world.name(docid)]


def test_a_broken_saved_search_is_a_problem_and_hides_only_itself(world: World) -> None:
    world.save("good", "is:flagged")
    world.save("bad", "is:flagged")
    with world.store.writer.transaction("test", durable=False) as transaction:
        transaction.searches.save("bad", "subject:(", replace=True)
    world.refresh()
    assert set(world.tree.problems) == {"bad"}
    assert "subject:(" in world.tree.problems["bad"]
    assert "good" in world.tree.views
    assert "bad" not in world.tree.views
    assert world.tree.child_or_none(world.directory(""), b"bad") is None
    assert set(Tree(world.store, {}).problems) == {"bad"}
    world.save("bad", "is:draft", replace=True)
    world.refresh()
    assert world.tree.problems == {}
    assert world.directory("bad").kind == Kind.VIEW
