"""One view takes changes: who becomes a member, who leaves, what members are called. News for the kernel come out.

The query is asked for the changed messages only. What another message's change can do to a message is a matter of
conversations alone (`thread:{...}`), so such a view is asked for whole conversations.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from types import MappingProxyType

from mailfs.ids import Docid
from mailfs.message.keywords import RECENT
from mailfs.message.maildir import ChosenName
from mailfs.search.match import matching
from mailfs.search.plan import Plan
from mailfs.store.index import EntryRow, Index, Which
from mailfs.store.source import PrefetchedSource
from mailfs.views.names import read_chosen_of, read_own_letters
from mailfs.views.tree import FoldersChanged, Invalidation, Kind, NameChange, News, Shown, Tree
from mailfs.views.view import View

# So many messages of a view are told one by one when they change at once: more than their watchers are told in a second
# by far, and some ten milliseconds of work.
MOST_TOLD = 2000


class Changed:
    """Changed messages, and what all views ask about them, read once."""

    def __init__(self, index: Index, rows: list[EntryRow]) -> None:
        self.index = index
        self.rows = rows
        self.living = [row.docid for row in rows if not row.expunged]
        self.source = PrefetchedSource(index, frozenset(self.living))
        self.chosen = read_chosen_of(index, self.living) if self.living else {}
        self._with_threads: Changed | None = None

    def with_threads(self) -> "Changed":
        """These and all messages of their conversations. A message that changes conversations is itself changed."""
        if self._with_threads is None:
            rows = {row.docid: row for row in self.rows}
            beside = self.index.docids_of_threads_of(list(rows)) - rows.keys()
            rows |= {row.docid: row for row in self.index.entries(sorted(beside))}
            widened = Changed(self.index, [rows[docid] for docid in sorted(rows)])
            self._with_threads = widened if beside else self
        return self._with_threads


def update_facts(tree: Tree, rows: Iterable[EntryRow]) -> None:
    """Make the tree's facts those after changes; views must have taken these before."""
    for row in rows:
        if row.expunged:
            tree.facts.drop(row.docid)
        elif row.docid in tree.facts:
            tree.facts.put(row)


def reclaimed_rows(tree: Tree) -> list[EntryRow]:
    """Messages some view has shown that are gone without a trace, as expunged ones.

    They were expunged, and reclaimed, while nobody looked.
    """
    known = set(tree.store.index.docids(Plan("1", ()), which=Which.ALL))
    return [EntryRow(docid, 0, 1, 0, 0, 0) for docid in tree.facts.docids() if docid not in known]


def update_view(tree: Tree, view: View, changed: Changed, news: list[News]) -> None:
    """Move a view's members and mtimes after these changes. `tree.facts` still holds the facts before them."""
    if view.follows_threads:
        changed = changed.with_threads()
    members = _members(view, changed)
    chosen = changed.chosen.get(view.search.search_id, {})
    concerned = {
        row.docid: row
        for row in changed.rows
        if (row.docid in members or row.docid in view or row.docid in chosen)
        and not _is_called_the_same(tree, view, row, members, chosen)
    }
    if not concerned:
        return
    own_letters: dict[Docid, bytes] = {}
    if view.letters.keywords:
        own_letters = read_own_letters(changed.index, view.letters, list(concerned))
    claims = [
        row for docid in concerned for row in (*view.chosen.get(docid, ()), *chosen.get(docid, ()))
    ]
    others = _owners_of_claimed(tree, view, claims)
    are_told = len(concerned) <= MOST_TOLD
    before = names_of(tree, view, concerned.keys() | others) if are_told else {}
    for docid, row in concerned.items():
        if docid in members or _lingers(view, row):
            _keep(tree, view, row, chosen.get(docid, ()), own_letters.get(docid, b""))
            (view.lingering.discard if docid in members else view.lingering.add)(docid)
            continue
        # Also where it lingers to another mount, and was given a name there.
        if docid in chosen or (docid in view.chosen and not row.expunged):
            tree.stale_names.add((view.search.search_id, docid))
        if docid in view:
            view.remove(docid)
    if not are_told:
        view.touch(in_new=True)
        view.touch(in_new=False)
        news.append(FoldersChanged(view))
        return
    flags = {docid: row.flags for docid, row in concerned.items()}
    tell(view, before, names_of(tree, view, before.keys(), flags), news)


def keep_former_names(tree: Tree, view: View, changed: Changed) -> None:
    """Remember what changed messages were called in a view before its query was edited, until it is loaded again."""
    if view.former is None:
        return
    kept = tree.former_names.setdefault(view.search.search_id, {})
    concerned = [row.docid for row in changed.rows if row.docid in view.former]
    for docid in concerned[:MOST_TOLD]:
        flags = tree.facts.flags_of(docid)
        kept.setdefault(docid, shown_names(tree, view.former, docid, flags))


def _members(view: View, changed: Changed) -> set[Docid]:
    """Which of the changed messages match, by the clock the other members were judged by.

    What a label view requires is seen without asking.
    """
    if not changed.living or (view.rule and not view.rule.adds <= changed.source.keywords):
        return set()
    return matching(view.query, changed.living, changed.source, view.asked_s)


