"""Names that clients chose: rows that are kept, read back and told of, for live messages and saved searches only."""

import random
from collections.abc import Callable

import pytest

from mailfs.errors import EntryExists, NoSuchMessage, NoSuchSearch
from mailfs.ids import Docid, Modseq, SearchId
from mailfs.message.maildir import ChosenName, Form
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from tests.fakes import Deliver

NAME = ChosenName(b"1700000000.1.host,U=12", b"xy", Form.BARE_IN_CUR, True)
Model = dict[tuple[SearchId, bytes], tuple[Docid, ChosenName]]


def search_id(store: Store, name: str) -> SearchId:
    return store.index.search(name).search_id


def put(store: Store, view: SearchId, docid: Docid, *names: ChosenName) -> None:
    with store.writer.transaction("test", durable=False) as transaction:
        for name in names:
            transaction.entries.put(view, docid, name)


def modseq_of(store: Store) -> int:
    return store.index.state().modseq


def changed_since(store: Store, modseq: int) -> list[Docid]:
    return [row.docid for row in store.index.changes_since(Modseq(modseq))]


# --- one name


def test_a_chosen_name_is_read_back_as_it_was_put(store: Store, deliver: Deliver) -> None:
    docid, other, inbox = deliver(), deliver(), search_id(store, "inbox")
    put(store, inbox, docid, NAME)
    assert list(store.index.chosen_names(inbox)) == [(docid, NAME)]
    assert store.index.chosen_names_of([other, docid]) == [(inbox, docid, NAME)]
    assert store.index.docid_of_base_or_none(inbox, NAME.base) == docid
    assert store.index.docid_of_base_or_none(inbox, NAME.base + b"3") is None
    assert store.index.docid_of_base_or_none(search_id(store, "all"), NAME.base) is None


def test_names_are_any_bytes(store: Store, deliver: Deliver) -> None:
    docid, inbox = deliver(), search_id(store, "inbox")
    names = [ChosenName(bytes([n]) * 3) for n in (1, 39, 128, 255)]
    put(store, inbox, docid, *names)
    assert [name for _, name in store.index.chosen_names(inbox)] == names
    with store.writer.transaction("test", durable=False) as transaction:
        assert transaction.entries.names(inbox, docid) == tuple(names)
        assert transaction.entries.docid_or_none(inbox, b"\xff\xff\xff") == docid


def test_putting_a_base_again_changes_its_row(store: Store, deliver: Deliver) -> None:
    docid, inbox = deliver(), search_id(store, "inbox")
    put(store, inbox, docid, NAME)
    changed = NAME._replace(extra=b"", form=Form.USUAL)
    put(store, inbox, docid, changed)
    assert list(store.index.chosen_names(inbox)) == [(docid, changed)]


def test_putting_what_is_there_takes_no_modseq(store: Store, deliver: Deliver) -> None:
    docid, inbox = deliver(), search_id(store, "inbox")
    put(store, inbox, docid, NAME)
    before = modseq_of(store)
    put(store, inbox, docid, NAME)
    assert modseq_of(store) == before


def test_the_name_of_another_message_is_never_stolen(store: Store, deliver: Deliver) -> None:
    docid, other, inbox = deliver(), deliver(), search_id(store, "inbox")
    put(store, inbox, docid, NAME)
    with pytest.raises(EntryExists, match=r"1700000000\.1\.host"):
        put(store, inbox, other, NAME)
    assert list(store.index.chosen_names(inbox)) == [(docid, NAME)]
    put(store, search_id(store, "all"), other, NAME)
    assert store.index.chosen_names_of([other]) == [(search_id(store, "all"), other, NAME)]


def test_only_a_live_message_gets_a_name(store: Store, deliver: Deliver) -> None:
    docid, inbox = deliver(), search_id(store, "inbox")
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.expunge(docid)
    for absent in (docid, Docid(docid + 1)):
        with pytest.raises(NoSuchMessage):
            put(store, inbox, absent, NAME)


