"""Real stores under a prefix of this run alone, which is dropped at its end."""

import time
from collections.abc import Callable, Iterator
from uuid import uuid4

import opensearchpy
import pytest
from pymilvus import MilvusClient

from headrace.config import Settings
from headrace.stores import StoreSettings
from schemas import EncoderIdentity

ENCODER = EncoderIdentity(name="test/four-dimensions", dimension=4, normalised=True)


@pytest.fixture(scope="session")
def settings(servers: Settings) -> Iterator[StoreSettings]:
    stores = servers.stores.model_copy(update={"prefix": f"t{uuid4().hex[:8]}_"})
    yield stores
    milvus = MilvusClient(stores.milvus.uri, timeout=5, dedicated=True)
    for name in milvus.list_collections():
        if name.startswith(stores.prefix):
            milvus.drop_collection(name)
    milvus.close()
    with opensearchpy.OpenSearch(stores.opensearch.url) as client:
        client.indices.delete(index=f"{stores.prefix}*", ignore_unavailable=True)


@pytest.fixture
def tenant() -> str:
    """A tenant that nothing was written for yet."""
    return f"x-{uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Wait until it holds, for up to 15 s: a search sees a new row within about 2."""

    def wait(holds: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 15
        while not holds():
            assert time.monotonic() < give_up, "still not so after 15 s"
            time.sleep(0.1)

    return wait
