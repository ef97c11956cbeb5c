"""Keywords: the grammar, and the one table that ties system keywords, bits, Maildir letters and words together.

A system keyword is a bit in a message's `flags`; every other keyword is a row of its own. `recent` is a
bit too, but no keyword: it says that the message still stands in `new/` (RFC 3501's \\Recent).
Letters: maildir(5) of qmail, "info"; names: RFC 9051 section 2.3.2 and the IANA list of keywords.
"""

import unicodedata
from collections.abc import Iterable

from mailfs.errors import BadKeyword
from mailfs.ids import Keyword

SEEN = 1 << 0
ANSWERED = 1 << 1
FLAGGED = 1 << 2
DRAFT = 1 << 3
FORWARDED = 1 << 4
DELETED = 1 << 5
RECENT = 1 << 6
# A fact of the message kept beside its flags so that `has:attachment` costs no extra column.
ATTACHMENT = 1 << 7
# $deleted was set by a client in some view: it shows T only where the entry says so. IMAP's \Deleted asks to take
# *this* link away; shown in another folder, a synchroniser would expunge the copy there.
DELETED_BY_ENTRY = 1 << 8
DELETED_LETTER = b"T"

SYSTEM_KEYWORDS: dict[Keyword, int] = {
    Keyword("$seen"): SEEN,
    Keyword("$answered"): ANSWERED,
    Keyword("$flagged"): FLAGGED,
    Keyword("$draft"): DRAFT,
    Keyword("$forwarded"): FORWARDED,
    Keyword("$deleted"): DELETED,
}

# Maildir letters in the order they must be written, which is ASCII order.
_LETTERS: tuple[tuple[int, bytes], ...] = (
    (DRAFT, b"D"),
    (FLAGGED, b"F"),
    (FORWARDED, b"P"),
    (ANSWERED, b"R"),
    (SEEN, b"S"),
    (DELETED, b"T"),
)
_BIT_OF_LETTER: dict[int, int] = {letter[0]: bit for bit, letter in _LETTERS}
LETTER_BITS = sum(bit for bit, _ in _LETTERS)

# Words notmuch, mu and mutt users type for the same things.
_SYNONYMS: dict[str, Keyword] = {
    "replied": Keyword("$answered"),
    "passed": Keyword("$forwarded"),
    "starred": Keyword("$flagged"),
    "trashed": Keyword("$deleted"),
}

# No keyword, though notmuch has a tag of that name: it is the absence of $seen, also in queries.
UNREAD = "unread"

# What mail programs note of a message by themselves, in IMAP keywords without `$` (Thunderbird and others).
_MARKS = frozenset({Keyword("junk"), Keyword("nonjunk"), Keyword("notjunk")})

MAX_KEYWORD_CHARS = 200
# Longer ones are not even normalised: Python sorts the marks on a letter in a time that can be quadratic.
# No composition makes one character of more than four.
_MAX_TYPED_CHARS = 4 * MAX_KEYWORD_CHARS
# RFC 9051 atom-specials, and what the query language and file names need for themselves.
_FORBIDDEN = frozenset('(){}*%"\\]')


def parse_keyword(word: str) -> Keyword:
    """The normalised keyword: `Seen`, `seen` and `$seen` are `$seen`; a user's own is NFC, lower case.

    Raises BadKeyword for an empty or overlong word, blanks, controls and the signs `(){}*%"\\]`.
    """
    if len(word) > _MAX_TYPED_CHARS:
        raise _bad_length(word)
    text = unicodedata.normalize("NFC", word).lower()
    bare = text.removeprefix("$")
    system = Keyword("$" + bare)
    if system in SYSTEM_KEYWORDS:
        return system
    if text in _SYNONYMS:
        return _SYNONYMS[text]
    if bare == UNREAD:
        raise BadKeyword(
            "unread is no keyword but the absence of $seen: put seen on or take it off"
        )
    if not text or len(text) > MAX_KEYWORD_CHARS:
        raise _bad_length(word)
    for sign in text:
        if sign in _FORBIDDEN or sign.isspace() or not sign.isprintable():
            raise BadKeyword(f"a keyword cannot contain {sign!r}: {word[:60]!r}")
    if text[0] in "-+":
        raise BadKeyword(f"a keyword cannot begin with {text[0]!r}: {word[:60]!r}")
    return Keyword(text)


def _bad_length(word: str) -> BadKeyword:
    return BadKeyword(f"a keyword has 1 to {MAX_KEYWORD_CHARS} characters: {word[:60]!r}")


def is_mark(keyword: Keyword) -> bool:
    """Whether a user's own keyword only says something of a message: `$label1`, `nonjunk`.

    Any other one is a link: it holds the message as a directory entry holds a file.
    """
    return keyword.startswith("$") or keyword in _MARKS


def keyword_for_folder(name: str) -> Keyword:
    """The keyword a folder of this name gets: blanks become `-`, signs a keyword cannot have become `_`.

    >>> keyword_for_folder("Lists/My List")
    'lists/my-list'
    """
    text = unicodedata.normalize("NFC", name).lower().strip()
    text = "".join(
        "-" if sign.isspace() else "_" if sign in _FORBIDDEN or not sign.isprintable() else sign
        for sign in text
    )
    text = text.lstrip("-+$")[:MAX_KEYWORD_CHARS] or "folder"
    # A folder called `Flagged` or `Unread` is the user's folder, not the state of that name.
    if text == UNREAD or parse_keyword(text) in SYSTEM_KEYWORDS:
        text = f"folder/{text}"
    return Keyword(text)


def flags_of_letters(letters: bytes) -> int:
    """The bits of Maildir info letters; unknown letters give none."""
    flags = 0
    for letter in letters:
        flags |= _BIT_OF_LETTER.get(letter, 0)
    return flags


def letters_of_flags(flags: int) -> bytes:
    """Maildir info letters in ASCII order, as maildir(5) asks. Without T where that is for entries to say."""
    return _LETTERS_OF_FLAGS[flags & _SHOWN_BITS]


_SHOWN_BITS = LETTER_BITS | DELETED_BY_ENTRY


def _letters(flags: int) -> bytes:
    if flags & DELETED_BY_ENTRY:
        flags &= ~DELETED
    return b"".join(letter for bit, letter in _LETTERS if flags & bit)


_LETTERS_OF_FLAGS: tuple[bytes, ...] = tuple(map(_letters, range(_SHOWN_BITS + 1)))


def split_keywords(keywords: Iterable[Keyword]) -> tuple[int, frozenset[Keyword]]:
    """System keywords as bits, and the user's own as a set."""
    flags = 0
    own = set()
    for keyword in keywords:
        bit = SYSTEM_KEYWORDS.get(keyword)
        if bit is None:
            own.add(keyword)
        else:
            flags |= bit
    return flags, frozenset(own)


def keywords_of_flags(flags: int) -> list[Keyword]:
    """System keywords of these bits, in table order."""
    return [keyword for keyword, bit in SYSTEM_KEYWORDS.items() if flags & bit]
