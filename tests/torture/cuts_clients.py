"""Clients of a mount: they deliver, set flags, move and link between views, remove, sync, and keep files of their own."""

import os
import socket
from pathlib import Path

from mailfs.ids import Docid
from mailfs.views.tree import message_ino
from tests.torture.cuts_actors import SCRATCH, VIEWS, Actor, Given, Known, Letter, Part, search_key
from tests.torture.cuts_ledger import EXPUNGED, GONE, Key, State, live

# A client's own file, in a view's folder; its content is a version, and some bytes that depend on it.
STATE_FILE = ".client-state"


def content_of_version(version: int) -> bytes:
    """What a client's own file holds."""
    return b"version %d\n" % version * (1 + version % 500)


def version_of(raw: bytes) -> str:
    """The version a file holds, or what is wrong with it."""
    first, _, _ = raw.partition(b"\n")
    words = first.split()
    if len(words) == 2 and words[1].isdigit() and raw == content_of_version(int(words[1])):
        return words[1].decode()
    return f"torn: {raw[:40]!r}, {len(raw)} bytes"


def file_key(name: str) -> Key:
    """What a client's own file is called in the ledger."""
    return f"file:{name}"


def _saved(name: str) -> State:
    """The search that mkdir makes."""
    return live("", {f"tag:{name}"})


