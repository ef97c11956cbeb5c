"""Hostile lines of headers."""

from collections.abc import Callable

from tests.torture.hostile_mail import MIB, Kind, Shape, constant, numbered, repeat

# Names a file, a folder, a Message-ID or a keyword could be given to lead out of its place, or to command a shell or a terminal.
EVIL_NAMES: tuple[bytes, ...] = (
    b"../../../../etc/passwd",
    b"..",
    b".",
    b"/etc/passwd",
    b"//",
    b"a/../../b",
    b"-rf",
    b"--help",
    b"~root/.ssh/authorized_keys",
    b"$(touch owned)",
    b"`touch owned`",
    b"; touch owned",
    b"| touch owned",
    b"\x1b]0;owned\x07",
    b"\x1b[2J",
    b"\x9b2J",
    b"a\rb",
    b"a\tb",
    b"%00",
    b"%2e%2e%2f",
    b"a\\..\\b",
    b"C:\\boot.ini",
    b"con",
    b"\xe2\x80\xaegnp.exe",
    b"\xc0\xae\xc0\xae/",
    b"\xff\xfe",
    b"x" * 255,
    b"x" * 300,
    b"\xf0\x9f\x98\x80" * 64,
    b"cur",
    b"new",
    b"tmp",
    b".mailfs",
    b".expunged",
    b"1700000000.M1.abcdefgh,S=10:2,S",
    b":2,S",
    b"a:2,",
    b",S=1",
    b" ",
    b"",
)
_QUOTABLE = tuple(name.replace(b"\\", b"\\\\").replace(b'"', b'\\"') for name in EVIL_NAMES)


def _fields(name: str, number: int, build: Callable[[int], bytes], size: int = MIB) -> Shape:
    return Shape(name, number, Kind.FIELDS, build, size)


