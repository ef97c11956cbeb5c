"""mailfs log, undo, undelete and expire; search and count of what is expunged."""

import json
import re
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from mailfs.errors import EX_NOINPUT, EX_NOPERM, EX_USAGE
from mailfs.ids import Docid
from mailfs.message.keywords import FLAGGED, SEEN
from mailfs.store.journal import Actor, Operation
from mailfs.store.store import Store
from tests.fakes import Deliver, RunMailfs, make_mbox, make_message
from tests.oracle import count_of, docids_of

DAY_S = 86_400


@pytest.fixture
def mailfs(store: Store, run_mailfs: RunMailfs) -> RunMailfs:
    """The command with the store of this test."""
    return partial(run_mailfs, store=store.layout.root)


def said(done: "subprocess.CompletedProcess[str]") -> str:
    """What a command that must succeed has printed."""
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def expunge_days_ago(store: Store, docid: Docid, days: int) -> None:
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.set_expunged(docid, int(time.time()) - days * DAY_S)


def number_of(mailfs: RunMailfs) -> str:
    """Of the newest operation."""
    return said(mailfs("log", "--limit=1")).split()[0]


# --- log


def test_log_has_a_line_an_operation_newest_first(
    store: Store, deliver: Deliver, mailfs: RunMailfs
) -> None:
    for _ in range(3):
        deliver(keywords=["inbox"])
    said(mailfs("tag", "+todo", "-inbox", "*"))
    said(mailfs("expunge", "id:1@example.org"))
    lines = said(mailfs("log", "--limit", "2")).splitlines()
    line = r" *\d+  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d  [^ ]+\(\d+\)  (.*)"
    found = [re.fullmatch(line, each) for each in lines]
    assert [each and each[1] for each in found] == [
        "expunge: 1 expunged",
        "tag +todo -inbox: 3 tagged",
    ]
    assert len(said(mailfs("log")).splitlines()) == 5


def test_log_names_what_an_import_was_of(mailfs: RunMailfs) -> None:
    mbox = b"".join(make_mbox(make_message(number) for number in range(3))).decode()
    said(mailfs("import", "-", input=mbox))
    assert said(mailfs("log")).rstrip().endswith("import -: 3 added")


def test_log_names_the_folder_of_a_delivery(mailfs: RunMailfs) -> None:
    said(mailfs("deliver", input=make_message(1).decode()))
    assert said(mailfs("log")).rstrip().endswith("delivery into inbox: 1 added")


def test_log_of_a_query_has_only_what_touched_its_messages(
    deliver: Deliver, mailfs: RunMailfs
) -> None:
    deliver(subject="apples")
    deliver(subject="pears")
    said(mailfs("tag", "+fruit", "subject:apples"))
    said(mailfs("expunge", "subject:apples"))
    lines = said(mailfs("log", "subject:apples")).splitlines()
    assert [line.split("  ")[-1].partition(":")[0] for line in lines] == [
        "expunge",
        "tag +fruit",
        "deliver",
    ]
    assert said(mailfs("log", "subject:plums")) == ""


def test_verbose_log_lists_messages_and_searches(deliver: Deliver, mailfs: RunMailfs) -> None:
    docid = deliver(subject="apples", flags=SEEN)
    said(mailfs("tag", "+flagged", "+todo", "-seen", "*"))
    said(mailfs("save", "work", "tag:work"))
    said(mailfs("save", "--replace", "work", "tag:job"))
    lines = [line.strip() for line in said(mailfs("log", "-v")).splitlines()]
    assert "search work saved: tag:work" in lines
    assert "search work changed from tag:work to tag:job" in lines
    assert f"{docid}  +$flagged +todo -$seen  apples" in lines
    assert f"{docid}  added  apples" in lines


def test_a_subject_or_a_command_does_not_steer_the_terminal(
    store: Store, deliver: Deliver, mailfs: RunMailfs
) -> None:
    docid = deliver(subject="a\x1b[2Jb")
    operation = Operation("a reason\x1b[2J", Actor(1, "evil\x1b]0;x\x07"))
    with store.writer.transaction("test", durable=True, operation=operation) as transaction:
        transaction.edit_flags(docid, FLAGGED, 0)
    text = said(mailfs("log", "-v"))
    assert "\x1b" not in text
    assert "evil]0;x(1)  a reason[2J: 1 flagged" in text