def test_only_a_saved_search_gets_a_name(store: Store, deliver: Deliver) -> None:
    docid, inbox = deliver(), search_id(store, "inbox")
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.searches.forget("inbox")
    with pytest.raises(NoSuchSearch):
        put(store, inbox, docid, NAME)


# --- what else takes names away


def test_an_expunged_message_has_no_names_and_gets_none_back(
    store: Store, deliver: Deliver
) -> None:
    docid, inbox = deliver(), search_id(store, "inbox")
    put(store, inbox, docid, NAME)
    put(store, search_id(store, "all"), docid, NAME)
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.expunge(docid)
        assert transaction.entries.names(inbox, docid) == ()
        transaction.revive(docid)
    assert store.index.chosen_names_of([docid]) == []


def test_a_forgotten_search_takes_its_names_with_it(store: Store, deliver: Deliver) -> None:
    docid, inbox, everything = deliver(), search_id(store, "inbox"), search_id(store, "all")
    put(store, inbox, docid, NAME)
    put(store, everything, docid, NAME)
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.searches.forget("inbox")
    assert store.index.chosen_names_of([docid]) == [(everything, docid, NAME)]


def test_a_renamed_search_keeps_its_names(store: Store, deliver: Deliver) -> None:
    docid, inbox = deliver(), search_id(store, "inbox")
    put(store, inbox, docid, NAME)
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.searches.rename("inbox", "lists/post", "tag:post")
    assert list(store.index.chosen_names(search_id(store, "lists/post"))) == [(docid, NAME)]


# --- copies


def test_copies_are_told_by_view_and_can_be_ended(store: Store, deliver: Deliver) -> None:
    docid, other = deliver(), deliver()
    inbox, everything = search_id(store, "inbox"), search_id(store, "all")
    put(store, inbox, docid, NAME, NAME._replace(base=b"second"))
    put(store, everything, docid, NAME._replace(is_copy=False))
    put(store, everything, other, ChosenName(b"other", is_copy=True))
    before = modseq_of(store)
    with store.writer.transaction("test", durable=False) as transaction:
        assert transaction.entries.copies(docid) == {inbox}
        transaction.entries.end_copies(docid)
        assert transaction.entries.copies(docid) == frozenset()
        assert transaction.entries.copies(other) == {everything}
    assert changed_since(store, before) == [docid]
    assert not any(name.is_copy for _, _, name in store.index.chosen_names_of([docid]))


# --- what the change feed tells


def remove(transaction: Transaction, view: SearchId, docid: Docid) -> None:
    transaction.entries.remove(view, NAME.base)


def remove_all(transaction: Transaction, view: SearchId, docid: Docid) -> None:
    transaction.entries.remove_all(view, docid)


def end_copies(transaction: Transaction, view: SearchId, docid: Docid) -> None:
    transaction.entries.end_copies(docid)


@pytest.mark.parametrize("edit", [remove, remove_all, end_copies])
def test_a_change_of_names_is_told_once_and_no_change_is_not(
    store: Store, deliver: Deliver, edit: Callable[[Transaction, SearchId, Docid], None]
) -> None:
    docid, _, inbox = deliver(), deliver(), search_id(store, "inbox")
    put(store, inbox, docid, NAME)
    before = modseq_of(store)
    for _ in range(2):
        with store.writer.transaction("test", durable=False) as transaction:
            edit(transaction, inbox, docid)
        assert changed_since(store, before) == [docid]
        assert modseq_of(store) == before + 1


def test_stale_names_go_without_a_word(store: Store, deliver: Deliver) -> None:
    docid, other, inbox = deliver(), deliver(), search_id(store, "inbox")
    put(store, inbox, docid, NAME)
    put(store, inbox, other, ChosenName(b"other"))
    before = modseq_of(store)
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.entries.forget_stale([(inbox, docid), (search_id(store, "all"), other)])
    assert [row.docid for row in store.index.changes_since(Modseq(before))] == [docid]
    assert list(store.index.chosen_names(inbox)) == [(other, ChosenName(b"other"))]


