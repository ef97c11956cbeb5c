"""Memory pressure as the kernel tells it, views that are let go, and the log's length."""

import os
import socket
import threading
from pathlib import Path

import pytest

from mailfs.fuse import logfile
from mailfs.fuse.logfile import limit_log, open_log
from mailfs.fuse.pressure import TRIGGER, Pressure, pressure_files
from mailfs.ids import Ino
from mailfs.views.evaluation import unload_unknown
from mailfs.views.tree import Kind
from tests.views.world import World

# --- the kernel's word


class Waiter(threading.Thread):
    """Waits for pressure; `answer` is what it was told."""

    def __init__(self, pressure: Pressure) -> None:
        super().__init__(daemon=True)
        self._pressure = pressure
        self.answer: bool | None = None
        self.start()

    def run(self) -> None:
        self.answer = self._pressure.wait()


@pytest.fixture
def ends() -> "tuple[Pressure, socket.socket]":
    """A descriptor that gets POLLPRI when a byte is sent out of band, as a trigger does under pressure."""
    listener = socket.create_server(("127.0.0.1", 0))
    other = socket.create_connection(listener.getsockname())
    ours, _ = listener.accept()
    listener.close()
    return Pressure(ours.detach()), other


def test_who_waits_is_told_when_memory_is_short(
    ends: "tuple[Pressure, socket.socket]",
) -> None:
    pressure, other = ends
    waiter = Waiter(pressure)
    other.send(b"!", socket.MSG_OOB)
    waiter.join(10)
    assert waiter.answer is True
    pressure.close()
    other.close()


def test_who_waits_is_told_that_there_will_be_no_more_word(
    ends: "tuple[Pressure, socket.socket]",
) -> None:
    pressure, other = ends
    waiter = Waiter(pressure)
    pressure.stop()
    waiter.join(10)
    assert waiter.answer is False
    pressure.close()
    other.close()


def test_the_kernel_takes_the_trigger_where_it_has_pressure_stall_information() -> None:
    if not Path("/proc/pressure/memory").exists():
        pytest.skip("this kernel was built without pressure stall information")
    pressure = Pressure.open_or_none()
    if pressure is None:
        pytest.skip("this kernel gives triggers to root only")
    waiter = Waiter(pressure)
    pressure.stop()
    waiter.join(10)
    assert waiter.answer is False
    pressure.close()


@pytest.mark.parametrize("refuses", ["open", "write"])
def test_without_a_trigger_there_is_no_word_and_no_error(
    monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    def refused(*arguments: object) -> int:
        raise PermissionError(1, "not for you")

    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(f"mailfs.fuse.pressure.os.{refuses}", refused)
    assert Pressure.open_or_none() is None
    monkeypatch.undo()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_our_own_control_group_is_asked_before_the_machine() -> None:
    machine = Path("/proc/pressure/memory")
    groups = "12:memory:/other\n0::/user.slice/app.scope\n"
    assert pressure_files(groups) == [
        Path("/sys/fs/cgroup/user.slice/app.scope/memory.pressure"),
        Path("/sys/fs/cgroup/unified/user.slice/app.scope/memory.pressure"),
        machine,
    ]
    assert pressure_files("0::/\n") == [machine]
    assert pressure_files("4:memory:/here\n") == [machine]


def test_anybody_may_have_such_a_window() -> None:
    """psi.rst: that of an ordinary user must be a multiple of two seconds."""
    _, threshold, window = TRIGGER.rstrip(b"\0").split()
    assert int(window) % 2_000_000 == 0
    assert int(threshold) < int(window)


# --- views


def test_views_whose_folders_nobody_knows_are_let_go_and_loaded_again(world: World) -> None:
    for _ in range(10):
        world.deliver(keywords=["inbox"])
    tree = world.tree
    for name in ("inbox", "all", "unread"):
        world.load(name)
    known = {tree.subfolder_ino(tree.views["unread"], Kind.CUR)}
    tree.views["all"].open_handles += 1
    before = len(tree.views["inbox"].docids)
    assert unload_unknown(tree, known) >= 80
    loaded = {name for name, view in tree.views.items() if view.is_loaded}
    assert loaded == {"all", "unread"}
    docid = world.deliver(keywords=["inbox"])
    world.refresh()
    world.load("inbox")
    assert docid in tree.views["inbox"]
    assert len(tree.views["inbox"].docids) == before + 1
    assert unload_unknown(tree, {Ino(0), *known}) > 0


# --- the log


def test_a_log_is_begun_anew_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfile, "MAX_LOG_BYTES", 100)
    path = tmp_path / "mount.log"
    kept = [os.dup(1), os.dup(2)]
    try:
        open_log(path)
        os.write(2, b"x" * 99)
        limit_log(path)
        os.write(2, b"y")
        limit_log(path)
        os.write(1, b"new\n")
        path.rename(tmp_path / "taken")  # as another mount of the store does
        limit_log(path)
        os.write(2, b"newest\n")
    finally:
        for number, fd in enumerate(kept, 1):
            os.dup2(fd, number)
            os.close(fd)
    assert (tmp_path / "mount.log.1").read_bytes() == b"x" * 99 + b"y"
    assert (tmp_path / "taken").read_bytes() == b"new\n"
    assert path.read_bytes() == b"newest\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_link_in_the_place_of_the_log_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "mount.log").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        open_log(tmp_path / "mount.log")
    assert (tmp_path / "precious").read_text() == "mine"
