"""Snapshots of a store that may be in use: DEST/<UTC time>/ is a whole store, which can be read, mounted and verified.

The index is copied by SQLite as it was at one moment. What it names is in the packs by then, because they are synced
before it is; and packs are not removed meanwhile. A sealed pack is copied once and is one file in all later snapshots
(hard links); everything else is a copy of its own, so that a mounted snapshot changes no other.

A snapshot is made under a name that begins with .partial-mailfs-, synced, and then renamed: one that has its name is whole.
"""

import calendar
import errno
import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

from mailfs.errors import Busy, Corrupt, StoreError, UsageError, storage_error
from mailfs.ids import PackNumber
from mailfs.store.checksums import reserve_checksums
from mailfs.store.config import config_path
from mailfs.store.database import close, open_reader, store_error, translated
from mailfs.store.in_use import hold_alone
from mailfs.store.layout import Layout, open_layout, sync_directory, write_format
from mailfs.store.lock import flock_until
from mailfs.store.packfile import PackFile
from mailfs.store.upkeep.dump import dump_path
from mailfs.store.upkeep.removal import keep_packs

_NAME = re.compile(r"\d{4}-\d\d-\d\dT\d{6}\.\d{3}Z\Z")
# With our name in it: what is left over is removed, and DEST may be a folder of other things too.
_PARTIAL = ".partial-mailfs-"
_LATEST = "latest"
_DEADLINE_S = 10.0
_PIECE_BYTES = 16 * 1024 * 1024
_PAGES = 4096
# What a file system says that cannot copy by itself, or not from there.
_NO_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_LINK = (errno.EPERM, errno.EMLINK, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(slots=True)
class Snapshot:
    """One backup that is done. Bytes of files; `linked_bytes` are those an earlier snapshot has already."""

    path: Path
    copied_bytes: int = 0
    linked_bytes: int = 0
    linked_packs: int = 0
    removed: tuple[Path, ...] = ()


Progress = Callable[[int], None]


def backup(
    layout: Layout,
    destination: Path,
    *,
    keep: int | None = None,
    progress: Progress = lambda _: None,
) -> Snapshot:
    """Make a snapshot of a store, durably, and remove all but the newest `keep`. The caller has the store open.

    `progress` hears how many bytes were copied. Raises UsageError for a destination that cannot be one, Busy, StoreFull,
    StoreError; then no new snapshot is there.
    """
    _check_outside(layout, destination)
    try:
        destination.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _held(destination):
            _remove_partial(destination)
            before = _newest_or_none(layout, destination)
            partial = destination / f"{_PARTIAL}{os.getpid()}"
            try:
                snapshot = _Copy(layout, before, partial, progress).run()
                snapshot.path = _put_in_place(destination, partial)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            if keep is not None:
                snapshot.removed = _remove_old(destination, keep)
    except OSError as error:
        raise storage_error(error, f"cannot back up to {destination}") from error
    return snapshot


def _check_outside(layout: Layout, destination: Path) -> None:
    """A snapshot in the store would be part of what is copied, and lost with it."""
    root = layout.root.resolve()
    if destination.resolve().is_relative_to(root):
        raise UsageError(
            f"{destination} lies in the store {root}: name a place outside, best another disk"
        )


@contextmanager
def _held(destination: Path) -> Iterator[None]:
    """One backup at a time goes there."""
    fd = os.open(destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not flock_until(fd, time.monotonic() + _DEADLINE_S):
            raise Busy(f"another backup to {destination} is at work: try again later")
        yield
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


# --- what is there already


def snapshots(destination: Path) -> list[Path]:
    """The snapshots in a folder, oldest first."""
    return sorted(path for path in destination.iterdir() if _NAME.match(path.name))


def _remove_partial(destination: Path) -> None:
    """What a backup left that was cut off."""
    for path in destination.iterdir():
        if path.name.startswith(_PARTIAL) and not path.is_symlink():
            shutil.rmtree(path)


def _newest_or_none(layout: Layout, destination: Path) -> Path | None:
    """The snapshot whose sealed packs need not be copied again. Raises UsageError for one of another store."""
    for path in reversed(snapshots(destination)):
        with suppress(StoreError):  # damaged, or of a newer program
            found = open_layout(path).store_id
            if found != layout.store_id:
                raise UsageError(
                    f"{destination} holds backups of another store ({found.decode()}): name a folder of its own"
                )
            return path
    return None


def _new_name(destination: Path) -> str:
    """The time, but behind all names that are there: the clock may have been set back."""
    now_ms = time.time_ns() // 1_000_000
    newest = max((path.name for path in snapshots(destination)), default="")
    while (name := _name_of(now_ms)) <= newest:
        now_ms = max(now_ms, _time_of(newest)) + 1
    return name


def _name_of(time_ms: int) -> str:
    return (
        time.strftime("%Y-%m-%dT%H%M%S", time.gmtime(time_ms // 1000)) + f".{time_ms % 1000:03d}Z"
    )


def _time_of(name: str) -> int:
    seconds, _, milliseconds = name[:-1].partition(".")
    return calendar.timegm(time.strptime(seconds, "%Y-%m-%dT%H%M%S")) * 1000 + int(milliseconds)


def _put_in_place(destination: Path, partial: Path) -> Path:
    """Give a whole snapshot its name, durably, and let `latest` lead to it."""
    path = destination / _new_name(destination)
    partial.rename(path)
    link = destination / f"{_LATEST}.new"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    link.rename(destination / _LATEST)
    sync_directory(destination)
    sync_directory(destination.parent)
    return path


def _remove_old(destination: Path, keep: int) -> tuple[Path, ...]:
    """All but the newest; not one that is in use."""
    removed = []
    for path in snapshots(destination)[:-keep]:
        try:
            with hold_alone(open_layout(path), "removing an old backup", 0):
                gone = destination / f"{_PARTIAL}{path.name}"
                path.rename(gone)
        except (Busy, StoreError):
            continue
        sync_directory(destination)
        shutil.rmtree(gone)
        removed.append(path)
    return tuple(removed)


# --- the copy


class _Copy:
    """One snapshot in the making."""

    def __init__(
        self, layout: Layout, before: Path | None, partial: Path, progress: Progress
    ) -> None:
        self._layout = layout
        self._before = before
        self._to = Layout(partial, layout.store_id)
        self._progress = progress
        self._snapshot = Snapshot(partial)

    def run(self) -> Snapshot:
        self._to.packs.mkdir(mode=0o700, parents=True)
        self._to.root.chmod(0o700)
        with keep_packs(self._layout):
            self._copy_index()
            for pack, size, is_sealed in self._pack_rows():
                self._bring_pack(pack, size, is_sealed=is_sealed)
        for path in (config_path(self._layout), dump_path(self._layout)):
            self._copy_small(path, self._to.root / path.name)
        if self._layout.sidecar.is_dir():
            self._copy_tree(self._layout.sidecar, self._to.sidecar)
        self._copy_waiting()
        sync_directory(self._to.packs)
        # Last, so that nothing that is not whole is taken for a store.
        write_format(self._to)
        return self._snapshot

    def _count(self, copied_bytes: int) -> None:
        self._snapshot.copied_bytes += copied_bytes
        self._progress(self._snapshot.copied_bytes)

    # --- index

    def _copy_index(self) -> None:
        """As it is now; writers go on meanwhile, and what they write is not in it."""
        path = self._to.index
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with ExitStack() as stack:
            source = open_reader(self._layout.index)
            stack.callback(close, source, self._layout.index)
            copy = stack.enter_context(closing(apsw.Connection(str(path))))
            try:
                source.execute("BEGIN")
                # From here on it is this moment.
                source.execute("SELECT modseq FROM state").fetchall()
                reserve_checksums(copy)
                copy.execute("PRAGMA journal_mode = OFF")
                copy.execute("PRAGMA synchronous = OFF")
                with copy.backup("main", source, "main") as copying:
                    while not copying.done:
                        copying.step(_PAGES)
            except apsw.Error as error:
                code = copy.system_errno
                if code in _NO_ROOM:
                    raise OSError(code, os.strerror(code)) from error
                raise store_error(error, path, code) from error
        self._check_index(path)
        for suffix in ("-wal", "-shm", "-journal"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        _sync(path)
        self._count(path.stat().st_size)

    def _check_index(self, path: Path) -> None:
        """Raises Corrupt for a copy that is not sound: then the index is not, and an old backup is worth more."""
        with closing(apsw.Connection(str(path))) as copy, translated(self._layout.index):
            copy.execute("PRAGMA journal_mode = DELETE")
            found: list[Any] = copy.execute("PRAGMA quick_check(1)").fetchall()
        if found != [("ok",)]:
            raise Corrupt(
                f"the index {self._layout.index} is damaged ({found[0][0]}): run `mailfs verify`"
            )

    def _pack_rows(self) -> list[tuple[PackNumber, int, bool]]:
        """Of the copy."""
        with closing(apsw.Connection(str(self._to.index))) as copy:
            rows: list[Any] = copy.execute(
                "SELECT pack, size, sealed FROM pack ORDER BY pack"
            ).fetchall()
        return [(PackNumber(pack), size, bool(sealed)) for pack, size, sealed in rows]

    # --- packs

    def _bring_pack(self, pack: PackNumber, size: int, *, is_sealed: bool) -> None:
        target = self._to.pack(pack)
        if is_sealed and self._link(pack, target):
            self._snapshot.linked_bytes += size
            self._snapshot.linked_packs += 1
            return
        self._copy_pack(pack, size, target)

    def _copy_pack(self, pack: PackNumber, size: int, target: Path) -> None:
        """As far as the index knows it. Raises Corrupt where it is shorter, or missing."""
        try:
            with open(self._layout.pack(pack), "rb", buffering=0) as source:
                copied = self._copy_bytes(source.fileno(), target, size)
        except FileNotFoundError:
            raise Corrupt(f"pack {pack} is missing: run `mailfs verify`") from None
        if copied < size:
            raise Corrupt(
                f"pack {pack} is {copied} bytes long, the index knows {size}: run `mailfs verify`"
            )

    def _link(self, pack: PackNumber, target: Path) -> bool:
        """Link the same pack of the snapshot before; False where it has none."""
        if self._before is None:
            return False
        there = Layout(self._before, self._layout.store_id).pack(pack)
        try:
            if _footer(there, pack) != _footer(self._layout.pack(pack), pack):
                return False
            os.link(there, target, follow_symlinks=False)
        except Corrupt:
            return False  # missing, or damaged there: it is copied anew
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            return False
        return True

    # --- files

    def _copy_waiting(self) -> None:
        """Letters that wait in cur and new to be taken in lie nowhere else; what is in tmp is nobody's yet."""
        for folder in sorted(self._layout.spool.glob("*/*")):
            if folder.name in ("cur", "new") and folder.is_dir() and not folder.is_symlink():
                target = self._to.spool / folder.parent.name
                for made in (self._to.spool, target):
                    made.mkdir(mode=0o700, exist_ok=True)
                self._copy_tree(folder, target / folder.name)

    def _copy_bytes(self, source: int, target: Path, length: int) -> int:
        """Up to `length` bytes into a new file, durably; how many there were."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(target, flags, 0o600)
        done = 0
        try:
            while done < length:
                copied = _copy_piece(source, fd, min(_PIECE_BYTES, length - done), done)
                if not copied:
                    break
                done += copied
                self._count(copied)
            os.fsync(fd)
        finally:
            os.close(fd)
        return done

    def _copy_small(self, source: Path, target: Path) -> None:
        """A regular file, with its time, if it is there: clients may remove theirs at any moment."""
        try:
            fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno == errno.ELOOP:
                return
            raise
        try:
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode):
                self._copy_bytes(fd, target, found.st_size)
                os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
        finally:
            os.close(fd)

    def _copy_tree(self, source: Path, target: Path) -> None:
        """Folders and regular files; whatever else a client put there is no part of a backup."""
        target.mkdir(mode=0o700)
        with os.scandir(source) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    self._copy_tree(source / entry.name, target / entry.name)
                elif entry.is_file(follow_symlinks=False):
                    self._copy_small(source / entry.name, target / entry.name)
        found = source.stat()
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
        sync_directory(target)


def _copy_piece(source: int, target: int, length: int, offset: int) -> int:
    """By the file system itself where it can: it may share the blocks."""
    try:
        return os.copy_file_range(source, target, length, offset, offset)
    except OSError as error:
        if error.errno not in _NO_COPY:
            raise
    data = os.pread(source, length, offset)
    view = memoryview(data)
    while view:
        written = os.pwrite(target, view, offset)
        view = view[written:]
        offset += written
    return len(data)


def _footer(path: Path, pack: PackNumber) -> tuple[int, bytes]:
    """Size and footer of a sealed pack, which names all that is in it by hash. Raises Corrupt."""
    file = PackFile(path, pack)
    start = file.footer_start_or_none()
    if start is None:
        raise Corrupt(f"pack {pack} has no footer")
    return file.size, file.record(start)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
