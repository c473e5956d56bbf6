"""Tokens count once, and seconds are those in which anybody's call was under way."""

import time

import numpy as np
import pytest
from prometheus_client import REGISTRY

from headrace.encoders import Vectors
from headrace.encoders.meter import RATE_OVER_S, Meter, RecentRate
from headrace.encoders.reading import Read
from headrace.encoders.transformer import Ids, TransformerEncoder
from schemas import EncoderIdentity


class Clock:
    """`time.perf_counter`, at will."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        self._tokens, self._seconds = self._read()

    @staticmethod
    def _read() -> tuple[float, float]:
        names = ("headrace_encoder_tokens_total", "headrace_encoder_seconds_total")
        tokens, seconds = (REGISTRY.get_sample_value(name) or 0.0 for name in names)
        return tokens, seconds

    @property
    def counted(self) -> tuple[float, float]:
        tokens, seconds = self._read()
        return tokens - self._tokens, round(seconds - self._seconds, 6)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_calls_that_overlap_are_busy_once(clock: Clock) -> None:
    meter = Meter()
    with meter.reading([[1, 2, 3]]):
        clock.now += 2
        with meter.reading([[1], [2, 3]]):
            clock.now += 3
        clock.now += 5
    clock.now += 7
    with meter.reading([]):
        clock.now += 1
    assert clock.counted == (6, 11)


def test_what_goes_on_for_long_is_told_as_others_come_and_go(clock: Clock) -> None:
    meter = Meter()
    with meter.reading([[1]]):
        clock.now += 2
        with meter.reading([[1]]):
            assert clock.counted == (0, 2)


def test_what_fails_is_busy_and_has_read_nothing(clock: Clock) -> None:
    def fail() -> None:
        with Meter().reading([[1, 2]]):
            clock.now += 4
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert clock.counted == (0, 4)


def test_a_throughput_is_of_the_last_minute_and_nothing_when_nothing_came(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    throughput = RecentRate()
    assert throughput.a_second() == 0
    throughput.count(60)
    now += RATE_OVER_S / 2
    throughput.count(240)
    assert throughput.a_second() == 300 / RATE_OVER_S
    now += RATE_OVER_S / 2
    assert throughput.a_second() == 240 / RATE_OVER_S
    now += RATE_OVER_S
    assert throughput.a_second() == 0


class Network:
    """Each batch takes a second, and the device another one until the vectors are there."""

    pad = 0
    runs_on = "paper"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def forward(self, ids: Ids, mask: Ids) -> int:
        self._clock.now += 1
        return len(ids)

    def collect(self, batches: list[int]) -> Vectors:
        self._clock.now += 1
        return np.ones((sum(batches), 2), dtype=np.float32)


class Words:
    """A Reader to which a word is a token."""

    max_tokens = 100

    def questions(self, texts: list[str]) -> Read:
        return Read(texts, [[1] * len(text.split()) for text in texts])


def test_a_transformer_counts_tokens_without_padding_and_is_busy_until_its_vectors_are_there(clock: Clock) -> None:
    identity = EncoderIdentity(name="paper", dimension=2, normalised=True)
    encoder = TransformerEncoder(Network(clock), Words(), identity, batch_tokens=4)  # type: ignore[arg-type]
    warm_up = clock.counted
    assert warm_up == (1, 2)
    encoder.encode_queries(["one two three four", "one", "one two"])
    assert clock.counted == (1 + 7, 2 + 3)
