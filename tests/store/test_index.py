"""Reading the index: the change feed, lists of messages, snapshots."""

from pathlib import Path

import pytest

from mailfs.errors import Corrupt, NoSuchMessage, NoSuchSearch, StoreError
from mailfs.ids import Docid, Keyword, Modseq, ThreadId
from mailfs.message.keywords import FLAGGED, RECENT, SEEN
from mailfs.search.plan import plan
from mailfs.search.query import parse_query
from mailfs.store.database import open_writer
from mailfs.store.source import IndexSource
from mailfs.store.store import Store
from tests.fakes import DATE_S, Deliver, make_message, new_message
from tests.oracle import count_of, docids_of


def expunge(store: Store, docid: Docid) -> None:
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.expunge(docid)


def tag(store: Store, docid: Docid, *keywords: str) -> None:
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.edit_keywords(docid, add=map(Keyword, keywords))


def flag(store: Store, docid: Docid, bits: int) -> None:
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.edit_flags(docid, bits, 0)


# --- what changed


def test_the_change_feed_names_what_changed_since_and_nothing_else(
    store: Store, deliver: Deliver
) -> None:
    one, two, three, four = (deliver() for _ in range(4))
    before = store.index.state().modseq
    assert store.index.changes_since(before) == []
    flag(store, two, SEEN)
    expunge(store, four)
    tag(store, one, "work")
    changes = store.index.changes_since(before)
    assert [row.docid for row in changes] == [one, two, four]
    assert [bool(row.expunged) for row in changes] == [False, False, True]
    assert [row.flags for row in changes] == [0, SEEN, 0]
    assert [row.docid for row in store.index.changes_since(Modseq(before + 2))] == [one]
    assert three not in [row.docid for row in changes]


def test_the_change_feed_from_the_beginning_is_everything(store: Store, deliver: Deliver) -> None:
    docids = [deliver() for _ in range(3)]
    assert [row.docid for row in store.index.changes_since(Modseq(0))] == docids


def test_a_change_of_another_process_moves_the_data_version(store: Store, deliver: Deliver) -> None:
    docid = deliver()
    version = store.index.data_version()
    assert store.index.data_version() == version
    with Store.open(store.layout.root) as other:
        flag(other, docid, SEEN)
    assert store.index.data_version() != version


def test_what_a_message_received_never_changes_and_what_it_changed_does(
    store: Store, deliver: Deliver
) -> None:
    docid = deliver()
    before = store.index.entry(docid)
    assert before.received_ns == DATE_S * 10**9
    flag(store, docid, FLAGGED)
    after = store.index.entry(docid)
    assert after.received_ns == before.received_ns
    assert after.changed_ns > before.changed_ns
    assert after.flags == FLAGGED


# --- one snapshot


def test_all_reads_of_a_snapshot_see_one_state(store: Store, deliver: Deliver) -> None:
    deliver()
    with store.index.snapshot():
        before = (count_of(store), store.index.state())
        deliver()
        tag(store, Docid(1), "work")
        assert (count_of(store), store.index.state()) == before
        assert store.index.summaries([Docid(1)])[0].keywords == ()
    assert count_of(store) == 2
    assert store.index.summaries([Docid(1)])[0].keywords == ("work",)


def test_a_snapshot_ends_with_an_exception_too(store: Store, deliver: Deliver) -> None:
    class Oops(Exception):
        pass

    with pytest.raises(Oops), store.index.snapshot():
        raise Oops
    deliver()
    assert count_of(store) == 1


def test_a_stream_of_entries_is_not_disturbed_by_writers(store: Store, deliver: Deliver) -> None:
    docids = [deliver() for _ in range(5)]
    seen = []
    for row in store.index.iter_entries(plan(parse_query("*"), 0.0)):
        seen.append(row.docid)
        deliver()
        expunge(store, docids[-1])
    assert seen == docids


def test_a_reader_cannot_write(store: Store) -> None:
    with pytest.raises(StoreError):
        store.index.rows("DELETE FROM search")
    assert store.index.searches() != []


# --- lists of messages


