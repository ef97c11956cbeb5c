"""What a verify finds is mended, what cannot be is named and kept aside, and a second repair finds nothing to do."""

import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mailfs.errors import Corrupt, StoreError, StoreFailing
from mailfs.ids import Docid, Keyword, PackNumber, SearchId
from mailfs.message.maildir import ChosenName
from mailfs.store.database import open_writer
from mailfs.store.packfile import PACK_HEAD, PackFile
from mailfs.store.prepare import prepare_message
from mailfs.store.records import (
    HEADER_BYTES,
    Dictionary,
    blob_hash,
    format_record,
    parse_header,
    unpack_record,
)
from mailfs.store.rescue.mending import Fate, Outcome
from mailfs.store.rescue.repair import repair
from mailfs.store.rescue.verify import verify
from mailfs.store.store import Store
from mailfs.store.upkeep.seal import seal_full_packs
from mailfs.store.upkeep.training import introduce
from tests.fakes import make_dictionary, make_message, new_message
from tests.oracle import assert_sound, contents_of, docids_of

LONG = "".join(f"{number:070d}\n" for number in range(9000))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A closed store of four messages, ready to be damaged; the last is a chain of three frames.

    The first has a keyword, flags and a chosen name; the third is expunged.
    """
    path = tmp_path / "store"
    with (
        Store.create(path) as store,
        store.writer.transaction("test", durable=True) as transaction,
    ):
        docids = [transaction.add(new_message(raw)).docid for raw in messages()]
        transaction.edit_keywords(docids[0], add=[Keyword("work")])
        transaction.edit_flags(docids[0], 3, 0)
        transaction.entries.put(SearchId(1), docids[0], ChosenName(b"chosen"))
        transaction.expunge(docids[2])
    return path


def messages() -> list[bytes]:
    return [*(make_message(n) for n in (1, 2, 3)), make_message(4, body=LONG)]


def repaired(root: Path, *backups: Path) -> list[str]:
    """What became of everything; the next repair must have nothing to do."""
    told = [str(found) for found in repair(root, backups=backups) if isinstance(found, Outcome)]
    before = (root / "index.sqlite3").read_bytes()
    again = [found for found in repair(root, backups=backups) if isinstance(found, Outcome)]
    assert [found for found in again if found.fate is Fate.MENDED] == []
    assert (root / "index.sqlite3").read_bytes() == before
    return told


def damage_index(root: Path, statement: str) -> None:
    connection = open_writer(root / "index.sqlite3")
    connection.execute(statement)
    connection.close()


def pack_of(root: Path, number: int = 1) -> Path:
    return root / "packs" / f"{number:08d}.pack"


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x10]))


def place_of(root: Path, docid: int) -> tuple[int, int]:
    with Store.open(root) as store:
        location = store.index.location(Docid(docid))
    return location.offset, location.stored


def rows_of(root: Path, statement: str) -> list[object]:
    with Store.open(root) as store:
        return list(store.index.rows(statement))


# --- the index


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE message SET size = size + 1 WHERE docid = 3",
        "UPDATE message SET flags = flags + 4096 WHERE docid = 2",
        "DELETE FROM envelope WHERE docid = 2",
        "UPDATE envelope SET subject = 'x' WHERE docid = 2",
        "UPDATE envelope SET message_id = 'x' WHERE docid = 2",
        "DELETE FROM message_text WHERE rowid = 2",
        "INSERT INTO message_text(rowid, subject) VALUES (9, 'x')",
        "UPDATE message SET thread = 3 WHERE docid = 2",
        "UPDATE message SET thread = 1 WHERE docid = 2",
        "DELETE FROM reference WHERE message_id = '2@example.org'",
        "UPDATE blob SET hash = zeroblob(16) WHERE blob_id = 1",
        "UPDATE blob SET raw = raw + 1 WHERE blob_id = 4",
        "UPDATE blob SET stored = stored - 1 WHERE blob_id = 3",
        "UPDATE blob SET offset = offset + 1 WHERE blob_id = 1",
        "UPDATE blob SET pack = 7 WHERE blob_id = 1",
        "UPDATE pack SET size = size - 1",
        "UPDATE pack SET size = size + 1",
        "UPDATE pack SET sealed = 1",
        "DELETE FROM pack",
        "INSERT INTO dead_pack VALUES (1)",
        "DELETE FROM message_blob WHERE docid = 1",
        "DELETE FROM blob WHERE blob_id = 2",
        "UPDATE sqlite_sequence SET seq = 2 WHERE name = 'message'",
        "INSERT INTO journal_event VALUES (77, 0, 'search', '', '')",
        "DROP INDEX message_date",
        "CREATE TABLE x(y)",
        "PRAGMA user_version = 2",
    ],
)
def test_nothing_is_lost_by_damage_to_rows_that_others_tell(root: Path, statement: str) -> None:
    with Store.open(root) as store:
        before = contents_of(store)
        flags = store.index.rows("SELECT docid, flags, expunged, thread FROM message")
        names = list(store.index.chosen_names(SearchId(1)))
    damage_index(root, statement)
    repaired(root)
    assert_sound(root)
    with Store.open(root) as store:
        assert contents_of(store) == before
        assert store.index.rows("SELECT docid, flags, expunged, thread FROM message") == flags
        assert list(store.index.chosen_names(SearchId(1))) == names
        assert docids_of(store, "tag:work") == [Docid(1)]


def test_a_message_whose_row_is_lost_is_taken_in_again(root: Path) -> None:
    damage_index(root, "DELETE FROM message WHERE docid = 2")
    told = repaired(root)
    assert any("taken in as message 5 with the keyword recovered" in line for line in told)
    assert_sound(root)
    with Store.open(root) as store:
        assert docids_of(store, "tag:recovered") == [Docid(5)]
        assert store.load(Docid(5)) == make_message(2)


def test_what_nobody_can_know_again_goes_and_the_rest_stays(root: Path) -> None:
    damage_index(root, "DELETE FROM keyword")
    damage_index(root, "UPDATE entry SET search_id = 9")
    assert len(repaired(root)) == 2
    assert_sound(root)
    with Store.open(root) as store:
        assert len(contents_of(store)) == 3


def test_a_search_that_cannot_be_asked_is_left_to_its_owner(root: Path) -> None:
    damage_index(root, "UPDATE search SET query = 'from:(' WHERE name = 'inbox'")
    (told,) = repaired(root)
    assert told.startswith("not mended: search inbox: ")
    assert told.endswith("give it another query, or `mailfs forget` it")


@pytest.mark.parametrize(
    "content", [b"", b"no database" * 1000, None], ids=["empty", "other", "gone"]
)
def test_an_index_that_is_none_is_rebuilt(root: Path, content: bytes | None) -> None:
    for suffix in ("-wal", "-shm"):
        (root / f"index.sqlite3{suffix}").unlink(missing_ok=True)
    if content is None:
        (root / "index.sqlite3").unlink()
    else:
        (root / "index.sqlite3").write_bytes(content)
    assert any("the index was rebuilt" in line for line in repaired(root))
    assert_sound(root)
    with Store.open(root) as store:
        assert sorted(contents_of(store).values()) == sorted(messages())


def test_each_repair_is_in_the_journal(root: Path) -> None:
    damage_index(root, "DELETE FROM envelope WHERE docid = 2")
    damage_index(root, "UPDATE message SET size = 9 WHERE docid = 1")
    repaired(root)
    with Store.open(root) as store:
        reasons = store.index.rows("SELECT DISTINCT reason FROM journal WHERE modseq > 2")
        assert reasons == [("verify --repair",)]
        events = store.index.rows("SELECT after FROM journal_event WHERE what = 'repaired'")
    assert len(events) == 2


# --- packs


def test_a_record_that_is_lost_is_kept_aside_and_its_message_expunged(root: Path) -> None:
    offset, stored = place_of(root, 2)
    flip(pack_of(root), unseen_by_zstd(pack_of(root), offset, stored))
    (told,) = repaired(root)
    assert told.startswith(f"lost: pack 1 at {offset} (message 2, blob 2): ")
    assert "message 2 <2@example.org> from Ann <ann@example.org>: a subject" in told
    assert_sound(root)
    with Store.open(root) as store:
        assert docids_of(store) == [Docid(1), Docid(4)]
        found = [str(finding) for finding in verify(store)]
    assert len(found) == 1
    assert found[0].startswith(f"lost: pack 1 at {offset} (message 2, blob 2): ")
    kept = root / "damaged" / f"00000001-{offset}"
    assert len(kept.read_bytes()) == stored
    # zstd found nothing wrong: it is all there but for a letter or two.
    text = kept.with_name(f"{kept.name}.eml").read_bytes()
    assert len(text) == len(make_message(2))
    for path in (kept, kept.parent):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def unseen_by_zstd(pack: Path, offset: int, stored: int) -> int:
    """A byte of a record whose damage gives another text of the same length."""
    record = pack.read_bytes()[offset : offset + stored]
    for position in range(HEADER_BYTES + 20, stored):
        damaged = bytearray(record)
        damaged[position] ^= 0x10
        with suppress(Corrupt):
            if len(unpack_record(bytes(damaged))) == parse_header(record).raw:
                return offset + position
    raise AssertionError("zstd sees all damage")


def test_of_a_chain_the_frames_that_can_be_read_are_kept(root: Path) -> None:
    offset, stored = place_of(root, 4)
    flip(pack_of(root), offset + stored - 100)
    (told,) = repaired(root)
    assert told.startswith("lost: ")
    text = (root / "damaged" / f"00000001-{offset}.eml").read_bytes()
    assert text == messages()[3][: len(text)]
    assert len(text) == 2 * 256 * 1024


def test_what_was_lost_is_whole_again_when_a_backup_is_found(root: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    shutil.copytree(root, backup)
    offset, _ = place_of(root, 2)
    before = pack_of(root).read_bytes()
    flip(pack_of(root), offset + 60)
    assert repaired(root)[0].startswith("lost: ")
    (told,) = repaired(root, backup)
    assert "put back from pack 1 at" in told
    assert pack_of(root).read_bytes()[: len(before)] == before
    with Store.open(root) as store:
        with store.writer.transaction("test", durable=True) as transaction:
            assert transaction.undelete(Docid(2))
        assert store.load(Docid(2)) == make_message(2)
    assert_sound(root)


def test_a_pack_that_is_gone_is_had_from_a_backup(root: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backups" / "latest"
    shutil.copytree(root, backup)
    with Store.open(root) as store:
        before = contents_of(store)
    pack_of(root).unlink()
    repaired(root, backup.parent)
    assert_sound(root)
    with Store.open(root) as store:
        assert contents_of(store) == before
        assert not store.index.rows("SELECT 1 FROM pack WHERE pack = 1")


def test_a_backup_that_is_none_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store, and no backup"):
        repaired(root, tmp_path)


def test_a_header_is_made_anew_from_the_index(root: Path) -> None:
    before = pack_of(root).read_bytes()
    for docid in (1, 4):
        offset, _ = place_of(root, docid)
        flip(pack_of(root), offset + 13)
    assert [line for line in repaired(root) if "its header was made anew" not in line] == []
    assert pack_of(root).read_bytes() == before
    assert_sound(root)


def test_a_second_copy_in_the_packs_is_taken(root: Path) -> None:
    """A record nobody was promised, or of a compact that was cut off."""
    digest = blob_hash(make_message(2))
    with pack_of(root).open("ab") as file:
        file.write(format_record(make_message(2), digest))
    offset, stored = place_of(root, 2)
    with pack_of(root).open("r+b") as file:
        file.seek(offset)
        file.write(bytes(stored))
    assert any("put back from pack 1 at" in line for line in repaired(root))
    assert_sound(root)
    with Store.open(root) as store:
        assert store.load(Docid(2)) == make_message(2)


def test_another_message_of_the_same_hash_is_no_copy(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash is not cryptographic: a sender can make a message of the hash and length of another."""
    offset, stored = place_of(root, 2)
    with Store.open(root) as store:
        ((digest,),) = store.index.rows("SELECT hash FROM blob WHERE blob_id = 2")
    other = make_message(2, subject="b subject")
    assert len(other) == len(make_message(2))

    def colliding(raw: bytes) -> bytes:
        return digest if raw == other else blob_hash(raw)

    monkeypatch.setattr("mailfs.store.records.blob_hash", colliding)
    with pack_of(root).open("ab") as file:
        file.write(format_record(other, digest))
    flip(pack_of(root), offset + stored - 5)
    told = [str(found) for found in repair(root) if isinstance(found, Outcome)]
    assert any(line.startswith("lost: ") for line in told)
    with Store.open(root) as store:
        live = contents_of(store)
    assert live.get(Docid(2)) is None


