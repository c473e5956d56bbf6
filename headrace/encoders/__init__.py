"""Texts to vectors. Importing this stays light:
torch is loaded when a SentenceTransformerEncoder is built, not before.
"""

from headrace.encoders.context import context_of
from headrace.encoders.model import encoder_identity, max_tokens, model_folder, model_name
from headrace.encoders.port import Encoder, Vectors
from headrace.encoders.sentence_transformer import SentenceTransformerEncoder

__all__ = [
    "Encoder",
    "SentenceTransformerEncoder",
    "Vectors",
    "context_of",
    "encoder_identity",
    "max_tokens",
    "model_folder",
    "model_name",
]
