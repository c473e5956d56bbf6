"""What differs between the backends, in one place; none of it is loaded before it is built."""

from pathlib import Path

from headrace.encoders import model, static
from headrace.encoders.exported import exported_folder, read_note
from headrace.encoders.port import Encoder
from headrace.encoders.settings import EncoderSettings
from headrace.errors import Misconfigured
from schemas import EncoderIdentity

CPU_BATCH_TOKENS = 4_096
LARGE_BATCH_TOKENS = 65_536
_TOKENS_OF_A_TEXT = 256
"""Of the default chunking."""


def build_encoder(settings: EncoderSettings) -> Encoder:
    """Loads the model, which takes seconds and, on a GPU, its memory; an endpoint isn't asked before it is used.

    Raises Misconfigured when the model, its runtime or the device can't be had.
    """
    identity = encoder_identity(settings)
    match settings.backend:
        case "torch" | "onnx":
            return _transformer(settings, identity)
        case "static":
            return static.StaticEncoder(identity)
        case "openai":
            from headrace.encoders.remote import EndpointEncoder

            return EndpointEncoder(settings, identity, tokenizer_file(settings), max_tokens(settings))


def _transformer(settings: EncoderSettings, identity: EncoderIdentity) -> Encoder:
    from headrace.encoders.reading import reader_of
    from headrace.encoders.transformer import TransformerEncoder

    folder = _folder(settings)
    reader, batch_tokens = reader_of(folder), encoder_batch_tokens(settings)
    if settings.backend == "onnx":
        from headrace.encoders.onnx import OnnxNetwork

        return TransformerEncoder(OnnxNetwork(folder, settings), reader, identity, batch_tokens=batch_tokens)
    from headrace.encoders.sentence_transformer import SentenceTransformerNetwork

    return TransformerEncoder(SentenceTransformerNetwork(folder, settings), reader, identity, batch_tokens=batch_tokens)


def encoder_identity(settings: EncoderSettings) -> EncoderIdentity:
    """What the encoder of these settings says of its vectors, for the workers that hold it against a collection's.
    Read without the model.

    Raises Misconfigured when the model can't be found, or its files don't say how long its vectors are.
    """
    match settings.backend:
        case "torch":
            name, dimension = model.model_name(settings.model), model.dimension(_folder(settings))
        case "onnx":
            name, dimension = read_note(_folder(settings)).name, model.dimension(_folder(settings))
        case "static":
            name, dimension = settings.model, static.DIMENSION
        case "openai":
            name, dimension = settings.model, settings.dimension or 0
    return EncoderIdentity(name=name, dimension=dimension, normalised=True, context=settings.context)


def tokenizer_file(settings: EncoderSettings) -> Path:
    """The tokenizer that the encoder counts in. Raises Misconfigured when it can't be found."""
    match settings.backend:
        case "torch" | "onnx":
            return _folder(settings) / model.TOKENIZER_FILE
        case "static":
            return static.tokenizer_file()
        case "openai":
            named = Path(settings.tokenizer or "").expanduser() / model.TOKENIZER_FILE
            return (
                named if settings.tokenizer and named.is_file() else _endpoint_folder(settings) / model.TOKENIZER_FILE
            )


def max_tokens(settings: EncoderSettings) -> int:
    """Tokens of the longest passage that the encoder reads whole, its special ones included.

    Raises Misconfigured when nothing says how many.
    """
    match settings.backend:
        case "torch" | "onnx":
            return model.max_tokens(_folder(settings))
        case "static":
            return static.MAX_TOKENS
        case "openai":
            return settings.max_tokens or model.max_tokens(_endpoint_folder(settings))


def encoder_batch_tokens(settings: EncoderSettings) -> int:
    """Tokens that the encoder works on at once: one forward batch, or all that is asked of the endpoint together."""
    if settings.backend == "openai":
        return settings.concurrency * settings.texts_per_request * _TOKENS_OF_A_TEXT
    if settings.batch_tokens:
        return settings.batch_tokens
    # Nobody waits for a static model's turn, so its batches need only be large enough to cost nothing by themselves.
    large = settings.backend == "static" or _on_cuda(settings)
    return LARGE_BATCH_TOKENS if large else CPU_BATCH_TOKENS


def reuses_vectors(settings: EncoderSettings) -> bool:
    """Whether the vectors of what an update left as it was are fetched and not made again, where they can be."""
    if settings.reuse == "auto":
        # Milvus gives those of 64 chunks in 5 to 10 ms. A GPU makes them in about as long, and static ones sooner.
        return settings.backend == "openai" or (settings.backend != "static" and not _on_cuda(settings))
    return settings.reuse == "always"


def _on_cuda(settings: EncoderSettings) -> bool:
    if settings.backend == "static" or settings.device == "cpu":
        return False
    if settings.backend == "onnx":
        from headrace.encoders.onnx import CPU, pick_provider

        return pick_provider(settings.device) != [CPU]
    from headrace.devices import pick_device

    return pick_device("encoder", "encoder", settings.device, settings.precision).type == "cuda"


def _folder(settings: EncoderSettings) -> Path:
    return exported_folder(settings.model) if settings.backend == "onnx" else model.model_folder(settings.model)


def _endpoint_folder(settings: EncoderSettings) -> Path:
    try:
        return model.model_folder(settings.tokenizer or settings.model)
    except Misconfigured as exc:
        raise Misconfigured(
            f"encoder.tokenizer must name the folder or the hub's model whose tokenizer.json counts the endpoint's "
            f"tokens, and encoder.max_tokens how many it reads ({exc})"
        ) from exc
