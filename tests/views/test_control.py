"""`.mailfs`: where each search is found, under which inode, what its files say, and what writing a query means."""

import errno
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailfs.errors import EditRefused, NoSuchSearch, NotFound, UsageError
from mailfs.fuse.problems import MAX_PROBLEMS
from mailfs.ids import Keyword
from mailfs.message.keywords import FLAGGED, SEEN
from mailfs.search.names import check_search_name
from mailfs.search.query import MAX_QUERY_CHARS, parse_query
from mailfs.store.index import Index, SavedSearch
from mailfs.store.store import Store
from mailfs.views import control
from mailfs.views.control import (
    COUNT_DEADLINE_S,
    ROOT,
    Control,
    ControlKind,
    ControlTree,
    count_in_index,
    count_in_memory_or_none,
    explain,
    is_control_ino,
    query_content,
    query_of_content,
)
from mailfs.views.edits import commit
from mailfs.views.files import is_file_ino
from mailfs.views.searches import check_on_rm, plan_query
from mailfs.views.tree import Tree, docid_of_or_none
from tests.fakes import PROJECT
from tests.views.world import World, error_of

FILES = {"count", "explain", "query", "unread"}


def walk(
    controls: ControlTree, above: Control = ROOT, path: str = ""
) -> Iterator[tuple[str, Control]]:
    """Everything in `.mailfs`, by path."""
    for name, node in controls.entries(above):
        below = f"{path}/{name.decode()}" if path else name.decode()
        yield below, node
        if node.is_directory:
            yield from walk(controls, node, below)


def found(world: World) -> dict[str, Control]:
    nodes = list(walk(ControlTree(world.tree)))
    assert len({path for path, _ in nodes}) == len(nodes)
    return dict(nodes)


def directories(nodes: dict[str, Control]) -> dict[str, str]:
    """Where each search is, by its name."""
    return {
        node.search.name: path.removeprefix("views/")
        for path, node in nodes.items()
        if node.kind == ControlKind.SEARCH and node.search is not None
    }


def saved(world: World, **searches: str) -> None:
    for name, query in searches.items():
        world.save(name, query)
    world.refresh()


def search(world: World, name: str) -> SavedSearch:
    return world.store.index.search(name)


def explained(world: World, name: str) -> dict[str, str]:
    """The lines of `explain`, by what stands in their first column."""
    lines = explain(world.tree, search(world, name)).decode().splitlines()
    return dict(re.split(r"\s\s+", line, maxsplit=1) for line in lines)


def counts(world: World, name: str) -> tuple[int | None, int | None]:
    """count and unread of a view as they are known without asking the index."""
    view = world.tree.views[name]
    return (
        count_in_memory_or_none(world.tree, view, is_unread=False),
        count_in_memory_or_none(world.tree, view, is_unread=True),
    )


def asked_counts(world: World, name: str) -> tuple[int, int]:
    """The same from the index."""
    layout, query = world.store.layout, world.tree.views[name].query
    return count_in_index(layout, query, False), count_in_index(layout, query, True)


# --- where things are


def test_each_search_has_a_directory_with_four_files(world: World) -> None:
    world.save("lists/linux api", "tag:l")
    world.refresh()
    nodes = found(world)
    above = {"errors", "status", "status.json", "views", "views/lists"}
    expected = {
        f"views/{name}{file}"
        for name in ("all", "flagged", "inbox", "unread", "lists/linux api")
        for file in ("", *(f"/{each}" for each in FILES))
    }
    assert nodes.keys() == expected | above
    modes = {
        (node.is_directory, path.endswith("/query")): node.mode for path, node in nodes.items()
    }
    assert modes == {(True, False): 0o500, (False, False): 0o400, (False, True): 0o600}


def test_a_search_where_another_has_a_file_is_found_under_its_whole_name(world: World) -> None:
    names = (
        "work",
        "work/unread",
        "work/count/x",
        "work/other",
        "free/unread",
        "work%2Funread",
        "50%",
    )
    for name in names:
        world.save(name, "tag:x")
    world.refresh()
    where = directories(found(world))
    assert {name: where[name] for name in names} == {
        "work": "work",
        "work/unread": "work%2Funread",
        "work/count/x": "work%2Fcount%2Fx",
        "work/other": "work/other",
        "free/unread": "free/unread",
        "work%2Funread": "work%252Funread",
        "50%": "50%",
    }


def test_a_whole_name_that_is_too_long_for_a_directory_is_the_searches_number(world: World) -> None:
    long = "work/unread/" + "/".join("x" * 50 for _ in range(6))
    world.save("work", "tag:x")
    world.save(long, "tag:x")
    world.refresh()
    where = directories(found(world))
    assert where[long] == f"%2F{search(world, long).search_id}"


