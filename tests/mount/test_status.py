"""What a daemon says of itself, and that who waits for the writer lock keeps nobody else waiting."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mailfs.errors import EX_TEMPFAIL
from mailfs.store.store import Store
from tests.fakes import make_message
from tests.mount.mounting import Mailfs
from tests.mount.waiting import DEADLINE_S, wait_until
from tests.store.peer import line_of, peer

DRAINED = pytest.mark.parametrize("flags", [(), ("--no-drain",)], ids=["drained", "undrained"])


def save_views(mailfs: Mailfs, count: int) -> list[str]:
    """Query views that show every message."""
    names = [f"v{number}" for number in range(count)]
    with (
        Store.open(mailfs.store) as store,
        store.writer.transaction("test", durable=False) as transaction,
    ):
        for name in names:
            transaction.searches.save(name, "subject:message", "", replace=False)
    return names


@contextmanager
def stopped_holder(mailfs: Mailfs) -> "Iterator[subprocess.Popen[bytes]]":
    """A process that holds the writer lock and is stopped; let go at the end."""
    with peer("hold", mailfs.store, "sleeping") as holder:
        assert line_of(holder) == b"held\n"
        holder.send_signal(signal.SIGSTOP)
        yield holder
        holder.send_signal(signal.SIGCONT)
        assert holder.stdin is not None
        holder.stdin.close()
        assert holder.wait(DEADLINE_S) == 0


class Client(threading.Thread):
    """Does something once; `code` is the errno it got, 0 for none, None while it waits."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.code: int | None = None
        self.start()

    def run(self) -> None:
        try:
            self.act()
        except OSError as error:
            self.code = error.errno
        else:
            self.code = 0

    def act(self) -> None:
        self.path.rename(self.path.with_name(self.path.name + "F"))


class Reader(Client):
    def act(self) -> None:
        assert self.path.read_bytes()


def in_flight(mailfs: Mailfs, name: str) -> list[dict[str, object]]:
    found = mailfs.status()["in_flight"]
    assert isinstance(found, list)
    return [request for request in found if request["name"] == name]


@DRAINED
def test_a_hundred_renames_that_wait_for_a_stopped_writer_keep_no_reader_waiting(
    mailfs: Mailfs, flags: tuple[str, ...]
) -> None:
    """In fifty folders: in each the kernel lets through one rename at a time."""
    mailfs.create(messages=100)
    views = save_views(mailfs, 51)
    mailfs.mount(*flags)
    names = {view: mailfs.names(view) for view in views[:50]}
    with stopped_holder(mailfs) as holder:
        clients = [
            Client(mailfs.path(view, "cur", names[view][2 * number + each]))
            for number, view in enumerate(views[:50])
            for each in (0, 1)
        ]
        wait_until(lambda: len(in_flight(mailfs, "rename")) == 50, "a rename in every folder")
        before = mailfs.requests()
        # A view that is read for the first time, and a listing, an open and a read of each message.
        for view in (views[50], "all"):
            read = [mailfs.path(view, "cur", name).read_bytes() for name in mailfs.names(view)]
            assert len(list(filter(None, read))) == 100
        assert (mailfs.requests() - before)["open"] == 200
        waiting = in_flight(mailfs, "rename")
        assert {request["waits_for"] for request in waiting} == {"the writer lock"}
        assert {request["pid"] for request in waiting} == {os.getpid()}
        assert [client.code for client in clients] == [None] * 100
        status = mailfs.status()
        assert isinstance(status["holder"], dict)
        assert (status["holder"]["pid"], status["holder"]["purpose"]) == (holder.pid, "sleeping")
    for client in clients:
        client.join(DEADLINE_S * 2)
    assert {client.code for client in clients} <= {0, errno.EAGAIN}
    assert mailfs.count("is:flagged") == [client.code for client in clients].count(0)
    assert in_flight(mailfs, "rename") == []
    assert mailfs.names("flagged") == mailfs.names("flagged")


