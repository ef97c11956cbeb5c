"""Bytes of a text part to words for the index: transfer encodings, charsets, HTML.

Invariant: nothing here raises, whatever the bytes; every function takes time linear in its input; and every
text that comes out can be written as UTF-8 (no lone surrogates) and holds no NUL.
"""

import binascii
import html
import re
from collections.abc import Iterator
from encodings.aliases import aliases
from functools import lru_cache

# Codecs that are no charset of mail, or are dangerous: quadratic (punycode), with warnings and surrogates
# (unicode_escape). Only codecs Python knows an alias of are tried at all, because the look-up of an unknown
# one searches for a module and is remembered for ever.
_NO_CHARSETS = {
    "base64_codec",
    "bz2_codec",
    "hex_codec",
    "idna",
    "mbcs",
    "oem",
    "punycode",
    "quopri_codec",
    "raw_unicode_escape",
    "rot_13",
    "tactis",
    "undefined",
    "unicode_escape",
    "uu_codec",
    "zlib_codec",
}
_CODECS = (set(aliases.values()) | {"koi8_t", "koi8_u", "cp720", "cp737", "cp874"}) - _NO_CHARSETS

# Names seen in mail that Python does not know, and names that in practice mean the larger set
# (as in the WHATWG Encoding Standard, section 4.2).
_OTHER_NAMES = {
    "ascii": "",
    "latin_1": "cp1252",
    "iso_8859_8_e": "iso8859_8",
    "iso_8859_8_i": "iso8859_8",
    "iso8859_9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "x_gbk": "gb18030",
    "big5": "big5hkscs",
    "euc_kr": "cp949",
    "ks_c_5601_1987": "cp949",
    "shift_jis": "cp932",
    "x_sjis": "cp932",
    "iso2022_jp": "iso2022_jp_ext",
    "tis_620": "cp874",
    "windows_874": "cp874",
    "unicode_1_1_utf_7": "utf_7",
    "x_mac_roman": "mac_roman",
}
_NAME_SIGNS = re.compile(r"[^a-z0-9]+")
_MAX_CHARSET_CHARS = 40


@lru_cache(maxsize=512)
def _codec(charset: str) -> str:
    """Python's name of a charset; '' for none, us-ascii, unknown and unusable ones.

    us-ascii counts as "not declared": software that declares it by default sends UTF-8 all the same.
    """
    name = _NAME_SIGNS.sub("_", charset.lower()).strip("_")
    name = _OTHER_NAMES.get(name, aliases.get(name, name))
    name = _OTHER_NAMES.get(name, name)
    return name if name in _CODECS else ""


def decode_undeclared(data: bytes) -> str:
    """Text of unknown charset: ISO-2022-JP if its escapes are there, else UTF-8, else Latin-1."""
    if b"\x1b$" in data and data.isascii():
        return data.decode("iso2022_jp_ext", "replace")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        # With only its last character cut, it is still UTF-8; unless that is the only one, as in Latin-1.
        if error.start >= len(data) - 3 and not data[: error.start].isascii():
            return data.decode("utf-8", "replace")
        return data.decode("latin-1")


def decode_charset(data: bytes, charset: str) -> str:
    """Text in a declared charset ('' for none). Wrong bytes become U+FFFD, unknown charsets are guessed."""
    codec = _codec(charset) if len(charset) <= _MAX_CHARSET_CHARS else ""
    if not codec:
        return decode_undeclared(data)
    text = data.decode(codec, "replace")
    if codec == "utf_7":
        # The only codec left that lets lone surrogates through.
        text = text.encode("utf-8", "replace").decode()
    return text


_NOT_BASE64 = bytes(
    sign
    for sign in range(256)
    if sign not in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
)


def decode_base64(data: bytes) -> bytes:
    """Base64 as far as it goes: foreign signs are skipped, missing padding is added (RFC 2045 section 6.8)."""
    try:
        return binascii.a2b_base64(data)
    except binascii.Error:
        signs = data.partition(b"=")[0].translate(None, _NOT_BASE64)
    # One sign left over is 6 bits: no byte.
    if len(signs) % 4 == 1:
        signs = signs[:-1]
    return binascii.a2b_base64(signs + b"=" * (-len(signs) % 4))


