"""What the kernel and its watchers still have to be told: collected, coalesced, and made into steps.

The kernel keeps names, and inotify(7) tells only of what is done through the mount. So what changed without the kernel's
knowledge is done once more, through the mount, by a thread whose requests change nothing (fuse/echo.py): a name is
*made*, *moved* or *removed* before the kernel's eyes, or, where nobody would hear it or too many would come at once,
only *forgotten*.

For each message in each view it is kept what others *believe* it is called, until the next batch is taken; the steps lead from
there to what is true then, however many changes lie between. Meanwhile the kernel must not keep the message's names
(`unannounced`): one it holds already could not be made. All of it is for the thread that serves requests.
"""

from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from typing import NamedTuple

from mailfs.errors import NotFound
from mailfs.ids import Docid, Ino, SearchId
from mailfs.message.maildir import parse_base_or_none, split_name
from mailfs.views.membership import shown_names
from mailfs.views.tree import (
    DirectoryChange,
    FoldersChanged,
    Invalidation,
    Kind,
    NameChange,
    News,
    Shown,
    Tree,
    message_ino,
)
from mailfs.views.view import View

# Names told a second and folder; of what is more only *that* something changed, when there is room again. inotify
# queues 16,384 events (inotify(7)).
EVENTS_A_SECOND = 64
# So many messages are looked at for one batch: some milliseconds.
_MOST_TAKEN = 1000
_MOST_FORGOTTEN = 100
# Made and removed in a folder whose watchers were told of too little: a name no Maildir client looks at.
STIRRED = b".mailfs-changed"
# No message has docid 0.
STIRRED_INO = message_ino(0)

# What is believed of messages, by view.
_Beliefs = dict[SearchId, dict[Docid, "Belief"]]
# A directory and a name in it.
Place = tuple[Ino, bytes]


class Belief(NamedTuple):
    """What a message is called as far as others know: `some` may believe in more names than `all` do."""

    some: frozenset[Shown]
    all: frozenset[Shown]

    def without(self, name: Shown) -> "Belief":
        """Everybody knows that this name is gone."""
        return Belief(self.some - {name}, self.all - {name})

    def with_name(self, name: Shown) -> "Belief":
        """Everybody knows of this name."""
        return Belief(self.some | {name}, self.all | {name})

    def or_else(self, names: frozenset[Shown]) -> "Belief":
        """Some have seen these names instead."""
        return Belief(self.some | names, self.all & names)

    def is_true(self, names: frozenset[Shown]) -> bool:
        """Whether there is nothing to tell when these are the names."""
        return self.some == self.all == names


class Act(IntEnum):
    """In the order in which steps are done: a name goes before another message gets it."""

    REMOVE = 0
    MOVE = 1
    MAKE = 2
    CLEAR = 3  # remove what was only made to be heard


class Step(NamedTuple):
    """One thing to be done through the mount. `new_place` is where a MOVE goes to."""

    act: Act
    place: Place
    new_place: Place | None = None
    is_directory: bool = False


@dataclass(slots=True)
class Batch:
    """Names to be forgotten, then steps in their order, and what handlers answer the thread that does these.

    `unheard` are names for which a step came to nothing: to be forgotten as well; `unreached` are in
    directories that the thread cannot get to. `paths` are the directories named,
    from the root. For the thread the names in `present` are there, and those in `awaited` are to be made; a client that
    makes or removes one itself has the last word. `beliefs` are those of the messages told of, until all is done.
    """

    forgotten: list[Place] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    unheard: list[Place] = field(default_factory=list)
    unreached: list[Place] = field(default_factory=list)
    paths: dict[Ino, bytes] = field(default_factory=dict)
    present: dict[Place, Ino] = field(default_factory=dict)
    awaited: dict[Place, Ino] = field(default_factory=dict)
    # Names that are not there for the thread, so that the kernel drops them.
    hidden: set[Place] = field(default_factory=set)
    beliefs: _Beliefs = field(default_factory=dict)
    # Whether nothing that waits could be looked at.
    is_empty: bool = True

    def make(self, place: Place) -> Ino | None:
        """The thread makes a name: what it is the name of, None if the batch does not await it."""
        self.hidden.discard(place)
        made = self.awaited.pop(place, None)
        if made is not None:
            self.present[place] = made
        return made

    def move(self, place: Place, new_place: Place) -> bool:
        """The thread renames; False if the batch does not speak of it."""
        if place not in self.present or new_place not in self.awaited:
            return False
        del self.awaited[new_place]
        self.present[new_place] = self.present.pop(place)
        return True

    def remove(self, place: Place) -> bool:
        """The thread removes a name; False if the batch does not speak of it."""
        return self.present.pop(place, None) is not None

    def overtake(self, place: Place) -> None:
        """A client has made a name of something, or removed it: the thread finds it so, and cannot change it."""
        self.awaited.pop(place, None)
        self.present.pop(place, None)


