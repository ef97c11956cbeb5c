"""What a dump says is so again after it was restored, and nothing else has changed."""

import io
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailfs.errors import BadDump
from mailfs.ids import Docid, Keyword, Modseq, SearchId
from mailfs.message.keywords import (
    ANSWERED,
    ATTACHMENT,
    DELETED,
    DELETED_BY_ENTRY,
    FLAGGED,
    RECENT,
    SEEN,
)
from mailfs.message.maildir import ChosenName, Form
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from mailfs.store.upkeep.dump import dump_lines, opened_dump, write_dump
from mailfs.store.upkeep.dump_lines import DumpedMessage, DumpedSearch
from mailfs.store.upkeep.log import iter_log
from mailfs.store.upkeep.restore import Restored, restore
from tests.fakes import Deliver, make_message, new_message
from tests.oracle import count_of, docids_of, problems_of

_MESSAGES = 4
_TODO = Keyword("todo")


def dump_of(store: Store) -> io.BytesIO:
    file = io.BytesIO()
    write_dump(dump_lines(store.layout), file)
    return file


def restored(store: Store, dump: io.BytesIO, *, accumulate: bool = False) -> Restored:
    done = Restored()
    for _ in restore(store, dump, "the dump", done, accumulate=accumulate):
        pass
    return done


def messages_in(dump: io.BytesIO) -> list[DumpedMessage]:
    """Without what every change gives anew; of the second it was expunged only that it was."""
    with opened_dump(dump, "the dump") as lines:
        return [
            replace(line, modseq=Modseq(0), changed_ns=0, expunged=bool(line.expunged))
            for _, line in lines
            if isinstance(line, DumpedMessage)
        ]


def searches_in(dump: io.BytesIO) -> dict[str, tuple[str, str]]:
    with opened_dump(dump, "the dump") as lines:
        return {
            line.name: (line.query, line.on_rm)
            for _, line in lines
            if isinstance(line, DumpedSearch)
        }


# --- any changes

docids = st.integers(1, _MESSAGES).map(Docid)
keywords = st.sampled_from(["todo", "größe", "$label1", "lists/linux"]).map(Keyword)
chosen = st.builds(
    ChosenName,
    st.sampled_from([b"a", b"b\n", b"caf\xe9", b'"quoted"', b"\x01\x7f", b"1.M1.x,U=1"]),
    st.sampled_from([b"", b"ab", b"T"]),
    st.sampled_from(Form),
    st.booleans(),
)
flags = st.integers(0, 2 * DELETED_BY_ENTRY - 1).map(lambda bits: bits & ~ATTACHMENT)
Edit = Callable[[Transaction], object]


def _named(docid: Docid, name: ChosenName, search: int) -> Edit:
    def edit(transaction: Transaction) -> None:
        owner = transaction.entries.docid_or_none(SearchId(search), name.base)
        if transaction.is_live(docid) and owner in (None, docid):
            transaction.entries.put(SearchId(search), docid, name)

    return edit


edits: st.SearchStrategy[Edit] = st.one_of(
    st.builds(lambda d, add, off: lambda tx: tx.edit_flags(d, add, off), docids, flags, flags),
    st.builds(lambda d, k: lambda tx: tx.edit_keywords(d, add=[k]), docids, keywords),
    st.builds(lambda d, k: lambda tx: tx.edit_keywords(d, remove=[k]), docids, keywords),
    st.builds(lambda d: lambda tx: tx.expunge(d), docids),
    st.builds(lambda d: lambda tx: tx.undelete(d), docids),
    st.builds(_named, docids, chosen, st.sampled_from([1, 4])),
    st.builds(lambda d: lambda tx: tx.entries.remove_everywhere(d), docids),
    st.builds(
        lambda name, query: lambda tx: tx.searches.save(name, query, replace=True),
        st.sampled_from(["inbox", "later", "größe"]),
        st.sampled_from(["tag:inbox", "from:ann", "is:unread and not tag:todo"]),
    ),
)


def made(root: Path) -> Store:
    store = Store.create(root)
    with store.writer.transaction("test", durable=True) as transaction:
        for number in range(_MESSAGES):
            transaction.add(new_message(make_message(number)))
    return store


def apply(store: Store, changes: list[Edit]) -> None:
    for change in changes:
        with store.writer.transaction("test", durable=False) as transaction:
            change(transaction)


@settings(max_examples=30, deadline=None)
@given(st.lists(edits, max_size=12), st.lists(edits, max_size=12))
def test_a_dump_restored_and_dumped_again_is_the_same(
    before: list[Edit], after: list[Edit]
) -> None:
    with tempfile.TemporaryDirectory() as folder, made(Path(folder) / "store") as store:
        apply(store, before)
        first = dump_of(store)
        apply(store, after)
        done = restored(store, first)
        assert (done.missing, done.messages) == ([], _MESSAGES)
        second = dump_of(store)
        assert done.problems == []
        assert messages_in(second) == messages_in(first)
        assert searches_in(second) == searches_in(second) | searches_in(first)
        assert problems_of(store) == []
        modseq = store.index.state().modseq
        again = restored(store, first)
        assert (again.changed, again.searches) == (0, 0)
        assert store.index.state().modseq == modseq


