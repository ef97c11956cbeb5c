"""mailfs init, verify, save, searches, forget: outputs, exit codes, and who may read what they make."""

import json
import os
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from mailfs.cli.main import default_store
from mailfs.errors import EX_CANTCREAT, EX_DATAERR, EX_IOERR, EX_NOINPUT, EX_NOPERM, EX_USAGE
from mailfs.store.store import Store
from tests.fakes import PROJECT, Deliver, RunMailfs, make_mbox, make_message
from tests.oracle import assert_sound

FIRST = {"all": "*", "flagged": "is:flagged", "inbox": "tag:inbox", "unread": "is:unread"}


@pytest.fixture
def mailfs(store: Store, run_mailfs: RunMailfs) -> RunMailfs:
    """The command with the store of this test."""
    return partial(run_mailfs, store=store.layout.root)


def searches_of(mailfs: RunMailfs) -> dict[str, str]:
    return {row["name"]: row["query"] for row in json.loads(mailfs("searches", "--json").stdout)}


# --- init and where the store is


def test_init_makes_a_sound_store_and_says_where(run_mailfs: RunMailfs, tmp_path: Path) -> None:
    root = tmp_path / "deep" / "store"
    result = run_mailfs("init", store=root)
    assert (result.returncode, result.stdout) == (0, f"made a store at {root}\n")
    assert_sound(root)


def test_init_is_refused_where_something_is(run_mailfs: RunMailfs, tmp_path: Path) -> None:
    assert run_mailfs("init", store=tmp_path / "store").returncode == 0
    again = run_mailfs("init", store=tmp_path / "store")
    assert (again.returncode, again.stdout) == (EX_CANTCREAT, "")
    assert "is a mailfs store already" in again.stderr
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter.txt").write_text("mine")
    foreign = run_mailfs("init", store=tmp_path / "home")
    assert foreign.returncode == EX_CANTCREAT
    assert "letter.txt" in foreign.stderr
    assert os.listdir(tmp_path / "home") == ["letter.txt"]
    assert_sound(tmp_path / "store")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"MAILFS_STORE": "/a", "XDG_DATA_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"MAILFS_STORE": "", "XDG_DATA_HOME": "/b", "HOME": "/c"}, "/b/mailfs"),
        ({"XDG_DATA_HOME": "", "HOME": "/c"}, "/c/.local/share/mailfs"),
    ],
)
def test_the_store_is_named_or_lies_where_xdg_says(
    environment: dict[str, str], expected: str
) -> None:
    assert default_store(environment) == Path(expected)


def test_without_a_store_the_commands_say_so(run_mailfs: RunMailfs, tmp_path: Path) -> None:
    for words in (["verify"], ["searches"], ["save", "a", "b"], ["forget", "inbox"]):
        result = run_mailfs(*words, store=tmp_path / "none")
        assert (result.returncode, result.stdout) == (EX_NOINPUT, ""), words
        assert "mailfs init" in result.stderr


@pytest.mark.parametrize("words", [[], ["fly"], ["count"], ["search", "--output=paper", "*"]])
def test_a_command_line_that_cannot_be_understood_has_exit_code_64(
    mailfs: RunMailfs, words: list[str]
) -> None:
    result = mailfs(*words)
    assert (result.returncode, result.stdout) == (EX_USAGE, "")
    assert "usage: mailfs" in result.stderr


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["import", "--help"]], ids=str)
def test_help_and_version_need_no_store(run_mailfs: RunMailfs, words: list[str]) -> None:
    result = run_mailfs(*words)
    assert (result.returncode, result.stderr) == (0, "")
    assert "mailfs" in result.stdout


# --- verify


