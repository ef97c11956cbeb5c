"""mailfs import: every byte, every flag, every folder; once; and whatever happens in the middle."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from mailfs.errors import EX_DATAERR, EX_IOERR, EX_NOINPUT, EX_USAGE
from mailfs.ingest.mailboxes import MAX_MESSAGE_BYTES
from mailfs.message.keywords import FLAGGED, RECENT, SEEN
from mailfs.store.store import Store
from tests.fakes import PROJECT, RunMailfs, make_mbox, make_message
from tests.oracle import assert_sound, contents_of, count_of, docids_of, sha256
from tests.unit.test_mailboxes_corpus import MESSAGES, plain_mbox


@pytest.fixture
def mailfs(store: Store, run_mailfs: RunMailfs) -> RunMailfs:
    """The command with the store of this test."""
    return partial(run_mailfs, store=store.layout.root)


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@dataclass
class Told:
    """What one line of the report says; `nothing new` is 0 added."""

    added: int
    known: int
    unread: int


def told(line: str) -> Told:
    def number_before(words: str) -> int:
        match = re.search(rf"(\d+) {words}", line)
        return int(match[1]) if match else 0

    assert ("nothing new" in line) == (number_before("added") == 0)
    return Told(number_before("added"), number_before("here already"), number_before("not read"))


def keywords_by_subject(mailfs: RunMailfs, query: str = "*") -> dict[str, list[str]]:
    rows = json.loads(mailfs("search", "--output=json", query).stdout)
    return {row["subject"]: row["keywords"] for row in rows}


def searches_of(mailfs: RunMailfs) -> dict[str, str]:
    return {row["name"]: row["query"] for row in json.loads(mailfs("searches", "--json").stdout)}


# --- the real mail


def messages_of(source: Path) -> list[bytes]:
    """Every message of one source of the corpus, by another reading than mailfs' own.

    Markers and side files begin with a dot. A file outside of Maildirs whose first line is a From_ line is an
    mbox; where lines end with a bare CR there is no line, and the file is a message.
    """
    found = []
    for path in sorted(source.rglob("*")):
        if path.is_dir() or path.name.startswith(".") or path.parent.name == "tmp":
            continue
        content = path.read_bytes()
        is_mbox = re.match(rb"From [^\r\n]*\d\d:\d\d[^\r\n]*\r?\n", content) is not None
        from_mbox = list(plain_mbox(content)) if is_mbox else []
        in_maildir = path.parent.name in ("cur", "new")
        found += from_mbox if from_mbox and not in_maildir else [content]
    return found


@dataclass
class Imported:
    """The corpus in one store, and what the two commands said for each source."""

    root: Path
    first: dict[str, Told]
    second: dict[str, Told]


@pytest.fixture(scope="module")
def imported(unpacked_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    root = tmp_path_factory.mktemp("imported") / "store"
    sources = [unpacked_corpus / name for name in MESSAGES]
    Store.create(root).close()
    lines = []
    for _ in range(2):
        result = subprocess.run(
            [sys.executable, "-m", "mailfs", "--store", root, "import", *sources],
            capture_output=True,
            text=True,
            cwd=PROJECT,
            timeout=120,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, "")
        lines.append(result.stdout.splitlines())
    first, second = (dict(zip(MESSAGES, map(told, run), strict=True)) for run in lines)
    return Imported(root, first, second)


@pytest.mark.corpus
@pytest.mark.slow
class TestCorpus:
    """All 16 archives, through the command."""

    def test_each_source_has_as_many_messages_as_it_is_known_to_have(
        self, imported: Imported, unpacked_corpus: Path
    ) -> None:
        assert {name: len(messages_of(unpacked_corpus / name)) for name in MESSAGES} == MESSAGES

    def test_each_message_is_added_once_and_its_copies_are_known(
        self, imported: Imported, unpacked_corpus: Path
    ) -> None:
        seen: set[str] = set()
        expected = {}
        for name, number in MESSAGES.items():
            digests = {sha256(raw) for raw in messages_of(unpacked_corpus / name)}
            added = len(digests - seen)
            seen |= digests
            expected[name] = Told(added, number - added, 0)
        assert imported.first == expected

    def test_every_byte_is_read_back(self, imported: Imported, unpacked_corpus: Path) -> None:
        source = {sha256(raw) for name in MESSAGES for raw in messages_of(unpacked_corpus / name)}
        with Store.open(imported.root) as store:
            stored = Counter(map(sha256, contents_of(store).values()))
        assert stored == Counter(source)

    def test_the_view_of_a_maildir_has_its_messages_also_those_that_were_here(
        self, imported: Imported, unpacked_corpus: Path
    ) -> None:
        maildirs = [name for name in MESSAGES if (unpacked_corpus / name / "cur").is_dir()]
        assert len(maildirs) >= 5
        with Store.open(imported.root) as store:
            for name in maildirs:
                docids = docids_of(store, store.index.search(name).query)
                assert {sha256(store.load(docid)) for docid in docids} == {
                    sha256(raw) for raw in messages_of(unpacked_corpus / name)
                }

    def test_a_second_import_adds_nothing(self, imported: Imported) -> None:
        assert imported.second == {name: Told(0, number, 0) for name, number in MESSAGES.items()}

    def test_the_store_is_sound(self, imported: Imported) -> None:
        assert_sound(imported.root)


# --- flags, times, folders


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    """A Maildir with all letters, a keyword, subfolders of both kinds, and things that are no mail."""
    root = tmp_path / "Maildir"
    names = {
        "cur/1.a:2,": "cur plain",
        "cur/2.a:2,S": "cur seen",
        "cur/3.a:2,DFPRST": "cur all",
        "cur/4.a:2,Sa": "cur keyword",
        "new/5.a": "new plain",
        "new/6.a:2,F": "new flagged",
        ".Lists.My List/cur/7.a:2,S": "list",
        "work/new/8.a": "work",
        "work/cur/9.a:2,": "work cur",
    }
    for number, (name, subject) in enumerate(names.items()):
        path = put(root / name, make_message(number, subject=subject))
        os.utime(path, ns=(10**18, 1_600_000_000_123_456_789 + number))
    for folder in ("tmp", ".Lists.My List/new", ".Lists.My List/tmp", "work/tmp"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    put(root / "dovecot-keywords", b"0 Todo\n")
    put(root / "tmp/10.a", b"half a mess")
    return root


FLAGS = {
    "cur plain": ["inbox"],
    "cur seen": ["$seen", "inbox"],
    "cur all": ["$seen", "$answered", "$flagged", "$draft", "$forwarded", "$deleted", "inbox"],
    "cur keyword": ["$seen", "inbox", "todo"],
    "new plain": ["inbox"],
    "new flagged": ["$flagged", "inbox"],
    "list": ["$seen", "lists/my-list"],
    "work": ["work"],
    "work cur": ["work"],
}


def test_flags_and_keywords_are_kept(mailfs: RunMailfs, maildir: Path) -> None:
    result = mailfs("import", maildir)
    assert (result.returncode, result.stderr) == (0, "")
    assert told(result.stdout) == Told(added=9, known=0, unread=0)
    assert keywords_by_subject(mailfs) == FLAGS


def test_what_was_new_is_new_and_what_was_in_cur_is_in_cur(
    store: Store, mailfs: RunMailfs, maildir: Path
) -> None:
    mailfs("import", maildir)
    recent = {
        summary.subject
        for summary in store.index.summaries(docids_of(store))
        if summary.flags & RECENT
    }
    assert recent == {"new plain", "new flagged", "work"}
    paths = mailfs("search", "--output=files", "*").stdout.splitlines()
    assert Counter(path.rsplit("/", 1)[0] for path in paths) == {"all/new": 3, "all/cur": 6}


def test_a_message_of_a_maildir_was_received_when_its_file_was_written(
    store: Store, mailfs: RunMailfs, maildir: Path
) -> None:
    mailfs("import", maildir)
    (docid,) = docids_of(store, "subject:all")
    assert store.index.entry(docid).received_ns == 1_600_000_000_123_456_789 + 2


def test_each_folder_has_a_search_of_its_name(mailfs: RunMailfs, maildir: Path) -> None:
    before = searches_of(mailfs)
    mailfs("import", maildir)
    assert searches_of(mailfs) == before | {
        "Lists/My List": "tag:lists/my-list",
        "work": "tag:work",
    }
    assert mailfs("count", "tag:work").stdout == "2\n"


def test_a_search_that_has_a_folders_name_is_left_as_it_is(
    mailfs: RunMailfs, maildir: Path
) -> None:
    mailfs("save", "work", "from:boss")
    mailfs("import", maildir)
    assert searches_of(mailfs)["work"] == "from:boss"
    assert mailfs("count", "tag:work").stdout == "2\n"


def test_no_folders_leaves_keywords_and_searches_of_folders_out(
    mailfs: RunMailfs, maildir: Path
) -> None:
    before = searches_of(mailfs)
    mailfs("import", "--no-folders", maildir)
    assert searches_of(mailfs) == before
    own = {subject: [word for word in FLAGS[subject] if word[0] == "$"] for subject in FLAGS}
    assert keywords_by_subject(mailfs) == own | {"cur keyword": ["$seen", "todo"]}


def test_keywords_are_put_on_every_message(mailfs: RunMailfs, maildir: Path) -> None:
    mailfs("import", "-k", "Old", "--keyword=2024", maildir)
    assert mailfs("count", "tag:old", "tag:2024").stdout == "9\n"


def test_a_system_keyword_given_sets_its_flag(
    store: Store, mailfs: RunMailfs, tmp_path: Path
) -> None:
    mailfs("import", "-k", "seen", "-k", "$flagged", put(tmp_path / "a.eml", make_message()))
    (docid,) = docids_of(store)
    assert store.index.entry(docid).flags == SEEN | FLAGGED
    assert store.index.summaries([docid])[0].keywords == ("inbox",)
    assert mailfs("count", "is:unread").stdout == "0\n"


def test_a_bad_keyword_is_refused_before_anything_is_read(
    store: Store, mailfs: RunMailfs, maildir: Path
) -> None:
    result = mailfs("import", "-k", "a (b", maildir)
    assert result.returncode == EX_USAGE
    assert "keyword" in result.stderr
    assert count_of(store) == 0


def test_a_message_that_is_here_gets_the_keyword_of_another_folder_and_its_flags_there(
    mailfs: RunMailfs, tmp_path: Path
) -> None:
    raw = make_message(1, subject="both")
    put(tmp_path / "one/cur/1:2,S", raw)
    put(tmp_path / "two/cur/1:2,F", raw)
    mailfs("import", tmp_path / "one")
    result = mailfs("import", tmp_path / "two", "-k", "late")
    assert told(result.stdout) == Told(added=0, known=1, unread=0)
    assert keywords_by_subject(mailfs) == {"both": ["$seen", "$flagged", "late", "one", "two"]}
    with_flags_taken_off = ["tag", "-seen", "-flagged", "--", "*"]
    mailfs(*with_flags_taken_off)
    mailfs("import", tmp_path / "one")
    assert keywords_by_subject(mailfs) == {"both": ["late", "one", "two"]}


def test_copies_in_one_source_are_one_message_with_the_flags_of_all(
    store: Store, mailfs: RunMailfs, tmp_path: Path
) -> None:
    raw = make_message(1, subject="both")
    for name in ("a/cur/1:2,F", "b/new/1", "c/cur/1:2,S"):
        put(tmp_path / "mail" / name, raw)
        for folder in ("cur", "new", "tmp"):
            (tmp_path / "mail" / name[0] / folder).mkdir(exist_ok=True)
    assert told(mailfs("import", tmp_path / "mail").stdout) == Told(added=1, known=2, unread=0)
    assert keywords_by_subject(mailfs) == {"both": ["$seen", "$flagged", "a", "b", "c"]}
    (docid,) = docids_of(store)
    assert not store.index.entry(docid).flags & RECENT


def test_a_message_that_was_expunged_stays_so(
    store: Store, mailfs: RunMailfs, maildir: Path
) -> None:
    mailfs("import", maildir)
    (docid,) = docids_of(store, "subject:list")
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.expunge(docid)
    result = mailfs("import", maildir)
    assert "1 were expunged here and stay so" in result.stdout
    assert mailfs("count", "*").stdout == "8\n"


# --- standard input


def test_an_mbox_comes_through_a_pipe(mailfs: RunMailfs) -> None:
    messages = [make_message(n, subject=f"number {n}") for n in range(3)]
    result = mailfs("import", "-", input=b"".join(make_mbox(messages)).decode())
    assert told(result.stdout) == Told(added=3, known=0, unread=0)
    assert keywords_by_subject(mailfs) == {f"number {n}": ["inbox"] for n in range(3)}


def test_a_single_message_comes_through_a_pipe(store: Store, mailfs: RunMailfs) -> None:
    raw = make_message(1)
    result = mailfs("import", "-", "-k", "pipe", input=raw.decode())
    assert told(result.stdout) == Told(added=1, known=0, unread=0)
    assert list(contents_of(store).values()) == [raw]
    assert mailfs("count", "tag:pipe", "tag:inbox").stdout == "1\n"


def test_an_empty_pipe_is_told(mailfs: RunMailfs) -> None:
    result = mailfs("import", "-")
    assert result.returncode == EX_IOERR
    assert "standard input: not read: empty" in result.stderr


def test_standard_input_cannot_be_beside_others_or_a_folder(
    store: Store, mailfs: RunMailfs, maildir: Path
) -> None:
    assert mailfs("import", "-", maildir).returncode == EX_USAGE
    assert mailfs("import", "--format=maildir", "-").returncode == EX_DATAERR
    assert count_of(store) == 0


# --- what cannot be read


def test_what_cannot_be_read_is_named_and_the_rest_is_imported(
    mailfs: RunMailfs, maildir: Path, tmp_path: Path
) -> None:
    (maildir / "cur/0.link:2,").symlink_to(tmp_path / "nowhere")
    os.mkfifo(maildir / "cur/0.fifo:2,")
    result = mailfs("import", maildir)
    assert result.returncode == EX_IOERR
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert any(line.startswith(f"{maildir}/cur/0.link:2,: not read: ") for line in lines)
    assert any(line.startswith(f"{maildir}/cur/0.fifo:2,: not read: ") for line in lines)
    assert told(result.stdout) == Told(added=9, known=0, unread=2)


def test_a_source_that_is_not_there_is_told_before_anything_is_read(
    store: Store, mailfs: RunMailfs, maildir: Path, tmp_path: Path
) -> None:
    result = mailfs("import", maildir, tmp_path / "missing")
    assert (result.returncode, result.stdout) == (EX_NOINPUT, "")
    assert f"there is no {tmp_path}/missing" in result.stderr
    assert count_of(store) == 0


def test_a_name_with_control_signs_cannot_command_the_terminal(
    mailfs: RunMailfs, tmp_path: Path
) -> None:
    (tmp_path / "mail/cur").mkdir(parents=True)
    (tmp_path / "mail/cur/\x1b]0;evil\x07:2,").symlink_to("nowhere")
    result = mailfs("import", tmp_path / "mail")
    assert result.returncode == EX_IOERR
    assert "\x1b" not in result.stderr + result.stdout


def test_an_empty_name_is_not_the_current_folder(store: Store, mailfs: RunMailfs) -> None:
    assert mailfs("import", "").returncode != 0
    assert count_of(store) == 0


def test_without_a_store_nothing_is_read(
    run_mailfs: RunMailfs, maildir: Path, tmp_path: Path
) -> None:
    result = run_mailfs("import", maildir, store=tmp_path / "none")
    assert result.returncode == EX_NOINPUT
    assert "mailfs init" in result.stderr
    assert not (tmp_path / "none").exists()


def test_the_source_is_only_read(mailfs: RunMailfs, maildir: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {
            str(path): (path.lstat().st_mtime_ns, path.lstat().st_size)
            for path in maildir.rglob("*")
        }

    before = state()
    mailfs("import", maildir)
    assert state() == before


# --- interrupted

MANY = 20_000
POLL_S = 0.002
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def large_mbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.mbox"
    with path.open("wb") as file:
        file.writelines(make_mbox(make_message(n, subject=f"number {n}") for n in range(MANY)))
    return path


class Import:
    """A running import in a process group of its own."""

    def __init__(self, root: Path, source: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mailfs", "--store", str(root), "import", str(source)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            start_new_session=True,
        )

    def wait_until_in(self, store: Store, messages: int) -> None:
        """Until so many messages can be seen by others: an import shows what is durable only."""
        give_up = time.monotonic() + DEADLINE_S
        while count_of(store) < messages:
            assert self.process.poll() is None, "the import ended before it was interrupted"
            assert time.monotonic() < give_up
            try:
                self.process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                continue

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """SIGINT to the group, as a terminal sends ^C; SIGKILL to the import alone. Exit code and what it told."""
        if number is signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, errors

    def has_processes(self) -> bool:
        """Whether some process of the group lives (a zombie of init's is none)."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == self.process.pid and fields[0] != "Z":
                return True
        return False


@pytest.fixture
def running(store: Store, large_mbox: Path) -> Iterator[Import]:
    made = Import(store.layout.root, large_mbox)
    yield made
    if made.process.poll() is None:
        made.process.kill()
    made.process.communicate(timeout=DEADLINE_S)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "progress"),
    [
        (signal.SIGINT, 1),
        (signal.SIGINT, MANY // 3),
        (signal.SIGKILL, MANY // 5),
    ],
)
def test_an_interrupted_import_keeps_what_is_in_and_goes_on_when_run_again(
    store: Store,
    mailfs: RunMailfs,
    running: Import,
    large_mbox: Path,
    number: signal.Signals,
    progress: int,
) -> None:
    running.wait_until_in(store, progress)
    code, errors = running.end(number)
    if number is signal.SIGINT:
        assert code == 128 + signal.SIGINT
        match = re.search(r"(\d+) messages are in and safe", errors)
        assert match is not None, errors
        assert "Traceback" not in errors
        # What it says is a promise, so it counts no slice whose commit was cut off from its report.
        assert 0 < int(match[1]) <= count_of(store) < MANY
        assert progress <= count_of(store)
    else:
        assert code == -signal.SIGKILL
        assert progress <= count_of(store) < MANY
    so_far = count_of(store)
    assert_sound(store.layout.root)
    give_up = time.monotonic() + DEADLINE_S
    while running.has_processes():
        assert time.monotonic() < give_up, "a worker outlives its import"

    result = mailfs("import", large_mbox)
    assert result.returncode == 0
    assert told(result.stdout) == Told(added=MANY - so_far, known=so_far, unread=0)
    subjects = {summary.subject for summary in store.index.summaries(docids_of(store))}
    assert subjects == {f"number {n}" for n in range(MANY)}
    assert count_of(store) == MANY


@pytest.mark.slow
def test_a_change_made_during_an_import_need_not_wait_for_its_end(
    store: Store, mailfs: RunMailfs, running: Import
) -> None:
    running.wait_until_in(store, 1)
    result = mailfs("tag", "+urgent", "subject:number")
    assert result.returncode == 0
    was_running = running.process.poll() is None
    running.process.communicate(timeout=DEADLINE_S)
    assert running.process.returncode == 0
    assert was_running
    assert 0 < count_of(store, "tag:urgent") <= count_of(store) == MANY


def test_paths_of_any_length_do_not_stop_an_import(
    store: Store, mailfs: RunMailfs, tmp_path: Path
) -> None:
    """References and answers both larger than a pipe's buffer: nobody may wait for one who waits for him."""
    folder = tmp_path
    while len(str(folder)) < 3500:
        folder /= "x" * 200
    for number in range(320):
        content = make_message(number, body=os.urandom(3000).hex())
        put(folder / "cur" / f"{number}:2,S", content)
    result = mailfs("import", "--no-folders", tmp_path)
    assert told(result.stdout).added == 320
    assert count_of(store) == 320


def test_a_file_too_large_to_be_a_message_is_told_and_the_rest_goes_on(
    store: Store, mailfs: RunMailfs, tmp_path: Path
) -> None:
    put(tmp_path / "mail/good.eml", make_message(1))
    with (tmp_path / "mail/backup.tar").open("wb") as file:
        file.truncate(MAX_MESSAGE_BYTES + 1)
    result = mailfs("import", tmp_path / "mail")
    assert result.returncode == EX_IOERR
    assert "backup.tar: not read: larger than a message can be" in result.stderr
    assert count_of(store) == 1


def test_a_store_in_a_tree_is_no_source(store: Store, mailfs: RunMailfs, tmp_path: Path) -> None:
    put(tmp_path / "mail/good.eml", make_message(1))
    assert store.layout.root.is_relative_to(tmp_path)
    result = mailfs("import", tmp_path)
    assert "a mailfs store, not a source" in result.stderr
    assert count_of(store) == 1


def test_a_folder_named_like_a_saved_search_gets_a_view_beside_it(
    mailfs: RunMailfs, tmp_path: Path
) -> None:
    put(tmp_path / "mail/all/cur/1:2,", make_message(1))
    mailfs("import", tmp_path / "mail")
    assert searches_of(mailfs)["all"] == "*"
    assert searches_of(mailfs)["all_"] == "tag:all"
