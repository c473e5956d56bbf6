"""What can't be decoded is passed over, and nothing else; on bytes as a broker sends them."""

import struct
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka.structs import TopicPartition

from agents.batches import Batches, ReadableRecords, UnreadableBatch
from tests.fakes.batches import CHECKED, GZIP, batch, resealed, with_foreign_header

ATTRIBUTES, LAST_DELTA = 21, 23
FIRST_RECORD = 61


def read(answer: bytes, *, fetch_offset: int = 0) -> tuple[list[tuple[int, bytes]], list[UnreadableBatch], int]:
    """The records with their offsets, what could not be read, and where the next fetch begins."""
    place = TopicPartition("documents.stored", 0)
    records = ReadableRecords(place, Batches(answer), [], fetch_offset, None, None, True, 1)
    found: Sequence[Any] = list(records)
    readable = [(one.offset, one.value) for one in found if not isinstance(one.value, UnreadableBatch)]
    unreadable = [one.value for one in found if isinstance(one.value, UnreadableBatch)]
    assert all(one.offset == one.value.last for one in found if isinstance(one.value, UnreadableBatch))
    return readable, unreadable, records.next_fetch_offset


def changed(data: bytes, at: int, by: bytes) -> bytes:
    return data[:at] + by + data[at + len(by) :]


def with_bad_crc(data: bytes) -> bytes:
    return changed(data, len(data) - 1, bytes([data[-1] ^ 1]))


def with_no_gzip(data: bytes) -> bytes:
    return resealed(changed(data, FIRST_RECORD, b"no gzip"))


def with_unknown_codec(data: bytes) -> bytes:
    return resealed(changed(data, ATTRIBUTES, struct.pack(">h", 7)))


def with_a_wrong_length(data: bytes) -> bytes:
    return resealed(changed(data, FIRST_RECORD, b"\x7e"))


@pytest.mark.parametrize("spoil", [with_bad_crc, with_no_gzip, with_unknown_codec, with_a_wrong_length])
@pytest.mark.parametrize("behind", [True, False])
def test_a_spoilt_batch_is_passed_over_exactly(spoil: Any, behind: bool) -> None:
    codec = GZIP if spoil is with_no_gzip else 0
    spoilt = spoil(batch([b"c", b"d", b"e"], codec=codec, base_offset=2))
    after = batch([b"f"], base_offset=5) if behind else b""
    readable, [unreadable], end = read(batch([b"a", b"b"]) + spoilt + after)
    assert readable == [(0, b"a"), (1, b"b")] + ([(5, b"f")] if behind else [])
    assert (unreadable.first, unreadable.last) == (2, 4)
    assert unreadable == spoilt
    assert unreadable.reason
    assert end == (6 if behind else 5)


def test_what_of_a_batch_can_be_read_is_read() -> None:
    spoilt = with_foreign_header([b"a", b"b", b"c"], spoilt=1, base_offset=7)
    readable, [unreadable], end = read(spoilt, fetch_offset=7)
    assert readable == [(7, b"a")]
    assert (unreadable.first, unreadable.last, end) == (8, 9, 10)


def test_after_a_restart_within_a_spoilt_batch_only_the_rest_of_it_is_passed_over() -> None:
    spoilt = with_foreign_header([b"a", b"b", b"c"], spoilt=1, base_offset=7)
    readable, [unreadable], _ = read(spoilt, fetch_offset=8)
    assert readable == []
    assert (unreadable.first, unreadable.last) == (8, 9)


def test_of_a_header_that_lies_the_end_is_where_the_next_batch_begins() -> None:
    lies = changed(batch([b"a", b"b"]), LAST_DELTA, struct.pack(">i", 1_000_000))
    readable, [unreadable], end = read(lies + batch([b"c"], base_offset=2))
    assert readable == [(2, b"c")]
    assert (unreadable.first, unreadable.last, end) == (0, 1, 3)


def test_of_a_header_that_lies_at_the_end_of_an_answer_one_offset_is_given_up_at_a_time() -> None:
    lies = changed(batch([b"a", b"b"], base_offset=4), LAST_DELTA, struct.pack(">i", 1_000_000))
    assert read(lies, fetch_offset=4)[2] == 5
    assert read(lies, fetch_offset=5)[2] == 6


def test_a_compacted_batch_ends_where_its_header_says() -> None:
    compacted = resealed(changed(batch([b"a", b"b"], base_offset=4), LAST_DELTA, struct.pack(">i", 9)))
    spoilt = resealed(changed(compacted, FIRST_RECORD, b"\x7e"))
    assert read(compacted, fetch_offset=4)[2] == 14
    assert read(spoilt, fetch_offset=4)[2] == 14


def test_an_answer_that_ends_within_a_batch_is_read_up_to_it() -> None:
    whole, cut = batch([b"a"]), batch([b"b"], base_offset=1)
    readable, unreadable, end = read(whole + cut[:-3])
    assert (readable, unreadable, end) == ([(0, b"a")], [], 1)
    assert not Batches(cut[:CHECKED]).has_next()


@pytest.mark.parametrize("codec", [0, GZIP])
def test_a_sound_batch_is_read_as_it_was_sent(codec: int) -> None:
    values = [b"%d" % number for number in range(100)]
    readable, unreadable, end = read(batch(values, codec=codec, base_offset=3), fetch_offset=50)
    assert readable == [(3 + number, value) for number, value in enumerate(values) if 3 + number >= 50]
    assert (unreadable, end) == ([], 103)
