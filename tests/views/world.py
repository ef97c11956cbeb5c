"""A store with a tree over it, without FUSE: what the tests of views/ and of the handlers stand on."""

import os
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import ParamSpec, TypeVar, TypeVarTuple

import pytest
import trio

from mailfs.errors import MailfsError
from mailfs.fuse.changes import Changes
from mailfs.fuse.drain import in_thread
from mailfs.fuse.requests import Requests
from mailfs.ids import Docid, Ino, Keyword
from mailfs.message.keywords import RECENT, SEEN, letters_of_flags
from mailfs.message.maildir import Base, format_base, format_name
from mailfs.search.plan import plan
from mailfs.store.prepare import prepare_message
from mailfs.store.store import Store
from mailfs.views.announce import Announcements
from mailfs.views.areas import make_area
from mailfs.views.arrivals import (
    Arrival,
    SpooledFile,
    StoredMessage,
    commit_arrival,
    plan_arrival,
    plan_link,
    plan_move,
)
from mailfs.views.edits import Edit, EntryEdit, Removal, commit, plan_rename, plan_unlink
from mailfs.views.evaluation import evaluate, install
from mailfs.views.files import FILE_INO
from mailfs.views.letters import KEYWORDS_FILE
from mailfs.views.membership import stop_lingering
from mailfs.views.refresh import refresh, sync_letters
from mailfs.views.tree import (
    ROOT_INO,
    Directory,
    DirectoryChange,
    Invalidation,
    NameChange,
    News,
    Tree,
)
from mailfs.views.view import View
from tests.fakes import make_message

R = TypeVar("R")
Arguments = TypeVarTuple("Arguments")
Parameters = ParamSpec("Parameters")


def forgotten(tree: Tree, news: Iterable[News]) -> list[Invalidation]:
    """The names that are not true any more."""
    found = []
    for each in news:
        match each:
            case Invalidation():
                found.append(each)
            case DirectoryChange(parent, name, before, _):
                found += [Invalidation(parent, name)] if before is not None else []
            case NameChange(view, _, before, after):
                found += [
                    Invalidation(tree.subfolder_ino(view, kind), name)
                    for kind, name in sorted(before - after)
                ]
    return found


class Everywhere(dict[int, int]):
    """A kernel that has looked up every directory."""

    def __contains__(self, ino: object) -> bool:
        return True


class Told(Announcements):
    """Keeps what the kernel would be told."""

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree, Everywhere())
        self.invalidations: list[Invalidation] = []

    def add(self, news: News) -> None:
        super().add(news)
        self.invalidations += forgotten(self._tree, [news])


class AtOnce(Requests):
    """What a mount does in threads, done where it stands: nothing waits, and no event loop is needed."""

    def __init__(self, tree: Tree) -> None:
        super().__init__(in_thread, lambda: None, tree.store.layout.lock)

    async def blocking(
        self, function: Callable[[*Arguments], R], *arguments: *Arguments, what: str = ""
    ) -> R:
        return function(*arguments)

    async def sync(self, function: Callable[[*Arguments], R], *arguments: *Arguments) -> R:
        return function(*arguments)

    async def commit(self, work: Callable[[float], R], deadline_s: float) -> R:
        return work(deadline_s)


def changes_of(tree: Tree) -> Changes:
    """What a mount changes a tree by."""
    return Changes(tree, Told(tree), AtOnce(tree))


def run(handler: Coroutine[None, None, R]) -> R:
    """The result of a handler that waits for nothing."""
    try:
        handler.send(None)
    except StopIteration as end:
        result: R = end.value
        return result
    raise AssertionError("it waits")


