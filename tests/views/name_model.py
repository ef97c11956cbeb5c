"""What names in views are to be, in plain Python: the model that test_name_histories.py holds two mounts against.

It has no index, no change feed and no caches, and knows nothing of mailfs but the words of its rules.
"""

import errno
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import NamedTuple

FLAGS = frozenset(b"DFPRS")
T = ord("T")
_NAME = re.compile(rb"(.*):2,([A-Za-z]*)", re.DOTALL)


class Refused(Exception):
    """What a client is answered; nothing has changed."""

    def __init__(self, code: int) -> None:
        super().__init__(errno.errorcode[code])
        self.errno = code


class Skipped(Exception):
    """The kernel answers this one itself, or two answers are as good."""


class Rule(NamedTuple):
    """A view: its query, and what entering does. Without `adds` rm expunges."""

    query: str
    adds: frozenset[str] = frozenset()
    removes: frozenset[str] = frozenset()
    sets: frozenset[int] = frozenset()
    clears: frozenset[int] = frozenset()


RULES = {
    "all": Rule("*"),
    "inbox": Rule("tag:inbox", adds=frozenset({"inbox"})),
    "work": Rule("tag:work", adds=frozenset({"work"})),
    "todo": Rule("tag:todo and not tag:inbox", frozenset({"todo"}), frozenset({"inbox"})),
    "unread": Rule("is:unread", clears=frozenset(b"S")),
    "flagged": Rule("is:flagged", sets=frozenset(b"F")),
}


@dataclass(frozen=True)
class Row:
    """A name's own letters, how it ends without any, and whether it is a copy."""

    extra: frozenset[int] = frozenset()
    form: str = "usual"
    is_copy: bool = False


@dataclass
class Mail:
    """A message. `deleted`: '' or whose it is to say so, the 'message' or its single 'entry's."""

    body: int
    base: bytes
    flags: frozenset[int] = frozenset()
    is_recent: bool = False
    deleted: str = ""
    keywords: frozenset[str] = frozenset()
    is_live: bool = True


class Split(NamedTuple):
    base: bytes
    letters: frozenset[int] | None


class Shown(NamedTuple):
    """A name in a view as one mount shows it."""

    docid: int
    base: bytes
    letters: frozenset[int]
    row: Row


def split(name: bytes) -> Split:
    found = _NAME.fullmatch(name)
    return Split(name, None) if found is None else Split(found[1], frozenset(found[2]))


def form_of(letters: frozenset[int] | None, folder: str) -> str:
    if folder == "new":
        return "usual" if letters is None else "info in new"
    return "bare in cur" if letters is None else "usual"


def join(base: bytes, letters: frozenset[int], folder: str, form: str) -> bytes:
    if letters:
        return base + b":2," + bytes(sorted(letters))
    has_info = form == "info in new" if folder == "new" else form != "bare in cur"
    return base + b":2," if has_info else base


