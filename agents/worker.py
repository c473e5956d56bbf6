"""One stage as a process: its Faust app on the hardened transport, its health, its end."""

import asyncio
import ssl
import time
from collections.abc import Sequence
from typing import Any

import faust
import structlog
from faust.types import TP
from tenacity import Retrying, retry_if_exception_type, wait_exponential_jitter

from agents.stage import Outgoing, Record, Stage, StageRunner
from agents.transport import App, Delivery
from headrace import telemetry
from headrace.config import KafkaSettings, WorkerSettings
from headrace.errors import Misconfigured, Transient
from topics import BY_NAME, GROUPS, LANES, Lane, Names
from topics.provisioning import existing_topics
from topics.table import DEAD_MAX_BYTES

log = structlog.get_logger("headrace.worker")

HEARTBEATS_PER_SESSION = 3
MAX_POLL_INTERVAL_S = 864_000.0
"""Out of reach: past it with full buffers a Faust worker leaves its group and never comes back (decision 0001)."""
LOOP_STALLED_S = 60.0
"""An event loop that hasn't turned for so long isn't going to."""


class KafkaWire:
    """The app's producer and consumer as `agents/stage.py` sees them."""

    def __init__(self, app: App, names: Names) -> None:
        self._app = app
        self._names = names

    async def send(self, outgoing: Sequence[Outgoing]) -> None:
        send = self._app.producer.send
        confirmations = [
            await send(
                self._names.topic(record.topic),
                record.key,
                record.value,
                record.partition,
                None if record.timestamp is None else record.timestamp / 1000,
                list(record.headers),
            )
            for record in outgoing
        ]
        await asyncio.gather(*confirmations)

    async def commit(self) -> None:
        await self._app.consumer.commit()

    async def note_attempt(self, record: Record) -> int:
        tp = TP(record.topic, record.partition)
        position, note = await self._app.kafka.committed_note(tp)
        attempts = 1 + (int(note) if position == record.offset and note.isdigit() else 0)
        await self._app.kafka.commit_with_note(tp, record.offset, str(attempts))
        return attempts


class Worker:
    """One stage as a process: its Faust app, its runner, and what its health endpoints say."""

    def __init__(self, stage: Stage[Any], kafka: KafkaSettings, settings: WorkerSettings) -> None:
        self.stage = stage
        self.kafka = kafka
        self.settings = settings
        self.names = kafka.names
        self.app = build_app(stage.name, kafka, settings)
        self.runner = StageRunner(stage, KafkaWire(self.app, self.names))
        self._out_of_group_since: float | None = time.monotonic()
        self._last_turn = time.monotonic()
        self._misfit: Misconfigured | None = None
        topics_of = {lane: self.names.read_by(stage.name, lane) for lane in LANES}
        self.lane_of: dict[str, Lane] = {topic: lane for lane in LANES for topic in topics_of[lane]}
        self.app.delivery = Delivery(
            lane_of=self.lane_of,
            buffer_bytes=settings.buffer_bytes,
            drain_timeout_s=settings.drain_timeout_s,
            in_hand=lambda: self.runner.in_hand,
        )
        for lane in LANES:
            if topics_of[lane]:
                self._add_lane(lane, topics_of[lane])
        self.app.task(self._watch)

    def _add_lane(self, lane: Lane, topics: list[str]) -> None:
        async def consume(stream: Any) -> None:
            # Not `async for` over the stream: Faust acks what an agent that raised had in hand.
            try:
                await self.runner.run_lane(lane, aiter(stream.channel).queue)
            except StopAsyncIteration:
                return  # That's how Faust ends a channel when the app stops.
            except Misconfigured as misfit:
                self._misfit = misfit
                raise

        topic = self.app.topic(*topics, key_serializer="raw", value_serializer="raw")
        self.app.agent(topic, name=f"{self.stage.name}-{lane}", concurrency=1)(consume)

    async def _watch(self) -> None:
        """Keeps what the health endpoints tell: they are asked from a thread of their own."""
        while not self.app.should_stop:
            self._last_turn = time.monotonic()
            if self.app.kafka.in_group():
                self._out_of_group_since = None
            elif self._out_of_group_since is None:
                self._out_of_group_since = time.monotonic()
            await asyncio.sleep(1.0)

    def stuck(self) -> str | None:
        """Why this process should be replaced, or None. Waiting for a server is not being stuck."""
        now, limit = time.monotonic(), self.settings.stuck_after_s
        if now - self._last_turn > max(limit, LOOP_STALLED_S):
            return f"the event loop has not turned for {now - self._last_turn:.0f} s"
        if self._out_of_group_since is not None and now - self._out_of_group_since > limit:
            return f"out of the consumer group for {now - self._out_of_group_since:.0f} s"
        if self.runner.in_hand and self.runner.waiting is None and now - self.runner.busy_since > limit:
            return f"no progress for {now - self.runner.busy_since:.0f} s with {self.runner.in_hand} messages in hand"
        return None

    def unready(self) -> str | None:
        """Why this worker does no work now, or None."""
        if self._out_of_group_since is not None:
            return "joining the consumer group"
        waiting = self.runner.waiting
        if waiting is not None:
            return f"waiting for {waiting.service} for {time.monotonic() - waiting.since:.0f} s: {waiting.reason}"
        return self.stuck()

    def before_scrape(self) -> None:
        if self._out_of_group_since is not None:
            return
        lags = dict.fromkeys(set(self.lane_of.values()), 0)
        for tp, lag in self.app.kafka.lag().items():
            lags[self.lane_of[tp.topic]] += lag
        for lane, lag in lags.items():
            telemetry.LAG.labels(self.stage.name, lane).set(lag)
            telemetry.BUFFERED_BYTES.labels(self.stage.name, lane).set(self.app.kafka.held(lane)[1])

    def run(self) -> int:
        """Serve health, consume until told to stop; the exit code: 0 after a clean stop, 1 after a crash.

        Raises Misconfigured when that is what ended it.
        """
        settings = self.settings
        port = settings.port + GROUPS.index(self.stage.name) if settings.port else 0
        port = telemetry.serve_health(
            settings.host, port, stuck=self.stuck, unready=self.unready, before_scrape=self.before_scrape
        )
        wait_for_topics(self.kafka, self.stage.name)
        log.info("worker_started", stage=self.stage.name, port=port)
        try:
            worker = faust.Worker(self.app, override_logging=False, redirect_stdouts=False, quiet=True)
            worker.spinner = None
            worker.execute_from_commandline()
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 1
            log.info("worker_stopped", stage=self.stage.name, exit_code=code)
            if self._misfit is not None:
                raise self._misfit from None
            return code
        return 0