def test_two_messages_that_changed_places_are_both_kept(root: Path) -> None:
    """Each lies where the other should be: neither may be written over before it has a place."""
    places = [place_of(root, docid) for docid in (1, 2)]
    assert places[0][1] == places[1][1]
    content = bytearray(pack_of(root).read_bytes())
    first, second = (content[offset : offset + stored] for offset, stored in places)
    for (offset, stored), record in zip(places, (second, first), strict=True):
        content[offset : offset + stored] = record
    pack_of(root).write_bytes(content)
    told = repaired(root)
    assert [line for line in told if not line.startswith("mended: ")] == []
    assert_sound(root)
    with Store.open(root) as store:
        assert [store.load(Docid(docid)) for docid in (1, 2)] == messages()[:2]


def test_whole_messages_nobody_knows_are_taken_in(root: Path) -> None:
    for name in (pack_of(root), pack_of(root, 5)):
        is_new = not name.exists()
        with name.open("ab") as file:
            raw = make_message(50 + is_new)
            file.write((PACK_HEAD if is_new else b"") + format_record(raw, blob_hash(raw)))
        name.chmod(0o600)
    told = repaired(root)
    assert sum("with the keyword recovered" in line for line in told) == 2
    assert_sound(root)
    with Store.open(root) as store:
        found = [store.load(docid) for docid in docids_of(store, "tag:recovered")]
        assert docids_of(store, "tag:inbox") == []
    assert sorted(found) == [make_message(50), make_message(51)]
    assert not pack_of(root, 5).exists()