def test_json_log_is_an_array_with_everything(
    store: Store, deliver: Deliver, mailfs: RunMailfs
) -> None:
    docid = deliver(flags=SEEN)
    said(mailfs("tag", "+todo", "-seen", "*"))
    newest, first = json.loads(said(mailfs("log", "--json", "-v")))
    assert newest.keys() >= {"operation", "time", "pid", "command", "reason", "undoes"}
    assert newest["reason"] == "tag +todo -$seen"
    assert abs(newest["time"] - time.time()) < 600
    assert newest["counts"]["tagged"] == newest["counts"]["flagged"] == 1
    assert newest["messages"] == [
        {
            "docid": docid,
            "expunged_before": 0,
            "expunged_after": 0,
            "added": ["todo"],
            "removed": ["$seen"],
        }
    ]
    assert first["added"] == [[docid, docid]]
    assert json.loads(said(mailfs("log", "--json", "subject:plums"))) == []


# --- undo


def test_undo_takes_the_newest_back_and_says_what(
    store: Store, deliver: Deliver, mailfs: RunMailfs
) -> None:
    for _ in range(3):
        deliver()
    said(mailfs("expunge", "*"))
    number = number_of(mailfs)
    text = said(mailfs("undo"))
    assert text.startswith(f"undid {number} ")
    assert "expunge: 3 expunged" in text
    assert text.endswith("\n3 messages as before\n")
    assert count_of(store) == 3
    lines = said(mailfs("log")).splitlines()
    assert lines[0].endswith(f"undo {number}: 3 brought back")
    assert lines[1].endswith(f"expunge: 3 expunged (undone by {number_of(mailfs)})")


def test_undo_of_an_undo_does_it_again(store: Store, deliver: Deliver, mailfs: RunMailfs) -> None:
    deliver()
    said(mailfs("expunge", "*"))
    said(mailfs("undo"))
    said(mailfs("undo", number_of(mailfs)))
    assert count_of(store) == 0


def test_undo_goes_back_step_by_step(store: Store, deliver: Deliver, mailfs: RunMailfs) -> None:
    deliver()
    for word in ("a", "b"):
        said(mailfs("tag", f"+{word}", "*"))
    said(mailfs("undo"))
    assert (count_of(store, "tag:a"), count_of(store, "tag:b")) == (1, 0)
    said(mailfs("undo"))
    assert count_of(store, "tag:a") == 0
    said(mailfs("undo"))
    assert count_of(store) == 0
    done = mailfs("undo")
    assert done.returncode == EX_NOPERM
    assert "nothing that could be undone" in done.stderr


def test_undo_of_an_import_expunges_what_it_brought(
    store: Store, mailfs: RunMailfs, tmp_path: Path
) -> None:
    source = tmp_path / "work.mbox"
    source.write_bytes(b"".join(make_mbox(make_message(number) for number in range(3))))
    said(mailfs("import", source))
    assert said(mailfs("log")).rstrip().endswith(f"import {source}: 3 added, 1 search changed")
    said(mailfs("tag", "+mine", "id:1@example.org"))
    number = said(mailfs("log")).splitlines()[1].split()[0]
    text = said(mailfs("undo", number)).splitlines()[1]
    assert text == (
        "2 of those it added expunged, 1 search as before; 1 was changed since and stays as it is"
    )
    assert count_of(store) == 1


def test_what_was_changed_since_is_said_and_refused_where_it_is_all(
    store: Store, deliver: Deliver, mailfs: RunMailfs
) -> None:
    deliver()
    said(mailfs("tag", "+a", "*"))
    number = number_of(mailfs)
    said(mailfs("tag", "-a", "*"))
    said(mailfs("undo"))
    said(mailfs("expunge", "*"))
    done = mailfs("undo", number)
    assert (done.returncode, done.stdout) == (EX_NOPERM, "")
    assert f"operation {number} is left as it is: 1 was changed since" in done.stderr
    assert count_of(store) == 0


def test_undo_twice_says_that_nothing_was_left_to_do(deliver: Deliver, mailfs: RunMailfs) -> None:
    deliver()
    said(mailfs("tag", "+a", "*"))
    number = number_of(mailfs)
    said(mailfs("undo", number))
    assert "as it was before already" in said(mailfs("undo", number))


