"""How the stack is: servers, workers, lag, and what the stores hold."""

from typing import Literal

import msgspec
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from headrace.cli.deadletters import State, counts
from headrace.cli.generation_settings import not_live
from headrace.cli.kafka import ANSWER_WITHIN_S, QUIET, Positions, translated
from headrace.cli.local import is_local, worker_programs
from headrace.cli.readiness import readiness
from headrace.config import Settings
from headrace.errors import HeadraceError, Misconfigured, Transient
from headrace.localstack.stack import LocalStack, WorkerProgram
from topics import GROUPS, LANES, Lane
from topics.generations import NoTopic, read_generations
from topics.provisioning import existing_topics
from topics.settings import KafkaSettings

Kind = Literal["server", "worker"]
UP = frozenset({"running", "external"})


class ProcessCondition(msgspec.Struct, frozen=True, kw_only=True):
    """A server or a worker. `says` is a worker's readiness in its own words."""

    name: str
    kind: Kind
    state: str
    pid: int | None
    uptime_s: float
    address: str
    ready: bool
    says: str = ""


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """Records of one lane that a stage's group has not yet finished."""

    stage: str
    lane: Lane
    messages: int


class TenantCount(msgspec.Struct, frozen=True, kw_only=True):
    """What the manifests name, and what the stores hold. `deleted` are tombstones."""

    tenant: str
    documents: int
    chunks: int
    deleted: int
    milvus_documents: int
    milvus_chunks: int
    opensearch_documents: int
    opensearch_chunks: int

    @property
    def agrees(self) -> bool:
        return (
            self.documents == self.milvus_documents == self.opensearch_documents
            and self.chunks == self.milvus_chunks == self.opensearch_chunks
        )


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at once. `problems` is empty when all is as it should be."""

    processes: list[ProcessCondition]
    lag: list[Lag]
    tenants: list[TenantCount]
    dead_letters: dict[State, int]
    problems: list[str]


def condition(settings: Settings) -> Condition:
    """Ask everything; what doesn't answer is a problem, never an exception.

    Processes are told of where the settings name the local stack; elsewhere the platform knows them.
    """
    processes = process_conditions(LocalStack(settings.local), worker_programs(settings)) if is_local(settings) else []
    problems = [
        f"{process.name} is {process.state}" + (f": {process.says}" if process.says else "")
        for process in processes
        if not process.ready
    ]
    lag: list[Lag] = []
    tenants: list[TenantCount] = []
    dead_letters: dict[State, int] = {}
    try:
        if (other := not_live(settings, read_generations(settings.kafka))) is not None:
            problems.append(other)
    except NoTopic:
        pass  # A deployment of an earlier release: there is one generation.
    except HeadraceError as exc:
        problems.append(str(exc))
    try:
        lag = group_lag(settings.kafka)
    except HeadraceError as exc:
        problems.append(str(exc))
    try:
        tenants = tenant_counts(settings)
    except HeadraceError as exc:
        problems.append(str(exc))
    try:
        dead_letters = counts(settings.kafka)
    except HeadraceError as exc:
        problems.append(str(exc))
    problems += disagreements(lag, tenants)
    return Condition(
        processes=processes, lag=lag, tenants=tenants, dead_letters=dead_letters, problems=list(dict.fromkeys(problems))
    )


def disagreements(lag: list[Lag], tenants: list[TenantCount]) -> list[str]:
    """While documents are on their way, differing counts are as they should be."""
    if any(entry.messages for entry in lag if entry.stage != "query"):
        return []
    return [
        f"tenant {count.tenant}: the manifests name {count.documents} documents and {count.chunks} chunks, "
        f"Milvus holds {count.milvus_documents} and {count.milvus_chunks}, OpenSearch {count.opensearch_documents} and "
        f"{count.opensearch_chunks}"
        for count in tenants
        if not count.agrees
    ]


def process_conditions(stack: LocalStack, workers: list[WorkerProgram]) -> list[ProcessCondition]:
    """The servers, then the six workers, those that don't run included."""
    found = {process.name: process for process in stack.status()}
    programs = {worker.name: worker for worker in workers}
    conditions = []
    for name, process in found.items():
        program = programs.get(name)
        up = process.state in UP
        ready, says = readiness(program.health_url) if program and up else (up, "")
        conditions.append(
            ProcessCondition(
                name=name,
                kind="worker" if name in programs else "server",
                state=process.state,
                pid=process.pid,
                uptime_s=process.uptime_s,
                address=process.address,
                ready=ready,
                says=says,
            )
        )
    for name, program in programs.items():
        if name not in found:
            conditions.append(_unsupervised(program))
    order = {name: place for place, name in enumerate(programs)}
    return sorted(conditions, key=lambda one: (one.kind, order.get(one.name, 0)))


