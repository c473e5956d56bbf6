"""What /metrics tells of the encoder's CUDA device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from headrace import telemetry

if TYPE_CHECKING:
    import torch


def watch(device: torch.device) -> None:
    """Ask the device at each scrape, from now on: microseconds. Its utilisation is told where nvidia-ml-py is."""
    import torch

    name = str(device.index or 0)
    errors: tuple[type[Exception], ...] = (RuntimeError,)

    def told(ask: Callable[[], float]) -> Callable[[], float]:
        def value() -> float:
            try:
                return float(ask())
            except errors:
                return math.nan  # A device that was lost must not take the other metrics along.

        return value

    def used() -> int:
        free, total = torch.cuda.mem_get_info(device)
        return total - free

    telemetry.GPU_MEMORY.labels(name, "total").set_function(told(lambda: torch.cuda.mem_get_info(device)[1]))
    telemetry.GPU_MEMORY.labels(name, "used").set_function(told(used))
    telemetry.GPU_MEMORY.labels(name, "reserved").set_function(told(lambda: torch.cuda.memory_reserved(device)))
    try:
        from pynvml import NVMLError
    except ImportError:
        return
    errors = (RuntimeError, NVMLError)
    telemetry.GPU_UTILIZATION.labels(name).set_function(told(lambda: torch.cuda.utilization(device) / 100))
