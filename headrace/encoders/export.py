"""A sentence-transformers model as a folder for ONNX Runtime, held against the original before anybody may use it.

The graph holds the whole model, pooling and dense layers included. In int8 the weights of its matrix products are
quantised per output channel, and activations as they come: with one scale for a whole matrix, all-MiniLM-L6-v2 falls to
a cosine of 0.93.
"""

import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from headrace.encoders.exported import MODEL_FILE, NOTE_FILE, Agreement, ExportNote, Precision
from headrace.encoders.model import dimension, model_folder, model_name
from headrace.encoders.onnx import OnnxNetwork
from headrace.encoders.port import Vectors
from headrace.encoders.reading import reader_of
from headrace.encoders.sentence_transformer import SentenceTransformerNetwork
from headrace.encoders.settings import EncoderSettings
from headrace.encoders.transformer import Network, TransformerEncoder
from headrace.errors import Misconfigured
from schemas import EncoderIdentity

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

LEAST: dict[Precision, tuple[float, float]] = {"float32": (0.9999, 0.999), "int8": (0.99, 0.97)}
"""Cosines with the original's vectors: of the mean, and of the worst text."""
LARGEST_FILE_BYTES = 1_500_000_000
"""Of weights in the graph's own file; larger ones lie beside it, for protobuf ends at 2 GB."""
_CPU = EncoderSettings(device="cpu")
_CHECK_TOKENS = 4_096


def export_encoder(model: str, out: Path, *, precision: Precision, texts: Sequence[str]) -> ExportNote:
    """Make the folder `out`, which must not be there; it appears when the model in it has agreed with the original on
    `texts`, and not before.

    Raises Misconfigured when the model can't be had or exported, or its vectors differ too much.
    """
    if not texts:
        raise Misconfigured("there is no text to hold the exported model against the original with")
    if out.exists():
        raise Misconfigured(f"{out} is there already; name another folder with --out, or remove it")
    folder = model_folder(model)
    unfinished = out.with_name(f"{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        original = SentenceTransformerNetwork(folder, _CPU)
        expected = _encoder(original, folder).encode(texts, truncate=True)
        _copy_descriptions(folder, unfinished)
        _write_graph(original.model, unfinished, precision)
        made = _encoder(OnnxNetwork(unfinished, _CPU), unfinished).encode(texts, truncate=True)
        note = ExportNote(model=model_name(model), precision=precision, agreement=_agreement(expected, made))
        _check(note)
        (unfinished / NOTE_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(note)) + b"\n")
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return note


def _encoder(network: Network[Any], folder: Path) -> TransformerEncoder[Any]:
    identity = EncoderIdentity(name=folder.name, dimension=dimension(folder), normalised=True, context="none")
    return TransformerEncoder(network, reader_of(folder), identity, batch_tokens=_CHECK_TOKENS)


def _agreement(expected: Vectors, made: Vectors) -> Agreement:
    cosines = np.einsum("ij,ij->i", expected.astype(np.float64), made.astype(np.float64))
    return Agreement(texts=len(cosines), mean=round(float(cosines.mean()), 6), least=round(float(cosines.min()), 6))


def _check(note: ExportNote) -> None:
    mean, least = LEAST[note.precision]
    found = note.agreement
    if found.mean < mean or found.least < least:
        raise Misconfigured(
            f"{note.model} in {note.precision} is too far from the original: over {found.texts:,} texts the cosine is "
            f"{found.mean:.4f} in the mean and {found.least:.4f} at least, where {mean} and {least} are needed; "
            "nothing was kept"
        )


def _copy_descriptions(folder: Path, out: Path) -> None:
    """The model's small files: what says how it tokenises, what it reads, and how long its vectors are."""
    for file in (*folder.glob("*.json"), *folder.glob("*/config.json"), *folder.glob("LICENSE*")):
        if not file.name.endswith(".index.json"):
            copy = out / file.relative_to(folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)


def _write_graph(model: "SentenceTransformer", out: Path, precision: Precision) -> None:
    size = sum(parameter.nbytes for parameter in model.parameters())
    whole = out / ("whole.onnx" if precision == "int8" else MODEL_FILE)
    try:
        with _quiet():
            _trace(model, whole, external_data=size > LARGEST_FILE_BYTES)
            if precision == "int8":
                _quantise(whole, out / MODEL_FILE, external_data=size > LARGEST_FILE_BYTES)
    except ImportError as exc:
        raise Misconfigured(f"exporting needs the package {exc.name}: pip install 'headrace[onnx]'") from exc
    if precision == "int8":
        for file in out.glob(f"{whole.name}*"):
            file.unlink()


def _trace(model: "SentenceTransformer", file: Path, *, external_data: bool) -> None:
    import torch

    class Whole(torch.nn.Module):
        """The model as a function of tensors."""

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            embedding: torch.Tensor = model.forward({"input_ids": input_ids, "attention_mask": attention_mask})[
                "sentence_embedding"
            ]
            return embedding

    # torch's fused attention becomes many small operations in a graph; written out, it takes half their time.
    transformer: Any = model[0]
    network = transformer.auto_model
    network.set_attn_implementation("eager")
    longest = getattr(network.config, "max_position_embeddings", None) or 8192
    rows, length = torch.export.Dim("rows", max=65_536), torch.export.Dim("length", max=longest)
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    whole = Whole()
    whole.model = model
    torch.onnx.export(
        whole.eval(),
        (ids, mask),
        str(file),
        input_names=["input_ids", "attention_mask"],
        output_names=["sentence_embedding"],
        dynamic_shapes=({0: rows, 1: length}, {0: rows, 1: length}),
        dynamo=True,
        external_data=external_data,
        verbose=False,
    )


def _quantise(whole: Path, file: Path, *, external_data: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

    quantize_dynamic(
        whole,
        file,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=external_data,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of every step, and of libraries that it could do more with."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
