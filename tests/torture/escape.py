"""No escape and no secrets: names that lead away, words that must stay in the mail.

`count` names are given to everything that takes names: folders and files on a mount, links, renames, deliveries, folders of
an import, lines of a dump that is restored. Afterwards nothing outside of the store has changed, nobody else may read
anything in it, and no output holds a sign that a terminal obeys.
"""

import os
import pty
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

from mailfs.ids import Keyword
from mailfs.store.prepare import prepare_message
from mailfs.store.store import Store
from tests.fakes import PROJECT, make_message
from tests.mount.accounts import ourselves
from tests.mount.mounting import Mailfs
from tests.oracle import assert_sound, docids_of, sha256
from tests.torture.hostile import why_not
from tests.torture.hostile_fields import EVIL_NAMES
from tests.torture.hostile_mount import mounted
from tests.torture.report import Report

_COMMAND_DEADLINE_S = 300.0
# What takes a process each: one in ten names, about so many in all.
_PROCESSES = 30
_NAMES_A_DUMP = 30
# What stands in a store; anything else came from somewhere else.
_TOP = {
    *("format", "format.bak", "lock", "in-use", "index.sqlite3", "index.sqlite3-wal", "index.sqlite3-shm"),
    *("packs", "sidecar", "spool", "mounts", "mount.log", "mount.log.1", "maintained", "config", "dump", "damaged"),
}  # fmt: skip
# Of these, with all kinds of mail and names in the store, a terminal sees what they say.
_SEARCHES = [
    ["save", "evil-escape", '"\x1b[2Jx"'],
    ["save", "evil-control", '"\x9bx"'],
    ["save", "evil-lines", '"\n\rx"'],
]
_COMMANDS = [
    *(["search", f"--output={kind}", "*"] for kind in ("summary", "messages", "files", "threads", "tags", "json")),
    *(["count", "*"], ["searches"], ["searches", "--json"], ["status"], ["status", "--json"], ["verify"]),
    *(["log"], ["log", "--json"], ["show", "*", "--limit=50"], ["search", "--expunged", "--output=files", "*"]),
    *(["count", "\x1b[2J:x"], ["count", '"\x9b2J'], ["forget", "\x1b]0;x\x07"], ["tag", "+\x1b[2J", "--", "*"]),
    *(["save", "\x1b]0;x\x07", "*"], ["deliver", "--", "\x1b[2J"], ["import", "/\x1b[2J"], ["undo", "\x1b"]),
]  # fmt: skip
PLANTED = ("plantedsubject", "plantedbody", "plantedsender", "plantedrecipient", "plantedid")


