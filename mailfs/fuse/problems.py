"""What this mount refused, for people who wonder why: `.mailfs/errors`. The last ones, oldest first."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from mailfs.views.control import one_line

# A client in a loop must not push out what somebody will want to read an hour later, nor fill the memory.
MAX_PROBLEMS = 200


class Problem(NamedTuple):
    """A refusal: when it came last (seconds since 1970), of what, why, and how often in a row."""

    time_s: float
    handler: str
    text: str
    times: int = 1


class Problems:
    """The last MAX_PROBLEMS refusals. Only for the thread that serves requests."""

    def __init__(self) -> None:
        self._kept: deque[Problem] = deque(maxlen=MAX_PROBLEMS)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._kept)

    def add(self, handler: str, text: str) -> None:
        """Keep a refusal. The same one again is counted, not kept twice."""
        times = 1
        if self._kept and self._kept[-1][1:3] == (handler, text):
            times += self._kept.pop().times
        self._kept.append(Problem(time.time(), handler, text, times))


def errors_content(problems: Iterable[Problem], unshown: Mapping[str, str]) -> bytes:
    """A line for each saved search that is not shown, by name, then one for each refusal, in local time."""
    lines = [f"the search {name} is not shown: {reason}" for name, reason in unshown.items()]
    for problem in problems:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(problem.time_s))
        often = f" ({problem.times} times)" if problem.times > 1 else ""
        lines.append(f"{when} {problem.handler}: {problem.text}{often}")
    return "".join(f"{one_line(line)}\n" for line in lines).encode(errors="backslashreplace")