class Announcements:
    """Collects news and gives batches of steps. `known` are the directories the kernel has looked up."""

    def __init__(self, tree: Tree, known: Collection[int]) -> None:
        self.is_echoing = False
        self._tree = tree
        self._known = known
        self._invalidations: dict[Invalidation, None] = {}
        self._beliefs: _Beliefs = {}
        self._directories: dict[Place, Ino | None] = {}
        self._in_flight = Batch()
        # Events in this second by folder, and folders whose watchers have not heard of everything.
        self._used: dict[Ino, int] = {}
        self._owed: set[Ino] = set()
        self._refilled_s = 0.0

    def __bool__(self) -> bool:
        """Whether there is something to tell."""
        return bool(
            self._invalidations or any(self._beliefs.values()) or self._directories or self._owed
        )

    # --- collecting

    def add(self, news: News) -> None:
        """Something changed that the kernel does not know of."""
        match news:
            case NameChange(view, docid, before, _):
                beliefs = self._of(view)
                if docid not in beliefs and self._is_looked_at(view):
                    told = self._in_flight.beliefs.get(view.search.search_id, {}).get(docid)
                    beliefs[docid] = (
                        Belief(before, before) if told is None else told.or_else(before)
                    )
            case FoldersChanged(view):
                self._owed |= {ino for ino in self._folders(view) if ino in self._known}
                for part in (b"cur", b"new"):
                    self.add(Invalidation(self._tree.subfolder_ino(view, Kind.VIEW), part))
            case DirectoryChange(parent, name, before, _):
                if parent in self._known:
                    self._directories.setdefault((parent, name), before)
            case Invalidation():
                if news.parent in self._known:
                    self._invalidations[news] = None

    def _folders(self, view: View) -> tuple[Ino, Ino]:
        return (
            self._tree.subfolder_ino(view, Kind.CUR),
            self._tree.subfolder_ino(view, Kind.NEW),
        )

    def _is_looked_at(self, view: View) -> bool:
        """Whether the kernel knows cur/ or new/; it does as long as anybody watches, or has something in them open."""
        return any(ino in self._known for ino in self._folders(view))

    def told(
        self, view: View, docid: Docid, *, gone: Shown | None = None, made: Shown | None = None
    ) -> None:
        """A client itself removed or made a name of a message, in a request that is being answered."""
        search_id, current = view.search.search_id, self._current(view, docid)
        beliefs = self._of(view)
        belief = beliefs.get(docid) or self._in_flight.beliefs.get(search_id, {}).get(docid)
        if belief is None:
            belief = Belief(current, current)
        if gone is not None:
            self._overtake(view, docid, gone)
            belief = belief.without(gone)
        if made is not None:
            self._overtake(view, docid, made)
            belief = belief.with_name(made)
        if belief.is_true(current):
            beliefs.pop(docid, None)
        elif self._is_looked_at(view):
            beliefs[docid] = belief

    def _overtake(self, view: View, docid: Docid, name: Shown) -> None:
        """Nobody believes any more that this is a name of another message; what it is called now is still to be told."""
        self._in_flight.overtake(self._place(view, name))
        beliefs = self._of(view)
        others = {
            other: belief
            for of_view in (self._in_flight.beliefs.get(view.search.search_id, {}), beliefs)
            for other, belief in of_view.items()
            if other != docid and name in belief.some
        }
        for other, belief in others.items():
            beliefs[other] = belief.without(name)

    def _of(self, view: View) -> dict[Docid, Belief]:
        return self._beliefs.setdefault(view.search.search_id, {})

    def told_directory(self, parent: Ino, name: bytes) -> None:
        """The same for a directory."""
        place = (parent, name)
        self._directories.pop(place, None)
        self._in_flight.overtake(place)

    def listed(self, view: View, after: int, until: int) -> None:
        """Somebody sees these messages of a view as they are, before watchers are told how it came to that."""
        beliefs = self._of(view)
        for docid, belief in beliefs.items():
            if after <= docid <= until:
                beliefs[docid] = belief.or_else(self._current(view, docid))

    # --- what the kernel may keep

    def has_changed(self, view: View, docid: Docid) -> bool:
        """Whether a message is called otherwise in a view than the batch in flight will say."""
        return docid in self._beliefs.get(view.search.search_id, {})

    def unannounced(self, view: View) -> Mapping[Docid, Belief]:
        """The messages whose names in a view are still to be told: the kernel must not keep these yet."""
        search_id = view.search.search_id
        return ChainMap(
            self._beliefs.get(search_id, {}), self._in_flight.beliefs.get(search_id, {})
        )

    def stale_places(self, docid: Docid) -> list[Place]:
        """The names that somebody may still believe a message to have, in views of which it is a member."""
        places = []
        for search_id in {*self._beliefs, *self._in_flight.beliefs}:
            view = self._tree.view_of_or_none(search_id)
            if view is not None and docid in view:
                belief = self.unannounced(view).get(docid)
                stale = frozenset() if belief is None else belief.some - self._current(view, docid)
                places += [self._place(view, name) for name in stale]
        return places

    def is_directory_unannounced(self, parent: Ino, name: bytes) -> bool:
        """The same for a directory."""
        place = (parent, name)
        return place in self._directories or place in self._in_flight.awaited

    def _current(self, view: View | None, docid: Docid) -> frozenset[Shown]:
        tree = self._tree
        if view is None or not view.is_loaded or docid not in view:
            return frozenset()
        return shown_names(tree, view, docid, tree.facts.flags_of(docid))

    def _place(self, view: View, name: Shown) -> Place:
        return self._tree.subfolder_ino(view, name[0]), name[1]

    # --- telling

    def take(self, now_s: float) -> Batch:
        """The next steps; an empty batch when there is nothing to do now. `now_s` is monotonic.

        The batch is in flight until finish(): no other may be taken before.
        """
        if now_s - self._refilled_s >= 1:
            self._refilled_s = now_s
            self._used.clear()
        batch = Batch()
        batch.forgotten += self._invalidations
        self._invalidations.clear()
        self._take_directories(batch)
        changes = self._take_changes()
        self._take_names(batch, changes)
        self._stir(batch)
        self._put_forgotten(batch)
        batch.steps.sort(key=lambda step: step.act)
        batch.is_empty = not (changes or batch.steps or batch.forgotten)
        self._in_flight = batch
        return batch

    def finish(self) -> None:
        """The steps were done, or given up. Who was not told by name hears at least that something has changed."""
        if self.is_echoing:
            self._owed |= {
                ino
                for ino, name in self._in_flight.unheard
                if name != STIRRED and self._holds_messages(ino)
            }
        self._in_flight = Batch()

    def _holds_messages(self, ino: Ino) -> bool:
        try:
            return self._tree.directory(ino).holds_messages
        except NotFound:
            return False

    @property
    def in_flight(self) -> Batch:
        """The batch taken last: what handlers answer the thread that tells from."""
        return self._in_flight

    def _put_forgotten(self, batch: Batch) -> None:
        """Each name once; where there are many in a folder, the folder itself, and with it all that is in it."""
        by_folder: dict[Ino, dict[Place, None]] = {}
        for place in batch.forgotten:
            by_folder.setdefault(place[0], {})[place] = None
        batch.forgotten.clear()
        for ino, places in by_folder.items():
            try:
                directory = self._tree.directory(ino)
            except NotFound:
                continue  # the kernel learns that from the one above
            if len(places) > _MOST_FORGOTTEN and directory.holds_messages:
                directory, name = self._tree.parent(directory), directory.kind.name.lower().encode()
                places = {(directory.ino, name): None}
            batch.paths[directory.ino] = self._tree.path_of(directory)
            batch.forgotten += places

    def _put(self, batch: Batch, step: Step) -> None:
        """Unless the directory was forgotten since: the kernel learns that from the one above."""
        try:
            for ino, _ in (step.place, step.new_place or step.place):
                if ino not in batch.paths:
                    batch.paths[ino] = self._tree.path_of(self._tree.directory(ino))
        except NotFound:
            return
        batch.steps.append(step)

    # --- directories

    def _take_directories(self, batch: Batch) -> None:
        gone: dict[Ino, Place] = {}
        made: dict[Ino, Place] = {}
        for place, before in self._directories.items():
            after = self._directory_at(place)
            if before != after and before is not None:
                gone[before] = place
                batch.present[place] = before
            if before != after and after is not None:
                made[after] = place
                batch.awaited[place] = after
        self._directories.clear()
        for ino, place in gone.items():
            if not self.is_echoing:
                batch.forgotten.append(place)
            elif ino in made and made[ino] not in gone.values():
                self._put(batch, Step(Act.MOVE, place, made.pop(ino), is_directory=True))
            else:
                self._put(batch, Step(Act.REMOVE, place, is_directory=True))
        # Those above first: their names are not there yet for the thread that makes them.
        for place in sorted(made.values(), key=self._depth) if self.is_echoing else ():
            self._put(batch, Step(Act.MAKE, place, is_directory=True))

    def _depth(self, place: Place) -> int:
        return self._tree.directory(place[0]).path.count("/")

    def _directory_at(self, place: Place) -> Ino | None:
        try:
            child = self._tree.child_or_none(self._tree.directory(place[0]), place[1])
        except NotFound:
            return None
        return None if child is None else child.ino

    # --- names of messages

    def _take_changes(self) -> "list[_Change]":
        """Of the messages that wait, the next ones."""
        changes: list[_Change] = []
        room = _MOST_TAKEN
        for search_id in list(self._beliefs):
            view = self._tree.view_of_or_none(search_id)
            if view is not None and not view.is_loaded and view.former is not None:
                continue  # until its members are known
            beliefs = self._beliefs[search_id]
            for docid in list(islice(beliefs, room)):
                room -= 1
                belief = beliefs.pop(docid)
                # Without a view the kernel forgets the names with their folders.
                after = self._current(view, docid)
                if view is not None and not belief.is_true(after):
                    changes.append(self._change(view, docid, belief, after))
            if not beliefs:
                del self._beliefs[search_id]
            if room <= 0:
                break
        return changes

    def _change(
        self, view: View, docid: Docid, belief: Belief, after: frozenset[Shown]
    ) -> "_Change":
        return _Change(
            view,
            docid,
            belief.or_else(after),
            [self._place(view, name) for name in sorted(belief.some - after)],
            [self._place(view, name) for name in sorted(after - belief.all)],
        )

    def _take_names(self, batch: Batch, changes: "list[_Change]") -> None:
        to_tell = []
        for change in changes:
            if self.is_echoing and all([self._allows(ino) for ino in change.folders]):
                to_tell.append(change)
                continue
            self._keep_belief(batch, change)
            self._owed |= change.folders if self.is_echoing else set()
            batch.forgotten += change.gone
        going = {place: change.docid for change in to_tell for place in change.gone}
        going |= self._remove_early(batch, to_tell)
        for change in to_tell:
            self._put_change(batch, change, going)
        # What is told now comes behind what was only forgotten before: who watches looks again.
        self._owed -= {ino for change in to_tell for ino in change.folders}

    def _remove_early(self, batch: Batch, changes: "Iterable[_Change]") -> dict[Place, Docid]:
        """Names that messages get now and that others, whose turn is later, were believed to have until now."""
        early: dict[Place, Docid] = {}
        for change in changes:
            beliefs = self._beliefs.get(change.view.search.search_id, {})
            # Nobody else was called by a message's canonical name unless by choice, which is rare.
            chosen = [place for place in change.made if not _is_canonical(place, change.docid)]
            for place in chosen if beliefs else ():
                for docid, belief in list(beliefs.items()):
                    for name in belief.some:
                        if self._place(change.view, name) == place:
                            beliefs[docid] = belief.without(name)
                            batch.present[place] = message_ino(docid)
                            self._put(batch, Step(Act.REMOVE, place))
                            early[place] = docid
        return early

    def _keep_belief(self, batch: Batch, change: "_Change") -> None:
        of_view = batch.beliefs.setdefault(change.view.search.search_id, {})
        of_view[change.docid] = change.belief

    def _allows(self, folder: Ino) -> bool:
        used = self._used.get(folder, 0)
        self._used[folder] = used + 1
        return used < EVENTS_A_SECOND

    def _put_change(self, batch: Batch, change: "_Change", going: dict[Place, Docid]) -> None:
        docid, ino = change.docid, message_ino(change.docid)
        self._keep_belief(batch, change)
        batch.present.update(dict.fromkeys(change.gone, ino))
        batch.awaited.update(dict.fromkeys(change.made, ino))
        moves = list(zip(change.gone, change.made, strict=False))
        for place, new_place in moves:
            if going.get(new_place, docid) == docid:
                self._put(batch, Step(Act.MOVE, place, new_place))
            else:  # another message is called so until now: its name must go first
                self._put(batch, Step(Act.REMOVE, place))
                self._put(batch, Step(Act.MAKE, new_place))
        for place in change.gone[len(moves) :]:
            self._put(batch, Step(Act.REMOVE, place))
        for place in change.made[len(moves) :]:
            self._put(batch, Step(Act.MAKE, place))

    def _stir(self, batch: Batch) -> None:
        """Where watchers have not heard of everything, and there is room again, one thing they hear."""
        if not self.is_echoing:
            self._owed.clear()
        for ino in [ino for ino in self._owed if self._used.get(ino, 0) < EVENTS_A_SECOND]:
            self._owed.discard(ino)
            batch.awaited[ino, STIRRED] = STIRRED_INO
            self._put(batch, Step(Act.MAKE, (ino, STIRRED)))
            self._put(batch, Step(Act.CLEAR, (ino, STIRRED)))


class _Change(NamedTuple):
    """Where what others believe of a message in a view differs from what is true. `belief` holds until all is told."""

    view: View
    docid: Docid
    belief: Belief
    gone: list[Place]
    made: list[Place]

    @property
    def folders(self) -> set[Ino]:
        return {ino for ino, _ in (*self.gone, *self.made)}


def _is_canonical(place: Place, docid: Docid) -> bool:
    parsed = parse_base_or_none(split_name(place[1]).base)
    return parsed is not None and parsed.docid == docid
