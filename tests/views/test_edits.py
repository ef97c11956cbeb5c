"""What rename, unlink, mkdir and rmdir mean, planned on a tree and committed to its store."""

import errno

import pytest

from mailfs.errors import EditRefused, NotFound
from mailfs.ids import Docid, Keyword
from mailfs.message.keywords import (
    ANSWERED,
    DELETED,
    DRAFT,
    FLAGGED,
    FORWARDED,
    LETTER_BITS,
    RECENT,
    SEEN,
)
from mailfs.views.edits import (
    Leaving,
    Removal,
    plan_rename,
    plan_unlink,
)
from mailfs.views.searches import ForgottenSearch, NewSearch, plan_mkdir, plan_rmdir
from tests.views.world import World


def rename(world: World, path: str, docid: Docid, new_path: str, letters: bytes) -> None:
    """Rename a message as a client does, by its name of now to its base and these letters."""
    name = world.name(docid)
    new_name = name.partition(b":")[0] + letters
    directory, new_directory = world.directory(path), world.directory(new_path)
    edit = plan_rename(world.tree, directory, name, new_directory, new_name)
    assert edit is not None
    world.edit(edit)


@pytest.mark.parametrize(
    ("letter", "bit"),
    [
        (b"D", DRAFT),
        (b"F", FLAGGED),
        (b"P", FORWARDED),
        (b"R", ANSWERED),
        (b"S", SEEN),
        (b"T", DELETED),
    ],
)
def test_a_letter_set_and_cleared_by_rename_is_a_flag_in_the_store(
    world: World, letter: bytes, bit: int
) -> None:
    docid = world.deliver(flags=0)
    world.refresh()
    rename(world, "inbox/cur", docid, "inbox/cur", b":2," + letter)
    assert world.flags(docid) & LETTER_BITS == bit
    world.load("inbox")
    (name,) = world.names("inbox/cur")
    assert name.endswith(b":2," + letter)
    cur = world.directory("inbox/cur")
    edit = plan_rename(world.tree, cur, name, cur, name.removesuffix(letter))
    assert edit is not None
    world.edit(edit)
    assert world.flags(docid) == 0


def test_rename_replaces_all_letters_and_leaves_unknown_ones_out(world: World) -> None:
    docid = world.deliver(flags=SEEN | FLAGGED)
    world.refresh()
    rename(world, "inbox/cur", docid, "inbox/cur", b":2,zRaP")
    assert world.flags(docid) == ANSWERED | FORWARDED
    assert world.name(docid).endswith(b":2,PR")


def test_rename_from_new_to_cur_ends_being_recent_everywhere_and_back_begins_it(
    world: World,
) -> None:
    docid = world.deliver(flags=RECENT)
    world.refresh()
    world.load("all")
    assert len(world.names("all/new")) == 1
    rename(world, "inbox/new", docid, "inbox/cur", b":2,S")
    assert world.flags(docid) == SEEN
    assert world.names("all/new") == []
    assert world.names("all/cur") == [world.name(docid)]
    rename(world, "inbox/cur", docid, "inbox/new", b"")
    assert world.flags(docid) == RECENT


def test_a_rename_that_changes_nothing_writes_nothing(world: World) -> None:
    docid = world.deliver(flags=SEEN)
    world.refresh()
    cur, name = world.directory("inbox/cur"), world.name(docid)
    assert plan_rename(world.tree, cur, name, cur, name) is None
    assert plan_rename(world.tree, cur, name, cur, name + b"S") is None


def test_a_rename_of_a_name_that_is_not_true_any_more_is_not_found(world: World) -> None:
    docid = world.deliver(flags=SEEN)
    world.refresh()
    cur, name = world.directory("inbox/cur"), world.name(docid)
    world.set_flags(docid, add=FLAGGED)
    world.refresh()
    with pytest.raises(NotFound):
        plan_rename(world.tree, cur, name, cur, name.removesuffix(b"S"))


def test_a_message_gets_the_base_name_a_client_chose_in_this_view_only(world: World) -> None:
    docid = world.deliver()
    world.load("inbox")
    cur = world.directory("inbox/cur")
    edit = plan_rename(world.tree, cur, world.name(docid), cur, b"my-own-name,U=7:2,FSXx")
    assert edit is not None
    world.edit(edit)
    assert world.names("inbox/cur") == [b"my-own-name,U=7:2,FSXx"]
    world.load("all")
    assert world.names("all/cur") == [world.name(docid)]