def decode_transfer(data: bytes, encoding: bytes) -> bytes:
    """Undo a Content-Transfer-Encoding (lower case, no blanks); unknown ones are taken as 8bit."""
    if encoding == b"quoted-printable":
        return binascii.a2b_qp(data)
    if encoding == b"base64":
        return decode_base64(data)
    return data


_HIDDEN = re.compile(r"<(?:!--|([sS])(?:[tT][yY][lL][eE]|([cC])[rR][iI][pP][tT])\b)")
_STYLE_END = re.compile(r"</[sS][tT][yY][lL][eE]\b")
_SCRIPT_END = re.compile(r"</[sS][cC][rR][iI][pP][tT]\b")
# Before a blank or a digit it opens no tag.
_STRAY_BRACKET = re.compile(r"<(?![A-Za-z/!?])")
_PIECE_CHARS = 256 * 1024
# Text behind a tag, without its leading blanks.
_AFTER_TAG = re.compile(r">\s*+([^<\s][^<]*)")


def html_to_text(source: str) -> str:
    """The words of an HTML text: tags become blanks; comments, scripts and style sheets are left out.

    Tags are found as browsers find them but for `>` within attribute values, which leaves the rest of the
    value in the text. Of a tag never closed the rest is lost; a comment, script or style sheet never closed
    hides nothing.
    """
    # The sign before it: text before the first tag is text behind a tag like any other.
    source = ">" + _without_hidden(source)
    source = "".join(_STRAY_BRACKET.sub(" ", piece) for piece in _cut_at_brackets(source))
    text = " ".join(" ".join(_AFTER_TAG.findall(piece)) for piece in _cut_at_brackets(source))
    if "&" not in text:
        return text
    # By far the most frequent one, and an unescape of each would take most of the time.
    text = text.replace("&nbsp;", " ")
    try:
        return html.unescape(text)
    except ValueError:
        # A number of more than 4,300 digits, which int() refuses.
        return text


def _cut_at_brackets(source: str) -> Iterator[str]:
    """The text in pieces, each but the first from a `<` on.

    A million short matches at once would take fifty times the bytes they are made of.
    """
    start = 0
    while start + _PIECE_CHARS < len(source):
        end = source.find("<", start + _PIECE_CHARS)
        if end < 0:
            break
        yield source[start:end]
        start = end
    yield source[start:] if start else source


def _without_hidden(source: str) -> str:
    """HTML without its comments, scripts and style sheets; all of the rest from the first unclosed one on."""
    pieces = []
    at = 0
    while (opening := _HIDDEN.search(source, at)) is not None:
        if opening[1] is None:
            # From the last two signs of `<!--`, because `<!-->` is a comment too.
            end = source.find("-->", opening.end() - 2)
            close = end + 2
        else:
            pattern = _STYLE_END if opening[2] is None else _SCRIPT_END
            closing = pattern.search(source, opening.end())
            end = close = -1 if closing is None else closing.start()
        if end < 0:
            break
        pieces.append(source[at : opening.start()])
        at = close
    if not pieces:
        return source
    pieces.append(source[at:])
    # A sign that opens a tag, so that the text before ends there.
    return "</".join(pieces)


_PGP_BLOCK = re.compile(r"-----BEGIN PGP (?:SIGNATURE|MESSAGE|PUBLIC KEY BLOCK)-----")
_UUENCODED = re.compile(r"\nbegin [0-7]{3,4} [^\n]+\nM")


def without_armour(text: str) -> str:
    """Plain text without PGP blocks and uuencoded files: letters nobody searches for, and many of them."""
    if "-----BEGIN PGP " in text:
        text = _without_blocks(text, _PGP_BLOCK, "-----END PGP ")
    if "\nbegin " in text:
        text = _without_blocks(text, _UUENCODED, "\nend")
    return text


def _without_blocks(text: str, opening: re.Pattern[str], closing: str) -> str:
    pieces = []
    at = 0
    while (found := opening.search(text, at)) is not None:
        end = text.find(closing, found.end())
        if end < 0:
            break
        pieces.append(text[at : found.start()])
        at = end + len(closing)
    pieces.append(text[at:])
    return "\n".join(pieces)
