"""Builds what the stages work with from the settings. One plain function each; nothing connects before it is used."""

from typing import TYPE_CHECKING

from headrace import encoders, llm, tracing
from headrace.auth import Authenticator, Keys, KeySource, keys_in_file, keys_of_server
from headrace.chunking import TokenCounter, check_chunking, load_tokenizer
from headrace.config import Settings
from headrace.encoders import Encoder, encoder_identity, max_tokens, reuses_vectors, tokenizer_file
from headrace.errors import Misconfigured
from headrace.llm import LanguageModel
from headrace.rerank import Reranker
from headrace.retrieval import Retriever, StoreTimeouts
from headrace.reuse import TIMEOUT_S, VectorReuse
from headrace.serving import Answerer, Corpora, Corpus, OneCorpus
from headrace.stores.manifests import OpenSearchManifestStore
from headrace.stores.opensearch import OpenSearchTextStore
from headrace.tracing import Tracer

if TYPE_CHECKING:
    from headrace.stores.milvus import MilvusStore


def build_tokenizer(settings: Settings) -> tuple[TokenCounter, int]:
    """The encoder's own tokenizer, without the encoder, and the tokens that the encoder reads.

    Raises Misconfigured when the deployment's chunks would be cut by the encoder.
    """
    tokenizer, readable = load_tokenizer(tokenizer_file(settings.encoder)), max_tokens(settings.encoder)
    try:
        check_chunking(
            settings.chunking.chunking(), encoder_max_tokens=readable, special_tokens=tokenizer.special_tokens
        )
    except ValueError as exc:
        raise Misconfigured(f"chunking: {exc}") from exc
    return tokenizer, readable


def build_encoder(settings: Settings) -> Encoder:
    """Loads the model, which takes seconds and, on a GPU, its memory."""
    return encoders.build_encoder(settings.encoder)


def build_reuse(settings: Settings) -> VectorReuse | None:
    """None where every chunk is to be embedded."""
    if not reuses_vectors(settings.encoder):
        return None
    identity = encoder_identity(settings.encoder)
    milvus = settings.stores.milvus.model_copy(update={"timeout_s": TIMEOUT_S, "search_timeout_s": TIMEOUT_S})
    from headrace.stores.milvus import MilvusStore

    return VectorReuse(MilvusStore(settings.stores.model_copy(update={"milvus": milvus}), identity), identity.recipe)


def build_vectors(settings: Settings) -> "MilvusStore":
    # pymilvus brings pandas along, which takes a second and 50 MB that half of the workers have no use for.
    from headrace.stores.milvus import MilvusStore

    return MilvusStore(settings.stores, encoder_identity(settings.encoder))


def build_texts(settings: Settings) -> OpenSearchTextStore:
    return OpenSearchTextStore(settings.stores)


def build_manifests(settings: Settings) -> OpenSearchManifestStore:
    return OpenSearchManifestStore(settings.stores)


def build_reranker(settings: Settings) -> Reranker | None:
    """Loads the model where `rerank.enabled` says so; None where it doesn't. Raises Misconfigured when it can't."""
    if not settings.rerank.enabled:
        return None
    from headrace.rerank.cross_encoder import CrossEncoderReranker

    return CrossEncoderReranker(settings.rerank)


def build_retriever(settings: Settings) -> Retriever:
    return _retriever(settings, build_reranker(settings))


def _retriever(settings: Settings, reranker: Reranker | None) -> Retriever:
    stores = settings.stores
    return Retriever(
        build_vectors(settings),
        build_texts(settings),
        settings.retrieval,
        reranker=reranker,
        rerank=settings.rerank,
        timeouts=StoreTimeouts(milvus=stores.milvus.search_timeout_s, opensearch=stores.opensearch.search_timeout_s),
    )


def build_language_model(settings: Settings) -> LanguageModel | None:
    """None where answers are sentences of the hits. Raises Misconfigured when a template is no use; asks nobody."""
    return llm.build(settings.llm)


def build_corpus(settings: Settings, reranker: Reranker | None) -> Corpus:
    """Of the generation that is set. Loads the encoder's model; the reranker's is shared with other generations."""
    return Corpus(_retriever(settings, reranker), build_encoder(settings))


def build_answerer(settings: Settings, corpora: Corpora | None = None) -> Answerer:
    """Without `corpora` it answers from the generation that is set, whichever is live."""
    return Answerer(
        corpora=corpora if corpora is not None else OneCorpus(build_corpus(settings, build_reranker(settings))),
        model=build_language_model(settings),
        authenticator=build_authenticator(settings),
        retrieval=settings.retrieval,
        llm=settings.llm,
        settings=settings.query,
    )


def build_authenticator(settings: Settings) -> Authenticator | None:
    """None where auth is off. Raises Misconfigured when the keys are in a file alone, and can't be read."""
    auth = settings.auth
    if not auth.enabled:
        return None
    sources: list[KeySource] = []
    if auth.jwks_url is not None:
        sources.append(keys_of_server(auth, auth.jwks_url))
    if auth.jwks_file is not None:
        sources.append(keys_in_file(auth.jwks_file))
    keys = Keys(sources, auth)
    if auth.jwks_url is None:
        keys.load()
    return Authenticator(auth, keys)


def build_tracer(settings: Settings, stage: str) -> Tracer:
    """One that records nothing where tracing is off. Raises Misconfigured where a certificate can't be used."""
    return tracing.build_tracer(settings.tracing, f"headrace-{stage}", settings.worker.instance_id)