@DRAINED
def test_files_that_wait_to_be_taken_in_keep_no_reader_waiting(
    mailfs: Mailfs, flags: tuple[str, ...]
) -> None:
    """The kernel has twelve requests at most under way that nobody waits for: closing files, and reading ahead."""
    mailfs.create(messages=100)
    views = save_views(mailfs, 60)
    mailfs.mount(*flags)
    names = mailfs.names("all")
    with stopped_holder(mailfs):
        for number, view in enumerate(views):
            path = mailfs.path(view, "cur", f"{number}.copied")
            path.write_bytes(make_message(1000 + number, subject="message"))
        large = mailfs.path("all/tmp/large")
        large.write_bytes(bytes(3 << 20))
        # It would be read when sixty files had each been waited with for ten seconds, twelve at once.
        reader = Reader(large)
        wait_until(lambda: reader.code == 0, "a large file to be read")
        for name in names:
            assert mailfs.path("all/cur", name).read_bytes()
        wait_until(lambda: mailfs.status()["open_files"] == 0, "every file to be closed")
        wait_until(lambda: in_flight(mailfs, "release") == [], "every close to be answered")
    wait_until(lambda: mailfs.count("subject:message") == 160, "all to be taken in")
    large.unlink()


# --- what it says


def command_status(mailfs: Mailfs) -> tuple[int, dict[str, Any]]:
    """Exit code and answer of `mailfs status --json`."""
    done = mailfs.command("status", "--json")
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return done.returncode, found


def clients(mailfs: Mailfs) -> dict[int, dict[str, Any]]:
    """What is open, by pid."""
    found = mailfs.status()["clients"]
    assert isinstance(found, list)
    return {client["pid"]: client for client in found}


@contextmanager
def client_process(code: str, *words: str | Path) -> "Iterator[subprocess.Popen[bytes]]":
    """A program that does something, says `done` and then waits for the end of its input."""
    text = f"import os, sys\n{code}\nprint('done', flush=True)\nsys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", text, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        try:
            assert line_of(process) == b"done\n"
            yield process
        finally:
            process.kill()


def test_clients_are_told_by_pid_and_command_with_what_they_have_open(mailfs: Mailfs) -> None:
    mailfs.create(messages=2)
    mailfs.mount()
    names = mailfs.names("all")
    opens = "files = [os.open(path, os.O_RDONLY) for path in sys.argv[1:]]"
    paths = [mailfs.path("all/cur", name) for name in names]
    with (
        client_process(opens, *paths, mailfs.path("inbox/cur")) as first,
        client_process(
            "open(sys.argv[1], 'w').close(); file = open(sys.argv[1])", mailfs.path("all/tmp/x")
        ) as second,
    ):
        found = clients(mailfs)
        command = Path(f"/proc/{first.pid}/comm").read_text().strip()
        expected = {"pid": first.pid, "command": command, "files": 0}
        assert found[first.pid] == expected | {"messages": 2, "directories": 1}
        assert (found[second.pid]["files"], found[second.pid]["messages"]) == (1, 0)
    wait_until(lambda: clients(mailfs) == {}, "everything to be closed")