def test_a_torn_tail_is_cut_off(root: Path) -> None:
    before = pack_of(root).read_bytes()
    with pack_of(root).open("ab") as file:
        file.write(b"torn")
    assert [line.rpartition(": ")[2] for line in repaired(root)] == ["cut off"]
    assert pack_of(root).read_bytes() == before


def test_the_line_that_names_a_pack_is_written_anew(root: Path) -> None:
    before = pack_of(root).read_bytes()
    flip(pack_of(root), 3)
    repaired(root)
    assert pack_of(root).read_bytes() == before


@pytest.fixture
def sealed(root: Path) -> Path:
    """With a second pack, which is sealed and has a dictionary, and a third; one message of the second is reclaimed."""
    with Store.open(root) as store:
        dictionary = Dictionary(make_dictionary(1))
        introduce(store, dictionary)
        with store.writer.transaction("test", durable=True) as transaction:
            docids = [
                transaction.add(
                    prepare_message(make_message(1000 + n), 0, (), None, dictionary)
                ).docid
                for n in range(4)
            ]
            transaction.expunge(docids[1])
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.reclaim([docids[1]])
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.begin_pack()
        assert seal_full_packs(store) == [PackNumber(1), PackNumber(2)]
    assert_sound(root)
    return root


def at_dictionary(root: Path) -> int:
    return 500


