"""A whole query asked anew, in a thread with its own connection, and made a view's members on the thread that serves.

That is how a view is loaded, also after its query was edited. From then on changes reach it one by one (refresh.py).
"""

import time
from array import array
from collections.abc import Container
from dataclasses import replace

from mailfs.ids import Docid, Ino
from mailfs.search.plan import plan
from mailfs.store.index import EntryRow, Index
from mailfs.store.layout import Layout
from mailfs.views.facts import Facts
from mailfs.views.files import area_of
from mailfs.views.letters import NO_LETTERS, read_letters, stamp_or_none
from mailfs.views.membership import MOST_TOLD, Changed, names_of, tell, update_facts, update_view
from mailfs.views.names import read_chosen, read_own_letters
from mailfs.views.refresh import date_spans, refresh
from mailfs.views.tree import Kind, News, Tree
from mailfs.views.view import Evaluation, View

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
            now_s = time.time()
            docids = array("Q")
            absent: list[EntryRow] = []
            for row in index.iter_entries(plan(view.query, now_s)):
                docids.append(row.docid)
                if row.docid not in facts:
                    absent.append(row)
                    if len(absent) >= _FILL_ROWS:
                        facts.fill(absent)
                        absent.clear()
            facts.fill(absent)
            found = Evaluation(modseq, docids, now_s, date_spans(view.query, now_s))
            return _with_names(layout, index, view, found)
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


def install(tree: Tree, view: View, evaluation: Evaluation) -> list[News]:
    """Make an evaluation a view's members, brought up to now. On the thread that serves requests.

    After an error the view is as it was, and what was to be told comes with the next refresh().
    """
    news = refresh(tree)
    if view.is_loaded:
        return news  # by another who asked at the same time
    index = tree.store.index
    try:
        missed = Changed(index, index.changes_since(evaluation.modseq, until=tree.modseq))
        view.lingering = {docid for docid in view.lingering if docid in tree.facts}
        view.load(evaluation)
        update_view(tree, view, missed, news)
    except BaseException:
        view.is_loaded = False
        tree.owed_news += news
        raise
    tree.stale_names |= {(view.search.search_id, docid) for docid in evaluation.stale}
    # What was read for the evaluation may be older than a change of a message nobody had shown till then.
    update_facts(tree, missed.rows)
    if view.former is not None:
        _tell_difference(tree, view.former, view, news)
        view.former = None
    return news


def _tell_difference(tree: Tree, former: View, view: View, news: list[News]) -> None:
    """Who left and who came by an edit of the query, or is called otherwise since.

    The kernel was told to forget the folders as a whole.
    """
    kept = tree.former_names.pop(view.search.search_id, {})
    before, after = set(map(Docid, former.docids)), set(map(Docid, view.docids))
    told = set(sorted(before ^ after)[-MOST_TOLD:])
    tell(
        view,
        names_of(tree, former, told) | kept,
        names_of(tree, view, told | kept.keys()),
        news,
    )


def unload_unknown(tree: Tree, known: Container[Ino]) -> int:
    """Forget the members of views of which the kernel knows neither cur nor new, so that nobody lists or watches them.

    How many bytes that is, about. Those who look again wait for the query again.
    """
    freed = 0
    for view in tree.views.values():
        inos = [tree.subfolder_ino(view, kind) for kind in (Kind.CUR, Kind.NEW)]
        is_used = view.open_handles or view.lingering or view.being_edited or view.former
        if view.is_loaded and not is_used and not any(ino in known for ino in inos):
            freed += view.unload()
    return freed
