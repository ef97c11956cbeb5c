"""mailfs deliver: what becomes of a message on standard input, and which exit code a mail system gets."""

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from mailfs.cli.delivering import DEADLINE_S, from_line_bytes
from mailfs.errors import EX_DATAERR, EX_TEMPFAIL, EX_USAGE
from mailfs.ids import Docid, Keyword
from mailfs.message.keywords import DELETED, DELETED_BY_ENTRY, FLAGGED, RECENT, SEEN
from mailfs.message.maildir import ChosenName
from mailfs.store.lock import WriterLock
from mailfs.store.store import Store
from tests.fakes import PROJECT, make_mbox, make_message
from tests.mount.conftest import account, folder, mailfs, why_not
from tests.mount.mounting import Mailfs
from tests.mount.waiting import wait_until
from tests.oracle import assert_sound, contents_of, count_of, docids_of
from tests.store.peer import line_of, peer

__all__ = ["account", "folder", "mailfs"]

Process = subprocess.Popen[bytes]
Done = subprocess.CompletedProcess[bytes]

RAW = make_message(1, subject="pears")
FROM_LINE = b"From ann@example.org Tue Jan  2 03:04:05 2024\n"
COMMAND_DEADLINE_S = 60.0
LARGE_BYTES = 300 << 20
KILLS = 12


def arguments(root: Path, *words: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "mailfs", "--store", str(root), "deliver", *words]


def deliver(root: Path, raw: bytes, *words: str) -> Done:
    """Deliver one message, and what was said."""
    return subprocess.run(
        arguments(root, *words),
        input=raw,
        capture_output=True,
        cwd=PROJECT,
        timeout=COMMAND_DEADLINE_S,
        check=False,
    )


