"""mailfs expunge, and the slices in which it and mailfs tag change messages."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from mailfs.cli.tagging import edit_matching
from mailfs.errors import EX_TEMPFAIL, EX_USAGE, Busy
from mailfs.ids import Docid, Keyword
from mailfs.message.maildir import ChosenName
from mailfs.store import writer
from mailfs.store.journal import Operation
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from tests.fakes import Deliver, RunMailfs
from tests.oracle import count_of, docids_of
from tests.store.peer import line_of, peer


@pytest.fixture
def mailfs(store: Store, run_mailfs: RunMailfs) -> RunMailfs:
    """The command with the store of this test."""
    return partial(run_mailfs, store=store.layout.root)


def said(done: "subprocess.CompletedProcess[str]") -> str:
    """What a command that must succeed has printed."""
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def expunge(transaction: Transaction, docid: Docid) -> bool:
    transaction.expunge(docid)
    return True


def tag_done(transaction: Transaction, docid: Docid) -> bool:
    return transaction.edit_keywords(docid, [Keyword("done")], [Keyword("todo")])


# --- the command


def test_messages_that_match_are_expunged_whatever_their_keywords(
    store: Store, mailfs: RunMailfs, deliver: Deliver
) -> None:
    for subject in ("one apple", "another apple"):
        deliver(subject=subject, keywords=["work", "inbox"])
    kept = deliver(subject="a pear", keywords=["work"])
    assert said(mailfs("expunge", "subject:apple")) == "2 expunged\n"
    assert docids_of(store) == [kept]
    assert said(mailfs("search", "subject:apple")) == ""
    # They are not found any more, so not expunged again.
    before = store.index.state()
    assert said(mailfs("expunge", "subject:apple")) == "0 expunged\n"
    assert store.index.state() == before


def test_a_dry_run_only_counts(store: Store, mailfs: RunMailfs, deliver: Deliver) -> None:
    for _ in range(3):
        deliver(keywords=["spam"])
    before = store.index.state()
    assert said(mailfs("expunge", "--dry-run", "tag:spam")) == "3 would be expunged\n"
    assert said(mailfs("expunge", "tag:spam", "--dry-run")) == "3 would be expunged\n"
    assert store.index.state() == before


def test_a_word_with_a_dash_belongs_to_the_query(
    store: Store, mailfs: RunMailfs, deliver: Deliver
) -> None:
    deliver(subject="apple")
    kept = deliver(subject="apple pear")
    assert said(mailfs("expunge", "apple", "-pear")) == "1 expunged\n"
    assert docids_of(store) == [kept]


@pytest.mark.parametrize("words", [[], ["from:("]], ids=str)
def test_without_a_query_that_can_be_understood_nothing_is_expunged(
    store: Store, mailfs: RunMailfs, deliver: Deliver, words: list[str]
) -> None:
    deliver()
    done = mailfs("expunge", *words)
    assert (done.returncode, done.stdout) == (EX_USAGE, "")
    assert count_of(store) == 1


def test_names_of_expunged_messages_are_free(
    store: Store, mailfs: RunMailfs, deliver: Deliver
) -> None:
    docid = deliver(keywords=["inbox"])
    search = store.index.search("inbox").search_id
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.entries.put(search, docid, ChosenName(b"1.x"))
    mailfs("expunge", "*")
    assert store.index.docid_of_base_or_none(search, b"1.x") is None


def test_importing_it_again_does_not_bring_it_back_but_delivering_it_does(
    store: Store, mailfs: RunMailfs, deliver: Deliver, tmp_path: Path
) -> None:
    raw = store.load(deliver())
    (tmp_path / "message").write_bytes(raw)
    mailfs("expunge", "*")
    assert "1 were expunged here and stay so" in said(mailfs("import", tmp_path / "message"))
    assert count_of(store) == 0
    said(mailfs("deliver", input=raw.decode()))
    assert count_of(store) == 1


def test_who_holds_the_store_too_long_is_named_and_nothing_is_expunged(
    store: Store, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver()
    monkeypatch.setattr(
        store.writer, "transaction", partial(store.writer.transaction, deadline_s=0.0)
    )
    with peer("hold", store.layout.root, "another program") as holder:
        assert line_of(holder) == b"held\n"
        with pytest.raises(Busy, match="another program") as caught:
            edit_matching(store, ["*"], Operation("expunge"), expunge)
    assert caught.value.exit_code == EX_TEMPFAIL
    assert count_of(store) == 1


# --- slices


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message each."""
    monkeypatch.setattr(writer, "SLICE_S", 0.0)


Meanwhile = Callable[[Transaction], object]


