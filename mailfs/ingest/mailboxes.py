"""Finding and reading messages in Maildirs, mbox files, MH folders, single files and trees of them.

Owns what in a source is a message and in which folder it lies. Invariant: a source is only read; whatever
cannot be read is told as a SourceProblem and the rest goes on; nothing but regular files is ever opened.

Two steps, so that reading can run in other processes: `iter_source` gives cheap references that can be
pickled, `read_ref` turns one into a message. What is where:

- A Maildir has `cur`, or `new` and `tmp`; messages are the files in `cur` and `new`. Subfolders: directories
  `.A.B` (Maildir++) and `A/B` (Dovecot's layout `fs`).
- An MH folder is a directory with `.mh_sequences`, or most of whose files have numbers for names. Messages
  nmh marks as removed (`,12`, `#12`) are left out.
- Every other file is an mbox if it starts with a strict From_ line (see mbox.py) and else one message, byte
  for byte. So a saved message that starts with a From_ line is an mbox of one message: it comes without
  that line and without the quoting, as from any mbox; Format.FILE takes it as it is. Files in Maildirs and
  MH folders are always taken as they are.
- Left out without a word: names that begin with a dot (but Maildir++ folders), side files of mail programs
  (folders.py), Xapian databases, `tmp` of Maildirs, directories inside `cur` and `new`.
- Told as problems: symbolic links (followed only for a message in `cur` or `new`, and to regular files),
  sockets, devices, whatever gives an error.

Order: depth first, names by their bytes (numbers in MH folders), so that two runs give the same.
"""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from mailfs.errors import BadSource, NotFound
from mailfs.ids import Keyword
from mailfs.ingest import folders, mbox
from mailfs.message.keywords import RECENT, flags_of_letters, split_keywords


class Format(Enum):
    """What a person says a source is; the values are the words of the command line.

    On a directory the mbox formats and FILE say how its loose files are read; MAILDIR and MH say that
    nothing else is there to be read.
    """

    AUTO = "auto"
    MAILDIR = "maildir"
    MBOX = "mbox"  # a Content-Length that fits, else From_ lines and mboxrd
    MBOXO = "mboxo"
    MBOXRD = "mboxrd"
    MBOXCL2 = "mboxcl2"
    MH = "mh"
    FILE = "file"  # one message, byte for byte


@dataclass(frozen=True, slots=True)
class SourceMessage:
    """A message read. `raw` is what a Maildir would hold; `flags` are bits of message/keywords.py.

    `keywords` are the user's own, without the folder's. `folder` has `/` between levels and is '' for the
    source's own root. `received_ns` is the file's mtime or the date of the From_ line, UTC; None if
    unreadable. `origin` is for people: the path, for mbox with `:` and the byte where it starts.
    """

    raw: bytes
    flags: int
    keywords: tuple[Keyword, ...]
    folder: str
    received_ns: int | None
    origin: str


@dataclass(frozen=True, slots=True)
class SourceProblem:
    """Something that was not read, and why."""

    origin: str
    reason: str


@dataclass(frozen=True, slots=True)
class FileRef:
    """A message that is a whole file."""

    path: bytes
    flags: int
    keywords: tuple[Keyword, ...]
    folder: str

    @property
    def origin(self) -> str:
        """As in the message."""
        return folders.printable(self.path)


@dataclass(frozen=True, slots=True)
class MboxRef:
    """A message in an mbox file; see mbox.MboxRange."""

    path: bytes
    start: int
    end: int
    quoting: mbox.Quoting
    folder: str

    @property
    def origin(self) -> str:
        """As in the message."""
        return f"{folders.printable(self.path)}:{self.start}"


SourceRef = FileRef | MboxRef

_DIALECTS = {
    Format.AUTO: mbox.ANY,
    Format.MBOX: mbox.ANY,
    Format.MBOXO: mbox.MBOXO,
    Format.MBOXRD: mbox.MBOXRD,
    Format.MBOXCL2: mbox.MBOXCL2,
}
_STREAM_ORIGIN = "standard input"
_COPY_BYTES = 1 << 20
# A message is held in memory whole while it is parsed. No mail server takes one of this size; a disk image
# that lies beside mail is not one.
MAX_MESSAGE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class _Place:
    """Mail of one kind in one directory.

    `names` are message files for MH and loose files (any other kind), and `cur`, `new` for MAILDIR.
    """

    path: bytes
    folder: str
    kind: Format
    names: list[bytes]