PARTS = st.sampled_from(
    ("a", "b", "count", "query", "unread", "explain", "%", "%2F", "%25", "%252F", "2F")
)
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("/".join) | st.lists(
    PARTS, min_size=1, max_size=3
).map("".join)


@settings(deadline=None, max_examples=40)
@given(names=st.sets(NAMES, min_size=1, max_size=12))
def test_whatever_they_are_called_each_search_is_found_once(names: set[str]) -> None:
    with TemporaryDirectory() as folder, Store.create(Path(folder) / "store") as store:
        world = World(store)
        for name in names:
            world.save(check_search_name(name), "tag:x", replace=True)
        world.refresh()
        controls = ControlTree(world.tree)
        nodes = list(walk(controls))
        assert (
            len({path for path, _ in nodes}) == len({node.ino for _, node in nodes}) == len(nodes)
        )
        of_searches = [node for _, node in nodes if node.kind == ControlKind.SEARCH]
        assert sorted(node.search.name for node in of_searches if node.search) == sorted(
            names | {"all", "flagged", "inbox", "unread"}
        )
        for path, node in nodes:
            assert lookup(controls, path) == controls.node(node.ino) == node


def lookup(controls: ControlTree, path: str) -> Control:
    node = ROOT
    for part in path.split("/"):
        node = controls.child(node, part.encode())
    return node


def test_inodes_are_the_same_after_a_remount_and_no_others(world: World) -> None:
    saved(world, work="tag:work")
    world.save("lists/one", "tag:one")
    world.refresh()
    before = {path: node.ino for path, node in found(world).items() if path != "views/lists"}
    after = {path: node.ino for path, node in walk(ControlTree(Tree(world.store, {})))}
    assert before.items() <= after.items()
    shown = {directory.ino for directory in world.tree.iter_directories()}
    for ino in (ROOT.ino, *after.values()):
        assert is_control_ino(ino)
        assert not is_file_ino(ino)
        assert docid_of_or_none(ino) is None
        assert ino not in shown
    assert not any(map(is_control_ino, shown))


def test_folders_keep_their_inodes_while_searches_come_and_go(world: World) -> None:
    controls = ControlTree(world.tree)
    world.save("lists/one", "tag:one")
    world.refresh()
    before = lookup(controls, "views/lists")
    assert controls.parent(before).kind == ControlKind.VIEWS
    world.save("archive/one", "tag:one")
    world.save("lists", "tag:lists")
    world.refresh()
    assert lookup(controls, "views/lists").kind == ControlKind.SEARCH
    assert lookup(controls, "views/lists/one").kind == ControlKind.SEARCH
    world.forget("lists")
    world.refresh()
    assert lookup(controls, "views/lists") == before


def test_what_was_forgotten_is_gone_and_what_was_renamed_is_the_same(world: World) -> None:
    saved(world, work="tag:work", gone="tag:gone")
    controls = ControlTree(world.tree)
    work, gone = lookup(controls, "views/work/query"), lookup(controls, "views/gone")
    world.forget("gone")
    with world.store.writer.transaction("test", durable=False) as tx:
        tx.searches.rename("work", "job", "tag:job")
    world.refresh()
    with pytest.raises(NotFound):
        controls.node(gone.ino)
    with pytest.raises(NotFound):
        lookup(controls, "views/work")
    assert controls.entries(gone) == []
    renamed = controls.node(work.ino)
    assert renamed == lookup(controls, "views/job/query")
    assert renamed.search is not None
    assert query_content(renamed.search) == b"tag:job\n"


def test_sizes_are_those_of_queries_and_links_are_counted_exactly(world: World) -> None:
    saved(world, work="from:bücher")
    world.save("work/a", "tag:a")
    world.save("lists/b/c", "tag:a")
    world.refresh()
    controls = ControlTree(world.tree)
    for path, node in found(world).items():
        attributes = controls.attributes(node)
        assert attributes.ino == node.ino
        assert attributes.is_directory == node.is_directory
        below = [each for _, each in controls.entries(node) if each.is_directory]
        assert attributes.nlink == (2 + len(below) if node.is_directory else 1), path
        is_query = node.kind == ControlKind.QUERY and node.search is not None
        assert attributes.size == (
            len(query_content(node.search)) if is_query and node.search else 0
        )
    assert controls.attributes(lookup(controls, "views/work/query")).size == len(
        "from:bücher\n".encode()
    )


def test_a_listing_asks_the_store_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        world.save(f"f{number % 7}/s{number}", f"subject:{number}")
    world.refresh()
    controls = ControlTree(world.tree)

    def refuse(*arguments: object) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr(Index, "rows", refuse)
    nodes = dict(walk(controls))
    assert len(directories(nodes)) == 304
    assert all(controls.attributes(node).ino == node.ino for node in nodes.values())


