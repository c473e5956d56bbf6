"""The network of a sentence-transformers model, run by torch on a CPU or a CUDA device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.devices import pick_device
from headrace.encoders import gpu
from headrace.encoders.port import Vectors
from headrace.encoders.settings import EncoderSettings
from headrace.encoders.transformer import DeviceFull, Ids
from headrace.errors import Misconfigured

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer


class SentenceTransformerNetwork:
    """A Network. Building one loads torch and the model, which takes seconds. Raises Misconfigured when the model, the
    device or the precision can't be had.
    """

    def __init__(self, folder: Path, settings: EncoderSettings) -> None:
        import torch

        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._device = pick_device("encoder", "encoder", settings.device, settings.precision)
        self.runs_on = f"{self._device} in {settings.precision}"
        self.model = _load(folder, self._device, settings.precision)
        self.pad = int(getattr(self.model.tokenizer, "pad_token_id", None) or 0)
        self._before: torch.cuda.Event | None = None
        if self._device.type == "cuda":
            gpu.watch(self._device)

    def forward(self, ids: Ids, mask: Ids) -> torch.Tensor:
        """float32 on the device (len(ids) x dimension), not of length 1."""
        import torch

        try:
            with torch.inference_mode():
                features = {"input_ids": self._on_device(ids), "attention_mask": self._on_device(mask)}
                embedding: torch.Tensor = self.model(features)["sentence_embedding"]
                # float32 before anything is divided: half precision has too few digits for a length of 1.
                made = embedding.float()
        except torch.cuda.OutOfMemoryError as exc:
            raise DeviceFull from exc
        if self._device.type == "cuda":
            self._wait_for_the_batch_before()
        return made

    def _wait_for_the_batch_before(self) -> None:
        """One batch is worked on while the next waits at the device, so it is never idle; what is queued beyond that
        would stand before an urgent call.
        """
        import torch

        before, self._before = self._before, torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._before.record(torch.cuda.current_stream(self._device))
        if before is not None:
            before.synchronize()

    def _on_device(self, values: Ids) -> torch.Tensor:
        import torch

        tensor = torch.from_numpy(values)
        if self._device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def collect(self, batches: Sequence[torch.Tensor]) -> Vectors:
        """Copied once, together: each copy waits for the device, and the next batch would not be ready for it."""
        import torch

        try:
            with torch.inference_mode():
                vectors: Vectors = torch.cat(list(batches)).cpu().numpy()
        except torch.cuda.OutOfMemoryError as exc:
            raise DeviceFull from exc
        return vectors


def _load(folder: Path, device: torch.device, precision: str) -> SentenceTransformer:
    """Raises Misconfigured when the folder's files are no model that sentence-transformers knows."""
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    # A worker's log is no place for its progress bars.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = SentenceTransformer(
            str(folder),
            device=str(device),
            local_files_only=True,
            model_kwargs={"dtype": getattr(torch, precision)},
        )
    except (OSError, ValueError) as exc:
        reason = next(iter(str(exc).strip().splitlines()), type(exc).__name__)
        raise Misconfigured(f"encoder.model: {folder} can't be loaded: {reason}") from exc
    return model.eval()
