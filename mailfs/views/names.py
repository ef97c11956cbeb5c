"""Names of messages in views, and messages by their names.

A message with rows in `entry` for a view has exactly those names there; any other has its canonical one. When some
other message's row claims a canonical name (an editor wrote a new message under it), its owner is called `<base>,C=1`.
Letters come from flags, from keywords that have a letter in this view, and from what a client wrote beside them.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

from mailfs.errors import NoSuchMessage
from mailfs.ids import Docid, SearchId
from mailfs.message.keywords import RECENT
from mailfs.message.maildir import (
    Base,
    ChosenName,
    format_base,
    format_name,
    parse_base_or_none,
    split_name,
)
from mailfs.search.match import matching
from mailfs.store.index import Index
from mailfs.store.source import IndexSource
from mailfs.store.store import Store
from mailfs.views.facts import Facts
from mailfs.views.letters import LetterMap
from mailfs.views.view import View

_NS = 1_000_000_000
# What the owner of a canonical name is called behind it, while another message has the name.
CLAIMED = b",C=1"


class Found(NamedTuple):
    """A message by its name. `entry` is the row of it, or what would be the row of its canonical name.

    `is_exact`: the name is the one a listing shows, not only one that means the same.
    """

    docid: Docid
    entry: ChosenName
    letters: bytes
    is_exact: bool


class Names:
    """What messages are called. Reads the index for what is not in memory; for the thread that serves requests."""

    def __init__(self, store: Store, facts: Facts) -> None:
        self._index = store.index
        self._source = IndexSource(store.index)
        self._store_id = store.layout.store_id
        self._facts = facts

    # --- canonical names

    def base_of(self, docid: Docid) -> bytes:
        """The canonical base name. The docid must be in `facts`."""
        received_s = self._facts.received_ns[docid] // _NS
        return format_base(Base(received_s, docid, self._store_id, self._facts.size[docid]))

    def docid_of_base_or_none(self, base: bytes) -> Docid | None:
        """The live message whose canonical base this is, exactly."""
        parsed = parse_base_or_none(base)
        if parsed is None or parsed.store_id != self._store_id:
            return None
        if not self.know(parsed.docid):
            return None
        return parsed.docid if self.base_of(parsed.docid) == base else None

    def know(self, docid: Docid) -> bool:
        """Put a live message into `facts`; False where there is none."""
        if docid not in self._facts:
            try:
                self._facts.put(self._index.entry(docid))
            except NoSuchMessage:
                return False
        return True

    # --- names in a view

    def rows(self, view: View, docid: Docid) -> tuple[ChosenName, ...]:
        """The names clients chose for a message; empty where it has its canonical one."""
        if view.is_loaded:
            return view.chosen.get(docid, ())
        search_id = view.search.search_id
        return tuple(
            row for search, _, row in self._index.chosen_names_of([docid]) if search == search_id
        )

    def entries(self, view: View, docid: Docid) -> tuple[ChosenName, ...]:
        """All entries of a message, one that was not chosen included. The docid must be in `facts`."""
        return self.rows(view, docid) or (ChosenName(self._free_base(view, docid)),)

    def _free_base(self, view: View, docid: Docid) -> bytes:
        base = self.base_of(docid)
        if view.is_loaded:
            return base + CLAIMED if base in view.claimed else base
        owner = self._index.docid_of_base_or_none(view.search.search_id, base)
        if owner in (None, docid) or not self.is_member(view, owner):
            return base
        return base + CLAIMED

    def is_member(self, view: View, docid: Docid) -> bool:
        """Whether a message is alive and in a view now."""
        if view.is_loaded:
            return docid in view
        return self.know(docid) and bool(matching(view.query, [docid], self._source, time.time()))

    def letters(self, view: View, docid: Docid, flags: int, extra: bytes = b"") -> bytes:
        """The letters a message's name has in a view with these flags."""
        own = b""
        if view.letters.keywords:
            own = self._own_letters(view, docid)
        return view.letters.letters(flags, own, extra)

    def _own_letters(self, view: View, docid: Docid) -> bytes:
        if view.is_loaded:
            return view.own_letters.get(docid, b"")
        return read_own_letters(self._index, view.letters, [docid]).get(docid, b"")

    def names(self, view: View, docid: Docid, flags: int) -> list[bytes]:
        """The names of a message in a view with these flags; one, nearly always."""
        in_new = bool(flags & RECENT)
        return [
            format_name(
                entry.base,
                self.letters(view, docid, flags, entry.extra),
                in_new=in_new,
                form=entry.form,
            )
            for entry in self.entries(view, docid)
        ]

    def find_or_none(self, view: View, name: bytes, *, in_new: bool) -> Found | None:
        """The live message a name in cur/ or new/ means now, a member or not. None unless the name is true."""
        base, letters = split_name(name)
        found = self.owner_or_none(view, base)
        if found is None:
            return None
        docid, entry = found
        flags = self._facts.flags_of(docid)
        if in_new != bool(flags & RECENT):
            return None
        shown = self.letters(view, docid, flags, entry.extra)
        # The same letters in another order, or none with and without `:2,`: the same name to a client.
        if bytes(sorted(letters or b"")) != shown:
            return None
        exact = format_name(entry.base, shown, in_new=in_new, form=entry.form)
        return Found(docid, entry, shown, is_exact=name == exact)

    def owner_or_none(self, view: View, base: bytes) -> tuple[Docid, ChosenName] | None:
        """The live message that has this base in a view, if it is a member of it, and the entry."""
        if not view.is_loaded or view.chosen:
            docid = self._index.docid_of_base_or_none(view.search.search_id, base)
            # The row of a message that has left the view claims nothing.
            if docid is not None and self.know(docid) and self.is_member(view, docid):
                for row in self.rows(view, docid):
                    if row.base == base:
                        return docid, row
                return None
        docid = self.docid_of_base_or_none(base.removesuffix(CLAIMED))
        if docid is None or self.rows(view, docid) or self._free_base(view, docid) != base:
            return None
        return docid, ChosenName(base)


