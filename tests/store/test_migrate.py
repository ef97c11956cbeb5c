"""A store of an older format is brought up to date when it is opened, wherever the work is cut off.

The stores in data/ were made by the programs of their time, the last that wrote formats 1 and 2. Each has five messages
as tests.fakes.make_message makes them, number 1 to 5 (subject `subject N`, body `wordN ` N times; from the third on
each refers to the one before it); keywords: inbox and todo, work (1), inbox (2), lists/linux (3); 2 is seen and
flagged, 5 is recent, 4 was expunged; beside the first searches `lists/linux`, and `from ann` whose rm is refused. That of
format 2 has names that clients chose in inbox: `1700000000.1_1.host,U=1` (1), and a copy `caf\\xe9\\n` with the letters
a and b (2). Afterwards the file `lock` was left out.
"""

import errno
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import apsw
import pytest

from mailfs.errors import EX_CONFIG, EX_TEMPFAIL, Busy, Corrupt, MailfsError, StoreError, StoreFull
from mailfs.ids import Docid
from mailfs.message.keywords import FLAGGED, RECENT, SEEN
from mailfs.message.maildir import ChosenName, Form
from mailfs.store.database import open_writer
from mailfs.store.in_use import InUse, hold_alone
from mailfs.store.layout import open_layout
from mailfs.store.rescue.reindex import Parser, reindex
from mailfs.store.schema import FORMAT_VERSION
from mailfs.store.store import Store
from mailfs.store.upkeep.dump import dump_lines
from mailfs.store.upkeep.dump_lines import DumpedMessage
from tests.fakes import PROJECT, RunMailfs, make_message
from tests.oracle import contents_of, docids_of, problems_of
from tests.store.peer import line_of, peer

DATA = Path(__file__).with_name("data")
FORMATS = (1, 2)
STORE_IDS = {1: b"kqgtvu2q", 2: b"j6y3m7pq"}
RAW = {
    Docid(number): make_message(
        number,
        subject=f"subject {number}",
        body=f"word{number} " * number,
        references=[f"{number - 1}@example.org"] if number > 2 else (),
    )
    for number in range(1, 6)
}
KEYWORDS = {1: ("inbox", "todo", "work"), 2: ("inbox",), 3: ("lists/linux",), 4: (), 5: ()}
FLAGS = {1: 0, 2: SEEN | FLAGGED, 3: 0, 4: 0, 5: RECENT}
SEARCHES = {
    "inbox": ("tag:inbox", ""),
    "unread": ("is:unread", ""),
    "flagged": ("is:flagged", ""),
    "all": ("*", ""),
    "lists/linux": ("tag:lists/linux", ""),
    "from ann": ("from:ann and is:unread", "refuse"),
}
NAMES = {
    1: {},
    2: {
        1: ChosenName(b"1700000000.1_1.host,U=1"),
        2: ChosenName(b"caf\xe9\n", b"ab", Form.USUAL, is_copy=True),
    },
}


def unpack(number: int, folder: Path) -> Path:
    """The store of this format, as its program left it."""
    with tarfile.open(DATA / f"format{number}.tar.xz") as archive:
        for member in archive:
            path = folder / member.name
            if member.isdir():
                path.mkdir(mode=0o700)
            else:
                content = archive.extractfile(member)
                assert content is not None
                path.write_bytes(content.read())
                path.chmod(0o600)
    return folder / "store"


