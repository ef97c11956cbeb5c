"""What a store takes of the disk, pack by pack: how much of it messages need, and what `compact` would give back."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mailfs.errors import MailfsError
from mailfs.ids import PackNumber
from mailfs.store.packfile import PACK_HEAD, PackFile
from mailfs.store.records import CODEC_DICTIONARY, HEADER_BYTES
from mailfs.store.store import Store


@dataclass(frozen=True, slots=True)
class PackUse:
    """One pack. All but `messages` and the booleans are bytes.

    `own` is what the pack needs for itself: head, dictionary and footer. `live` are the records of messages, expunged ones
    included. `dictionary` is its id, 0 for none. A pack that cannot be read has no dictionary and no footer here.
    """

    pack: PackNumber
    size: int
    live: int
    own: int
    messages: int
    dictionary: int
    is_sealed: bool
    is_newest: bool

    @property
    def dead(self) -> int:
        """What nothing needs any more: reclaimed records, and what said so."""
        return max(self.size - self.live - self.own, 0)

    @property
    def dead_share(self) -> float:
        """Of the whole pack."""
        return self.dead / self.size if self.size else 0.0


@dataclass(frozen=True, slots=True)
class DiskUse:
    """All of a store but the files of clients. `removable` counts packs that only wait for their removal."""

    packs: tuple[PackUse, ...]
    removable: int
    dictionaries: int
    dictionary_bytes: int
    index_bytes: int

    @property
    def pack_bytes(self) -> int:
        return sum(pack.size for pack in self.packs)

    @property
    def live_bytes(self) -> int:
        return sum(pack.live for pack in self.packs)

    @property
    def dead_bytes(self) -> int:
        return sum(pack.dead for pack in self.packs)


def disk_use(store: Store) -> DiskUse:
    """By the index, and two reads a pack. Reads all rows of `blob`: 0.3 s of a million messages. Raises StoreError."""
    with store.index.snapshot():
        rows = store.index.rows(
            "SELECT pack.pack, size, sealed, count(blob_id), total(stored) "
            "FROM pack LEFT JOIN blob USING (pack) GROUP BY pack.pack ORDER BY pack.pack"
        )
        ((removable,),) = store.index.rows("SELECT count(*) FROM dead_pack")
        ((dictionaries, dictionary_bytes),) = store.index.rows(
            "SELECT count(*), coalesce(sum(length(bytes)), 0) FROM dictionary"
        )
    newest = rows[-1][0] if rows else 0
    packs = []
    for pack, size, sealed, messages, live in rows:
        own, dictionary = _own(store, PackNumber(pack), size, is_sealed=bool(sealed))
        packs.append(
            PackUse(
                pack=PackNumber(pack),
                size=size,
                live=int(live),
                own=own,
                messages=messages,
                dictionary=dictionary,
                is_sealed=bool(sealed),
                is_newest=pack == newest,
            )
        )
    index = store.layout.index
    files = (index, Path(f"{index}-wal"), Path(f"{index}-shm"))
    return DiskUse(tuple(packs), removable, dictionaries, dictionary_bytes, _sum_of(files))


def _own(store: Store, pack: PackNumber, size: int, *, is_sealed: bool) -> tuple[int, int]:
    """What a pack of this size needs for itself, and the id of its dictionary."""
    own, dictionary = len(PACK_HEAD), 0
    try:
        file = PackFile(store.layout.pack(pack), pack)
        first = file.first_header_or_none()
        if first is not None and first.codec == CODEC_DICTIONARY:
            own += HEADER_BYTES + first.stored
            dictionary = first.dictionary
        footer = file.footer_start_or_none() if is_sealed else None
        if footer is not None:
            own += size - footer
    except MailfsError:
        pass  # `verify` tells of it
    return own, dictionary


def _sum_of(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total
