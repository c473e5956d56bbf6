"""Taking away all that one generation has: in Kafka what lies between its stages, in the stores what it holds."""

import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from headrace import wiring
from headrace.cli.flipping import display
from headrace.cli.kafka import ANSWER_WITHIN_S, QUIET, translated
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.stores.manifests import OpenSearchManifestStore
from headrace.stores.milvus import MilvusStore
from headrace.stores.opensearch import OpenSearchTextStore
from topics.provisioning import existing_topics
from topics.table import DOCUMENT_STAGES, GENERATED, UNTOLD

SESSION_MARGIN_S = 2.0
"""On top of a worker's session: Kafka looks for those that have ended now and then."""
_GONE = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.GROUP_ID_NOT_FOUND}

Holder = MilvusStore | OpenSearchTextStore | OpenSearchManifestStore


@dataclass(frozen=True, kw_only=True)
class Remains:
    """What is there of a generation: topics, groups, and tenants by what holds something of theirs."""

    topics: list[str]
    groups: list[str]
    held: dict[str, list[str]]

    @property
    def nothing(self) -> bool:
        return not (self.topics or self.groups or any(self.held.values()))

    def __str__(self) -> str:
        held = ", ".join(f"{len(tenants):,} {what}" for what, tenants in self.held.items())
        return f"{len(self.topics):,} topics, {len(self.groups):,} consumer groups, {held}"


class Dropping:
    """Of the generation of these settings. What is gone already is passed over, so it may be done again."""

    def __init__(self, settings: Settings) -> None:
        self._name = settings.generation.name
        self._names = settings.kafka.names
        self._session_s = settings.worker.session_timeout_s
        self._config: dict[str, Any] = {**settings.kafka.confluent(), **QUIET}
        self._holders: dict[str, Holder] = {
            "collections": wiring.build_vectors(settings),
            "text indexes": wiring.build_texts(settings),
            "manifest indexes": wiring.build_manifests(settings),
        }
        with translated(self._config):
            self._admin = AdminClient(self._config)

    def look(self) -> Remains:
        own = {*map(self._names.topic, GENERATED), *map(self._names.untold, UNTOLD)}
        return Remains(
            topics=sorted(own & set(existing_topics(self._config))),
            groups=sorted(self._groups().values()),
            held={what: holder.tenants() for what, holder in self._holders.items()},
        )

    def wait_until_nobody_works(self, tick: Callable[[float], None], *, but: Collection[str] = ()) -> None:
        """`but` are stages whose workers don't count. One that ended without a word is listed in its group for as long
        as its session lasts. Raises HeadraceError when workers still run then.
        """
        give_up = time.monotonic() + self._session_s + SESSION_MARGIN_S
        while working := [stage for stage in self._working() if stage not in but]:
            left_s = give_up - time.monotonic()
            if left_s < 0:
                raise HeadraceError(
                    f"workers of generation {display(self._name)} still run ({', '.join(working)}): stop them first"
                )
            tick(left_s)
            time.sleep(1.0)

    def _groups(self) -> dict[str, str]:
        """Those that are there, by stage."""
        with translated(self._config):
            listed = self._admin.list_consumer_groups(request_timeout=ANSWER_WITHIN_S).result().valid
        there = {group.group_id for group in listed}
        return {stage: group for stage in DOCUMENT_STAGES if (group := self._names.group(stage)) in there}

    def _working(self) -> list[str]:
        groups = self._groups()
        with translated(self._config):
            described = self._admin.describe_consumer_groups(list(groups.values())) if groups else {}
            return [stage for stage, group in groups.items() if described[group].result().members]

    def drop(self, remains: Remains, show: Callable[[str, int, int], None]) -> None:
        """Rows last: as long as anything is left of a generation, its collections say so."""
        with translated(self._config):
            if remains.groups:
                _await(self._admin.delete_consumer_groups(remains.groups, request_timeout=ANSWER_WITHIN_S))
            if remains.topics:
                _await(self._admin.delete_topics(remains.topics, request_timeout=ANSWER_WITHIN_S))
        for what, tenants in remains.held.items():
            for done, tenant in enumerate(tenants, start=1):
                self._holders[what].drop(tenant)
                show(f"dropping {what}", done, len(tenants))


def _await(asked: "dict[str, Future[Any]]") -> None:
    for future in asked.values():
        try:
            future.result()
        except KafkaException as exc:
            if exc.args[0].code() not in _GONE:
                raise
