"""What `headrace encoder export` leaves in a model's folder, and what its headrace.json says. Read without ONNX."""

from pathlib import Path
from typing import Literal

import msgspec

from headrace.encoders.model import model_folder
from headrace.errors import Misconfigured

MODEL_FILE = "model.onnx"
NOTE_FILE = "headrace.json"

Precision = Literal["float32", "int8"]


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Cosines of the exported model's vectors with those that torch makes, on so many texts."""

    texts: int
    mean: float
    least: float


class ExportNote(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    """The name of the model that was exported."""
    precision: Precision
    agreement: Agreement

    @property
    def name(self) -> str:
        """Of the vectors: float32 ones are those of torch; int8 moves them, so they don't go into one collection."""
        return self.model if self.precision == "float32" else f"{self.model}@{self.precision}"


def exported_folder(model: str) -> Path:
    """Raises Misconfigured when this isn't a folder that was exported."""
    folder = model_folder(model)
    missing = [name for name in (MODEL_FILE, NOTE_FILE) if not (folder / name).is_file()]
    if missing:
        raise Misconfigured(
            f"encoder.model: {folder} has no {' and no '.join(missing)}; `headrace encoder export {model}` makes a "
            "folder for ONNX Runtime"
        )
    return folder


def read_note(folder: Path) -> ExportNote:
    try:
        return msgspec.json.decode((folder / NOTE_FILE).read_bytes(), type=ExportNote)
    except msgspec.DecodeError as exc:
        raise Misconfigured(
            f"encoder.model: {folder / NOTE_FILE} can't be read: {exc}; export the model again"
        ) from exc
