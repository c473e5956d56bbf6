"""The network that `headrace encoder export` made, run by ONNX Runtime on a CPU or a CUDA device, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headrace.encoders.exported import MODEL_FILE
from headrace.encoders.model import pad_id
from headrace.encoders.port import Vectors
from headrace.encoders.settings import EncoderSettings
from headrace.encoders.transformer import DeviceFull, Ids
from headrace.errors import Misconfigured

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class OnnxNetwork:
    """A Network; the graph pools too. Raises Misconfigured when the runtime, the device or the model can't be had."""

    def __init__(self, folder: Path, settings: EncoderSettings) -> None:
        runtime = _runtime()
        providers = pick_provider(settings.device)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        # Else its threads turn in circles for a while after each batch, on cores that other workers want.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors; it warns of what it optimises away
        try:
            self._session = runtime.InferenceSession(str(folder / MODEL_FILE), options, providers=providers)
        except Exception as exc:  # its errors have nothing but RuntimeError in common, and not all of them that
            raise Misconfigured(f"encoder.model: {folder} can't be loaded: {_first_line(exc)}") from exc
        used = self._session.get_providers()
        if settings.device.startswith("cuda") and CUDA not in used:
            raise Misconfigured(
                f"encoder.device: ONNX Runtime can't use CUDA here, and falls back to {used[0]}; mend its CUDA "
                "libraries, or set cpu"
            )
        self.runs_on = f"{'cuda' if CUDA in used else 'cpu'} by ONNX Runtime"
        self.pad = pad_id(folder)

    def forward(self, ids: Ids, mask: Ids) -> Vectors:
        try:
            [vectors] = self._session.run(None, {"input_ids": ids, "attention_mask": mask})
        except Exception as exc:
            if "memory" in str(exc).lower():
                raise DeviceFull from exc
            raise
        made: Vectors = vectors
        return made

    def collect(self, batches: Sequence[Vectors]) -> Vectors:
        return np.concatenate(batches)


def pick_provider(device: str) -> list[Any]:
    """Execution providers for a device as the settings spell it. Raises Misconfigured when it isn't here."""
    available = _runtime().get_available_providers()
    if device == "cpu" or (device == "auto" and CUDA not in available):
        return [CPU]
    if CUDA not in available:
        raise Misconfigured(
            f"encoder.device: {device} is not here: this ONNX Runtime has no CUDA; install onnxruntime-gpu in place of "
            "onnxruntime, or set auto or cpu"
        )
    number = int(device.partition(":")[2] or 0)
    return [(CUDA, {"device_id": number}), CPU]


def _runtime() -> Any:
    try:
        import onnxruntime  # type: ignore[import-untyped]  # it ships no types
    except ImportError as exc:
        raise Misconfigured(
            "encoder.backend: onnx needs the package onnxruntime: pip install 'headrace[onnx]'"
        ) from exc
    return onnxruntime


def _first_line(exc: Exception) -> str:
    return next(iter(str(exc).strip().splitlines()), type(exc).__name__)
