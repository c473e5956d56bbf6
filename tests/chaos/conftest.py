"""Each run has a seed: HEADRACE_CHAOS_SEED, or a random one that a failure prints."""

import os
import random

import pytest

# The settings refuse variables of headrace that they don't know, so it must be gone before anybody reads them.
_SEED = os.environ.pop("HEADRACE_CHAOS_SEED", None)


@pytest.fixture
def seed() -> int:
    return random.SystemRandom().randrange(10**6) if _SEED is None else int(_SEED)
