"""The reranker that runs in this process: a sentence-transformers cross-encoder on a CPU or a CUDA device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headrace.devices import pick_device
from headrace.errors import Misconfigured, Transient
from headrace.rerank.port import Pair, Scores
from headrace.rerank.settings import RerankSettings

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

SERVICE = "rerank"

_CONFIG = "config.json"
# The same weights once more, for other runtimes.
_UNUSED = ["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.msgpack", "*.ot"]


class CrossEncoderReranker:
    """A Reranker. Its scores are the model's own output, before the function that would squeeze them into 0..1.

    Building one loads torch and the model, which takes seconds. Raises Misconfigured when the model, the device or the
    precision can't be had, and for a model that gives several scores for a pair.
    """

    def __init__(self, settings: RerankSettings) -> None:
        self._settings = settings
        self._model = _load(settings, str(pick_device("rerank", "reranker", settings.device, settings.precision)))
        if self._model.num_labels != 1:
            raise Misconfigured(
                f"rerank.model: {settings.model} gives {self._model.num_labels} scores for a pair; a reranker gives one"
            )
        # The first call sets the device up, so it is made here and not on somebody's query.
        self.score([("headrace", "headrace")])

    @property
    def device(self) -> str:
        """Where the model runs: `cpu` or `cuda:0`."""
        return str(self._model.device)

    def score(self, pairs: Sequence[Pair]) -> Scores:
        import torch

        if not pairs:
            return np.empty(0, dtype=np.float32)
        try:
            # It sorts by length itself, so little is padding.
            scores = self._model.predict(
                list(pairs),
                batch_size=self._settings.batch_size,
                show_progress_bar=False,
                activation_fn=torch.nn.Identity(),
                convert_to_numpy=True,
            )
        except RuntimeError as exc:  # what torch raises: memory that is short, a device that is lost
            raise Transient(SERVICE, f"{self._settings.model} on {self.device}: {_first_line(exc)}") from exc
        answer = np.asarray(scores, dtype=np.float32)
        if not np.isfinite(answer).all():
            raise Transient(SERVICE, f"{self._settings.model} gave scores that are no numbers")
        return answer


def _load(settings: RerankSettings, device: str) -> CrossEncoder:
    import torch
    from sentence_transformers import CrossEncoder
    from transformers.utils import logging

    folder = _folder(settings.model)
    # A worker's log is no place for its progress bars.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: CrossEncoder = CrossEncoder(
            str(folder),
            device=device,
            local_files_only=True,
            model_kwargs={"dtype": getattr(torch, settings.precision)},
        )
        return model
    except (OSError, ValueError) as exc:
        raise Misconfigured(f"rerank.model: {folder} can't be loaded: {_first_line(exc)}") from exc


def _folder(model: str) -> Path:
    """What is here is used as it is; only what isn't is asked of the hub."""
    named = Path(model).expanduser()
    if named.is_dir():
        return named.resolve()

    from httpx import HTTPError  # what huggingface_hub lets through when a connection breaks
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            cached = Path(snapshot_download(model, local_files_only=True))
            if (cached / _CONFIG).is_file():
                return cached
        except LocalEntryNotFoundError:
            pass
        return Path(snapshot_download(model, ignore_patterns=_UNUSED))
    except (HTTPError, OSError, ValueError) as exc:
        raise Misconfigured(
            f"rerank.model: {model!r} is not a folder here, and the hub did not give it ({_first_line(exc)}); "
            "name a folder, mend the name or the connection, or set rerank.enabled to false"
        ) from exc


def _first_line(exc: Exception) -> str:
    return next(iter(str(exc).strip().splitlines()), type(exc).__name__)