def _unsupervised(program: WorkerProgram) -> ProcessCondition:
    """A worker that this stack doesn't run; another may have started it."""
    ready, says = readiness(program.health_url)
    return ProcessCondition(
        name=program.name,
        kind="worker",
        state="external" if ready else "absent",
        pid=None,
        uptime_s=0.0,
        address=program.health_url.removeprefix("http://").partition("/")[0],
        ready=ready,
        says=says if ready else "",
    )


def group_lag(kafka: KafkaSettings) -> list[Lag]:
    """For each stage and lane, the records between its group's committed position and the end of its topics."""
    config = {**kafka.confluent(), **QUIET}
    there = existing_topics(config)
    stages = {stage: {lane: kafka.names.read_by(stage, lane) for lane in LANES} for stage in GROUPS}
    wanted = {topic for lanes in stages.values() for topics in lanes.values() for topic in topics}
    if missing := sorted(wanted - set(there)):
        raise Misconfigured(f"missing topics: {', '.join(missing)} (`headrace topics create` makes them)")
    partitions = [TopicPartition(topic, number) for topic in sorted(wanted) for number in range(there[topic])]
    with translated(config):
        admin = AdminClient(config)
        ends = offsets(admin, partitions, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        begins = offsets(admin, partitions, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
    lags = []
    with Positions(config) as positions:
        for stage, lanes in stages.items():
            for lane, topics in lanes.items():
                if not topics:
                    continue
                places = [place for place in ends if place[0] in topics]
                committed = positions.committed(kafka.names.group(stage), places)
                behind = (ends[place] - max(committed.get(place, 0), begins[place]) for place in places)
                lags.append(Lag(stage=stage, lane=lane, messages=sum(max(0, count) for count in behind)))
    return lags


Place = tuple[str, int]
"""A topic and a partition."""


def offsets(admin: AdminClient, partitions: list[TopicPartition], spec: OffsetSpec) -> dict[Place, int]:
    asked = admin.list_offsets(dict.fromkeys(partitions, spec), request_timeout=ANSWER_WITHIN_S)
    found = {(place.topic, place.partition): future.result().offset for place, future in asked.items()}
    # librdkafka tells of a leader that didn't answer in time by offsets that no partition has, and by no error.
    if min(found.values(), default=0) < 0:
        raise Transient("kafka", f"the leaders of partitions did not answer within {ANSWER_WITHIN_S:.0f} s")
    return found


def tenant_counts(settings: Settings) -> list[TenantCount]:
    """Every tenant that a manifest or a store knows."""
    # The stores' clients take a second to import; a command that only reads Kafka shouldn't pay for them.
    from headrace import wiring

    manifests, texts, vectors = (
        wiring.build_manifests(settings),
        wiring.build_texts(settings),
        wiring.build_vectors(settings),
    )
    counts = []
    for tenant in sorted({*manifests.tenants(), *texts.tenants(), *vectors.tenants()}):
        named, text, vector = manifests.count(tenant), texts.count(tenant), vectors.count(tenant)
        counts.append(
            TenantCount(
                tenant=tenant,
                documents=named.documents,
                chunks=named.chunks,
                deleted=named.deleted,
                milvus_documents=vector.documents,
                milvus_chunks=vector.chunks,
                opensearch_documents=text.documents,
                opensearch_chunks=text.chunks,
            )
        )
    return counts
