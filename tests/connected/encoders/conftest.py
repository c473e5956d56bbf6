from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from headrace.encoders import tokenizer_file
from headrace.encoders.backends import build_encoder
from headrace.encoders.settings import EncoderSettings
from headrace.encoders.transformer import TransformerEncoder

WIDTH, DIMENSION = 64, 48


@pytest.fixture(scope="session")
def encoder() -> TransformerEncoder[torch.Tensor]:
    """The default model, which reads a text or two at once."""
    made = build_encoder(EncoderSettings(device="cpu", batch_tokens=32))
    assert isinstance(made, TransformerEncoder)
    return made


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers that has learned nothing, with everything that a folder may hold: prompts, and a dense
    layer behind the pooling.
    """
    torch.manual_seed(6)
    parts = tmp_path_factory.mktemp("parts")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file(EncoderSettings())), pad_token="[PAD]", model_max_length=128
    )
    tokenizer.save_pretrained(parts)
    BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=160,
            initializer_range=0.2,
        )
    ).save_pretrained(parts)
    transformer = Transformer(str(parts), max_seq_length=128)
    folder = tmp_path_factory.mktemp("models") / "small"
    SentenceTransformer(
        modules=[transformer, Pooling(WIDTH, "mean"), Dense(WIDTH, DIMENSION), Normalize()],
        prompts={"query": "question: ", "document": "passage: "},
        device="cpu",
    ).save(str(folder))
    return folder