@pytest.mark.parametrize("letters", [b":2,F", b":2,"])
def test_a_base_name_of_another_message_is_taken(world: World, letters: bytes) -> None:
    docid, other = world.deliver(), world.deliver()
    world.refresh()
    cur = world.directory("inbox/cur")
    taken = world.name(other).partition(b":")[0] + letters
    with pytest.raises(EditRefused) as caught:
        plan_rename(world.tree, cur, world.name(docid), cur, taken)
    assert caught.value.errno == errno.EEXIST


def test_a_name_is_not_letters_alone(world: World) -> None:
    docid = world.deliver()
    cur = world.directory("inbox/cur")
    with pytest.raises(EditRefused) as caught:
        plan_rename(world.tree, cur, world.name(docid), cur, b":2,S")
    assert caught.value.errno == errno.EINVAL


# --- leaving


def remove(world: World, path: str, docid: Docid) -> Removal:
    removal = plan_unlink(world.tree, world.directory(path), world.name(docid))
    assert isinstance(removal, Removal)
    world.edit(removal)
    return removal


def test_rm_in_a_label_view_takes_its_keyword_off_and_the_last_one_expunges(world: World) -> None:
    docid = world.deliver(keywords=("inbox", "work"))
    world.save("work", "tag:work")
    world.refresh()
    world.load("inbox")
    world.load("work")
    assert remove(world, "inbox/cur", docid).leaving is Leaving.UNLINK
    assert world.is_live(docid)
    assert world.keywords(docid) == {"work"}
    assert world.names("inbox/cur") == []
    assert world.names("work/cur") == [world.name(docid)]
    remove(world, "work/cur", docid)
    assert not world.is_live(docid)
    assert world.names("work/cur") == []


def test_rm_in_a_label_view_of_two_keywords_takes_both_off(world: World) -> None:
    docid = world.deliver(keywords=("inbox", "work", "urgent"))
    world.save("both", "tag:work and tag:urgent and not tag:spam")
    world.refresh()
    assert remove(world, "both/cur", docid).keywords == {Keyword("work"), Keyword("urgent")}
    assert world.keywords(docid) == {"inbox"}
    assert world.is_live(docid)


@pytest.mark.parametrize("view", ["all", "flagged"])
def test_rm_in_a_query_view_expunges_whatever_the_keywords(world: World, view: str) -> None:
    docid = world.deliver(keywords=("inbox", "work"), flags=FLAGGED)
    world.refresh()
    world.load("inbox")
    assert remove(world, f"{view}/cur", docid).leaving is Leaving.EXPUNGE
    assert not world.is_live(docid)
    assert world.names("inbox/cur") == []


@pytest.mark.parametrize(
    ("on_rm", "is_live", "keywords"),
    [
        ("unlink", False, {"work"}),
        ("untag", True, set()),
        ("expunge", False, {"work"}),
    ],
)
def test_a_saved_search_may_say_what_rm_does(
    world: World, on_rm: str, is_live: bool, keywords: set[str]
) -> None:
    docid = world.deliver(keywords=("work",))
    world.save("work", "tag:work", on_rm)
    world.refresh()
    remove(world, "work/cur", docid)
    assert world.is_live(docid) == is_live
    assert world.keywords(docid) == keywords


def test_a_saved_search_may_refuse_rm(world: World) -> None:
    docid = world.deliver(keywords=("work",))
    world.save("work", "tag:work", "refuse")
    world.refresh()
    with pytest.raises(EditRefused, match="on-rm = refuse") as caught:
        remove(world, "work/cur", docid)
    assert caught.value.errno == errno.EPERM
    assert world.is_live(docid)


@pytest.mark.parametrize("on_rm", ["unlink", "untag"])
def test_rm_is_refused_where_there_is_no_keyword_to_take_off(world: World, on_rm: str) -> None:
    docid = world.deliver()
    world.save("marked", "is:seen", on_rm)
    world.refresh()
    with pytest.raises(EditRefused, match="names no keyword"):
        remove(world, "marked/cur", docid)
    assert world.is_live(docid)


def test_rm_of_a_name_that_is_not_true_is_not_found(world: World) -> None:
    docid = world.deliver()
    world.refresh()
    for path, name in (
        ("inbox/cur", world.name(docid) + b"T"),
        ("inbox/new", world.name(docid)),
        ("unread/cur", world.name(docid)),
        ("inbox", b"cur"),
        ("inbox/tmp", b"anything"),
    ):
        with pytest.raises(NotFound):
            plan_unlink(world.tree, world.directory(path), name)


