from pathlib import Path

import pytest

from headrace.chunking import Tokenizer, check_chunking, load_tokenizer
from headrace.errors import Misconfigured
from schemas import Chunking


def test_the_models_own_tokenizer_counts_without_truncation_or_padding(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_tokens == 2
    assert tokenizer.count(["", "hello", "hello " * 1000]) == [2, 3, 1002]


def test_offsets_are_characters_also_behind_astral_ones(tokenizer: Tokenizer) -> None:
    text = "😀𠀀 don't"
    reading = tokenizer.read(text)
    assert reading.word_starts.tolist() == [0, 1, 3, 6, 7]
    assert reading.token_ends.tolist() == [1, 2, 6, 7, 8]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no tokenizer at .*tokenizer.json"), (b"{}", "can't be read"), (b"\xff", "can't be read")],
    ids=["missing", "empty", "bytes"],
)
def test_a_folder_without_a_tokenizer_is_misconfigured(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(Misconfigured, match=message):
        load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("chunking", "message"),
    [
        (Chunking(max_tokens=257), "max_tokens is 257, but the encoder reads at most 256"),
        (Chunking(max_tokens=7, overlap_tokens=0), "at least 8 are needed"),
        (Chunking(max_tokens=64, overlap_tokens=64), "leaves no room for new text"),
        (Chunking(max_tokens=64, overlap_tokens=62), "leaves no room for new text"),
        (Chunking(strategy="sentence", max_tokens=64), "leaves no room for new text"),
    ],
)
def test_chunkings_that_the_encoder_cannot_read_are_refused(chunking: Chunking, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_chunking(chunking, encoder_max_tokens=256, special_tokens=2)


@pytest.mark.parametrize(
    "chunking",
    [
        Chunking(),
        Chunking(max_tokens=8, overlap_tokens=0),
        Chunking(max_tokens=64, overlap_tokens=61),
        Chunking(strategy="hierarchical", max_tokens=64, overlap_tokens=64),
    ],
)
def test_chunkings_that_the_encoder_can_read_pass(chunking: Chunking) -> None:
    check_chunking(chunking, encoder_max_tokens=256, special_tokens=2)
    check_chunking(chunking, encoder_max_tokens=None, special_tokens=2)
