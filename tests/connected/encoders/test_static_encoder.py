import logging
import unicodedata

import numpy as np
import pytest

from headrace.chunking import chunk, load_tokenizer
from headrace.encoders import Encoder, build_encoder, tokenizer_file
from headrace.encoders.settings import EncoderSettings
from headrace.encoders.static import MAX_TOKENS, wordllama_folder
from headrace.errors import Misconfigured
from schemas import Chunking

SETTINGS = EncoderSettings(backend="static")
TEXTS = ["A turbine turns.", "Water flows down the channel. " * 8, "Bread is baked.", "ü 中文 😀"]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_encoder(SETTINGS)


def test_its_vectors_are_those_of_wordllama(encoder: Encoder) -> None:
    from wordllama import WordLlama

    # It sets logging up when it is imported.
    for handler in list(logging.root.handlers):
        if type(handler) is logging.StreamHandler:
            logging.root.removeHandler(handler)
    theirs = WordLlama.load(cache_dir=wordllama_folder(), disable_download=True).embed(TEXTS, norm=True)
    ours = encoder.encode(TEXTS)
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert (ours.dtype, ours.flags.c_contiguous) == (np.float32, True)


def test_a_text_without_tokens_has_a_vector_too(encoder: Encoder) -> None:
    vectors = encoder.encode(["", " ", "\0", "\u200b"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-6)
    assert encoder.encode([]).shape == encoder.encode_queries([]).shape == (0, 256)


def test_a_context_is_read_before_the_text(encoder: Encoder) -> None:
    apart = encoder.encode(["Oil it daily.", "Bread is baked."], contexts=["Pump 7", ""])
    assert apart == pytest.approx(encoder.encode(["Pump 7 Oil it daily.", "Bread is baked."]), abs=1e-6)


def test_a_text_too_long_is_refused_and_a_question_cut(encoder: Encoder) -> None:
    read = "water " * (MAX_TOKENS - 1)
    with pytest.raises(Misconfigured, match=f"does not fit the encoder, which reads {MAX_TOKENS}"):
        encoder.encode([read + "bread " * 100])
    [whole] = encoder.encode([read])
    assert encoder.encode_queries([read + "bread " * 100])[0] == pytest.approx(whole, abs=1e-3)


def test_what_means_the_same_is_nearer_than_what_does_not(encoder: Encoder) -> None:
    [question] = encoder.encode_queries(["What makes the turbine spin?"])
    turbine, bread = encoder.encode(["Flowing water drives the turbine.", "Bread is baked in an oven."]) @ question
    assert turbine > bread + 0.3


@pytest.mark.parametrize(
    "text", ["The headrace leads water to the turbine. " * 200, "中文" * 2000, "x" * 5000, "e\u0301" * 2000]
)
def test_chunks_are_cut_and_counted_with_its_own_tokenizer(encoder: Encoder, text: str) -> None:
    chunks = list(
        chunk(text, "text/plain", Chunking(max_tokens=64, overlap_tokens=16), load_tokenizer(tokenizer_file(SETTINGS)))
    )
    assert len(chunks) > 10
    assert max(each.tokens for each in chunks) <= 64
    assert not any(unicodedata.combining(each.text[0]) for each in chunks)
    assert encoder.encode([each.text for each in chunks]).shape == (len(chunks), 256)
