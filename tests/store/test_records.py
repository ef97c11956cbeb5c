"""Records: whatever went in comes out, and damage is noticed."""

import random
import struct
import subprocess
import sys
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailfs.errors import Corrupt
from mailfs.store.records import (
    CODEC_CHAIN,
    CODEC_RAW,
    CODEC_ZSTD,
    FRAME_BYTES,
    HEADER_BYTES,
    Chain,
    blob_hash,
    format_record,
    iter_chain,
    parse_header,
    parse_record,
)
from tests.fakes import PROJECT


def record_of(raw: bytes) -> bytes:
    return format_record(raw, blob_hash(raw))


def noise(size: int) -> bytes:
    """Bytes that no compressor makes smaller."""
    return random.Random(size).randbytes(size)


def chain_of(record: bytes) -> Chain:
    payload = record[HEADER_BYTES:]
    return Chain(parse_header(record), lambda start, length: payload[start : start + length])


# Repeated pieces, so that messages may be long without being slow to make.
MESSAGES = st.builds(
    lambda piece, times, end: piece * times + end,
    st.binary(max_size=200),
    st.sampled_from([0, 1, 10, 3000]),
    st.binary(max_size=200),
)


@given(MESSAGES)
@settings(max_examples=60, deadline=None)
def test_a_record_gives_back_the_message_it_was_made_of(raw: bytes) -> None:
    record = record_of(raw)
    header = parse_header(record)
    assert parse_record(record) == raw
    assert (header.raw, header.stored) == (len(raw), len(record) - HEADER_BYTES)
    assert header.hash == blob_hash(raw)


@pytest.mark.parametrize(
    ("raw", "codec"),
    [
        (b"", CODEC_RAW),
        (b"a", CODEC_RAW),
        (noise(5000), CODEC_RAW),
        (b"text " * 1000, CODEC_ZSTD),
        (b"x" * FRAME_BYTES, CODEC_ZSTD),
        (b"x" * (FRAME_BYTES + 1), CODEC_CHAIN),
        (noise(2 * FRAME_BYTES), CODEC_CHAIN),
        (noise(2 * FRAME_BYTES + 1), CODEC_CHAIN),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else f"codec {value}",
)
def test_the_kind_of_a_record_follows_from_its_message(raw: bytes, codec: int) -> None:
    record = record_of(raw)
    assert parse_header(record).codec == codec
    assert parse_record(record) == raw


def test_a_record_never_takes_more_than_its_header_beyond_a_message_that_does_not_compress() -> (
    None
):
    assert len(record_of(noise(5000))) == HEADER_BYTES + 5000


@pytest.mark.parametrize("raw", [b"", b"short", b"some text, " * 20], ids=["empty", "raw", "zstd"])
def test_damage_to_any_byte_of_a_header_is_noticed(raw: bytes) -> None:
    record = record_of(raw)
    for position in range(HEADER_BYTES):
        for bit in range(8):
            damaged = bytearray(record)
            damaged[position] ^= 1 << bit
            with pytest.raises(Corrupt):
                parse_record(bytes(damaged))


@pytest.mark.parametrize(
    "raw",
    [b"short", b"some text, " * 20, b"text " * 60_000],
    ids=["raw", "zstd", "chain"],
)
def test_damage_to_a_byte_behind_the_header_never_gives_another_message(raw: bytes) -> None:
    record = record_of(raw)
    noticed = 0
    for position in range(HEADER_BYTES, len(record)):
        damaged = bytearray(record)
        damaged[position] ^= 0xFF
        try:
            assert parse_record(bytes(damaged)) == raw
        except Corrupt:
            noticed += 1
    assert noticed == len(record) - HEADER_BYTES


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_record_that_is_cut_off_is_noticed(data: st.DataObject) -> None:
    record = record_of(data.draw(st.sampled_from([b"", b"short", b"text " * 100])))
    cut = data.draw(st.integers(0, len(record) - 1))
    with pytest.raises(Corrupt):
        parse_record(record[:cut])


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_bytes_that_are_no_record_are_corrupt_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_record(data)


@given(
    codec=st.integers(0, 3),
    raw_bytes=st.integers(0, 1 << 63),
    payload=st.binary(max_size=80),
)
@settings(max_examples=200)
def test_a_header_that_lies_about_its_payload_is_corrupt_and_costs_no_memory(
    codec: int, raw_bytes: int, payload: bytes
) -> None:
    checked = struct.pack("<4sB3xIQQ16s", b"mfr1", codec, 0, raw_bytes, len(payload), bytes(16))
    check = zlib.crc32(checked).to_bytes(4, "little")
    with pytest.raises(Corrupt):
        parse_record(checked + check + payload)


SIZES = st.sampled_from([FRAME_BYTES + 1, 2 * FRAME_BYTES, 2 * FRAME_BYTES + 1, 900_000])


@given(size=SIZES, data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_frame_of_a_chain_is_that_slice_of_the_message(size: int, data: st.DataObject) -> None:
    raw = noise(1000) * (size // 1000 + 1)
    raw = raw[:size]
    chain = chain_of(record_of(raw))
    assert chain.count == -(-size // FRAME_BYTES)
    number = data.draw(st.integers(0, chain.count - 1))
    start = number * chain.frame_bytes
    assert chain.frame(number) == raw[start : start + chain.frame_bytes]


def test_a_damaged_frame_of_a_chain_is_noticed_alone() -> None:
    raw = noise(2 * FRAME_BYTES)
    record = bytearray(record_of(raw))
    record[-10] ^= 1
    chain = chain_of(bytes(record))
    assert chain.frame(0) == raw[:FRAME_BYTES]
    with pytest.raises(Corrupt):
        chain.frame(1)


def test_a_chain_never_reads_more_than_its_record_has_whatever_its_table_says() -> None:
    record = record_of(noise(2 * FRAME_BYTES))
    header = parse_header(record)
    payload = bytearray(record[HEADER_BYTES:])
    payload[12:16] = b"\xff\xff\xff\xff"  # the length of the second frame
    asked: list[int] = []

    def read(start: int, length: int) -> bytes:
        asked.append(start + length)
        return bytes(payload[start : start + length])

    with pytest.raises(Corrupt):
        Chain(header, read).frame(1)
    assert max(asked) <= header.stored


def test_reading_one_frame_of_a_chain_reads_the_table_and_that_frame_only() -> None:
    record = record_of(noise(10 * FRAME_BYTES))
    payload = record[HEADER_BYTES:]
    read_bytes = 0

    def read(start: int, length: int) -> bytes:
        nonlocal read_bytes
        read_bytes += length
        return payload[start : start + length]

    Chain(parse_header(record), read).frame(7)
    assert read_bytes < 1.1 * FRAME_BYTES


def test_a_chain_read_frame_by_frame_is_checked_as_a_whole() -> None:
    raw = noise(3 * FRAME_BYTES + 7)
    record = record_of(raw)
    header = parse_header(record)

    def read(start: int, length: int) -> bytes:
        return record[HEADER_BYTES + start : HEADER_BYTES + start + length]

    assert b"".join(iter_chain(header, read)) == raw
    frames = iter_chain(header._replace(hash=bytes(16)), read)
    assert b"".join(next(frames) for _ in range(4)) == raw
    with pytest.raises(Corrupt, match="hash"):
        next(frames)


@pytest.mark.slow
def test_several_threads_make_and_read_records_at_once() -> None:
    """In a process of its own: when they share what they must not, it dies of a segmentation fault."""
    subprocess.run(
        [sys.executable, "-m", "tests.store.peer", "threads", "-"],
        cwd=PROJECT,
        check=True,
        timeout=120,
    )