def test_verify_counts_what_it_looked_at(mailfs: RunMailfs, deliver: Deliver) -> None:
    deliver()
    deliver()
    result = mailfs("verify")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "2 messages, 0 expunged, 2 blobs in 1 packs: no problems\n"
    quiet = mailfs("verify", "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_verify_of_a_damaged_store_names_the_damage_and_fails(
    run_mailfs: RunMailfs, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    run_mailfs("init", store=root)
    run_mailfs("import", "-", store=root, input=make_message(1).decode())
    pack = root / "packs/00000001.pack"
    content = pack.read_bytes()
    pack.write_bytes(content[:-1] + bytes([content[-1] ^ 0xFF]))
    for options in ([], ["-q"]):
        result = run_mailfs("verify", *options, store=root)
        assert result.returncode == EX_DATAERR
        assert result.stderr.startswith("problem: pack 1 at 16 (message 1, blob 1): ")
        assert result.stderr.endswith("`mailfs verify --repair` mends what can be mended\n")
        assert result.stdout.endswith("1 problems\n") == (not options)
    (found,) = json.loads(run_mailfs("verify", "--json", store=root).stdout)
    assert (found["severity"], found["kind"], found["number"]) == ("problem", "blob", 1)


def test_repair_says_whose_message_is_lost_and_the_next_has_nothing_to_do(
    run_mailfs: RunMailfs, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    run_mailfs("init", store=root)
    run_mailfs("import", "-", store=root, input=make_message(1, subject="a lost one").decode())
    pack = root / "packs/00000001.pack"
    content = pack.read_bytes()
    pack.write_bytes(content[:-1] + bytes([content[-1] ^ 0xFF]))
    result = run_mailfs("verify", "--repair", store=root)
    assert result.returncode == EX_DATAERR
    assert "lost: pack 1 at 16 (message 1, blob 1): " in result.stderr
    assert "<1@example.org> from Ann <ann@example.org>: a lost one" in result.stderr
    assert result.stdout == "0 mended, 1 lost, 0 not mended\n"
    assert run_mailfs("verify", "--quiet", store=root).returncode == 0
    assert run_mailfs("count", "*", store=root).stdout == "0\n"
    assert "verify --repair: 1 expunged" in run_mailfs("log", store=root).stdout
    before = (root / "index.sqlite3").read_bytes()
    assert run_mailfs("verify", "--repair", store=root).returncode == EX_DATAERR
    assert (root / "index.sqlite3").read_bytes() == before


def test_a_backup_is_good_only_for_a_repair(mailfs: RunMailfs, tmp_path: Path) -> None:
    assert mailfs("verify", "--from", tmp_path).returncode == EX_USAGE
    assert mailfs("verify", "--repair", "--from", tmp_path).stderr.startswith("mailfs verify: ")


def test_a_message_whose_bytes_are_damaged_is_an_error_not_a_traceback(
    run_mailfs: RunMailfs, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    run_mailfs("init", store=root)
    run_mailfs("import", "-", store=root, input=make_message(1).decode())
    pack = root / "packs/00000001.pack"
    pack.write_bytes(pack.read_bytes()[:-1])
    result = run_mailfs("show", "*", store=root)
    assert result.returncode == EX_IOERR
    assert result.stderr.startswith("mailfs show: pack 1 at ")
    assert run_mailfs("count", "*", store=root).stdout == "1\n"


def test_notes_are_no_problem_and_are_not_printed_when_quiet(
    run_mailfs: RunMailfs, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    run_mailfs("init", store=root)
    (root / "packs/core").write_bytes(b"")
    (root / "packs/core").chmod(0o600)
    result = run_mailfs("verify", store=root)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("note: packs/core: is no pack\n")
    assert run_mailfs("verify", "--quiet", store=root).stdout == ""


# --- saved searches


def test_a_search_is_saved_listed_and_forgotten(mailfs: RunMailfs) -> None:
    assert searches_of(mailfs) == FIRST
    result = mailfs("save", "people/bob", "from:bob", "is:unread")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert searches_of(mailfs) == FIRST | {"people/bob": "from:bob is:unread"}
    assert mailfs("forget", "people/bob").returncode == 0
    assert searches_of(mailfs) == FIRST


def test_forgetting_a_search_leaves_its_messages(mailfs: RunMailfs, deliver: Deliver) -> None:
    deliver(keywords=["inbox"])
    mailfs("forget", "inbox")
    assert mailfs("count", "tag:inbox").stdout == "1\n"


def test_the_list_is_a_table_of_names_and_queries(mailfs: RunMailfs) -> None:
    mailfs("save", "--on-rm=refuse", "a-longer-name", "from:bob")
    assert mailfs("searches").stdout.splitlines() == [
        "a-longer-name  from:bob  (on-rm = refuse)",
        "all            *",
        "flagged        is:flagged",
        "inbox          tag:inbox",
        "unread         is:unread",
    ]
    rows = json.loads(mailfs("searches", "--json").stdout)
    assert rows[0] == {"name": "a-longer-name", "query": "from:bob", "on_rm": "refuse"}
    assert rows[1] == {"name": "all", "query": "*", "on_rm": None}


def test_a_name_that_is_taken_is_refused_unless_it_is_to_be_replaced(mailfs: RunMailfs) -> None:
    mailfs("save", "mine", "from:ann")
    result = mailfs("save", "mine", "from:bob")
    assert result.returncode == EX_CANTCREAT
    assert "a search named mine is saved already" in result.stderr
    assert searches_of(mailfs)["mine"] == "from:ann"
    assert mailfs("save", "--replace", "mine", "from:bob").returncode == 0
    assert searches_of(mailfs)["mine"] == "from:bob"


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["mine", "from:("], EX_USAGE, "at character 7 of: from:("),
        (["cur", "from:ann"], EX_NOPERM, "'cur'"),
        (["a/.mailfs", "from:ann"], EX_NOPERM, ".mailfs"),
        (["/a", "from:ann"], EX_NOPERM, "relative"),
        (["a/../b", "from:ann"], EX_NOPERM, "relative"),
        (["", "from:ann"], EX_NOPERM, "relative"),
        (["a\x1bb", "from:ann"], EX_NOPERM, "control"),
        (["x" * 256, "from:ann"], EX_NOPERM, "255"),
        (["--on-rm=untag", "mine", "from:ann"], EX_USAGE, "requires none"),
        (["--on-rm=burn", "mine", "from:ann"], EX_USAGE, "burn"),
    ],
    ids=str,
)
def test_a_search_that_cannot_be_is_refused_with_a_reason(
    mailfs: RunMailfs, words: list[str], code: int, reason: str
) -> None:
    result = mailfs("save", *words)
    assert (result.returncode, result.stdout) == (code, "")
    assert reason in result.stderr
    assert "\x1b" not in result.stderr
    assert searches_of(mailfs) == FIRST


@pytest.mark.parametrize("on_rm", ["unlink", "untag", "expunge", "refuse"])
def test_what_rm_means_is_kept_with_the_search(mailfs: RunMailfs, on_rm: str) -> None:
    assert mailfs("save", f"--on-rm={on_rm}", "mine", "tag:work").returncode == 0
    rows = json.loads(mailfs("searches", "--json").stdout)
    assert [row["on_rm"] for row in rows if row["name"] == "mine"] == [on_rm]


def test_forgetting_what_nobody_saved_is_told(mailfs: RunMailfs) -> None:
    result = mailfs("forget", "none")
    assert (result.returncode, result.stdout) == (EX_NOINPUT, "")
    assert "mailfs searches" in result.stderr


# --- who may read a store


def test_nobody_else_can_read_what_the_commands_make_whatever_the_umask(tmp_path: Path) -> None:
    root = tmp_path / "store"
    mbox = tmp_path / "mail.mbox"
    mbox.write_bytes(b"".join(make_mbox(make_message(n) for n in range(3))))
    for words in (
        ["init"],
        ["import", str(mbox)],
        ["tag", "+work", "*"],
        ["save", "mine", "from:ann"],
        ["verify"],
    ):
        subprocess.run(
            [sys.executable, "-m", "mailfs", "--store", str(root), *words],
            stdout=subprocess.DEVNULL,
            cwd=PROJECT,
            umask=0,
            timeout=60,
            check=True,
        )
        modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in (root, *root.rglob("*"))}
        wrong = {
            str(path): oct(mode)
            for path, mode in modes.items()
            if mode != (0o700 if path.is_dir() else 0o600)
        }
        assert wrong == {}, words
