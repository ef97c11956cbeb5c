"""Records about the pack, and records that need its dictionary: whatever went in comes out, and damage is noticed."""

import functools
import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailfs.errors import Corrupt
from mailfs.ids import PackNumber
from mailfs.store.records import (
    CODEC_DICTIONARY,
    CODEC_FOOTER,
    CODEC_RAW,
    CODEC_TOMBSTONES,
    CODEC_ZSTD,
    FOOTER_END_BYTES,
    FRAME_BYTES,
    HEADER_BYTES,
    Dictionary,
    RecordHeader,
    Tombstone,
    blob_hash,
    dictionary_id,
    footer_start_or_none,
    format_dictionary,
    format_footer,
    format_header,
    format_record,
    format_tombstones,
    parse_dictionary,
    parse_footer,
    parse_header,
    parse_record,
    parse_tombstones,
)
from tests.fakes import make_dictionary, make_message

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
HASHES = st.binary(min_size=16, max_size=16)
TOMBSTONES = st.lists(st.builds(Tombstone, U32.map(PackNumber), U64, HASHES), max_size=30)
HEADERS = st.lists(st.builds(RecordHeader, st.integers(0, 5), U32, U64, U64, HASHES), max_size=30)


@functools.cache
def dictionary() -> Dictionary:
    return Dictionary(make_dictionary(1))


def find(wanted: int) -> Dictionary:
    assert wanted == dictionary().id
    return dictionary()


def compressed(raw: bytes) -> bytes:
    return format_record(raw, blob_hash(raw), dictionary())


# --- tombstones


@given(TOMBSTONES)
def test_tombstones_come_out_as_they_went_in(tombstones: list[Tombstone]) -> None:
    record = format_tombstones(tombstones)
    header = parse_header(record)
    assert parse_tombstones(record) == tombstones
    assert (header.codec, header.dictionary) == (CODEC_TOMBSTONES, 0)
    assert header.raw == header.stored == 28 * len(tombstones) == len(record) - HEADER_BYTES


def test_tombstones_of_half_a_place_are_corrupt() -> None:
    payload = bytes(27)
    header = RecordHeader(CODEC_TOMBSTONES, 0, 27, 27, blob_hash(payload))
    with pytest.raises(Corrupt, match="cut off"):
        parse_tombstones(format_header(header) + payload)


# --- the footer


def footer_of(headers: list[RecordHeader]) -> tuple[int, bytes]:
    start = 16 + sum(HEADER_BYTES + header.stored for header in headers)
    # Larger than any file; only the end of the footer says it.
    return min(start, 2**63), format_footer(min(start, 2**63), headers)


@given(HEADERS)
def test_a_footer_gives_back_the_headers_of_its_pack(headers: list[RecordHeader]) -> None:
    start, record = footer_of(headers)
    assert parse_footer(record) == headers
    assert parse_header(record).codec == CODEC_FOOTER
    assert footer_start_or_none(record[-FOOTER_END_BYTES:]) == start


@given(st.binary(max_size=40))
def test_the_end_of_a_pack_that_is_not_sealed_is_no_footer(end: bytes) -> None:
    assert footer_start_or_none(end) is None


def test_a_footer_takes_some_22_bytes_a_message() -> None:
    chance = random.Random(1)
    headers = [
        RecordHeader(CODEC_ZSTD, dictionary().id, stored * 2, stored, chance.randbytes(16))
        for stored in (chance.randint(300, 9000) for _ in range(5000))
    ]
    assert len(footer_of(headers)[1]) < 25 * len(headers)


def test_a_footer_that_claims_more_records_than_fit_before_it_is_corrupt() -> None:
    headers = [RecordHeader(CODEC_RAW, 0, 1, 1, bytes(16))] * 100
    with pytest.raises(Corrupt, match="length"):
        parse_footer(format_footer(99 * HEADER_BYTES, headers))


# --- dictionaries


def test_a_dictionary_comes_out_as_it_went_in_under_the_id_of_its_hash() -> None:
    record = format_dictionary(dictionary())
    header = parse_header(record)
    again = parse_dictionary(record)
    assert (again.raw, again.id) == (dictionary().raw, dictionary().id)
    assert header.codec == CODEC_DICTIONARY
    assert (
        header.dictionary == dictionary_id(header.hash) == struct.unpack("<I", header.hash[:4])[0]
    )


def test_a_dictionary_under_another_id_is_corrupt() -> None:
    record = format_dictionary(dictionary())
    header = parse_header(record)._replace(dictionary=dictionary().id ^ 1)
    with pytest.raises(Corrupt, match="id"):
        parse_dictionary(format_header(header) + record[HEADER_BYTES:])


