"""A message's entries in one view, within a transaction: decided by what the store says then, not when it was planned.

Between a plan and its transaction another client may have made a copy, or taken the name.
"""

import errno
from collections.abc import Iterable

from mailfs.errors import Busy, EditRefused, NoSuchSearch, NotFound, QuerySyntaxError
from mailfs.ids import Docid, Keyword
from mailfs.message.maildir import ChosenName, parse_base_or_none
from mailfs.search.query import parse_query
from mailfs.search.tree import label_rule
from mailfs.store.transaction import Transaction
from mailfs.views.names import CLAIMED
from mailfs.views.view import View

# Entries of one message in one view: a listing numbers them in eight bits.
MAX_NAMES = 200


class ViewEntries:
    """The entries of one view as a transaction sees and changes them."""

    def __init__(self, tx: Transaction, view: View) -> None:
        """Raises NoSuchSearch for a view that was forgotten since the plan was made, Busy for one with a new query."""
        if tx.searches.query(view.search.search_id) != view.search.query:
            raise Busy(f"the search {view.search.name} has just been changed: try again")
        self._tx = tx
        self._view = view
        self._search_id = view.search.search_id

    def is_shown(self, docid: Docid) -> bool:
        """Whether the view's query matches a live message now."""
        return self._tx.is_live(docid) and self._tx.matches(self._view.query, docid)

    def names(self, docid: Docid) -> set[ChosenName]:
        """The entries of a member: its rows, or its one canonical entry."""
        rows = set(self._tx.entries.names(self._search_id, docid))
        return rows or {self._implicit(docid)}

    def _implicit(self, docid: Docid) -> ChosenName:
        base = self._tx.base_of(docid)
        owner = self._row_owner_or_none(base)
        return ChosenName(base if owner in (None, docid) else base + CLAIMED)

    def owner_or_none(self, base: bytes) -> Docid | None:
        """The message that has this base in the view, by a row or because it is its canonical one."""
        tx = self._tx
        owner = self._row_owner_or_none(base)
        if owner is None:
            parsed = parse_base_or_none(base.removesuffix(CLAIMED))
            if (
                parsed is not None
                and tx.is_live(parsed.docid)
                and not tx.entries.names(self._search_id, parsed.docid)
                and self._implicit(parsed.docid).base == base
                and self.is_shown(parsed.docid)
            ):
                owner = parsed.docid
        return owner

    def _row_owner_or_none(self, base: bytes) -> Docid | None:
        """The message that has a row of this base. One of a message that has left is removed."""
        owner = self._tx.entries.docid_or_none(self._search_id, base)
        if owner is not None and not self.is_shown(owner):
            self._tx.entries.remove(self._search_id, base)
            return None
        return owner

    def put(self, docid: Docid, names: Iterable[ChosenName]) -> None:
        """Make these a member's entries. Raises EditRefused: EEXIST where one is another's, EMLINK for too many."""
        tx, wanted = self._tx, set(names)
        if len(wanted) > MAX_NAMES:
            raise EditRefused(f"a view shows at most {MAX_NAMES} copies of a message", errno.EMLINK)
        if wanted == {ChosenName(tx.base_of(docid))}:
            wanted = set()
        before = tx.entries.names(self._search_id, docid)
        bases = {name.base for name in wanted}
        for row in before:
            if row.base not in bases:
                tx.entries.remove(self._search_id, row.base)
        for name in sorted(wanted - set(before)):
            # A canonical name gives way to a row, and its owner is called otherwise.
            if self._row_owner_or_none(name.base) not in (None, docid):
                raise EditRefused(f"{name.base!r} is the name of another message", errno.EEXIST)
            tx.entries.put(self._search_id, docid, name)
        tx.settle_deleted(docid)

    def rename(self, docid: Docid, base: bytes, name: ChosenName) -> None:
        """Give one entry another name. Raises NotFound when it is not there any more."""
        names = self._without(docid, base)
        self.put(docid, {each for each in names if each.base != name.base} | {name})

    def drop(self, docid: Docid, base: bytes) -> bool:
        """Remove one entry; True where it was the last, which is the caller's to act on. Raises NotFound.

        Of those that stay one takes the place of what it was copied from.
        """
        rows = self._tx.entries.names(self._search_id, docid)
        names = sorted(self._without(docid, base))
        if not names:
            self._tx.entries.remove_all(self._search_id, docid)
            return True
        if all(name.is_copy for name in names):
            is_copy = all(row.is_copy for row in rows if row.base == base)
            names[0] = names[0]._replace(is_copy=is_copy)
        self.put(docid, names)
        return False

    def _without(self, docid: Docid, base: bytes) -> set[ChosenName]:
        tx = self._tx
        rows = set(tx.entries.names(self._search_id, docid))
        left = {row for row in rows if row.base != base}
        is_there = len(left) < len(rows)
        if not rows and tx.is_live(docid):
            # To a view in which another message lingers under it, the canonical name may be taken or not.
            is_there = base.removesuffix(CLAIMED) == tx.base_of(docid)
        if not is_there:
            raise NotFound(f"the entry {base!r} has been renamed or removed")
        return left

    def kept_by_copies(self, docid: Docid) -> frozenset[Keyword] | None:
        """The keywords that hold copies of a message in other views; None where there is no copy."""
        tx = self._tx
        kept: set[Keyword] = set()
        is_copied = False
        for search_id in tx.entries.copies(docid) - {self._search_id}:
            try:
                query = parse_query(tx.searches.query(search_id))
            except (NoSuchSearch, QuerySyntaxError):
                continue  # nobody is shown that copy
            if tx.matches(query, docid):
                is_copied = True
                rule = label_rule(query)
                kept |= frozenset() if rule is None else rule.adds
        return frozenset(kept) if is_copied else None
