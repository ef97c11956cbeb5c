"""A mount whose disk fails when the test says so: its calls go through tests/torture/shim.c."""

import ctypes
import dataclasses
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.mount.accounts import Account
from tests.mount.mounting import Mailfs
from tests.torture.tracing import CHANGES, Control, Harm, Kind, Logged, Order, arm_control
from tests.torture.tracing import watched_environment as watched


@dataclasses.dataclass(frozen=True)
class Harmed(Account):
    """An account whose programs have the shim loaded."""

    extra: dict[str, str] = dataclasses.field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        return {**super().environment(), **self.extra}


class FailingDisk:
    """What a daemon does to its store, and how it is to end. `folder` is for the shim's own files."""

    def __init__(self, mailfs: Mailfs, folder: Path) -> None:
        folder.mkdir()
        self._mailfs = mailfs
        self._environment = watched(folder, mailfs.store)
        with (folder / "control").open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(Control))
        self._control = Control.from_buffer(self._map)
        self._control.armed = 0

    def mount(self) -> None:
        """`mount -f`, by a program whose calls can be made to fail."""
        mailfs, before = self._mailfs, self._mailfs.account
        fields = {each.name: getattr(before, each.name) for each in dataclasses.fields(before)}
        mailfs.account = Harmed(**fields, extra=self._environment)
        try:
            mailfs.mount_in_foreground()
        finally:
            mailfs.account = before

    @contextmanager
    def failing(self, error: int, kinds: Kind = CHANGES) -> Iterator[None]:
        """Within the block every call of these kinds that concerns the store fails."""
        order = Order(Harm.FAIL, at=1, kinds=kinds, error=error, for_good=True)
        arm_control(self._control, self._mailfs.store, order, Logged.NOTHING)
        try:
            yield
        finally:
            self._control.armed = 0

    @property
    def harmed(self) -> int:
        """How many calls have been made to fail since failing() was begun last."""
        return int(self._control.harmed)
