"""Every error mailfs raises on purpose, with the errno a file system client gets and the exit code a shell gets.

Errors are caught in two places: the handler wrapper in fuse/operations.py (errno) and cli/main.py
(message on stderr, exit code of sysexits.h). A message says what happened, to what, and what to do.
"""

from errno import (
    EAGAIN,
    EDQUOT,
    EEXIST,
    EINVAL,
    EIO,
    EMFILE,
    ENFILE,
    ENOENT,
    ENOSPC,
    EPERM,
    EROFS,
)

EX_USAGE, EX_DATAERR, EX_NOINPUT, EX_UNAVAILABLE = 64, 65, 66, 69
EX_SOFTWARE, EX_OSERR, EX_CANTCREAT, EX_IOERR = 70, 71, 73, 74
EX_TEMPFAIL, EX_NOPERM, EX_CONFIG = 75, 77, 78


_EXCERPT_CHARS = 60


class MailfsError(Exception):
    """Something a person can be told about. `errno` is for FUSE, `exit_code` for the shell."""

    errno: int = EIO
    exit_code: int = EX_SOFTWARE


class UsageError(MailfsError):
    """Words on the command line that make no sense together."""

    errno = EINVAL
    exit_code = EX_USAGE


class NotFound(MailfsError):
    """What was named is not there."""

    errno = ENOENT
    exit_code = EX_NOINPUT


class NoSuchMessage(NotFound):
    """No live message has this docid."""


class NoSuchSearch(NotFound):
    """No saved search has this name."""


class SearchExists(MailfsError):
    """A saved search of this name is there already."""

    errno = EEXIST
    exit_code = EX_CANTCREAT


class EntryExists(MailfsError):
    """This name is that of another message in the same view."""

    errno = EEXIST
    exit_code = EX_CANTCREAT


class KeywordInUse(MailfsError):
    """Messages have this keyword already, so another cannot be renamed to it."""

    errno = EPERM  # EEXIST would make mv(1) speak of a file that is not there
    exit_code = EX_CANTCREAT


class StoreError(MailfsError):
    """The store cannot be used as asked."""

    errno = EIO
    exit_code = EX_IOERR


class StoreMissing(StoreError):
    """No store at this path."""

    errno = ENOENT
    exit_code = EX_NOINPUT


class StoreExists(StoreError):
    """Something is where a store was to be made."""

    errno = EEXIST
    exit_code = EX_CANTCREAT


class NotOurs(StoreError):
    """Somebody else could change what is in the store."""

    errno = EPERM
    exit_code = EX_NOPERM


class FormatTooNew(StoreError):
    """The store, or the SQLite library, is of a version this program must not write with."""

    exit_code = EX_CONFIG


class ConfigError(StoreError):
    """STORE/config says what cannot be done."""

    exit_code = EX_CONFIG


class Corrupt(StoreError):
    """Stored bytes are not what was written."""


class StoreFull(StoreError):
    """The disk (or a quota) has no room; nothing acknowledged is lost."""

    errno = ENOSPC
    exit_code = EX_TEMPFAIL


class StoreReadOnly(StoreError):
    """The file system of the store takes no changes just now; all can be read."""

    errno = EROFS


class StoreFailing(StoreError):
    """The disk below the store failed to read, write or sync; what it had not acknowledged is not promised."""


class NoDescriptors(StoreError):
    """This process, or the machine, has no descriptor left (RLIMIT_NOFILE, fs.file-max)."""

    errno = EMFILE
    exit_code = EX_TEMPFAIL


class Unhealthy(StoreError):
    """Refused without a try, because of what the store has met before. `errno` is that of the cause."""

    exit_code = EX_TEMPFAIL

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.errno = code


def storage_error(error: OSError, what: str) -> StoreError:
    """What the system says, as an error of its kind; `what` could not be done."""
    if error.errno in (ENOSPC, EDQUOT):
        return StoreFull(f"{what}: {error.strerror}; free some room and try again")
    if error.errno == EROFS:
        return StoreReadOnly(f"{what}: {error.strerror}")
    if error.errno in (EMFILE, ENFILE):
        return NoDescriptors(f"{what}: {error.strerror}; close something and try again")
    if error.errno == EIO:
        return StoreFailing(f"{what}: {error.strerror}")
    return StoreError(f"{what}: {error.strerror}")


class Busy(MailfsError):
    """Something was not free in time; nothing was done. The message names who has it, where that is known."""

    errno = EAGAIN
    exit_code = EX_TEMPFAIL


class DeadlinePassed(Busy):
    """Who asked had set a deadline, and it has passed."""


class BackPressure(Busy):
    """Nobody had set a deadline, but we wait no longer, or too many wait already."""


class BadSource(MailfsError):
    """What was given to import cannot be read as mail."""

    errno = EINVAL
    exit_code = EX_DATAERR


class BadDump(MailfsError):
    """What was given to restore is no dump; the message says in which line."""

    errno = EINVAL
    exit_code = EX_DATAERR


class WorkersDied(MailfsError):
    """A process that parses mail ended without an answer, killed or out of memory, or does not come to one."""

    exit_code = EX_TEMPFAIL


class QuerySyntaxError(MailfsError):
    """A query that does not parse. `position` counts characters from 0."""

    errno = EINVAL
    exit_code = EX_USAGE

    def __init__(self, reason: str, query: str, position: int) -> None:
        self.reason = reason
        self.query = query
        self.position = position
        super().__init__(reason, query, position)

    def __str__(self) -> str:
        # A query may be 100,000 characters long; a person wants the place.
        start = max(self.position - _EXCERPT_CHARS, 0)
        end = self.position + _EXCERPT_CHARS
        excerpt = ("..." if start else "") + self.query[start:end]
        excerpt += "..." if end < len(self.query) else ""
        return f"{self.reason}, at character {self.position + 1} of: {excerpt}"


class BadKeyword(MailfsError):
    """A word that cannot be a keyword."""

    errno = EINVAL
    exit_code = EX_USAGE


class EditRefused(MailfsError):
    """A rename, unlink, mkdir or write that has no meaning in this place."""

    errno = EPERM
    exit_code = EX_NOPERM

    def __init__(self, reason: str, code: int = EPERM) -> None:
        super().__init__(reason)
        self.errno = code


class MountError(MailfsError):
    """The file system could not be mounted or unmounted."""

    exit_code = EX_UNAVAILABLE