# --- what the files say


def test_explain_says_what_a_label_view_does(world: World) -> None:
    saved(world, work="TAG:work AND (is:unread -tag:spam)")
    facts = explained(world, "work")
    assert facts["name"] == "work"
    assert facts["query"] == "TAG:work AND (is:unread -tag:spam)"
    assert parse_query(facts["understood"]) == parse_query(facts["query"])
    assert facts["kind"].startswith("label view")
    assert "puts on work; takes off spam $seen" in facts["delivery"]
    assert facts["rm"].startswith("takes off work")
    assert facts["rm"].endswith("(on-rm=unlink)")
    assert facts["changes"] == "with its messages"
    assert facts["in memory"].startswith("no")
    assert "message.flags" in facts["sql"]
    assert {facts["parameter 1"], facts["parameter 2"]} == {"work", "spam"}


@pytest.mark.parametrize(
    ("query", "on_rm", "expected"),
    [
        ("from:ann", "", "expunges the message (on-rm=expunge)"),
        ("tag:a", "untag", "takes off a, and never expunges (on-rm=untag)"),
        ("tag:a", "expunge", "expunges the message (on-rm=expunge)"),
        ("tag:a", "refuse", "is refused (on-rm=refuse)"),
        (
            "from:ann",
            "unlink",
            "is refused, as the query requires no keyword to take off (on-rm=unlink)",
        ),
    ],
)
def test_explain_says_what_rm_does(world: World, query: str, on_rm: str, expected: str) -> None:
    world.save("mine", query, on_rm)
    world.refresh()
    assert explained(world, "mine")["rm"] == expected


def test_explain_says_what_moves_a_view_and_what_is_in_memory(world: World) -> None:
    docid = world.deliver()
    saved(world, moving="thread:{from:ann} date:1week..", mine="is:seen or tag:x")
    assert explained(world, "moving")["changes"] == (
        "with its messages, with the clock, with other messages of their conversations"
    )
    view = world.load("mine")
    view.lingering.add(docid)
    facts = explained(world, "mine")
    assert facts["in memory"] == f"1 messages, 1 of them lingering, at modseq {world.tree.modseq}"


def test_a_query_stands_on_one_line_whatever_is_in_it(world: World) -> None:
    world.save("odd", 'subject:"a\nb\x1b[1m"  or is:seen')
    world.refresh()
    facts = explained(world, "odd")
    assert facts["query"] == 'subject:"a b [1m"  or is:seen'
    assert len(explain(world.tree, search(world, "odd")).splitlines()) == len(facts)


def test_a_search_that_does_not_parse_is_there_and_says_why(world: World) -> None:
    saved(world, broken="tag:a (or")
    nodes = found(world)
    assert {path for path in nodes if path.startswith("views/broken")} == {
        "views/broken",
        "views/broken/explain",
        "views/broken/query",
    }
    controls = ControlTree(world.tree)
    with pytest.raises(NotFound):
        lookup(controls, "views/broken/count")
    with pytest.raises(NotFound):
        controls.node(nodes["views/broken/query"].ino + 2)
    facts = explained(world, "broken")
    assert facts["query"] == "tag:a (or"
    assert "at character" in facts["problem"]
    edit = plan_query(search(world, "broken"), "tag:a")
    assert edit is not None
    commit(world.store, edit)
    world.refresh()
    assert world.tree.problems == {}
    assert lookup(controls, "views/broken/count").kind == ControlKind.COUNT


def test_counts_are_the_same_from_memory_and_from_the_index(world: World) -> None:
    for number in range(6):
        world.deliver(
            keywords=("work",) if number % 2 else ("inbox",), flags=SEEN if number > 3 else 0
        )
    saved(world, work="tag:work", threads="thread:{tag:work} or is:flagged")
    assert counts(world, "work") == (None, None)
    assert asked_counts(world, "work") == (3, 2)
    for name in ("work", "threads", "all"):
        world.load(name)
        assert counts(world, name) == asked_counts(world, name)
    assert counts(world, "work") == (3, 2)


def test_counts_follow_changes_made_elsewhere(world: World) -> None:
    docids = [world.deliver(flags=0) for _ in range(3)]
    world.load("unread")
    assert counts(world, "unread") == (3, 3)
    world.set_flags(docids[0], add=SEEN)
    world.expunge(docids[1])
    world.refresh()
    assert counts(world, "unread") == asked_counts(world, "unread") == (1, 1)


