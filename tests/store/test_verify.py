"""The oracle itself: each kind of damage is found, and nothing is found where there is none."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mailfs.errors import Corrupt, StoreMissing
from mailfs.ids import Docid, Keyword, PackNumber, SearchId
from mailfs.message.maildir import ChosenName
from mailfs.store.database import open_writer
from mailfs.store.packfile import PACK_HEAD
from mailfs.store.records import blob_hash, format_record
from mailfs.store.rescue.verify import Counts, Severity, Step, counts, examine, verify
from mailfs.store.rescue.wal import parse_wal
from mailfs.store.store import Store
from tests.fakes import make_message, new_message
from tests.oracle import problems_of


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


# A statement that breaks a promise, and all that verify must say of it. {1} to {3} are the places of the records.
INDEX_DAMAGE = {
    "DELETE FROM blob WHERE blob_id = 2": [
        "problem: message 2: has no bytes",
        "problem: message 2: names a blob that is not there",
        "note: pack 1 at {2}: is a whole message that the index does not know",
    ],
    "DELETE FROM message_blob WHERE docid = 1": [
        "problem: message 1: has no bytes",
        "problem: blob 1: belongs to no message",
    ],
    "DELETE FROM message WHERE docid = 1": [
        "problem: message 1: has bytes but no row",
        "problem: message 1: has an envelope but no row",
        "problem: message 1: has keywords but no row",
        "problem: message 1: has chosen names but no row",
        "problem: message 1: has words in the search index but no row",
    ],
    "UPDATE message SET size = size + 1 WHERE docid = 3": [
        "problem: message 3: has another size than its bytes"
    ],
    "UPDATE message SET flags = flags + 4096 WHERE docid = 3": [
        "problem: message 3: has flags that mean nothing"
    ],
    "DELETE FROM envelope WHERE docid = 2": ["problem: message 2: has no envelope"],
    "UPDATE envelope SET message_id = 'x' WHERE docid = 2": [
        "problem: message 2: has another Message-ID than its bytes",
        "problem: message 2: has another thread than its Message-ID",
    ],
    "UPDATE envelope SET subject = 'x' WHERE docid = 2": [
        "note: message 2: has an envelope that is not that of its bytes"
    ],
    "UPDATE message SET modseq = 99 WHERE docid = 2": [
        "problem: message 2: has a modseq that was never given"
    ],
    "UPDATE state SET searches_modseq = 99": [
        "problem: index: has no state, or one that cannot be"
    ],
    "DELETE FROM state": ["problem: index: has no state, or one that cannot be"],
    "DELETE FROM keyword": ["problem: message 1: has a keyword that is not there"],
    "UPDATE entry SET docid = 3": ["problem: message 3: is expunged but has chosen names"],
    "UPDATE entry SET docid = 4": ["problem: message 4: has chosen names but no row"],
    "UPDATE entry SET base = CAST('../x' AS BLOB)": [
        "problem: message 1 in the view of search 1: has a chosen name that cannot be one"
    ],
    "UPDATE entry SET extra = CAST('ba' AS BLOB)": [
        "problem: message 1 in the view of search 1: has letters that are none"
    ],
    "UPDATE entry SET form = 9": [
        "problem: message 1 in the view of search 1: has a chosen name of a form that is none"
    ],
    "UPDATE entry SET search_id = 9": ["problem: search 9: is not there but has chosen names"],
    "DELETE FROM search WHERE search_id = 1": [
        "problem: search 1: is not there but has chosen names"
    ],
    "UPDATE message SET thread = 3 WHERE docid = 2": [
        "problem: message 2: has a thread younger than itself",
        "problem: message 2: has another thread than its Message-ID",
    ],
    "DELETE FROM message_text WHERE rowid = 2": [
        "problem: message 2: has no words in the search index"
    ],
    "INSERT INTO message_text(rowid, subject) VALUES (9, 'x')": [
        "problem: message 9: has words in the search index but no row"
    ],
    "UPDATE search SET query = 'from:(' WHERE name = 'inbox'": ["problem: search inbox: "],
    "UPDATE sqlite_sequence SET seq = 2 WHERE name = 'message'": [
        "problem: message 3: has a number that may be given again",
        "problem: journal 2: says what cannot be",
    ],
    "UPDATE sqlite_sequence SET seq = 2 WHERE name = 'search'": [
        "problem: search 4: has a number that may be given again"
    ],
    "DELETE FROM journal": [],
    "INSERT INTO journal_event VALUES (77, 0, 'search', '', '')": [
        "problem: journal 77: has changes but no row"
    ],
    "UPDATE journal SET modseq = 99": ["problem: journal 99: has a modseq that was never given"],
    "DROP INDEX message_date": ["problem: index: index message_date is missing"],
    "DROP TABLE view_state": ["problem: index: table view_state is missing", "problem: index: "],
    "CREATE TABLE x(y)": ["problem: index: table x does not belong there"],
    "ALTER TABLE search ADD COLUMN z": ["problem: index: table search is not as it should be"],
    "PRAGMA user_version = 2": ["problem: index: says that its tables have format 2"],
    "UPDATE blob SET hash = zeroblob(16) WHERE blob_id = 1": [
        "problem: pack 1 at {1} (message 1, blob 1): is not the record the index describes"
    ],
    "UPDATE blob SET raw = raw + 1 WHERE blob_id = 3": [
        "problem: message 3: has another size than its bytes",
        "problem: pack 1 at {3} (message 3, blob 3): is not the record the index describes",
    ],
    "UPDATE blob SET offset = offset + 1 WHERE blob_id = 1": [
        "problem: pack 1 at 17 (message 1, blob 1): no record begins there",
        "note: pack 1 at {1}: is a whole message that the index does not know",
    ],
    "UPDATE blob SET pack = 7 WHERE blob_id = 1": [
        "problem: blob 1: lies behind the end of its pack",
        "problem: pack 7: is missing",
        "problem: pack 7 at {1} (message 1, blob 1): is missing",
        "note: pack 1 at {1}: is a whole message that the index does not know",
    ],
    "UPDATE pack SET size = size - 1": ["problem: pack 1: the index says that it ends at "],
    "UPDATE pack SET size = 17": [
        "problem: blob 1: lies behind the end of its pack",
        "problem: blob 2: lies behind the end of its pack",
        "problem: pack 1: the index says that it ends at 17, within a record",
    ],
    "UPDATE pack SET size = size + 1": ["problem: pack 1: ends at {end}, the index knows "],
    "UPDATE pack SET sealed = 1": ["problem: pack 1: is sealed, but does not end with a footer"],
    "INSERT INTO dead_pack VALUES (1)": ["problem: pack 1: is to be removed and is not"],
}


@pytest.mark.parametrize("statement", INDEX_DAMAGE)
def test_damage_to_the_index_is_found_and_named(root: Path, statement: str) -> None:
    with Store.open(root) as store:
        offsets = [offset for offset, _ in store.packs.iter_records(PackNumber(1))]
    places = {
        "1": offsets[0],
        "2": offsets[1],
        "3": offsets[2],
        "end": pack_of(root).stat().st_size,
    }
    expected = [
        re.sub(r"{(\w+)}", lambda found: str(places[found[1]]), text)
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
    assert any(text.startswith("problem: pack 1: ") for text in findings(root))


def test_a_flipped_byte_names_the_blob_it_belongs_to(root: Path) -> None:
    with Store.open(root) as store:
        where = store.index.location(Docid(2))
    with pack_of(root).open("r+b") as file:
        file.seek(where.offset + where.stored - 1)
        file.write(b"\xff")
    found = findings(root)
    assert len(found) == 1
    assert found[0].startswith(f"problem: pack 1 at {where.offset} (message 2, blob 2): ")


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
    assert any("(message 3, blob 3): " in text for text in found)
    assert any(text.startswith("problem: pack 1: ") for text in found)
    assert any("(message 1, blob 1): " in text for text in found) == (damage != cut_a_byte)


def test_a_record_nobody_was_promised_is_a_note(root: Path) -> None:
    path = pack_of(root)
    end = path.stat().st_size
    extra = format_record(b"extra", blob_hash(b"extra"))
    with path.open("ab") as file:
        file.write(extra)
    expected = f"note: pack 1 at {end}: is a whole message that the index does not know"
    assert findings(root) == [expected]
    with path.open("ab") as file:
        file.write(extra[:20])
    assert findings(root) == [
        expected,
        f"note: pack 1 at {end + len(extra)}: 20 bytes that were never promised are torn",
    ]


def test_files_that_do_not_belong_are_notes(root: Path) -> None:
    for name, content in (("core", b""), ("00000002.pack", PACK_HEAD)):
        (root / "packs" / name).write_bytes(content)
        (root / "packs" / name).chmod(0o600)
    assert findings(root) == [
        "note: pack 2: is not known to the index",
        "note: packs/core: is no pack",
    ]


def test_ordinary_files_of_clients_are_none_of_its_business(root: Path) -> None:
    for folder in ("sidecar/0", "sidecar/1/deep", "spool/1/tmp"):
        (root / folder).mkdir(parents=True)
        (root / folder / "file").write_bytes(b"anything")
    for folder in ("sidecar", "spool"):
        (root / folder).chmod(0o700)
    assert findings(root) == []


@pytest.mark.parametrize(
    "name", [".", "packs", "packs/00000001.pack", "index.sqlite3", "format", "lock"]
)
def test_what_others_can_read_is_a_problem(root: Path, name: str) -> None:
    path = root / name
    path.chmod(path.stat().st_mode | 0o040)
    # SQLite gives the files beside the index its mode.
    found = [text for text in findings(root) if text.startswith(f"problem: {name}: has mode 0")]
    assert [text.endswith("others can read it") for text in found] == [True]


def test_a_configuration_may_be_read_by_others_but_not_written(root: Path) -> None:
    path = root / "config"
    path.write_text("[mount]\nlinger = 5\n")
    path.chmod(0o644)
    assert findings(root) == []
    path.chmod(0o664)
    assert findings(root) == ["problem: config: has mode 0664: others can change it"]


def test_a_configuration_that_cannot_be_read_is_a_problem(root: Path) -> None:
    (root / "config").write_text("[mount]\nlinger = true\n")
    assert [text.partition(": linger")[0] for text in findings(root)] != []


def test_a_link_in_the_place_of_a_file_is_a_problem(root: Path) -> None:
    elsewhere = root.parent / "elsewhere"
    pack_of(root).rename(elsewhere)
    pack_of(root).symlink_to(elsewhere)
    found = findings(root)
    assert found[0] == "problem: packs/00000001.pack: is a symbolic link: move it away"
    assert any("message 1, blob 1" in text for text in found)


def examined(root: Path) -> list[str]:
    return [str(found) for found in examine(root) if not isinstance(found, Step)]


def test_a_store_is_looked_at_whose_format_is_damaged(root: Path) -> None:
    (root / "format").write_bytes(b"\0" * 20)
    found = examined(root)
    assert [text.partition(" is not one")[0] for text in found] == [
        f"problem: format: {root}/format"
    ]
    (root / "format.bak").write_bytes(b"\0" * 20)
    write_byte(pack_of(root), 100, 0xFF)
    assert [text.partition(":")[0] for text in examined(root)] == ["problem", "problem"]


def test_a_store_without_its_format_is_looked_at_by_its_copy(root: Path) -> None:
    (root / "format").unlink()
    assert examined(root) == [
        f"problem: format: the store at {root} lost its file `format`: run `mailfs verify --repair`"
    ]
    (root / "format.bak").unlink()
    with pytest.raises(StoreMissing):
        examined(root)


@pytest.mark.parametrize(
    "content", [b"", b"no database" * 1000, None], ids=["empty", "other", "gone"]
)
def test_packs_are_looked_at_where_the_index_is_no_index(root: Path, content: bytes | None) -> None:
    for suffix in ("-wal", "-shm"):
        (root / f"index.sqlite3{suffix}").unlink(missing_ok=True)
    if content is None:
        (root / "index.sqlite3").unlink()
    else:
        (root / "index.sqlite3").write_bytes(content)
    found = examined(root)
    assert found
    assert all(text.startswith(("problem: index: ", "problem: store: ")) for text in found)
    write_byte(pack_of(root), 200, 0xFF)
    assert len(examined(root)) == len(found) + 1


@pytest.mark.parametrize(
    "name",
    [
        "format",
        "format.bak",
        "index.sqlite3",
        "packs/00000001.pack",
        "config",
        "dump",
        "lock",
        "in-use",
    ],
)
@pytest.mark.parametrize("kind", ["folder", "fifo", "link", "nothing"])
def test_whatever_stands_in_the_place_of_a_file_is_said_and_nothing_waits(
    root: Path, name: str, kind: str
) -> None:
    path = root / name
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir(mode=0o700)
    elif kind == "fifo":
        os.mkfifo(path, 0o600)
    elif kind == "link":
        path.symlink_to("nowhere")
    found = examined(root)
    needed = ("format", "format.bak", "index.sqlite3", "packs/00000001.pack")
    assert found != [] or (kind == "nothing" and name not in needed)


def test_a_torn_log_is_a_note_before_sqlite_forgets_it(root: Path) -> None:
    log = root / "index.sqlite3-wal"
    with Store.open(root) as store:
        for flag in (1, 2, 4):
            with store.writer.transaction("test", durable=True) as transaction:
                transaction.edit_flags(Docid(1), flag, 0)
        content = log.read_bytes()
    wal = parse_wal(content)
    assert wal.readable == len(wal.frames) > 2
    assert all(frame.is_good for frame in wal.frames)
    middle = wal.frames[len(wal.frames) // 2]
    write_byte_of(content, log, middle.offset + 7)
    damaged = parse_wal(log.read_bytes())
    assert [frame for frame in damaged.frames if not frame.is_good] == [
        middle._replace(is_good=False)
    ]
    assert damaged.readable <= len(wal.frames) // 2
    (found,) = [text for text in examined(root) if "-wal" in text]
    assert found.startswith("note: index.sqlite3-wal: frame ")


def test_a_log_that_was_cut_where_a_transaction_ends_is_a_note(root: Path, tmp_path: Path) -> None:
    """Its directory, which a process that was killed leaves, knows of the others."""
    copy = tmp_path / "copy"
    with Store.open(root) as store:
        for flag in (1, 2, 4):
            with store.writer.transaction("test", durable=True) as transaction:
                transaction.edit_flags(Docid(1), flag, 0)
        shutil.copytree(root, copy)
    log = copy / "index.sqlite3-wal"
    wal = parse_wal(log.read_bytes())
    ends = [frame.offset + wal.page_bytes for frame in wal.frames if frame.pages]
    with log.open("r+b") as file:
        file.truncate(ends[-2])
    cut = parse_wal(log.read_bytes())
    assert cut.readable == len(cut.frames) < len(wal.frames)
    (found,) = examined(copy)
    assert found.startswith("note: index.sqlite3-wal: frame ")
    assert f"of {len(wal.frames)} is torn, damaged or missing" in found


def test_a_whole_record_in_the_place_of_another_is_damage_and_not_that_message(root: Path) -> None:
    """Its hash is right, and it is somebody else's mail."""
    other = format_record(b"short", blob_hash(b"short"))
    with Store.open(root) as store:
        where = store.index.location(Docid(2))
    with pack_of(root).open("r+b") as file:
        file.seek(where.offset)
        file.write(other)
    with Store.open(root) as store:
        with pytest.raises(Corrupt, match="another record lies there"):
            store.load(Docid(2))
        assert store.load(Docid(1)) == make_message(1)
    assert any(f"pack 1 at {where.offset} (message 2, blob 2): " in text for text in findings(root))


def write_byte_of(content: bytes, path: Path, position: int) -> None:
    changed = bytearray(content)
    changed[position] ^= 1
    path.write_bytes(changed)


def test_all_words_of_all_messages_are_looked_at_when_asked_for(root: Path) -> None:
    with Store.open(root) as store:
        assert list(verify(store, full=True)) == []
    # As many words, but one of them another.
    damage_index(root, "DELETE FROM message_text WHERE rowid = 2")
    damage_index(
        root,
        "INSERT INTO message_text(rowid, sender, recipient, subject, body) "
        "VALUES (2, 'Ann ann example org', 'bob example org', 'a subject', 'some toxt')",
    )
    with Store.open(root) as store:
        assert [str(found) for found in verify(store, full=True)] == [
            "note: message 2: has words in the search index that are not those of its bytes"
        ]


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


def test_a_pack_that_was_only_begun_is_no_problem(root: Path) -> None:
    (root / "packs/00000099.pack").touch(0o600)
    with Store.open(root) as store:
        assert problems_of(store) == []
        assert "pack 99: is not known to the index" in str([str(each) for each in verify(store)])
