"""Changes in the store, of the clock and of letters -> differences of the views -> news for the kernel. Pure data.

Nothing is pushed: refresh() reads what was committed since the tree's modseq, by whatever process, and asks each loaded
view for the changed messages only.
"""

import functools
import operator
import time

from mailfs.ids import Docid, Ino
from mailfs.search.dates import Span, range_span
from mailfs.search.tree import Query, moving_dates
from mailfs.views.files import area_of
from mailfs.views.letters import NO_LETTERS, FileStamp, read_letters, stamp_or_none
from mailfs.views.membership import (
    Changed,
    keep_former_names,
    names_of,
    reclaimed_rows,
    tell,
    update_facts,
    update_view,
)
from mailfs.views.names import read_own_letters
from mailfs.views.tree import DirectoryChange, FoldersChanged, Invalidation, News, Tree
from mailfs.views.view import View

# A view whose dates move by the second is looked at so often that it takes this part of the time at most.
_CLOCK_SHARE = 0.01
_CLOCK_STEP_S = 1.0
# Changed messages that are followed one by one; it takes some microseconds for each in each loaded view.
_MOST_FOLLOWED = 5000


def refresh(tree: Tree) -> list[News]:
    """Bring the tree up to what is committed. Some microseconds when nothing is new.

    After an error some views may be ahead of others; the next call brings all of them up, and gives what this
    one owed.
    """
    index = tree.store.index
    data_version = index.data_version()
    if data_version == tree.data_version:
        return []
    owed = tree.owed_news
    with index.snapshot():
        state = index.state()
        if state.searches_modseq != tree.searches_modseq:
            owed += _reload_searches(tree)
        rows = index.changes_since(tree.modseq) if state.modseq != tree.modseq else []
        gone = reclaimed_rows(tree) if state.reclaimed_modseq > tree.modseq else []
        rows += gone
        # Of what is gone nobody knows the conversation any more.
        is_asked_anew = gone and any(view.follows_threads for view in tree.views.values())
        if is_asked_anew or len(rows) > _MOST_FOLLOWED:
            owed += _begin_anew(tree)
            update_facts(tree, rows)
        elif rows:
            changed = Changed(index, rows)
            for view in tree.views.values():
                if view.is_loaded:
                    said = len(owed)
                    update_view(tree, view, changed, owed)
                    if len(owed) > said:
                        view.modseq = state.modseq
                else:
                    view.touch(in_new=True)
                    view.touch(in_new=False)
                    keep_former_names(tree, view, changed)
            update_facts(tree, rows)
    tree.data_version = data_version
    tree.modseq, tree.searches_modseq = state.modseq, state.searches_modseq
    tree.owed_news = []
    return owed


def _begin_anew(tree: Tree) -> list[News]:
    """So much has changed that it is less work, and not on this thread, to evaluate the views anew."""
    for view in tree.views.values():
        if not view.is_loaded:
            view.touch(in_new=True)
            view.touch(in_new=False)
    news = _reload_searches(tree, is_anew=True)
    return [*news, *(FoldersChanged(view) for view in tree.views.values() if view.former)]


def _reload_searches(tree: Tree, *, is_anew: bool = False) -> list[News]:
    before = _shown(tree)
    tree.reload_searches(is_anew=is_anew)
    after = _shown(tree)
    news: list[News] = []
    for place in before.keys() | after.keys():
        ino, view = before.get(place, (None, None))
        new_ino, new_view = after.get(place, (None, None))
        if ino != new_ino:
            news.append(DirectoryChange(*place, ino, new_ino))
        elif view is not new_view:
            # A search that means something else now shows other entries in the same cur and new: with the
            # folder the kernel forgets what is in it.
            news.append(Invalidation(*place))
    return news


def _shown(tree: Tree) -> dict[tuple[Ino, bytes], tuple[Ino, View | None]]:
    return {
        (directory.ino, entry.name): (entry.directory.ino, entry.directory.view)
        for directory in tree.iter_directories()
        for entry in tree.entries(directory)
    }


# --- the clock


def date_spans(query: Query, now_s: float) -> tuple[Span, ...]:
    """What the relative dates of a query stand for at a time: while it is the same, the clock changes no member."""
    return tuple(range_span(date.low, date.high, now_s) for date in moving_dates(query))


def follows_clock(view: View) -> bool:
    """Whether the clock alone may change who is in a view."""
    return view.is_loaded and bool(view.spans)


def moved_by_clock(tree: Tree, now_s: float) -> list[News]:
    """Ask loaded views with relative dates for the messages whose date the spans of these dates have passed over.

    `now_s` is seconds since 1970. Does nothing while the tree is not up to date. After an error as refresh().
    """
    due = [view for view in tree.views.values() if follows_clock(view)]
    due = [view for view in due if time.monotonic() >= view.next_look_s]
    if not due:
        return []
    index, owed = tree.store.index, tree.owed_news
    with index.snapshot():
        if index.state().modseq != tree.modseq:
            return []
        for view in due:
            started_s = time.monotonic()
            _move(tree, view, now_s, owed)
            took_s = time.monotonic() - started_s
            view.next_look_s = started_s + max(_CLOCK_STEP_S, took_s / _CLOCK_SHARE)
    tree.owed_news = []
    return owed


def _move(tree: Tree, view: View, now_s: float, news: list[News]) -> None:
    spans = date_spans(view.query, now_s)
    view.asked_s = now_s
    if spans == view.spans:
        return
    index = tree.store.index
    docids = {
        docid
        for date, before, after in zip(moving_dates(view.query), view.spans, spans, strict=True)
        for passed in _passed(before, after)
        for docid in index.docids_dated(date.field, passed)
    }
    update_view(tree, view, Changed(index, index.entries(sorted(docids))), news)
    view.spans = spans


def _passed(before: Span, after: Span) -> list[Span]:
    """Where exactly one of two spans is. One that ends before it starts is nowhere."""
    ends = [(span.start_s, max(span.start_s, span.end_s)) for span in (before, after)]
    low, middle_low, middle_high, high = sorted((*ends[0], *ends[1]))
    return [Span(*each) for each in ((low, middle_low), (middle_high, high)) if each[0] < each[1]]


# --- letters


def sync_letters(tree: Tree, view: View) -> list[News]:
    """Read a view's keywords file again when it is another one than the last time: letters mean something else."""
    area = area_of(tree.store.layout, view.search.search_id, "", view.search.name)
    stamp = stamp_or_none(area)
    if stamp == view.letters_stamp:
        return []
    return _take_letters(tree, view, area, stamp)


def _take_letters(tree: Tree, view: View, area: bytes, stamp: FileStamp | None) -> list[News]:
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
    before = names_of(tree, view, concerned)
    view.letters, view.own_letters = letters, own_letters
    news: list[News] = []
    tell(view, before, names_of(tree, view, concerned), news)
    return news
