"""With auth on, through real workers: who may send documents and ask, what becomes of the others' records, and what an
operator can do.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from cryptography.hazmat.primitives.asymmetric import ec
from pymilvus import MilvusClient

from headrace.auth import PUBLISH, QUERY, Denied
from headrace.config import Settings
from headrace.stores.milvus import collection_name
from headrace.wiring import build_authenticator
from tests.conftest import PARTITIONS, Deployment, deploy
from tests.fakes.issuer import AUDIENCE, Issuer, KeyServer, serving_keys

WITHIN_S = 60.0
TENANT = "acme"


class Guarded:
    """A deployment that wants tokens, and who gives them."""

    def __init__(self, deployment: Deployment, issuer: Issuer, server: KeyServer) -> None:
        self.deployment = deployment
        self.issuer = issuer
        self.server = server
        self.publish_keys()

    def publish_keys(self) -> None:
        self.server.body = json.dumps({"keys": [*self.issuer.published.values()]}).encode()

    def token(self, kid: str = "now", **claims: Any) -> bytes:
        return self.issuer.token(kid, **claims).removeprefix(b"Bearer ")

    def headrace(self, *arguments: str, token: bytes | None = None, stdin: bytes = b"") -> tuple[int, str]:
        """The command's exit code, and all that it said."""
        deployment = self.deployment
        environment = dict(deployment.environment)
        if token is not None:
            environment["HEADRACE_AUTH__TOKEN"] = token.decode()
        sender = Deployment(environment, deployment.logs, deployment.settings)
        done = sender.run(*arguments, stdin=stdin)
        return done.returncode, (done.stdout + done.stderr).decode()

    def publish(self, doc_id: str, text: str, token: bytes | None = None) -> tuple[int, str]:
        line = json.dumps({"id": doc_id, "text": text}).encode()
        return self.headrace("publish", "-", "--tenant", TENANT, "--wait", "--timeout", "60", token=token, stdin=line)

    def letters(self, code: str) -> list[dict[str, Any]]:
        _, said = self.headrace("dead", "list", "--json", "--code", code)
        found: list[dict[str, Any]] = json.loads(said)
        return found

    def whereabouts(self, doc_id: str) -> str:
        return self.headrace("document", doc_id, "--tenant", TENANT)[1]


@contextmanager
def guarded_by(servers: Settings, folder: Path, *, status: int = 200) -> Iterator[Guarded]:
    issuer = Issuer({kid: ("ES256", ec.generate_private_key(ec.SECP256R1())) for kid in ("now", "next")})
    del issuer.published["next"]
    with serving_keys() as server:
        server.status = status
        extra = {
            "HEADRACE_AUTH__ENABLED": "true",
            "HEADRACE_AUTH__JWKS_URL": server.url,
            "HEADRACE_AUTH__JWKS_REFETCH_S": "0.2",
            "HEADRACE_AUTH__LEEWAY_S": "1",
            "HEADRACE_AUTH__AUDIENCE": AUDIENCE,
        }
        deployment = deploy(servers, folder, **extra)
        try:
            yield Guarded(deployment, issuer, server)
        finally:
            deployment.drop()


@pytest.fixture(scope="module")
def guarded(servers: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """With every stage ready."""
    with guarded_by(servers, tmp_path_factory.mktemp("guarded")) as made:
        made.deployment.start_all()
        yield made


def test_a_token_brings_a_document_in_and_takes_it_out(guarded: Guarded) -> None:
    code, said = guarded.publish("welcome", "The sluice opens at six.", guarded.token())
    assert (code, "1 indexed" in said) == (0, True), said
    code, said = guarded.headrace("delete", "welcome", "--tenant", TENANT, "--wait")
    assert (code, "unauthorized" in said) == (1, True), said
    assert "live" in guarded.whereabouts("welcome")
    code, said = guarded.headrace("delete", "welcome", "--tenant", TENANT, "--wait", token=guarded.token())
    assert (code, "1 deleted" in said) == (0, True), said


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        (None, "unauthorized"),
        ({"exp": int(time.time()) - 3600}, "unauthorized"),
        ({"tenant": "other"}, "forbidden"),
        ({"scope": "headrace.query"}, "forbidden"),
    ],
    ids=["no token", "expired", "another tenant's", "another scope"],
)
def test_who_may_not_send_is_told_and_the_record_is_kept(
    guarded: Guarded, claims: dict[str, Any] | None, code: str
) -> None:
    doc_id = f"refused-{time.time_ns()}"
    token = None if claims is None else guarded.token(**claims)
    exit_code, said = guarded.publish(doc_id, "Nobody may see this.", token)
    assert exit_code == 1
    assert f"{code} (chunk)" in said
    [letter] = [letter for letter in guarded.letters(code) if letter["key"] == f"{TENANT}/{doc_id}"]
    shown = guarded.headrace("dead", "show", letter["id"])[1]
    assert "Nobody may see this." in shown
    assert token is None or token.decode() not in shown
    logs = "".join(log.read_text() for log in guarded.deployment.logs.glob("*.log"))
    assert token is None or token.decode() not in logs


