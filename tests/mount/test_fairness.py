"""Clients that are slow, stuck or in a hurry do not keep others from being served."""

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mailfs.store.store import Store
from tests.mount.mounting import Mailfs
from tests.mount.waiting import DEADLINE_S, wait_until

DRAINED = pytest.mark.parametrize("flags", [(), ("--no-drain",)], ids=["drained", "undrained"])

# Reads every message of a folder over and over, and says so once.
_HURRY = """
import os, sys
folder = sys.argv[1]
names = os.listdir(folder)
sys.stdout.write("reading\\n")
sys.stdout.flush()
while True:
    for name in names:
        try:
            fd = os.open(folder + "/" + name, os.O_RDONLY)
        except FileNotFoundError:
            continue
        os.read(fd, 100)
        os.close(fd)
"""


@contextmanager
def hurried_client(mailfs: Mailfs, view: str) -> "Iterator[subprocess.Popen[bytes]]":
    process = subprocess.Popen(
        [sys.executable, "-c", _HURRY, str(mailfs.path(view, "cur"))], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], DEADLINE_S)[0], "the client did not begin"
        assert process.stdout.readline() == b"reading\n"
        yield process
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(DEADLINE_S)
        if process.stdout is not None:
            process.stdout.close()


@DRAINED
def test_a_client_in_a_hurry_leaves_room_for_others_signals_and_timers(
    mailfs: Mailfs, flags: tuple[str, ...]
) -> None:
    mailfs.create(messages=50)
    mailfs.mount(*flags)
    with hurried_client(mailfs, "all"):
        began = time.monotonic()
        before = mailfs.requests()["open"]  # answers a signal
        wait_until(lambda: mailfs.requests()["open"] > before, "the client to go on")
        assert len(mailfs.names("inbox")) == 50
        path = mailfs.path("inbox/cur", mailfs.names("inbox")[0])
        path.rename(path.with_name(path.name + "S"))
        assert mailfs.names("inbox").count(path.name + "S") == 1
        assert time.monotonic() - began < 5
        # Nobody asks for anything but reads: the timer brings the tree up to date.
        shown = mailfs.status()["modseq"]
        mailfs.say("tag", "+work", "id:3@example.org")
        wait_until(lambda: mailfs.status()["modseq"] != shown, "the timer")
    mailfs.umount()


@DRAINED
def test_a_rename_that_waits_for_a_writer_keeps_nobody_else_waiting(
    mailfs: Mailfs, flags: tuple[str, ...]
) -> None:
    mailfs.create(messages=20)
    mailfs.mount(*flags)
    path = mailfs.path("inbox/cur", mailfs.names("inbox")[0])
    done = threading.Event()

    def rename() -> None:
        path.rename(path.with_name(path.name + "S"))
        done.set()

    client = threading.Thread(target=rename)
    with (
        Store.open(mailfs.store) as store,
        store.writer.transaction("the test is in the way", durable=False),
    ):
        before = mailfs.requests()["rename"]
        client.start()
        wait_until(lambda: mailfs.requests()["rename"] > before, "the rename to begin")
        for _ in range(3):
            names = mailfs.names("all")
            assert len(names) == 20
            for name in names:
                assert mailfs.path("all/cur", name).read_bytes()
        assert len(mailfs.names("unread")) == 20
        assert not done.is_set()
    assert done.wait(DEADLINE_S)
    client.join(DEADLINE_S)
    assert mailfs.count("is:seen") == 1


@DRAINED
def test_several_renames_that_wait_at_once_are_all_done_and_others_are_served(
    mailfs: Mailfs, flags: tuple[str, ...]
) -> None:
    """More waiting handlers than one: the reader must be passed on each time."""
    views = ["v1", "v2", "v3", "v4"]
    mailfs.create(messages=20)
    for view in views:
        mailfs.say("save", view, "subject:message")
    mailfs.mount(*flags)
    paths = [mailfs.path(view, "cur", mailfs.names(view)[i]) for i, view in enumerate(views)]
    clients = [
        threading.Thread(target=path.rename, args=(path.with_name(path.name + "F"),))
        for path in paths
    ]
    with (
        Store.open(mailfs.store) as store,
        store.writer.transaction("the test is in the way", durable=False),
    ):
        for number, client in enumerate(clients, 1):
            client.start()
            wait_until(lambda n=number: mailfs.requests()["rename"] >= n, "a rename to begin")  # type: ignore[misc]  # the number of now
        assert len(mailfs.names("all")) == 20
    for client in clients:
        client.join(DEADLINE_S)
    assert mailfs.count("is:flagged") == 4
    assert len(mailfs.names("flagged")) == 4


def test_clients_that_hold_handles_and_do_nothing_delay_nobody(mailfs: Mailfs) -> None:
    mailfs.create(messages=400)
    mailfs.mount()
    names = mailfs.names("all")
    listings = [os.scandir(mailfs.path(view, "cur")) for view in ("all", "inbox") for _ in range(8)]
    begun = [next(listing) for listing in listings]
    files = [os.open(mailfs.path("all/cur", name), os.O_RDONLY) for name in names]
    try:
        status = mailfs.status()
        assert status["open_messages"] == 400
        assert status["open_directories"] == len(begun)
        for view in ("inbox", "unread", "all"):
            assert len(mailfs.names(view)) == 400
        path = mailfs.path("inbox/cur", names[0])
        path.rename(path.with_name(path.name + "S"))
        assert mailfs.names("inbox").count(path.name + "S") == 1
    finally:
        for listing in listings:
            listing.close()
        for file in files:
            os.close(file)
    wait_until(lambda: mailfs.status()["open_messages"] == 0, "every file released")
    assert mailfs.status()["open_directories"] == 0


def test_many_clients_at_once_all_get_the_right_bytes(mailfs: Mailfs) -> None:
    mailfs.create(messages=100)
    mailfs.mount()
    names = mailfs.names("all")
    expected = {name: mailfs.path("all/cur", name).stat().st_size for name in names}
    wrong: list[str] = []

    def read_all(view: str) -> None:
        for name in os.listdir(mailfs.path(view, "cur")):
            if len(mailfs.path(view, "cur", name).read_bytes()) != expected[name]:
                wrong.append(name)

    clients = [
        threading.Thread(target=read_all, args=(view,)) for view in ("all", "inbox", "unread") * 4
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join(DEADLINE_S)
        assert not client.is_alive()
    assert wrong == []
