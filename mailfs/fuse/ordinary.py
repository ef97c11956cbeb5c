"""Ordinary files for the handlers: tmp/ files, side-cars, and files made directly in cur/ or new/ until they are taken in.

Reads and writes go to the real file. A file that was delivered is gone from the disk; who still has it open reads on,
and who asks by its number is told of the message it has become.
"""

import contextlib
import errno
import logging
import os
import resource
import stat
import time

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo

from mailfs.errors import Busy, EditRefused, MailfsError, NoDescriptors, NotFound
from mailfs.fuse.answers import Answers
from mailfs.fuse.changes import Changes
from mailfs.fuse.handles import FileHandle, Handles
from mailfs.ids import Docid, Fh, Ino
from mailfs.message.maildir import split_name
from mailfs.store.journal import Actor
from mailfs.store.layout import HALF
from mailfs.store.lock import hold_for_writing, is_held_for_writing
from mailfs.views.arrivals import Arrival, SpooledFile, plan_arrival
from mailfs.views.edits import check_base
from mailfs.views.files import FileAttributes, FileEntry, Place, is_file_ino
from mailfs.views.letters import KEYWORDS_FILE
from mailfs.views.tree import Alias, Directory, Kind
from mailfs.views.whole import is_whole, note_whole

log = logging.getLogger(__name__)

# Nobody waits for a file to be taken in, and the kernel has few requests under way that nobody waits for: those that
# close files, which take them in, and those that read ahead.
_TAKE_IN_DEADLINE_S = 0.25
# Descriptors of this process that open files may not take: packs, the index and the lock need some at any time.
_RESERVED_DESCRIPTORS = 128


def is_hidden(name: bytes) -> bool:
    """maildir(5): a name that begins with a dot is no message."""
    return name.startswith(b".")


