"""Processes that write the store themselves, without a mount: deliveries, slices of imports, flags, and what is taken back."""

import socket
import time

from mailfs.errors import NoSuchMessage
from mailfs.ids import Docid, Keyword
from mailfs.ingest.importer import Importer, Labels, Prepared
from mailfs.message.keywords import LETTER_BITS, flags_of_letters
from mailfs.store.prepare import prepare_message
from mailfs.store.store import Store
from mailfs.views.arrivals import commit_arrival, plan_delivery
from tests.torture.cuts_actors import VIEWS, Actor, Given, Known, Letter, Part
from tests.torture.cuts_ledger import EXPUNGED, GONE, Key, State, live

_MOST_IN_A_SLICE = 20
_MOST_CHANGED_AT_ONCE = 6


class _TakenBack(Exception):
    """A transaction is left with this."""


class Writer(Actor):
    """One open store, many transactions."""

    def __init__(self, part: Part, said: socket.socket) -> None:
        super().__init__(part, said)
        self._store = Store.open(part.store)

    def step(self) -> None:
        ways = (
            *(self._deliver,) * 4,
            *(self._slice,) * 2,
            *(self._edit,) * 5,
            self._deliver_again,
            self._expunge,
            self._sync,
            self._take_back,
        )
        self.random.choice(ways)()

    def _deliver(self) -> None:
        letter, view = self.letter(), self.random.choice(VIEWS)
        state = live("", {view})
        with self.doing("deliver", {letter.key: state}, durable=True):
            docid = self._arrive(letter.raw, view)
        self.part.known[letter.key] = Known(docid, letter.number, state)

    def _arrive(self, raw: bytes, view: str) -> Docid:
        new = prepare_message(raw, 0, (), time.time_ns())
        search = self._store.index.search(view)
        return commit_arrival(self._store, plan_delivery(search, new, ()))

    def _deliver_again(self) -> None:
        """Bytes that are known, live or expunged: the one who delivers is told the same."""
        key, known = self.mine(self.random.choice((None, EXPUNGED)))
        try:
            raw = self._store.load(known.docid)
        except NoSuchMessage:
            raise Given from None  # its number is not known, or it was reclaimed
        before, view = known.state, self.random.choice(VIEWS)
        state = live("", {view})
        if before.keywords is not None and before != EXPUNGED:
            state = live(before.letters, before.keywords | {view})
        with self.doing("deliver again", {key: state}, durable=True):
            # One that was reclaimed meanwhile is a new message.
            known.docid = self._arrive(raw, view)
        known.state = state

    def _slice(self) -> None:
        """What an import adds at once, now and then with a folder and its search."""
        letters = [self.letter() for _ in range(self.random.randrange(1, _MOST_IN_A_SLICE))]
        has_folders = self.random.random() < 0.3
        folder = f"lists/{self.random.randrange(5)}"
        word = Keyword(folder if has_folders else "imported")
        states: dict[Key, State] = {}
        batch = []
        for letter in letters:
            flags = self.letters_of_flags()
            new = prepare_message(letter.raw, flags_of_letters(flags.encode()), (word,), None)
            batch.append(Prepared(new, folder, "made up"))
            states[letter.key] = live(flags, {word})
        importer = Importer(self._store, Labels("", folders=has_folders))
        with self.doing("import slice", states, durable=True):
            for _ in importer.add_all([batch]):
                pass
        self._learn(letters, states)

    def _learn(self, letters: list[Letter], states: dict[Key, State]) -> None:
        for letter in letters:
            self.part.known[letter.key] = Known(Docid(0), letter.number, states[letter.key])

    def _edit(self) -> None:
        """Flags and keywords of some messages in one transaction."""
        chosen = dict(self._mine_with_docid() for _ in range(self.random.choice((1, 1, 1, 6))))
        states: dict[Key, State] = {}
        for key, known in chosen.items():
            assert known.state.keywords is not None
            keywords = known.state.keywords ^ {self.random.choice(("todo", *VIEWS))}
            states[key] = live(self.letters_of_flags(), keywords)
        is_durable = self.random.random() < 0.15
        with (
            self.doing("edit", states, durable=is_durable),
            self._store.writer.transaction("edit", durable=is_durable) as transaction,
        ):
            for key, state in states.items():
                known = chosen[key]
                flags = flags_of_letters((state.letters or "").encode())
                before = known.state.keywords or frozenset[str]()
                after = state.keywords or frozenset[str]()
                transaction.edit_flags(known.docid, flags, LETTER_BITS)
                transaction.edit_keywords(
                    known.docid, map(Keyword, after - before), map(Keyword, before - after)
                )
        for key, state in states.items():
            chosen[key].state = state

    def _mine_with_docid(self) -> tuple[Key, Known]:
        key, known = self.mine()
        if not known.docid:
            raise Given
        return key, known

    def _expunge(self) -> None:
        key, known = self._mine_with_docid()
        with (
            self.doing("expunge", {key: EXPUNGED}, durable=False),
            self._store.writer.transaction("expunge", durable=False) as transaction,
        ):
            transaction.expunge(known.docid)
        known.state = EXPUNGED

    def _sync(self) -> None:
        with self.doing("sync", {}, durable=True):
            self._store.writer.sync()

    def _take_back(self) -> None:
        """A transaction that fails in the middle: nobody may ever see what it added."""
        letter = self.letter()
        new = prepare_message(letter.raw, 0, (Keyword("never"),), None)
        try:
            with (
                self.doing("take back", {letter.key: GONE}, durable=False),
                self._store.writer.transaction("taken back", durable=True) as transaction,
            ):
                transaction.add(new)
                raise _TakenBack
        except _TakenBack:
            pass