# --- mkdir and rmdir


@pytest.mark.parametrize(
    ("parent", "name", "saved", "query"),
    [
        ("", "work", "work", "tag:work"),
        ("", "My-Work", "My-Work", "tag:my-work"),
        ("", "from:bob is:unread", "from:bob is:unread", "from:bob is:unread"),
        ("", "subject:(apple or pear)", "subject:(apple or pear)", "subject:(apple or pear)"),
        ("", "*", "*", "*"),
        ("", "Sent Items", "Sent Items", "tag:sent-items"),
        ("inbox", "old", "inbox/old", "tag:inbox/old"),
        ("lists", "python", "lists/python", "tag:lists/python"),
        ("", "bücher", "bücher", "tag:bücher"),
    ],
)
def test_mkdir_saves_a_word_as_its_keyword_and_a_query_as_itself(
    world: World, parent: str, name: str, saved: str, query: str
) -> None:
    world.save("lists/linux", "tag:linux")
    world.refresh()
    edit = plan_mkdir(world.tree, world.directory(parent), name.encode())
    assert edit == NewSearch(saved, query)
    world.edit(edit)
    assert world.store.index.search(saved).query == query
    assert world.directory(f"{saved}/cur").view is world.tree.views[saved]


@pytest.mark.parametrize(
    ("parent", "name", "code"),
    [
        ("", b"inbox", errno.EEXIST),
        ("inbox", b"cur", errno.EEXIST),
        ("", b"lists", errno.EEXIST),
        ("", b"cur", errno.EPERM),
        ("", b"tmp", errno.EPERM),
        ("", b".mailfs", errno.EPERM),
        ("inbox/cur", b"work", errno.EPERM),
        ("inbox/tmp", b"work", errno.EPERM),
        ("", b"\xff", errno.EILSEQ),
        ("", b"subject:(", errno.EINVAL),
        ("", b"date:never", errno.EINVAL),
        ("", b"a\nb", errno.EINVAL),
    ],
)
def test_mkdir_refuses_what_cannot_be_a_search(
    world: World, parent: str, name: bytes, code: int
) -> None:
    world.save("lists/linux", "tag:linux")
    world.refresh()
    with pytest.raises(EditRefused) as caught:
        plan_mkdir(world.tree, world.directory(parent), name)
    assert caught.value.errno == code
    assert str(caught.value)


def test_mkdir_of_a_folder_above_a_search_gives_the_folder_a_view_of_its_own(world: World) -> None:
    world.save("lists/linux", "tag:linux")
    world.refresh()
    world.save("lists", "tag:lists")
    world.refresh()
    names = [entry.name for entry in world.tree.entries(world.directory("lists"))]
    assert names == [b"cur", b"linux", b"new", b"tmp"]


def test_rmdir_forgets_the_search_and_no_message(world: World) -> None:
    docid = world.deliver(keywords=("work",))
    world.save("work", "tag:work")
    world.refresh()
    world.load("work")
    edit = plan_rmdir(world.tree, world.directory(""), b"work")
    assert edit == ForgottenSearch("work")
    world.edit(edit)
    assert "work" not in world.tree.views
    assert world.is_live(docid)
    assert world.keywords(docid) == {"work"}


def test_the_last_search_of_a_folder_takes_the_folder_with_it(world: World) -> None:
    world.save("lists/linux", "tag:linux")
    world.refresh()
    world.edit(plan_rmdir(world.tree, world.directory("lists"), b"linux"))
    assert world.tree.child_or_none(world.directory(""), b"lists") is None


@pytest.mark.parametrize(
    ("parent", "name", "code"),
    [
        ("", b"lists", errno.ENOTEMPTY),
        ("", b"inbox", errno.ENOTEMPTY),
        ("inbox", b"cur", errno.EPERM),
        ("inbox", b"tmp", errno.EPERM),
    ],
)
def test_rmdir_refuses_what_holds_searches_and_a_views_own_folders(
    world: World, parent: str, name: bytes, code: int
) -> None:
    world.save("lists/linux", "tag:linux")
    world.save("inbox/old", "tag:old")
    world.refresh()
    with pytest.raises(EditRefused) as caught:
        plan_rmdir(world.tree, world.directory(parent), name)
    assert caught.value.errno == code


def test_rmdir_of_what_is_not_there_is_not_found(world: World) -> None:
    for parent, name in (("", b"nothing"), ("inbox/cur", b"nothing")):
        with pytest.raises(NotFound):
            plan_rmdir(world.tree, world.directory(parent), name)
