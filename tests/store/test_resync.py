"""Where a record of a pack is damaged the next is found, and what only looks like one is told apart."""

from pathlib import Path

import pytest

from mailfs.ids import PackNumber
from mailfs.store.packfile import PACK_HEAD, PackFile
from mailfs.store.records import HEADER_BYTES, blob_hash, format_record
from mailfs.store.rescue.resync import Found, Gap, resync
from tests.fakes import make_message

RECORDS = [
    format_record(raw, blob_hash(raw))
    for raw in (make_message(n, body=f"{n}" * 90) for n in range(6))
]


def pack_of(path: Path, content: bytes) -> PackFile:
    path.write_bytes(PACK_HEAD + content)
    return PackFile(path, PackNumber(1))


def offsets() -> list[int]:
    found = [len(PACK_HEAD)]
    for record in RECORDS:
        found.append(found[-1] + len(record))
    return found


def test_a_sound_pack_has_its_records_and_no_gap(tmp_path: Path) -> None:
    found = list(resync(pack_of(tmp_path / "pack", b"".join(RECORDS))))
    assert [(each.offset, each.end) for each in found if isinstance(each, Found)] == list(
        zip(offsets()[:-1], offsets()[1:], strict=True)
    )
    assert all(isinstance(each, Found) and each.is_certain for each in found)


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("is_known", [True, False])
def test_behind_a_damaged_header_the_next_record_is_found(
    tmp_path: Path, number: int, is_known: bool
) -> None:
    places = offsets()
    content = bytearray(b"".join(RECORDS))
    content[places[number] - len(PACK_HEAD) + 9] ^= 1
    file = pack_of(tmp_path / "pack", bytes(content))
    found = list(resync(file, places[:-1] if is_known else []))
    assert found[number] == Gap(places[number], places[number + 1])
    others = [each for each in found if isinstance(each, Found)]
    assert [each.offset for each in others] == [p for p in places[:-1] if p != places[number]]
    # What was found by its look alone is not sure, and neither is what follows on it.
    assert [each.is_certain for each in others] == [
        is_known or each.offset < places[number] for each in others
    ]


def test_what_a_sender_put_into_a_message_is_not_believed_to_be_a_record(tmp_path: Path) -> None:
    inner = RECORDS[1]
    outer = format_record(inner * 3, blob_hash(inner * 3))
    # A message that does not compress lies in its pack as it came.
    noise = bytes((n * 7919 + n // 256) % 251 for n in range(400))
    raw = noise + inner + noise
    plain = RECORDS[0][:4] + b"\0" + RECORDS[0][5:12]
    assert len(plain) < HEADER_BYTES < len(outer)
    content = bytearray(b"\xff" * HEADER_BYTES + raw + RECORDS[2])
    file = pack_of(tmp_path / "pack", bytes(content))
    last = len(PACK_HEAD) + HEADER_BYTES + len(raw)
    found = [each for each in resync(file, [len(PACK_HEAD), last]) if isinstance(each, Found)]
    assert [(each.offset, each.is_certain) for each in found] == [
        (len(PACK_HEAD) + HEADER_BYTES + len(noise), False),
        (last, True),
    ]


def test_a_record_across_the_border_of_two_windows_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"\xff" * 5000 + RECORDS[0]
    file = pack_of(tmp_path / "pack", content)
    for window in range(4990, 5010):
        monkeypatch.setattr("mailfs.store.rescue.resync._WINDOW_BYTES", window)
        assert [each.offset for each in resync(file) if isinstance(each, Found)] == [5016]


def test_garbage_is_one_gap(tmp_path: Path) -> None:
    assert list(resync(pack_of(tmp_path / "pack", b"mfr1" * 500))) == [Gap(16, 2016)]
    assert list(resync(pack_of(tmp_path / "pack", b""))) == []
