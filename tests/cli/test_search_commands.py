"""mailfs search, count, show, tag: what they print, and what their exit codes say."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from mailfs.cli.tagging import split_tag_words
from mailfs.errors import EX_NOINPUT, EX_USAGE, UsageError
from mailfs.ids import Keyword
from mailfs.message.keywords import ANSWERED, FLAGGED, SEEN
from mailfs.message.maildir import parse_base_or_none, split_name
from mailfs.store.store import Store
from tests.fakes import DATE_S, PROJECT, Deliver, RunMailfs, make_message
from tests.oracle import contents_of


@pytest.fixture
def mailfs(store: Store, run_mailfs: RunMailfs) -> RunMailfs:
    """The command with the store of this test."""
    return partial(run_mailfs, store=store.layout.root)


def lines(result: "subprocess.CompletedProcess[str]") -> list[str]:
    """What a command that must succeed has printed."""
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def output_of(store: Store, *arguments: str) -> bytes:
    """Standard output as bytes, of a command that must succeed."""
    return subprocess.run(
        [sys.executable, "-m", "mailfs", "--store", str(store.layout.root), *arguments],
        stdout=subprocess.PIPE,
        cwd=PROJECT,
        timeout=60,
        check=True,
    ).stdout


# --- count


def test_count_prints_the_number_alone(mailfs: RunMailfs, deliver: Deliver) -> None:
    for subject in ("one apple", "two apples", "a pear"):
        deliver(subject=subject)
    assert mailfs("count", "*").stdout == "3\n"
    assert mailfs("count", "subject:apple").stdout == "1\n"
    assert mailfs("count", "nothing-like-it").stdout == "0\n"


def test_the_words_of_a_query_are_joined(mailfs: RunMailfs, deliver: Deliver) -> None:
    deliver(subject="apple", keywords=["work"])
    deliver(subject="apple")
    assert lines(mailfs("count", "subject:apple", "tag:work")) == ["1"]
    assert lines(mailfs("count", "subject:apple", "and", "not", "tag:work")) == ["1"]
    assert lines(mailfs("count", "--", "-tag:work")) == ["1"]


@pytest.mark.parametrize(
    ("command", "query", "position"),
    [
        ("count", "from:(", 7),
        ("count", "foo:bar", 1),
        ("search", "apple date:never", 7),
        ("show", "a (b or c", 3),
    ],
)
def test_a_bad_query_is_told_with_the_place_in_it(
    mailfs: RunMailfs, command: str, query: str, position: int
) -> None:
    result = mailfs(command, query)
    assert (result.returncode, result.stdout) == (EX_USAGE, "")
    assert result.stderr.startswith(f"mailfs {command}: ")
    assert f"at character {position} of: {query}\n" in result.stderr


@pytest.mark.parametrize(
    "words", [["count", "x"], ["search", "x"], ["show", "x"], ["tag", "+a", "x"]], ids=str
)
def test_without_a_store_the_message_says_how_to_make_one(
    run_mailfs: RunMailfs, tmp_path: Path, words: list[str]
) -> None:
    result = run_mailfs(*words, store=tmp_path / "none")
    assert (result.returncode, result.stdout) == (EX_NOINPUT, "")
    assert f"no mailfs store at {tmp_path}/none: make one with `mailfs init`" in result.stderr
    assert not (tmp_path / "none").exists()


# --- search


def test_a_summary_is_one_line_with_number_day_sender_subject_and_keywords(
    mailfs: RunMailfs, deliver: Deliver
) -> None:
    deliver(subject="an apple", sender='"Ann Other" <ann@example.org>', keywords=["work", "seen"])
    (line,) = lines(mailfs("search", "*"))
    assert line.split() == [
        *("1", "2024-01-02", "Ann", "Other", "an", "apple"),
        *("($seen", "work)"),
    ]


def test_nothing_found_prints_nothing_and_is_no_error(mailfs: RunMailfs) -> None:
    assert lines(mailfs("search", "zzz")) == []
    assert json.loads(mailfs("search", "--output=json", "zzz").stdout) == []


def test_json_has_one_object_a_message(store: Store, mailfs: RunMailfs, deliver: Deliver) -> None:
    docid = deliver(subject="Grüße", keywords=["work"], flags=SEEN | FLAGGED, new=True)
    rows = json.loads("\n".join(lines(mailfs("search", "--output=json", "*"))))
    assert rows == [
        {
            "docid": docid,
            "message_id": "1@example.org",
            "date": DATE_S,
            "from": "Ann <ann@example.org>",
            "to": "bob@example.org",
            "subject": "Grüße",
            "keywords": ["$seen", "$flagged", "work"],
            "size": len(store.load(docid)),
            "blobs": 1,
            "thread": docid,
        }
    ]
    assert list(rows[0]) == [
        *("docid", "message_id", "date", "from", "to", "subject"),
        *("keywords", "size", "blobs", "thread"),
    ]


def test_orders_and_limits(mailfs: RunMailfs, deliver: Deliver) -> None:
    for day in (3, 1, 2):
        raw = f"Subject: day {day}\nDate: 0{day} Jan 2024 00:00:00 +0000\n\nx\n"
        deliver(raw=raw.encode())

    def days(*arguments: str) -> str:
        rows = json.loads(mailfs("search", "--output=json", *arguments, "*").stdout)
        return "".join(row["subject"][-1] for row in rows)

    assert days() == days("--sort=newest-first") == "321"
    assert days("--sort=oldest-first") == "123"
    assert days("--sort=docid") == "312"
    assert days("--limit=2") == "32"
    assert days("--limit=0") == ""
    assert mailfs("search", "--limit=many", "*").returncode == EX_USAGE


def test_message_ids_are_printed_as_queries_that_find_them(
    mailfs: RunMailfs, deliver: Deliver
) -> None:
    deliver()
    deliver(raw=b"Subject: no id\n\nx\n")
    (term,) = lines(mailfs("search", "--output=messages", "*"))
    assert term == "id:1@example.org"
    assert lines(mailfs("count", term)) == ["1"]


def test_threads_and_tags_are_printed_once_each(mailfs: RunMailfs, deliver: Deliver) -> None:
    deliver(raw=make_message(1), keywords=["work", "seen"])
    deliver(raw=make_message(2, references=["1@example.org"]), keywords=["work"])
    deliver(raw=make_message(3), keywords=["home"])
    assert sorted(lines(mailfs("search", "--output=threads", "*"))) == ["thread:1", "thread:3"]
    assert lines(mailfs("count", "thread:1")) == ["2"]
    assert sorted(lines(mailfs("search", "--output=tags", "*"))) == ["$seen", "home", "work"]


def test_files_are_the_names_the_mount_shows(
    store: Store, mailfs: RunMailfs, deliver: Deliver
) -> None:
    deliver(new=True)
    deliver(flags=SEEN | ANSWERED)
    new, cur = lines(mailfs("search", "--output=files", "--sort=docid", "*"))
    for path, docid, folder, letters in ((new, 1, "all/new", None), (cur, 2, "all/cur", b"RS")):
        head, _, name = path.rpartition("/")
        split = split_name(name.encode())
        base = parse_base_or_none(split.base)
        assert base is not None
        assert (head, split.letters) == (folder, letters)
        assert (base.docid, base.store_id) == (docid, store.layout.store_id)
        assert (base.received_s, base.size_bytes) == (DATE_S, store.index.entry(base.docid).size)


def test_a_reader_that_has_enough_is_no_error(store: Store, deliver: Deliver) -> None:
    for _ in range(3):
        deliver(subject="long " * 180)
    command = [sys.executable, "-m", "mailfs", "--store", str(store.layout.root)]
    process = subprocess.Popen(
        [*command, "show", "--format=mbox", "*"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=PROJECT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(60) == 128 + 13


# --- show

# What a terminal would obey: ESC, the one-byte CSI of C1, BEL, backspace, and the signs that turn text round.
COMMANDS = "\x1b[2J\x9b31m\x07\x08\u202e\u2066"


def evil_message() -> bytes:
    words = "".join(f"={byte:02X}" for byte in f"a{COMMANDS}b".encode())
    encoded = f"=?utf-8?q?{words}?="
    return (
        f"From: {encoded} <ann@example.org>\nTo: {encoded}\nCc: {encoded}\nSubject: {encoded}\n"
        "Message-ID: <a\x1b[2Jb@example.org>\n"
        "Content-Type: text/plain; charset=utf-8\n"
        f'Content-Disposition: attachment; filename="{encoded}"\n'
        "Date: Tue, 02 Jan 2024 03:04:05 +0000\n"
        f"\nbody {COMMANDS} end\ttab\rback\n"
    ).encode()


@pytest.mark.parametrize("output", ["summary", "messages", "threads", "tags", "files"])
def test_search_prints_nothing_a_terminal_obeys(
    mailfs: RunMailfs, deliver: Deliver, output: str
) -> None:
    deliver(raw=evil_message())
    text = mailfs("search", f"--output={output}", "*").stdout
    assert text.endswith("\n") or output == "tags"
    assert [sign for sign in text if not sign.isprintable() and sign != "\n"] == []


def test_show_prints_nothing_a_terminal_obeys(mailfs: RunMailfs, deliver: Deliver) -> None:
    deliver(raw=evil_message())
    result = mailfs("show", "*")
    assert result.returncode == 0
    assert "end\ttab" in result.stdout
    assert [sign for sign in result.stdout if not sign.isprintable() and sign not in "\n\t"] == []


def test_show_prints_the_fields_and_the_text(mailfs: RunMailfs, deliver: Deliver) -> None:
    deliver(subject="an apple", body="first\nsecond", keywords=["work", "flagged"])
    assert lines(mailfs("show", "*")) == [
        "From: Ann <ann@example.org>",
        "To: bob@example.org",
        "Date: Tue, 02 Jan 2024 03:04:05 +0000",
        "Subject: an apple",
        "Message-ID: <1@example.org>",
        "Keywords: $flagged work",
        "",
        "first",
        "second",
        "",
        "",
    ]


@pytest.mark.parametrize(
    "raw", [b"", b"\0\xff\r\nno header\r\r", make_message(1), b"From x\n>From y\n"], ids=repr
)
def test_raw_is_byte_for_byte_what_came(store: Store, deliver: Deliver, raw: bytes) -> None:
    deliver(raw=raw)
    assert output_of(store, "show", "--format=raw", "*") == raw


def test_raw_prints_one_message_only(mailfs: RunMailfs, deliver: Deliver) -> None:
    deliver()
    deliver()
    result = mailfs("show", "--format=raw", "*")
    assert (result.returncode, result.stdout) == (EX_USAGE, "")
    assert "2 match" in result.stderr


def test_show_of_nothing_is_told(mailfs: RunMailfs) -> None:
    result = mailfs("show", "zzz")
    assert (result.returncode, result.stdout) == (EX_NOINPUT, "")
    assert "no message matches" in result.stderr


def test_an_mbox_printed_can_be_imported_again_byte_for_byte(
    store: Store, run_mailfs: RunMailfs, deliver: Deliver, tmp_path: Path
) -> None:
    for body in ("plain", "From here on\n>From there\n>>From where", "\nFrom Ann Mon Jan 1\n\n"):
        deliver(body=body)
    printed = output_of(store, "show", "--format=mbox", "*")
    (tmp_path / "out.mbox").write_bytes(printed)
    run_mailfs("init", store=tmp_path / "copy")
    assert run_mailfs("import", tmp_path / "out.mbox", store=tmp_path / "copy").returncode == 0
    with Store.open(tmp_path / "copy") as copy:
        assert sorted(contents_of(copy).values()) == sorted(contents_of(store).values())


def test_show_goes_from_old_to_new_and_keeps_the_limit(mailfs: RunMailfs, deliver: Deliver) -> None:
    for day in (3, 1, 2):
        deliver(raw=f"Subject: day {day}\nDate: 0{day} Jan 2024 00:00:00 +0000\n\nx\n".encode())
    shown = [line for line in lines(mailfs("show", "--limit=2", "*")) if line[:8] == "Subject:"]
    assert shown == ["Subject: day 1", "Subject: day 2"]


# --- tag


def test_keywords_are_put_on_and_taken_off(
    store: Store, mailfs: RunMailfs, deliver: Deliver
) -> None:
    one = deliver(subject="apple", keywords=["inbox", "flagged"])
    two = deliver(subject="pear", keywords=["inbox"])
    assert lines(mailfs("tag", "+Fruit", "+seen", "-inbox", "-$flagged", "subject:apple")) == []
    found = store.index.summaries([one, two])
    assert [(summary.flags, summary.keywords) for summary in found] == [
        (SEEN, ("fruit",)),
        (0, ("inbox",)),
    ]


def test_a_keyword_to_be_taken_off_may_come_first(
    store: Store, mailfs: RunMailfs, deliver: Deliver
) -> None:
    docid = deliver(keywords=["inbox"])
    assert lines(mailfs("tag", "-inbox", "*")) == []
    assert store.index.summaries([docid])[0].keywords == ()


def test_unread_is_the_absence_of_seen(mailfs: RunMailfs, deliver: Deliver) -> None:
    deliver(flags=SEEN)
    assert lines(mailfs("tag", "+unread", "*")) == []
    assert lines(mailfs("count", "is:unread")) == ["1"]
    assert lines(mailfs("tag", "+x", "-unread", "*")) == []
    assert lines(mailfs("count", "is:unread")) == ["0"]
    assert lines(mailfs("search", "--output=tags", "*")) == ["$seen", "x"]


def test_a_query_may_begin_with_a_minus_behind_two(mailfs: RunMailfs, deliver: Deliver) -> None:
    deliver(keywords=["work"])
    deliver()
    assert lines(mailfs("tag", "+other", "--", "-tag:work")) == []
    assert lines(mailfs("count", "tag:other", "not", "tag:work")) == ["1"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["+work"], "a query"),
        (["+work", "--"], "a query"),
        (["*"], "+KEYWORD or -KEYWORD"),
        ([], "+KEYWORD"),
        (["+", "*"], "a keyword has"),
        (["+a(b", "*"], "cannot contain"),
        (["+work", "from:("], "at character 7 of: from:("),
    ],
    ids=str,
)
def test_words_that_make_no_sense_are_refused_and_change_nothing(
    store: Store, mailfs: RunMailfs, deliver: Deliver, words: list[str], reason: str
) -> None:
    deliver()
    before = store.index.state()
    result = mailfs("tag", *words)
    assert (result.returncode, result.stdout) == (EX_USAGE, "")
    assert reason in result.stderr
    assert store.index.state() == before


def test_tagging_what_has_the_keyword_changes_nothing(
    store: Store, mailfs: RunMailfs, deliver: Deliver
) -> None:
    deliver(keywords=["work"])
    before = store.index.state()
    assert lines(mailfs("tag", "+work", "-other", "*")) == []
    assert store.index.state() == before


@pytest.mark.parametrize(
    ("words", "add", "remove", "query"),
    [
        (["+a", "-b", "c", "+d"], ["a"], ["b"], ["c", "+d"]),
        (["+a", "--", "-b"], ["a"], [], ["-b"]),
        (["-unread", "*"], ["$seen"], [], ["*"]),
        (["+Unread", "*"], [], ["$seen"], ["*"]),
    ],
    ids=str,
)
def test_the_words_of_tag_are_split_at_the_query(
    words: list[str], add: list[str], remove: list[str], query: list[str]
) -> None:
    assert split_tag_words(words) == (
        list(map(Keyword, add)),
        list(map(Keyword, remove)),
        query,
    )


@pytest.mark.parametrize("words", [[], ["*"], ["+a"], ["--", "+a"]], ids=str)
def test_words_without_keyword_or_query_cannot_be_split(words: list[str]) -> None:
    with pytest.raises(UsageError):
        split_tag_words(words)


# --- starting up

HEAVY_CHECK = """
import sys
from mailfs.cli.main import main
code = main(sys.argv[1:])
heavy = {"pyfuse3", "trio", "tqdm", "email"} & set(sys.modules)
sys.exit(f"imported: {sorted(heavy)}" if heavy else code)
"""


@pytest.mark.parametrize(
    "words",
    [["count", "*"], ["search", "*"], ["tag", "+a", "*"], ["searches"], ["verify"], ["show", "*"]],
    ids=lambda words: words[0],
)
def test_starting_up_stays_light(store: Store, deliver: Deliver, words: list[str]) -> None:
    deliver()
    result = subprocess.run(
        [sys.executable, "-c", HEAVY_CHECK, "--store", str(store.layout.root), *words],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_an_option_behind_the_query_is_an_option_and_a_word_with_a_dash_is_none(
    mailfs: RunMailfs, deliver: Deliver
) -> None:
    deliver(subject="apple")
    deliver(subject="apple pear")
    assert mailfs("count", "apple", "-pear").stdout == "1\n"
    assert mailfs("count", "-pear").stdout == "1\n"
    assert len(mailfs("search", "apple", "--limit", "1").stdout.splitlines()) == 1
    assert mailfs("count", "apple", "--", "-pear").stdout == "1\n"
    refused = mailfs("search", "apple", "--limti=1")
    assert (refused.returncode, refused.stdout) == (EX_USAGE, "")
    mailfs("save", "mine", "apple", "--on-rm=refuse")
    assert "mine" in mailfs("searches").stdout
    assert "on-rm = refuse" in mailfs("searches").stdout
