"""mailfs dump, restore, reindex and backup: outputs, exit codes, pipes; and the manual's way to restore a backup."""

import gzip
import os
import pty
import re
import stat
import subprocess
import sys
import termios
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from mailfs.errors import EX_DATAERR, EX_TEMPFAIL, EX_USAGE
from mailfs.ids import Docid, Keyword
from mailfs.store.store import Store
from mailfs.store.upkeep.dump import save_own_dump
from tests.fakes import PROJECT, Deliver, RunMailfs, make_message, new_message
from tests.mount.conftest import why_not
from tests.oracle import assert_sound, contents_of, docids_of

TODO = Keyword("todo")


@pytest.fixture
def mailfs(store: Store, run_mailfs: RunMailfs) -> RunMailfs:
    """The command with the store of this test."""
    return partial(run_mailfs, store=store.layout.root)


def on_a_terminal(*words: str | Path) -> str:
    """What the command writes to a terminal as its standard error."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "mailfs", *map(str, words)],
            stderr=theirs,
            stdout=subprocess.DEVNULL,
            cwd=PROJECT,
            timeout=60,
            check=False,
        )
        os.close(theirs)
        assert done.returncode == 0
        written = b""
        with suppress(OSError):  # EIO: all of it has been read
            while piece := os.read(ours, 1 << 16):
                written += piece
        return written.decode()
    finally:
        os.close(ours)


def take_off_todo(store: Store) -> None:
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.edit_keywords(Docid(1), remove=[TODO])


# --- dump, restore


def test_a_dump_goes_through_a_pipe_and_back(
    store: Store, deliver: Deliver, mailfs: RunMailfs
) -> None:
    deliver(keywords=["todo", "größe"])
    deliver()
    dump = mailfs("dump")
    assert (dump.returncode, dump.stderr) == (0, "")
    assert dump.stdout.isascii()
    take_off_todo(store)
    back = mailfs("restore", input=dump.stdout)
    assert (back.returncode, back.stderr) == (0, "")
    assert back.stdout == "2 messages found, 1 of them changed; 0 searches changed\n"
    assert docids_of(store, "tag:todo") == [1]
    undone = mailfs("undo")
    assert undone.returncode == 0, undone.stderr
    assert docids_of(store, "tag:todo") == []


@pytest.mark.parametrize("name", ["dump", "dump.gz"])
def test_a_dump_in_a_file_is_read_from_there(
    store: Store, deliver: Deliver, mailfs: RunMailfs, tmp_path: Path, name: str
) -> None:
    deliver(keywords=["todo"])
    done = mailfs("dump", tmp_path / name)
    assert done.stdout == f"1 messages dumped to {tmp_path / name}\n"
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert ((tmp_path / name).read_bytes()[:2] == b"\x1f\x8b") == name.endswith(".gz")
    take_off_todo(store)
    assert mailfs("restore", tmp_path / name).returncode == 0
    assert docids_of(store, "tag:todo") == [1]


def test_a_query_dumps_these_messages_alone(deliver: Deliver, mailfs: RunMailfs) -> None:
    deliver(keywords=["todo"]), deliver(), deliver(keywords=["todo"])
    lines = mailfs("dump", "-", "tag:todo", "-subject:none").stdout.splitlines()
    assert '"query":"tag:todo -subject:none"' in lines[0]
    assert [line[:12] for line in lines if line.startswith('{"message"')] == [
        '{"message":1',
        '{"message":3',
    ]
    assert mailfs("dump", "-", "(").returncode == EX_USAGE


def test_accumulate_is_an_option(store: Store, deliver: Deliver, mailfs: RunMailfs) -> None:
    deliver(keywords=["todo"])
    dump = mailfs("dump").stdout
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.edit_keywords(Docid(1), add=[Keyword("new")], remove=[TODO])
    assert mailfs("restore", "--accumulate", input=dump).returncode == 0
    assert docids_of(store, "tag:todo tag:new") == [1]


def test_what_is_wrong_with_a_dump_is_told_with_its_line(
    store: Store, deliver: Deliver, mailfs: RunMailfs, tmp_path: Path
) -> None:
    deliver()
    (tmp_path / "dump").write_text(
        mailfs("dump").stdout.replace('"modseq":2,"ch', '"modseq":"x","ch')
    )
    done = mailfs("restore", tmp_path / "dump")
    assert done.returncode == EX_DATAERR
    assert re.search(r"dump: line 7 field 'modseq' is no number", done.stderr)
    for source, reason in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        done = mailfs("restore", source)
        assert (done.returncode, done.stdout) == (EX_DATAERR, "")
        assert reason in done.stderr
    assert mailfs("restore", input="").returncode == EX_DATAERR


def test_messages_that_are_not_here_are_counted(
    store: Store, deliver: Deliver, mailfs: RunMailfs, run_mailfs: RunMailfs, tmp_path: Path
) -> None:
    deliver()
    dump = mailfs("dump").stdout
    run_mailfs("init", store=tmp_path / "empty")
    done = run_mailfs("restore", store=tmp_path / "empty", input=dump)
    assert done.returncode == 0
    assert "1 messages of the dump are not here (there their numbers are 1)" in done.stderr


def test_nothing_is_left_in_the_store_by_a_pipe(mailfs: RunMailfs, store: Store) -> None:
    before = {path.name for path in store.layout.root.iterdir()}
    mailfs("restore", input=mailfs("dump").stdout)
    assert {path.name for path in store.layout.root.iterdir()} - before <= {"lock"}


# --- reindex


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A store nobody has open, with a dump and five messages."""
    with Store.create(tmp_path / "closed") as store:
        with store.writer.transaction("test", durable=True) as transaction:
            for number in range(5):
                transaction.add(new_message(make_message(number)))
            transaction.edit_keywords(Docid(2), add=[TODO])
        save_own_dump(store.layout)
    return tmp_path / "closed"


