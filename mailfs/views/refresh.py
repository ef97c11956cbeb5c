"""Changes in the store -> differences of the views -> names the kernel must forget. Pure data comes out.

Nothing is pushed: refresh() reads what was committed since the tree's modseq, by whatever process, and asks each loaded
view for the changed messages only. evaluate() asks a whole query anew, in a thread, with its own connection.
"""

import functools
import operator
import time
from array import array
from dataclasses import replace

from mailfs.ids import Docid, Ino
from mailfs.message.keywords import RECENT
from mailfs.message.maildir import ChosenName
from mailfs.search.match import matching
from mailfs.search.plan import plan
from mailfs.search.tree import depends_on_now, depends_on_threads
from mailfs.store.index import EntryRow, Index
from mailfs.store.layout import Layout
from mailfs.store.source import PrefetchedSource
from mailfs.views.facts import Facts
from mailfs.views.files import area_of
from mailfs.views.letters import NO_LETTERS, FileStamp, read_letters, stamp_or_none
from mailfs.views.names import read_chosen, read_chosen_of, read_own_letters
from mailfs.views.tree import Invalidation, Kind, Tree
from mailfs.views.view import Evaluation, View

# How long a message that was read in `unread` stays there after its reader was last seen.
LINGER_S = 300.0
# A relative date moves at midnight, or with the hour; a listing may be this much late.
CLOCK_STEP_S = 60.0
# A view of 1,000,000 messages takes some three seconds; the client that opened it waits.
EVALUATION_DEADLINE_S = 120.0
_FILL_ROWS = 1000


def evaluate(layout: Layout, view: View, facts: Facts) -> Evaluation:
    """Ask a view's query for all its members, and for their names. For a worker thread: opens its own connection.

    Facts of messages nobody has shown yet are filled in on the way. Raises Busy after EVALUATION_DEADLINE_S.
    """
    index = Index(layout)
    index.give_up_after(EVALUATION_DEADLINE_S)
    try:
        with index.snapshot():
            modseq = index.state().modseq
            docids = array("Q")
            absent: list[EntryRow] = []
            for row in index.iter_entries(plan(view.query, time.time())):
                docids.append(row.docid)
                if row.docid not in facts:
                    absent.append(row)
                    if len(absent) >= _FILL_ROWS:
                        facts.fill(absent)
                        absent.clear()
            facts.fill(absent)
            return _with_names(layout, index, view, Evaluation(modseq, docids))
    finally:
        index.close()


def _with_names(layout: Layout, index: Index, view: View, found: Evaluation) -> Evaluation:
    search_id = view.search.search_id
    area = area_of(layout, search_id, "", view.search.name)
    stamp = stamp_or_none(area)
    letters = read_letters(area) if stamp is not None else NO_LETTERS
    chosen = read_chosen(index, search_id)
    members = set(found.docids) if chosen else set()
    stale = tuple(docid for docid in chosen if docid not in members)
    for docid in stale:
        if docid not in view.lingering:
            del chosen[docid]
    return replace(
        found,
        chosen=chosen,
        letters=letters,
        letters_stamp=stamp,
        own_letters=read_own_letters(index, letters),
        stale=stale,
    )


def needs_evaluation(tree: Tree, view: View) -> bool:
    """Whether a view must be asked whole before it is listed.

    Changes reach a loaded view one by one, but a relative date moves with the clock, and a thread's members with
    messages that are not among them.
    """
    if not view.is_loaded:
        return True
    if depends_on_now(view.query) and time.monotonic() - view.evaluated_s > CLOCK_STEP_S:
        return True
    return depends_on_threads(view.query) and view.evaluated_modseq != tree.modseq


def install(tree: Tree, view: View, evaluation: Evaluation) -> list[Invalidation]:
    """Make an evaluation a view's members, brought up to now. On the thread that serves requests."""
    invalidations = refresh(tree)
    if view.is_loaded:
        invalidations += sync_letters(tree, view)
        invalidations += _replace(tree, view, evaluation)
    else:
        view.load(evaluation)
    search_id = view.search.search_id
    tree.stale_names |= {
        (search_id, docid) for docid in evaluation.stale if docid not in view.lingering
    }
    missed = tree.store.index.changes_since(evaluation.modseq)
    _update_view(tree, view, _Changes(tree.store.index, missed), invalidations)
    # What was read for the evaluation may be older than a change of a message nobody had shown till then.
    _update_facts(tree, missed)
    return invalidations


def _update_facts(tree: Tree, rows: list[EntryRow]) -> None:
    for row in rows:
        if row.expunged:
            tree.facts.drop(row.docid)
        elif row.docid in tree.facts:
            tree.facts.put(row)