def wait_for_topics(kafka: KafkaSettings, stage: str) -> None:
    """Wait until a broker answers, as long as it takes; raise Misconfigured when the stage's topics aren't there."""
    for attempt in Retrying(
        retry=retry_if_exception_type(Transient),
        wait=wait_exponential_jitter(multiplier=0.5, max=15.0),
        before_sleep=lambda state: log.warning(
            "waiting_for_service", stage=stage, service="kafka", reason=str(state.outcome and state.outcome.exception())
        ),
    ):
        with attempt:
            there = existing_topics(kafka.confluent())
    wanted = {
        kafka.names.topic(topic.name) for topic in BY_NAME.values() if stage in (*topic.read_by, *topic.written_by)
    }
    missing = sorted(wanted - set(there))
    if missing:
        raise Misconfigured(f"Kafka has no topic {', '.join(missing)}: run `headrace topics create`")


def build_app(stage: str, kafka: KafkaSettings, worker: WorkerSettings) -> App:
    worker.data_dir.mkdir(parents=True, exist_ok=True)
    return App(
        kafka.names.group(stage),
        broker=[f"kafka://{server.strip()}" for server in kafka.bootstrap_servers.split(",")],
        broker_credentials=_credentials(kafka),
        consumer_group_instance_id=worker.instance_id,
        consumer_auto_offset_reset="earliest",
        agent_supervisor="mode.supervisors.CrashingSupervisor",
        broker_commit_interval=0.5,
        broker_session_timeout=worker.session_timeout_s,
        broker_heartbeat_interval=worker.session_timeout_s / HEARTBEATS_PER_SESSION,
        broker_rebalance_timeout=max(30.0, 2 * worker.drain_timeout_s),
        broker_max_poll_interval=MAX_POLL_INTERVAL_S,
        broker_max_poll_records=500,
        stream_wait_empty=True,
        # The transport bounds what is held, in bytes and messages, by lane; this one would stop both lanes.
        stream_buffer_maxsize=1_000_000,
        stream_processing_timeout=86_400.0,
        producer_max_batch_size=900_000,
        # Sizes are checked against the topic table before sending; this only has to be above it.
        producer_max_request_size=DEAD_MAX_BYTES + 65_536,
        producer_request_timeout=60.0,
        topic_allow_declare=False,
        topic_disable_leader=True,
        key_serializer="raw",
        value_serializer="raw",
        web_enabled=False,
        datadir=str(worker.data_dir / stage),
    )


def _credentials(kafka: KafkaSettings) -> Any:
    context = None
    if kafka.security_protocol.endswith("SSL"):
        context = ssl.create_default_context(cafile=kafka.ssl_ca)
    if kafka.security_protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=kafka.sasl_username,
            password=kafka.sasl_password.get_secret_value() if kafka.sasl_password else None,
            mechanism=kafka.sasl_mechanism,
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context is not None else None
