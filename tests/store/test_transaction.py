"""What a transaction says of a message, and how a message comes back, matches and changes its keyword."""

from collections.abc import Callable

import pytest

from mailfs.errors import KeywordInUse, NoSuchMessage, NoSuchSearch, SearchExists
from mailfs.ids import Docid, Keyword, Modseq
from mailfs.message.keywords import ATTACHMENT, FLAGGED, RECENT, SEEN
from mailfs.search.query import parse_query
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from tests.fakes import Deliver, make_message, new_message
from tests.oracle import count_of, docids_of

NOBODY = Docid(77)
WITH_ATTACHMENT = make_message(9).replace(
    b"\n\n", b'\nContent-Disposition: attachment; filename="a.pdf"\n\n', 1
)


def modseq_of(store: Store) -> Modseq:
    return store.index.state().modseq


def expunge(store: Store, docid: Docid) -> None:
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.expunge(docid)


# --- what is so


def test_a_message_is_live_until_it_is_expunged(store: Store, deliver: Deliver) -> None:
    docid = deliver(flags=SEEN)
    with store.writer.transaction("test", durable=False) as transaction:
        assert transaction.is_live(docid)
        transaction.expunge(docid)
        assert not transaction.is_live(docid)
        assert transaction.flags(docid) == SEEN
        assert not transaction.is_live(NOBODY)


def test_flags_are_those_this_transaction_has_set(store: Store, deliver: Deliver) -> None:
    docid = deliver(flags=SEEN)
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.edit_flags(docid, FLAGGED, SEEN)
        assert transaction.flags(docid) == FLAGGED


def ask_flags(transaction: Transaction) -> None:
    transaction.flags(NOBODY)


def revive(transaction: Transaction) -> None:
    transaction.revive(NOBODY)


@pytest.mark.parametrize("ask", [ask_flags, revive])
def test_a_message_that_never_was_is_told(store: Store, ask: Callable[[Transaction], None]) -> None:
    with (
        pytest.raises(NoSuchMessage, match="77"),
        store.writer.transaction("test", durable=False) as transaction,
    ):
        ask(transaction)


def test_a_question_sees_what_is_not_committed(store: Store, deliver: Deliver) -> None:
    docid, other = deliver(subject="apples"), deliver(subject="pears")
    query = parse_query("tag:work is:flagged subject:apples not is:seen")
    with store.writer.transaction("test", durable=False) as transaction:
        assert not transaction.matches(query, docid)
        for each in (docid, other):
            transaction.edit_keywords(each, add=[Keyword("work")])
            transaction.edit_flags(each, FLAGGED, 0)
        assert transaction.matches(query, docid)
        assert not transaction.matches(query, other)
        transaction.edit_flags(docid, SEEN, 0)
        assert not transaction.matches(query, docid)
    assert not count_of(store, "tag:work is:flagged subject:apples not is:seen")


def test_a_question_sees_a_message_added_in_the_same_transaction(store: Store) -> None:
    with store.writer.transaction("test", durable=True) as transaction:
        docid = transaction.add(new_message(make_message(1, subject="apples"))).docid
        for text, expected in (
            ("subject:apples", True),
            ("id:1@example.org", True),
            ("thread:{subject:apples}", True),
            ("subject:pears", False),
            ("received:..today", True),
        ):
            assert transaction.matches(parse_query(text), docid) is expected, text


# --- a message that comes back


def test_a_revived_message_is_as_if_it_had_just_come(store: Store, deliver: Deliver) -> None:
    docid = deliver(raw=WITH_ATTACHMENT, keywords=["work", "inbox"], flags=SEEN | FLAGGED | RECENT)
    assert store.index.entry(docid).flags == SEEN | FLAGGED | RECENT | ATTACHMENT
    expunge(store, docid)
    before = modseq_of(store)
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.revive(docid)
        assert transaction.is_live(docid)
    assert docids_of(store) == [docid]
    assert store.index.summaries([docid])[0].keywords == ()
    assert store.index.entry(docid).flags == ATTACHMENT
    assert store.load(docid) == WITH_ATTACHMENT
    assert [row.docid for row in store.index.changes_since(before)] == [docid]


def test_a_live_message_is_not_changed_by_reviving_it(store: Store, deliver: Deliver) -> None:
    docid = deliver(keywords=["work"], flags=SEEN)
    before = modseq_of(store)
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.revive(docid)
    assert modseq_of(store) == before
    assert docids_of(store, "tag:work is:seen") == [docid]


