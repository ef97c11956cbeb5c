"""Sources -> store: references are read, parsed and compressed in worker processes, one writer adds them in slices.

A message counts as in when the slice it is in has been committed, durably. Interrupted at any moment, what was
committed stays and the rest is as if it had never been begun; run again, what is in is found by its bytes.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from mailfs.errors import MailfsError
from mailfs.ids import Docid, Keyword
from mailfs.ingest.mailboxes import SourceMessage, SourceProblem, SourceRef, read_ref
from mailfs.message.keywords import RECENT, keyword_for_folder, split_keywords
from mailfs.search.names import MAX_NAME_BYTES, check_search_name
from mailfs.store.adding import Outcome
from mailfs.store.journal import Operation
from mailfs.store.prepare import NewMessage, prepare_message
from mailfs.store.records import Dictionary
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction
from mailfs.store.upkeep.seal import seal_full_packs
from mailfs.store.upkeep.training import is_wanted, train
from mailfs.store.writer import SLICE_S

# So many messages, or bytes of them, share one commit and its two syncs.
SLICE_MESSAGES = 256
SLICE_BYTES = 16 << 20
LOCK_DEADLINE_S = 60.0
# An import waits 0.1 s for the dictionary that its later messages are compressed with.
_TRAINED_AFTER = 3000
# Of a search's name, with room for some `_` behind it where the name is another search's.
_MAX_SEARCH_BYTES = MAX_NAME_BYTES - 64


@dataclass(frozen=True, slots=True)
class Labels:
    """What an import puts on messages: the folder's keyword unless `folders` is off, and `keywords` on all.

    `root` names the folder of a source's own messages.
    """

    root: str
    keywords: tuple[Keyword, ...] = ()
    folders: bool = True


@dataclass(frozen=True, slots=True)
class Prepared:
    """A message ready to be added, and the folder it comes from."""

    new: NewMessage
    folder: str
    origin: str


@dataclass(slots=True)
class Progress:
    """Counts of one import; `problems` are what could not be read."""

    added: int = 0
    known: int = 0
    expunged: int = 0
    labelled: int = 0  # known ones that got a keyword
    raw_bytes: int = 0  # of the messages added
    seen_bytes: int = 0  # of all messages read
    problems: list[SourceProblem] = field(default_factory=list)

    @property
    def seen(self) -> int:
        return self.added + self.known + self.expunged + len(self.problems)


def prepare_ref(
    ref: SourceRef, labels: Labels, dictionary: Dictionary | None = None
) -> Prepared | SourceProblem:
    """Read and prepare one message; what cannot be read is a problem, not an error."""
    try:
        return prepare_source(read_ref(ref), labels, dictionary)
    except OSError as error:
        return SourceProblem(ref.origin, error.strerror or str(error))
    except MemoryError:
        return SourceProblem(ref.origin, "too large for this machine's memory")


def prepare_source(
    source: SourceMessage, labels: Labels, dictionary: Dictionary | None = None
) -> Prepared:
    folder = source.folder or labels.root
    flags, keywords = split_keywords((*labels.keywords, *source.keywords))
    if labels.folders and folder:
        keywords |= {keyword_for_folder(folder)}
    new = prepare_message(
        source.raw, source.flags | flags, tuple(sorted(keywords)), source.received_ns, dictionary
    )
    return Prepared(new, folder, source.origin)


class Importer:
    """Adds prepared messages to a store. Feed it with add_all(), which reports after each durable slice."""

    def __init__(self, store: Store, labels: Labels, source: str = "") -> None:
        """`source` is what the journal names."""
        self._store = store
        self._operation = Operation(f"import {source}".rstrip())
        self._labels = labels
        self._folders_saved: set[str] = set()
        self._has_trained = False
        # Messages this import added: another copy in the same source adds its flags to them.
        self._added: set[Docid] = set()
        self.progress = Progress()

    def add_all(self, batches: Iterable[Sequence[Prepared | SourceProblem]]) -> Iterator[Progress]:
        """Add everything, yielding the counts after each slice: what they count is durable.

        Nothing is waited for while the lock is held: a slice is made of what has been prepared.
        """
        ready: list[Prepared | SourceProblem] = []
        size_bytes = 0
        for batch in batches:
            ready += batch
            size_bytes += sum(
                item.new.record.stored for item in batch if isinstance(item, Prepared)
            )
            if len(ready) >= SLICE_MESSAGES or size_bytes >= SLICE_BYTES:
                yield from self._add_ready(ready)
                ready, size_bytes = [], 0
                if self.progress.added >= _TRAINED_AFTER and not self._has_trained:
                    self._tidy()
        yield from self._add_ready(ready)
        if self.progress.added:
            self._tidy()

    def _tidy(self) -> None:
        """A dictionary for what comes then, when there is mail enough; packs that are full are sealed.

        What is in is in: whatever goes wrong here is met again, and told, by who writes or verifies next.
        """
        self._has_trained = True
        with suppress(MailfsError):
            if is_wanted(self._store):
                train(self._store, LOCK_DEADLINE_S)
            seal_full_packs(self._store, LOCK_DEADLINE_S)

    def _add_ready(self, ready: list[Prepared | SourceProblem]) -> Iterator[Progress]:
        start = 0
        while start < len(ready):
            start = self._add_slice(ready, start)
            yield self.progress

    def _add_slice(self, ready: list[Prepared | SourceProblem], start: int) -> int:
        """Add from `start` for at most SLICE_S; the number of the first that was not added."""
        slice_progress = Progress()
        folders: set[str] = set()
        added: set[Docid] = set()
        with self._store.writer.transaction(
            "import", durable=True, deadline_s=LOCK_DEADLINE_S, operation=self._operation
        ) as transaction:
            give_up = time.monotonic() + SLICE_S
            for item in ready[start:]:
                start += 1
                if isinstance(item, SourceProblem):
                    slice_progress.problems.append(item)
                else:
                    self._add(transaction, item, slice_progress, folders, added)
                if time.monotonic() >= give_up:
                    break
        self._folders_saved |= folders
        self._added |= added
        self._count(slice_progress)
        return start

    def _add(
        self,
        transaction: Transaction,
        item: Prepared,
        progress: Progress,
        folders: set[str],
        added: set[Docid],
    ) -> None:
        new = item.new
        progress.seen_bytes += new.size
        docid, outcome = transaction.add(new)
        if outcome is Outcome.EXPUNGED:
            progress.expunged += 1
            return
        brings_keywords = outcome is Outcome.ADDED
        if outcome is Outcome.ADDED:
            progress.added += 1
            progress.raw_bytes += new.size
            added.add(docid)
        else:
            progress.known += 1
            brings_keywords = transaction.edit_keywords(docid, add=new.keywords)
            progress.labelled += brings_keywords
            if brings_keywords or docid in self._added or docid in added:
                # Another copy: seen in one folder is seen, in cur/ of one is not new any more.
                remove = 0 if new.flags & RECENT else RECENT
                transaction.edit_flags(docid, new.flags & ~RECENT, remove)
        if brings_keywords:
            self._save_folder(transaction, item.folder, folders)

    def _save_folder(self, transaction: Transaction, folder: str, folders: set[str]) -> None:
        if not self._labels.folders or not folder or folder in folders | self._folders_saved:
            return
        folders.add(folder)
        name, query = search_name_for_folder(folder), f"tag:{keyword_for_folder(folder)}"
        # A folder called `all` is not the search of that name.
        while not transaction.searches.save_if_absent(name, query):
            name += "_"

    def _count(self, more: Progress) -> None:
        self.progress.added += more.added
        self.progress.known += more.known
        self.progress.expunged += more.expunged
        self.progress.labelled += more.labelled
        self.progress.raw_bytes += more.raw_bytes
        self.progress.seen_bytes += more.seen_bytes
        self.progress.problems += more.problems


def search_name_for_folder(folder: str) -> str:
    """The name of the search a folder gets: its own, with what a file name here cannot have replaced by `_`.

    One in a tree that is too deep is called like the folder above it that is not.
    """
    parts = []
    for part in folder.split("/"):
        clean = "".join(sign if sign.isprintable() else "_" for sign in part)
        clean = clean.encode(errors="replace")[:200].decode(errors="ignore").strip()
        # In the mount a name that begins with a dot is an ordinary directory's.
        clean = f"_{clean.lstrip('.')}" if clean.startswith(".") else clean or "_"
        parts.append(f"{clean}_" if clean in ("cur", "new", "tmp") else clean)
    while len("/".join(parts).encode()) > _MAX_SEARCH_BYTES:
        parts.pop()
    return check_search_name("/".join(parts))