def read_chosen(index: Index, search_id: SearchId) -> dict[Docid, tuple[ChosenName, ...]]:
    """All names clients chose in one view."""
    chosen: dict[Docid, tuple[ChosenName, ...]] = {}
    for docid, row in index.chosen_names(search_id):
        chosen[docid] = (*chosen.get(docid, ()), row)
    return chosen


def read_chosen_of(
    index: Index, docids: list[Docid]
) -> dict[SearchId, dict[Docid, tuple[ChosenName, ...]]]:
    """The names clients chose for some messages, by view."""
    chosen: dict[SearchId, dict[Docid, tuple[ChosenName, ...]]] = {}
    for search_id, docid, row in index.chosen_names_of(docids):
        of_view = chosen.setdefault(search_id, {})
        of_view[docid] = (*of_view.get(docid, ()), row)
    return chosen


def read_own_letters(
    index: Index, letters: LetterMap, docids: list[Docid] | None = None
) -> dict[Docid, bytes]:
    """The letters of messages' own keywords: of all that have any, or of these."""
    found: dict[Docid, bytes] = {}
    for letter, keyword in sorted(letters.keywords.items()):
        for docid in index.docids_with_keyword(keyword, docids):
            found[docid] = found.get(docid, b"") + bytes((letter,))
    return found


def iter_names(
    names: Names, view: View, facts: Facts, after: Docid, skip: int, *, in_new: bool
) -> Iterator[tuple[Docid, int, bytes]]:
    """Docid, number and name of every entry in one folder of a loaded view, behind entry `skip` of `after`."""
    wanted = RECENT if in_new else 0
    for number in view.iter_after(after - 1):
        docid = Docid(number)
        flags = facts.flags_of(docid)
        if flags & RECENT != wanted:
            continue
        for position, name in enumerate(names.names(view, docid, flags)):
            if docid != after or position > skip:
                yield docid, position, name