# --- renaming a keyword


def rename(store: Store, old: str, new: str) -> None:
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.rename_keyword(Keyword(old), Keyword(new))


def test_a_renamed_keyword_is_on_the_same_messages_and_they_are_stamped(
    store: Store, deliver: Deliver
) -> None:
    one, two = deliver(keywords=["work", "x"]), deliver(keywords=["work"])
    other = deliver(keywords=["x"])
    before = modseq_of(store)
    rename(store, "work", "job")
    assert docids_of(store, "tag:job") == [one, two]
    assert docids_of(store, "tag:work") == []
    assert docids_of(store, "tag:x") == [one, other]
    assert [row.docid for row in store.index.changes_since(before)] == [one, two]
    assert modseq_of(store) == before + 1


def test_a_keyword_that_live_messages_have_is_not_merged_with_another(
    store: Store, deliver: Deliver
) -> None:
    one, two = deliver(keywords=["work"]), deliver(keywords=["job"])
    with pytest.raises(KeywordInUse, match="job"):
        rename(store, "work", "job")
    assert (docids_of(store, "tag:work"), docids_of(store, "tag:job")) == ([one], [two])


def test_a_keyword_only_expunged_messages_have_may_be_taken(store: Store, deliver: Deliver) -> None:
    gone, live = deliver(keywords=["work", "job"]), deliver(keywords=["work"])
    expunge(store, gone)
    rename(store, "work", "job")
    assert docids_of(store, "tag:job") == [live]
    assert store.index.docids_with_keyword(Keyword("job")) == [gone, live]
    assert store.index.docids_with_keyword(Keyword("work")) == []


@pytest.mark.parametrize(("old", "new"), [("work", "work"), ("nobody", "job")])
def test_renaming_a_keyword_to_itself_or_one_nobody_has_changes_nothing(
    store: Store, deliver: Deliver, old: str, new: str
) -> None:
    deliver(keywords=["work"])
    before = modseq_of(store)
    rename(store, old, new)
    assert modseq_of(store) == before
    assert count_of(store, "tag:work") == 1


# --- who has a keyword


def test_messages_with_a_keyword_are_found_among_all_or_some(
    store: Store, deliver: Deliver
) -> None:
    one, _, three = deliver(keywords=["work"]), deliver(), deliver(keywords=["work", "x"])
    asked = [Docid(number) for number in range(2000, one, -1)]
    assert store.index.docids_with_keyword(Keyword("work")) == [one, three]
    assert store.index.docids_with_keyword(Keyword("work"), asked) == [three]
    assert store.index.docids_with_keyword(Keyword("work"), []) == []
    assert store.index.docids_with_keyword(Keyword("none")) == []


# --- renaming a search


def test_a_renamed_search_keeps_its_number_and_rule(store: Store) -> None:
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.searches.save("mine", "from:ann", "refuse")
    before, state = store.index.search("mine"), store.index.state()
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.searches.rename("mine", "lists/ours", "from:bob")
    after = store.index.search("lists/ours")
    assert (after.search_id, after.query, after.on_rm) == (before.search_id, "from:bob", "refuse")
    assert store.index.state().searches_modseq == state.modseq + 1
    with pytest.raises(NoSuchSearch):
        store.index.search("mine")


@pytest.mark.parametrize(
    ("name", "error"), [("inbox", SearchExists), ("none", NoSuchSearch)], ids=["taken", "unknown"]
)
def test_a_search_is_not_renamed_over_another_nor_from_nothing(
    store: Store, name: str, error: type[Exception]
) -> None:
    before = store.index.searches()
    with (
        pytest.raises(error),
        store.writer.transaction("test", durable=True) as transaction,
    ):
        transaction.searches.rename(name, "all", "*")
    assert store.index.searches() == before


def test_a_transaction_goes_on_after_a_name_that_is_taken(store: Store) -> None:
    """Whoever moves several searches may try another name for one."""
    with store.writer.transaction("test", durable=True) as transaction:
        with pytest.raises(SearchExists):
            transaction.searches.rename("inbox", "all", "*")
        transaction.searches.rename("inbox", "all_", "tag:inbox")
    assert store.index.search("all_").query == "tag:inbox"
