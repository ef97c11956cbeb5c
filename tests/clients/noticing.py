"""Who looks at a folder, and who changes it behind their back.

Those who look are programs on a screen of their own, to which no key is pressed. Those who change it do so with commands,
in another view of the same mount, or in another mount of the same store: never in the folder that is looked at.
"""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from tests.clients.sides import Side
from tests.fakes import make_message
from tests.mount.accounts import Account
from tests.mount.mounting import Mailfs
from tests.mount.waiting import wait_until

# Far below what any of them waits when it only looks now and then; far above what is needed.
DEADLINE_S = 15.0
LINES = 40

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


@dataclass(frozen=True)
class Screen:
    """A tmux server with one program, which listens at `socket`."""

    account: Account
    socket: Path

    def tmux(self, *words: str | Path) -> str:
        return self.account.output("tmux", "-S", self.socket, *words)

    def press(self, *keys: str) -> None:
        """Keys as tmux(1) calls them."""
        self.tmux("send-keys", *keys)

    def text(self) -> str:
        return self.tmux("capture-pane", "-p")

    def has_ended(self) -> bool:
        words = self.account.arguments("tmux", "-S", self.socket, "has-session")
        return subprocess.run(words, capture_output=True, check=False).returncode != 0

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Fails with what is shown."""
        try:
            wait_until(condition, what, DEADLINE_S)
        except AssertionError as error:
            shown = "nothing any more" if self.has_ended() else self.text()
            raise AssertionError(f"{error}; shown is:\n{shown}") from error

    def wait_for_text(self, text: str) -> None:
        self.wait_for(lambda: text in self.text(), f"{text!r} on the screen")


@contextmanager
def on_screen(account: Account, *words: str | Path) -> Iterator[Screen]:
    """A program on a screen of 80 columns; it is ended behind the block, if it has not."""
    # A socket's path must be short (unix(7)); pytest's folders may be long.
    with tempfile.TemporaryDirectory(prefix="mailfs-screen-") as folder:
        account.own(Path(folder))
        screen = Screen(account, Path(folder) / "tmux")
        size = ("-x", "80", "-y", str(LINES))
        screen.tmux("-f", "/dev/null", "new-session", "-d", *size, *words)
        try:
            yield screen
        finally:
            if not screen.has_ended():
                screen.tmux("kill-server")


# A flag's letter, or a mark in its place, then the subject.
_FORMAT = '"%Z|%s"'
_SETTINGS = (
    "mbox_type=Maildir",
    f"index_format={_FORMAT}",
    "sort=subject",
    "mark_old=no",
    "move=no",
    "delete=yes",
    "quit=yes",
    "confirmappend=no",
    "wait_key=no",
    "sleep_time=0",
    "beep=no",
)


@dataclass(frozen=True)
class Mutt:
    """mutt or neomutt with a folder open."""

    screen: Screen

    def rows(self) -> dict[str, str]:
        """Subject -> flags of the messages listed: N new, ! flagged, r answered, D marked for deletion."""
        rows = (line.split("|", 1) for line in self.screen.text().splitlines() if "|" in line)
        return {subject.strip(): flags.strip() for flags, subject in rows}

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        self.screen.wait_for(condition, what)

    def settle(self) -> None:
        """Until the next second of the clock: neomutt misses changes within the one in which it has looked, on a disk too."""
        now_s = int(time.time())
        wait_until(lambda: int(time.time()) > now_s, "the next second")

    def wait_for_rows(self, **rows: str) -> None:
        self.wait_for(lambda: self.rows() == rows, f"the list {rows}")


@contextmanager
def mutt_on(client: str, side: Side, folder: str, *settings: str) -> Iterator[Mutt]:
    """`settings` are lines `set ...` without the `set`, or other lines of a muttrc."""
    rc = side.account.home / f"{side.name}-{folder.replace('/', '-')}-{client}rc"
    lines = [f"set {setting}" for setting in (*_SETTINGS, f'folder="{side.root}"')]
    rc.write_text("\n".join([*lines, *settings]) + "\n")
    with on_screen(side.account, client, "-n", "-F", rc, "-f", side.root / folder) as screen:
        yield Mutt(screen)


# --- who changes what is looked at


def about(number: int, subject: str) -> bytes:
    """The message `<number@example.org>`."""
    return make_message(number, subject=subject, body=f"the text of {subject}")


def path_of(folder: Path, number: int) -> Path:
    """The file of a message in a folder, in cur/ or new/."""
    field = f"\nMessage-ID: <{number}@example.org>\n".encode()
    (found,) = (
        path
        for part in ("cur", "new")
        for path in (folder / part).iterdir()
        if field in path.read_bytes()
    )
    return found


class Changer(Protocol):
    """Changes what is in inbox."""

    def bring(self, number: int, subject: str) -> None:
        """A new message."""

    def flag(self, number: int) -> None:
        """It has the flag F, too."""

    def remove(self, number: int) -> None:
        """It is in no folder any more."""


@dataclass(frozen=True)
class ByCommand:
    """With the commands of mailfs."""

    mailfs: Mailfs

    def bring(self, number: int, subject: str) -> None:
        done = self.mailfs.command("deliver", input=about(number, subject).decode())
        assert done.returncode == 0, done.stderr

    def flag(self, number: int) -> None:
        self.mailfs.say("tag", "+flagged", "--", f"id:{number}@example.org")

    def remove(self, number: int) -> None:
        self.mailfs.say("expunge", f"id:{number}@example.org")


# A label view; what is delivered into it is in inbox, too.
LABELS = "both"


@dataclass(frozen=True)
class InOtherViews:
    """As mail programs do, in the views LABELS and `all` of a mount."""

    side: Side

    def bring(self, number: int, subject: str) -> None:
        self.side.deliver(about(number, subject), f"{number}.host", LABELS)

    def flag(self, number: int) -> None:
        path = path_of(self.side.root / "all", number)
        base, _, letters = path.name.partition(":2,")
        path.rename(path.parents[1] / "cur" / f"{base}:2,{''.join(sorted({*letters, 'F'}))}")

    def remove(self, number: int) -> None:
        path_of(self.side.root / "all", number).unlink()


@contextmanager
def second_mount(first: Mailfs) -> Iterator[Side]:
    """The same store, mounted once more."""
    (first.served_by,) = before = first.pids()
    made = Mailfs(first.account, first.folder)
    made.mountpoint = first.folder / "second"
    made.mount()
    try:
        yield Side("second", made.mountpoint, first.account, made)
    finally:
        made.umount()
        wait_until(lambda: first.pids() == before, "the end of the second mount")
        first.served_by = None
