"""Which device a model runs on."""

from typing import TYPE_CHECKING

from headrace.errors import Misconfigured

if TYPE_CHECKING:
    import torch


def pick_device(section: str, model: str, device: str, precision: str) -> "torch.device":
    """The device that the settings of `section` ask for; `auto` is a CUDA device where there is one.

    Raises Misconfigured when it isn't here, or can't run the `model` in this precision.
    """
    import torch

    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = device
    if wanted == "auto":
        wanted = "cuda" if available else "cpu"
    if wanted == "cpu" and precision != "float32":
        raise Misconfigured(
            f"{section}.precision: {precision} needs a CUDA device, and the {model} runs on the CPU; set float32"
        )
    picked = torch.device("cuda", 0) if wanted == "cuda" else torch.device(wanted)
    if picked.type == "cuda" and (picked.index or 0) >= available:
        raise Misconfigured(
            f"{section}.device: {device} is not here (torch sees {available} CUDA devices); set auto or cpu"
        )
    return picked