def test_a_letter_can_be_replayed_when_its_token_has_long_expired(guarded: Guarded) -> None:
    """It was refused because its key was not published yet."""
    token = guarded.token("next", exp=int(time.time()) + 3)
    exit_code, said = guarded.publish("early", "A key that nobody knew.", token)
    assert (exit_code, "unauthorized (chunk)" in said) == (1, True), said
    guarded.issuer = Issuer(guarded.issuer.keys)
    guarded.publish_keys()
    time.sleep(3 + guarded.deployment.settings.auth.leeway_s)
    assert "the token has expired" in refusal_now(guarded, token)
    code, said = guarded.headrace("dead", "replay", "--key", f"{TENANT}/early", "--yes")
    assert code == 0, said
    wait_until(lambda: "live" in guarded.whereabouts("early"))


def test_an_operator_can_vouch_for_a_letter_with_a_token_of_their_own(guarded: Guarded) -> None:
    assert guarded.publish("orphan", "Nobody said who sent it.")[0] == 1
    key = ("--key", f"{TENANT}/orphan", "--yes")
    assert guarded.headrace("dead", "replay", *key, "--own-token")[0] == 2  # There is none to send.
    code, said = guarded.headrace("dead", "replay", *key, "--own-token", token=guarded.token())
    assert code == 0, said
    wait_until(lambda: "live" in guarded.whereabouts("orphan"))


def refusal_now(guarded: Guarded, token: bytes) -> str:
    """Why this token is no good for a record of this moment, as a worker would say it."""
    authenticator = build_authenticator(guarded.deployment.settings)
    assert authenticator is not None
    with pytest.raises(Denied) as refused:
        authenticator.check(b"Bearer " + token, tenant=TENANT, scope=PUBLISH)
    return str(refused.value)


def test_a_store_is_rebuilt_from_kafka_when_no_token_is_good_any_more(guarded: Guarded) -> None:
    code, said = guarded.publish("kept", "To be rebuilt.", guarded.token())
    assert code == 0, said
    guarded.server.status = 500
    try:
        stores = guarded.deployment.settings.stores
        client = MilvusClient(stores.milvus.uri)
        client.drop_collection(collection_name(stores.prefix, TENANT))
        client.close()
        assert guarded.headrace("verify", "--tenant", TENANT)[0] == 1
        code, said = guarded.headrace("verify", "--tenant", TENANT, "--repair", "--yes")
        assert (code, "no differences" in said) == (0, True), said
    finally:
        guarded.server.status = 200


def test_a_key_server_that_is_away_holds_documents_up_and_loses_none(servers: Settings, tmp_path: Path) -> None:
    with guarded_by(servers, tmp_path, status=503) as guarded:
        deployment = guarded.deployment
        worker = deployment.start("chunk")
        deployment.wait_ready("chunk", worker)
        producer = Producer(deployment.settings.kafka.confluent())
        headers: Any = [("authorization", b"Bearer " + guarded.token())]
        producer.produce(deployment.topic("documents.raw"), b'{"text": "x"}', f"{TENANT}/d", headers=headers)
        assert producer.flush(30) == 0
        wait_until(lambda: 'headrace_waiting{service="jwks",stage="chunk"} 1.0' in deployment.metrics("chunk"))
        assert records(deployment, "documents.dead") == records(deployment, "documents.chunks") == 0
        guarded.server.status = 200
        wait_until(lambda: records(deployment, "documents.chunks") == 1)
        assert records(deployment, "documents.dead") == 0


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"scope": QUERY}, None),
        ({"scope": QUERY, "tenant": "*"}, None),
        (None, "unauthorized"),
        ({"scope": QUERY, "exp": int(time.time()) - 3600}, "unauthorized"),
        ({"scope": QUERY, "tenant": "other"}, "forbidden"),
        ({"scope": PUBLISH}, "forbidden"),
    ],
    ids=["its tenant's", "every tenant's", "no token", "expired", "another tenant's", "another scope"],
)
def test_a_question_is_answered_to_those_who_may_ask(
    guarded: Guarded, claims: dict[str, Any] | None, code: str | None
) -> None:
    token = None if claims is None else guarded.token(**claims)
    exit_code, said = guarded.headrace("ask", "Who am I?", "--search", "--tenant", TENANT, "--json", token=token)
    assert exit_code == (0 if code is None else 1), said
    answer, _ = json.JSONDecoder().raw_decode(said)
    assert (answer["error"] and answer["error"]["code"]) == code


def records(deployment: Deployment, topic: str) -> int:
    consumer = Consumer(deployment.settings.kafka.confluent() | {"group.id": "count"})
    name = deployment.topic(topic)
    ends = [consumer.get_watermark_offsets(TopicPartition(name, number))[1] for number in range(PARTITIONS)]
    consumer.close()
    return sum(ends)


def wait_until(true: Any) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)