# --- many at once


def test_names_of_many_messages_come_in_order(store: Store, deliver: Deliver) -> None:
    """More than one statement may ask about."""
    docid, inbox = deliver(), search_id(store, "inbox")
    put(store, inbox, docid, ChosenName(b"b"), ChosenName(b"a"))
    asked = [Docid(number) for number in range(docid + 40_000, 0, -1)]
    assert store.index.chosen_names_of(asked) == [
        (inbox, docid, ChosenName(b"a")),
        (inbox, docid, ChosenName(b"b")),
    ]


def test_chosen_names_of_a_view_come_by_message_and_base(store: Store, deliver: Deliver) -> None:
    one, two, inbox = deliver(), deliver(), search_id(store, "inbox")
    put(store, inbox, two, ChosenName(b"a"), ChosenName(b"c"))
    put(store, inbox, one, ChosenName(b"d"), ChosenName(b"b"))
    assert [(docid, name.base) for docid, name in store.index.chosen_names(inbox)] == [
        (one, b"b"),
        (one, b"d"),
        (two, b"a"),
        (two, b"c"),
    ]


# --- against a model


def random_edit(
    chance: random.Random, transaction: Transaction, model: Model, views: list[SearchId]
) -> set[Docid]:
    """One random edit of the store and of the model; the messages it must have stamped."""
    entries = transaction.entries
    view, docid = chance.choice(views), Docid(chance.randint(1, 4))
    base = chance.choice((b"a", b"b", b"\xff,U=1", b"d"))
    match chance.randrange(6):
        case 0 | 1:
            name = ChosenName(
                base,
                chance.choice((b"", b"x")),
                chance.choice(list(Form)),
                chance.choice((True, False)),
            )
            owner, before = model.get((view, base), (docid, None))
            if owner != docid:
                with pytest.raises(EntryExists):
                    entries.put(view, docid, name)
                return set()
            entries.put(view, docid, name)
            model[view, base] = (docid, name)
            return set() if before == name else {docid}
        case 2:
            entries.remove(view, base)
            gone = model.pop((view, base), None)
            return set() if gone is None else {gone[0]}
        case 3 | 4 as kind:
            rows = [key for key in model if key[0] == view and model[key][0] == docid]
            if kind == 3:
                entries.forget_stale([(view, docid)])
            else:
                entries.remove_all(view, docid)
            for key in rows:
                del model[key]
            return {docid} if rows else set()
        case _:
            copies = [key for key in model if model[key][0] == docid and model[key][1].is_copy]
            entries.end_copies(docid)
            for key in copies:
                model[key] = (docid, model[key][1]._replace(is_copy=False))
            return {docid} if copies else set()


@pytest.mark.parametrize("seed", range(4))
def test_any_edits_leave_what_a_model_says_and_stamp_what_they_changed(
    store: Store, deliver: Deliver, seed: int
) -> None:
    chance = random.Random(seed)
    docids = [deliver() for _ in range(4)]
    views = [search_id(store, name) for name in ("inbox", "unread", "all")]
    model: Model = {}
    for _ in range(60):
        before, stamped = modseq_of(store), set[Docid]()
        with store.writer.transaction("test", durable=False) as transaction:
            for _ in range(chance.randint(1, 5)):
                stamped |= random_edit(chance, transaction, model, views)
            for docid in docids:
                copies = {key[0] for key, (own, n) in model.items() if own == docid and n.is_copy}
                assert transaction.entries.copies(docid) == copies
        assert set(changed_since(store, before)) == stamped
        assert modseq_of(store) == before + bool(stamped)
        for view in views:
            expected = sorted((d, n) for (own, _), (d, n) in model.items() if own == view)
            assert list(store.index.chosen_names(view)) == expected
        assert len(store.index.chosen_names_of(docids)) == len(model)