@pytest.fixture(params=FORMATS, ids=lambda number: f"format {number}")
def old_store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store of an older format."""
    return unpack(request.param, tmp_path)


def assert_works(root: Path) -> None:
    """It opens, holds what it held, and takes what the newest format takes."""
    number = next(each for each in FORMATS if STORE_IDS[each] in (root / "format").read_bytes())
    with Store.open(root) as store:
        assert store.layout.version == FORMAT_VERSION
        assert store.layout.store_id == STORE_IDS[number]
        assert problems_of(store) == []
        assert contents_of(store) == {docid: RAW[docid] for docid in RAW if docid != 4}
        assert store.load(Docid(4)) == RAW[Docid(4)]
        searches = {each.name: (each.query, each.on_rm) for each in store.index.searches()}
        assert searches == SEARCHES
        lines = [line for line in dump_lines(store.layout) if isinstance(line, DumpedMessage)]
        assert {line.docid: line.keywords for line in lines} == KEYWORDS
        assert {line.docid: line.flags for line in lines} == FLAGS
        assert [line.docid for line in lines if line.expunged] == [4]
        names = {line.docid: name for line in lines for _, name in line.names}
        assert names == NAMES[number]
        assert docids_of(store, "word3") == [3]
        assert docids_of(store, "thread:{id:3@example.org}") == [2, 3, 5]
        inbox = store.index.search("inbox").search_id
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.entries.put(inbox, Docid(3), ChosenName(b"a"))
            transaction.entries.remove(inbox, b"a")
            transaction.undelete(Docid(4))
            transaction.expunge(Docid(4))
        assert problems_of(store) == []


def test_an_old_store_is_brought_up_to_date_by_opening_it(old_store: Path) -> None:
    assert open_layout(old_store).version < FORMAT_VERSION
    assert_works(old_store)
    assert_works(old_store)
    assert oct((old_store / "format").stat().st_mode & 0o777) == "0o600"


def test_an_old_and_a_new_store_have_the_same_tables(old_store: Path, tmp_path: Path) -> None:
    statements = []
    Store.open(old_store).close()
    Store.create(tmp_path / "new").close()
    for root in (old_store, tmp_path / "new"):
        connection = open_writer(root / "index.sqlite3")
        # What ALTER TABLE adds stands there with other blanks.
        found = connection.execute("SELECT name, sql FROM sqlite_schema").fetchall()
        statements.append({(name, "".join(str(sql).split())) for name, sql in found})
        connection.close()
    assert statements[0] == statements[1]


def test_a_store_that_is_up_to_date_is_not_touched(old_store: Path) -> None:
    assert_works(old_store)
    before = (old_store / "format").stat()
    assert_works(old_store)
    assert (old_store / "format").stat() == before


def test_a_rebuild_brings_an_old_store_up_to_date(old_store: Path) -> None:
    layout = open_layout(old_store)
    rebuilt = reindex(layout, Parser(layout).prepare)
    assert (rebuilt.notes, rebuilt.problems) == ([], [])
    assert open_layout(old_store).version == FORMAT_VERSION
    assert_works(old_store)


def test_nobody_uses_a_store_while_it_is_brought_up_to_date(old_store: Path) -> None:
    """The process at work holds it alone; one that has it open keeps others from beginning."""
    layout = open_layout(old_store)
    with peer("use", old_store) as user:
        assert line_of(user) == b"open\n"
        match = rf"in use by pid {user.pid} \(.*peer"
        with pytest.raises(Busy, match=match), hold_alone(layout, "a test", 0.05):
            pass
    with hold_alone(layout, "a test", 5.0), pytest.raises(Busy, match="a test"):
        InUse(layout, 0.05)
    assert_works(old_store)


def test_a_mount_of_the_old_program_is_named_and_left_alone(old_store: Path) -> None:
    """It knows nothing of shares in the use, but it has left a record."""
    (old_store / "mounts").mkdir(mode=0o700)
    before = (old_store / "format").read_bytes()
    with peer("hold", old_store, "mailfs mount") as daemon:
        record = old_store / "mounts" / str(daemon.pid)
        record.write_bytes(b"/home/ann/Mail")
        assert line_of(daemon) == b"held\n"
        daemon.stdin.close() if daemon.stdin else None
        with pytest.raises(
            Busy, match=rf"older mailfs, pid {daemon.pid} \(mounted at /home/ann/Mail"
        ):
            Store.open(old_store)
        assert (old_store / "format").read_bytes() == before
    record.unlink()
    assert_works(old_store)


# --- newer ones


COMMANDS = (
    ["count", "*"],
    ["search", "*"],
    ["show", "*"],
    ["tag", "+a", "*"],
    ["expunge", "*"],
    ["searches"],
    ["save", "a", "*"],
    ["forget", "inbox"],
    ["deliver"],
    ["import", "--format=mbox", "-"],
    ["mount", "-f", "MOUNT"],
    ["verify"],
    ["dump"],
    ["restore"],
    ["reindex"],
    ["log"],
    ["undo"],
    ["status"],
)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_newer_format_is_refused_by_every_command_and_nothing_is_touched(
    words: list[str], tmp_path: Path, run_mailfs: RunMailfs
) -> None:
    root = unpack(2, tmp_path)
    (root / "format").write_text("mailfs store\nversion 99\nstore-id j6y3m7pq\n")
    before = snapshot_of(root)
    (tmp_path / "m").mkdir()
    done = run_mailfs(*[word.replace("MOUNT", str(tmp_path / "m")) for word in words], store=root)
    # A mail system is to keep the message until somebody has looked after it.
    assert done.returncode == (EX_TEMPFAIL if words == ["deliver"] else EX_CONFIG), done.stderr
    assert "has format 99; this mailfs knows up to" in done.stderr
    assert snapshot_of(root) == before


def snapshot_of(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }


# --- cut off, and refused


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("mailfs.store.migrate._change_tables", id="before the tables"),
        pytest.param("mailfs.store.migrate.write_format", id="before the format"),
        pytest.param("mailfs.store.layout.os.write", id="when format is empty"),
        pytest.param("mailfs.store.layout.Path.rename", id="when format has no name yet"),
        pytest.param("mailfs.store.layout.sync_directory", id="when all is written"),
    ],
)
def test_a_store_whose_process_was_killed_meanwhile_is_brought_up_to_date_by_the_next(
    old_store: Path, place: str
) -> None:
    killed = subprocess.run(
        [sys.executable, "-m", "tests.store.peer", "migrate", str(old_store), place],
        cwd=PROJECT,
        check=False,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    assert_works(old_store)
    assert not (old_store / "format.new").exists()


@pytest.mark.parametrize(
    ("code", "error"),
    [(errno.ENOSPC, StoreFull), (errno.EROFS, StoreError), (errno.EACCES, StoreError)],
    ids=["ENOSPC", "EROFS", "EACCES"],
)
@pytest.mark.parametrize("file", ["lock", "format.new"])
def test_a_store_that_cannot_be_written_says_what_it_needed_to(
    old_store: Path, monkeypatch: pytest.MonkeyPatch, file: str, code: int, error: type[MailfsError]
) -> None:
    real_open = os.open

    def refusing(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if Path(path).name == file and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(code, os.strerror(code))
        return real_open(path, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr("os.open", refusing)
        with pytest.raises(error, match=f"format [12] .* format {FORMAT_VERSION} .*") as told:
            Store.open(old_store)
    assert os.strerror(code) in str(told.value)
    assert_works(old_store)


def test_an_index_that_is_read_only_says_what_it_needed_to(
    old_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path) -> apsw.Connection:
        connection = open_writer(path)
        connection.execute("PRAGMA query_only = ON")
        return connection

    with monkeypatch.context() as patch:
        patch.setattr("mailfs.store.migrate.open_writer", read_only)
        with pytest.raises(StoreError, match=r"format [12] .* cannot be written: .*readonly"):
            Store.open(old_store)
    assert open_layout(old_store).version < FORMAT_VERSION
    assert_works(old_store)


def test_a_damaged_index_is_called_damaged_not_read_only(old_store: Path) -> None:
    (old_store / "index.sqlite3").write_bytes(b"no database" * 1000)
    with pytest.raises(Corrupt):
        Store.open(old_store)
    assert open_layout(old_store).version < FORMAT_VERSION
