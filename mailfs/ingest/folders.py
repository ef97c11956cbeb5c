"""One directory of mail: what kind it is, and what its names and side files say.

Owns folder names, info letters, keywords and sequences, and the one way files are opened. Invariant: nothing
but a regular file is ever opened, and no symbolic link is followed. Bad names and lines do not raise:
a name that cannot be decoded stays as it is, a line that cannot be read says nothing.
"""

import binascii
import errno
import os
import re
import stat
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mailfs.errors import BadKeyword
from mailfs.ids import Keyword
from mailfs.message.keywords import ANSWERED, FLAGGED, SEEN, parse_keyword

# Files that mail programs keep beside the mail. Whole names and known beginnings, never just `dovecot*`:
# a folder of the Dovecot list may well be called `dovecot`.
_READ_BYTES = 1 << 20
_INDEX_NAME = re.compile(
    rb"dovecot-(?:uidlist|keywords|uidvalidity|acl|shared|attributes|quota|expire)[^/]*"
    rb"|dovecot\.(?:index|list\.index|map\.index|mailbox\.log|sieve|svbin|attributes)[^/]*"
    rb"|courier(?:imap|pop3d)[a-z0-9]+",
    re.DOTALL,
)
_SIDE_NAME = re.compile(
    rb"maildirfolder|maildirsize|subscriptions|[^/]+\.(?:db|msf|lock)", re.DOTALL
)
# Every Xapian database (notmuch, mu, lei) has this file.
XAPIAN_MARK = b"flintlock"
_MBOX_SUFFIX = re.compile(rb"(?<=.)\.(?:mbox|mbx|txt)\Z", re.IGNORECASE | re.DOTALL)
# `:2,` of maildir(5), and what stands for it where a colon cannot be in a name; up to the next comma.
_INFO = re.compile(rb"[:!;]2,([^,/]*)[^/]*\Z", re.DOTALL)
_SHIFTED = re.compile(rb"&([A-Za-z0-9+,]*)-")
_DOVECOT_KEYWORD = re.compile(rb"^(\d{1,2}) ([^\r\n]+)\r?$", re.MULTILINE)
_SEQUENCE = re.compile(rb"^(\w+):([^\r\n]*)", re.MULTILINE)
_NUMBERS = re.compile(rb"(\d{1,18})(?:-(\d{1,18}))?")
_FOLD = re.compile(rb"\r?\n[ \t]+")
_MAX_SIDE_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Listing:
    """The names in one directory, each list sorted."""

    files: list[bytes]
    directories: list[bytes]
    links: list[bytes]
    others: list[bytes]


def list_directory(path: bytes) -> Listing:
    """One directory's names by kind, from the directory alone where the file system says the kind there.

    Raises OSError. A million names take about a second and 100 MB.
    """
    listing = Listing([], [], [], [])
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_symlink():
                listing.links.append(entry.name)
            elif entry.is_file(follow_symlinks=False):
                listing.files.append(entry.name)
            elif entry.is_dir(follow_symlinks=False):
                listing.directories.append(entry.name)
            else:
                listing.others.append(entry.name)
    for names in (listing.files, listing.directories, listing.links, listing.others):
        names.sort()
    return listing


def is_maildir(listing: Listing) -> bool:
    """Whether this is a Maildir: `cur`, or `new` and `tmp`. Some programs make no empty directories."""
    names = listing.directories
    return b"cur" in names or (b"new" in names and b"tmp" in names)


def is_store(listing: Listing) -> bool:
    """Whether a directory is a store of mailfs: what is in it is ours, not mail that waits to be imported."""
    return b"index.sqlite3" in listing.files and b"packs" in listing.directories


def may_be_maildir(path: bytes) -> bool:
    """Whether a directory is a Maildir, or cannot be listed: walking into it then tells of the error."""
    try:
        return is_maildir(list_directory(path))
    except OSError:
        return True


def mh_numbers(listing: Listing, *, sure: bool) -> list[bytes]:
    """The message files of an MH folder in the order of their numbers; none where it is no MH folder.

    It is one if somebody is `sure`, or has `.mh_sequences`, or if most files have numbers for names.
    """
    numbers = [name for name in listing.files if name.isdigit()]
    visible = sum(not name.startswith(b".") for name in listing.files)
    if sure or b".mh_sequences" in listing.files or 2 * len(numbers) > visible:
        return sorted(numbers, key=lambda name: (int(name), name))
    return []


@contextmanager
def open_regular(path: bytes) -> Iterator[int]:
    """A file descriptor of a regular file. Raises OSError; never waits for a FIFO or follows a link."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        yield fd
    finally:
        os.close(fd)


def read_all(fd: int, expected_bytes: int) -> bytes:
    """What a file holds from here on; one read(2) more than it needs, because it may have grown."""
    pieces = [os.read(fd, expected_bytes + 1)]
    while pieces[-1]:
        pieces.append(os.read(fd, _READ_BYTES))
    # Nearly always all of it is in the first: a large message is not copied.
    return pieces[0] if len(pieces) == 2 else b"".join(pieces)


def side_file(path: bytes) -> bytes:
    """A program's own file, cut at 1 MiB; empty where it cannot be read."""
    try:
        with open_regular(path) as fd:
            return os.pread(fd, _MAX_SIDE_FILE_BYTES, 0)
    except OSError:
        return b""


def join_path(path: bytes, name: bytes) -> bytes:
    """The path of an entry in a directory."""
    return path + name if path.endswith(b"/") else path + b"/" + name


def loose_names(listing: Listing, numbers: list[bytes]) -> list[bytes]:
    """The files that are neither hidden nor among an MH folder's `numbers` nor removed from it."""
    ours = set(numbers)
    removed = (b",", b"#") if numbers else ()
    return [
        name for name in listing.files if name not in ours and not name.startswith((b".", *removed))
    ]


