"""The dictionaries of a store: each lies in the index and, once, in every pack whose records need it.

One found damaged in one place is taken from another, so that a message is lost only with all copies.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import apsw

from mailfs.errors import Corrupt, MailfsError
from mailfs.ids import PackNumber
from mailfs.store.database import close, open_reader, translated
from mailfs.store.layout import Layout
from mailfs.store.packfile import PackFile
from mailfs.store.records import Dictionary, no_dictionary

# By the number, where two were made in the same nanosecond.
_NEWEST = "SELECT dictionary_id FROM dictionary ORDER BY made_ns DESC, dictionary_id LIMIT 1"


class Dictionaries:
    """Dictionaries by id, each prepared once in a process. For any thread."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known: dict[int, Dictionary] = {}
        self._lock = threading.Lock()
        # None until somebody has asked; 0 where there is none.
        self._newest: int | None = None

    def find(self, wanted: int, pack: PackFile | None = None) -> Dictionary:
        """The dictionary of this id, where possible that of the pack whose record needs it. Raises Corrupt."""
        known = self._known.get(wanted)
        if known is not None:
            return known
        with self._lock:
            for found in self._iter_copies(wanted, pack):
                if found is not None and found.id == wanted:
                    return self._known.setdefault(wanted, found)
        return no_dictionary(wanted)

    def _iter_copies(self, wanted: int, pack: PackFile | None) -> Iterator[Dictionary | None]:
        if pack is not None:
            yield _of_pack_or_none(pack)
        yield self._of_index_or_none(wanted)
        for path in sorted(self._layout.packs.glob("*.pack")):
            if path.stem.isdigit():
                with suppress(MailfsError):
                    yield _of_pack_or_none(PackFile(path, PackNumber(int(path.stem))))

    def _of_index_or_none(self, wanted: int) -> Dictionary | None:
        with suppress(MailfsError), self._index() as connection:
            row = connection.execute(
                "SELECT bytes FROM dictionary WHERE dictionary_id = ?", (wanted,)
            ).fetchone()
            return None if row is None else Dictionary(row[0])
        return None

    @contextmanager
    def _index(self) -> Iterator[apsw.Connection]:
        """A connection of its own: the caller may be any thread, and have none. Raises MailfsError."""
        path = self._layout.index
        with translated(path):
            connection = open_reader(path)
            try:
                yield connection
            finally:
                close(connection, path)

    def keep(self, dictionary: Dictionary) -> None:
        """One that was just made: it can be found before anybody can read it anywhere."""
        self._known[dictionary.id] = dictionary

    def newest_or_none(self) -> Dictionary | None:
        """What new records are to be made with; None while there is none, and where it cannot be read.

        Asks the index once; what other processes have made since is seen after the next refresh().
        """
        if self._newest is None:
            try:
                with self._index() as connection:
                    self.refresh(connection)
            except MailfsError:
                return None  # who goes on to write will hear of it
        return self._newest_or_none()

    def refresh(self, connection: apsw.Connection) -> Dictionary | None:
        """The same, as the index says now. For who is connected to it."""
        row = connection.execute(_NEWEST).fetchone()
        self._newest = 0 if row is None else int(row[0])
        return self._newest_or_none()

    def _newest_or_none(self) -> Dictionary | None:
        if not self._newest:
            return None
        try:
            return self.find(self._newest)
        except Corrupt:
            return None


def _of_pack_or_none(pack: PackFile) -> Dictionary | None:
    with suppress(Corrupt):
        return pack.dictionary_or_none()
    return None
