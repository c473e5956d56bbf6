"""What is asked of a CUDA device at a scrape. No device is here: torch's answers are made up."""

import math
from collections.abc import Iterator

import pytest
import torch
from prometheus_client import REGISTRY

from headrace import telemetry
from headrace.encoders import gpu

DEVICE = torch.device("cuda", 7)


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    telemetry.GPU_MEMORY.clear()
    telemetry.GPU_UTILIZATION.clear()


def told(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"device": "7", **labels})


def test_memory_and_use_are_as_the_device_says_at_that_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 55)
    gpu.watch(DEVICE)
    memory = [told("headrace_gpu_memory_bytes", kind=kind) for kind in ("total", "used", "reserved")]
    assert memory == [100, 70, 20]
    assert told("headrace_gpu_utilization_ratio") == 0.55
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 100))
    assert told("headrace_gpu_memory_bytes", kind="used") == 90


def test_a_device_that_was_lost_is_unknown_and_takes_nothing_along(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(device: torch.device) -> int:
        raise RuntimeError("CUDA error: device lost")

    gpu.watch(DEVICE)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lost)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20)
    assert math.isnan(told("headrace_gpu_memory_bytes", kind="used") or 0)
    assert told("headrace_gpu_memory_bytes", kind="reserved") == 20
