"""Trees to be imported that hold what no mail store holds, and files that change while they are read (Dovecot CVE-2025-59031)."""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from mailfs.ingest.mailboxes import SourceProblem, SourceRef, iter_source, read_ref
from tests.fakes import make_message
from tests.torture.hostile_fields import EVIL_NAMES

FROM_LINE = b"From ann@example.org Mon Jan  1 00:00:00 2001\n"


def make_tree(root: Path, outside: Path) -> list[bytes]:
    """A Maildir and more in `root` with every kind of thing in it; `outside` holds what it points to.

    The messages that must be in after an import.
    """
    for part in ("cur", "new", "tmp"):
        (root / part).mkdir(parents=True)
    outside.mkdir()
    wanted = []
    for number, name in enumerate(_names()):
        raw = make_message(number, subject=f"evil name {number}")
        (root / "cur" / os.fsdecode(name)).write_bytes(raw)
        wanted.append(raw)
    (outside / "plain").write_bytes(b"not mail: nobody's business\n")
    _make_other_kinds(root / "cur")
    _make_other_kinds(root)
    (root / "cur" / "loop").symlink_to("loop")
    (root / "cur" / "dangling").symlink_to(outside / "absent")
    (root / "cur" / "to a folder").symlink_to(outside)
    (root / "cur" / "to a device").symlink_to("/dev/zero")
    (root / "round and round").symlink_to(root)
    (root / "out").symlink_to(outside)
    (root / "out of it").symlink_to(outside / "plain")
    wanted += _make_folders(root)
    return wanted


def _names() -> Iterator[bytes]:
    """The evil names a file can have here."""
    seen = set()
    for number, name in enumerate(EVIL_NAMES):
        clean = name.replace(b"/", b"_").replace(b"\0", b"_")[:200]
        if clean in (b"", b".", b"..") or clean.startswith(b".") or clean in seen:
            clean = b"x%d%s" % (number, clean)
        seen.add(clean)
        yield clean + b":2,S"


def _make_other_kinds(folder: Path) -> None:
    """A FIFO, a socket, and devices where we may make them."""
    os.mkfifo(folder / "fifo")
    with closing(socket.socket(socket.AF_UNIX)) as server:
        before = os.getcwd()
        os.chdir(folder)  # the path of a socket has 108 bytes at most
        try:
            server.bind("socket")
        finally:
            os.chdir(before)
    if os.geteuid() == 0:
        os.mknod(folder / "zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
        os.mknod(folder / "block", stat.S_IFBLK | 0o600, os.makedev(7, 250))


def _make_folders(root: Path) -> list[bytes]:
    """Folders of evil names, one in the other deeper than a search's name can be long, and files of odd kinds."""
    wanted = []
    deep = root
    for level in range(12):
        deep = deep / f"{level}{'d' * 198}"
        (deep / "cur").mkdir(parents=True)
        raw = make_message(1000 + level, subject="deep")
        (deep / "cur" / "1:2,").write_bytes(raw)
        wanted.append(raw)
    for number, name in enumerate(
        (
            b"\x1b[2J",
            b"\xff\xfe",
            b" ",
            b"-rf",
            b"$(x)",
            b"all",
            b"&AC8-",
            b"\xe2\x80\xae",
        )
    ):
        folder = root / "folders" / os.fsdecode(name)
        (folder / "cur").mkdir(parents=True)
        raw = make_message(2000 + number, subject="folder")
        (folder / "cur" / "1:2,").write_bytes(raw)
        wanted.append(raw)
    raw = make_message(3000, subject="mbox", body="text\n\nFrom nobody")
    (root / "an mbox").write_bytes(FROM_LINE + b"Status:" + b" " * 100_000 + b".\n" + raw)
    wanted.append(b"Status:" + b" " * 100_000 + b".\n" + raw)
    keywords = b"".join(b"%d \xcc\x81%s\n" % (n, b"k" * 10_000) for n in range(26))
    (root / "dovecot-keywords").write_bytes(keywords)
    (root / ".mh_sequences").write_bytes(b"unseen: " + b"1-999999999999999999 " * 1000 + b"\n")
    return wanted


def _by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


def _by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGES: dict[str, Callable[[Path], None]] = {
    "removed": lambda path: path.unlink(),
    "a symbolic link": _by_link,
    "a FIFO": _by_fifo,
    "a folder": _by_folder,
    "empty": lambda path: os.truncate(path, 0),
    "shorter": lambda path: os.truncate(path, 300),
    "of holes": lambda path: os.truncate(path, 2 << 30),
    "other mail": lambda path: (path.write_bytes(FROM_LINE + make_message(9)), None)[1],
}


def problems_of_change(folder: Path, change: Callable[[Path], None], *, is_mbox: bool) -> list[str]:
    """What is wrong when a file becomes something else between being found and being read; none of it may be said.

    What may come of it: the message as it was or is now, or an OSError.
    """
    source = folder / "source"
    (source / "cur").mkdir(parents=True)
    raws = [make_message(number, body="text\n" * 40) for number in range(5)]
    path = source / ("box" if is_mbox else "cur/1")
    path.write_bytes(b"".join(FROM_LINE + raw + b"\n" for raw in raws) if is_mbox else raws[0])
    refs: list[SourceRef | SourceProblem] = list(iter_source(source))
    change(path)
    allowed = {*raws, make_message(9), FROM_LINE + make_message(9), b"", raws[0][:300]}
    problems = []
    for ref in refs:
        if isinstance(ref, SourceProblem):
            problems.append(f"{ref.origin} was not found: {ref.reason}")
            continue
        try:
            raw = read_ref(ref).raw
        except OSError:
            continue
        if raw not in allowed:
            problems.append(f"{ref.origin} gave {raw[:60]!r}")
    return problems
