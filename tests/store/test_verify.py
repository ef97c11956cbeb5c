"""The oracle itself: each kind of damage is found, and nothing is found where there is none."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mailfs.errors import Corrupt
from mailfs.ids import Docid, Keyword, PackNumber, SearchId
from mailfs.message.maildir import ChosenName
from mailfs.store.database import open_writer
from mailfs.store.packs import PACK_HEAD
from mailfs.store.records import blob_hash, format_record
from mailfs.store.store import Store
from mailfs.store.verify import Counts, Severity, counts, verify
from tests.fakes import make_message, new_message


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A closed store of three messages, ready to be damaged.

    One has a keyword and a chosen name in the view of search 1, one is expunged.
    """
    path = tmp_path / "store"
    with Store.create(path) as store:
        with store.writer.transaction("test", durable=True) as transaction:
            docids = [transaction.add(new_message(make_message(n))).docid for n in (1, 2, 3)]
            transaction.edit_keywords(docids[0], add=[Keyword("work")])
            transaction.entries.put(SearchId(1), docids[0], ChosenName(b"chosen"))
            transaction.expunge(docids[2])
        assert list(verify(store)) == []
    return path


def findings(root: Path) -> list[str]:
    with Store.open(root) as store:
        return list(map(str, verify(store)))


def damage_index(root: Path, statement: str) -> None:
    connection = open_writer(root / "index.sqlite3")
    connection.execute(statement)
    connection.close()


def pack_of(root: Path) -> Path:
    return root / "packs" / "00000001.pack"


# A statement that breaks a promise, and all that verify must say of it.
INDEX_DAMAGE = {
    "DELETE FROM blob WHERE blob_id = 2": [
        "problem: message 2: names a blob that is not there",
        "note: 00000001.pack: the record at {2} is not in the index",
    ],
    "DELETE FROM message_blob WHERE docid = 1": [
        "problem: message 1: has no bytes",
        "problem: blob 1: belongs to no message",
    ],
    "DELETE FROM message WHERE docid = 1": [
        "problem: message 1: has bytes but no row",
        "problem: message 1: has keywords but no row",
        "problem: message 1: has chosen names but no row",
        "problem: message 1: has words in the search index but no row",
    ],
    "UPDATE message SET size = size + 1 WHERE docid = 3": [
        "problem: message 3: has another size than its bytes"
    ],
    "DELETE FROM envelope WHERE docid = 2": ["problem: message 2: has no envelope"],
    "UPDATE message SET modseq = 99 WHERE docid = 2": [
        "problem: message 2: has a modseq that was never given"
    ],
    "DELETE FROM keyword": ["problem: message 1: has a keyword that is not there"],
    "UPDATE entry SET docid = 3": ["problem: message 3: is expunged but has chosen names"],
    "UPDATE entry SET docid = 4": ["problem: message 4: has chosen names but no row"],
    "UPDATE entry SET search_id = 9": ["problem: search 9: is not there but has chosen names"],
    "DELETE FROM search WHERE search_id = 1": [
        "problem: search 1: is not there but has chosen names"
    ],
    "UPDATE message SET thread = 3 WHERE docid = 2": [
        "problem: message 2: has a thread younger than itself"
    ],
    "DELETE FROM message_text WHERE rowid = 2": [
        "problem: message 2: has no words in the search index"
    ],
    "UPDATE search SET query = 'from:(' WHERE name = 'inbox'": ["problem: search inbox: "],
    "UPDATE blob SET hash = zeroblob(16) WHERE blob_id = 1": [
        "problem: blob 1: is not the record the index describes"
    ],
    "UPDATE blob SET raw = raw + 1 WHERE blob_id = 3": [
        "problem: message 3: has another size than its bytes",
        "problem: blob 3: is not the record the index describes",
    ],
    "UPDATE blob SET offset = offset + 1 WHERE blob_id = 1": [
        "problem: blob 1: ",
        "note: 00000001.pack: the record at 16 is not in the index",
    ],
    "UPDATE blob SET pack = 7 WHERE blob_id = 1": [
        "problem: blob 1: lies behind the end of its pack",
        "problem: blob 1: pack 7 is missing",
        "note: 00000001.pack: the record at 16 is not in the index",
    ],
    "UPDATE pack SET size = size - 1": ["problem: blob 3: lies behind the end of its pack"],
    "UPDATE pack SET size = size + 1": ["problem: 00000001.pack: ends at {end}, the index knows "],
}