def at_dictionary_header(root: Path) -> int:
    return 20


def at_end(root: Path) -> int:
    return pack_of(root, 2).stat().st_size - 3


def at_footer_header(root: Path) -> int:
    with Store.open(root) as store:
        start = store.packs.file(PackNumber(2)).footer_start_or_none()
    assert start is not None
    return start + 30


@pytest.mark.parametrize("place", [at_dictionary, at_dictionary_header, at_end, at_footer_header])
def test_a_damaged_dictionary_or_footer_is_what_it_was(
    sealed: Path, place: Callable[[Path], int]
) -> None:
    before = pack_of(sealed, 2).read_bytes()
    flip(pack_of(sealed, 2), place(sealed))
    with Store.open(sealed) as store:
        assert len(contents_of(store)) == 6
        assert [finding for finding in verify(store)] != []
    repaired(sealed)
    assert pack_of(sealed, 2).read_bytes() == before
    assert_sound(sealed)


def test_a_sealed_pack_with_something_behind_it_ends_where_it_did(sealed: Path) -> None:
    before = pack_of(sealed, 2).read_bytes()
    with pack_of(sealed, 2).open("ab") as file:
        file.write(b"something")
    repaired(sealed)
    assert pack_of(sealed, 2).read_bytes() == before
    assert_sound(sealed)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE pack SET sealed = 0 WHERE pack = 2",
        "UPDATE pack SET size = size - 10 WHERE pack = 2",
        "UPDATE dictionary SET bytes = zeroblob(100)",
        "DELETE FROM dictionary",
    ],
)
def test_what_the_index_says_of_a_pack_is_put_right(sealed: Path, statement: str) -> None:
    columns = "pack, size, sealed FROM pack"
    before = rows_of(sealed, f"SELECT {columns}")
    dictionary = rows_of(sealed, "SELECT dictionary_id, hash, bytes FROM dictionary")
    damage_index(sealed, statement)
    repaired(sealed)
    assert_sound(sealed)
    assert rows_of(sealed, "SELECT dictionary_id, hash, bytes FROM dictionary") == dictionary
    assert rows_of(sealed, f"SELECT {columns}") == before


