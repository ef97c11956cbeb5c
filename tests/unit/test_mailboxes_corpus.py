"""Real mailboxes: how many messages each holds, and their bytes by a second, plain reading."""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailfs.ingest.mailboxes import FileRef, MboxRef, SourceProblem, iter_source, read_ref

CORPUS = Path(__file__).resolve().parents[2] / "../shared/corpus"

pytestmark = [
    pytest.mark.corpus,
    pytest.mark.skipif(not CORPUS.is_dir(), reason="no shared/corpus beside the project"),
]

# As the corpus' README counts them, but for three where it counts files:
MESSAGES = {
    "blinux-list": 248,
    "cpython-test-email": 47,
    "csdmc2010-spam": 150,
    "linux-api": 480,
    "linux-man": 304,
    "linux-mips": 424,
    "mime4j-testmsgs": 48,
    # 57 files, five of them dot files (.noindex, .noupdate) and one in a Maildir's tmp/.
    "mu-testdata": 51,
    "notmuch-corpora": 321,
    "phishing-pot": 199,
    "public-inbox-tests": 28,
    # 105 files, one of them .gitattributes.
    "ruby-mail-fixtures": 104,
    # 222 files, one of them (bsd/rfc3464-28.eml) an mbox of two messages.
    "sisimai-bounces": 223,
    "spamassassin-public-corpus": 248,
    "twisted-pipermail": 168,
    "usrp-users": 93,
}


def unpack(archive: tarfile.TarFile, root: Path) -> None:
    """Regular files only: extractall() is called in one way before Python 3.12 and in another after."""
    for member in archive:
        content = archive.extractfile(member) if member.isfile() else None
        if content is not None:
            path = root / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    for name in MESSAGES:
        with tarfile.open(CORPUS / f"{name}.tar.gz") as archive:
            unpack(archive, root)
    return root


def refs_of(path: Path) -> list[FileRef | MboxRef]:
    refs = []
    for found in iter_source(path):
        assert not isinstance(found, SourceProblem), found
        refs.append(found)
    return refs


@pytest.mark.parametrize("name", MESSAGES)
def test_a_source_has_as_many_messages_as_it_is_known_to_have(unpacked: Path, name: str) -> None:
    assert len(refs_of(unpacked / name)) == MESSAGES[name]


def plain_mbox(content: bytes) -> Iterator[bytes]:
    """An mbox read line by line: a From_ line behind a blank line begins a message, one `>` is taken away."""
    lines: list[bytes] | None = None
    blank_before = True
    for line in content.splitlines(keepends=True):
        is_start = blank_before and re.match(rb"From .*\d\d:\d\d.*\d\d(\d\d| \(\w+\))\r?$", line)
        if is_start:
            if lines is not None:
                yield joined(lines)
            lines = []
        elif lines is not None:
            lines.append(line)
        blank_before = not line.strip()
    if lines is not None:
        yield joined(lines)


def joined(lines: list[bytes]) -> bytes:
    if lines and not lines[-1].strip():
        lines = lines[:-1]
    quoted = tuple(b">" * depth + b"From " for depth in range(1, 5))
    return b"".join(line[1:] if line.startswith(quoted) else line for line in lines)


@pytest.mark.parametrize("name", MESSAGES)
def test_every_byte_is_what_the_file_or_a_plain_reading_of_the_mbox_has(
    unpacked: Path, name: str
) -> None:
    by_path: dict[bytes, list[bytes]] = {}
    for ref in refs_of(unpacked / name):
        raws = by_path.setdefault(ref.path, [])
        raws.append(read_ref(ref).raw)
        if isinstance(ref, FileRef):
            assert raws == [Path(ref.path.decode()).read_bytes()]
    for ref in refs_of(unpacked / name):
        if isinstance(ref, MboxRef):
            content = Path(ref.path.decode()).read_bytes()
            assert by_path[ref.path] == list(plain_mbox(content)), ref.path


def test_every_from_line_of_the_corpus_gives_a_date(unpacked: Path) -> None:
    refs = [ref for name in MESSAGES for ref in refs_of(unpacked / name)]
    assert [
        ref for ref in refs if isinstance(ref, MboxRef) and read_ref(ref).received_ns is None
    ] == []