def printable(path: bytes) -> str:
    """A path for people: text that can be printed anywhere; other bytes and signs as `\\x..` and the like."""
    text = path.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii")
        for sign in text
    )


def is_index_name(name: bytes) -> bool:
    """Whether this is a side file of Dovecot or Courier, anywhere."""
    return _INDEX_NAME.fullmatch(name) is not None


def is_side_name(name: bytes) -> bool:
    """Whether a loose file of this name is no mail (unless it begins like an mbox)."""
    return is_index_name(name) or _SIDE_NAME.fullmatch(name) is not None


def info_letters(name: bytes) -> bytes:
    """The letters behind `:2,`, `!2,` or `;2,` in a file's name; none where there is no info."""
    match = _INFO.search(name)
    return match[1] if match else b""


def folder_name(name: bytes) -> str:
    """One level of a folder's name from a directory's: IMAP's modified UTF-7 (RFC 3501 5.1.3), else UTF-8.

    >>> folder_name(b"Entw&APw-rfe"), folder_name(b"R&D")
    ('Entwürfe', 'R&D')
    """
    decoded = _decode_utf7(name)
    return printable(name) if decoded is None else decoded


def _decode_utf7(name: bytes) -> str | None:
    if not name.isascii() or b"&" in _SHIFTED.sub(b"", name):
        return None
    pieces = []
    position = 0
    for match in _SHIFTED.finditer(name):
        pieces.append(name[position : match.start()].decode("ascii"))
        position = match.end()
        piece = _decode_shifted(match[1])
        if piece is None:
            return None
        pieces.append(piece)
    pieces.append(name[position:].decode("ascii"))
    text = "".join(pieces)
    return text if text.isprintable() else None


def _decode_shifted(encoded: bytes) -> str | None:
    if not encoded:
        return "&"
    try:
        code = binascii.a2b_base64(encoded.replace(b",", b"/") + b"=" * (-len(encoded) % 4))
        text = code.decode("utf-16-be")
    except ValueError:
        return None
    # RFC 3501 forbids to encode what is printable ASCII: `/` and `.` could slip in so.
    return None if any(" " <= sign <= "~" for sign in text) else text


def join_folder(parent: str, name: str) -> str:
    """The name of a folder in another; the source's own root is ''."""
    return f"{parent}/{name}" if parent and name else parent or name


def maildirpp_folder(parent: str, name: bytes) -> str:
    """The folder of a Maildir++ directory `.A.B`: `A/B`, in `parent`."""
    folder = parent
    for level in name.split(b"."):
        folder = join_folder(folder, folder_name(level))
    return folder


def mbox_folder(parent: str, name: bytes, *, single: bool) -> str:
    """The folder of an mbox file in `parent`: its name without `.mbox`, `.mbx` or `.txt`.

    But a file that holds a `single` message, or is called `*.eml`, is a saved message rather than a folder:
    it belongs to `parent`, as there may be thousands of its kind. `*.mbox`, `*.mbx` and names without any
    dot are folders even then.
    """
    suffix = _MBOX_SUFFIX.search(name)
    says_mbox = b"." not in name or (suffix is not None and suffix[0].lower() != b".txt")
    if (single and not says_mbox) or name.lower().endswith(b".eml"):
        return parent
    return join_folder(parent, folder_name(name[: suffix.start()] if suffix else name))


def parse_dovecot_keywords(text: bytes) -> dict[int, Keyword]:
    """The keyword of each small letter (its byte) by a `dovecot-keywords` file: `0 name` is `a`."""
    keywords = {}
    for match in _DOVECOT_KEYWORD.finditer(text):
        index = int(match[1])
        if index >= 26:
            continue
        try:
            keywords[ord("a") + index] = parse_keyword(match[2].decode("utf-8", "replace"))
        except BadKeyword:
            continue
    return keywords


@dataclass(frozen=True, slots=True)
class _Numbers:
    """A set of message numbers as ranges that do not touch. `starts` and `ends` are parallel."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self.starts, number) - 1
        return at >= 0 and number <= self.ends[at]


def _merge(ranges: list[tuple[int, int]]) -> _Numbers:
    starts: list[int] = []
    ends: list[int] = []
    for first, last in sorted(ranges):
        if ends and first <= ends[-1] + 1:
            ends[-1] = max(ends[-1], last)
        elif first <= last:
            starts.append(first)
            ends.append(last)
    return _Numbers(tuple(starts), tuple(ends))


@dataclass(frozen=True, slots=True)
class MhSequences:
    """What `.mh_sequences` says of messages (mh-sequence(5)): all are seen but those in `unseen`."""

    unseen: _Numbers
    flagged: _Numbers
    replied: _Numbers

    def flags_of(self, number: int) -> int:
        """The bits of the message of this number. Cost: logarithmic in the ranges."""
        flags = 0 if number in self.unseen else SEEN
        if number in self.flagged:
            flags |= FLAGGED
        return flags | ANSWERED if number in self.replied else flags


def parse_mh_sequences(text: bytes) -> MhSequences:
    """The sequences mailfs has flags for; others are left out. A range costs the same however long it is."""
    found: dict[bytes, list[tuple[int, int]]] = {b"unseen": [], b"flagged": [], b"replied": []}
    for match in _SEQUENCE.finditer(_FOLD.sub(b" ", text)):
        ranges = found.get(match[1])
        if ranges is None:
            continue
        for word in match[2].split():
            numbers = _NUMBERS.fullmatch(word)
            if numbers:
                ranges.append((int(numbers[1]), int(numbers[2] or numbers[1])))
    return MhSequences(*(_merge(found[name]) for name in (b"unseen", b"flagged", b"replied")))
