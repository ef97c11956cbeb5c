"""A store with a tree over it, without FUSE: what the tests of views/ and of the handlers stand on."""

import time
from collections.abc import Iterable

from mailfs.ids import Docid, Keyword
from mailfs.message.keywords import RECENT, SEEN
from mailfs.message.maildir import Base, format_base, format_name
from mailfs.search.plan import plan
from mailfs.store.prepare import prepare_message
from mailfs.store.store import Store
from mailfs.views.edits import Edit, FlagEdit, commit
from mailfs.views.refresh import evaluate, install, refresh
from mailfs.views.tree import ROOT_INO, Directory, Invalidation, Tree
from mailfs.views.view import View
from tests.fakes import make_message


class World:
    """A store, the tree a mount would show of it, and short words for what tests do to them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.tree = Tree(store, {})
        self._delivered = 0

    # --- what others do to the store; the tree is not told

    def deliver(
        self,
        subject: str = "apples",
        keywords: Iterable[str] = ("inbox",),
        flags: int = SEEN,
        received_s: int = 1_500_000_000,
        references: Iterable[str] = (),
    ) -> Docid:
        """Add a message no other is equal to."""
        self._delivered += 1
        raw = make_message(self._delivered, subject=subject, references=references)
        words = tuple(map(Keyword, keywords))
        new = prepare_message(raw, flags, words, received_s * 1_000_000_000)
        with self.store.writer.transaction("test", durable=True) as transaction:
            return transaction.add(new).docid

    def set_flags(self, docid: Docid, add: int = 0, remove: int = 0) -> None:
        with self.store.writer.transaction("test", durable=False) as transaction:
            transaction.edit_flags(docid, add, remove)

    def set_keywords(
        self, docid: Docid, add: Iterable[str] = (), remove: Iterable[str] = ()
    ) -> None:
        with self.store.writer.transaction("test", durable=False) as transaction:
            transaction.edit_keywords(docid, map(Keyword, add), map(Keyword, remove))

    def expunge(self, docid: Docid) -> None:
        with self.store.writer.transaction("test", durable=False) as transaction:
            transaction.expunge(docid)

    def save(self, name: str, query: str, on_rm: str = "", *, replace: bool = False) -> None:
        with self.store.writer.transaction("test", durable=False) as transaction:
            transaction.save_search(name, query, on_rm, replace=replace)

    def forget(self, name: str) -> None:
        with self.store.writer.transaction("test", durable=False) as transaction:
            transaction.forget_search(name)

    # --- what a mount does

    def refresh(self) -> list[Invalidation]:
        return refresh(self.tree)

    def edit(self, edit: Edit) -> list[Invalidation]:
        """As a handler does it: commit, then refresh while the view knows what is edited in it."""
        edited = (edit.view.being_edited, edit.docid) if isinstance(edit, FlagEdit) else None
        if edited is not None:
            edited[0].add(edited[1])
        commit(self.store, edit)
        invalidations = refresh(self.tree)
        if edited is not None:
            edited[0].discard(edited[1])
        return invalidations

    def load(self, name: str) -> View:
        view = self.tree.views[name]
        install(self.tree, view, evaluate(self.store.layout, view, self.tree.facts))
        return self.tree.views[name]

    # --- what is seen

    def directory(self, path: str) -> Directory:
        """`inbox/cur`, or '' for the root."""
        directory = self.tree.directory(ROOT_INO)
        for part in path.split("/") if path else ():
            child = self.tree.child_or_none(directory, part.encode())
            assert child is not None, path
            directory = child
        return directory

    def names(self, path: str) -> list[bytes]:
        """The names in `inbox/cur` or `inbox/new` of a loaded view."""
        return [name for _, name in self.tree.iter_messages(self.directory(path), Docid(0))]

    def mtimes(self, view: str) -> tuple[int, int]:
        """The mtimes of a view's new/ and cur/."""
        new, cur = (self.directory(f"{view}/{each}") for each in ("new", "cur"))
        attributes = self.tree.directory_attributes
        return attributes(new).mtime_ns, attributes(cur).mtime_ns

    # --- what is true, from the store alone

    def name(self, docid: Docid) -> bytes:
        """The name a message has now in every view."""
        entry = self.store.index.entry(docid)
        received_s = entry.received_ns // 1_000_000_000
        base = format_base(Base(received_s, docid, self.store.layout.store_id, entry.size))
        return format_name(base, entry.flags, in_new=bool(entry.flags & RECENT))

    def flags(self, docid: Docid) -> int:
        return self.store.index.entry(docid).flags

    def keywords(self, docid: Docid) -> set[str]:
        (summary,) = self.store.index.summaries([docid])
        return set(summary.keywords)

    def matching(self, view: View) -> list[Docid]:
        """The query asked anew, by SQL."""
        return self.store.index.docids(plan(view.query, time.time()))

    def is_live(self, docid: Docid) -> bool:
        return bool(self.store.index.summaries([docid])) and docid in self.matching(
            self.tree.views["all"]
        )
