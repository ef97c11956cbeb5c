"""A mount as a service: its configuration, SIGHUP, what a service manager hears, the systemd unit, and mounting at login."""

import errno
import os
import pty
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mailfs.cli.main import parse_arguments
from mailfs.errors import EX_CONFIG
from mailfs.fuse.changes import EDIT_DEADLINE_S
from mailfs.fuse.duties import TICK_S, Duties
from mailfs.fuse.systemd import ServiceManager
from mailfs.store.config import Config, config_path
from mailfs.store.layout import open_layout
from mailfs.store.lock import WriterLock
from mailfs.store.store import Store
from mailfs.views.tree import LINGER_S
from tests.fakes import PROJECT
from tests.mount.mounting import Mailfs, is_alive
from tests.mount.waiting import DEADLINE_S, pause, wait_until
from tests.ops.kernel import Kernel
from tests.views.world import World

UNIT = PROJECT / "mailfs" / "mailfs.service"


def configure(mailfs: Mailfs, *settings: str) -> None:
    text = "\n".join(["[mount]", *settings, ""])
    config_path(open_layout(mailfs.store)).write_text(text, "utf-8")


def reload(mailfs: Mailfs, expected: str = "the configuration is: ") -> str:
    """SIGHUP, and what the log says of it."""
    before = len(mailfs.log_text())
    os.kill(mailfs.pid, signal.SIGHUP)

    def said() -> str:
        found = re.search(f"{expected}.*\n", mailfs.log_text()[before:])
        return found[0] if found else ""

    return wait_until(said, f"`{expected}` in the log")


# --- configuration


def mark_seen(mailfs: Mailfs) -> str:
    """Read a message in `unread`; its name there now."""
    name = next(name for name in mailfs.names("unread") if not name.endswith("S"))
    mailfs.path("unread/cur", name).rename(mailfs.path("unread/cur", name + "S"))
    return name + "S"


def assert_leaves(mailfs: Mailfs, name: str) -> None:
    wait_until(lambda: name not in mailfs.names("unread"), "the end of its lingering")


def test_sighup_changes_how_long_what_was_read_lingers_and_a_bad_file_changes_nothing(
    mailfs: Mailfs,
) -> None:
    mailfs.create(messages=4)
    configure(mailfs, "linger = 0")
    mailfs.mount()
    assert_leaves(mailfs, mark_seen(mailfs))

    configure(mailfs, "linger = 300", 'echo = "loud"')
    said = reload(mailfs, "the configuration stays as it was: ")
    assert f"{mailfs.store}/config: mount.echo must be true or false" in said
    assert_leaves(mailfs, mark_seen(mailfs))

    configure(mailfs, "linger = 300")
    assert "linger 300 s" in reload(mailfs)
    lingering = mark_seen(mailfs)
    pause(2 * TICK_S)  # the timer takes away what is over
    assert lingering in mailfs.names("unread")

    configure(mailfs, "linger = 0")
    reload(mailfs)
    assert_leaves(mailfs, lingering)
    mailfs.umount()
    mailfs.log.unlink()  # it says how a configuration was refused


def test_what_nobody_configures_is_what_the_code_does_by_itself() -> None:
    assert (Config().linger_s, Config().lock_deadline_s) == (LINGER_S, EDIT_DEADLINE_S)


def test_without_the_file_sighup_brings_back_the_defaults(mailfs: Mailfs) -> None:
    mailfs.create()
    configure(mailfs, "linger = 1", "lock-timeout = 1")
    mailfs.mount()
    config_path(open_layout(mailfs.store)).unlink()
    assert "linger 300 s, sync-interval 3 s, lock-timeout 10 s, echo on, log-level info" in reload(
        mailfs
    )


def test_a_change_waits_for_another_writer_as_long_as_the_configuration_says(
    mailfs: Mailfs,
) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    configure(mailfs, "lock-timeout = 0.5")
    reload(mailfs)
    path = mailfs.only("inbox")
    with (
        WriterLock(open_layout(mailfs.store)).hold("test", DEADLINE_S),
        pytest.raises(OSError, match="temporarily") as caught,
    ):
        path.rename(path.with_name(path.name + "S"))
    assert caught.value.errno == errno.EAGAIN
    waited = re.search(r"rename refused: .* waited ([\d.]+) s", mailfs.log_text())
    assert waited is not None
    assert 0.4 < float(waited[1]) < EDIT_DEADLINE_S