def run(seed: int, count: int, directory: Path) -> Report:
    """All of it, with so many names."""
    report = Report("escape", seed)
    names = list(evil_names(Random(seed), count))
    world = World(directory)
    with report.step(0, "imported"):
        world.import_folders(names)
    for number, name in enumerate(names[:: max(len(names) // _PROCESSES, 10)]):
        with report.step(number, "delivered"):
            world.deliver(name)
    with report.step(0, "restored"):
        report.did("names in dumps", world.restore(names))
    if not why_not():
        with mounted(world.mailfs):
            for number, name in enumerate(names):
                with report.step(number, "on a mount"):
                    world.use(name, number)
            with report.step(0, "output with a mount"):
                world.check_output()
            with report.step(0, "secrets"):
                world.check_secrets()
    else:
        with report.step(0, "output without a mount"):
            world.check_output()
    with report.step(0, "nothing outside"):
        world.check_outside()
    with report.step(0, "modes and places in the store"):
        world.check_store()
    return report


def evil_names(random: Random, count: int) -> Iterator[bytes]:
    """Names of one component, for a file system; some are what others are made of, some are noise."""
    pieces = [name for name in EVIL_NAMES if name]
    for number in range(count):
        if number < len(pieces):
            name = pieces[number]
        elif number % 3:
            name = b"".join(random.choices(pieces, k=random.randint(1, 4)))
        else:
            name = random.randbytes(random.randint(1, 40))
        # A kernel takes no such sign in a name; what looks like it is left.
        name = name.replace(b"\0", b"\xc0\x80")
        yield name.replace(b"/", random.choice((b"\\", b"%2f", b"\xe2\x88\x95", b"\xc0\xaf", b":")))


def snapshot(root: Path, without: tuple[Path, ...] = ()) -> dict[str, tuple[int, str]]:
    """Every file and folder below: its mode, and what is in it or where it points."""
    found = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if Path(folder, name) not in without]
        for name in (*folders, *files):
            path = Path(folder, name)
            status = path.lstat()
            content = ""
            if stat.S_ISREG(status.st_mode):
                content = sha256(path.read_bytes())
            elif stat.S_ISLNK(status.st_mode):
                content = str(path.readlink())
            found[str(path)] = (status.st_mode, content)
    return found


class World:
    """A store, a mount, and much beside them that must stay as it is."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mailfs = Mailfs(ourselves(directory / "home"), directory)
        (directory / "home").mkdir()
        outside = directory / "outside" / "cur"
        outside.mkdir(parents=True)
        self._secret = outside / "secret"
        self._secret.write_bytes(b"Subject: nobody's business\n\n")
        self.source, self.dump = directory / "source", directory / "dump"
        self.source.mkdir()
        self.mailfs.create(10)
        self.mailfs.mountpoint.mkdir()
        with Store.open(self.mailfs.store) as store:
            self._plant(store)
        self._before = self._now()

    def _plant(self, store: Store) -> None:
        """One message whose words must not be seen outside of it."""
        raw = make_message(
            subject=PLANTED[0],
            body=PLANTED[1],
            sender=f"{PLANTED[2]} <{PLANTED[2]}@example.org>",
            recipient=f"{PLANTED[3]}@example.org",
        ).replace(b"<0@", f"<{PLANTED[4]}@".encode())
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.add(prepare_message(raw, 0, (Keyword("inbox"), Keyword("planted")), None))
            transaction.searches.save("planted", "tag:planted")

    def _now(self) -> dict[str, tuple[int, str]]:
        mine = (self.mailfs.store, self.mailfs.mountpoint, self.source)
        found = snapshot(self.directory, mine) | {name: (0, "") for name in os.listdir("/")}
        found.pop(str(self.dump), None)
        return found | {f"cwd/{name}": (0, "") for name in os.listdir(PROJECT) if "owned" in name}

    # --- commands

    def command(
        self, *words: str | bytes | Path, input: bytes = b"", codes: tuple[int, ...] = (0,)
    ) -> bytes:
        """What a command says, on both of its outputs; started with the most careless umask there is."""
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "mailfs", "--store", self.mailfs.store, *words],
            input=input,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=PROJECT,
            env=self.mailfs.account.environment(),
            umask=0,
            timeout=_COMMAND_DEADLINE_S,
            check=False,
        )
        assert done.returncode in codes, (words, done.returncode, done.stdout[-1000:])
        assert b"Traceback" not in done.stdout, done.stdout[-2000:]
        return done.stdout

    def import_folders(self, names: list[bytes]) -> None:
        """A folder of mail of each name, and an mbox of each."""
        root = os.fsencode(self.source)
        for number, name in enumerate(names):
            folder = os.path.join(
                root, b"x" + name[:200] if name[:200] in (b".", b"..") else name[:200]
            )
            with suppress(FileExistsError, NotADirectoryError):
                os.makedirs(os.path.join(folder, b"cur"))
                Path(os.fsdecode(os.path.join(folder, b"cur", b"1"))).write_bytes(
                    make_message(number + 1000)
                )
        said = self.command("import", self.source, codes=(0, 74))
        _check_harmless(said, "import")

    def deliver(self, name: bytes) -> None:
        """Into a view of that name, which is not there or is none."""
        raw = make_message(sum(name) + 100_000)
        said = self.command("deliver", "--", name, input=raw, codes=(0, 64, 66, 75, 77))
        _check_harmless(said, "deliver")

    def restore(self, names: list[bytes]) -> int:
        """Dumps in which searches, keywords and names of entries are evil; how many there were."""
        _check_harmless(self.command("dump", self.dump), "dump")
        lines = self.dump.read_bytes().splitlines(keepends=True)
        count = 0
        for chunk in _chunks(names, max(len(names) // 10, _NAMES_A_DUMP)):
            for change in (_evil_searches, _evil_entries):
                self.dump.write_bytes(b"".join(change(line, chunk) for line in lines))
                said = self.command("restore", "--accumulate", self.dump, codes=(0, 65, 66, 74, 77))
                _check_harmless(said, "restore")
                count += len(chunk)
        self.dump.unlink()
        return count

    # --- a mount

    def use(self, name: bytes, number: int) -> None:
        """Everything that can be done with a name. It works or is refused; what comes of it is looked at in the end."""
        view = os.fsencode(self.mailfs.path("inbox"))
        cur = os.path.join(view, b"cur")
        message = os.path.join(cur, os.listdir(cur)[0])
        for work in self._uses(view, cur, message, name, number):
            with suppress(OSError):
                work()

    def _uses(
        self, view: bytes, cur: bytes, message: bytes, name: bytes, number: int
    ) -> Iterator[Callable[[], object]]:
        top = os.path.join(os.fsencode(self.mailfs.mountpoint), name)
        spooled = os.path.join(view, b"tmp", b"%d" % number)
        yield lambda: os.mkdir(top)
        yield lambda: os.mkdir(os.path.join(view, name))
        yield lambda: os.rename(top, top + b"x")
        yield lambda: os.rmdir(top + b"x")
        yield lambda: os.rmdir(top)
        yield lambda: os.rmdir(os.path.join(view, name))
        yield lambda: os.symlink("/etc/passwd", os.path.join(cur, name + b":2,S"))
        yield lambda: os.symlink(self._secret, os.path.join(cur, name))
        yield lambda: os.symlink(self.directory / "outside", os.path.join(view, name))
        yield lambda: os.mknod(os.path.join(cur, name), stat.S_IFCHR | 0o666, 0)
        yield lambda: _write(os.path.join(view, name), b"a file of a client")
        yield lambda: os.rename(os.path.join(view, name), os.path.join(view, b"." + name))
        yield lambda: os.unlink(os.path.join(view, b"." + name))
        yield lambda: os.unlink(os.path.join(view, name))
        if number % 10:
            yield lambda: os.link(message, os.path.join(cur, name))
            yield lambda: os.rename(os.path.join(cur, name), os.path.join(cur, b"x" + name))
            if number % 7:
                yield lambda: os.unlink(os.path.join(cur, b"x" + name))
            return
        raw = make_message(number + 200_000)
        yield lambda: _write(spooled, raw)
        yield lambda: os.link(spooled, os.path.join(cur, name))
        yield lambda: os.unlink(spooled)
        yield lambda: _write(os.path.join(cur, name), raw)

    # --- afterwards

    def check_outside(self) -> None:
        """Nothing came, went or changed but in the store."""
        now = self._now()
        changed = {
            path for path in {*now, *self._before} if now.get(path) != self._before.get(path)
        }
        assert not changed, changed

    def check_store(self) -> None:
        """Modes whatever the umask; nothing but files and folders; nothing that does not belong there."""
        root = self.mailfs.store
        assert {path.name for path in root.iterdir()} <= _TOP
        ordinary = (root / "spool", root / "sidecar")
        for path, (mode, _) in (snapshot(root) | {str(root): (root.stat().st_mode, "")}).items():
            if stat.S_ISLNK(mode):
                # A client's own, which nobody but clients follows.
                assert any(Path(path).is_relative_to(folder) for folder in ordinary), path
                continue
            wanted = stat.S_IFDIR | 0o700 if stat.S_ISDIR(mode) else stat.S_IFREG | 0o600
            assert mode == wanted, (path, oct(mode))
        with Store.open(root) as store:
            contents = {store.load(docid) for docid in docids_of(store)}
        assert not contents & {Path("/etc/passwd").read_bytes(), self._secret.read_bytes()}
        assert_sound(root)

    def check_output(self) -> None:
        """What is shown on a terminal commands it nothing."""
        for words in (*_SEARCHES, *_COMMANDS):
            _check_harmless(self._on_terminal(*words), " ".join(words))

    def _on_terminal(self, *words: str) -> bytes:
        """What a command writes on a terminal."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "mailfs", "--store", self.mailfs.store, *words],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            cwd=PROJECT,
            env=self.mailfs.account.environment(),
            umask=0,
        )
        os.close(theirs)
        written = b""
        try:
            # EIO: the command, which was the last to have it, has closed the terminal.
            with suppress(OSError):
                while piece := os.read(ours, 1 << 16):
                    written += piece
        finally:
            os.close(ours)
            process.kill()
            process.wait(_COMMAND_DEADLINE_S)
        assert b"Traceback" not in written, written[-2000:]
        return written.replace(b"\r\n", b"\n")

    def check_secrets(self) -> None:
        """The words of the message are nowhere that a person would send to a stranger."""
        (name,) = self.mailfs.names("planted")
        message = self.mailfs.path("planted", "cur", name)
        assert all(word.encode() in message.read_bytes() for word in PLANTED)
        # Refusals of all kinds.
        for work in (
            lambda: message.rename(self.mailfs.path("planted", "cur", "x" * 255)),
            lambda: message.rename(self.mailfs.mountpoint / name),
            lambda: os.link(message, self.mailfs.path(".mailfs", "x")),
            lambda: message.write_bytes(b"x"),
            lambda: message.chmod(0o777),
            lambda: os.truncate(message, 5),
            lambda: os.setxattr(message, "user.x", b"x"),
        ):
            with suppress(OSError):
                work()
        self.mailfs.status()
        for place in ("errors", "status", "status.json"):
            _check_silent(self.mailfs.path(".mailfs", place).read_bytes(), place)
        _check_silent(self.mailfs.log.read_bytes(), "mount.log")
        for words in (["status"], ["status", "--json"], ["log"], ["verify"], ["searches"]):
            _check_silent(self.command(*words), " ".join(words))


def _write(path: bytes, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o777)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _check_silent(said: bytes, place: str) -> None:
    told = [word for word in PLANTED if word.encode() in said.lower()]
    assert not told, f"{place} tells {told}"


def _check_harmless(said: bytes, what: str) -> None:
    """UTF-8 whose every sign can be printed, but for blanks at the ends of lines and cells."""
    text = said.decode(errors="surrogateescape")
    signs = {sign for sign in text if not sign.isprintable() and sign not in "\n\t"}
    assert not signs, f"{what} says {sorted(map(ascii, signs))[:10]}"


def _chunks(names: list[bytes], size: int) -> Iterator[list[bytes]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]


def _evil_searches(line: bytes, names: list[bytes]) -> bytes:
    """Behind the line of a search, others of these names; of each other kind the line as it is."""
    import json

    fields = json.loads(line)
    if "search" not in fields or fields["search"] != "all":
        return line
    lines = [line]
    for number, name in enumerate(names):
        text = name.decode("latin-1") if number % 2 else "../" + name.decode("latin-1")
        lines.append(json.dumps(fields | {"search": text, "id": 1000 + number}).encode() + b"\n")
    return b"".join(lines)


def _evil_entries(line: bytes, names: list[bytes]) -> bytes:
    """The line of a message with these names in views."""
    import json

    fields = json.loads(line)
    if "names" not in fields:
        return line
    fields["names"] = [
        {"search": 1, "base": name.decode("latin-1"), "extra": "", "form": 0, "copy": False}
        for name in names
    ]
    return json.dumps(fields).encode() + b"\n"
