"""Mail made up for tests, and the types of the fixtures in conftest.py that are called."""

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import zstandard

from mailfs.ids import Docid
from mailfs.store.prepare import NewMessage, prepare_message

PROJECT = Path(__file__).resolve().parents[1]
# 2024-01-02 03:04:05 UTC, as in the Date of every message made here.
DATE_S = 1_704_164_645


def make_message(
    number: int = 0,
    *,
    subject: str = "a subject",
    sender: str = "Ann <ann@example.org>",
    recipient: str = "bob@example.org",
    body: str = "some text",
    references: Iterable[str] = (),
) -> bytes:
    """The bytes of a message; another `number` makes another Message-ID, `<N@example.org>`."""
    fields = [
        f"From: {sender}",
        f"To: {recipient}",
        f"Subject: {subject}",
        "Date: Tue, 02 Jan 2024 03:04:05 +0000",
        f"Message-ID: <{number}@example.org>",
    ]
    named = " ".join(f"<{message_id}>" for message_id in references)
    if named:
        fields.append(f"References: {named}")
    return ("\n".join(fields) + f"\n\n{body}\n").encode()


def new_message(raw: bytes, flags: int = 0) -> NewMessage:
    """A message ready to be added, received at its Date."""
    return prepare_message(raw, flags, (), None)


def make_dictionary(seed: int = 0) -> bytes:
    """A small zstd dictionary of mail like that of make_message, each seed its own."""
    samples = [
        make_message(seed * 1000 + number, body=f"{seed} {number}" * 9) for number in range(300)
    ]
    return zstandard.train_dictionary(4096, [*samples], k=1024, d=8, dict_id=seed + 1).as_bytes()


def make_mbox(messages: Iterable[bytes]) -> Iterator[bytes]:
    """An mbox as mutt writes it, in pieces; bodies must not have lines that begin with `From `."""
    for raw in messages:
        yield b"From ann@example.org Tue Jan  2 03:04:05 2024\n" + raw + b"\n"


class Deliver(Protocol):
    """The fixture `deliver`: adds one message durably; `raw` stands for all the fields of the message."""

    def __call__(
        self,
        *,
        subject: str = ...,
        sender: str = ...,
        body: str = ...,
        raw: bytes | None = ...,
        keywords: Iterable[str] = ...,
        flags: int = ...,
        new: bool = ...,
    ) -> Docid: ...


class RunMailfs(Protocol):
    """The fixture `run_mailfs`: the command as a process of its own; output is text."""

    def __call__(
        self, *arguments: str | Path, store: Path | None = ..., input: str | None = ...
    ) -> "subprocess.CompletedProcess[str]": ...


class ExpectLog(Protocol):
    """The fixture `expect_log`: a warning or error matching this pattern must come, and may."""

    def __call__(self, pattern: str, /) -> None: ...
