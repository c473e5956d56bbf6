"""A server that is away, silent or back again: Transient within the time-out, and no restart of ours is needed."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from headrace.calls import longest_unanswered
from headrace.errors import HeadraceError, Transient
from headrace.stores import Filters, StoreSettings
from headrace.stores.manifests import OpenSearchManifestStore
from headrace.stores.milvus import MilvusStore
from headrace.stores.opensearch import OpenSearchTextStore
from schemas import EncoderIdentity, Key
from tests.connected.stores.proxy import Proxy

ENCODER = EncoderIdentity(name="test/four-dimensions", dimension=4, normalised=True)
QUICK = {"timeout_s": 2.0, "search_timeout_s": 1.0}


@pytest.fixture
def milvus_proxy(settings: StoreSettings) -> Iterator[Proxy]:
    proxy = Proxy(settings.milvus.uri)
    yield proxy
    proxy.cut()


@pytest.fixture
def opensearch_proxy(settings: StoreSettings) -> Iterator[Proxy]:
    proxy = Proxy(settings.opensearch.url)
    yield proxy
    proxy.cut()


def test_nobody_listens(settings: StoreSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    away = at(settings, f"http://127.0.0.1:{port}")
    vectors, texts, manifests = MilvusStore(away, ENCODER), OpenSearchTextStore(away), OpenSearchManifestStore(away)
    for ask in (
        vectors.check,
        lambda: vectors.delete("x", ["a"]),
        lambda: search(vectors),
        lambda: vectors.vectors("x", ["a"]),
        texts.check,
        lambda: texts.read("x", ["a"], ["b"]),
        lambda: texts.search("x", "words", limit=1, filters=Filters()),
        lambda: manifests.read([Key("x", "d")]),
    ):
        assert isinstance(raised(ask, within=1.5), Transient)


def test_nobody_answers(settings: StoreSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        silent = at(settings, address(deaf))
        for ask in (MilvusStore(silent, ENCODER).check, OpenSearchTextStore(silent).check):
            assert isinstance(raised(ask, within=4), Transient)


def test_a_query_waits_for_a_silent_store_no_longer_than_its_own_time_out(settings: StoreSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        silent = at(settings, address(deaf))
        texts = OpenSearchTextStore(silent)
        for ask in (
            lambda: texts.read("x", ["a"], ["b"]),
            lambda: texts.search("x", "words", limit=1, filters=Filters()),
        ):
            assert isinstance(raised(ask, within=1.8), Transient)


def test_threads_that_wait_for_a_silent_milvus_together_wait_once(settings: StoreSettings) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=32) as deaf:
        store = MilvusStore(at(settings, address(deaf)), ENCODER)
        with ThreadPoolExecutor(8) as threads:
            for error in threads.map(lambda _: raised(lambda: search(store), within=4), range(8)):
                assert isinstance(error, Transient)


def test_what_is_asked_of_a_silent_store_is_told_of_while_it_waits(settings: StoreSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(raised, OpenSearchTextStore(at(settings, address(deaf))).check, within=4)
        until = time.monotonic() + 2
        while (call := longest_unanswered()) is None:
            assert time.monotonic() < until
        assert call.service == "opensearch"
        assert isinstance(asked.result(), Transient)
    assert longest_unanswered() is None


def test_milvus_goes_away_and_comes_back(
    settings: StoreSettings, milvus_proxy: Proxy, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    store = MilvusStore(at(settings, milvus_proxy.url), ENCODER)
    store.check()
    milvus_proxy.cut()
    for _ in range(3):
        # Far below the time-out: pymilvus must not retry in secret.
        assert isinstance(raised(store.check, within=0.8), Transient)
    milvus_proxy.up()
    eventually(lambda: raised(store.check, within=4) is None)
    milvus_proxy.freeze()
    assert isinstance(raised(lambda: search(store), within=3), Transient)


def test_opensearch_goes_away_and_comes_back(settings: StoreSettings, opensearch_proxy: Proxy) -> None:
    store = OpenSearchTextStore(at(settings, opensearch_proxy.url))
    store.check()
    opensearch_proxy.cut()
    assert isinstance(raised(store.check, within=0.8), Transient)
    opensearch_proxy.up()
    assert raised(store.check, within=2) is None
    opensearch_proxy.freeze()
    assert isinstance(raised(store.check, within=2), Transient)


def test_making_a_store_connects_to_nothing(settings: StoreSettings) -> None:
    nowhere = at(settings, "http://host.invalid:1")
    MilvusStore(nowhere, ENCODER).close()
    OpenSearchTextStore(nowhere).close()
    OpenSearchManifestStore(nowhere).close()


def at(settings: StoreSettings, address: str) -> StoreSettings:
    milvus = settings.milvus.model_copy(update={"uri": address, **QUICK})
    opensearch = settings.opensearch.model_copy(update={"url": address, **QUICK})
    return settings.model_copy(update={"milvus": milvus, "opensearch": opensearch})


def address(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def search(store: MilvusStore) -> object:
    return store.search("nobody", np.ones(4, dtype=np.float32), limit=1, filters=Filters())


def raised(ask: Callable[[], object], *, within: float) -> HeadraceError | None:
    started = time.monotonic()
    try:
        ask()
    except HeadraceError as exc:
        return exc
    finally:
        assert time.monotonic() - started < within
    return None
