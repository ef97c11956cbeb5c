"""Both sides with a Dovecot each: the fixture `served`, and the comparison of what the two answer."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import unified_diff
from itertools import count
from pathlib import Path
from pprint import pformat
from typing import TypeVar

import pytest

from tests.clients.dovecot import IMAP, SERVER, USER, Dovecot
from tests.clients.imap import Imap
from tests.clients.sides import Side
from tests.fakes import make_message
from tests.mount.accounts import ourselves

DATE = "02-Jan-2024 03:04:05 +0000"

needs_dovecot = pytest.mark.skipif(
    not (os.path.exists(SERVER) and os.path.exists(IMAP)), reason="Dovecot is not installed"
)

T = TypeVar("T")
_numbers = count(1)


@dataclass(frozen=True)
class Served:
    """One side, and the Dovecot that serves it to a user."""

    side: Side
    dovecot: Dovecot
    user: str = USER
    # The folder of Dovecot's own files, where they are not beside the mail.
    elsewhere: tuple[Path, ...] = ()
    connections: list[Imap] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def connect(self, folder: str | None = None) -> Imap:
        """A new connection, with a folder open if one is named."""
        connection = Imap(self.dovecot.connect(self.user))
        self.connections.append(connection)
        if folder is not None:
            connection.open(folder)
        return connection

    def end(self) -> None:
        """Close what a test that failed left open: it would keep the mount in use.

        Fails when Dovecot complained of anything but what is `expected`.
        """
        for connection in self.connections:
            connection.abandon()
        self.dovecot.wait_for_processes(self.user)
        complaints = [
            line
            for line in self.dovecot.complaints(self.user)
            if not any(text in line for text in self.expected)
        ]
        assert not complaints, complaints


Both = tuple[Served, Served]


@pytest.fixture(scope="session")
def shared_dovecot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dovecot]:
    """One server for all tests that give it users of their own; to end one takes a second."""
    folder = tmp_path_factory.mktemp("shared")
    server = Dovecot(folder / "dovecot", f"maildir:{folder}/nobody", ourselves(folder))
    server.start()
    yield server
    server.end()
    complaints = server.complaints()
    assert not complaints, complaints


@pytest.fixture(params=["beside", "elsewhere"])
def served(
    request: pytest.FixtureRequest,
    shared_dovecot: Dovecot,
    sides: tuple[Side, Side],
    tmp_path: Path,
) -> Iterator[Both]:
    """Both sides; Dovecot's control and index files are beside the mail, or in folders of their own."""
    plain, mounted = (
        give(shared_dovecot, side, tmp_path if request.param == "elsewhere" else None)
        for side in sides
    )
    yield plain, mounted
    plain.end()
    mounted.end()


def give(server: Dovecot, side: Side, elsewhere: Path | None = None) -> Served:
    """Give a side to a new user, who has an INBOX there; Dovecot's own files are in it, or in a folder `elsewhere`."""
    side.folder()
    user = f"{side.name}-{next(_numbers)}"
    location = f"maildir:{side.root}:LAYOUT=fs:UTF-8:INBOX={side.root}/inbox"
    own = () if elsewhere is None else (elsewhere / user,)
    for folder in own:
        location += f":CONTROL={folder}/control:INDEX={folder}/index"
    server.add_user(user, location)
    return Served(side, server, user, own)


def same(served: Both, steps: Callable[[Served], T]) -> T:
    """Take the steps on both sides. What they answer must be equal; it is returned for the test to look at."""
    plain, mounted = (steps(each) for each in served)
    old, new = (pformat(answer).splitlines() for answer in (plain, mounted))
    assert mounted == plain, "\n".join(unified_diff(old, new, "plain", "mounted", lineterm=""))
    return mounted


def numbered(number: int) -> bytes:
    return make_message(number, subject=f"message {number}", body="text\n" * (number % 40))


def fill(connection: Imap, count: int, folder: str = "INBOX") -> None:
    """Append messages 1 to `count`; their UIDs are the same numbers in a new folder."""
    for number in range(1, count + 1):
        connection.append(numbered(number), folder, date=DATE)