def start(root: Path, *words: str) -> Process:
    """A delivery whose message is still to be written."""
    return subprocess.Popen(
        arguments(root, *words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=PROJECT,
    )


def code_of(process: Process) -> int:
    """Its exit code, when it has ended."""
    process.communicate(timeout=COMMAND_DEADLINE_S)
    return process.returncode


def delivered(store: Store, raw: bytes, *words: str) -> Docid:
    """The newest message, after a delivery that must succeed and say nothing."""
    done = deliver(store.layout.root, raw, *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    return docids_of(store)[-1]


def refused(store: Store, raw: bytes, *words: str, code: int = EX_TEMPFAIL) -> str:
    """The reason, after a delivery that must fail and store nothing."""
    before = store.index.state()
    done = deliver(store.layout.root, raw, *words)
    assert (done.returncode, done.stdout) == (code, b"")
    assert store.index.state() == before
    assert spooled(store.layout.root) == []
    return done.stderr.decode()


def spooled(root: Path) -> list[str]:
    """What lies in the spool."""
    return os.listdir(root / "spool") if (root / "spool").exists() else []


def keywords(store: Store, docid: Docid) -> set[str]:
    (summary,) = store.index.summaries([docid])
    return set(summary.keywords)


def flags(store: Store, docid: Docid) -> int:
    return store.index.entry(docid).flags


def save(store: Store, name: str, query: str) -> None:
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.searches.save(name, query)


def names_of(store: Store, docid: Docid) -> list[ChosenName]:
    return [row for _, _, row in store.index.chosen_names_of([docid])]


# --- the message


def test_a_message_is_stored_in_the_inbox_as_new(store: Store) -> None:
    before_ns = time.time_ns()
    docid = delivered(store, RAW)
    assert store.load(docid) == RAW
    assert keywords(store, docid) == {"inbox"}
    assert flags(store, docid) == RECENT
    assert before_ns <= store.index.entry(docid).received_ns <= time.time_ns()
    assert names_of(store, docid) == []
    assert spooled(store.layout.root) == []


@pytest.mark.parametrize(
    "raw",
    [
        make_message(2, subject="gr\xfc\xdfe").replace("gr\xfc\xdfe".encode(), b"gr\xfc\xdfe"),
        make_message(3).replace(b"\n", b"\r\n"),
        make_message(4).replace(b"\n", b"\r"),
        make_message(5).rstrip(b"\n"),
        b"no header at all",
        b"\n",
        b"\0",
        b">From ann\nSubject: x\n\n",
        b"From : ann@example.org\nSubject: x\n\n",
        b"From ann and no end",
        make_message(6, body="From here on\n>From there"),
        make_message(7, body="a line of text\n" * 200_000),
    ],
    ids=lambda raw: repr(raw[-20:]),
)
def test_whatever_comes_is_stored_byte_for_byte(store: Store, raw: bytes) -> None:
    assert store.load(delivered(store, raw)) == raw


@pytest.mark.parametrize(
    "line",
    [FROM_LINE, FROM_LINE.replace(b"\n", b"\r\n"), b"From \n", b"From " + b"x" * 70_000 + b"\n"],
    ids=["usual", "crlf", "shortest", "long"],
)
def test_the_line_a_mail_system_puts_before_a_message_is_dropped(store: Store, line: bytes) -> None:
    assert from_line_bytes(line + RAW) == len(line)
    assert store.load(delivered(store, line + RAW)) == RAW
    # One of them.
    assert store.load(delivered(store, line + line + RAW)) == line + RAW


def test_a_large_message_is_never_in_memory_as_a_whole(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(RAW)
    os.truncate(path, LARGE_BYTES)

    def limit_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (LARGE_BYTES, LARGE_BYTES))

    with path.open("rb") as file:
        subprocess.run(
            arguments(store.layout.root),
            stdin=file,
            cwd=PROJECT,
            timeout=COMMAND_DEADLINE_S,
            preexec_fn=limit_memory,
            check=True,
        )
    (docid,) = docids_of(store, "subject:pears")
    pieces = store.packs.raw_pieces(store.index.location(docid))
    assert sum(map(len, pieces)) == LARGE_BYTES
    assert spooled(store.layout.root) == []


# --- the view, and what it puts on the message


def test_a_message_gets_what_the_view_asks_for_and_the_keywords_given(store: Store) -> None:
    save(store, "lists/fruit", "tag:fruit and not tag:inbox and is:flagged")
    docid = delivered(store, RAW, "-k", "List", "--keyword", "ripe", "lists/fruit")
    assert keywords(store, docid) == {"fruit", "list", "ripe"}
    assert flags(store, docid) == RECENT | FLAGGED


@pytest.mark.parametrize(
    ("view", "words", "expected"),
    [
        ("flagged", [], RECENT | FLAGGED),
        ("unread", [], RECENT),
        ("unread", ["-k", "seen"], RECENT),
        ("all", ["-k", "$seen"], RECENT | SEEN),
    ],
)
def test_a_query_view_sets_and_clears_the_flags_it_names(
    store: Store, view: str, words: list[str], expected: int
) -> None:
    docid = delivered(store, RAW, *words, view)
    assert flags(store, docid) == expected
    assert keywords(store, docid) == set()


def test_a_message_its_view_would_not_show_waits_for_another_search(store: Store) -> None:
    save(store, "plums", "tag:inbox subject:plums")
    reason = refused(store, RAW, "plums")
    assert "plums (tag:inbox subject:plums) would not show this message" in reason
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.searches.save("plums", "tag:inbox subject:pears", replace=True)
    assert keywords(store, delivered(store, RAW, "plums")) == {"inbox"}


def test_deleted_is_said_of_the_message_in_all_its_folders(store: Store) -> None:
    docid = delivered(store, RAW, "-k", "deleted")
    assert flags(store, docid) == RECENT | DELETED
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.edit_flags(docid, DELETED_BY_ENTRY, 0)
        search = store.index.search("inbox").search_id
        transaction.entries.put(search, docid, ChosenName(b"x", b"T"))
    delivered(store, RAW, "-k", "deleted")
    assert flags(store, docid) == RECENT | DELETED
    assert names_of(store, docid) == [ChosenName(b"x")]


# --- a message that is here, or was


def test_a_message_that_is_here_gets_the_keywords_and_is_not_new_again(store: Store) -> None:
    docid = delivered(store, RAW)
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.edit_flags(docid, SEEN, RECENT)
    save(store, "work", "tag:work")
    assert delivered(store, FROM_LINE + RAW, "-k", "again", "-k", "flagged", "work") == docid
    assert keywords(store, docid) == {"inbox", "work", "again"}
    assert flags(store, docid) == SEEN | FLAGGED
    before = store.index.state()
    assert delivered(store, RAW, "work") == docid
    assert store.index.state() == before


def test_an_expunged_message_is_back_as_if_new(store: Store) -> None:
    docid = delivered(store, RAW, "-k", "work", "-k", "seen")
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.expunge(docid)
    assert delivered(store, RAW) == docid
    assert (keywords(store, docid), flags(store, docid)) == ({"inbox"}, RECENT)


def test_the_names_a_client_chose_stay_and_those_of_the_past_do_not_come_back(store: Store) -> None:
    docid = delivered(store, RAW)
    search = store.index.search("inbox").search_id
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.entries.put(search, docid, ChosenName(b"1.x,U=7"))
    delivered(store, RAW)
    assert names_of(store, docid) == [ChosenName(b"1.x,U=7")]
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.edit_keywords(docid, remove=[Keyword("inbox")])
    delivered(store, RAW)
    assert names_of(store, docid) == []
    assert keywords(store, docid) == {"inbox"}


# --- exit codes


def test_what_may_be_mended_is_to_be_tried_again(store: Store, tmp_path: Path) -> None:
    assert "no saved search named nowhere" in refused(store, RAW, "nowhere")
    done = deliver(tmp_path / "not mounted", RAW)
    assert done.returncode == EX_TEMPFAIL
    assert b"no mailfs store" in done.stderr
    format_file = store.layout.root / "format"
    text = format_file.read_text()
    format_file.write_text(text.replace("version ", "version 9"))
    assert "newer mailfs" in refused(store, RAW)
    format_file.write_text(text)
    delivered(store, RAW)


@pytest.mark.parametrize(
    "words", [["-k", "a(b"], ["--deadline=soon"], ["--deadline=-1"], ["--nonsense"], ["a", "b"]]
)
def test_a_command_line_that_would_be_wrong_the_next_time_is_not_to_be_tried_again(
    store: Store, words: list[str]
) -> None:
    refused(store, RAW, *words, code=EX_USAGE)


@pytest.mark.parametrize("raw", [b"", FROM_LINE], ids=["nothing", "only the line before"])
def test_no_message_is_an_error(store: Store, raw: bytes) -> None:
    assert "no message" in refused(store, raw, code=EX_DATAERR)


def test_a_closed_standard_input_is_to_be_tried_again(store: Store) -> None:
    words = ["sh", "-c", 'exec "$@" <&-', "sh", *arguments(store.layout.root)]
    done = subprocess.run(words, capture_output=True, cwd=PROJECT, timeout=60, check=False)
    assert done.returncode == EX_TEMPFAIL
    assert b"standard input is closed" in done.stderr
    assert count_of(store) == 0


BROKEN = """
import sys
from unittest.mock import patch
from mailfs.cli.main import main
with patch("mailfs.views.arrivals.commit_arrival", side_effect=ZeroDivisionError("a fault")):
    sys.exit(main(sys.argv[1:]))
"""


def test_an_error_nobody_thought_of_is_to_be_tried_again(store: Store) -> None:
    words = [sys.executable, "-c", BROKEN, "--store", str(store.layout.root), "deliver"]
    done = subprocess.run(
        words, input=RAW, capture_output=True, cwd=PROJECT, timeout=60, check=False
    )
    assert done.returncode == EX_TEMPFAIL
    assert done.stderr.startswith(b"mailfs deliver: ZeroDivisionError: a fault (")
    assert done.stderr.count(b"\n") == 1


def test_the_exit_code_is_the_same_where_nobody_listens(store: Store) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = subprocess.Popen(
            arguments(store.layout.root, "nowhere"),
            stdin=subprocess.DEVNULL,
            stderr=writing,
            cwd=PROJECT,
        )
    finally:
        os.close(writing)
    assert code_of(process) == EX_TEMPFAIL


@pytest.mark.parametrize("limit", [100, 4096, 150_000], ids=["spool", "index", "pack"])
def test_a_full_disk_is_to_be_tried_again(store: Store, limit: int) -> None:
    """A limit on the length of files stands for it: what is written behind it fails."""
    raw = make_message(1, body=random.Random(1).randbytes(120_000).hex())

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        arguments(store.layout.root),
        input=raw,
        capture_output=True,
        cwd=PROJECT,
        timeout=COMMAND_DEADLINE_S,
        preexec_fn=limit_files,
        check=False,
    )
    assert done.returncode == EX_TEMPFAIL
    assert done.stderr.startswith(b"mailfs deliver: ")
    assert b"Traceback" not in done.stderr
    assert count_of(store) == 0
    assert spooled(store.layout.root) == []
    assert store.load(delivered(store, raw)) == raw


# --- waiting for others


def test_a_store_that_others_write_is_waited_for(store: Store) -> None:
    with peer("hold", store.layout.root, "a long import") as holder:
        assert line_of(holder) == b"held\n"
        process = start(store.layout.root)
        assert process.stdin is not None
        process.stdin.write(RAW)
        process.stdin.close()
        process.stdin = None
        wait_until(lambda: stands_at_gate(store), "the delivery at the gate")
        assert process.poll() is None
        assert count_of(store) == 0
        assert holder.stdin is not None
        holder.stdin.close()
        assert code_of(process) == 0
    assert count_of(store, "tag:inbox") == 1


def stands_at_gate(store: Store) -> bool:
    """Whether somebody waits for the lock: the kernel lists an flock(2) on the store's folder."""
    ino = os.stat(store.layout.root).st_ino
    locks = Path("/proc/locks").read_text().splitlines()
    return any(line.split()[5].endswith(f":{ino}") for line in locks if "->" not in line)


def test_who_keeps_a_delivery_waiting_beyond_its_deadline_is_named(store: Store) -> None:
    with WriterLock(store.layout).hold("a long import", 0.0):
        reason = refused(store, RAW, "--deadline", "0")
    assert f"pid {os.getpid()}" in reason
    assert "a long import" in reason
    assert DEADLINE_S >= 60


# --- ends that nobody wished for


@contextmanager
def half_written(store: Store) -> Iterator[Process]:
    """A delivery that has read some of its message and waits for the rest."""
    process = start(store.layout.root)
    assert process.stdin is not None
    process.stdin.write(make_message(1, body="text\n" * 100_000))
    process.stdin.flush()
    wait_until(lambda: has_spooled(process.pid, store), "the file in the spool")
    yield process
    process.communicate(timeout=COMMAND_DEADLINE_S)


def has_spooled(pid: int, store: Store) -> bool:
    """Whether a process has a file open in the spool."""
    spool = str(store.layout.spool)
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if str(fd.readlink()).startswith(spool):
                return True
        except FileNotFoundError:
            continue
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_delivery_that_is_stopped_while_it_reads_stores_nothing(
    store: Store, number: signal.Signals
) -> None:
    with half_written(store) as process:
        process.send_signal(number)
        code = process.wait(COMMAND_DEADLINE_S)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else EX_TEMPFAIL)
    assert count_of(store) == 0
    assert spooled(store.layout.root) == []


