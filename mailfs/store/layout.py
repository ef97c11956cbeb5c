"""Where things lie inside a store, and the `format` file that says which store this is.

    STORE/  format  lock  index.sqlite3  packs/00000001.pack ...  sidecar/  spool/

`sidecar` and `spool` hold ordinary files of clients and are made when the first one comes.
Modes are 0700 and 0600 whatever the umask. `format` is written last by create(), so a store whose
creation was cut off has none and create() may be run again.
"""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from mailfs.errors import FormatTooNew, StoreError, StoreExists, StoreMissing
from mailfs.ids import PackNumber
from mailfs.store.schema import FORMAT_VERSION

_MAGIC = "mailfs store"
# Lower-case letters and digits: the id stands in every entry name.
_STORE_ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_STORE_ID_CHARS = 8
_FOLDERS = ("packs", "sidecar", "spool")


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


def new_layout(root: Path) -> Layout:
    """Make the folders of a store and choose its id; `format` is not written yet.

    Raises StoreExists when something else than a half-made store is there.
    """
    if (root / "format").exists():
        raise StoreExists(f"{root} is a mailfs store already")
    foreign = [
        name
        for name in (os.listdir(root) if root.exists() else [])
        if name not in (*_FOLDERS, "lock", "format.new") and not name.startswith("index.sqlite3")
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
    """Write `format`, durably: from now on this is a store, of the format this program writes."""
    text = f"{_MAGIC}\nversion {FORMAT_VERSION}\nstore-id {layout.store_id.decode()}\n"
    temporary = layout.root / "format.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text.encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(layout.root / "format")
    sync_directory(layout.root)


def open_layout(root: Path) -> Layout:
    """Read `format`. Raises StoreMissing, StoreError for a foreign file, FormatTooNew."""
    try:
        lines = (root / "format").read_text("ascii").splitlines()
    except FileNotFoundError:
        raise StoreMissing(f"no mailfs store at {root}: make one with `mailfs init`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read {root}/format: {error}") from error
    fields = dict(line.partition(" ")[::2] for line in lines[1:])
    if not lines or lines[0] != _MAGIC or not fields.get("version", "").isdigit():
        raise StoreError(f"{root}/format is not one of mailfs")
    version = int(fields["version"])
    if version > FORMAT_VERSION:
        raise FormatTooNew(
            f"the store at {root} has format {version}; this mailfs knows up to {FORMAT_VERSION}: "
            "use the newer mailfs that wrote it"
        )
    store_id = fields.get("store-id", "").encode()
    if not store_id.isalnum():
        raise StoreError(f"{root}/format has no store-id")
    return Layout(root, store_id, version)


def sync_directory(path: Path) -> None:
    """fsync a directory, so that names made or renamed in it survive power loss."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
