"""mv of directories: searches below go with it, keywords called like them are renamed, and queries that name these."""

import errno

import pytest

from mailfs.errors import EditRefused, KeywordInUse, MailfsError, NoSuchSearch, SearchExists
from mailfs.ids import Keyword
from mailfs.search.query import parse_query
from mailfs.views.searches import RenamedSearches, plan_rename_directory
from tests.views.world import World


def plan(world: World, path: str, new_path: str) -> RenamedSearches:
    above, _, name = new_path.rpartition("/")
    return plan_rename_directory(
        world.tree, world.directory(path), world.directory(above), name.encode()
    )


def mv(world: World, path: str, new_path: str) -> None:
    world.edit(plan(world, path, new_path))


def queries(world: World) -> dict[str, str]:
    """All searches but those of a new store."""
    first = {"inbox", "unread", "flagged", "all"}
    return {
        each.name: each.query for each in world.store.index.searches() if each.name not in first
    }


def saved(world: World, **searches: str) -> None:
    for name, query in searches.items():
        world.save(name, query)
    world.refresh()


def test_mv_renames_the_search_its_keyword_and_what_messages_have(world: World) -> None:
    docid = world.deliver(keywords=("inbox", "work"))
    saved(world, work="tag:work")
    world.load("work")
    mv(world, "work", "job")
    assert queries(world) == {"job": "tag:job"}
    assert world.keywords(docid) == {"inbox", "job"}
    assert "work" not in world.tree.views
    assert [*world.load("job").docids] == [docid]
    assert world.names("job/cur") == [world.name(docid)]


def test_mv_keeps_inodes_chosen_names_and_side_cars(world: World) -> None:
    docid = world.deliver(keywords=("work",))
    saved(world, work="tag:work")
    world.load("work")
    world.rename("work/cur", world.name(docid), "work/cur", b"mine,U=7:2,S")
    before = world.directory("work/cur").ino, world.tree.area(world.directory("work"))
    mv(world, "work", "job")
    assert (world.directory("job/cur").ino, world.tree.area(world.directory("job"))) == before
    assert world.find_or_none("job/cur", b"mine,U=7:2,S") == docid
    world.load("job")
    assert world.names("job/cur") == [b"mine,U=7:2,S"]


def test_mv_tells_the_kernel_that_the_old_name_is_gone(world: World) -> None:
    saved(world, work="tag:work")
    told = world.edit(plan(world, "work", "job"))
    assert (world.directory("").ino, b"work") in told


def test_mv_of_a_search_that_is_no_label_renames_no_keyword(world: World) -> None:
    docid = world.deliver(subject="apples", keywords=("work",))
    saved(world, fruit="subject:apples", work="tag:work")
    mv(world, "fruit", "apple")
    assert queries(world) == {"apple": "subject:apples", "work": "tag:work"}
    assert world.keywords(docid) == {"work"}


@pytest.mark.parametrize(
    "query", ["tag:work is:unread", "tag:other", "tag:WORK", "not tag:work", "tag:work/deep"]
)
def test_only_a_query_that_is_just_the_keyword_of_the_name_makes_it_the_searchs_own(
    world: World, query: str
) -> None:
    docid = world.deliver(keywords=("work",))
    saved(world, work=query)
    mv(world, "work", "job")
    assert queries(world) == {"job": query}
    assert world.keywords(docid) == {"work"}


def test_searches_below_go_with_it_each_with_its_keyword(world: World) -> None:
    docid = world.deliver(keywords=("work", "work/plans", "work/deep/er"))
    world.save("work", "tag:work")
    world.save("work/plans", "tag:work/plans")
    world.save("work/deep/er", "tag:work/deep/er")
    world.save("work/fresh", "tag:work and is:unread")
    world.save("workshop", "tag:workshop")
    world.refresh()
    mv(world, "work", "job")
    assert queries(world) == {
        "job": "tag:job",
        "job/plans": "tag:job/plans",
        "job/deep/er": "tag:job/deep/er",
        "job/fresh": "tag:job and not is:seen",
        "workshop": "tag:workshop",
    }
    assert world.keywords(docid) == {"job", "job/plans", "job/deep/er"}


def test_a_plain_folder_is_moved_with_all_that_is_below(world: World) -> None:
    docid = world.deliver(keywords=("lists/linux",))
    world.save("lists/linux", "tag:lists/linux")
    world.save("lists/python", "subject:python")
    world.refresh()
    mv(world, "lists", "read")
    assert queries(world) == {"read/linux": "tag:read/linux", "read/python": "subject:python"}
    assert world.keywords(docid) == {"read/linux"}
    assert world.tree.child_or_none(world.directory(""), b"lists") is None