def test_a_delivery_that_is_stopped_while_it_waits_stores_nothing(store: Store) -> None:
    with WriterLock(store.layout).hold("test", 0.0):
        process = start(store.layout.root)
        assert process.stdin is not None
        process.stdin.write(RAW)
        process.stdin.close()
        process.stdin = None
        wait_until(lambda: stands_at_gate(store), "the delivery at the gate")
        process.terminate()
        assert code_of(process) == EX_TEMPFAIL
    assert count_of(store) == 0
    delivered(store, RAW)


@pytest.mark.slow
def test_a_delivery_killed_at_any_moment_is_in_whole_or_not_at_all(store: Store) -> None:
    root, chance = store.layout.root, random.Random(1)
    others = [make_message(1000), make_message(1001)]
    delivered(store, others[0])
    started = time.monotonic()
    delivered(store, others[1])
    usual_s = time.monotonic() - started
    raws = {number: make_message(number, body="x" * number * 50_000) for number in range(KILLS)}
    acknowledged = []
    for number, raw in raws.items():
        packed = pack_bytes(root)
        process = start(root)
        assert process.stdin is not None
        process.stdin.write(raw)
        process.stdin.close()
        process.stdin = None
        end = time.monotonic() + usual_s * chance.random()
        # Every other one between the pack and the index.
        while process.poll() is None and (
            pack_bytes(root) == packed if number % 2 else time.monotonic() < end
        ):
            pass
        process.kill()
        code = code_of(process)
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            acknowledged.append(number)
    assert len(acknowledged) < KILLS
    held = contents_of(store).values()
    assert {raws[number] for number in acknowledged} <= set(held)
    assert set(held) <= {*raws.values(), *others}
    assert_sound(root)
    assert spooled(root) == []
    # The mail system tries all of them again.
    for raw in raws.values():
        delivered(store, raw)
    assert sorted(contents_of(store).values()) == sorted([*raws.values(), *others])