@pytest.mark.parametrize(
    "raw", [b"", b"short", bytes(1000), b"\xff" * 1000], ids=["empty", "short", "zeros", "ones"]
)
def test_bytes_that_are_no_dictionary_are_corrupt(raw: bytes) -> None:
    with pytest.raises(Corrupt):
        Dictionary(raw)
    with pytest.raises(Corrupt):
        Dictionary(dictionary().raw[:8] + raw)


@given(st.integers(0, 100), st.binary(max_size=300), st.sampled_from([0, 1, 10]))
@settings(deadline=None)
def test_a_message_compressed_with_a_dictionary_is_given_back(
    number: int, end: bytes, times: int
) -> None:
    raw = make_message(number) * times + end
    record = compressed(raw)
    assert parse_record(record, find) == raw
    header = parse_header(record)
    assert header.hash == blob_hash(raw)
    assert header.dictionary == (dictionary().id if header.codec == CODEC_ZSTD else 0)


def test_a_dictionary_makes_a_message_like_those_it_was_made_of_smaller() -> None:
    raw = make_message(1)
    assert 2 * len(compressed(raw)) < len(format_record(raw, blob_hash(raw)))


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES + 1])
def test_what_has_no_use_for_a_dictionary_names_none(size: int) -> None:
    raw = random.Random(1).randbytes(size)
    record = compressed(raw)
    assert parse_header(record).dictionary == 0
    assert parse_record(record) == raw


def test_a_message_whose_dictionary_is_not_to_be_had_is_corrupt() -> None:
    with pytest.raises(Corrupt, match=f"dictionary {dictionary().id}"):
        parse_record(compressed(make_message(1)))


def test_a_message_read_with_another_dictionary_never_gives_other_bytes() -> None:
    raw = make_message(1)
    with pytest.raises(Corrupt):
        parse_record(compressed(raw), lambda _: Dictionary(make_dictionary(2)))


def test_several_threads_use_one_dictionary_at_once() -> None:
    shared = Dictionary(make_dictionary(3))
    raws = [random.Random(seed).randbytes(10_000).hex().encode() for seed in range(4)]

    def work(raw: bytes) -> bool:
        record = format_record(raw, blob_hash(raw), shared)
        return all(
            parse_record(record, lambda _: shared) == raw
            and format_record(raw, blob_hash(raw), shared) == record
            for _ in range(50)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, raws))


# --- damage to all of them


def whole_records() -> list[bytes]:
    tombstones = [Tombstone(PackNumber(1), 16, bytes(range(16)))] * 3
    headers = [RecordHeader(CODEC_RAW, 0, 3, 3, bytes(range(16)))] * 3
    return [format_tombstones(tombstones), footer_of(headers)[1], format_dictionary(dictionary())]


@pytest.mark.parametrize("number", range(3), ids=["tombstones", "footer", "dictionary"])
def test_damage_to_any_byte_is_noticed(number: int) -> None:
    record = whole_records()[number]
    parse = (parse_tombstones, parse_footer, parse_dictionary)[number]
    for position in range(0, len(record), max(1, len(record) // 500)):
        damaged = bytearray(record)
        damaged[position] ^= 0xFF
        if number == 1 and len(record) - 16 <= position < len(record) - 8:
            continue  # where the footer says that it lies: compared with where it is
        with pytest.raises(Corrupt):
            parse(bytes(damaged))


@pytest.mark.parametrize("number", range(3), ids=["tombstones", "footer", "dictionary"])
def test_a_record_that_is_cut_off_or_of_another_kind_is_corrupt(number: int) -> None:
    record = whole_records()[number]
    parse = (parse_tombstones, parse_footer, parse_dictionary)[number]
    for wrong in (record[:-1], record[:HEADER_BYTES], b"", whole_records()[number - 1]):
        with pytest.raises(Corrupt):
            parse(wrong)
    with pytest.raises(Corrupt, match="no message"):
        parse_record(record)


@given(st.integers(0, 255), st.integers(0, 1), U64, st.integers(0, 200))
def test_a_header_whose_lengths_cannot_be_is_corrupt_before_anything_is_allocated(
    codec: int, wanted: int, raw: int, stored: int
) -> None:
    checked = struct.pack("<4sB3xIQQ16s", b"mfr1", codec, wanted, raw, stored, bytes(16))
    record = checked + zlib.crc32(checked).to_bytes(4, "little") + bytes(stored)
    for parse in (parse_record, parse_tombstones, parse_footer, parse_dictionary):
        try:
            parse(record)
        except Corrupt:
            continue
        raise AssertionError("these bytes have another hash")
