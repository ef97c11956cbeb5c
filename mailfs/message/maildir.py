"""Maildir file names: the canonical name mailfs gives a message, and the grammar of names clients write.

    <received>.M<docid>.<store id>,S=<size>:2,<letters>      in cur/
    <received>.M<docid>.<store id>,S=<size>                  in new/, while it has no letters

The part before the colon is the *base*: the same in all views, for ever. Source: maildir(5) of qmail
1.06; `,S=` as Dovecot and Courier write it (the exact size in bytes).
"""

import re
from typing import NamedTuple

from mailfs.ids import Docid
from mailfs.message.keywords import LETTER_BITS, letters_of_flags

_BASE = re.compile(rb"(\d{1,20})\.M(\d{1,18})\.([0-9a-z]{1,32}),S=(\d{1,18})\Z", re.ASCII)
INFO_SEPARATOR = b":2,"
# Linux's NAME_MAX: no name longer than this reaches us.
MAX_NAME_BYTES = 255


class Base(NamedTuple):
    """What a canonical base name says."""

    received_s: int
    docid: Docid
    store_id: bytes
    size_bytes: int


class SplitName(NamedTuple):
    """An entry name cut at its info separator. `letters` is None where the name has no `:2,`."""

    base: bytes
    letters: bytes | None


def format_base(base: Base) -> bytes:
    """The canonical base name."""
    return b"%d.M%d.%s,S=%d" % base


def parse_base_or_none(base: bytes) -> Base | None:
    """What a canonical base says; None for a name mailfs would not have made."""
    match = _BASE.match(base)
    if match is None:
        return None
    received, docid, store_id, size = match.groups()
    found = Base(int(received), Docid(int(docid)), store_id, int(size))
    # Leading zeros would give one message a second name.
    return found if format_base(found) == base else None


def split_name(name: bytes) -> SplitName:
    """Cut `base:2,letters`. A name without `:2,` is all base."""
    base, separator, letters = name.partition(INFO_SEPARATOR)
    return SplitName(base, letters if separator else None)


def format_name(base: bytes, flags: int, *, in_new: bool) -> bytes:
    """The entry name of a base with these flags: in `cur/` always with info, in `new/` only with letters."""
    if in_new and not flags & LETTER_BITS:
        return base
    return base + INFO_SEPARATOR + letters_of_flags(flags)