@pytest.mark.parametrize("statement", INDEX_DAMAGE)
def test_damage_to_the_index_is_found_and_named(root: Path, statement: str) -> None:
    with Store.open(root) as store:
        offsets = [offset for offset, _ in store.packs.iter_records(PackNumber(1))]
    places = {"2": offsets[1], "end": pack_of(root).stat().st_size}
    expected = [
        text.replace("{2}", str(places["2"])).replace("{end}", str(places["end"]))
        for text in INDEX_DAMAGE[statement]
    ]
    damage_index(root, statement)
    found = findings(root)
    assert len(found) == len(expected), found
    for text in expected:
        assert any(finding.startswith(text) for finding in found), (text, found)


def test_a_page_of_the_index_overwritten_is_found(root: Path) -> None:
    path = root / "index.sqlite3"
    content = bytearray(path.read_bytes())
    page_bytes = 4096
    # The page in the middle of the file: whichever table it belongs to, it is no page any more.
    middle = len(content) // page_bytes // 2 * page_bytes
    content[middle : middle + page_bytes] = b"\xff" * page_bytes
    path.write_bytes(content)
    try:
        found = findings(root)
    except Corrupt:
        return
    assert any(finding.startswith("problem: ") for finding in found)


def write_byte(path: Path, position: int, byte: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(bytes([byte]))


def test_a_flipped_bit_in_any_byte_of_a_pack_is_found_or_harmless(root: Path) -> None:
    path = pack_of(root)
    content = path.read_bytes()
    harmless = []
    with Store.open(root) as store:
        for position in range(len(PACK_HEAD), len(content)):
            write_byte(path, position, content[position] ^ 1)
            if not any(finding.severity is Severity.PROBLEM for finding in verify(store)):
                # zstd's frames have bits that mean nothing: the message is still what it was.
                harmless.append(position)
                assert [store.load(Docid(n)) for n in (1, 2, 3)] == [
                    make_message(n) for n in (1, 2, 3)
                ]
            write_byte(path, position, content[position])
        assert list(verify(store)) == []
    assert len(harmless) < 0.02 * len(content)


def test_damage_to_the_line_that_names_a_pack_is_found(root: Path) -> None:
    write_byte(pack_of(root), 3, ord("x"))
    assert any(text.startswith("problem: 00000001.pack: ") for text in findings(root))


def test_a_flipped_byte_names_the_blob_it_belongs_to(root: Path) -> None:
    with Store.open(root) as store:
        where = store.index.location(Docid(2))
    with pack_of(root).open("r+b") as file:
        file.seek(where.offset + where.stored - 1)
        file.write(b"\xff")
    found = findings(root)
    assert [text for text in found if text.startswith("problem: blob 2: pack 1 at ")] == found


def cut_to_nothing(path: Path) -> None:
    path.write_bytes(b"")


def cut_a_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [cut_to_nothing, cut_a_byte, remove])
def test_a_pack_that_is_cut_or_gone_is_found(root: Path, damage: Callable[[Path], None]) -> None:
    damage(pack_of(root))
    found = findings(root)
    assert any(text.startswith("problem: blob 3: ") for text in found)
    assert any(text.startswith("problem: 00000001.pack: ") for text in found)
    assert any(text.startswith("problem: blob 1: ") for text in found) == (damage != cut_a_byte)


def test_a_record_nobody_was_promised_is_a_note(root: Path) -> None:
    path = pack_of(root)
    end = path.stat().st_size
    extra = format_record(b"extra", blob_hash(b"extra"))
    with path.open("ab") as file:
        file.write(extra)
    expected = f"note: 00000001.pack: the record at {end} is not in the index"
    assert findings(root) == [expected]
    with path.open("ab") as file:
        file.write(extra[:20])
    torn, note = sorted(findings(root))
    assert (torn.startswith(f"note: 00000001.pack: behind {end + len(extra)}"), note) == (
        True,
        expected,
    )


def test_files_that_do_not_belong_are_notes(root: Path) -> None:
    (root / "packs" / "core").write_bytes(b"")
    (root / "packs" / "00000002.pack").write_bytes(PACK_HEAD)
    assert findings(root) == [
        "note: 00000002.pack: is a pack the index does not know",
        "note: core: is no pack",
    ]


def test_ordinary_files_of_clients_are_none_of_its_business(root: Path) -> None:
    for folder in ("sidecar/0", "sidecar/1/deep", "spool/1/tmp"):
        (root / folder).mkdir(parents=True)
        (root / folder / "file").write_bytes(b"anything")
    assert findings(root) == []


def test_counts_say_what_was_looked_at(root: Path) -> None:
    with Store.open(root) as store:
        assert counts(store) == Counts(messages=2, expunged=1, blobs=3, packs=1)


def test_verify_holds_one_state_still_while_others_write(root: Path) -> None:
    with Store.open(root) as store, Store.open(root) as other:
        going_on = verify(store)
        with other.writer.transaction("test", durable=True) as transaction:
            transaction.add(new_message(make_message(4)))
        found = list(going_on)
    assert [finding for finding in found if finding.severity is Severity.PROBLEM] == []
