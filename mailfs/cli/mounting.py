"""mailfs mount, mailfs umount."""

import argparse
import errno
import logging
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mailfs.cli.commands import Commands, Parser, add_command
from mailfs.cli.maintaining import maintain_command
from mailfs.errors import EX_SOFTWARE, EX_UNAVAILABLE, MailfsError, MountError, storage_error
from mailfs.fuse.logfile import log_path, open_log

if TYPE_CHECKING:
    from mailfs.fuse.mount import MountOptions

log = logging.getLogger(__name__)

READY_DEADLINE_S = 60.0


def add_commands(commands: "Commands[Parser]") -> None:
    mount = add_command(commands, "mount", run_mount, "show the saved searches as Maildirs")
    mount.add_argument(
        "-f", "--foreground", action="store_true", help="stay in the foreground, log to stderr"
    )
    mount.add_argument(
        "-o",
        dest="options",
        metavar="OPT",
        action="append",
        default=[],
        help="an option of FUSE, such as allow_other",
    )
    mount.add_argument(
        "--no-drain", action="store_true", help="use pyfuse3's own request loop (slower)"
    )
    mount.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path, help="made if it is missing")
    umount = add_command(commands, "umount", run_umount, "unmount, and wait for the daemon to end")
    umount.add_argument(
        "-l",
        "--lazy",
        action="store_true",
        help="take it away now, and let clients finish with the files they have open",
    )
    umount.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path, help="where it is mounted")


def run_mount(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.fuse.mount import MountOptions
    from mailfs.fuse.mounts import clear_mountpoint
    from mailfs.store.config import read_config
    from mailfs.store.layout import open_layout

    # A missing store, or what its configuration says wrong, is told before anything is touched.
    config = read_config(open_layout(root))
    mountpoint = _resolved(arguments.mountpoint)
    if _resolved(root).is_relative_to(mountpoint):
        # The daemon would wait for itself, in a way not even SIGKILL ends.
        raise MountError(f"the store {root} lies in {mountpoint}: mount somewhere else")
    clear_mountpoint(mountpoint)
    options = tuple(option for words in arguments.options for option in words.split(",") if option)
    chosen = MountOptions(
        mountpoint,
        options,
        not arguments.no_drain,
        config=config,
        maintain_command=maintain_command(root),
    )
    if not arguments.foreground:
        return _serve_in_background(root, chosen)
    # Not left to children such as fusermount3, whose words are not the service's.
    notify_socket = os.environ.pop("NOTIFY_SOCKET", None) or None
    terminal_fd = sys.stderr.fileno() if sys.stderr.isatty() else None
    _serve(root, chosen._replace(notify_socket=notify_socket, terminal_fd=terminal_fd))
    return 0


def _resolved(mountpoint: Path) -> Path:
    """As mountinfo writes it. Not Path.resolve(), which fails on a dead mount point."""
    return Path(os.path.realpath(mountpoint.expanduser()))


def _serve(root: Path, options: "MountOptions") -> None:
    from mailfs.fuse.mount import Session
    from mailfs.store.store import Store

    # Until the mount can read its configuration again, and while it ends.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    logging.basicConfig(
        level=options.config.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("pyfuse3").addFilter(_is_worth_a_line)
    with Store.open(root) as store:
        Session(store, options).run()


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Not that the kernel no longer waits for an answer: it was unmounted, or the client was killed, meanwhile."""
    return "fuse_reply_* failed with No such file" not in record.getMessage()


def _serve_in_background(root: Path, options: "MountOptions") -> int:
    """Fork before anything has threads; return when the child says that the mount can be used."""
    ready, report = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(ready)
        path = log_path(root)
        _become_daemon(root, options._replace(ready_fd=report, log_path=path), report)
    os.close(report)
    give_up = time.monotonic() + READY_DEADLINE_S
    answer = b""
    while select.select([ready], [], [], max(0.0, give_up - time.monotonic()))[0]:
        piece = os.read(ready, 4096)
        answer += piece
        if answer == b"+":
            return 0
        if not piece:
            break
    code = int(answer[:3]) if answer[:3].isdigit() else EX_UNAVAILABLE
    reason = answer[3:].decode(errors="replace").strip()
    print(
        f"mailfs mount: {reason or f'the daemon did not start; see {log_path(root)}'}",
        file=sys.stderr,
    )
    return code


def _become_daemon(root: Path, options: "MountOptions", report: int) -> NoReturn:
    """The child's life: a session of its own, no terminal, stderr to the log. Never returns."""
    code = 0
    try:
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for target in (0, 1, 2):
            os.dup2(null, target)
        try:
            open_log(log_path(root))
        except OSError as error:
            # On a disk that is full or read-only there is no log, but there is a mount.
            if error.errno not in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
                raise storage_error(error, f"cannot write {log_path(root)}") from error
        _serve(root, options)
    except MailfsError as error:
        code = error.exit_code
        _report(report, f"{code:03d}{error}")
    except BaseException as error:  # a forked child must end here, whatever happens
        log.exception("the daemon ends")
        code = EX_SOFTWARE
        _report(report, f"{code:03d}{type(error).__name__}: {error}; see {log_path(root)}")
    finally:
        logging.shutdown()
        os._exit(code)


def _report(report: int, text: str) -> None:
    try:
        os.write(report, text.encode(errors="replace"))
    except OSError:
        log.error("%s", text)  # the mount was up already: nobody waits for a report


def run_umount(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.fuse.mounts import unmount

    unmount(_resolved(arguments.mountpoint), lazy=arguments.lazy)
    return 0


def versions() -> list[str]:
    """Versions of what mailfs stands on."""
    import pyfuse3
    import trio

    from mailfs.store.database import sqlite_version

    try:
        fuse = subprocess.run(
            ["fusermount3", "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        fuse = f"fusermount3: {error}"
    return [
        f"Python {sys.version.split()[0]}, SQLite {sqlite_version()}",
        f"pyfuse3 {pyfuse3.__version__}, trio {trio.__version__}",
        fuse,
    ]