def _is_called_the_same(
    tree: Tree,
    view: View,
    row: EntryRow,
    members: AbstractSet[Docid],
    chosen: Mapping[Docid, tuple[ChosenName, ...]],
) -> bool:
    """Nearly every change is of flags in a view of canonical names, where nothing but flags makes the name."""
    docid = row.docid
    return (
        docid in members
        and docid in view
        and docid not in view.lingering
        and tree.facts.flags_of(docid) == row.flags
        and view.has_plain_names
        and docid not in chosen
    )


def _lingers(view: View, row: EntryRow) -> bool:
    if row.expunged or row.docid not in view:
        return False
    return row.docid in view.lingering or row.docid in view.being_edited


def _keep(
    tree: Tree, view: View, row: EntryRow, chosen: tuple[ChosenName, ...], own_letters: bytes
) -> None:
    """Make a message a member, if it is none, and take what it is called by."""
    docid = row.docid
    if docid not in tree.facts:
        tree.facts.put(row)
    if docid not in view:
        view.add(docid)
    view.set_chosen(docid, chosen)
    if own_letters:
        view.own_letters[docid] = own_letters
    else:
        view.own_letters.pop(docid, None)


def leave(tree: Tree, view: View, docid: Docid, news: list[News]) -> None:
    """Take a member out of a view."""
    others = _owners_of_claimed(tree, view, view.chosen.get(docid, ()))
    before = names_of(tree, view, {docid, *others})
    if docid in view.chosen:
        tree.stale_names.add((view.search.search_id, docid))
    view.remove(docid)
    tell(view, before, names_of(tree, view, before.keys()), news)


def tell(
    view: View,
    before: dict[Docid, frozenset[Shown]],
    after: dict[Docid, frozenset[Shown]],
    news: list[News],
) -> None:
    """Move the times of folders in which a name was made or went, and say which. The keys are the same."""
    folders: set[Kind] = set()
    for docid, names in before.items():
        if names != after[docid]:
            folders |= {kind for kind, _ in names ^ after[docid]}
            news.append(NameChange(view, docid, names, after[docid]))
    for kind in folders:
        view.touch(in_new=kind == Kind.NEW)


def _owners_of_claimed(tree: Tree, view: View, rows: Iterable[ChosenName]) -> set[Docid]:
    """Members whose canonical names are among these: they are called otherwise while another message has them."""
    owners = (tree.names.docid_of_base_or_none(row.base) for row in rows)
    return {owner for owner in owners if owner is not None and owner in view}


def names_of(
    tree: Tree,
    view: View,
    docids: Iterable[Docid],
    flags: Mapping[Docid, int] = MappingProxyType({}),
) -> dict[Docid, frozenset[Shown]]:
    """What messages are called in a view, with these flags, else those of the facts; who is no member has no name."""
    return {
        docid: (
            shown_names(tree, view, docid, flags.get(docid, tree.facts.flags_of(docid)))
            if docid in view
            else frozenset()
        )
        for docid in docids
    }


def shown_names(tree: Tree, view: View, docid: Docid, flags: int) -> frozenset[Shown]:
    """What a message is called in a view with these flags."""
    kind = Kind.NEW if flags & RECENT else Kind.CUR
    if view.has_plain_names and view.is_loaded:
        return frozenset(((kind, tree.name_of(docid, flags)),))
    return frozenset((kind, name) for name in tree.names.names(view, docid, flags))


def stop_lingering(tree: Tree, view: View, docid: Docid) -> list[News]:
    """The reader took a message out of the view: it does not stay for it any longer."""
    view.lingering.discard(docid)
    if docid not in view or matching(view.query, [docid], tree.source, view.asked_s):
        return []
    news: list[News] = []
    leave(tree, view, docid, news)
    return news


def end_lingering(tree: Tree, now_s: float) -> list[News]:
    """Let go of lingering members whose reader has not been seen for `tree.linger_s`. `now_s` is monotonic."""
    owed = tree.owed_news  # as in refresh()
    for view in tree.views.values():
        is_over = (
            view.is_loaded and not view.open_handles and now_s - view.last_used_s > tree.linger_s
        )
        for docid in sorted(view.lingering) if is_over else ():
            leave(tree, view, docid, owed)
    tree.owed_news = []
    return owed


def other_names(tree: Tree, docid: Docid) -> list[News]:
    """The names of a message that has lost one: the kernel has counted its links down, perhaps to none.

    It refuses link(2) of an inode without links, whose name it keeps, until it has asked for that name again.
    """
    if docid not in tree.facts:
        return []
    return [
        invalidation
        for view in tree.views.values()
        if view.is_loaded and docid in view
        for invalidation in forgotten(
            tree, view, shown_names(tree, view, docid, tree.facts.flags_of(docid))
        )
    ]


def forgotten(tree: Tree, view: View, names: Iterable[Shown]) -> list[News]:
    """Names of a view the kernel is to ask for again."""
    return [Invalidation(tree.subfolder_ino(view, kind), name) for kind, name in sorted(names)]
