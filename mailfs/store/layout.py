"""Where things lie inside a store, and the `format` file that says which store this is.

    STORE/  format  lock  in-use  index.sqlite3  packs/00000001.pack ...  sidecar/  spool/

`sidecar` and `spool` hold ordinary files of clients and are made when the first one comes.
Modes are 0700 and 0600 whatever the umask. `format` is written last by create(), so a store whose
creation was cut off has none and create() may be run again.

`format` is three lines and, from format 3 on, a fourth with a checksum of them: the store's id stands in every entry name, and
a flipped letter would rename all mail. `format.bak` is the same again, for a repair.
"""

import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

import xxhash

from mailfs.errors import FormatTooNew, NotOurs, StoreError, StoreExists, StoreMissing
from mailfs.ids import PackNumber
from mailfs.store.schema import FIRST_FORMAT_WITH_CHECKSUMS, FORMAT_VERSION

_MAGIC = "mailfs store"
# Lower-case letters and digits: the id stands in every entry name.
_STORE_ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_STORE_ID_CHARS = 8
# How the name of a file ends that a mount set aside, because it may be half of a message.
HALF = ".half"
_FOLDERS = ("packs", "sidecar", "spool")
_CHECK = "check "
_REPAIR = "run `mailfs verify --repair`"


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one store. `store_id` is random, given at creation, and part of every entry name.

    `version` is that of the file `format`.
    """

    root: Path
    store_id: bytes
    version: int = FORMAT_VERSION

    @property
    def index(self) -> Path:
        return self.root / "index.sqlite3"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def packs(self) -> Path:
        return self.root / "packs"

    def pack(self, number: PackNumber) -> Path:
        return self.packs / f"{number:08d}.pack"

    @property
    def sidecar(self) -> Path:
        """Files that clients keep beside messages. May not be there yet."""
        return self.root / "sidecar"

    @property
    def spool(self) -> Path:
        """What is on its way to become a message. May not be there yet."""
        return self.root / "spool"

    @property
    def damaged(self) -> Path:
        """What a repair could still read of records that are lost. Mostly not there."""
        return self.root / "damaged"


def new_layout(root: Path) -> Layout:
    """Make the folders of a store and choose its id; `format` is not written yet.

    Raises StoreExists when something else than a half-made store is there.
    """
    if (root / "format").exists():
        raise StoreExists(f"{root} is a mailfs store already")
    if (root / "format.bak").exists():
        raise StoreExists(f"{root} is a mailfs store that lost its file `format`: {_REPAIR}")
    foreign = [
        name
        for name in (os.listdir(root) if root.exists() else [])
        if name not in (*_FOLDERS, "lock", "in-use", "format.new", "format.bak.new")
        and not name.startswith("index.sqlite3")
    ]
    if foreign:
        raise StoreExists(f"{root} is not empty (it holds {foreign[0]}): name a new folder")
    for folder in _FOLDERS:
        if any((root / folder).glob("*")):
            # A store in the making has no files in it yet: this one was in use, and its index holds keywords.
            raise StoreExists(
                f"{root} holds files in {folder} but no file `format`: put that back, or name a new folder"
            )
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.stat().st_uid != os.geteuid():
        # Somebody laid it out for us, and could change whatever we put there; root could do so all the same.
        raise StoreExists(f"{root} is somebody else's folder: name a new one")
    root.chmod(0o700)
    layout = Layout(root, _new_store_id())
    layout.packs.mkdir(mode=0o700, exist_ok=True)
    for leftover in root.glob("index.sqlite3*"):
        leftover.unlink()
    return layout


def _new_store_id() -> bytes:
    letters = (secrets.choice(_STORE_ID_ALPHABET) for _ in range(_STORE_ID_CHARS))
    return "".join(letters).encode()


def write_format(layout: Layout) -> None:
    """Write `format`, durably: from now on this is a store, of the format this program writes. And its copy."""
    text = f"{_MAGIC}\nversion {FORMAT_VERSION}\nstore-id {layout.store_id.decode()}\n"
    text += f"{_CHECK}{_check(text)}\n"
    for name in ("format", "format.bak"):
        _replace(layout.root / name, text.encode())


def restore_format(layout: Layout) -> None:
    """Put `format` back from its copy, durably."""
    _replace(layout.root / "format", (layout.root / "format.bak").read_bytes())


def _replace(path: Path, content: bytes) -> None:
    """Give a file this content, durably: the old one or the new one is there, whatever happens."""
    temporary = path.with_name(f"{path.name}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(temporary, flags, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path)
    sync_directory(path.parent)


def _check(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode())


def open_layout(root: Path) -> Layout:
    """Read `format`. Raises StoreMissing, NotOurs, StoreError for a foreign or damaged file, FormatTooNew."""
    _check_owner(root)
    return read_format(root, "format")


def _check_owner(root: Path) -> None:
    """Others must not be able to put anything into a store, such as a link in the place of a file. Raises NotOurs.

    The files are not looked at: nobody else can make or replace one in a folder like this. Root may read every store.
    """
    try:
        status = root.stat()
    except OSError:
        return  # what is wrong is told by whoever reads the first file
    if status.st_uid != os.geteuid() != 0:
        raise NotOurs(f"the store at {root} belongs to another user")
    if stat.S_ISDIR(status.st_mode) and status.st_mode & 0o022:
        raise NotOurs(
            f"others may write into the store at {root}: look what is in it, then chmod 700 {root}"
        )


def read_format(root: Path, name: str) -> Layout:
    """The same of the file `format` or its copy `format.bak`."""
    try:
        text = (root / name).read_text("ascii")
    except FileNotFoundError:
        if (root / "format.bak").exists():
            raise StoreError(f"the store at {root} lost its file `{name}`: {_REPAIR}") from None
        raise StoreMissing(f"no mailfs store at {root}: make one with `mailfs init`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read {root}/{name}: {error}") from error
    said, has_check, check = text.partition(_CHECK)
    lines = said.splitlines()
    fields = dict(line.partition(" ")[::2] for line in lines[1:])
    if not lines or lines[0] != _MAGIC or not fields.get("version", "").isdigit():
        raise StoreError(f"{root}/{name} is not one of mailfs")
    version = int(fields["version"])
    if version > FORMAT_VERSION:
        raise FormatTooNew(
            f"the store at {root} has format {version}; this mailfs knows up to {FORMAT_VERSION}: "
            "use the newer mailfs that wrote it"
        )
    store_id = fields.get("store-id", "").encode()
    if not store_id.isalnum():
        raise StoreError(f"{root}/{name} has no store-id")
    if has_check if version < FIRST_FORMAT_WITH_CHECKSUMS else check != f"{_check(said)}\n":
        raise StoreError(f"{root}/{name} is damaged: {_REPAIR}")
    return Layout(root, store_id, version)


def sync_directory(path: Path) -> None:
    """fsync a directory, so that names made or renamed in it survive power loss."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
