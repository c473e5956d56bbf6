import msgspec
import numpy as np
import pytest

from schemas import Chunk
from schemas.batches import CHUNKS_PER_BATCH, pack_chunks, pack_vectors, unpack_vectors

CHUNKS = [
    Chunk(ordinal=place, text="wört " * (place % 7), start=place, end=place + 1, tokens=3) for place in range(200)
]


@pytest.mark.parametrize("room", [1, 300, 2000, 10**9])
def test_groups_hold_every_chunk_in_order(room: int) -> None:
    groups = list(pack_chunks(CHUNKS, room=room))
    assert [chunk for group in groups for chunk in group] == CHUNKS
    assert all(groups)


def test_a_group_keeps_to_its_room() -> None:
    for group in pack_chunks(CHUNKS, room=2000):
        assert len(msgspec.json.encode(group)) <= 2000 + len("]")


def test_what_stands_beside_each_chunk_counts() -> None:
    for group in pack_chunks(CHUNKS, room=2000, each=500):
        assert len(msgspec.json.encode(group)) + 500 * len(group) <= 2000 + len("]")


def test_a_group_has_at_most_64_chunks() -> None:
    assert [len(group) for group in pack_chunks(CHUNKS, room=10**9)] == [64, 64, 64, 8]
    assert CHUNKS_PER_BATCH == 64


def test_a_chunk_larger_than_the_room_stands_alone() -> None:
    assert [len(group) for group in pack_chunks(CHUNKS, room=1)] == [1] * len(CHUNKS)


def test_no_chunks_make_no_group() -> None:
    assert list(pack_chunks([], room=1)) == []


def test_vectors_come_back_as_they_went() -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert (unpack_vectors(pack_vectors(vectors), 4) == vectors).all()
    assert pack_vectors(vectors[:, ::-1][:, ::-1]) == pack_vectors(vectors)


@pytest.mark.parametrize("packed", ["AAAA", "no base64!", "AAAAAAA="])
def test_vectors_of_another_size_are_refused(packed: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack_vectors(packed, 4)