def _replace(tree: Tree, view: View, evaluation: Evaluation) -> list[Invalidation]:
    before, after = set(map(Docid, view.docids)), set(map(Docid, evaluation.docids))
    invalidations = [
        invalidation
        for docid in sorted(before - after - view.lingering)
        for invalidation in _leave(tree, view, docid, is_expunged=False)
    ]
    arrived = sorted(after - before)
    own_letters = read_own_letters(tree.store.index, view.letters, arrived)
    for docid in arrived:
        view.add(docid)
        view.set_chosen(docid, evaluation.chosen.get(docid, ()))
        if docid in own_letters:
            view.own_letters[docid] = own_letters[docid]
        view.touch(in_new=bool(tree.facts.flags_of(docid) & RECENT))
    view.lingering -= after
    view.evaluated_modseq = evaluation.modseq
    view.evaluated_s = time.monotonic()
    return invalidations


def refresh(tree: Tree) -> list[Invalidation]:
    """Bring the tree up to what is committed. Some microseconds when nothing is new.

    After an error some views may be ahead of others; the next call brings all of them up, and gives what this
    one owed.
    """
    index = tree.store.index
    data_version = index.data_version()
    if data_version == tree.data_version:
        return []
    owed = tree.owed_invalidations
    with index.snapshot():
        state = index.state()
        if state.searches_modseq != tree.searches_modseq:
            owed += _reload_searches(tree)
        if state.modseq != tree.modseq:
            changes = _Changes(index, index.changes_since(tree.modseq))
            for view in tree.views.values():
                if view.is_loaded:
                    _update_view(tree, view, changes, owed)
                elif changes.rows:
                    view.touch(in_new=True)
                    view.touch(in_new=False)
            _update_facts(tree, changes.rows)
    tree.data_version = data_version
    tree.modseq, tree.searches_modseq = state
    tree.owed_invalidations = []
    return owed


def _reload_searches(tree: Tree) -> list[Invalidation]:
    before = _shown(tree)
    tree.reload_searches()
    after = _shown(tree)
    # The view stands beside the inode: a search that means something else now shows other entries in the
    # same cur and new, and with the folder the kernel forgets what is in it.
    return [
        Invalidation(parent, name)
        for (parent, name), (ino, view) in before.items()
        if (parent, name) not in after
        or after[parent, name][0] != ino
        or after[parent, name][1] is not view
    ]


def _shown(tree: Tree) -> dict[tuple[Ino, bytes], tuple[Ino, View | None]]:
    return {
        (directory.ino, entry.name): (entry.directory.ino, entry.directory.view)
        for directory in tree.iter_directories()
        for entry in tree.entries(directory)
    }


class _Changes:
    """Changed messages, and what all views ask about them, read once."""

    def __init__(self, index: Index, rows: list[EntryRow]) -> None:
        self.index = index
        self.rows = rows
        self.living = [row.docid for row in rows if not row.expunged]
        self.source = PrefetchedSource(index, frozenset(self.living))
        self.chosen = read_chosen_of(index, self.living) if self.living else {}


def _update_view(
    tree: Tree, view: View, changes: _Changes, invalidations: list[Invalidation]
) -> None:
    """Move a view's members and mtimes after these changes. `tree.facts` still holds the facts before them."""
    living = changes.living
    members = matching(view.query, living, changes.source, time.time()) if living else set()
    chosen = changes.chosen.get(view.search.search_id, {})
    own_letters: dict[Docid, bytes] = {}
    if view.letters.keywords and living:
        own_letters = read_own_letters(changes.index, view.letters, living)
    for row in changes.rows:
        was_member = row.docid in view
        is_member = row.docid in members
        lingers = (
            was_member
            and not is_member
            and not row.expunged
            and (row.docid in view.lingering or row.docid in view.being_edited)
        )
        if lingers:
            view.lingering.add(row.docid)
        elif is_member:
            view.lingering.discard(row.docid)
        if was_member and not (is_member or lingers):
            if row.docid in chosen:
                tree.stale_names.add((view.search.search_id, row.docid))
            invalidations += _leave(tree, view, row.docid, is_expunged=bool(row.expunged))
        elif was_member or is_member:
            names = chosen.get(row.docid, ())
            letters = own_letters.get(row.docid, b"")
            invalidations += _update_entry(tree, view, row, names, letters)
        elif row.docid in chosen:  # to another mount it lingers, and was given a name there
            tree.stale_names.add((view.search.search_id, row.docid))


def _update_entry(
    tree: Tree, view: View, row: EntryRow, chosen: tuple[ChosenName, ...], own_letters: bytes
) -> list[Invalidation]:
    """Make a message a member, or change what a member is called."""
    docid = row.docid
    was_member = docid in view
    # Nearly every change is of flags in a view of canonical names, where nothing but flags makes the name.
    if (
        was_member
        and tree.facts.flags_of(docid) == row.flags
        and view.has_plain_names
        and not chosen
    ):
        return []
    others = _owners_of_claimed(tree, view, (*view.chosen.get(docid, ()), *chosen)) - {docid}
    before = _names_of_all(tree, view, others)
    if was_member:
        before |= _shown_names(tree, view, docid, tree.facts.flags_of(docid))
    if docid not in tree.facts:
        tree.facts.put(row)
    if not was_member:
        view.add(docid)
    view.set_chosen(docid, chosen)
    if own_letters:
        view.own_letters[docid] = own_letters
    else:
        view.own_letters.pop(docid, None)
    after = _shown_names(tree, view, docid, row.flags) | _names_of_all(tree, view, others)
    for kind in {kind for kind, _ in before ^ after}:
        view.touch(in_new=kind == Kind.NEW)
    return _invalidations(tree, view, before - after)