@settings(max_examples=15, deadline=None)
@given(st.lists(edits, max_size=12), st.lists(edits, max_size=12))
def test_accumulate_takes_nothing_off(before: list[Edit], after: list[Edit]) -> None:
    with tempfile.TemporaryDirectory() as folder, made(Path(folder) / "store") as store:
        apply(store, before)
        first = dump_of(store)
        apply(store, after)
        now, searches = messages_in(dump_of(store)), searches_in(dump_of(store))
        restored(store, first, accumulate=True)
        assert searches_in(dump_of(store)) == searches_in(first) | searches
        rows = zip(messages_in(first), now, messages_in(dump_of(store)), strict=True)
        for dumped, was, found in rows:
            assert set(found.keywords) == {*was.keywords, *dumped.keywords}
            assert found.flags == was.flags | dumped.flags & ~RECENT
            assert found.expunged == was.expunged
            assert {name.base for _, name in found.names} >= {name.base for _, name in was.names}
        assert problems_of(store) == []


# --- one by one


def test_messages_are_known_by_their_bytes_in_another_store(
    store: Store, deliver: Deliver, tmp_path: Path
) -> None:
    inbox = store.index.search("inbox").search_id
    for number in (1, 2, 3):
        deliver(raw=make_message(number), keywords=["inbox", f"k{number}"], flags=SEEN)
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.entries.put(inbox, Docid(2), ChosenName(b"U=2"))
        transaction.searches.save("todo", "tag:todo", "unlink")
    with Store.create(tmp_path / "other") as other:
        with other.writer.transaction("test", durable=True) as transaction:
            transaction.searches.forget("inbox")
            transaction.searches.save("inbox", "tag:inbox")  # another number
            for number in (3, 9, 2):
                transaction.add(new_message(make_message(number), flags=FLAGGED))
        done = restored(other, dump_of(store))
        assert (done.messages, done.changed, done.missing) == (2, 2, [1])
        assert other.index.search("todo").on_rm == "unlink"
        assert docids_of(other, "tag:k3 and is:seen and not is:flagged") == [1]
        assert docids_of(other, "is:flagged") == [2]
        (row,) = other.index.chosen_names_of([Docid(3)])
        assert row == (other.index.search("inbox").search_id, 3, ChosenName(b"U=2"))
        assert problems_of(other) == []


def test_what_was_expunged_meanwhile_lives_again_and_the_other_way_round(
    store: Store, deliver: Deliver
) -> None:
    deliver(keywords=["todo"]), deliver(keywords=["todo"])
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.expunge(Docid(1))
    dump = dump_of(store)
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.undelete(Docid(1))
        transaction.expunge(Docid(2))
    restored(store, dump)
    assert docids_of(store, "tag:todo") == [2]
    # As if it were expunged now: an expire of what went a month ago leaves it.
    with store.writer.transaction("test", durable=True) as transaction:
        assert (
            transaction.reclaim([Docid(1)], until_s=transaction.now_ns // 10**9 - 60).messages == 0
        )


def test_a_restore_is_one_operation_that_can_be_undone(store: Store, deliver: Deliver) -> None:
    deliver(keywords=["todo"])
    dump = dump_of(store)
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.edit_keywords(Docid(1), remove=[_TODO])
    restored(store, dump)
    assert next(iter_log(store.index)).reason == "restore the dump"


def test_a_dump_with_a_bad_line_changes_nothing(store: Store, deliver: Deliver) -> None:
    for _ in range(3):
        deliver(keywords=["todo"])
    raw = dump_of(store).getvalue().replace(b'"message":3', b'"message":-3')
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.edit_keywords(Docid(1), remove=[_TODO])
    modseq = store.index.state().modseq
    with pytest.raises(BadDump, match=r"the dump: line \d+ field 'message' is no number"):
        restored(store, io.BytesIO(raw))
    assert store.index.state().modseq == modseq
    assert count_of(store, "tag:todo") == 2


def test_a_query_that_is_none_today_is_told_and_the_rest_restored(
    store: Store, deliver: Deliver
) -> None:
    deliver(flags=ANSWERED)
    lines = list(dump_lines(store.layout))
    lines.insert(1, DumpedSearch(SearchId(9), "odd", "from:(", "", 1))
    dump = io.BytesIO()
    write_dump(lines, dump)
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.edit_flags(Docid(1), 0, ANSWERED)
    done = restored(store, dump)
    assert done.changed == 1
    assert len(done.problems) == 1
    assert done.problems[0].startswith("the search odd is not restored:")
    assert "odd" not in {search.name for search in store.index.searches()}


def test_names_that_changed_hands_come_back_and_one_of_a_message_the_dump_does_not_know_stays(
    store: Store, deliver: Deliver
) -> None:
    inbox = store.index.search("inbox").search_id
    deliver(keywords=["inbox"]), deliver(keywords=["inbox"])
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.entries.put(inbox, Docid(1), ChosenName(b"a"))
        transaction.entries.put(inbox, Docid(1), ChosenName(b"b"))
    dump = dump_of(store)
    deliver(keywords=["inbox"])
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.entries.remove_everywhere(Docid(1))
        transaction.entries.put(inbox, Docid(2), ChosenName(b"a"))
        transaction.entries.put(inbox, Docid(3), ChosenName(b"b"))
    done = restored(store, dump)
    assert done.problems == ["message 1: the name b'b' is that of another message here"]
    assert store.index.docid_of_base_or_none(inbox, b"a") == 1
    assert store.index.docid_of_base_or_none(inbox, b"b") == 3


def test_a_mark_that_a_message_is_to_be_deleted_comes_back(store: Store, deliver: Deliver) -> None:
    deliver(flags=DELETED)
    dump = dump_of(store)
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.expunge(Docid(1))
    restored(store, dump)
    with store.writer.transaction("test", durable=True) as transaction:
        assert transaction.flags(Docid(1)) == DELETED