def test_an_operation_that_is_not_in_the_journal_is_told(mailfs: RunMailfs) -> None:
    done = mailfs("undo", "77")
    assert (done.returncode, done.stdout) == (EX_NOINPUT, "")
    assert "no operation 77 in the journal: see `mailfs log`" in done.stderr
    assert mailfs("undo", "x").returncode == EX_USAGE


# --- expunged messages


def test_undelete_brings_back_what_matches_as_it_was(
    store: Store, deliver: Deliver, mailfs: RunMailfs
) -> None:
    apples = deliver(subject="apples", keywords=["inbox", "todo"], flags=SEEN)
    deliver(subject="pears", keywords=["inbox"])
    said(mailfs("expunge", "*"))
    assert said(mailfs("undelete", "--dry-run", "subject:apples")) == "1 would be brought back\n"
    assert count_of(store) == 0
    assert said(mailfs("undelete", "tag:todo")) == "1 brought back\n"
    assert docids_of(store, "tag:inbox tag:todo is:seen") == [apples]
    assert said(mailfs("undelete", "tag:todo")) == "0 brought back\n"
    assert said(mailfs("log", "--limit=1")).rstrip().endswith("undelete: 1 brought back")


def test_search_and_count_find_expunged_messages_where_asked(
    deliver: Deliver, mailfs: RunMailfs
) -> None:
    docid = deliver(subject="apples", flags=SEEN)
    deliver(subject="pears")
    said(mailfs("expunge", "subject:apples"))
    assert said(mailfs("count", "--expunged", "*")) == "1\n"
    assert said(mailfs("count", "--expunged", "subject:pears")) == "0\n"
    assert said(mailfs("count", "*")) == "1\n"
    (line,) = said(mailfs("search", "--expunged", "is:seen")).splitlines()
    assert line.split()[0] == str(docid)
    assert "apples" in line
    (path,) = said(mailfs("search", "--expunged", "--output=files", "*")).splitlines()
    assert re.fullmatch(rf"\.expunged/cur/\d+\.M{docid}\.[0-9a-z]+,S=\d+:2,S", path)


# --- expire


def test_expire_reclaims_what_is_older_than_a_month(
    store: Store, deliver: Deliver, mailfs: RunMailfs
) -> None:
    old, young = deliver(), deliver()
    expunge_days_ago(store, old, 31)
    expunge_days_ago(store, young, 29)
    text = said(mailfs("expire"))
    assert re.fullmatch(r"1 reclaimed; compact can free \d+ B\n", text)
    assert said(mailfs("expire")) == "nothing to reclaim\n"
    assert store.index.expunged_docids() == [young]


def test_expire_takes_the_ages_queries_know(
    store: Store, deliver: Deliver, mailfs: RunMailfs
) -> None:
    for days in (400, 100, 20, 3):
        expunge_days_ago(store, deliver(), days)
    for age, left in (("1y", 3), ("2m", 2), ("2w", 1), ("5d", 1), ("2 days", 0)):
        said(mailfs("expire", "--older", age))
        assert len(store.index.expunged_docids()) == left


@pytest.mark.parametrize("age", ["", "30", "yesterday", "3 blue moons", "-1d", "1d ago"])
def test_an_age_that_is_none_is_told(mailfs: RunMailfs, age: str) -> None:
    done = mailfs("expire", f"--older={age}")
    assert (done.returncode, done.stdout) == (EX_USAGE, "")
    assert f"--older {age}: " in done.stderr


def test_a_dry_run_says_what_goes_when(store: Store, deliver: Deliver, mailfs: RunMailfs) -> None:
    assert said(mailfs("expire", "--dry-run")) == "nothing is expunged\n"
    for days in (40, 31, 10, 10, 0):
        expunge_days_ago(store, deliver(), days)
    lines = said(mailfs("expire", "--dry-run", "--older", "30d")).splitlines()
    counts = [(line.split()[0], int(line.split()[1])) for line in lines]
    then = [time.strftime("%Y-%m-%d", time.gmtime(time.time() + n * DAY_S)) for n in (20, 30)]
    assert counts == [("now", 2), (then[0], 2), (then[1], 1)]
    assert len(store.index.expunged_docids()) == 5