def pack_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / "packs").iterdir())


# --- many at once


@pytest.mark.mount
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be mounted")
def test_ten_at_once_beside_an_import_and_two_clients_are_all_there_once(
    mailfs: Mailfs, tmp_path: Path
) -> None:
    mailfs.create(5)
    mailfs.mount()
    is_over = threading.Event()
    flags, names = partial(change_flags, mailfs, is_over), partial(read_all, mailfs, is_over)
    with ThreadPoolExecutor(2) as pool:
        clients = [pool.submit(flags), pool.submit(names)]
        try:
            deliver_beside_an_import(mailfs, tmp_path)
        finally:
            is_over.set()
        assert all(client.result(COMMAND_DEADLINE_S) > 0 for client in clients)
    assert "no problems" in mailfs.say("verify")


def change_flags(mailfs: Mailfs, is_over: threading.Event) -> int:
    """A client that sets and clears a flag of a message that nobody else touches; how often."""
    name = mailfs.names("inbox")[0]
    count = 0
    while not is_over.is_set():
        other = f"{name.partition(':')[0]}:2,{'F' if name.endswith(',') else ''}"
        mailfs.path("inbox", "cur", name).rename(mailfs.path("inbox", "cur", other))
        name = other
        count += 1
    return count


def read_all(mailfs: Mailfs, is_over: threading.Event) -> int:
    """A client that reads what is new, again and again; how many files it read."""
    count = 0
    while not is_over.is_set():
        for name in mailfs.names("inbox", "new"):
            assert mailfs.path("inbox", "new", name).read_bytes()
            count += 1
    return count


