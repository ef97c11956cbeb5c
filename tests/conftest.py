"""Fixtures for all tests: a store that is verified at the end, real mail, the command, and a watch on the log."""

import logging
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path, PurePosixPath

import pytest

from mailfs.ids import Docid
from mailfs.message.keywords import RECENT, parse_keyword, split_keywords
from mailfs.store.prepare import prepare_message
from mailfs.store.store import Store
from tests.fakes import PROJECT, Deliver, ExpectLog, RunMailfs, make_message
from tests.oracle import problems_of

COMMAND_DEADLINE_S = 120.0


@pytest.fixture(autouse=True)
def expect_log(caplog: pytest.LogCaptureFixture) -> Iterator[ExpectLog]:
    """A test fails when mailfs logs a warning or error it did not expect, or not one it expected."""
    patterns: list[str] = []
    yield patterns.append
    # This fixture is the first to be set up and so the last to be torn down: it sees all three phases.
    records = [*caplog.get_records("setup"), *caplog.get_records("call"), *caplog.records]
    told = [
        f"{record.levelname} {record.name}: {record.getMessage()}"
        for record in dict.fromkeys(records)
        if record.levelno >= logging.WARNING and record.name.split(".")[0] == "mailfs"
    ]
    surprises = [text for text in told if not any(re.search(p, text) for p in patterns)]
    assert not surprises, f"logged, but not expected: {surprises}"
    missing = [pattern for pattern in patterns if not any(re.search(pattern, t) for t in told)]
    assert not missing, f"expected, but not logged: {missing}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A new store; when the test is over it must break no promise."""
    with Store.create(tmp_path / "store") as made:
        yield made
        assert problems_of(made) == []


@pytest.fixture
def deliver(store: Store) -> Deliver:
    """Add one message to `store`, durably; each call makes another Message-ID."""
    numbers = count(1)

    def add(
        *,
        subject: str = "a subject",
        sender: str = "Ann <ann@example.org>",
        body: str = "some text",
        raw: bytes | None = None,
        keywords: Iterable[str] = (),
        flags: int = 0,
        new: bool = False,
    ) -> Docid:
        if raw is None:
            raw = make_message(next(numbers), subject=subject, sender=sender, body=body)
        bits, own = split_keywords(map(parse_keyword, keywords))
        bits |= flags | (RECENT if new else 0)
        message = prepare_message(raw, bits, tuple(sorted(own)), None)
        with store.writer.transaction("deliver", durable=True) as transaction:
            return transaction.add(message).docid

    return add


@pytest.fixture
def run_mailfs(tmp_path: Path) -> RunMailfs:
    """Run the command as a user does. Warnings of Python are errors; no store but the one named is found."""
    home = tmp_path / "home"
    environment = {name: os.environ[name] for name in ("PATH", "TERM") if name in os.environ}
    environment |= {"HOME": str(home), "LC_ALL": "C.UTF-8", "TZ": "UTC"}

    def run(
        *arguments: str | Path, store: Path | None = None, input: str | None = None
    ) -> "subprocess.CompletedProcess[str]":
        named = [] if store is None else ["--store", str(store)]
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "mailfs", *named, *map(str, arguments)],
            input="" if input is None else input,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            env=environment,
            cwd=PROJECT,
            timeout=COMMAND_DEADLINE_S,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of real mail, one archive a source."""
    path = PROJECT / "../shared/corpus"
    if not path.is_dir():
        pytest.skip("no shared/corpus beside the project")
    return path.resolve()


@pytest.fixture(scope="session")
def unpacked_corpus(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every source of the corpus unpacked. Only to be read."""
    root = tmp_path_factory.mktemp("corpus")
    for path in sorted(corpus.glob("*.tar.gz")):
        with tarfile.open(path) as archive:
            _unpack(archive, root)
    return root


def _unpack(archive: tarfile.TarFile, root: Path) -> None:
    """Files and folders only, with their times.

    Not extractall(): Python 3.11.2 does not know its `filter`, Python 3.14 has another default.
    """
    for member in archive:
        name = PurePosixPath(member.name)
        assert not name.is_absolute(), name
        assert ".." not in name.parts, name
        path = root / name
        content = archive.extractfile(member) if member.isfile() else None
        if content is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())
            os.utime(path, (member.mtime, member.mtime))
        elif member.isdir():
            path.mkdir(parents=True, exist_ok=True)
