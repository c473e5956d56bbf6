"""The stores behind TLS: who is trusted, who is let in, and what is said where one side refuses the other."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from headrace.errors import Misconfigured
from headrace.stores import StoreSettings
from headrace.stores.manifests import OpenSearchManifestStore
from headrace.stores.milvus import MilvusStore
from headrace.stores.settings import MilvusSettings, OpenSearchSettings
from headrace.tls import TlsSettings
from schemas import EncoderIdentity
from tests.fakes.certificates import Authority, Pair
from tests.fakes.tls_relay import tls_relay

ENCODER = EncoderIdentity(name="test/four-dimensions", dimension=4, normalised=True)
Ask = Callable[[StoreSettings, int, TlsSettings], object]


def ask_milvus(settings: StoreSettings, port: int, tls: TlsSettings) -> object:
    milvus = MilvusSettings(uri=f"https://localhost:{port}", tls=tls)
    return MilvusStore(settings.model_copy(update={"milvus": milvus}), ENCODER).tenants()


def ask_opensearch(settings: StoreSettings, port: int, tls: TlsSettings) -> object:
    opensearch = OpenSearchSettings(url=f"https://localhost:{port}", tls=tls)
    return OpenSearchManifestStore(settings.model_copy(update={"opensearch": opensearch})).tenants()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "authority")


@pytest.fixture(params=["milvus", "opensearch"])
def store(request: pytest.FixtureRequest, settings: StoreSettings) -> Iterator["Store"]:
    is_milvus = request.param == "milvus"
    with ExitStack() as relays:
        yield Store(settings, relays, is_milvus=is_milvus)


class Store:
    def __init__(self, settings: StoreSettings, relays: ExitStack, *, is_milvus: bool) -> None:
        self._settings = settings
        self._relays = relays
        self._ask: Ask = ask_milvus if is_milvus else ask_opensearch
        self._target = settings.milvus.uri if is_milvus else settings.opensearch.url
        self._alpn = ("h2",) if is_milvus else ()
        self.section = "stores.milvus.tls" if is_milvus else "stores.opensearch.tls"

    def ask(self, server: Pair, tls: TlsSettings, *, clients_of: Path | None = None) -> object:
        port = self._relays.enter_context(tls_relay(self._target, server, clients_of=clients_of, alpn=self._alpn))
        return self._ask(self._settings, port, tls)


def test_its_authority_is_trusted(store: Store, authority: Authority) -> None:
    assert store.ask(authority.sign("server"), TlsSettings(ca=authority.ca)) is not None


def test_a_client_certificate_is_shown(store: Store, authority: Authority) -> None:
    client = authority.sign("client")
    tls = TlsSettings(ca=authority.ca, certificate=client.certificate, key=client.key)
    assert store.ask(authority.sign("server"), tls, clients_of=authority.ca) is not None


def test_a_client_without_a_certificate_is_told_so(store: Store, authority: Authority) -> None:
    with pytest.raises(Misconfigured, match=rf"does not accept this client; set {store.section}.certificate"):
        store.ask(authority.sign("server"), TlsSettings(ca=authority.ca), clients_of=authority.ca)


def test_another_authority_is_not_trusted(store: Store, authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=rf"signed by nobody trusted; set {store.section}.ca"):
        store.ask(Authority(tmp_path, "other").sign("server"), TlsSettings(ca=authority.ca))


def test_an_authority_that_only_this_deployment_knows_must_be_named(store: Store, authority: Authority) -> None:
    with pytest.raises(Misconfigured, match=rf"signed by nobody trusted; set {store.section}.ca"):
        store.ask(authority.sign("server"), TlsSettings())


def test_an_expired_certificate_is_refused(store: Store, authority: Authority) -> None:
    with pytest.raises(Misconfigured, match="has expired"):
        store.ask(authority.sign("server-expired", expired=True), TlsSettings(ca=authority.ca))


def test_a_certificate_of_another_host_is_refused(store: Store, authority: Authority) -> None:
    with pytest.raises(Misconfigured, match="is for another host name"):
        store.ask(authority.sign("server-elsewhere", hosts=("store.example",)), TlsSettings(ca=authority.ca))


def test_files_are_read_before_anything_connects(store: Store, authority: Authority, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere.pem"
    with pytest.raises(Misconfigured, match=rf"{store.section}.ca: {nowhere} can't be read"):
        store.ask(authority.sign("server"), TlsSettings(ca=nowhere))
