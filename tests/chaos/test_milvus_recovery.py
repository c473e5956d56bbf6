"""What Milvus itself makes of a kill, and what our store must do for searches to stay whole."""

import time
from contextlib import suppress
from datetime import UTC, datetime

import numpy as np
import pytest

from headrace import wiring
from headrace.errors import Transient
from headrace.stores.filters import parse_filters
from headrace.stores.ports import VectorRow
from schemas import Attributes
from tests.chaos.servers import OwnServers

DOCUMENTS, CHUNKS = 600, 4
KILLED_AFTER_S, WRITES_FOR_S = 5.0, 110.0
"""Written on across the kill, until what Milvus read again from its log lies in a sealed segment: those get an index."""


def test_a_milvus_that_was_killed_finds_every_row_by_search_again(own_servers: OwnServers, form: str) -> None:
    if form == "short":
        pytest.skip("takes two minutes: a part of make chaos")
    store = wiring.build_vectors(own_servers.settings)
    dice = np.random.default_rng(7)
    attributes = Attributes(created_at=datetime.now(UTC))

    def rows(numbers: range) -> list[VectorRow]:
        return [
            VectorRow(
                id=f"{number}-{ordinal}",
                doc_id=f"d{number}",
                version=1,
                ordinal=ordinal,
                content_hash="",
                attributes=attributes,
                vector=dice.normal(size=384).astype(np.float32),
            )
            for number in numbers
            for ordinal in range(CHUNKS)
        ]

    for first in range(0, DOCUMENTS, 50):
        store.upsert("killed", rows(range(first, first + 50)))
    written, began, killed = DOCUMENTS, time.monotonic(), False
    while time.monotonic() - began < WRITES_FOR_S:
        if not killed and time.monotonic() - began > KILLED_AFTER_S:
            own_servers.kill("milvus")
            killed = True
        with suppress(Transient):
            store.upsert("killed", rows(range(written, written + 5)))
            written += 5
        time.sleep(0.3)
    question = dice.normal(size=384).astype(np.float32)
    found = {
        number: len(store.search("killed", question, limit=100, filters=parse_filters({"doc_id": [f"d{number}"]})))
        for number in range(0, DOCUMENTS, 10)
    }
    store.close()
    assert set(found.values()) == {CHUNKS}, found