@dataclass
class Model:
    """All of it. `letters` is a view's `dovecot-keywords`; `loaded` and `lingering` are of each mount."""

    mails: dict[int, Mail] = field(default_factory=dict)
    rows: dict[str, dict[int, dict[bytes, Row]]] = field(
        default_factory=lambda: {view: {} for view in RULES}
    )
    letters: dict[str, dict[int, str]] = field(default_factory=lambda: {view: {} for view in RULES})
    loaded: list[set[str]] = field(default_factory=lambda: [set(), set()])
    lingering: list[dict[str, set[int]]] = field(
        default_factory=lambda: [{view: set() for view in RULES} for _ in range(2)]
    )

    def copy(self) -> "Model":
        return deepcopy(self)

    # --- what is shown

    def matches(self, view: str, docid: int) -> bool:
        mail, rule = self.mails[docid], RULES[view]
        return (
            mail.is_live
            and rule.adds <= mail.keywords
            and not rule.removes & mail.keywords
            and rule.sets <= mail.flags
            and not rule.clears & mail.flags
        )

    def is_shown(self, mount: int, view: str, docid: int) -> bool:
        return self.matches(view, docid) or docid in self.lingering[mount][view]

    def entries(self, mount: int, view: str, docid: int) -> dict[bytes, Row]:
        rows = self.rows[view].get(docid)
        if rows:
            return rows
        base = self.mails[docid].base
        is_claimed = any(
            base in theirs and self.is_shown(mount, view, other)
            for other, theirs in self.rows[view].items()
        )
        return {base + b",C=1" if is_claimed else base: Row()}

    def letters_of(self, view: str, docid: int, row: Row) -> frozenset[int]:
        mail = self.mails[docid]
        letters = set(mail.flags) | (row.extra - {T})
        if mail.deleted == "message" or (mail.deleted == "entry" and T in row.extra):
            letters.add(T)
        for letter, word in self.letters[view].items():
            if word in mail.keywords or (word == "$forwarded" and ord("P") in mail.flags):
                letters.add(letter)
        return frozenset(letters)

    def shown(self, mount: int, view: str, folder: str) -> dict[bytes, Shown]:
        """The names one folder is to show."""
        found: dict[bytes, Shown] = {}
        for docid, mail in self.mails.items():
            if mail.is_recent == (folder == "new") and self.is_shown(mount, view, docid):
                for base, row in self.entries(mount, view, docid).items():
                    letters = self.letters_of(view, docid, row)
                    found[join(base, letters, folder, row.form)] = Shown(docid, base, letters, row)
        return found

    def owner_or_none(self, mount: int, view: str, base: bytes) -> int | None:
        for docid in self.mails:
            if self.is_shown(mount, view, docid) and base in self.entries(mount, view, docid):
                return docid
        return None

    def meets(self, mount: int, view: str, folder: str, name: bytes) -> Shown | None:
        """Who is found under a name: `x` and `x:2,` are the same to a client."""
        base, letters = split(name)
        for each in self.shown(mount, view, folder).values():
            if each.base == base and each.letters == (letters or frozenset()):
                return each
        return None

    # --- what clients do

    def set_rows(self, view: str, docid: int, rows: dict[bytes, Row]) -> None:
        for other in self.rows[view].keys() - {docid}:
            for base in rows:  # only a message that has left may have had it
                self.rows[view][other].pop(base, None)
        if not rows or rows == {self.mails[docid].base: Row()}:
            self.rows[view].pop(docid, None)
        else:
            self.rows[view][docid] = rows

    def settle(self) -> None:
        """What follows from any change."""
        for docid, mail in self.mails.items():
            if not mail.is_live:
                for of_view in self.rows.values():
                    of_view.pop(docid, None)
            said = any(T in row.extra for _, row in self._rows_of(docid))
            if mail.deleted == "entry" and not said:
                mail.deleted = ""
        for of_mount in self.lingering:
            for view, docids in of_mount.items():
                docids -= {
                    docid
                    for docid in docids
                    if not self.mails[docid].is_live or self.matches(view, docid)
                }

    def _rows_of(self, docid: int) -> Iterator[tuple[str, Row]]:
        for view, of_view in self.rows.items():
            for row in of_view.get(docid, {}).values():
                yield view, row

    def forget_stale(self) -> None:
        """Names of messages that have left a view somebody looks at."""
        for view, of_view in self.rows.items():
            for docid in list(of_view):
                if not self.matches(view, docid) and any(
                    view in self.loaded[mount] and docid not in self.lingering[mount][view]
                    for mount in range(2)
                ):
                    del of_view[docid]

    def remove_name(self, view: str, docid: int, base: bytes) -> None:
        """rm, and what a replaced message suffers."""
        others = self._others(view, docid, base)
        if others:
            self.set_rows(view, docid, others)
            return
        self._remove(view, docid)

    def _others(self, view: str, docid: int, base: bytes) -> dict[bytes, Row]:
        """The names beside this one. If all are copies, the first takes its place."""
        others = dict(self.rows[view].get(docid, {}))
        row = others.pop(base, Row())
        if others and all(each.is_copy for each in others.values()):
            first = min(others)
            others[first] = replace(others[first], is_copy=row.is_copy)
        return others

    def _remove(self, view: str, docid: int) -> None:
        mail, adds = self.mails[docid], RULES[view].adds
        copied_to = {
            other
            for other, row in self._rows_of(docid)
            if row.is_copy and other != view and self.matches(other, docid)
        }
        self.rows[view].pop(docid, None)
        if copied_to:
            self._end_copies(docid)
            if adds:
                mail.keywords -= adds
            else:
                kept = frozenset[str]().union(*(RULES[other].adds for other in copied_to))
                mail.keywords = mail.keywords & kept if kept else mail.keywords
            return
        mail.keywords -= adds
        if not adds or not mail.keywords:
            mail.is_live = False

    def _end_copies(self, docid: int) -> None:
        for of_view in self.rows.values():
            if docid in of_view:
                of_view[docid] = {
                    base: replace(row, is_copy=False) for base, row in of_view[docid].items()
                }

    def rename(
        self,
        mount: int,
        view: str,
        old: tuple[str, bytes],
        new: tuple[str, bytes],
        *,
        is_exclusive: bool,
    ) -> None:
        """Within a view."""
        folder, name = new
        found = self.shown(mount, view, old[0])[old[1]]
        base, letters = split(name)
        letters = letters or frozenset()
        target = self.meets(mount, view, folder, name)
        owner = self.owner_or_none(mount, view, base)
        if target is not None and target.docid == found.docid:
            raise Skipped
        if owner is not None and owner != found.docid:
            if is_exclusive or target is None:
                raise Refused(errno.EEXIST)
            self.remove_name(view, owner, base)
        mail, letter_map = self.mails[found.docid], self.letters[view]
        mail.flags = letters & FLAGS
        mail.is_recent = folder == "new"
        words = {word for word in letter_map.values() if word != "$forwarded"}
        mail.keywords = (mail.keywords - words) | {
            letter_map[letter] for letter in letters if letter_map.get(letter) in words
        }
        extra = letters - FLAGS - letter_map.keys()
        if mail.deleted == "message":
            mail.deleted = "message" if T in letters else ""
            extra = (extra - {T}) | (found.row.extra & letters & {T})
        elif T in letters:
            mail.deleted = "entry"
        row = Row(extra, form_of(split(name).letters, folder), found.row.is_copy)
        rows = self.rows[view].get(found.docid, {})
        others = {each: theirs for each, theirs in rows.items() if each not in (found.base, base)}
        self.set_rows(view, found.docid, {**others, base: row})
        if view in self.loaded[mount] and not self.matches(view, found.docid):
            self.lingering[mount][view].add(found.docid)

    def unlink(self, mount: int, view: str, folder: str, name: bytes) -> None:
        found = self.shown(mount, view, folder)[name]
        is_last = len(self.entries(mount, view, found.docid)) == 1
        self.remove_name(view, found.docid, found.base)
        if is_last:
            self.lingering[mount][view].discard(found.docid)

    def move(
        self,
        mount: int,
        old: tuple[str, str, bytes],
        new: tuple[str, str, bytes],
        *,
        is_exclusive: bool,
    ) -> None:
        """To another view."""
        view, folder, name = old
        found = self.shown(mount, view, folder)[name]
        self.enter(mount, new, found.docid, is_exclusive=is_exclusive, departure=(view, found.base))

    def enter(
        self,
        mount: int,
        new: tuple[str, str, bytes],
        docid: int,
        *,
        is_exclusive: bool,
        is_lenient: bool = False,
        departure: tuple[str, bytes] | None = None,
    ) -> None:
        """A message, live, expunged or just made (then with is_live false too), gets a name in a view."""
        view, folder, name = new
        base, letters = split(name)
        mail = self.mails[docid]
        is_new = not mail.is_live
        target = self.meets(mount, view, folder, name)
        owner = self.owner_or_none(mount, view, base)
        is_other = owner is not None and owner != docid
        if not is_lenient and is_other and (is_exclusive or target is None):
            raise Refused(errno.EEXIST)
        if target is not None and target.docid == docid:
            raise Skipped
        rows: dict[bytes, Row] = {}
        if not is_new and self.matches(view, docid):
            rows = dict(self.entries(mount, view, docid))
        said = letters or frozenset()
        extra = said - FLAGS - self.letters[view].keys()
        if (base in rows and extra) or (T in said and mail.deleted == "message"):
            raise Skipped
        if is_new:
            mail.flags, mail.keywords, mail.deleted = frozenset(), frozenset(), ""
        mail.is_live = True
        if owner is not None and is_other and not is_lenient:
            mail.keywords |= self._lost(view, owner, base)
        is_moved = self._depart(docid, departure)
        # A copy of who is known does not go back to new/: between two listings it would be in neither folder.
        mail.is_recent = folder == "new" and (is_new or mail.is_recent or departure is not None)
        self._meet(view, docid, said, is_moved=is_moved)
        if not self.matches(view, docid):
            raise Refused(errno.EPERM)
        if T in said:
            mail.deleted = "entry"
        if base not in rows and not (is_lenient and is_other):
            row = Row(extra, form_of(letters, folder), is_copy=not (is_new or is_moved))
            rows[base] = row
        self.set_rows(view, docid, rows)

    def _meet(self, view: str, docid: int, said: frozenset[int], *, is_moved: bool) -> None:
        """Make a view's query true, and what a name says."""
        mail, rule, words = self.mails[docid], RULES[view], self.letters[view]
        before = frozenset[int]() if is_moved else mail.flags
        mail.flags = (before | (said & FLAGS) | rule.sets) - rule.clears
        own = {words[each] for each in said & words.keys()} - {"$forwarded"}
        mail.keywords = ((mail.keywords | rule.adds) - rule.removes) | own

    def _lost(self, view: str, docid: int, base: bytes) -> frozenset[str]:
        """What keywords a replaced message loses with its name."""
        before = self.mails[docid].keywords
        self.remove_name(view, docid, base)
        mail = self.mails[docid]
        return before - mail.keywords if mail.is_live else before

    def _depart(self, docid: int, departure: tuple[str, bytes] | None) -> bool:
        """Whether it leaves: a label view, or one of its names."""
        if departure is None:
            return False
        view, base = departure
        others = self._others(view, docid, base)
        if others:
            self.set_rows(view, docid, others)
            return True
        if not RULES[view].adds:
            return False
        self.rows[view].pop(docid, None)
        self.mails[docid].keywords -= RULES[view].adds
        return True

    # --- what others do

    def write_letters(self, view: str, letters: dict[int, str]) -> None:
        """Letters that names had for themselves are keywords from now on."""
        self.letters[view] = letters
        for docid, rows in self.rows[view].items():
            mail = self.mails[docid]
            for base, row in rows.items():
                for letter in row.extra & letters.keys():
                    if letters[letter] == "$forwarded":
                        mail.flags |= {ord("P")}
                    else:
                        mail.keywords |= {letters[letter]}
                rows[base] = replace(row, extra=row.extra - letters.keys())
        for docid, rows in list(self.rows[view].items()):
            self.set_rows(view, docid, rows)

    def say_deleted(self, docid: int, *, is_deleted: bool) -> None:
        """Said of the message: in all views, whatever entries said."""
        self.mails[docid].deleted = "message" if is_deleted else ""
        for of_view in self.rows.values():
            rows = of_view.get(docid, {})
            for base, row in rows.items():
                rows[base] = replace(row, extra=row.extra - {T})