class Client(Actor):
    """A mail program on the mount."""

    def __init__(self, part: Part, said: socket.socket) -> None:
        super().__init__(part, said)
        self._names: dict[Key, dict[str, str]] = {}
        self._by_ino = {
            int(message_ino(known.docid)): key for key, known in part.known.items() if known.docid
        }
        # Where the store says nothing of what was there before, any version may be.
        self._version = self.random.randrange(1 << 30)

    def step(self) -> None:
        ways = (
            *(self._deliver,) * 4,
            *(self._set_flags,) * 5,
            self._move,
            self._link,
            self._remove,
            self._sync,
            self._keep_file,
            self._copy_in,
            self._make_view,
            self._look,
        )
        self.random.choice(ways)()

    # --- names

    def _folder(self, view: str, part: str) -> Path:
        return self.part.mountpoint / view / part

    def _path(self, key: Key, view: str) -> Path:
        name = self._names[key][view]
        return self._folder(view, "cur" if ":2," in name else "new") / name

    def _look(self) -> None:
        """List a folder, and learn the names of messages that others delivered and we may change."""
        view, part = self.random.choice(VIEWS), self.random.choice(("cur", "new"))
        with os.scandir(self._folder(view, part)) as found:
            for entry in found:
                key = self._by_ino.get(entry.inode())
                has_letters = ":2," in entry.name
                if key is not None and has_letters == (part == "cur"):
                    self._names.setdefault(key, {})[view] = entry.name

    def _named(self) -> tuple[Key, Known, str]:
        """One of our messages, and a view in which we know its name. Raises Given."""
        keys = [
            key
            for key, names in self._names.items()
            if names and key in self.part.known and self.part.known[key].state != EXPUNGED
        ]
        if not keys:
            raise Given
        key = self.random.choice(keys)
        known = self.part.known[key]
        return key, known, self.random.choice(sorted(self._names[key]))

    # --- what it does

    def _deliver(self) -> None:
        letter, view = self.letter(), self.random.choice(VIEWS)
        base = f"{letter.number}.{self.part.name}"
        path = self._folder(view, "tmp") / base
        with path.open("xb") as file:
            file.write(letter.raw)
            if self.random.random() < 0.7:
                file.flush()
                os.fsync(file.fileno())
        name, flags = base, ""
        if self.random.random() < 0.3:
            flags = self.letters_of_flags()
            name = f"{base}:2,{flags}"
        target = self._folder(view, "cur" if flags or ":2," in name else "new") / name
        state = live(flags, {view})
        if self.random.random() < 0.5:
            with self.doing("link from tmp", {letter.key: state}, durable=True):
                os.link(path, target)
            path.unlink()
        else:
            with self.doing("rename from tmp", {letter.key: state}, durable=True):
                path.rename(target)
        self._learn(letter, state, view, name)

    def _learn(self, letter: Letter, state: State, view: str, name: str) -> None:
        self.part.known[letter.key] = Known(Docid(0), letter.number, state)
        self._names[letter.key] = {view: name}

    def _set_flags(self) -> None:
        key, known, view = self._named()
        path, flags = self._path(key, view), self.letters_of_flags()
        name = f"{path.name.partition(':2,')[0]}:2,{flags}"
        state = live(flags, known.state.keywords)
        with self.doing("rename for flags", {key: state}, durable=False):
            path.rename(self._folder(view, "cur") / name)
        known.state = state
        self._names[key] = {view: name}

    def _move(self) -> None:
        """mv to another view: it leaves the one and enters the other."""
        key, known, view = self._named()
        assert known.state.keywords is not None
        path, other = self._path(key, view), self.random.choice(VIEWS)
        if other in known.state.keywords:
            raise Given
        state = live(known.state.letters, known.state.keywords - {view} | {other})
        with self.doing("mv to another view", {key: state}, durable=False):
            path.rename(self._folder(other, path.parent.name) / path.name)
        known.state = state
        self._names[key] = {other: path.name}

    def _link(self) -> None:
        """ln into another view."""
        key, known, view = self._named()
        assert known.state.keywords is not None
        path, other = self._path(key, view), self.random.choice(VIEWS)
        if other in known.state.keywords:
            raise Given
        state = live(known.state.letters, known.state.keywords | {other})
        with self.doing("ln into another view", {key: state}, durable=False):
            os.link(path, self._folder(other, path.parent.name) / path.name)
        known.state = state
        self._names[key][other] = path.name

    def _remove(self) -> None:
        """rm from a view; a message is expunged with its last keyword."""
        key, known, view = self._named()
        assert known.state.keywords is not None
        left = known.state.keywords - {view}
        state = live(known.state.letters, left) if left else EXPUNGED
        path = self._path(key, view)
        with self.doing("rm", {key: state}, durable=False):
            path.unlink()
        known.state = state
        del self._names[key][view]

    def _sync(self) -> None:
        """fsync of a folder, or of a message: all changes so far survive."""
        path = self._folder(self.random.choice(VIEWS), self.random.choice(("cur", "new", "")))
        if self._names and self.random.random() < 0.5:
            key, _, view = self._named()
            path = self._path(key, view)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with self.doing("fsync", {}, durable=True):
                os.fsync(fd)
        finally:
            os.close(fd)

    def _copy_in(self) -> None:
        """cp of a file into a view: a message when it is whole and closed, never before."""
        letter, view = self.letter(), self.random.choice(VIEWS)
        path = self._folder(view, "new") / f"{letter.number}.copied"
        half = len(letter.raw) // 2
        with self.doing("copy", {letter.key: live("", {view})}, durable=False, later=True):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
            try:
                os.write(fd, letter.raw[:half])
                if self.random.random() < 0.5:
                    os.fsync(fd)
                os.write(fd, letter.raw[half:])
            finally:
                os.close(fd)

    def _make_view(self) -> None:
        """mkdir, mv and rmdir of a view."""
        name, other = (f"{SCRATCH}{self.random.getrandbits(40)}" for _ in range(2))
        path = self.part.mountpoint / name
        with self.doing("mkdir", {search_key(name): _saved(name)}, durable=False):
            path.mkdir()
        states = {search_key(name): GONE, search_key(other): _saved(other)}
        with self.doing("mv of a view", states, durable=False):
            path = path.rename(path.with_name(other))
        if self.random.random() < 0.8:
            with self.doing("rmdir", {search_key(other): GONE}, durable=False):
                path.rmdir()

    def _keep_file(self) -> None:
        """A file of its own is replaced as careful programs do: written, synced, renamed, the folder synced."""
        self._version += 1
        name = f"{STATE_FILE}-{self.part.name}"
        folder = self.part.mountpoint / VIEWS[0]
        key, state = file_key(name), live("", {str(self._version)})
        temporary = folder / f"{name}.new"
        with self.doing("replace a file", {key: state}, durable=True, barrier=True):
            with temporary.open("wb") as file:
                file.write(content_of_version(self._version))
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(folder / name)
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
