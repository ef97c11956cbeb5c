"""The files of a store, looked at without opening the index: are they there, of their kind, and nobody else's to read?"""

import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mailfs.errors import ConfigError, FormatTooNew, StoreError, StoreMissing
from mailfs.store.config import read_config
from mailfs.store.layout import Layout, read_format
from mailfs.store.rescue.findings import Finding, Kind, Severity, note, problem
from mailfs.store.rescue.wal import Wal, read_wal_or_none
from mailfs.store.schema import FIRST_FORMAT_WITH_CHECKSUMS
from mailfs.store.upkeep.dump import dump_path, why_unsound

# What a store is made of. Of what lies in the last two only mailfs's own folders are looked at: clients give their files
# the modes they like, and nobody else comes into STORE.
_FOLDERS = ("packs", "mounts", "damaged", "sidecar", "spool")
_OF_CLIENTS = ("sidecar", "spool")
_FILES = frozenset(
    {
        *("format", "format.bak", "format.new", "format.bak.new", "lock", "in-use"),
        *("config", "dump", "dump.new", "maintained", "mount.log", "mount.log.1"),
        *(
            f"{name}{suffix}"
            for name in ("index.sqlite3", "index.new", "index.ready")
            for suffix in ("", "-wal", "-shm", "-journal")
        ),
    }
)
# Written by its user's editor, and there is no secret in it: it must only not be others' to change.
_CONFIG = "config"
_OTHERS = 0o077
_OTHERS_WRITE = 0o022
# A log that somebody writes just now may look torn for a moment.
_LOOKS = 3
_BETWEEN_LOOKS_S = 0.02


def find_layout(root: Path) -> tuple[Layout | None, list[Finding]]:
    """The layout by `format`, else by its copy, and what is wrong with the two. Raises StoreMissing, FormatTooNew."""
    said: dict[str, Layout | StoreError] = {}
    for name in ("format", "format.bak"):
        try:
            said[name] = read_format(root, name)
        except StoreError as error:
            said[name] = error
    found, copy = said["format"], said["format.bak"]
    if isinstance(found, Layout):
        if found.version < FIRST_FORMAT_WITH_CHECKSUMS:
            return found, []
        return found, list(_check_copy(found, copy))
    if not isinstance(copy, Layout):
        if isinstance(found, StoreMissing | FormatTooNew):
            raise found
        return None, [problem("format", found, Kind.FORMAT)]
    return copy, [problem("format", found, Kind.FORMAT)]


def _check_copy(found: Layout, copy: Layout | StoreError) -> Iterator[Finding]:
    if isinstance(copy, StoreMissing):
        yield note("format.bak", "is missing", Kind.FORMAT_COPY)
    elif isinstance(copy, StoreError):
        yield problem("format.bak", copy, Kind.FORMAT_COPY)
    elif copy != found:
        # Cut off between the two, when the store got a newer format.
        severity = Severity.PROBLEM if copy.store_id != found.store_id else Severity.NOTE
        yield Finding(severity, "format.bak", "says something else than format", Kind.FORMAT_COPY)


def check_waiting(root: Path) -> Iterator[Finding]:
    """What would keep who opens it waiting for ever: a FIFO in the place of a file. Nothing else can be looked at then."""
    for path in (*root.glob("*"), *root.glob("packs/*")):
        if path.is_fifo():
            name = str(path.relative_to(root))
            yield problem(name, "is a FIFO: move it away, and look again", Kind.FILE)


def check_files(root: Path) -> Iterator[Finding]:
    """Modes and kinds of all files that are mailfs's own."""
    yield from _check_mode(root, ".", stat.S_ISDIR, _OTHERS)
    for name in sorted(os.listdir(root)):
        path = root / name
        if name in _FOLDERS:
            yield from _check_mode(path, name, stat.S_ISDIR, _OTHERS)
            if name not in _OF_CLIENTS and path.is_dir() and not path.is_symlink():
                for inner in sorted(os.listdir(path)):
                    yield from _check_mode(path / inner, f"{name}/{inner}", stat.S_ISREG, _OTHERS)
        elif name in _FILES:
            forbidden = _OTHERS_WRITE if name == _CONFIG else _OTHERS
            yield from _check_mode(path, name, stat.S_ISREG, forbidden)
        else:
            yield note(name, "is no file of a store", Kind.FILE)


def _check_mode(
    path: Path, name: str, is_right_kind: Callable[[int], bool], forbidden: int
) -> Iterator[Finding]:
    try:
        # The store itself may be reached by a link.
        found = path.stat() if name == "." else path.lstat()
    except FileNotFoundError:
        return  # a program that ended took it along
    if not is_right_kind(found.st_mode):
        kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO"}
        kind = kinds.get(stat.S_IFMT(found.st_mode), "of another kind than it should be")
        yield problem(name, f"is {kind}: move it away", Kind.FILE)
    elif found.st_mode & forbidden:
        mode = stat.S_IMODE(found.st_mode)
        yield Finding(
            Severity.PROBLEM,
            name,
            f"has mode {mode:04o}: others can {_what_others_can(mode & forbidden)} it",
            Kind.MODE,
            mend=name,
        )
    elif found.st_uid != os.geteuid() and os.geteuid() != 0:
        yield problem(name, f"belongs to user {found.st_uid}: give it to yourself", Kind.FILE)


def _what_others_can(mode: int) -> str:
    return "change" if mode & _OTHERS_WRITE else "read"


def check_config(layout: Layout) -> Iterator[Finding]:
    """STORE/config, as a mount reads it."""
    try:
        read_config(layout)
    except ConfigError as error:
        yield problem("config", error, Kind.CONFIG)


def check_dump(layout: Layout) -> Iterator[Finding]:
    """STORE/dump, from which keywords and flags are had when the index is lost."""
    path = dump_path(layout)
    try:
        what = why_unsound(path) if path.exists() else None
    except StoreError as error:
        what = str(error)
    if what is not None:
        yield problem("dump", what, Kind.DUMP)


def check_wal(layout: Layout) -> Iterator[Finding]:
    """The log of the index: what SQLite would leave out without a word. To be called before SQLite opens the index.

    Only a note: a power cut leaves the same behind it, of changes that were not promised to survive one.
    """
    where = "index.sqlite3-wal"
    seen: Wal | None = None
    for _ in range(_LOOKS):
        try:
            wal = read_wal_or_none(layout.index)
        except StoreError as error:
            yield problem(where, error, Kind.WAL)
            return
        # What is behind the frames that are known was taken back, or is just being written.
        if wal is None or (wal.is_header_good and wal.readable >= (wal.known or len(wal.frames))):
            return
        if wal == seen:
            break
        seen = wal
        time.sleep(_BETWEEN_LOOKS_S)
    if seen is None:
        return
    if not seen.is_header_good:
        yield note(where, "has a damaged header: the changes in it are lost", Kind.WAL)
        return
    count = seen.known or len(seen.frames)
    yield note(
        where,
        f"frame {seen.readable + 1} of {count} is torn, damaged or missing, or its transaction was not ended: "
        "without it and those behind it the last changes are lost",
        Kind.WAL,
    )
