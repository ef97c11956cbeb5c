"""mailfs deliver: one message from standard input, for mail systems and delivery agents.

A mail system bounces a message for almost every exit code but 75, which makes it keep the message and try again. What
fails here can be mended while the message waits, so everything ends with 75 but a command line or an input that would
be as wrong the next time. To try again is always safe: bytes that are in the store already are not stored again.
"""

import argparse
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING

from mailfs.cli.commands import Commands, Parser, add_command, harmless
from mailfs.errors import EX_TEMPFAIL, BadKeyword, BadSource, MailfsError, UsageError, storage_error

if TYPE_CHECKING:
    from mailfs.ids import Keyword
    from mailfs.store.prepare import NewMessage
    from mailfs.store.store import Store

DEADLINE_S = 60
_LONGEST_DEADLINE_S = 24 * 3600
_CHUNK_BYTES = 1 << 20
_LOOK_S = 0.5
# What ends a delivery from outside. Not SIGINT: a person who presses Ctrl-C expects 130.
_STOPPED_BY = (signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked for the end. No Exception, so that nothing takes it for an error it can deal with."""


def add_commands(commands: "Commands[Parser]") -> None:
    deliver = add_command(commands, "deliver", run_deliver, "store one message from standard input")
    deliver.add_argument(
        "-k",
        "--keyword",
        dest="keywords",
        metavar="KW",
        action="append",
        default=[],
        help="put this keyword on it, too",
    )
    deliver.add_argument(
        "--deadline",
        type=_seconds,
        metavar="SECONDS",
        default=DEADLINE_S,
        help=f"how long to wait for others who write the store (default: {DEADLINE_S})",
    )
    deliver.add_argument(
        "view", metavar="VIEW", nargs="?", default="inbox", help="where to (default: inbox)"
    )


def _seconds(text: str) -> int:
    if not text.isdecimal() or int(text) > _LONGEST_DEADLINE_S:
        raise argparse.ArgumentTypeError(f"not a number of seconds up to a day: {text}")
    return int(text)


def run_deliver(arguments: argparse.Namespace, root: Path) -> int:
    for number in _STOPPED_BY:
        signal.signal(number, _stop)
    try:
        from mailfs.message.keywords import parse_keyword

        keywords = tuple(map(parse_keyword, arguments.keywords))
        _deliver(root, arguments.view, keywords, arguments.deadline)
    except (BadKeyword, BadSource):
        raise
    except MailfsError as error:
        _complain(f"{error}")
    except (Exception, Stopped) as error:  # noqa: BLE001  # whatever it is, the mail system must keep the message
        _complain(f"{type(error).__name__}: {error}")
    else:
        return 0
    return EX_TEMPFAIL


def _stop(number: int, frame: FrameType | None) -> None:
    # Once: while the transaction is taken back nothing more may come between.
    for each in _STOPPED_BY:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(f"{signal.Signals(number).name} came first")


def _complain(reason: str) -> None:
    """Say why to try again. Not with print(), which would end in another exit code where nobody listens."""
    with suppress(OSError):
        if sys.stderr is not None:
            # One line, whatever a filter made a name of: mail systems copy it into their logs.
            reason = harmless(reason).replace("\n", " ")
            text = f"mailfs deliver: {reason} (deliver it again later)\n"
            os.write(sys.stderr.fileno(), text.encode(errors="backslashreplace"))


def _deliver(root: Path, view: str, keywords: "tuple[Keyword, ...]", deadline_s: float) -> None:
    from mailfs.store.store import Store
    from mailfs.views.arrivals import commit_arrival, plan_delivery

    with Store.open(root) as store:
        # What is missing is told before anything is read.
        search = store.index.search(view)
        store.writer.health.check_room()
        new = _read_message(store)
        commit_arrival(store, plan_delivery(search, new, keywords), deadline_s)


def _read_message(store: "Store") -> "NewMessage":
    """Standard input as a message received now. Raises BadSource when it is empty.

    Through a file in the spool that has no name, or none any more once it is open: nothing is left of it, whatever
    happens, and a large message is not in memory as a whole.
    """
    from mailfs.store.prepare import prepare_file

    spool = store.layout.spool
    if sys.stdin is None:
        raise UsageError("standard input is closed: the message is to come there")
    try:
        spool.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=spool) as file:
            size = _copy_message(sys.stdin.fileno(), file, store.writer.health.check_room)
            if not size:
                raise BadSource("standard input holds no message")
            dictionary = store.newest_dictionary_or_none()
            now_ns = time.time_ns()
            return prepare_file(file.fileno(), size, 0, (), now_ns, store.layout, dictionary)
    except OSError as error:
        what = f"cannot bring a message from standard input to {spool}"
        raise storage_error(error, what) from error


def _copy_message(source: int, file: IO[bytes], check_room: Callable[[int], None]) -> int:
    """Copy all there is but a line `From sender date` at the start; how many bytes that is."""
    chunks = _iter_chunks(source)
    start = bytearray()
    for chunk in chunks:
        start += chunk
        if b"\n" in chunk or len(start) >= _CHUNK_BYTES:
            break
    file.write(start[from_line_bytes(start) :])
    for chunk in chunks:
        check_room(len(chunk))
        file.write(chunk)
    file.flush()
    return os.fstat(file.fileno()).st_size


def _iter_chunks(source: int) -> Iterator[bytes]:
    while True:
        # A signal between Python's look for one and read(2) would be seen when something comes, which may be never.
        while not select.select([source], [], [], _LOOK_S)[0]:
            pass
        chunk = os.read(source, _CHUNK_BYTES)
        if not chunk:
            return
        yield chunk


def from_line_bytes(start: bytes | bytearray) -> int:
    """The length of the line `From sender date` that mail systems put before a message; 0 where there is none.

    `From : ann` is no such line but a field (RFC 5322 section 4.5.2).
    """
    if not start.startswith(b"From ") or start[5:].lstrip(b" \t").startswith(b":"):
        return 0
    return start.find(b"\n") + 1