@pytest.mark.parametrize(
    ("path", "new_path", "renamed"),
    [
        ("work", "lists/work", {"lists/work": "tag:lists/work", "lists/linux": "tag:linux"}),
        ("lists/linux", "linux", {"work": "tag:work", "linux": "tag:linux"}),
        ("lists/linux", "work/linux", {"work": "tag:work", "work/linux": "tag:linux"}),
        ("lists", "work/lists", {"work": "tag:work", "work/lists/linux": "tag:linux"}),
    ],
)
def test_mv_goes_down_and_up(
    world: World, path: str, new_path: str, renamed: dict[str, str]
) -> None:
    world.save("work", "tag:work")
    world.save("lists/linux", "tag:linux")
    world.refresh()
    mv(world, path, new_path)
    assert queries(world) == renamed


def test_other_searches_that_name_the_keyword_are_rewritten(world: World) -> None:
    docid = world.deliver(keywords=("work", "urgent"), flags=0)
    saved(
        world,
        work="tag:work",
        both="tag:urgent tag:work",
        fresh="is:unread and not tag:work",
        threads="thread:{tag:work or tag:urgent}",
        words='subject:work "tag:work"',
        prefix="tag:workshop or tag:work/plans",
    )
    before = queries(world)
    world.load("both")
    mv(world, "work", "job")
    after = queries(world)
    for name, query in (
        ("both", "tag:urgent tag:job"),
        ("fresh", "is:unread and not tag:job"),
        ("threads", "thread:{tag:job or tag:urgent}"),
    ):
        assert parse_query(after[name]) == parse_query(query)
    assert (after["words"], after["prefix"]) == (before["words"], before["prefix"])
    assert [*world.load("both").docids] == [docid]
    assert [*world.load("threads").docids] == [docid]
    assert [*world.load("fresh").docids] == []


def test_a_rewritten_search_keeps_what_rm_does_in_it(world: World) -> None:
    world.save("work", "tag:work", "untag")
    world.save("both", "tag:urgent tag:work", "refuse")
    world.refresh()
    mv(world, "work", "job")
    assert world.store.index.search("job").on_rm == "untag"
    assert world.store.index.search("both").on_rm == "refuse"


def test_a_query_that_names_no_such_keyword_stays_as_it_was_typed(world: World) -> None:
    saved(world, work="tag:work", typed="is:unread   AND (subject:apples)")
    before = queries(world)["typed"]
    mv(world, "work", "job")
    assert queries(world)["typed"] == before


def test_a_keyword_that_messages_have_already_is_not_mixed_in(world: World) -> None:
    """Nobody could take the two apart again."""
    docid = world.deliver(keywords=("work",))
    other = world.deliver(keywords=("job",))
    saved(world, work="tag:work", fresh="tag:work is:unread")
    before = queries(world)
    edit = plan(world, "work", "job")
    with pytest.raises(KeywordInUse) as caught:
        world.edit(edit)
    assert caught.value.errno == errno.EPERM
    world.refresh()
    assert queries(world) == before
    assert (world.keywords(docid), world.keywords(other)) == ({"work"}, {"job"})


def test_a_keyword_that_only_expunged_messages_have_is_free(world: World) -> None:
    docid = world.deliver(keywords=("work",))
    world.expunge(world.deliver(keywords=("job", "work")))
    saved(world, work="tag:work")
    mv(world, "work", "job")
    assert world.keywords(docid) == {"job"}


def test_mv_to_another_case_is_a_rename_of_the_search_alone(world: World) -> None:
    docid = world.deliver(keywords=("work",))
    saved(world, work="tag:work")
    edit = plan(world, "work", "Work")
    assert edit == RenamedSearches("work", "Work", (("work", "Work"),))
    world.edit(edit)
    assert queries(world) == {"Work": "tag:work"}
    assert world.keywords(docid) == {"work"}


def test_mv_back_is_as_it_was(world: World) -> None:
    docid = world.deliver(keywords=("work", "work/plans"))
    world.save("work", "tag:work")
    world.save("work/plans", "tag:work/plans")
    world.refresh()
    before = queries(world)
    mv(world, "work", "job")
    mv(world, "job", "work")
    assert queries(world) == before
    assert world.keywords(docid) == {"work", "work/plans"}


def test_names_are_passed_on_within_one_mv(world: World) -> None:
    """What is moved into the place of what is moved away, one level up."""
    world.save("a/a", "tag:a/a")
    world.save("a/a/a", "tag:a/a/a")
    docid = world.deliver(keywords=("a/a", "a/a/a"))
    world.refresh()
    mv(world, "a/a", "b")
    assert queries(world) == {"b": "tag:b", "b/a": "tag:b/a"}
    assert world.keywords(docid) == {"b", "b/a"}