def test_a_file_whose_opener_has_gone_is_still_told(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    code = """
fd = os.open(sys.argv[1], os.O_RDONLY)
if os.fork():
    os._exit(0)
"""
    with client_process(code, mailfs.only("inbox")) as parent:
        parent.wait(DEADLINE_S)
        assert clients(mailfs)[parent.pid]["command"] == "ended"
        assert mailfs.status()["open_messages"] == 1
        assert parent.stdin is not None
        parent.stdin.close()  # the child ends with it
        wait_until(lambda: clients(mailfs) == {}, "the file to be closed")


def test_views_in_memory_are_told_and_no_others(mailfs: Mailfs) -> None:
    mailfs.create(messages=3)
    mailfs.mount()
    assert mailfs.status()["views"] == []
    names = mailfs.names("inbox")
    (view,) = json.loads(json.dumps(mailfs.status()["views"]))
    assert (view["name"], view["messages"], view["lingering"]) == ("inbox", 3, 0)
    assert view["modseq"] == mailfs.status()["modseq"]
    assert view["bytes"] >= 3 * 8
    mailfs.names("unread")
    path = mailfs.path("unread/cur", names[0])
    path.rename(path.with_name(path.name + "S"))
    said = {view["name"]: view for view in json.loads(json.dumps(mailfs.status()["views"]))}
    assert (said["unread"]["messages"], said["unread"]["lingering"]) == (3, 1)


def test_the_status_tells_nothing_of_any_mail(mailfs: Mailfs) -> None:
    mailfs.create(messages=3)
    mailfs.mount()
    with mailfs.path("all/cur", mailfs.names("all")[0]).open("rb"):
        said = f"{mailfs.status()} {mailfs.say('status')}"
    assert "example.org" not in said
    assert "message 1" not in said


def test_lock_waits_are_counted(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    path = mailfs.only("inbox")
    before = mailfs.status()["lock"]
    with stopped_holder(mailfs):
        client = Client(path)
        wait_until(lambda: in_flight(mailfs, "rename"), "the rename to wait")
        lock = mailfs.status()["lock"]
        assert isinstance(lock, dict)
        assert [use["purpose"] for use in lock["waiting"]] == ["a change in a view"]
        assert lock["held"] is None
    client.join(DEADLINE_S)
    after = mailfs.status()["lock"]
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert (after["acquisitions"], after["waits"]) == (
        before["acquisitions"] + 1,
        before["waits"] + 1,
    )
    assert after["longest_wait_s"] > before["longest_wait_s"]


# --- mailfs status


def test_the_command_tells_of_every_mount(mailfs: Mailfs) -> None:
    mailfs.create(messages=2)
    mailfs.mount()
    second = mailfs.folder / "second"
    mailfs.say("mount", second)
    mailfs.names("inbox")
    code, found = command_status(mailfs)
    assert code == 0
    assert (found["messages"], found["store"]) == (2, str(mailfs.store))
    mounts = {mount["mountpoint"]: mount for mount in found["mounts"]}
    assert set(mounts) == {str(mailfs.mountpoint), str(second)}
    assert {mount["pid"] for mount in mounts.values()} == set(mailfs.pids())
    assert [view["name"] for view in mounts[str(mailfs.mountpoint)]["views"]] == ["inbox"]
    text = mailfs.say("status")
    for pid, mountpoint in ((mount["pid"], where) for where, mount in mounts.items()):
        assert f"\n{mountpoint}, served by pid {pid} since 2" in text
    mailfs.say("umount", second)
    assert len(command_status(mailfs)[1]["mounts"]) == 1


def test_a_mount_that_does_not_answer_is_named_and_keeps_nobody_waiting(mailfs: Mailfs) -> None:
    mailfs.create(messages=2)
    mailfs.mount()
    pid = mailfs.pid
    second = mailfs.folder / "second"
    mailfs.say("mount", second)
    os.kill(pid, signal.SIGSTOP)
    try:
        code, found = command_status(mailfs)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert code == EX_TEMPFAIL
    said = {mount["pid"]: mount.get("problem") for mount in found["mounts"]}
    assert said.pop(pid) == "does not answer within 5 s"
    assert list(said.values()) == [None]
    assert found["messages"] == 2
    mailfs.say("umount", second)
    assert command_status(mailfs)[0] == 0


def test_a_mount_that_serves_its_last_clients_is_no_error_to_wait_for(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    pid = mailfs.pid
    with mailfs.only("inbox").open("rb"):
        mailfs.umount("-l")
        done = mailfs.command("status")
        assert f"{mailfs.mountpoint}, served by pid {pid}, is unmounted" in done.stdout
        assert done.returncode == 0
    wait_until(lambda: mailfs.pids() == [], "the daemon's end")
    assert "served by" not in mailfs.say("status")
