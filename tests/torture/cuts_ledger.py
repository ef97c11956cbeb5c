"""What may be on the disk after a cut: everything the actors said before and after each of their operations, in one order.

Actors say what a message will be before they begin, and that the call has returned. They survive the cut, only the disk
loses, so the ledger is in memory; all of them write into one socket, which gives their words one order. Operations name
the state a message has afterwards, and each message is changed by one actor at a time. Then what may be found is:

    the state before, as long as nothing durable was acknowledged
    what the last durable one made it, and what any begun after that one makes it

An operation is durable when it was acknowledged and promises so itself, or a *barrier* (a durable transaction, a sync)
was begun after its acknowledgement and acknowledged: commits reach the disk in their order.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, TypeAlias

# The sha256 of a message, or `file:` and the path of a client's own file.
Key: TypeAlias = str


class Life(StrEnum):
    """Whether there is such a message."""

    LIVE = "live"
    EXPUNGED = "expunged"
    GONE = "gone"  # nothing of it was ever seen, or it was reclaimed


class State(NamedTuple):
    """Flags as Maildir letters, and the user's own keywords; of a live message only. None: whichever."""

    life: Life
    letters: str | None = None
    keywords: frozenset[str] | None = None

    def allows(self, found: "State") -> bool:
        """Whether this is what was found."""
        if self.life is not found.life:
            return False
        if self.life is not Life.LIVE:
            return True
        return self.letters in (None, found.letters) and self.keywords in (None, found.keywords)

    def __str__(self) -> str:
        if self.life is not Life.LIVE:
            return str(self.life)
        keywords = "?" if self.keywords is None else " ".join(sorted(self.keywords))
        return f"live[{'?' if self.letters is None else self.letters}; {keywords}]"


GONE = State(Life.GONE)
EXPUNGED = State(Life.EXPUNGED)
RECOVERED = State(Life.LIVE, None, frozenset({"recovered"}))


def live(letters: str | None = "", keywords: Iterable[str] | None = ()) -> State:
    """A live message."""
    words = None if keywords is None else frozenset(keywords)
    return State(Life.LIVE, None if letters is None else "".join(sorted(letters)), words)


def state_of(fields: Iterable[object]) -> State:
    """A state that went through JSON."""
    life, letters, keywords = fields
    assert letters is None or isinstance(letters, str)
    assert keywords is None or isinstance(keywords, list)
    return State(Life(str(life)), letters, None if keywords is None else frozenset(keywords))


def fields_of(state: State) -> tuple[str, str | None, list[str] | None]:
    """A state for JSON."""
    keywords = None if state.keywords is None else sorted(state.keywords)
    return str(state.life), state.letters, keywords


class Power(StrEnum):
    """Of the disk."""

    ON = "on"
    GOING = "going"  # the ioctl has begun
    OFF = "off"  # every call from now on fails


@dataclass
class Operation:
    """One operation of an actor; `began` and `acked` are places in the one order.

    `may_reclaim`: whatever is expunged may be gone afterwards. `may_recover`: whatever a pack holds and the index had
    lost, because nobody was told that it was stored, may be there. `is_later`: it may be done at any time from now on, by whoever
    finds it half done.
    """

    who: str
    what: str
    to: Mapping[Key, State]
    is_durable: bool
    is_barrier: bool
    may_reclaim: bool = False
    may_recover: bool = False
    is_later: bool = False
    began: int = 0
    acked: int | None = None
    is_in_the_dark: bool = False
    cuts_before: int = 0

    def __str__(self) -> str:
        kind = "durable" if self.is_durable else "not durable"
        acked = "never acknowledged" if self.acked is None else f"acknowledged at {self.acked}"
        when = f"after {self.cuts_before} cuts" + " and the next" * self.is_in_the_dark
        return f"{self.who} {when}: {self.what} ({kind}), begun at {self.began}, {acked}"


