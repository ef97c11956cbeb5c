"""What a test asks an IMAP server (RFC 3501, RFC 6851 MOVE, RFC 4315 UIDPLUS), with answers that can be compared."""

import imaplib
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from tests.mount.waiting import DEADLINE_S

Uid = int
_ITEM_UID = re.compile(rb"\bUID (\d+)")
_FLAGS = re.compile(rb"FLAGS \(([^)]*)\)")
_DATE = re.compile(rb'INTERNALDATE "([^"]+)"')
_SIZE = re.compile(rb"RFC822\.SIZE (\d+)")


class Opened(NamedTuple):
    """A folder as SELECT or STATUS tells of it."""

    messages: int
    validity: int
    next_uid: Uid


class Facts(NamedTuple):
    """What never changes of a message. `date` as INTERNALDATE writes it, `size_bytes` with CRLF."""

    date: str
    size_bytes: int


class Imap:
    """A connection that is logged in. Every method fails the test unless the server answers OK."""

    def __init__(self, connection: imaplib.IMAP4) -> None:
        self.connection = connection

    def ok(self, name: str, *words: str | bytes) -> list[Any]:
        """Any command of imaplib; the data it returns."""
        state, data = getattr(self.connection, name)(*words)
        assert state == "OK", (name, words, state, data)
        assert isinstance(data, list)
        return data

    def refused(self, name: str, *words: str | bytes) -> str:
        """The text with which the server says NO, without the times it took."""
        state, data = getattr(self.connection, name)(*words)
        assert state == "NO", (name, words, state, data)
        text = data[0]
        assert isinstance(text, bytes)
        return text.decode().partition(" (0.")[0]

    def close(self) -> None:
        self.connection.logout()

    def abandon(self) -> None:
        """Hang up without a word, if that has not been done."""
        if self.connection.state != "LOGOUT":
            self.connection.shutdown()

    # --- folders

    def open(self, folder: str) -> Opened:
        (count,) = self.ok("select", f'"{folder}"')
        return Opened(int(count), self._said("UIDVALIDITY"), self._said("UIDNEXT"))

    def _said(self, name: str) -> int:
        data = self.connection.response(name)[1]
        assert isinstance(data[-1], bytes), (name, data)
        return int(data[-1])

    def status(self, folder: str) -> dict[str, int]:
        """Without UIDVALIDITY, which is a time."""
        (line,) = self.ok("status", f'"{folder}"', "(MESSAGES UNSEEN RECENT UIDNEXT)")
        inside = line.rpartition(b"(")[2].rstrip(b")").decode().split()
        return dict(zip(inside[::2], map(int, inside[1::2]), strict=True))

    def folders(self) -> set[str]:
        """The names of all folders that can be opened."""
        lines = [line for line in self.ok("list") if line is not None]
        return {
            line.rpartition(b' "/" ')[2].strip(b'"').decode()
            for line in lines
            if b"\\Noselect" not in line.partition(b")")[0]
        }

    # --- messages

    def append(
        self, raw: bytes, folder: str = "INBOX", flags: str = "", date: str | None = None
    ) -> Uid:
        """`flags` as a list of words; `date` in quotes, as imaplib wants it."""
        when = None if date is None else f'"{date}"'
        # imaplib has no method with a type that allows no flags.
        (line,) = self.ok("append", f'"{folder}"', f"({flags})", when, raw)  # type: ignore[arg-type]
        found = re.search(rb"APPENDUID \d+ (\d+)", line)
        assert found is not None, line
        return int(found[1])

    def flags(self) -> dict[Uid, str]:
        """The flags and keywords of all messages of the open folder, sorted. Recent is left out: it is one session's."""
        found = {}
        for item in self._fetch("1:*", "FLAGS"):
            words = sorted(set(_one(_FLAGS, item).decode().split()) - {"\\Recent"})
            found[_uid(item)] = " ".join(words)
        return found

    def facts(self) -> dict[Uid, Facts]:
        return {
            _uid(item): Facts(_one(_DATE, item).decode(), int(_one(_SIZE, item)))
            for item in self._fetch("1:*", "INTERNALDATE RFC822.SIZE")
        }

    def bodies(self, section: str = "") -> dict[Uid, bytes]:
        """BODY.PEEK[section] of all messages of the open folder."""
        items = self.ok("uid", "FETCH", "1:*", f"(UID BODY.PEEK[{section}])")
        return {_uid(item[0]): item[1] for item in items if isinstance(item, tuple)}

    def _fetch(self, uids: str, items: str) -> list[bytes]:
        lines = self.ok("uid", "FETCH", uids, f"(UID {items})")
        # Others' changes come among them, without a UID.
        return [line for line in lines if isinstance(line, bytes) and _ITEM_UID.search(line)]

    def store(self, uids: Iterable[Uid] | str, change: str, flags: str) -> None:
        """`change` is +FLAGS, -FLAGS or FLAGS."""
        self.ok("uid", "STORE", uid_set(uids), change, f"({flags})")

    def search(self, *words: str | bytes) -> list[Uid]:
        (line,) = self.ok("uid", "SEARCH", *words)
        return [int(word) for word in line.split()]

    def copy(self, uids: Iterable[Uid] | str, folder: str) -> None:
        self.ok("uid", "COPY", uid_set(uids), f'"{folder}"')

    def move(self, uids: Iterable[Uid] | str, folder: str) -> None:
        self.ok("uid", "MOVE", uid_set(uids), f'"{folder}"')

    def delete(self, uids: Iterable[Uid] | str) -> None:
        r"""Mark with \Deleted and expunge just these."""
        self.store(uids, "+FLAGS", "\\Deleted")
        self.ok("uid", "EXPUNGE", uid_set(uids))

    def news(self) -> dict[str, list[bytes]]:
        """What a NOOP brings of changes made by others: EXISTS, EXPUNGE, FETCH; RECENT is left out."""
        for name in ("EXISTS", "EXPUNGE", "FETCH"):
            self.connection.response(name)
        self.ok("noop")
        found = {}
        for name in ("EXISTS", "EXPUNGE", "FETCH"):
            data = [each for each in self.connection.response(name)[1] if each is not None]
            if data:
                found[name] = data
        return found

    def idle_until(self, word: bytes, act: Callable[[], object]) -> bytes:
        """Wait in IDLE (RFC 2177) for a line with this word; `act` is called when the wait has begun.

        Dovecot looks by itself every 30 seconds: what comes within DEADLINE_S it was told of by inotify(7).
        """
        connection = self.connection
        connection.sock.settimeout(DEADLINE_S)
        connection.send(b"I0 IDLE\r\n")
        begun = connection.readline()
        assert begun.startswith(b"+ "), begun
        act()
        while word not in (line := connection.readline()):
            assert line, f"no {word!r}"
        connection.send(b"DONE\r\n")
        while not (ended := connection.readline()).startswith(b"I0 "):
            assert ended, "no end of IDLE"
        assert ended.startswith(b"I0 OK"), ended
        return line.strip()


def uid_set(uids: Iterable[Uid] | str) -> str:
    return uids if isinstance(uids, str) else ",".join(map(str, uids))


def _one(pattern: re.Pattern[bytes], item: bytes) -> bytes:
    found = pattern.search(item)
    assert found is not None, (pattern, item)
    return found[1]


def _uid(item: bytes) -> Uid:
    return int(_one(_ITEM_UID, item))
