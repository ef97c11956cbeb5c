"""Files made directly in cur/ or new/ that are whole: so long as they were when the last client that wrote them closed them.

Noted as an extended attribute of the file, because the file outlives the mount: one that was killed leaves files that were
closed and not taken in yet, and halves of others, which must not become messages. After a power cut a file may also be
shorter than it was. A disk without extended attributes cannot tell, and all files count as whole there.
"""

import errno
import os
from contextlib import suppress

_ATTRIBUTE = b"user.mailfs.whole"


def note_whole(file: int | bytes) -> None:
    """All writers have closed a file, given by its descriptor or path. Where that cannot be noted, nothing is."""
    with suppress(OSError):
        os.setxattr(file, _ATTRIBUTE, b"%d" % os.stat(file).st_size)


def is_whole(path: bytes) -> bool:
    """Whether a file is as long as it was when it was noted. Raises OSError when it cannot be read."""
    try:
        noted = os.getxattr(path, _ATTRIBUTE, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return False
        if error.errno == errno.EOPNOTSUPP:
            return True
        raise
    return noted == b"%d" % os.lstat(path).st_size