@dataclass
class Ledger:
    """All that was said since the disk was made. `base`: what each message may have been when power came back last."""

    base: dict[Key, set[State]] = field(default_factory=dict)
    operations: dict[tuple[str, int], Operation] = field(default_factory=dict)
    # What was done before earlier cuts.
    past: list[Operation] = field(default_factory=list)
    _cuts: int = 0
    # What somebody wanted to bring at some time, and what was reclaimed of it.
    named: set[Key] = field(default_factory=set)
    reclaimed: set[Key] = field(default_factory=set)
    # What may still come true.
    later: dict[Key, State] = field(default_factory=dict)
    _place: int = 0
    _power: Power = Power.ON

    def cut(self, power: Power) -> None:
        """What was acknowledged until now was acknowledged while there was power, or was begun when there was."""
        self._power = power

    def begin(self, who: str, number: int, operation: Operation) -> None:
        """Somebody is about to do something."""
        self._place += 1
        operation.began = self._place
        operation.is_in_the_dark = self._power is Power.OFF
        operation.cuts_before = self._cuts
        self.operations[who, number] = operation
        self.named |= operation.to.keys()
        if operation.is_later:
            self.later.update(operation.to)

    def acknowledge(self, who: str, number: int) -> Operation:
        """It was done."""
        self._place += 1
        operation = self.operations[who, number]
        # A call that was under way may say that all is well: ext4 does not tell who waits for fsync that the conversion of
        # its extents failed (ext4_end_io_end). Where power is really cut nobody hears that. A call begun later must fail.
        if self._power is Power.ON or operation.is_in_the_dark:
            operation.acked = self._place
        return operation

    def acknowledged(self) -> int:
        """How many were since power came back last."""
        return sum(each.acked is not None for each in self.operations.values())

    def touching(self, key: Key) -> list[Operation]:
        """What was done to a message since the disk was made."""
        return [each for each in (*self.past, *self.operations.values()) if key in each.to]

    def last_barrier_or_none(self) -> Operation | None:
        """The barrier that was begun last of those that were acknowledged."""
        found = [each for each in self.operations.values() if each.is_barrier and each.acked]
        return max(found, key=lambda each: each.began, default=None)

    def allowed(self) -> dict[Key, set[State]]:
        """What each message may be now that power was cut."""
        operations = self.operations.values()
        last = self.last_barrier_or_none()
        barrier = 0 if last is None else last.began
        allowed = {key: set(states) for key, states in self.base.items()}
        for each in operations:
            is_certain = each.acked is not None and (each.is_durable or each.acked < barrier)
            for key, state in each.to.items():
                before = allowed.setdefault(key, {GONE})
                allowed[key] = {state} if is_certain else before | {state}
        for key, state in self.later.items():
            if GONE in allowed.setdefault(key, {GONE}):
                allowed[key].add(state)
        if any(each.may_reclaim for each in operations):
            was_expunged = {key for key, states in allowed.items() if EXPUNGED in states}
            for key in was_expunged:
                allowed[key].add(GONE)
        if any(each.may_recover for each in operations):
            for key in self.named - self.reclaimed:
                if GONE in allowed.setdefault(key, {GONE}):
                    allowed[key].add(RECOVERED)
        return allowed

    def settle(self, found: Mapping[Key, State]) -> None:
        """Power is back, and this was found: from here on it is what is."""
        self.reclaimed |= {
            key for key, states in self.allowed().items() if EXPUNGED in states and key not in found
        }
        self.base = {key: {state} for key, state in found.items()}
        self.later = {key: state for key, state in self.later.items() if key not in found}
        self._begin_anew()

    def settle_unseen(self) -> None:
        """Power is back, and nobody has looked."""
        self.base = self.allowed()
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.past += self.operations.values()
        self.operations.clear()
        self._cuts += 1
        self._power = Power.ON


def judge(ledger: Ledger, found: Mapping[Key, State]) -> list[str]:
    """What is not as it may be."""
    wrong = []
    allowed = ledger.allowed()
    for key in allowed.keys() | found.keys():
        state = found.get(key, GONE)
        may_be = allowed.get(key, {GONE})
        if not any(each.allows(state) for each in may_be):
            told = "; ".join(map(str, ledger.touching(key))) or "nobody touched it"
            words = " or ".join(sorted(map(str, may_be)))
            wrong.append(f"{key} is {state}, and should be {words}: {told}")
    if wrong:
        wrong.append(f"the last barrier was: {ledger.last_barrier_or_none()}")
    return wrong