def deliver_beside_an_import(mailfs: Mailfs, tmp_path: Path) -> None:
    """Twice ten messages at once, the second ten known already."""
    archive = tmp_path / "archive.mbox"
    archive.write_bytes(b"".join(make_mbox(map(make_message, range(1000, 4000)))))
    words = ["--store", str(mailfs.store), "import", str(archive)]
    importer = subprocess.Popen(
        [sys.executable, "-m", "mailfs", *words], stdout=subprocess.DEVNULL, cwd=PROJECT
    )
    raws = [make_message(100 + number % 10) for number in range(20)]
    for first in (0, 10):
        processes = [start(mailfs.store) for _ in range(10)]
        for process, raw in zip(processes, raws[first:], strict=False):
            assert process.stdin is not None
            process.stdin.write(raw)
            process.stdin.close()
            process.stdin = None
        assert [code_of(process) for process in processes] == [0] * 10
    assert importer.wait(COMMAND_DEADLINE_S) == 0
    assert mailfs.count("*") == 5 + 10 + 3000
    assert mailfs.count("tag:inbox") == 5 + 10
    shown = [mailfs.path("inbox", "new", name) for name in mailfs.names("inbox", "new")]
    assert sorted(path.read_bytes() for path in shown) == sorted(raws[:10])


# --- starting up

HEAVY_CHECK = """
import sys
from mailfs.cli.main import main
code = main(sys.argv[1:])
heavy = {"pyfuse3", "trio", "tqdm", "email", "mailfs.ingest.importer"} & set(sys.modules)
sys.exit(f"imported: {sorted(heavy)}" if heavy else code)
"""


def test_starting_up_stays_light(store: Store) -> None:
    words = [sys.executable, "-c", HEAVY_CHECK, "--store", str(store.layout.root), "deliver"]
    done = subprocess.run(
        words, input=RAW, capture_output=True, cwd=PROJECT, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
