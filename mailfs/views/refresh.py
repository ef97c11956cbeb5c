"""Changes in the store -> differences of the views -> names the kernel must forget. Pure data comes out.

Nothing is pushed: refresh() reads what was committed since the tree's modseq, by whatever process, and asks each loaded
view for the changed messages only. evaluate() asks a whole query anew, in a thread, with its own connection.
"""

import time
from array import array

from mailfs.ids import Docid, Ino
from mailfs.message.keywords import RECENT
from mailfs.search.match import matching
from mailfs.search.plan import plan
from mailfs.search.tree import depends_on_now, depends_on_threads
from mailfs.store.index import EntryRow, Index, IndexSource, PrefetchedSource
from mailfs.store.layout import Layout
from mailfs.views.facts import Facts
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
    """Ask a view's query for all its members. For a worker thread: opens its own connection.

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
    finally:
        index.close()
    return Evaluation(modseq, docids)


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
        invalidations += _replace(tree, view, evaluation)
    else:
        view.load(evaluation)
    missed = tree.store.index.changes_since(evaluation.modseq)
    _update_view(tree, view, missed, tree.source, invalidations)
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
        _leave(tree, view, docid, tree.facts.flags_of(docid))
        for docid in sorted(before - after - view.lingering)
    ]
    for docid in sorted(after - before):
        view.add(docid)
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
            rows = index.changes_since(tree.modseq)
            source = PrefetchedSource(index, {row.docid for row in rows if not row.expunged})
            for view in tree.views.values():
                if view.is_loaded:
                    _update_view(tree, view, rows, source, owed)
                elif rows:
                    view.touch(in_new=True)
                    view.touch(in_new=False)
            _update_facts(tree, rows)
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


def _update_view(
    tree: Tree,
    view: View,
    rows: list[EntryRow],
    source: IndexSource,
    invalidations: list[Invalidation],
) -> None:
    """Move a view's members and mtimes after these changes. `tree.facts` still holds the facts before them."""
    living = [row.docid for row in rows if not row.expunged]
    members = matching(view.query, living, source, time.time()) if living else set()
    for row in rows:
        was_member = row.docid in view
        is_member = row.docid in members
        lingers = (
            was_member
            and not is_member
            and not row.expunged
            and (row.docid in view.lingering or row.docid in view.being_edited)
        )
        invalidations += _update_entry(tree, view, row, was_member, is_member or lingers)
        if lingers:
            view.lingering.add(row.docid)
        elif is_member:
            view.lingering.discard(row.docid)


def _update_entry(
    tree: Tree, view: View, row: EntryRow, was_member: bool, is_member: bool
) -> list[Invalidation]:
    is_new = bool(row.flags & RECENT)
    if not was_member:
        if is_member:
            if row.docid not in tree.facts:
                tree.facts.put(row)
            view.add(row.docid)
            view.touch(in_new=is_new)
        return []
    flags_before = tree.facts.flags_of(row.docid)
    if not is_member:
        return [_leave(tree, view, row.docid, flags_before)]
    if flags_before == row.flags:
        return []
    was_new = bool(flags_before & RECENT)
    view.touch(in_new=was_new)
    if is_new != was_new:
        view.touch(in_new=is_new)
    return [_invalidation(tree, view, row.docid, flags_before)]


def _leave(tree: Tree, view: View, docid: Docid, flags: int) -> Invalidation:
    view.remove(docid)
    view.touch(in_new=bool(flags & RECENT))
    return _invalidation(tree, view, docid, flags)


def _invalidation(tree: Tree, view: View, docid: Docid, flags: int) -> Invalidation:
    kind = Kind.NEW if flags & RECENT else Kind.CUR
    return Invalidation(tree.subfolder_ino(view, kind), tree.name_of(docid, flags))


def end_lingering(tree: Tree, now_s: float) -> list[Invalidation]:
    """Let go of lingering members whose reader has not been seen for LINGER_S. `now_s` is monotonic."""
    return [
        _leave(tree, view, docid, tree.facts.flags_of(docid))
        for view in tree.views.values()
        if view.lingering and not view.open_handles and now_s - view.last_used_s > LINGER_S
        for docid in sorted(view.lingering)
    ]
