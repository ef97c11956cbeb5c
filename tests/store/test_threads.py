"""Threads: messages that name a common Message-ID belong together, in whatever order they come."""

from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailfs.ids import Docid
from mailfs.store.store import Store
from tests.fakes import make_message, new_message
from tests.oracle import docids_of, problems_of


def add(store: Store, *raws: bytes) -> list[Docid]:
    """Add messages, each in a transaction of its own."""
    docids = []
    for raw in raws:
        with store.writer.transaction("test", durable=True) as transaction:
            docids.append(transaction.add(new_message(raw)).docid)
    return docids


def reply(number: int, *to: int) -> bytes:
    return make_message(number, references=[f"{parent}@example.org" for parent in to])


def threads_of(store: Store, docids: list[Docid]) -> list[int]:
    return [summary.thread for summary in store.index.summaries(docids)]


def test_a_reply_is_in_the_thread_of_what_it_replies_to(store: Store) -> None:
    docids = add(store, reply(1), reply(2, 1), reply(3, 1, 2), reply(4))
    assert threads_of(store, docids) == [docids[0], docids[0], docids[0], docids[3]]


def test_two_replies_to_a_message_nobody_has_are_one_thread(store: Store) -> None:
    docids = add(store, reply(2, 1), reply(3, 1))
    assert threads_of(store, docids) == [docids[0], docids[0]]


def test_a_late_message_joins_the_threads_it_names_and_the_joined_are_stamped(
    store: Store,
) -> None:
    one, two, three = add(store, reply(1), reply(2), reply(3))
    before = store.index.state().modseq
    (late,) = add(store, reply(4, 3, 2))
    assert threads_of(store, [one, two, three, late]) == [one, two, two, two]
    assert [row.docid for row in store.index.changes_since(before)] == [three, late]
    # The thread is asked for under its number, by messages old and new.
    assert docids_of(store, f"thread:{two}") == [two, three, late]


def test_a_message_without_any_id_is_a_thread_of_its_own(store: Store) -> None:
    docids = add(store, b"Subject: one\n\nx\n", b"Subject: two\n\nx\n", reply(1))
    assert threads_of(store, docids) == docids


def test_copies_with_the_same_message_id_are_one_thread(store: Store) -> None:
    docids = add(store, make_message(1, body="as sent"), make_message(1, body="from the list"))
    assert threads_of(store, docids) == [docids[0], docids[0]]


# A message is its own number and the numbers it refers to: some that come, some that never do.
CONVERSATIONS = st.dictionaries(
    st.integers(1, 12), st.lists(st.integers(1, 15), max_size=3, unique=True), max_size=12
)


def partition(messages: dict[int, list[int]], order: list[int]) -> set[frozenset[int]]:
    """Which messages mailfs puts together when they come in this order."""
    with TemporaryDirectory() as folder, Store.create(Path(folder) / "store") as store:
        with store.writer.transaction("test", durable=True) as transaction:
            for number in order:
                transaction.add(new_message(reply(number, *messages[number])))
        assert problems_of(store) == []
        found: dict[int, set[int]] = {}
        for number, summary in zip(order, store.index.summaries(docids_of(store)), strict=True):
            found.setdefault(summary.thread, set()).add(number)
        for thread, numbers in found.items():
            # The number of a thread is the docid of the first of its messages that came.
            assert order[thread - 1] in numbers
            assert thread == 1 + min(order.index(number) for number in numbers)
    return {frozenset(numbers) for numbers in found.values()}


def expected_partition(messages: dict[int, list[int]]) -> set[frozenset[int]]:
    """The same, by painting: whoever shares an id takes the smallest colour of both, until nothing changes."""
    colours = {number: colour for number, colour in zip(range(1, 16), count(), strict=False)}
    changed = True
    while changed:
        changed = False
        for number, parents in messages.items():
            ids = [number, *parents]
            smallest = min(colours[each] for each in ids)
            for each in ids:
                changed |= colours[each] != smallest
                colours[each] = smallest
    groups: dict[int, set[int]] = {}
    for number in messages:
        groups.setdefault(colours[number], set()).add(number)
    return {frozenset(numbers) for numbers in groups.values()}


@pytest.mark.slow
@given(messages=CONVERSATIONS, data=st.data())
@settings(max_examples=20, deadline=None)
def test_threads_do_not_depend_on_the_order_of_arrival(
    messages: dict[int, list[int]], data: st.DataObject
) -> None:
    expected = expected_partition(messages)
    assert partition(messages, sorted(messages)) == expected
    assert partition(messages, data.draw(st.permutations(sorted(messages)))) == expected
