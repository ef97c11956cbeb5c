"""Messages that say themselves whether they are whole: the first line is the hash of all that follows."""

import hashlib
import re
import time
from email.utils import formatdate
from random import Random
from typing import NamedTuple

HOST = "stress.example.org"
_WORDS = ("apples", "pears", "plums", "the minutes", "a question", "good news")
_SENDERS = ("Ann <ann@example.org>", "Bob <bob@example.org>", "list@lists.example.org")
_CHECK = re.compile(rb"X-Check: ([0-9a-f]{64})\n")
_MESSAGE_ID = re.compile(rb"^Message-ID: <([^>]+)>$", re.MULTILINE)
# One message in so many is large: it is stored in several frames and read in several requests.
_LARGE_ONE_IN = 80
_LARGE_BYTES = 600_000
_HOURS_BACK = 3


class Letter(NamedTuple):
    """A message, and the two names it has in the ledger."""

    message_id: str
    digest: str
    raw: bytes


def make_letter(origin: str, number: int, random: Random) -> Letter:
    """Message `<origin.number@HOST>`; the random numbers choose the rest. One in three answers an earlier one."""
    message_id = f"{origin}.{number}@{HOST}"
    fields = [
        f"From: {random.choice(_SENDERS)}",
        "To: bob@example.org",
        f"Subject: {random.choice(_WORDS)} {number}",
        f"Date: {formatdate(time.time() - random.uniform(0, _HOURS_BACK * 3600))}",
        f"Message-ID: <{message_id}>",
    ]
    if number and random.random() < 1 / 3:
        fields.append(f"References: <{origin}.{random.randrange(number)}@{HOST}>")
    size = random.randrange(4000)
    if not random.randrange(_LARGE_ONE_IN):
        size = random.randrange(_LARGE_BYTES)
    line = f"{random.choice(_WORDS)} {random.getrandbits(64):x}\n"
    rest = ("\n".join(fields) + "\n\n" + line * (1 + size // len(line))).encode()
    raw = b"X-Check: " + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest
    return Letter(message_id, digest_of(raw), raw)


def digest_of(raw: bytes) -> str:
    """How a message is named in the ledger: not with the hash that the store itself uses."""
    return hashlib.sha256(raw).hexdigest()


def letter_of_or_none(raw: bytes) -> Letter | None:
    """What was read; None unless it is a whole letter, byte for byte."""
    check, message_id = _CHECK.match(raw), _MESSAGE_ID.search(raw)
    if check is None or message_id is None:
        return None
    if hashlib.sha256(raw[check.end() :]).hexdigest().encode() != check[1]:
        return None
    return Letter(message_id[1].decode(), digest_of(raw), raw)