def test_summaries_come_in_the_order_asked_and_leave_out_what_is_not_there(
    store: Store, deliver: Deliver
) -> None:
    docids = [deliver(subject=f"number {number}") for number in range(4)]
    asked = [docids[2], Docid(99), docids[0], docids[3]]
    assert [summary.docid for summary in store.index.summaries(asked)] == [
        docids[2],
        docids[0],
        docids[3],
    ]


def test_lists_longer_than_one_statement_takes_are_whole(store: Store) -> None:
    with store.writer.transaction("test", durable=True) as transaction:
        for number in range(1100):
            transaction.add(new_message(make_message(number, subject=f"number {number}")))
    asked = docids_of(store)[::-1]
    summaries = store.index.summaries(asked)
    assert [summary.docid for summary in summaries] == asked
    assert [summary.subject for summary in summaries] == [
        f"number {number}" for number in range(1099, -1, -1)
    ]
    found = IndexSource(store.index).message_id_hits("1050@example.org", set(asked))
    assert found == {asked[1099 - 1050]}


def test_a_summary_says_what_the_message_says(store: Store, deliver: Deliver) -> None:
    docid = deliver(
        subject="=?utf-8?q?Gr=C3=BC=C3=9Fe?=",
        sender="Ann <ann@example.org>",
        keywords=["work", "a", "seen"],
        flags=FLAGGED,
        new=True,
    )
    (summary,) = store.index.summaries([docid])
    assert summary.message_id == "1@example.org"
    assert summary.date == DATE_S
    assert summary.sender == "Ann <ann@example.org>"
    assert summary.recipient == "bob@example.org"
    assert summary.subject == "Grüße"
    assert summary.flags == SEEN | FLAGGED | RECENT
    assert summary.keywords == ("a", "work")
    assert summary.size == len(store.load(docid))
    assert summary.blobs == 1
    assert summary.thread == ThreadId(docid)


def test_orders_and_limits(store: Store, deliver: Deliver) -> None:
    days = (3, 1, 2)
    docids = [
        deliver(raw=f"Date: 0{day} Jan 2024 00:00:00 +0000\n\n{day}\n".encode()) for day in days
    ]
    by_day = dict(zip(days, docids, strict=True))
    everything = plan(parse_query("*"), 0.0)
    assert store.index.docids(everything) == docids
    oldest = [by_day[1], by_day[2], by_day[3]]
    assert store.index.docids(everything, "oldest-first") == oldest
    assert store.index.docids(everything, "newest-first") == oldest[::-1]
    assert store.index.docids(everything, "newest-first", 2) == oldest[:0:-1]
    assert store.index.docids(everything, limit=0) == []


def test_an_expunged_message_is_in_no_list_but_its_bytes_stay(
    store: Store, deliver: Deliver
) -> None:
    docid = deliver(subject="gone", keywords=["work"])
    raw = store.load(docid)
    expunge(store, docid)
    assert docids_of(store) == docids_of(store, "tag:work") == docids_of(store, "gone") == []
    assert count_of(store) == 0
    assert list(store.index.iter_entries(plan(parse_query("*"), 0.0))) == []
    with pytest.raises(NoSuchMessage):
        store.index.entry(docid)
    assert store.load(docid) == raw


def test_a_message_that_never_was_has_no_entry_and_no_bytes(store: Store) -> None:
    with pytest.raises(NoSuchMessage):
        store.index.entry(Docid(1))
    with pytest.raises(NoSuchMessage):
        store.load(Docid(1))


def test_a_search_nobody_saved_is_told(store: Store) -> None:
    with pytest.raises(NoSuchSearch, match="mailfs searches"):
        store.index.search("none")


def test_an_index_without_its_state_is_corrupt(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store") as store:
        connection = open_writer(store.layout.index)
        connection.execute("DELETE FROM state")
        connection.close()
        with pytest.raises(Corrupt, match="no state"):
            store.index.state()
        with (
            pytest.raises(Corrupt, match="no state"),
            store.writer.transaction("test", durable=True),
        ):
            pass