def _owners_of_claimed(tree: Tree, view: View, rows: tuple[ChosenName, ...]) -> set[Docid]:
    """Members whose canonical names are among these: they are called otherwise while another message has them."""
    owners = (tree.names.docid_of_base_or_none(row.base) for row in rows)
    return {owner for owner in owners if owner is not None and owner in view}


def _names_of_all(tree: Tree, view: View, docids: set[Docid]) -> set[tuple[Kind, bytes]]:
    return {
        name
        for docid in docids
        for name in _shown_names(tree, view, docid, tree.facts.flags_of(docid))
    }


def _leave(tree: Tree, view: View, docid: Docid, *, is_expunged: bool) -> list[Invalidation]:
    flags = tree.facts.flags_of(docid)
    others = _owners_of_claimed(tree, view, view.chosen.get(docid, ())) - {docid}
    before = _shown_names(tree, view, docid, flags) | _names_of_all(tree, view, others)
    if docid in view.chosen and not is_expunged:
        tree.stale_names.add((view.search.search_id, docid))
    view.remove(docid)
    after = _names_of_all(tree, view, others)
    view.touch(in_new=bool(flags & RECENT))
    for kind in {kind for kind, _ in before ^ after}:
        view.touch(in_new=kind == Kind.NEW)
    return _invalidations(tree, view, before - after)


def stop_lingering(tree: Tree, view: View, docid: Docid) -> list[Invalidation]:
    """The reader took a message out of the view: it does not stay for it any longer."""
    view.lingering.discard(docid)
    if docid not in view or matching(view.query, [docid], tree.source, time.time()):
        return []
    return _leave(tree, view, docid, is_expunged=False)


def _shown_names(tree: Tree, view: View, docid: Docid, flags: int) -> set[tuple[Kind, bytes]]:
    kind = Kind.NEW if flags & RECENT else Kind.CUR
    return {(kind, name) for name in tree.names.names(view, docid, flags)}


def _invalidations(tree: Tree, view: View, names: set[tuple[Kind, bytes]]) -> list[Invalidation]:
    return [Invalidation(tree.subfolder_ino(view, kind), name) for kind, name in sorted(names)]


def other_names(tree: Tree, docid: Docid) -> list[Invalidation]:
    """The names of a message that has lost one: the kernel has counted its links down, perhaps to none.

    It refuses link(2) of an inode without links, whose name it keeps, until it has asked for that name again.
    """
    if docid not in tree.facts:
        return []
    flags = tree.facts.flags_of(docid)
    return [
        invalidation
        for view in tree.views.values()
        if view.is_loaded and docid in view
        for invalidation in _invalidations(tree, view, _shown_names(tree, view, docid, flags))
    ]


def sync_letters(tree: Tree, view: View) -> list[Invalidation]:
    """Read a view's keywords file again when it is another one than the last time: letters mean something else."""
    area = area_of(tree.store.layout, view.search.search_id, "", view.search.name)
    stamp = stamp_or_none(area)
    if stamp == view.letters_stamp:
        return []
    return _take_letters(tree, view, area, stamp)


def _take_letters(
    tree: Tree, view: View, area: bytes, stamp: FileStamp | None
) -> list[Invalidation]:
    letters = read_letters(area) if stamp is not None else NO_LETTERS
    view.letters_stamp = stamp
    if letters == view.letters:
        return []
    own_letters: dict[Docid, bytes] = {}
    if view.is_loaded:
        own_letters = read_own_letters(tree.store.index, letters)
    other_letters = view.letters.flags.items() ^ letters.flags.items()
    mapped = functools.reduce(operator.or_, (bit for _, bit in other_letters), 0)
    concerned = [
        Docid(docid)
        for docid in view.docids
        if own_letters.get(Docid(docid)) != view.own_letters.get(Docid(docid))
        or tree.facts.flags_of(Docid(docid)) & mapped
    ]
    before = {
        docid: _shown_names(tree, view, docid, tree.facts.flags_of(docid)) for docid in concerned
    }
    view.letters, view.own_letters = letters, own_letters
    invalidations: list[Invalidation] = []
    for docid, names in before.items():
        after = _shown_names(tree, view, docid, tree.facts.flags_of(docid))
        for kind in {kind for kind, _ in names ^ after}:
            view.touch(in_new=kind == Kind.NEW)
        invalidations += _invalidations(tree, view, names - after)
    return invalidations


def end_lingering(tree: Tree, now_s: float) -> list[Invalidation]:
    """Let go of lingering members whose reader has not been seen for LINGER_S. `now_s` is monotonic."""
    return [
        invalidation
        for view in tree.views.values()
        if view.lingering and not view.open_handles and now_s - view.last_used_s > LINGER_S
        for docid in sorted(view.lingering)
        for invalidation in _leave(tree, view, docid, is_expunged=False)
    ]