def _pieces(unit: str, order: Callable[[int], list[int]]) -> Callable[[int], bytes]:
    """RFC 2231 pieces of a file name, numbered in some order."""

    def build(size: int) -> bytes:
        numbers = order(size // (len(unit) + 6))
        pieces = b"".join(b";\n " + (unit % number).encode() for number in numbers)
        return b"Content-Disposition: attachment" + pieces + b"\n"

    return build


def _many_evil_names(size: int) -> bytes:
    lines = [
        b'Content-Disposition: attachment; filename="'
        + name
        + b'"\nContent-Type: text/x; name="'
        + name
        + b'"\n'
        for name in _QUOTABLE
    ]
    return b"".join(lines)[:size] + b"\n"


def _evil_name(name: bytes) -> Callable[[int], bytes]:
    return constant(
        b'Content-Disposition: attachment; filename="%s"\nMessage-ID: <%s>\nList-Id: <%s>\n'
        % (name, name, name)
    )


def _many_of(names: tuple[bytes, ...]) -> Callable[[int], bytes]:
    def build(size: int) -> bytes:
        lines = b"".join(b"%s: x\n" % name for name in names)
        return lines * max(1, size // len(lines))

    return build


SHAPES: tuple[Shape, ...] = (
    # 1: many lines (Dovecot CVE-2024-23184)
    _fields("to lines", 1, repeat(b"To: a@example.org\n", after=b""), 500_000 * 18),
    _fields(
        "cc lines with names", 1, repeat(b"Cc: Ann <ann@example.org>\n", after=b""), 100_000 * 26
    ),
    _fields("empty to lines", 1, repeat(b"To:\n", after=b"")),
    _fields(
        "received lines", 1, repeat(b"Received: from x; Mon, 32 Foo 2020 99:99:99\n", after=b"")
    ),
    _fields(
        "every field often",
        1,
        _many_of((b"From", b"To", b"Subject", b"Date", b"Content-Type", b"References")),
    ),
    # 2: large headers (Dovecot CVE-2024-23185)
    _fields("one unknown field of 20 MB", 2, repeat(b"x", b"X-Long: "), 20 * MIB),
    _fields("one folded field of 20 MB", 2, repeat(b"\n x", b"Comments: "), 20 * MIB),
    _fields("folded to", 2, repeat(b"a@example.org,\n ", b"To: "), 4 * MIB),
    _fields("subject folded with tabs", 2, repeat(b"\n\tx", b"Subject: "), 4 * MIB),
    _fields("blank folds", 2, repeat(b"\n ", b"Subject: ")),
    # 3: many addresses (Dovecot CVE-2026-27852)
    _fields("a million addresses", 3, repeat(b"a@example.org, ", b"To: "), 15_000_000),
    _fields("addresses with names", 3, numbered(b'"N, %d" <n@example.org>, ', b"From: "), 4 * MIB),
    _fields(
        "encoded names", 3, repeat(b"=?utf-8?q?=C3=84nn?= <a@example.org>, ", b"Cc: "), 4 * MIB
    ),
    # 4: groups, no addresses (mutt CVE-2021-3181, Dovecot CVE-2019-19722)
    _fields("empty groups", 4, repeat(b";", b"From: ")),
    _fields("groups", 4, repeat(b"g:;,", b"To: ")),
    _fields("groups in groups", 4, repeat(b"g:", b"To: ")),
    _fields("routes", 4, repeat(b"<@a,@b:", b"From: ")),
    _fields("no address", 4, constant(b"From:\nTo: <>\nCc: <@>\nSender: nobody\n")),
    _fields("opening brackets", 4, repeat(b"<", b"From: ")),
    _fields("open quotes", 4, repeat(b'"\\', b"From: ")),
    # 5: RFC 2231 pieces (Dovecot CVE-2026-27859, CPython gh-136063)
    _fields(
        "pieces in order", 5, _pieces("filename*%d=abc", lambda n: list(range(n))), 100_000 * 22
    ),
    _fields("pieces in reverse", 5, _pieces("filename*%d=abc", lambda n: list(range(n, 0, -1)))),
    _fields(
        "pieces with gaps", 5, _pieces("filename*%d*=%%41", lambda n: list(range(0, 2 * n, 2)))
    ),
    _fields("one piece often", 5, _pieces("filename*%d=a", lambda n: [0] * n)),
    _fields(
        "pieces of huge number",
        5,
        _pieces("filename*9999999999999999%d=a", lambda n: list(range(n))),
    ),
    _fields(
        "percent signs", 5, repeat(b"%41", b"Content-Disposition: attachment; filename*=utf-8''")
    ),
    _fields("quotes in a charset", 5, repeat(b"'", b"Content-Disposition: attachment; filename*=")),
    _fields("parameters", 5, numbered(b";p%d=x", b"Content-Type: text/plain")),
    # 8: comments (Cyrus CVE-2026-47088)
    _fields("open comments", 8, repeat(b"(", b"From: ")),
    _fields("comments in a date", 8, repeat(b"(x)", b"Date: Mon, 1 Jan 2024 00:00:00 +0000 ")),
    _fields("comment that ends in a backslash", 8, repeat(b"(\\", b"To: ")),
    _fields("comments in a content type", 8, repeat(b"(\\)", b"Content-Type: text/plain ")),
    # 9: encoded words (mutt CVE-2023-4874)
    _fields("encoded words in a row", 9, repeat(b"=?utf-8?q?a?= ", b"To: "), 4 * MIB),
    _fields("empty encoded words", 9, repeat(b"=?utf-8?b??= =?utf-8?q??=", b"To: ")),
    _fields("foreign base64", 9, repeat(b"=?utf-8?b?*-_!\xff?= ", b"Subject: ")),
    _fields("unknown charsets", 9, numbered(b"=?x-%d?q?a?= ", b"To: ")),
    _fields(
        "charsets in turn",
        9,
        repeat(b"=?utf-8?b?4pi6?= =?utf-16?q?a=00?= =?iso-2022-jp?b?GyRC?= ", b"Subject: "),
    ),
    _fields("utf-7 words", 9, repeat(b"=?utf-7?q?+2AA-?= ", b"From: ")),
    _fields("words that never end", 9, repeat(b"=?a?q?", b"To: ")),
    _fields("words of languages", 9, repeat(b"=?utf-8*en*de?q?a?=", b"Cc: ")),
    # 10: line ends hidden (CPython CVE-2024-6923)
    _fields(
        "line ends in encoded words",
        10,
        repeat(b"=?utf-8?q?a=0D=0ABcc:_x=40example.org?=", b"From: "),
    ),
    _fields("line ends in base64 words", 10, repeat(b"=?utf-8?b?DQpTdWJqZWN0OiB4?= ", b"To: ")),
    _fields("nul in encoded words", 10, repeat(b"=?utf-8?q?a=00b?=", b"List-Id: ")),
    _fields("carriage returns in quotes", 10, repeat(b'"a\rBcc: x" ', b"From: ")),
    _fields(
        "unicode line ends", 10, repeat(b"a\xe2\x80\xa8b\xe2\x80\xa9c\xc2\x85", b"Message-ID: <")
    ),
    # 11: addresses that read as others (CPython CVE-2019-16056, CVE-2023-27043)
    _fields("two at signs", 11, repeat(b"a@b(c)@d, ", b"From: ")),
    _fields("address as a name", 11, repeat(b'"x@y" <z@w>, ', b"From: ")),
    _fields("bracket between addresses", 11, repeat(b"alice@a]<bob@b>, ", b"To: ")),
    # 12: words without an end (CPython bpo-33529)
    _fields("subject of one word", 12, repeat(b"x", b"Subject: "), 10 * MIB),
    _fields("recipient of one word", 12, repeat(b"x", b"To: ")),
    _fields("combining marks", 12, repeat(b"\xcc\x81\xcc\x96", b"Subject: a")),
    _fields("diacritics in from", 12, repeat(b"\xc3\xa9\xcc\x81", b"From: ")),
    # 14: numbers out of range (mutt CVE-2022-1328)
    _fields("year of many digits", 14, repeat(b"9", b"Date: Mon, 1 Jan ")),
    _fields("zone +9999", 14, constant(b"Date: Mon, 1 Jan 9999 23:59:60 -9999\n")),
    _fields(
        "year 0",
        14,
        constant(b"Date: Mon, 1 Jan 0000 00:00:00 +0000\nReceived: x; 1 Jan 0 00:00:00\n"),
    ),
    _fields(
        "32 bits and more",
        14,
        constant(b"Date: 19 Jan 2038 03:14:08 +0000\nReceived: x; 7 Feb 2106 06:28:16 +0000\n"),
    ),
    _fields(
        "false lengths",
        14,
        constant(b"Content-Length: 99999999999999999999\nContent-Length: -1\nLines: -5\n"),
    ),
    _fields("date of blanks", 14, repeat(b" ", b"Date: Mon, 1 Jan")),
    # 16: signs in names of fields (Dovecot CVE-2011-1929)
    _fields("nul in field names", 16, repeat(b"Su\0bject: x\n", after=b"")),
    _fields("8-bit field names", 16, repeat(b"S\xffbject: x\n", after=b"")),
    _fields("fields without a colon", 16, repeat(b"X\n", after=b"")),
    _fields("colons first", 16, repeat(b":x\n", after=b"")),
    _fields("name of one megabyte", 16, repeat(b"x", after=b": y\n")),
    _fields("blanks before a colon", 16, repeat(b" \t", b"Subject", b": y\n")),
    _fields("carriage returns in a value", 16, repeat(b"\r.\r", b"Comments: x")),
    # 17: names that lead away (mutt CVE-2018-14354 and on)
    _fields("all evil names", 17, _many_evil_names),
    *(
        _fields(f"evil name {number}", 17, _evil_name(name))
        for number, name in enumerate(_QUOTABLE)
    ),
    _fields(
        "slashes in a file name",
        17,
        repeat(b"../", b'Content-Disposition: attachment; filename="', b'"\n'),
    ),
    # 18: many keys
    _fields("boundaries", 18, numbered(b";boundary=b%d", b"Content-Type: multipart/mixed")),
    _fields("message ids", 18, numbered(b"Message-ID: <%d@example.org>\n", after=b"")),
    # 23: ids (neomutt's notmuch, mu d0619b1d)
    _fields("message id of one megabyte", 23, repeat(b"x", b"Message-ID: <", b">\n")),
    _fields("50,000 references", 23, numbered(b"<%d@example.org> ", b"References: "), 50_000 * 20),
    _fields("references without an end", 23, repeat(b"<", b"References: ")),
    _fields("reply to prose", 23, repeat(b"Ann <ann@example.org>'s message ", b"In-Reply-To: ")),
    _fields(
        "refers to itself",
        23,
        constant(b"Message-ID: <loop@x>\nReferences: <loop@x> <other@x>\nIn-Reply-To: <loop@x>\n"),
    ),
    _fields("no message id", 23, constant(b"Message-ID:\nReferences: <> <<>> >\nIn-Reply-To: <\n")),
)