class OrdinaryFiles:
    """What handlers do with ordinary files. Raises OSError, MailfsError."""

    def __init__(self, changes: Changes, handles: Handles, answers: Answers) -> None:
        self._changes = changes
        self._tree = changes.tree
        self._health = changes.tree.store.writer.health
        self.files = changes.tree.files
        self._handles = handles
        self._answers = answers
        # Files that were delivered, until the kernel forgets their numbers.
        self.became: dict[Ino, Docid] = {}
        # Files in cur/ and new/ that are to be taken in when nobody writes them any more.
        self._waiting: set[tuple[Place, bytes]] = set()
        # Whether the last one found the store busy: the next will not try before the timer does.
        self._is_store_busy = False
        # Files that are being made messages now, in a thread.
        self._in_flight: dict[Ino, trio.Event] = {}
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most_open = max(limit - _RESERVED_DESCRIPTORS, limit // 2)
        # Another mount of the store may write the same file: its pages are dropped at each open.
        self._info = FileInfo(keep_cache=False)

    def answer(self, attributes: FileAttributes) -> EntryAttributes:
        """Of a real file. Its number may have been that of a delivered one: file systems give numbers again."""
        self.became.pop(attributes.ino, None)
        return self._answers.file(attributes)

    def message_or_none(self, inode: int) -> Docid | None:
        """The message an ordinary file has become, of which nothing is left under this number."""
        docid = self.became.get(Ino(inode))
        if docid is not None:
            with contextlib.suppress(NotFound):
                self.files.attributes(Ino(inode))
                return None
        return docid

    def place(self, inode: int) -> Place:
        """The place of a directory's ordinary files, whichever kind of directory it is."""
        if is_file_ino(inode):
            return Ino(inode)
        return self._tree.area(self._tree.directory(inode))

    # --- attributes

    def attributes(self, inode: int) -> EntryAttributes:
        """Of an ordinary file, or of the message it has become under the number the kernel knows."""
        docid = self.message_or_none(inode)
        if docid is None:
            return self._answers.file(self.files.attributes(Ino(inode)))
        entry = self._answers.not_kept(self._tree.message_attributes(docid))
        entry.st_ino = inode
        return entry

    def is_allowed(self, inode: int, mode: int, *, is_root: bool) -> bool:
        """What the mode of a file grants its owner, who is the only one here."""
        found = self.files.attributes(Ino(inode)).stat
        granted = found.st_mode >> 6 & 7
        if is_root:
            granted |= os.R_OK | os.W_OK | (os.X_OK if found.st_mode & 0o111 else 0)
        if stat.S_ISDIR(found.st_mode) and is_root:
            granted |= os.X_OK
        return not mode & ~granted

    def set_attributes(
        self, inode: int, attr: EntryAttributes, fields: pyfuse3.SetattrFields, fh: int | None
    ) -> EntryAttributes:
        """chmod, chown, utime and truncate of an ordinary file."""
        if self.message_or_none(inode) is not None:
            if fields.update_size:
                raise EditRefused("a message cannot be changed, only replaced")
            return self.attributes(inode)
        handle = None if fh is None else self._handles.files.get(Fh(fh))
        if fields.update_size and handle is not None and handle.is_sealed:
            raise EditRefused("the file has become a message, which cannot be changed")
        # Who opened for reading may set times, but not a length.
        fd = None if handle is None or fields.update_size else handle.fd
        found = self.files.set_attributes(
            Ino(inode),
            fd,
            size=attr.st_size if fields.update_size else None,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return self._answers.file(found)

    def forget(self, inode: int, count: int) -> None:
        """The kernel takes back lookups of a number."""
        if not self.files.forget(Ino(inode), count):
            self.became.pop(Ino(inode), None)

    # --- making files

    def check_new(self, inode: int, name: bytes, mode: int) -> Place:
        """The place a new name goes to. Raises EditRefused where there is none."""
        if not is_file_ino(inode):
            directory = self._tree.directory(inode)
            if directory.path == "" and name == b".mailfs":
                raise EditRefused(".mailfs is the mount's own")
            if directory.holds_messages and not is_hidden(name):
                if not stat.S_ISREG(mode):
                    raise EditRefused("cur and new hold messages; this is none")
                check_base(split_name(name).base)
            if directory.view is not None and directory.kind == Kind.VIEW:
                if name in (b"cur", b"new", b"tmp"):
                    raise EditRefused(f"{name.decode()} is a directory of the view")
            elif directory.view is not None:
                directory.view.removed_parts.discard(directory.kind.name.lower().encode())
        return self.place(inode)

    def create(
        self, parent: int, name: bytes, flags: int, mode: int
    ) -> tuple[FileInfo, EntryAttributes]:
        """open(2) with O_CREAT. Raises NoDescriptors as `open`."""
        self._check_descriptors()
        place = self.check_new(parent, name, stat.S_IFREG)
        if self._is_mail(place):
            self._health.check_room()
        fd, attributes = self.files.create(place, name, flags, mode)
        directory = self._tree.directory_of_area_or_none(place)
        if directory is not None and directory.holds_messages:
            # When its close(2) is told us, and the file taken in, the client may have ended.
            self._changes.requests.actor_or_none()
        self.touch(parent)
        return self._opened(attributes.ino, fd, flags), self.answer(attributes)

    def open(self, inode: int, flags: int) -> FileInfo:
        """open(2) of an ordinary file that is there. Raises NotFound; NoDescriptors when clients have too many open."""
        self._check_descriptors()
        return self._opened(Ino(inode), self.files.open(Ino(inode), flags), flags)

    def _check_descriptors(self) -> None:
        """One client that opens all the files it can must not keep others from their mail: messages need no descriptors."""
        if len(self._handles.files) >= self._most_open:
            raise NoDescriptors(
                f"{self._most_open} files that are no messages are open: no more can be (RLIMIT_NOFILE)"
            )

    def _opened(self, ino: Ino, fd: int, flags: int) -> FileInfo:
        self.files.opened(ino, fd, flags)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            hold_for_writing(fd)
        is_mail = any(self._is_mail(place) for place, _ in self.files.names_of(ino))
        self._info.fh = self._handles.open_file(FileHandle(ino, fd, is_mail))
        return self._info

    def _is_mail(self, place: Place) -> bool:
        """Whether what lies there is to become a message: not a side-car, which clients need to remove anything."""
        directory = self._tree.directory_of_area_or_none(place)
        return directory is not None and (directory.holds_messages or directory.kind == Kind.TMP)

    # --- open files

    def read(self, handle: FileHandle, offset: int, size: int) -> bytes:
        return os.pread(handle.fd, size, offset)

    def write(self, handle: FileHandle, offset: int, data: bytes) -> int:
        """All of it, or an error."""
        if handle.is_sealed:
            raise EditRefused("the file has become a message, which cannot be changed")
        if handle.is_mail:
            self._health.check_room(len(data))
        view = memoryview(data)
        while view:
            written = os.pwrite(handle.fd, view, offset)
            view = view[written:]
            offset += written
        return len(data)

    def close_all(self) -> None:
        """The mount is gone, and its clients have closed all files: what was still to be told us will not come."""
        for fh in list(self._handles.files):
            self._close(fh)

    def _close(self, fh: Fh) -> tuple[FileHandle, list[tuple[Place, bytes]]]:
        """An open file and its names: none, if it was removed or has become a message while it was open."""
        handle = self._handles.files.pop(fh)
        names = [] if handle.is_sealed else self.files.names_of(handle.ino)
        was_written = self.files.is_open_for_writing(handle.ino)
        self.files.closed(handle.ino, handle.fd)
        if was_written and not self.files.is_open_for_writing(handle.ino):
            self._note_whole(handle.fd, names)
        os.close(handle.fd)
        return handle, names

    async def release(self, fh: Fh) -> None:
        """The last close(2) of an open file: one made in cur/ or new/ is taken in."""
        handle, names = self._close(fh)
        for place, name in names:
            directory = self._tree.directory_of_area_or_none(place)
            if name == KEYWORDS_FILE and directory is not None and directory.view is not None:
                self._changes.sync_letters(directory.view)
            await self.take_in(place, name, closed_by=handle.opener)
        if self._waiting:
            self._changes.rouse()

    # --- files that become messages

    def spooled(self, place: Place, name: bytes) -> SpooledFile | None:
        """A regular file, as what could be delivered; None for anything else."""
        found = self.files.lookup_or_none(place, name)
        if found is None:
            raise NotFound(f"no file {name!r}")
        self.files.forget(found.ino)
        if not stat.S_ISREG(found.stat.st_mode):
            return None
        return SpooledFile(found.ino, self.files.folder(place) + b"/" + name)

    def has(self, place: Place, name: bytes) -> bool:
        """Whether an ordinary file of this name is there."""
        found = self.files.lookup_or_none(place, name)
        if found is not None:
            self.files.forget(found.ino)
        return found is not None

    def is_being_written(self, source: SpooledFile) -> bool:
        """Whether a client of this mount or another one has the file open for writing."""
        return self.files.is_open_for_writing(source.ino) or is_held_for_writing(source.path)

    def wait_for(self, place: Place, name: bytes) -> None:
        """A file in cur/ or new/ is to be taken in when nobody writes it any more, whoever does."""
        self._waiting.add((place, name))
        self._changes.rouse()

    @property
    def has_waiting(self) -> bool:
        """Whether files are to be taken in later."""
        return bool(self._waiting)

    def size(self, source: SpooledFile) -> int:
        return os.lstat(source.path).st_size

    def delivered(self, source: SpooledFile, place: Place, name: bytes, docid: Docid) -> None:
        """A file has become a message: it goes, whoever has it open."""
        self._handles.seal(source.ino)
        self.became[source.ino] = docid
        found = self.files.lookup_or_none(place, name)
        if found is None:
            return
        self.files.forget(found.ino)
        if found.ino != source.ino:
            return  # renamed meanwhile, and the name taken by another
        try:
            self.files.unlink(place, name)
        except OSError as error:
            log.warning("a delivered file could not be removed: %s", error.strerror)

    def alias_of(self, place: Place, name: bytes) -> Alias | None:
        """What a name of a file becomes when the file is linked into a view: in tmp/, a name of the message."""
        directory = self._tree.directory_of_area_or_none(place)
        if directory is None or directory.kind != Kind.TMP or directory.search_id is None:
            return None
        return Alias(directory.search_id, name)

    async def take_in(self, place: Place, name: bytes, *, closed_by: int | None = None) -> None:
        """A file that was written directly into cur/ or new/ becomes a message when nobody writes it any more.

        `closed_by`: the client's thread that has just closed it; None where it waited.
        An empty one waits: a program that only tests whether it can make files (vim's 4913) is not delivering.
        """
        source = self._finished_or_none(place, name)
        directory = self._tree.directory_of_area_or_none(place)
        if source is None or directory is None:
            return
        if closed_by is not None and self._is_store_busy:
            self._waiting.add((place, name))
            return
        arrival = plan_arrival(
            self._tree, source, directory, name, is_exclusive=False, is_lenient=True
        )
        self._is_store_busy = False
        try:
            docid = await self.deliver(
                arrival,
                source,
                place,
                name,
                is_kept=False,
                deadline_s=_TAKE_IN_DEADLINE_S,
                actor=self._changes.requests.actor_of_or_none(closed_by or 0),
            )
            self._changes.told(docid, made=(directory, name))
        except EditRefused as error:
            # It stays where it is, an ordinary file; nothing is lost.
            self._changes.explain("taking in", error)
        except MailfsError as error:
            if isinstance(error, Busy):
                self._is_store_busy = True
            else:
                self._changes.explain("taking in", error)
            self._waiting.add((place, name))
        except OSError as error:
            log.warning("a file in cur or new cannot be taken in: %s", error.strerror)

    def _finished_or_none(self, place: Place, name: bytes) -> SpooledFile | None:
        """A file in cur/ or new/ that has something in it and that nobody writes. One that waits for others is noted."""
        directory = self._tree.directory_of_area_or_none(place)
        if directory is None or not directory.holds_messages or is_hidden(name):
            return None
        try:
            source = self.spooled(place, name)
            if source is None or not self.size(source):
                return None
        except (NotFound, FileNotFoundError):
            return None
        # Our own clients' release is still to come; and what is in flight is being delivered under another name.
        if self.files.is_open_for_writing(source.ino) or source.ino in self._in_flight:
            return None
        if self.is_being_written(source):  # by a client of another mount
            self._waiting.add((place, name))
            return None
        return source

    async def deliver(
        self,
        arrival: Arrival,
        source: SpooledFile,
        place: Place,
        name: bytes,
        *,
        is_kept: bool,
        deadline_s: float | None = None,
        actor: Actor | None = None,
    ) -> Docid:
        """Make a message of a file; one at a time for each file. Unless `is_kept`, the file goes."""
        taken = self._in_flight[source.ino] = trio.Event()
        try:
            docid = await self._changes.arrive(arrival, deadline_s, actor)
            if not is_kept:
                self.delivered(source, place, name, docid)
        finally:
            del self._in_flight[source.ino]
            taken.set()
        return docid

    async def settle(self, inode: int, name: bytes) -> None:
        """Wait for a file that is being made a message: its close(2) came before what is asked now."""
        while self._in_flight:
            found = self.files.lookup_or_none(self.place(inode), name)
            if found is None:
                return
            self.files.forget(found.ino)
            taken = self._in_flight.get(found.ino)
            if taken is None:
                return
            await self._wait(taken)

    async def settle_ino(self, inode: int) -> None:
        """The same for a file known by its number."""
        while (taken := self._in_flight.get(Ino(inode))) is not None:
            await self._wait(taken)

    async def _wait(self, taken: trio.Event) -> None:
        if not await self._changes.requests.until(taken, self._changes.edit_deadline_s):
            raise Busy("the file is being stored as a message: try again")

    def _note_whole(self, fd: int, names: list[tuple[Place, bytes]]) -> None:
        """A mount that comes after a kill must know that nobody was writing the file any more."""
        directories = [self._tree.directory_of_area_or_none(place) for place, _ in names]
        if any(directory is not None and directory.holds_messages for directory in directories):
            note_whole(fd)

    def find_waiting(self, *, is_end: bool = False) -> None:
        """Files left in cur/ and new/ wait to be taken in, but for those that a killed mount's clients had half written.

        At the end of a mount every file that no client has open is whole, also where its close is still to be told us.
        """
        for directory in self._tree.iter_directories():
            if directory.holds_messages:
                area = self._tree.area(directory)
                for entry in self.files.entries(area):
                    path = area + b"/" + entry.name
                    if is_end and not self.files.is_open_for_writing(entry.attributes.ino):
                        note_whole(path)
                    if self._is_half(path, entry):
                        self._set_aside(directory, entry.name)
                    else:
                        self._waiting.add((area, entry.name))

    def _is_half(self, path: bytes, entry: FileEntry) -> bool:
        found = entry.attributes.stat
        if not stat.S_ISREG(found.st_mode) or not found.st_size or is_hidden(entry.name):
            return False
        if self.files.is_open_for_writing(entry.attributes.ino) or is_held_for_writing(path):
            return False
        try:
            return not is_whole(path)
        except OSError as error:
            log.warning("%s cannot be looked at: %s", os.fsdecode(path), error.strerror)
            return False

    def _set_aside(self, directory: Directory, name: bytes) -> None:
        """To tmp/, where Maildirs have what is not whole; under a name that the cleaning of tmp/ leaves alone.

        It may be a whole letter: on a disk that lost its extended attributes, or closed at the last moment.
        """
        assert directory.view is not None
        tmp = self._tree.directory(self._tree.subfolder_ino(directory.view, Kind.TMP))
        target, new_name = self._tree.area(tmp), name + HALF.encode()
        while self.has(target, new_name):
            new_name += HALF.encode()
        try:
            self.files.rename(self._tree.area(directory), name, target, new_name, 0)
        except OSError as error:
            log.warning("a file half written in cur or new stays there: %s", error.strerror)
            return
        where = os.fsdecode(self._tree.path_of(tmp) + b"/" + new_name)
        text = (
            f"{where} was being written when its mount was killed, and is no message: "
            "move it to cur if it is whole, else remove it"
        )
        self._changes.problems.add("mount", text)
        log.warning("%s", text)

    async def take_in_waiting(self, deadline_s: float) -> None:
        """Try again what could not be taken in: a full disk, a busy store. What is not come to in time waits on."""
        give_up = time.monotonic() + deadline_s
        for place, name in sorted(self._waiting, key=str):
            if time.monotonic() > give_up:
                break
            self._waiting.discard((place, name))
            await self.take_in(place, name)

    # --- names

    def mkdir(self, parent: int, name: bytes, mode: int) -> EntryAttributes:
        found = self.files.mkdir(self.place(parent), name, mode)
        self.touch(parent)
        return self.answer(found)

    def mknod(self, parent: int, name: bytes, mode: int) -> EntryAttributes:
        place = self.check_new(parent, name, mode)
        found = self.files.mknod(place, name, mode)
        self.touch(parent)
        return self.answer(found)

    def symlink(self, parent: int, name: bytes, target: bytes) -> EntryAttributes:
        place = self.check_new(parent, name, stat.S_IFLNK)
        return self.answer(self.files.symlink(place, name, target))

    def link(self, inode: int, parent: int, name: bytes) -> EntryAttributes:
        """link(2) between ordinary files."""
        if self.message_or_none(inode) is not None:
            raise EditRefused("a message can be linked into tmp, cur and new only", errno.EXDEV)
        place = self.check_new(parent, name, stat.S_IFREG)
        found = self.files.link(Ino(inode), place, name)
        self.touch(parent)
        return self.answer(found)

    def unlink(self, parent: int, name: bytes) -> None:
        """unlink(2) of an ordinary file."""
        self.files.unlink(self.place(parent), name)
        self.touch(parent)

    def rmdir(self, parent: int, name: bytes) -> None:
        """rmdir(2) of a client's own directory."""
        self.files.rmdir(self.place(parent), name)
        self.touch(parent)

    def touch(self, parent: int) -> None:
        """Names were made or removed in a directory: its mtime moves, finer than the disk's clock does."""
        if is_file_ino(parent):
            return
        directory = self._tree.directory(parent)
        self._tree.touch(directory)
        if directory.view is not None and directory.kind == Kind.VIEW:
            self._changes.sync_letters(directory.view)