class World:
    """A store, the tree a mount would show of it, and short words for what tests do to them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.tree = Tree(store, {})
        self._delivered = 0
        self._spooled = 0

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
            transaction.searches.save(name, query, on_rm, replace=replace)

    def forget(self, name: str) -> None:
        with self.store.writer.transaction("test", durable=False) as transaction:
            transaction.searches.forget(name)

    # --- what a mount does

    def refresh(self) -> list[Invalidation]:
        return self.forgotten(refresh(self.tree))

    def forgotten(self, news: Sequence[News]) -> list[Invalidation]:
        """The names that are not true any more."""
        return forgotten(self.tree, news)

    def edit(self, edit: Edit) -> list[Invalidation]:
        """As a handler does it: commit, then refresh while the view knows what is edited in it."""
        edited = (edit.view.being_edited, edit.docid) if isinstance(edit, EntryEdit) else None
        lingers = isinstance(edit, Removal) and edit.docid in edit.view.lingering
        if edited is not None:
            edited[0].add(edited[1])
        commit(self.store, edit)
        news = refresh(self.tree)
        if edited is not None:
            edited[0].discard(edited[1])
        if isinstance(edit, Removal) and lingers:
            news += stop_lingering(self.tree, edit.view, edit.docid)
        return self.forgotten(news)

    def load(self, name: str) -> View:
        self.load_again(name)
        return self.tree.views[name]

    def load_again(self, name: str) -> list[Invalidation]:
        """Ask a view's query anew."""
        view = self.tree.views[name]
        evaluation = evaluate(self.store.layout, view, self.tree.facts)
        return self.forgotten(install(self.tree, view, evaluation))

    def tick(self) -> None:
        """What a mount does now and then."""
        changes = changes_of(self.tree)
        trio.run(changes.tick)
        trio.run(changes.forget_stale_names)

    # --- what clients do; the tree is brought up to date

    def spool(self, raw: bytes, received_s: int = 1_500_000_000) -> SpooledFile:
        """A file in the inbox's tmp/."""
        self._spooled += 1
        area = self.tree.area(self.directory("inbox/tmp"))
        make_area(area)
        path = area + b"/%d" % self._spooled
        with open(path, "wb") as file:
            file.write(raw)
        os.utime(path, (received_s, received_s))
        return SpooledFile(Ino(FILE_INO + os.lstat(path).st_ino), path)

    def bring(
        self,
        path: str,
        name: bytes,
        raw: bytes,
        *,
        is_exclusive: bool = True,
        is_lenient: bool = False,
    ) -> Docid:
        """Deliver a file to `inbox/new`: link(2), or rename(2) where that is not exclusive."""
        return self.arrive(
            plan_arrival(
                self.tree,
                self.spool(raw),
                self.directory(path),
                name,
                is_exclusive=is_exclusive,
                is_lenient=is_lenient,
            )
        )

    def link(self, docid: Docid, path: str, name: bytes, *, is_revived: bool = False) -> Docid:
        directory = self.directory(path)
        source = StoredMessage(docid, is_revived=is_revived)
        return self.arrive(plan_link(self.tree, source, directory, name))

    def move(
        self, path: str, name: bytes, new_path: str, new_name: bytes, *, is_exclusive: bool = False
    ) -> Docid:
        """mv to another view."""
        old, new = self.directory(path), self.directory(new_path)
        return self.arrive(
            plan_move(self.tree, old, name, new, new_name, is_exclusive=is_exclusive)
        )

    def arrive(self, arrival: Arrival) -> Docid:
        docid = commit_arrival(self.store, arrival)
        self.refresh()
        return docid

    def rename(
        self, path: str, name: bytes, new_path: str, new_name: bytes, *, is_exclusive: bool = False
    ) -> None:
        """mv within a view."""
        old, new = self.directory(path), self.directory(new_path)
        edit = plan_rename(self.tree, old, name, new, new_name, is_exclusive=is_exclusive)
        if edit is not None:
            self.edit(edit)

    def unlink(self, path: str, name: bytes) -> None:
        self.edit(plan_unlink(self.tree, self.directory(path), name))

    def write_letters(self, view: str, text: str) -> list[Invalidation]:
        """Another `dovecot-keywords`, which the tree takes notice of."""
        area = self.tree.area(self.directory(view))
        make_area(area)
        # A new file each time, as Dovecot does it: two of the same size and time are told apart.
        path = os.path.join(area, KEYWORDS_FILE)
        with open(path + b".lock", "w") as file:
            file.write(text)
        os.rename(path + b".lock", path)
        return self.forgotten(sync_letters(self.tree, self.tree.views[view]))

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
        return [name for _, _, name in self.tree.iter_messages(self.directory(path), Docid(0))]

    def find_or_none(self, path: str, name: bytes) -> Docid | None:
        """The message that lookup finds under a name."""
        found = self.tree.find_message_or_none(self.directory(path), name)
        return None if found is None else found.docid

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
        return format_name(base, letters_of_flags(entry.flags), in_new=bool(entry.flags & RECENT))

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


def listed(world: World, view: str) -> set[bytes]:
    """The names in cur/ and new/ as a mount that looks for the first time lists them."""
    looking = World(world.store)
    looking.load(view)
    found = {name for folder in ("cur", "new") for name in looking.names(f"{view}/{folder}")}
    seen = world.tree.views[view]
    if seen.is_loaded:
        assert found == {
            name for folder in ("cur", "new") for name in world.names(f"{view}/{folder}")
        }
    for name in found:
        is_found = [world.find_or_none(f"{view}/{folder}", name) for folder in ("cur", "new")]
        assert len([docid for docid in is_found if docid is not None]) == 1
    return found


def error_of(
    function: Callable[Parameters, object],
    *arguments: Parameters.args,
    **keywords: Parameters.kwargs,
) -> int:
    """The errno a call is refused with."""
    with pytest.raises(MailfsError) as caught:
        function(*arguments, **keywords)
    return caught.value.errno