def detect(path: Path) -> Format:
    """What a source is: MAILDIR, MH, MBOX or FILE; AUTO for a tree. Cost: one directory or one line.

    Raises NotFound, and BadSource for what is neither directory nor regular file or cannot be looked at.
    """
    name = os.fsencode(path)
    try:
        if not stat.S_ISDIR(os.stat(name).st_mode):
            return Format.MBOX if _is_mbox(os.path.realpath(name)) else Format.FILE
        listing = folders.list_directory(name)
    except FileNotFoundError as error:
        raise NotFound(f"there is no {folders.printable(name)} to import") from error
    except OSError as error:
        raise BadSource(f"cannot import {folders.printable(name)}: {_reason(error)}") from error
    if folders.is_maildir(listing):
        return Format.MAILDIR
    return Format.MH if folders.mh_numbers(listing, sure=False) else Format.AUTO


def iter_source(path: Path, format: Format = Format.AUTO) -> Iterator[SourceRef | SourceProblem]:
    """References to every message of a source, folder by folder. Never raises OSError: see SourceProblem.

    Memory: the names of one directory, and of the directories still to be seen.
    """
    name = os.fsencode(path)
    try:
        mode = os.stat(name).st_mode
    except OSError as error:
        yield _problem(name, error)
        return
    # A link somebody names is meant; those found in a tree are not followed.
    name = os.path.realpath(name) if os.path.islink(name) else name
    if stat.S_ISDIR(mode):
        for found in _walk(name, format):
            if isinstance(found, SourceProblem):
                yield found
            else:
                yield from _refs_of_place(found, format)
    elif format in (Format.MAILDIR, Format.MH):
        yield SourceProblem(folders.printable(name), f"not a directory, as {format.value} must be")
    else:
        yield from _refs_of_loose_file(name, "", format, in_tree=False)


def count_estimate(path: Path, format: Format = Format.AUTO) -> int | None:
    """About how many messages a source has, for a progress bar; None if that would need reading mbox files.

    Counts directory entries. In each directory only the first loose file is looked into.
    """
    name = os.fsencode(path)
    try:
        if not stat.S_ISDIR(os.stat(name).st_mode):
            return 1 if _is_single(os.path.realpath(name), format) else None
    except OSError:
        return 0
    total = 0
    for place in _walk(name, format):
        if isinstance(place, SourceProblem):
            continue
        if place.kind is Format.MAILDIR:
            total += sum(
                _count_entries(folders.join_path(place.path, part)) for part in place.names
            )
            continue
        if place.kind is not Format.MH and not _is_single(
            folders.join_path(place.path, place.names[0]), format
        ):
            return None
        total += len(place.names)
    return total


def size_estimate(path: Path) -> int:
    """The bytes of all files of a source, for a progress bar where messages cannot be counted."""
    try:
        status = path.stat()
    except OSError:
        return 0
    if not stat.S_ISDIR(status.st_mode):
        return status.st_size
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue  # gone meanwhile, or not ours to see: an estimate does without
    return total


def read_ref(ref: SourceRef) -> SourceMessage:
    """The message behind a reference. Memory: the message, twice for mbox. Raises OSError.

    That is ESTALE where an mbox was rewritten meanwhile, EINVAL where the file is no longer a regular one,
    EFBIG above MAX_MESSAGE_BYTES.
    """
    with folders.open_regular(ref.path) as fd:
        size = ref.end - ref.start if isinstance(ref, MboxRef) else os.fstat(fd).st_size
        if size > MAX_MESSAGE_BYTES:
            raise OSError(errno.EFBIG, f"larger than a message can be ({MAX_MESSAGE_BYTES} bytes)")
        if isinstance(ref, MboxRef):
            place = mbox.MboxRange(ref.start, ref.end, ref.quoting)
            return _mbox_message(fd, place, ref.folder, ref.origin)
        raw = folders.read_all(fd, size)
        mtime_ns = os.fstat(fd).st_mtime_ns
    # The index keeps times in 64 bits; file systems can go beyond.
    received_ns = mtime_ns if 0 <= mtime_ns < 1 << 63 else None
    return SourceMessage(raw, ref.flags, ref.keywords, ref.folder, received_ns, ref.origin)


