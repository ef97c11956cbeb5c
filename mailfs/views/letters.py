"""a-z letters of a view: which keywords they are, as Dovecot writes it into `dovecot-keywords` beside cur/.

    0 $Forwarded
    1 work

says that `a` is $Forwarded and `b` is work. Source: Dovecot 2.3, maildir-keywords.c; at most 26 of them. A letter
that stands for nothing we know keeps no meaning and stays in the name.
"""

import os
from dataclasses import dataclass, field
from typing import NamedTuple

from mailfs.errors import BadKeyword
from mailfs.ids import Keyword
from mailfs.message.keywords import (
    DELETED_BY_ENTRY,
    DELETED_LETTER,
    LETTER_BITS,
    SYSTEM_KEYWORDS,
    flags_of_letters,
    letters_of_flags,
    parse_keyword,
)

KEYWORDS_FILE = b"dovecot-keywords"
_LETTERS = b"abcdefghijklmnopqrstuvwxyz"
# 26 lines of words; more is not what Dovecot writes.
_MAX_FILE_BYTES = 64 * 1024
_READING = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Meaning(NamedTuple):
    """What the letters of a name say: bits, the user's own keywords, and letters without a meaning, sorted."""

    flags: int
    keywords: frozenset[Keyword]
    extra: bytes


@dataclass(frozen=True, slots=True)
class LetterMap:
    """What a view's a-z letters stand for, by letter."""

    flags: dict[int, int] = field(default_factory=dict)
    keywords: dict[int, Keyword] = field(default_factory=dict)

    def meaning(self, letters: bytes) -> Meaning:
        """Read the letters of a name."""
        flags = flags_of_letters(letters)
        keywords = set()
        extra = set()
        for letter in letters:
            if letter in self.flags:
                flags |= self.flags[letter]
            elif letter in self.keywords:
                keywords.add(self.keywords[letter])
            elif not flags_of_letters(bytes((letter,))):
                extra.add(letter)
        return Meaning(flags, frozenset(keywords), bytes(sorted(extra)))

    def letters(self, flags: int, own: bytes, extra: bytes) -> bytes:
        """Write the letters of a name; `own` are those of its own keywords, `extra` those of the entry."""
        capitals = letters_of_flags(flags)
        if not flags & DELETED_BY_ENTRY:
            extra = extra.replace(DELETED_LETTER, b"")
        if not (own or extra or self.flags):
            return capitals
        mapped = bytes(letter for letter, bit in self.flags.items() if flags & bit)
        return bytes(sorted({*capitals, *mapped, *own, *extra}))


NO_LETTERS = LetterMap()


def parse_letters(data: bytes) -> LetterMap:
    """Read the file. Lines that make no sense are left out; of two letters for one keyword the first counts."""
    flags: dict[int, int] = {}
    keywords: dict[int, Keyword] = {}
    for line in data.split(b"\n"):
        number, _, word = line.partition(b" ")
        if not number.isdigit() or len(number) > 2 or int(number) >= len(_LETTERS):
            continue
        letter = _LETTERS[int(number)]
        try:
            keyword = parse_keyword(word.decode())
        except (UnicodeDecodeError, BadKeyword):
            continue
        bit = SYSTEM_KEYWORDS.get(keyword, 0) & LETTER_BITS
        if letter in flags or letter in keywords:
            continue
        if bit and bit not in flags.values():
            flags[letter] = bit
        elif not bit and keyword not in keywords.values():
            keywords[letter] = keyword
    return LetterMap(flags, keywords)


class FileStamp(NamedTuple):
    """Tells whether a file is still the one that was read."""

    ino: int
    size: int
    mtime_ns: int


def stamp_or_none(folder: bytes) -> FileStamp | None:
    """The stamp of the keywords file in a view's own folder; None where there is none."""
    try:
        found = os.lstat(os.path.join(folder, KEYWORDS_FILE))
    except OSError:
        return None
    return FileStamp(found.st_ino, found.st_size, found.st_mtime_ns)


def read_letters(folder: bytes) -> LetterMap:
    """The map of the view whose own folder this is; empty where there is no file that can be read."""
    try:
        fd = os.open(os.path.join(folder, KEYWORDS_FILE), _READING)
    except OSError:
        return NO_LETTERS
    try:
        return parse_letters(os.read(fd, _MAX_FILE_BYTES))
    except OSError:  # a directory
        return NO_LETTERS
    finally:
        os.close(fd)