@pytest.mark.parametrize(("name", "add", "remove"), [("unread", SEEN, 0), ("flagged", 0, FLAGGED)])
def test_what_lingers_is_not_counted(world: World, name: str, add: int, remove: int) -> None:
    docids = [world.deliver(flags=FLAGGED) for _ in range(2)]
    view = world.load(name)
    view.being_edited.add(docids[0])
    world.set_flags(docids[0], add, remove)
    world.refresh()
    assert view.lingering == {docids[0]}
    assert counts(world, name) == asked_counts(world, name) == (1, 1)


def test_what_the_clock_has_moved_and_what_is_many_is_asked_from_the_index(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.deliver()
    world.deliver()
    saved(world, week="received:..1week")
    world.load("week")
    assert counts(world, "week") == (2, 0)
    monkeypatch.setattr("time.time", lambda: 4_000_000_000.0)
    assert counts(world, "week") == (None, None)
    monkeypatch.setattr(control, "_COUNTED_AT_ONCE", 1)
    world.load("inbox")
    assert counts(world, "inbox") == (2, None)


# --- writing a query


@pytest.mark.parametrize(
    ("content", "query"),
    [
        (b"tag:work\n", "tag:work"),
        (b"tag:work \n\n", "tag:work"),
        (b"tag:work\r\nis:unread\n", "tag:work  is:unread"),
        ("from:bücher".encode(), "from:bücher"),
        (b"\n", ""),
    ],
)
def test_newlines_are_blanks_and_cut_at_the_end(content: bytes, query: str) -> None:
    assert query_of_content(content) == query


def test_what_is_no_text_is_refused_with_the_place() -> None:
    with pytest.raises(EditRefused, match="byte 5") as caught:
        query_of_content(b"from\xff")
    assert caught.value.errno == errno.EINVAL


def test_another_query_keeps_name_number_and_what_rm_does(world: World) -> None:
    world.save("mine", "tag:a", "untag")
    world.refresh()
    before = search(world, "mine")
    edit = plan_query(before, "tag:b is:unread")
    assert edit is not None
    commit(world.store, edit)
    after = search(world, "mine")
    assert (after.search_id, after.name, after.on_rm) == (before.search_id, "mine", "untag")
    assert after.query == "tag:b is:unread"
    assert after.changed_ns > before.changed_ns


def test_the_same_query_again_is_no_change(world: World) -> None:
    saved(world, mine="tag:a")
    assert plan_query(search(world, "mine"), "tag:a") is None


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("", "an empty query"),
        ("tag:a (or", "at character"),
        ("from:ann", "on-rm=untag takes keywords off"),
        ("x" * 100_001, "100,000 characters"),
    ],
)
def test_a_query_that_cannot_be_is_refused_with_the_reason(
    world: World, query: str, reason: str
) -> None:
    world.save("mine", "tag:a", "untag")
    with pytest.raises(EditRefused, match=f"the query of mine: .*{reason}") as caught:
        plan_query(search(world, "mine"), query)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("on_rm", ["", "expunge", "refuse"])
def test_what_takes_no_keywords_off_needs_none(on_rm: str) -> None:
    check_on_rm(on_rm, parse_query("from:ann"))
    check_on_rm("unlink", parse_query(f"tag:{Keyword('a')}"))
    with pytest.raises(UsageError):
        check_on_rm("unlink", parse_query("from:ann"))


def test_a_search_that_was_forgotten_or_renamed_meanwhile_is_not_edited(world: World) -> None:
    saved(world, mine="tag:a", other="tag:b")
    edits = [plan_query(search(world, name), "tag:c") for name in ("mine", "other")]
    with world.store.writer.transaction("test", durable=False) as tx:
        tx.searches.rename("mine", "theirs", "tag:a")
        tx.searches.forget("other")
        tx.searches.save("mine", "tag:d")
    for edit in edits:
        assert edit is not None
        with pytest.raises(NoSuchSearch):
            commit(world.store, edit)
        assert error_of(commit, world.store, edit) == errno.ENOENT
    assert {each.query for each in world.store.index.searches()} >= {"tag:a", "tag:d"}
    assert "tag:c" not in {each.query for each in world.store.index.searches()}


# --- the manual


def test_the_manual_names_every_file_and_the_limits_of_the_code() -> None:
    page = (PROJECT / "man/mailfs.1").read_text("utf-8").replace("\\-", "-")
    part = page.partition(".SS Control files\n")[2].partition("\n.SS ")[0]
    for name in ("errors", "status", "status.json", *(f"/{file}" for file in FILES)):
        assert re.search(rf"{re.escape(name)}\b", part), name
    assert f"last {MAX_PROBLEMS} refusals" in part
    assert f"{MAX_QUERY_CHARS:,} characters" in part
    assert COUNT_DEADLINE_S == 10
    assert "counting its messages ten seconds" in page