def iter_stream(
    stream: BinaryIO, format: Format = Format.AUTO, *, spool_folder: Path | None = None
) -> Iterator[SourceMessage | SourceProblem]:
    """The messages of a stream: of an mbox if it starts like one (or `format` says so), else a single one.

    An mbox is first copied to an unnamed file in `spool_folder` (the system's folder for temporary
    files), so that memory holds one message only. An empty stream is a problem, not a message. Raises
    OSError for the stream and the spool, BadSource for a format that is a directory.
    """
    if format in (Format.MAILDIR, Format.MH):
        raise BadSource(f"{format.value} is a directory and cannot come through a pipe")
    head = stream.read(mbox.MAX_FROM_LINE_BYTES)
    if not head:
        yield SourceProblem(_STREAM_ORIGIN, "empty")
    elif format is Format.FILE or (format is Format.AUTO and not mbox.starts_mbox(head)):
        yield SourceMessage(head + stream.read(), 0, (), "", None, _STREAM_ORIGIN)
    else:
        with tempfile.TemporaryFile(dir=spool_folder) as spool:
            spool.write(head)
            shutil.copyfileobj(stream, spool, _COPY_BYTES)
            spool.flush()
            for found in mbox.iter_ranges(spool.fileno(), _DIALECTS[format]):
                if isinstance(found, mbox.Junk):
                    yield _junk_problem(_STREAM_ORIGIN, found)
                else:
                    origin = f"{_STREAM_ORIGIN}:{found.start}"
                    yield _mbox_message(spool.fileno(), found, "", origin)


def _mbox_message(fd: int, place: mbox.MboxRange, folder: str, origin: str) -> SourceMessage:
    found = mbox.read_range(fd, place)
    return SourceMessage(found.raw, found.flags, found.keywords, folder, found.received_ns, origin)


def _walk(root: bytes, format: Format) -> Iterator[_Place | SourceProblem]:
    """Every directory of a tree that holds mail. A stack of its own: trees may be deeper than Python's."""
    pending = [(root, "")]
    while pending:
        path, folder = pending.pop()
        try:
            listing = folders.list_directory(path)
        except OSError as error:
            yield _problem(path, error)
            continue
        if folders.XAPIAN_MARK in listing.files and not folders.is_maildir(listing):
            continue
        if folders.is_store(listing):
            yield SourceProblem(folders.printable(path), "a mailfs store, not a source")
            continue
        yield from _places(path, folder, listing, format)
        pending.extend(reversed(_subfolders(path, folder, listing, format)))


def _places(
    path: bytes, folder: str, listing: folders.Listing, format: Format
) -> Iterator[_Place | SourceProblem]:
    """What one directory holds itself, and what in it is not going to be read."""
    yield from _problems_of_names(path, listing.links, "a symbolic link, not followed")
    yield from _problems_of_names(path, listing.others, "neither a file nor a directory")
    if format is not Format.MH and folders.is_maildir(listing):
        present = [name for name in listing.directories if name in (b"cur", b"new")]
        yield _Place(path, folder, Format.MAILDIR, present)
    numbers = []
    if format in (Format.AUTO, Format.MH):
        numbers = folders.mh_numbers(listing, sure=format is Format.MH)
    if numbers:
        yield _Place(path, folder, Format.MH, numbers)
    loose = folders.loose_names(listing, numbers)
    if format in (Format.MAILDIR, Format.MH):
        strays = [name for name in loose if not folders.is_side_name(name)]
        yield from _problems_of_names(path, strays, f"no message of a {format.value} folder")
    elif loose:
        yield _Place(path, folder, format, loose)


def _problems_of_names(path: bytes, names: list[bytes], reason: str) -> Iterator[SourceProblem]:
    for name in names:
        if not name.startswith(b"."):
            yield SourceProblem(folders.printable(folders.join_path(path, name)), reason)


def _subfolders(
    path: bytes, folder: str, listing: folders.Listing, format: Format
) -> list[tuple[bytes, str]]:
    own = (
        (b"cur", b"new", b"tmp") if format is not Format.MH and folders.is_maildir(listing) else ()
    )
    found = []
    for name in listing.directories:
        below = folders.join_path(path, name)
        if name in own or folders.is_index_name(name):
            continue
        if not name.startswith(b"."):
            found.append((below, folders.join_folder(folder, folders.folder_name(name))))
        elif format is not Format.MH and folders.may_be_maildir(below):
            found.append((below, folders.maildirpp_folder(folder, name)))
    return found


def _refs_of_place(place: _Place, format: Format) -> Iterator[SourceRef | SourceProblem]:
    if place.kind is Format.MAILDIR:
        yield from _refs_of_maildir(place)
    elif place.kind is Format.MH:
        yield from _refs_of_mh(place)
    else:
        for name in place.names:
            path = folders.join_path(place.path, name)
            yield from _refs_of_loose_file(path, place.folder, format, in_tree=True)


