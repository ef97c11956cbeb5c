"""Open files and directories, by file handle. Only for the thread that serves requests."""

from dataclasses import dataclass, field
from typing import NamedTuple

from mailfs.fuse.requests import Requests
from mailfs.ids import Docid, Fh, Ino
from mailfs.store.records import Chain
from mailfs.store.store import Store
from mailfs.views.files import FileEntry, Place
from mailfs.views.tree import Directory, Entry


@dataclass(slots=True)
class MessageHandle:
    """An open message. Small ones are kept whole from the first READ on, large ones one frame at a time."""

    docid: Docid
    ino: Ino
    # Opened right behind the one before it in the view that was listed last.
    is_in_order: bool = False
    raw: bytes | None = None
    chain: Chain | None = None
    frame_number: int = -1
    frame: bytes = b""
    opener: int = 0

    def read(self, store: Store, offset: int, length: int) -> bytes:
        """Bytes from `offset`, fewer at the end. Raises Corrupt; NoSuchMessage when it was reclaimed before the first READ."""
        if self.raw is None and self.chain is None:
            found = store.read(self.docid, store.packs.open_message)
            if isinstance(found, Chain):
                self.chain = found
            else:
                self.raw = found
        if self.raw is not None:
            return self.raw[offset : offset + length]
        assert self.chain is not None
        return self._read_chain(self.chain, offset, min(length, self.chain.raw_bytes - offset))

    def _read_chain(self, chain: Chain, offset: int, length: int) -> bytes:
        pieces = []
        while length > 0:
            number, within = divmod(offset, chain.frame_bytes)
            if number != self.frame_number:
                self.frame = chain.frame(number)
                self.frame_number = number
            piece = self.frame[within : within + length]
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return b"".join(pieces)


@dataclass(slots=True)
class FileHandle:
    """An open ordinary file.

    `is_mail`: it is to become a message. `is_sealed`: it has become one since, which nobody can change.
    """

    ino: Ino
    fd: int
    is_mail: bool
    is_sealed: bool = False
    opener: int = 0


class AliasEntry(NamedTuple):
    """A message linked into tmp/, in a listing."""

    name: bytes
    docid: Docid


@dataclass(slots=True)
class DirectoryHandle:
    """An open directory: of the tree, or a client's own (None).

    `entries` is what it held when it was first read or rewound, but for messages.
    """

    directory: Directory | None
    place: Place
    entries: tuple[Entry | FileEntry | AliasEntry, ...] = ()
    # Names of these that have been told: one that has become a message since is not told again.
    listed: set[bytes] = field(default_factory=set)
    opener: int = 0


class Handles:
    """All open handles of the mount, and how often each message is open.

    The `opener` of each is the thread of a client, as RequestContext.pid says it.
    """

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self.messages: dict[Fh, MessageHandle] = {}
        self.files: dict[Fh, FileHandle] = {}
        self.directories: dict[Fh, DirectoryHandle] = {}
        self.open_counts: dict[Ino, int] = {}
        self._last = 0

    def _next(self) -> Fh:
        self._last += 1
        return Fh(self._last)

    def open_message(self, handle: MessageHandle) -> Fh:
        """A new file handle for it; the message counts as open once more."""
        fh = self._next()
        handle.opener = self._requests.thread
        self.messages[fh] = handle
        self.open_counts[handle.ino] = self.open_counts.get(handle.ino, 0) + 1
        return fh

    def close_message(self, fh: Fh) -> MessageHandle:
        """Forget a file handle. The kernel releases each one once."""
        handle = self.messages.pop(fh)
        count = self.open_counts.pop(handle.ino) - 1
        if count:
            self.open_counts[handle.ino] = count
        return handle

    def open_file(self, handle: FileHandle) -> Fh:
        """A new file handle for it."""
        fh = self._next()
        handle.opener = self._requests.thread
        self.files[fh] = handle
        return fh

    def file(self, fh: int) -> FileHandle:
        """The ordinary file of a handle."""
        return self.files[Fh(fh)]

    def seal(self, ino: Ino) -> None:
        """Refuse writes to a file from now on: what was written has become a message."""
        for handle in self.files.values():
            if handle.ino == ino:
                handle.is_sealed = True

    def open_directory(self, handle: DirectoryHandle) -> Fh:
        """A new file handle for it."""
        fh = self._next()
        handle.opener = self._requests.thread
        self.directories[fh] = handle
        return fh

    def close_directory(self, fh: Fh) -> DirectoryHandle:
        return self.directories.pop(fh)
