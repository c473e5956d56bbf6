"""Builds what the stages work with from the settings. One plain function each; nothing connects before it is used."""

from headrace.chunking import TokenCounter, check_chunking, load_tokenizer
from headrace.config import Settings
from headrace.encoders import Encoder, SentenceTransformerEncoder, encoder_identity, max_tokens, model_folder
from headrace.errors import Misconfigured
from headrace.stores.manifests import OpenSearchManifestStore
from headrace.stores.milvus import MilvusStore
from headrace.stores.opensearch import OpenSearchTextStore


def build_tokenizer(settings: Settings) -> tuple[TokenCounter, int]:
    """The encoder's own tokenizer, without the encoder, and the tokens that the encoder reads.

    Raises Misconfigured when the deployment's chunks would be cut by the encoder.
    """
    folder = model_folder(settings.encoder)
    tokenizer, readable = load_tokenizer(folder), max_tokens(folder)
    try:
        check_chunking(
            settings.chunking.chunking(), encoder_max_tokens=readable, special_tokens=tokenizer.special_tokens
        )
    except ValueError as exc:
        raise Misconfigured(f"chunking: {exc}") from exc
    return tokenizer, readable


def build_encoder(settings: Settings) -> Encoder:
    """Loads the model, which takes seconds and, on a GPU, its memory."""
    return SentenceTransformerEncoder(settings.encoder)


def build_vectors(settings: Settings) -> MilvusStore:
    return MilvusStore(settings.stores, encoder_identity(settings.encoder))


def build_texts(settings: Settings) -> OpenSearchTextStore:
    return OpenSearchTextStore(settings.stores)


def build_manifests(settings: Settings) -> OpenSearchManifestStore:
    return OpenSearchManifestStore(settings.stores)