def test_what_was_reclaimed_does_not_come_back_where_a_tombstone_beside_it_is_damaged(
    sealed: Path,
) -> None:
    with Store.open(sealed) as store:
        store_file = store.packs.file(PackNumber(2))
        offset = next(at for at, header in store_file.iter_records() if header.codec == 3)
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.expunge(Docid(5))
    flip(pack_of(sealed, 2), offset + 48 + 2)
    told = repaired(sealed)
    assert told
    assert_sound(sealed)


# --- files


def test_files_are_nobody_elses_again(root: Path) -> None:
    for name in (".", "packs", "format", "packs/00000001.pack"):
        path = root / name
        path.chmod(path.stat().st_mode | 0o055)
    assert len(repaired(root)) == 4
    assert_sound(root)
    assert stat.S_IMODE(os.stat(root).st_mode) == 0o700


@pytest.mark.parametrize("name", ["format", "format.bak"])
@pytest.mark.parametrize("is_gone", [True, False])
def test_the_file_format_is_put_back_from_its_copy_and_the_other_way_round(
    root: Path, name: str, is_gone: bool
) -> None:
    before = (root / "format").read_bytes()
    if is_gone:
        (root / name).unlink()
    else:
        flip(root / name, 30)
    assert len(repaired(root)) == 1
    assert (root / "format").read_bytes() == (root / "format.bak").read_bytes() == before
    assert_sound(root)


def test_a_store_without_any_pack_is_one_again(root: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    shutil.copytree(root, backup)
    with Store.open(root) as store:
        before = contents_of(store)
    shutil.rmtree(root / "packs")
    repaired(root, backup)
    assert_sound(root)
    with Store.open(root) as store:
        assert contents_of(store) == before


def test_a_configuration_is_left_to_its_owner(root: Path) -> None:
    (root / "config").write_text("[mount]\nlinger = true\n")
    (root / "config").chmod(0o600)
    (told,) = repaired(root)
    assert told.startswith("not mended: config: ")
    assert told.endswith("change the file, or remove it")


def test_a_pack_of_no_row_that_cannot_be_read_now_stays(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        Store.create(tmp_path / "other") as other,
        other.writer.transaction("test", durable=True) as transaction,
    ):
        transaction.add(new_message(make_message(9)))
    shutil.copy(pack_of(tmp_path / "other"), pack_of(root, 2))
    real_read = PackFile.read

    def failing(self: PackFile, start: int, length: int) -> bytes:
        if self.number == 2:
            raise StoreFailing("the disk does not give it")
        return real_read(self, start, length)

    with monkeypatch.context() as patched:
        patched.setattr(PackFile, "read", failing)
        with suppress(StoreError):
            for _ in repair(root):
                pass
    assert pack_of(root, 2).exists()
    repaired(root)
    with Store.open(root) as store:
        assert make_message(9) in contents_of(store).values()


def test_messages_of_a_pack_that_is_missing_are_not_given_up(root: Path, tmp_path: Path) -> None:
    shutil.move(pack_of(root), tmp_path / "away")
    assert any("put 00000001.pack back" in line for line in repaired(root))
    with Store.open(root) as store:
        assert len(docids_of(store)) == 3
    shutil.move(tmp_path / "away", pack_of(root))
    repaired(root)
    with Store.open(root) as store:
        assert list(contents_of(store).values()) == [messages()[0], messages()[1], messages()[3]]
    assert_sound(root)