def _refs_of_maildir(place: _Place) -> Iterator[FileRef | SourceProblem]:
    names = folders.parse_dovecot_keywords(
        folders.side_file(folders.join_path(place.path, b"dovecot-keywords"))
    )
    # Few different sets of letters are on many messages.
    known: dict[bytes, tuple[int, tuple[Keyword, ...]]] = {}
    for subfolder in place.names:
        directory = folders.join_path(place.path, subfolder)
        recent = RECENT if subfolder == b"new" else 0
        try:
            listing = folders.list_directory(directory)
        except OSError as error:
            yield _problem(directory, error)
            continue
        for name in listing.others:
            yield SourceProblem(
                folders.printable(folders.join_path(directory, name)), "not a regular file"
            )
        links = frozenset(listing.links)
        for name in sorted(listing.files + listing.links):
            if name.startswith(b".") or folders.is_index_name(name):
                continue
            letters = folders.info_letters(name)
            if letters not in known:
                known[letters] = _flags_and_keywords(letters, names)
            flags, keywords = known[letters]
            path = folders.join_path(directory, name)
            try:
                path = _real_file(path) if name in links else path
            except OSError as error:
                yield _problem(path, error)
                continue
            yield FileRef(path, flags | recent, keywords, place.folder)


def _flags_and_keywords(
    letters: bytes, names: dict[int, Keyword]
) -> tuple[int, tuple[Keyword, ...]]:
    flags, own = split_keywords(names[letter] for letter in letters if letter in names)
    return flags | flags_of_letters(letters), tuple(sorted(own))


def _real_file(path: bytes) -> bytes:
    """What a link in `cur` or `new` stands for; OSError unless that is a regular file."""
    real = os.path.realpath(path)
    if not stat.S_ISREG(os.stat(real).st_mode):
        raise OSError(errno.EINVAL, "a symbolic link to something that is not a regular file")
    return real


def _refs_of_mh(place: _Place) -> Iterator[FileRef]:
    text = folders.side_file(folders.join_path(place.path, b".mh_sequences"))
    # Without the file nothing is known: a message nobody marked is not therefore read.
    sequences = folders.parse_mh_sequences(text) if text else None
    for name in place.names:
        flags = sequences.flags_of(int(name)) if sequences else 0
        yield FileRef(folders.join_path(place.path, name), flags, (), place.folder)


def _refs_of_loose_file(
    path: bytes, folder: str, format: Format, *, in_tree: bool
) -> Iterator[SourceRef | SourceProblem]:
    name = os.path.basename(path)
    try:
        with folders.open_regular(path) as fd:
            is_mbox = mbox.starts_mbox(os.pread(fd, mbox.MAX_FROM_LINE_BYTES, 0))
            if in_tree and folders.is_side_name(name) and (format is Format.FILE or not is_mbox):
                return
            if format is Format.FILE or (format is Format.AUTO and not is_mbox):
                yield FileRef(path, flags_of_letters(folders.info_letters(name)), (), folder)
                return
            ranges = mbox.iter_ranges(fd, _DIALECTS[format])
            first = list(islice(ranges, 3))
            if in_tree:
                messages = sum(isinstance(found, mbox.MboxRange) for found in first)
                folder = folders.mbox_folder(folder, name, single=messages < 2)
            for found in chain(first, ranges):
                if isinstance(found, mbox.Junk):
                    yield _junk_problem(folders.printable(path), found)
                else:
                    yield MboxRef(path, *found, folder)
    except OSError as error:
        yield _problem(path, error)


def _is_mbox(path: bytes) -> bool:
    with folders.open_regular(path) as fd:
        return mbox.starts_mbox(os.pread(fd, mbox.MAX_FROM_LINE_BYTES, 0))


def _is_single(path: bytes, format: Format) -> bool:
    """Whether a loose file is one message by its first line and what was said of it."""
    try:
        return format is Format.FILE or (format is Format.AUTO and not _is_mbox(path))
    except OSError:
        return True


def _count_entries(path: bytes) -> int:
    try:
        with os.scandir(path) as entries:
            return sum(not entry.name.startswith(b".") for entry in entries)
    except OSError:
        return 0


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _problem(path: bytes, error: OSError) -> SourceProblem:
    return SourceProblem(folders.printable(path), _reason(error))


def _junk_problem(origin: str, junk: mbox.Junk) -> SourceProblem:
    return SourceProblem(f"{origin}:0", f"{junk.size_bytes} bytes before the first From_ line")