def test_changes_made_elsewhere_are_echoed_only_if_the_configuration_says_so(
    mailfs: Mailfs,
) -> None:
    mailfs.create(messages=1)
    configure(mailfs, "echo = false")
    mailfs.mount()
    mailfs.names("inbox")

    def told() -> dict[str, int]:
        found = mailfs.status()["echoes"]
        assert isinstance(found, dict)
        return found

    mailfs.say("tag", "+flagged", "--", "*")
    assert wait_until(told, "the kernel hearing of a change") == {"forget": 1}
    assert mailfs.only("inbox").name.endswith(",F")
    configure(mailfs, "echo = true")
    reload(mailfs)
    mailfs.say("tag", "-flagged", "--", "*")
    wait_until(lambda: told().get("move") == 1, "the echo of a change")


@pytest.mark.parametrize(("sync_s", "count"), [(0.0, 10), (4.0, 2), (3600.0, 0)])
def test_changes_are_synced_as_often_as_the_configuration_says(
    store: Store, monkeypatch: pytest.MonkeyPatch, sync_s: float, count: int
) -> None:
    """Ten turns of the timer, while changes come that nobody asks to be synced."""
    operations = Kernel(World(store)).operations
    duties = Duties(store, operations, Path("/nowhere"), lambda: None)
    duties.apply(Config(sync_s=sync_s))
    synced: list[float] = []

    def sync() -> None:
        synced.append(trio.from_thread.run_sync(trio.current_time))
        operations.changes.is_dirty = True

    monkeypatch.setattr(store.writer, "sync", sync)

    async def make_changes() -> None:
        operations.changes.is_dirty = True
        with trio.move_on_after(10.5 * TICK_S):
            await duties.tick()

    # The clock jumps when nothing has happened for so long: the sync is a matter of microseconds here.
    trio.run(make_changes, clock=MockClock(autojump_threshold=0.05))
    assert len(synced) == count


