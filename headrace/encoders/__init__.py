"""Texts to vectors. Importing this stays light: a backend's libraries are loaded when its encoder is built."""

from headrace.encoders.backends import (
    build_encoder,
    encoder_batch_tokens,
    encoder_identity,
    max_tokens,
    reuses_vectors,
    tokenizer_file,
)
from headrace.encoders.context import context_of
from headrace.encoders.port import Encoder, Vectors

__all__ = [
    "Encoder",
    "Vectors",
    "build_encoder",
    "context_of",
    "encoder_batch_tokens",
    "encoder_identity",
    "max_tokens",
    "reuses_vectors",
    "tokenizer_file",
]