@contextmanager
def somebody_else(store: Store, changes: dict[int, Meanwhile]) -> Iterator[list[int]]:
    """Another program makes changes before the slices of these numbers; yields the numbers of all slices."""
    slices: list[int] = []
    usual = store.writer.transaction

    @contextmanager
    def transaction(purpose: str, *, durable: bool, operation: Operation) -> Iterator[Transaction]:
        slices.append(len(slices))
        if slices[-1] in changes:
            with (
                Store.open(store.layout.root) as other,
                other.writer.transaction("other", durable=True) as theirs,
            ):
                changes[slices[-1]](theirs)
        with usual(purpose, durable=durable, operation=operation) as ours:
            yield ours

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.writer, "transaction", transaction)
        yield slices


@pytest.mark.usefixtures("small_slices")
def test_the_lock_is_let_go_between_slices_and_all_messages_are_changed(
    store: Store, deliver: Deliver
) -> None:
    docids = [deliver() for _ in range(5)]
    with somebody_else(store, {}) as slices:
        assert edit_matching(store, ["*"], Operation("test"), tag_done) == 5
    assert len(slices) == 5
    assert docids_of(store, "tag:done") == docids


def test_what_takes_little_time_is_one_change(store: Store, deliver: Deliver) -> None:
    for _ in range(5):
        deliver()
    before = store.index.state().modseq
    assert edit_matching(store, ["*"], Operation("test"), expunge) == 5
    assert store.index.state().modseq == before + 1


@pytest.mark.usefixtures("small_slices")
def test_a_message_somebody_takes_out_of_the_query_between_two_slices_is_spared(
    store: Store, deliver: Deliver
) -> None:
    docids = [deliver(keywords=["spam"]) for _ in range(6)]
    changes: dict[int, Meanwhile] = {
        1: lambda theirs: theirs.edit_keywords(docids[3], [Keyword("ham")], [Keyword("spam")]),
        2: lambda theirs: theirs.edit_keywords(docids[4], [Keyword("other")]),
        4: lambda theirs: theirs.expunge(docids[5]),
    }
    with somebody_else(store, changes):
        assert edit_matching(store, ["tag:spam"], Operation("expunge"), expunge) == 4
    assert docids_of(store) == [docids[3]]


@pytest.mark.usefixtures("small_slices")
def test_a_change_between_the_search_and_the_first_slice_is_seen(
    store: Store, deliver: Deliver
) -> None:
    docids = [deliver(keywords=["spam"]) for _ in range(2)]
    changes: dict[int, Meanwhile] = {
        0: lambda theirs: theirs.edit_keywords(docids[0], remove=[Keyword("spam")])
    }
    with somebody_else(store, changes):
        assert edit_matching(store, ["tag:spam"], Operation("expunge"), expunge) == 1
    assert docids_of(store) == [docids[0]]


@pytest.mark.usefixtures("small_slices")
def test_a_slice_without_a_change_hides_no_change_of_others(store: Store, deliver: Deliver) -> None:
    """A transaction in which nothing changed takes no modseq: the next one has its number."""
    docids = [deliver(keywords=["todo", "done"][n > 0 :]) for n in range(3)]
    changes: dict[int, Meanwhile] = {
        1: lambda theirs: theirs.edit_keywords(docids[2], [Keyword("mine")])
    }

    def edit(transaction: Transaction, docid: Docid) -> bool:
        return docid == docids[2] and transaction.edit_keywords(docid, [Keyword("todo")])

    with somebody_else(store, changes):
        assert edit_matching(store, ["tag:done", "-tag:mine"], Operation("test"), edit) == 0
    assert docids_of(store, "tag:todo") == docids[:1]


@pytest.mark.usefixtures("small_slices")
def test_what_is_done_to_one_message_does_not_keep_the_others_as_they_were(
    store: Store, deliver: Deliver
) -> None:
    """`thread:{tag:todo}` matches none of the thread any more, when the first of it is done."""
    docids = [deliver(subject="x", keywords=["todo"])]
    for number in (2, 3):
        raw = store.load(docids[0]).replace(b"<1@", b"<%d@" % number)
        docids.append(deliver(raw=raw.replace(b"\n\n", b"\nReferences: <1@example.org>\n\n", 1)))
    changes: dict[int, Meanwhile] = {
        1: lambda theirs: theirs.searches.save("other", "tag:other"),
        2: lambda theirs: theirs.edit_keywords(docids[0], [Keyword("other")]),
    }
    with somebody_else(store, changes):
        assert edit_matching(store, ["thread:{tag:todo}"], Operation("tag"), tag_done) == 3
    assert docids_of(store, "tag:done") == docids


def test_it_survives_power_loss_when_the_command_has_ended(
    store: Store, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver()
    left: list[int] = []
    monkeypatch.setattr(store.writer, "sync", lambda: left.append(count_of(store)))
    edit_matching(store, ["*"], Operation("expunge"), expunge)
    assert left == [0]