def test_the_log_has_what_its_level_says(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    configure(mailfs, 'log-level = "warning"')
    mailfs.mount()
    assert mailfs.log_text() == ""
    mailfs.umount()
    assert mailfs.log_text() == ""
    mailfs.mount()
    configure(mailfs, 'log-level = "info"')
    reload(mailfs)
    mailfs.umount()
    assert mailfs.log_text().endswith("unmounted\n")


def test_a_log_of_errors_alone_has_the_status_that_was_asked_for(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    configure(mailfs, 'log-level = "error"')
    mailfs.mount()
    assert mailfs.status()["pid"] == mailfs.pid


@pytest.mark.parametrize("flags", [(), ("-f",)], ids=["background", "foreground"])
def test_a_bad_configuration_refuses_the_mount_before_anything_is_touched(
    mailfs: Mailfs, flags: tuple[str, ...]
) -> None:
    mailfs.create()
    configure(mailfs, "linger = soon")
    done = mailfs.command("mount", *flags, mailfs.mountpoint)
    assert (done.returncode, done.stdout) == (EX_CONFIG, "")
    assert f"{mailfs.store}/config is not TOML: Invalid value (at line 2" in done.stderr
    assert not mailfs.mountpoint.exists()
    assert not mailfs.log.exists()
    configure(mailfs)  # or verify has something to say


def test_other_commands_do_not_mind_a_bad_configuration(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    configure(mailfs, "linger = soon")
    assert mailfs.count("*") == 1
    configure(mailfs)


# --- signals


def test_sighup_does_not_end_a_mount_that_is_being_made(mailfs: Mailfs) -> None:
    """Sent as soon as there is a process to send it to, and again until the mount can be used."""
    mailfs.create(messages=1)
    process = subprocess.Popen(
        mailfs.account.mailfs_arguments(mailfs.store, "mount", mailfs.mountpoint),
        env=mailfs.account.environment(),
        cwd=mailfs.account.folder(),
    )

    def is_ready() -> bool:
        for pid in mailfs.pids():
            os.kill(pid, signal.SIGHUP)
        return process.poll() is not None

    wait_until(is_ready, "the mount", 30.0)
    assert process.returncode == 0
    assert len(mailfs.names("inbox")) == 1


def test_a_mount_whose_terminal_is_closed_unmounts_in_order(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    words = mailfs.account.mailfs_arguments(mailfs.store, "mount", "-f", mailfs.mountpoint)
    pid, terminal = pty.fork()
    if pid == 0:  # in a session of its own, the terminal being its controlling one
        os.chdir(mailfs.account.folder())
        os.execvpe(words[0], words, mailfs.account.environment())
    shown = b""
    while b"mounted at" not in shown:
        shown += os.read(terminal, 4096)
    os.kill(pid, signal.SIGHUP)  # with the terminal still there this is no reason to end
    while b"the configuration is" not in shown:
        shown += os.read(terminal, 4096)
    assert mailfs.is_mounted()
    os.close(terminal)
    wait_until(lambda: not is_alive(pid), "the end of the mount")
    assert os.waitpid(pid, 0) == (pid, 0)
    assert not mailfs.is_mounted()


# --- the service manager


class Manager:
    """The socket a service manager listens on."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(re.sub("^@", "\0", address))
        self._socket.settimeout(DEADLINE_S)

    def hear(self) -> dict[str, str]:
        """The next datagram."""
        lines = self._socket.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def has_heard_all(self) -> bool:
        self._socket.settimeout(0)
        try:
            return self._socket.recv(4096) == b""
        except BlockingIOError:
            return True

    def close(self) -> None:
        self._socket.close()


@contextmanager
def listening(address: str) -> Iterator[Manager]:
    manager = Manager(address)
    try:
        yield manager
    finally:
        manager.close()


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """Not pytest's folder: the name of a socket has at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="mailfs-notify-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, socket_folder: Path) -> Iterator[Manager]:
    is_path = request.param == "path"
    with listening(f"{socket_folder}/notify" if is_path else f"@{socket_folder.name}") as made:
        yield made


def as_service(mailfs: Mailfs, address: str, *variables: str) -> None:
    """Run the command as a service manager does."""
    prefix = ("env", f"NOTIFY_SOCKET={address}", *variables)
    mailfs.account = replace(mailfs.account, prefix=prefix)


def test_a_service_manager_hears_of_the_beginning_a_reload_and_the_end(
    mailfs: Mailfs, manager: Manager
) -> None:
    mailfs.create(messages=1)
    as_service(mailfs, manager.address)
    process = mailfs.mount_in_foreground()
    serving = f"serving {mailfs.mountpoint}"
    assert manager.hear() == {"READY": "1", "STATUS": serving}
    assert len(mailfs.names("inbox")) == 1

    before_us = time.monotonic_ns() // 1000
    process.send_signal(signal.SIGHUP)
    reloading = manager.hear()
    assert reloading.keys() == {"RELOADING", "MONOTONIC_USEC"}
    # A manager takes a time before its own request for the end of an earlier reload.
    assert before_us <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert manager.hear() == {"READY": "1", "STATUS": serving}

    configure(mailfs, "linger = -1")
    process.send_signal(signal.SIGHUP)
    assert manager.hear()["RELOADING"] == "1"
    refused = manager.hear()
    assert refused["READY"] == "1"
    assert refused["STATUS"].startswith(f"{serving}; the configuration stays as it was: ")
    mailfs.log.unlink()  # it says so too

    process.send_signal(signal.SIGTERM)
    assert manager.hear() == {"STOPPING": "1", "STATUS": f"unmounted {mailfs.mountpoint}"}
    assert process.wait(DEADLINE_S) == 0
    assert manager.has_heard_all()
    configure(mailfs)


def test_what_the_manager_hears_is_a_line_each_whatever_the_mount_point_is_called(
    manager: Manager,
) -> None:
    ServiceManager(manager.address).ready("serving /a\nREADY=0 ünd=\\b")
    assert manager.hear() == {"READY": "1", "STATUS": "serving /a READY=0 ünd=\\b"}


def test_a_mount_in_the_background_is_nobodys_service(mailfs: Mailfs, manager: Manager) -> None:
    """Its main process ends when the mount can be used: what it left behind must not speak for it."""
    mailfs.create()
    as_service(mailfs, manager.address)
    mailfs.mount()
    mailfs.umount()
    assert manager.has_heard_all()


def test_a_manager_that_has_gone_is_no_reason_not_to_mount(
    mailfs: Mailfs, socket_folder: Path
) -> None:
    mailfs.create(messages=1)
    as_service(mailfs, f"{socket_folder}/nobody")
    process = mailfs.mount_in_foreground()
    wait_until(lambda: "does not hear: " in mailfs.log_text(), "the warning")
    assert len(mailfs.names("inbox")) == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0


def test_what_a_service_starts_cannot_speak_for_it(mailfs: Mailfs, manager: Manager) -> None:
    mailfs.create()
    programs = mailfs.folder / "programs"
    programs.mkdir()
    fusermount = programs / "fusermount3"
    fusermount.write_text(
        f'#!/bin/sh\nenv >"{programs}/environment"\nexec {shutil.which("fusermount3")} "$@"\n'
    )
    fusermount.chmod(0o755)
    as_service(mailfs, manager.address, f"PATH={programs}:{os.environ['PATH']}")
    process = mailfs.mount_in_foreground()
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0
    inherited = (programs / "environment").read_text()
    assert f"PATH={programs}" in inherited
    assert "NOTIFY_SOCKET" not in inherited


# --- the unit


def settings() -> dict[str, list[str]]:
    """What the unit says, by its key."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text("utf-8").splitlines():
        key, is_setting, value = line.partition("=")
        if is_setting and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    shutil.copy(UNIT, tmp_path)
    done = subprocess.run(
        ["systemd-analyze", "--user", "--man=no", "verify", str(tmp_path / UNIT.name)],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_the_unit_runs_a_command_we_have() -> None:
    env, program, *words = shlex.split(settings()["ExecStart"][0])
    assert (env, program) == ("/usr/bin/env", "mailfs")
    parsed = parse_arguments(words)
    assert (parsed.command, parsed.foreground) == ("mount", True)


def test_the_unit_leaves_fusermount_its_rights_and_shows_the_mount_to_everybody() -> None:
    """Each of these would set no_new_privs or make a mount namespace: systemd.exec(5)."""
    forbidden = re.compile(
        "NoNewPrivileges|SystemCall|Restrict|Lock|MemoryDeny|Private|Protect|Dynamic|ReadOnly|"
        "ReadWrite|Inaccessible|Exec(Search)?Paths|NoExec|Temporary|Bind|Root|Mount|Capability|Ambient"
    )
    assert {key for key in settings() if forbidden.match(key)} == set()


def test_the_unit_and_the_manual_are_installed_where_they_are_looked_for() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))
    data = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    pages = {
        f"man/{page.name}": f"share/man/man{page.suffix[1:]}/{page.name}"
        for page in (PROJECT / "man").iterdir()
    }
    assert data == pages | {"mailfs/mailfs.service": "share/systemd/user/mailfs.service"}
    assert all((PROJECT / source).is_file() for source in data)


# --- mounting at login


def test_the_line_for_a_profile_mounts_once_and_again_after_the_daemon_was_killed(
    mailfs: Mailfs,
) -> None:
    page = (PROJECT / "man" / "mailfs.1").read_text("utf-8").replace("\\-", "-")
    (line,) = re.findall("^mountpoint -q .*", page, re.MULTILINE)
    program = shlex.join(mailfs.account.mailfs_arguments(mailfs.store))
    mailfs.create(messages=1)
    mailfs.mountpoint = mailfs.account.home / "vmail"
    for _ in "login", "second login":
        mailfs.account.output("sh", "-c", f"cd {PROJECT}; {line.replace('mailfs', program, 1)}")
        assert len(mailfs.pids()) == 1
    killed = mailfs.pid
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: not is_alive(killed), "the daemon's end")
    mailfs.account.output("sh", "-c", f"cd {PROJECT}; {line.replace('mailfs', program, 1)}")
    assert len(mailfs.names("inbox")) == 1
    mailfs.umount()
