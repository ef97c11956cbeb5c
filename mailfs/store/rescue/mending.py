"""What the parts of a repair share: the store at hand, and what became of one finding."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from mailfs.store.journal import Operation
from mailfs.store.rescue.copies import Copies
from mailfs.store.rescue.findings import Finding
from mailfs.store.store import Store
from mailfs.store.transaction import Transaction


class Fate(Enum):
    """MENDED: as it was. LOST: it could not be, and what is left of it is kept aside. KEPT: nothing was done."""

    MENDED = "mended"
    LOST = "lost"
    KEPT = "not mended"


class Outcome(NamedTuple):
    """What became of a finding, and how. `message`: Message-ID, sender and subject of what is lost, for its owner."""

    fate: Fate
    finding: Finding
    how: str
    message: str = ""

    def __str__(self) -> str:
        message = f"; {self.message}" if self.message else ""
        return f"{self.fate.value}: {self.finding.where}: {self.finding.what}: {self.how}{message}"


@dataclass
class Repair:
    """A store under repair. `findings` are all of this round; one whose cause is mended already is passed over."""

    store: Store
    operation: Operation
    copies: Copies
    findings: tuple[Finding, ...] = ()

    def transaction(self) -> AbstractContextManager[Transaction]:
        """A durable write transaction of this repair."""
        return self.store.writer.transaction("repair", durable=True, operation=self.operation)


def mended(finding: Finding, how: str) -> Outcome:
    """It is as it was."""
    return Outcome(Fate.MENDED, finding, how)


def kept(finding: Finding, why: str) -> Outcome:
    """Nothing was done."""
    return Outcome(Fate.KEPT, finding, why)


def say_mended(repair: Repair, finding: Finding, how: str) -> None:
    """Put into the journal what was done outside of a transaction."""
    with repair.transaction() as transaction:
        transaction.say_repaired(finding.where, finding.what, how)
