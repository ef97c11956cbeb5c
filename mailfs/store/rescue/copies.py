"""Second copies of records that are damaged: elsewhere in the packs of the store, dead ones too, and in backups."""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mailfs.errors import Corrupt, StoreError
from mailfs.ids import PackNumber
from mailfs.store.layout import Layout
from mailfs.store.packfile import PackFile
from mailfs.store.packs import PackReader
from mailfs.store.records import MESSAGE_CODECS, RecordHeader
from mailfs.store.rescue.resync import Found, resync
from mailfs.store.unpacked import PackedRecord


def find_backup(root: Path) -> Layout:
    """A store, or the newest in a folder of the kind `mailfs backup` makes. Raises StoreError."""
    latest = root / "latest"
    backup = Layout(latest if (latest / "packs").is_dir() else root, b"")
    if not backup.packs.is_dir():
        raise StoreError(f"{root} is no store, and no backup of one: it has no packs")
    return backup


class Copy(NamedTuple):
    """A record in a pack of the store, or of a backup."""

    packs: PackReader
    root: Path
    file: PackFile
    offset: int
    header: RecordHeader

    def __str__(self) -> str:
        return f"pack {self.file.number} at {self.offset} of {self.root}"

    @property
    def record(self) -> PackedRecord:
        return PackedRecord(self.file, self.offset, self.header)

    def pieces(self) -> Iterator[bytes]:
        """The message. Raises Corrupt, at the latest behind the last piece."""
        return self.record.raw_pieces(
            lambda wanted: self.packs.dictionaries.find(wanted, self.file)
        )

    def is_sound(self) -> bool:
        """Whether the message can be read and matches its hash."""
        try:
            for _ in self.pieces():
                pass
        except (Corrupt, StoreError):
            return False
        return True


class Copies:
    """Where the records of some hashes lie, in a store and in its backups."""

    def __init__(self, packs: PackReader, layout: Layout, backups: Iterable[Layout] = ()) -> None:
        self._places = [(packs, layout), *((PackReader(backup), backup) for backup in backups)]
        self._found: dict[bytes, list[Copy]] = {}

    def close(self) -> None:
        for packs, _ in self._places[1:]:
            packs.close()

    def look_for(self, wanted: Collection[bytes]) -> None:
        """Read the headers of all packs, once for all these hashes."""
        self._found = {digest: [] for digest in wanted}
        if not wanted:
            return
        for packs, layout in self._places:
            for path in sorted(layout.packs.glob("*.pack")):
                if path.stem.isdigit():
                    self._look_through(packs, layout.root, PackNumber(int(path.stem)))

    def _look_through(self, packs: PackReader, root: Path, number: PackNumber) -> None:
        try:
            file = packs.file(number)
            for found in resync(file):
                if isinstance(found, Found) and found.header.codec in MESSAGE_CODECS:
                    copies = self._found.get(found.header.hash)
                    if copies is not None:
                        copies.append(Copy(packs, root, file, found.offset, found.header))
        except (Corrupt, StoreError):
            return  # it is not there to be copied from

    def sound(self, digest: bytes, raw: int) -> Iterator[Copy]:
        """Those of this hash and length that can be read; a hash is no proof that they are the same message."""
        for copy in self._found.get(digest, ()):
            if copy.header.raw == raw and copy.is_sound():
                yield copy