def test_an_index_is_made_anew(closed: Path, run_mailfs: RunMailfs) -> None:
    done = run_mailfs("reindex", store=closed)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"5 messages, 0 expunged, [\d.]+ s\n", done.stdout)
    assert_sound(closed)


def test_commands_without_an_index_say_what_to_do_and_after_it_all_is_well(
    closed: Path, run_mailfs: RunMailfs, tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    (closed / "index.sqlite3").unlink()
    for words in (["search", "*"], ["mount", str(tmp_path / "m")], ["tag", "+a", "*"]):
        done = run_mailfs(*words, store=closed)
        assert done.returncode != 0
        assert "is missing: run `mailfs reindex`" in done.stderr
    done = run_mailfs("reindex", store=closed)
    assert (done.returncode, done.stderr) == (0, "note: there is no old index\n")
    assert "5 by the dump alone" in done.stdout
    assert run_mailfs("count", "tag:todo", store=closed).stdout == "1\n"
    assert_sound(closed)


def test_what_is_wrong_with_a_pack_is_a_problem(closed: Path, run_mailfs: RunMailfs) -> None:
    (pack,) = (closed / "packs").iterdir()
    with pack.open("r+b") as file:
        file.seek(120)
        file.write(b"damage")
    done = run_mailfs("reindex", store=closed)
    assert done.returncode == EX_DATAERR
    assert re.search(r"^problem: message 1: pack 1 at 16: ", done.stderr, re.MULTILINE)
    assert run_mailfs("count", "*", store=closed).stdout == "5\n"


@pytest.mark.slow
def test_a_store_in_use_is_not_rebuilt_and_the_user_is_named(
    mailfs: RunMailfs,
) -> None:
    done = mailfs("reindex")
    assert done.returncode == EX_TEMPFAIL
    assert f"it is in use by pid {os.getpid()}" in done.stderr


def test_a_dump_can_be_named(closed: Path, run_mailfs: RunMailfs, tmp_path: Path) -> None:
    packed = tmp_path / "elsewhere.gz"
    packed.write_bytes(gzip.compress((closed / "dump").read_bytes()))
    (closed / "dump").unlink()
    (closed / "index.sqlite3").unlink()
    done = run_mailfs("reindex", "--dump", packed, store=closed)
    assert done.returncode == 0, done.stderr
    assert run_mailfs("count", "tag:todo", store=closed).stdout == "1\n"
    assert run_mailfs("reindex", "--dump", tmp_path / "none", store=closed).returncode == EX_DATAERR


def test_long_work_shows_a_bar_on_a_terminal(closed: Path, tmp_path: Path) -> None:
    assert "5/5" in on_a_terminal("--store", closed, "reindex")
    assert "B/s" in on_a_terminal("--store", closed, "backup", tmp_path / "backups")


# --- backup


def test_a_backup_is_a_store_that_says_what_it_is(
    store: Store, deliver: Deliver, mailfs: RunMailfs, run_mailfs: RunMailfs, tmp_path: Path
) -> None:
    deliver(keywords=["todo"])
    done = mailfs("backup", tmp_path / "backups")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        rf"{tmp_path}/backups/[-\dT.]+Z: [\d.]+ MB copied, 0 packs \(0\.0 MB\) shared with the one before\n",
        done.stdout,
    )
    latest = tmp_path / "backups" / "latest"
    assert run_mailfs("count", "tag:todo", store=latest).stdout == "1\n"
    verified = run_mailfs("verify", store=latest)
    assert verified.returncode == 0, verified.stderr
    removed = mailfs("backup", "--keep", "1", tmp_path / "backups").stdout
    assert f"removed {tmp_path}/backups/" in removed
    assert len(list((tmp_path / "backups").iterdir())) == 2
    assert mailfs("backup", "--keep", "0", tmp_path / "backups").returncode == EX_USAGE
    assert mailfs("backup", store.layout.root / "x").returncode == EX_USAGE


