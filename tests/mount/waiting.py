"""Waiting for a condition, never for a time."""

import select
import time
from collections.abc import Callable
from typing import TypeVar

DEADLINE_S = 10.0
_STEP_S = 0.01

T = TypeVar("T")


def pause(seconds: float) -> None:
    """Between two looks at a condition, or while something is measured."""
    select.select([], [], [], seconds)


def wait_until(condition: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """The first true answer of `condition`. Fails the test, saying `what` did not come."""
    give_up = time.monotonic() + deadline_s
    while not (answer := condition()):
        assert time.monotonic() < give_up, f"not within {deadline_s:g} s: {what}"
        pause(_STEP_S)
    return answer
