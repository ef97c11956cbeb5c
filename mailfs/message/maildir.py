"""Maildir file names: the canonical name mailfs gives a message, and the grammar of names clients write.

    <received>.M<docid>.<store id>,S=<size>:2,<letters>      in cur/
    <received>.M<docid>.<store id>,S=<size>                  in new/, while it has no letters

The part before the colon is the *base*: the same in all views, for ever. A client may choose another one for one
view (its delivery name, `,U=12` of mbsync), and letters we know no meaning of; both stay as it wrote them.
Source: maildir(5) of qmail 1.06; `,S=` as Dovecot and Courier write it (the exact size in bytes).
"""

import re
from enum import IntEnum
from typing import NamedTuple

from mailfs.ids import Docid

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


class Form(IntEnum):
    """How a name without letters ends. Kept, because a client looks for exactly what it wrote."""

    USUAL = 0  # `:2,` in cur/, nothing in new/
    INFO_IN_NEW = 1  # `:2,` in new/ too
    BARE_IN_CUR = 2  # nothing in cur/ either


class ChosenName(NamedTuple):
    """A name a client chose for a message in one view.

    `extra` are letters without a meaning here, sorted. `is_copy`: the client made it for a message that was
    already here, so it outlives the name it was copied from.
    """

    base: bytes
    extra: bytes = b""
    form: Form = Form.USUAL
    is_copy: bool = False


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
    """Cut `base:2,letters`. A name without `:2,`, or with other signs than letters behind it, is all base."""
    base, separator, letters = name.rpartition(INFO_SEPARATOR)
    if not separator or (letters and not letters.isalpha()):
        return SplitName(name, None)
    return SplitName(base, letters)


def format_name(base: bytes, letters: bytes, *, in_new: bool, form: Form = Form.USUAL) -> bytes:
    """The entry name of a base with these letters, which are sorted."""
    if letters:
        return base + INFO_SEPARATOR + letters
    has_info = form is Form.INFO_IN_NEW if in_new else form is not Form.BARE_IN_CUR
    return base + INFO_SEPARATOR if has_info else base


def form_of(letters: bytes | None, *, in_new: bool) -> Form:
    """The form of a name as a client wrote it into new/ or cur/."""
    if in_new:
        return Form.USUAL if letters is None else Form.INFO_IN_NEW
    return Form.BARE_IN_CUR if letters is None else Form.USUAL