def restoring_examples() -> list[str]:
    """The blocks of commands in the manual's section RESTORING A BACKUP."""
    page = (PROJECT / "man" / "mailfs.1").read_text("utf-8")
    section = page.partition(".SH RESTORING A BACKUP\n")[2].partition("\n.SH ")[0]
    blocks = re.findall(r"^\.EX\n(.*?)^\.EE", section, re.DOTALL | re.MULTILINE)
    return [block.replace("\\-", "-").replace("\\(aq", "'") for block in blocks]


@pytest.mark.mount
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "mounts work")
def test_the_manual_restores_a_backup(closed: Path, run_mailfs: RunMailfs, tmp_path: Path) -> None:
    """As it stands there, with a home and a backup of this test."""
    home = tmp_path / "home"
    program = home / "bin" / "mailfs"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m mailfs "$@"\n')
    program.chmod(0o700)
    place = home / ".local/share/mailfs"
    place.parent.mkdir(parents=True)
    closed.rename(place)
    run_mailfs("backup", home / "backup", store=place)
    with Store.open(place) as store, store.writer.transaction("test", durable=True) as transaction:
        transaction.edit_keywords(Docid(2), remove=[TODO])
        transaction.edit_keywords(Docid(3), add=[Keyword("inbox")])
        transaction.expunge(Docid(5))
    environment = {
        "HOME": str(home),
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(PROJECT),
        "LC_ALL": "C.UTF-8",
    }

    def shell(commands: str) -> str:
        done = subprocess.run(
            ["sh", "-e", "-c", commands.replace("/backup/", f"{home}/backup/")],
            env=environment,
            cwd=home,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    look, replace = restoring_examples()
    shell("mailfs --store /backup/latest tag +inbox id:4@example.org")
    shell("mailfs mount ~/Mail")
    try:
        shell(look)
        # A copy of an expunged message out of the snapshot brings it back.
        assert shell("mailfs count id:4@example.org") == "1\n"
        shell(replace)
        assert shell("mailfs count tag:todo") == "1\n"
        assert len(os.listdir(home / "Mail/all/cur")) + len(os.listdir(home / "Mail/all/new")) == 5
    finally:
        shell("mailfs umount ~/Mail")
    assert (home / ".local/share/mailfs.damaged").is_dir()
    assert_sound(place)
    with Store.open(place) as store:
        assert len(contents_of(store)) == 5