@pytest.mark.parametrize(
    ("names", "path", "new_path"),
    [
        (("x/x", "x/x/x"), "x/x", "x/x/y"),
        (("x", "x/y"), "x", "x/y/z"),
        (("x",), "x", "x/y"),
    ],
)
def test_a_directory_is_not_put_into_itself(
    world: World, names: tuple[str, ...], path: str, new_path: str
) -> None:
    for name in names:
        world.save(name, "is:unread")
    world.refresh()
    with pytest.raises(EditRefused) as caught:
        plan(world, path, new_path)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("path", "parent", "name", "code"),
    [
        ("inbox/cur", "", b"cure", errno.EPERM),
        ("inbox/tmp", "work", b"tmp2", errno.EPERM),
        ("inbox", "work/cur", b"x", errno.EPERM),
        ("inbox", "work/tmp", b"x", errno.EPERM),
        ("inbox", "", b"work", errno.ENOTEMPTY),
        ("inbox", "work", b"plans", errno.ENOTEMPTY),
        ("inbox", "work", b"cur", errno.EPERM),
        ("inbox", "", b"lists", errno.ENOTEMPTY),
        ("inbox", "", b"tmp", errno.EPERM),
        ("inbox", "", b".mailfs", errno.EPERM),
        ("inbox", "", b"a\nb", errno.EINVAL),
        ("inbox", "", b"\xff", errno.EILSEQ),
    ],
)
def test_mv_refuses_places_where_no_search_can_be(
    world: World, path: str, parent: str, name: bytes, code: int
) -> None:
    world.save("work", "tag:work")
    world.save("work/plans", "tag:work/plans")
    world.save("lists/linux", "tag:linux")
    world.refresh()
    with pytest.raises(EditRefused) as caught:
        plan_rename_directory(world.tree, world.directory(path), world.directory(parent), name)
    assert caught.value.errno == code
    assert str(caught.value)


@pytest.mark.parametrize("another", ["taken", "forgotten"])
def test_mv_that_somebody_was_faster_than_changes_nothing(world: World, another: str) -> None:
    docid = world.deliver(keywords=("work", "work/plans"))
    world.save("work", "tag:work")
    world.save("work/plans", "tag:work/plans")
    world.refresh()
    edit = plan(world, "work", "job")
    if another == "taken":
        world.save("job/plans", "is:unread")
    else:
        world.forget("work")
    before = queries(world)
    expected: type[MailfsError] = SearchExists if another == "taken" else NoSuchSearch
    with pytest.raises(expected):
        world.edit(edit)
    world.refresh()
    assert queries(world) == before
    assert world.keywords(docid) == {"work", "work/plans"}


def test_a_search_whose_query_was_changed_meanwhile_keeps_the_change(world: World) -> None:
    """The plan was made of what the mount had seen."""
    world.save("work", "tag:work")
    world.save("fresh", "tag:work is:unread")
    world.refresh()
    edit = plan(world, "work", "job")
    world.save("fresh", "subject:apples", replace=True)
    world.edit(edit)
    assert queries(world)["fresh"] == "subject:apples"


def test_a_search_that_cannot_be_read_does_not_hinder_the_others(world: World) -> None:
    world.save("work", "tag:work")
    world.save("bad", "subject:(")
    world.refresh()
    assert "bad" in world.tree.problems
    mv(world, "work", "job")
    assert queries(world) == {"job": "tag:job", "bad": "subject:("}
    world.forget("bad")


def test_a_search_below_that_cannot_be_read_goes_with_its_directory(world: World) -> None:
    world.save("work", "tag:work")
    world.save("work/bad", "subject:(")
    world.refresh()
    mv(world, "work", "job")
    after = queries(world)
    for name in set(after) - {"job"}:
        world.forget(name)
    assert after == {"job": "tag:job", "job/bad": "subject:("}


def test_messages_of_a_renamed_keyword_are_changed_for_all_who_read_changes(world: World) -> None:
    docid = world.deliver(keywords=("work",))
    saved(world, work="tag:work", fresh="tag:job")
    world.load("fresh")
    mv(world, "work", "office")
    assert world.keywords(docid) == {"office"}
    with world.store.writer.transaction("test", durable=False) as transaction:
        transaction.rename_keyword(Keyword("office"), Keyword("job"))
    world.refresh()
    assert world.names("fresh/cur") == [world.name(docid)]
