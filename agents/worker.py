"""One stage as a process: its Faust app on the hardened transport, its health, its end."""

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import suppress
from types import FrameType
from typing import Any, TypeVar

import faust
import structlog
from faust.types import TP
from tenacity import Retrying, retry_if_exception_type, wait_exponential_jitter

from agents.credentials import credentials
from agents.generations import Standing
from agents.liveness import STOP_GRACE_S, Brokers, Watchdog
from agents.message_spans import MessageSpans
from agents.progress import Backlog
from agents.stage import Outgoing, Record, RequestStage, Stage, StageRunner
from agents.transport import App, Delivery
from headrace import telemetry
from headrace.config import WorkerSettings
from headrace.errors import Misconfigured, Transient
from headrace.tracing import Tracer
from topics import BY_NAME, GROUPS, LANES, Lane, Names
from topics.provisioning import existing_topics, misfits
from topics.settings import KafkaSettings
from topics.table import DEAD_MAX_BYTES, DOCUMENT_STAGES, UNTOLD

log = structlog.get_logger("headrace.worker")

T = TypeVar("T")

HEARTBEATS_PER_SESSION = 3
MAX_POLL_INTERVAL_S = 864_000.0
"""Out of reach: past it with full buffers a Faust worker leaves its group and never comes back (decision 0001)."""
LOOK_EVERY_S = 1.0


class KafkaWire:
    """The app's producer and consumer as `agents/stage.py` sees them."""

    def __init__(self, app: App, names: Names, standing: Standing | None = None) -> None:
        self._app = app
        self._names = names
        self._standing = standing

    async def send(self, outgoing: Iterable[Outgoing]) -> None:
        send = self._app.producer.send
        confirmations = [
            await send(
                await self._topic(record.topic) if record.topic in UNTOLD else self._names.topic(record.topic),
                record.key,
                record.value,
                record.partition,
                None if record.timestamp is None else record.timestamp / 1000,
                list(record.headers),
            )
            for record in outgoing
        ]
        await asyncio.gather(*confirmations)

    async def _topic(self, name: str) -> str:
        return self._names.topic(name) if self._standing is None else await self._standing.topic(name)

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

    def __init__(
        self,
        stage: Stage[Any] | RequestStage[Any],
        kafka: KafkaSettings,
        settings: WorkerSettings,
        tracer: Tracer | None = None,
        standing: Standing | None = None,
    ) -> None:
        """Without a `standing` the worker looks at no record of generations, as if there were one alone."""
        self.stage = stage
        self.standing = standing
        self.kafka = kafka
        self.settings = settings
        self.names = kafka.names
        self.app = build_app(stage.name, kafka, settings)
        spans = MessageSpans(stage=stage.name, names=self.names, tracer=tracer or Tracer())
        self.runner = StageRunner(stage, KafkaWire(self.app, self.names, standing), spans=spans, gate=standing)
        self.watchdog = Watchdog(
            stage.name,
            stuck_after_s=settings.stuck_after_s,
            stop_within_s=settings.drain_timeout_s + STOP_GRACE_S,
            should_move=self._should_move,
            ask=self._ask_the_brokers,
        )
        self._brokers = Brokers(kafka.confluent())
        self._ends: Mapping[TP, int] = {}
        self._positions: Mapping[TP, int] = {}
        self._in_group = False
        self._turns = 0
        self._backlog: Backlog[TP] = Backlog()
        self._moving: Mapping[str, Hashable] = {}
        self._misfit: Misconfigured | None = None
        self._process: Process | None = None
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
        self.app.task(self._look)
        self.app.on_partitions_assigned.connect(self._count_assignment)

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

    async def _count_assignment(self, *_: Any, **__: Any) -> None:
        telemetry.REBALANCES.labels(self.stage.name).inc()

    async def _look(self) -> None:
        """Keeps what the health endpoints and the watchdog tell: they are asked from threads of their own."""
        while not self.app.should_stop:
            kafka = self.app.kafka
            self._in_group = kafka.in_group()
            self._positions = kafka.positions() if self._in_group else {}
            self._moving = self._what_should_move()
            self._turns += 1
            if self._in_group:
                self._measure()
            await asyncio.sleep(LOOK_EVERY_S)

    def _what_should_move(self) -> Mapping[str, Hashable]:
        """What this worker can't be without for long, and where each thing is now. Waiting for a store isn't standing
        still, nor is a lane without room for more.
        """
        if not self._in_group:
            return {"out of the consumer group": None}
        moving: dict[str, Hashable] = {
            f"{tp.topic} {tp.partition} gives no messages though the broker has some": position
            for tp, position in self._positions.items()
            if self._ends.get(tp, 0) > position and self.app.kafka.has_room(self.lane_of[tp.topic])
        }
        held = sum(self.app.kafka.held(lane)[0] for lane in LANES)
        if (held or self.runner.in_hand) and self.runner.waiting is None:
            moving["no progress with messages in hand"] = self.runner.busy_since
        return moving

    def _measure(self) -> None:
        kafka, now = self.app.kafka, time.time()
        lags = dict.fromkeys(set(self.lane_of.values()), 0)
        ages = dict.fromkeys(lags, 0.0)
        lag, committed = kafka.lag(self._ends), kafka.committed()
        for tp, count in lag.items():
            lags[self.lane_of[tp.topic]] += count
        behind = {tp: (committed[tp], kafka.waits_since(tp)) for tp, count in lag.items() if count}
        for tp, since in self._backlog.observe(behind, now).items():
            lane = self.lane_of[tp.topic]
            ages[lane] = max(ages[lane], now - since)
        for lane, count in lags.items():
            telemetry.LAG.labels(self.stage.name, lane).set(count)
            telemetry.OLDEST_UNPROCESSED.labels(self.stage.name, lane).set(ages[lane])
            telemetry.BUFFERED_BYTES.labels(self.stage.name, lane).set(kafka.held(lane)[1])

    def _should_move(self) -> Mapping[str, Hashable]:
        return {"the event loop has not turned": self._turns, **self._moving}

    def _ask_the_brokers(self) -> None:
        self._ends = self._brokers.ends(self._positions.keys())

    def unready(self) -> str | None:
        """Why this worker does no work now, or None."""
        waiting = self.runner.waiting
        if waiting is not None:
            return f"waiting for {waiting.service} for {time.monotonic() - waiting.since:.0f} s: {waiting.reason}"
        if self.watchdog.brokers_away is not None:
            reason, since = self.watchdog.brokers_away
            return f"waiting for kafka for {time.monotonic() - since:.0f} s: {reason}"
        if not self._in_group:
            return "joining the consumer group"
        return self.watchdog.stuck()

    def run(self) -> int:
        """Serve health, consume until told to stop; the exit code: 0 after SIGTERM or SIGINT, 1 after a crash. A worker
        that is stuck ends the process with `STUCK_EXIT_CODE`, and one that doesn't stop in time with 0.

        Raises Misconfigured when that is what ended it.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked_to_stop)
        settings = self.settings
        port = settings.port + GROUPS.index(self.stage.name) if settings.port else 0
        port = telemetry.serve_health(settings.host, port, stuck=self.watchdog.stuck, unready=self.unready)
        wait_for_topics(self.kafka, self.stage.name)
        if self.standing is not None:
            until_kafka_answers(self.standing.start, self.stage.name)
        log.info("worker_started", stage=self.stage.name, port=port)
        self._process = Process(self.app, override_logging=False, redirect_stdouts=False, quiet=True)
        self._process.spinner = None
        self.watchdog.start()
        try:
            self._process.execute_from_commandline()
        except SystemExit as ended:
            if self._misfit is not None:
                raise self._misfit from None
            code = 0 if self.watchdog.stopping else ended.code
        log.info("worker_stopped", stage=self.stage.name, exit_code=code)
        return code if isinstance(code, int) else 1

    def _asked_to_stop(self, number: int, _frame: FrameType | None) -> None:
        if self._process is None:
            sys.exit(0)  # Nothing was taken yet.
        self.watchdog.stop_is_asked()
        self._process.stop_soon(signal.Signals(number))


class Process(faust.Worker):
    """Faust's process, which leaves the signals to the worker: its own handlers need an event loop that turns."""

    def install_signal_handlers(self) -> None:
        pass

    def stop_soon(self, number: signal.Signals) -> None:
        with suppress(RuntimeError):  # The loop is closed: it has stopped already.
            self.loop.call_soon_threadsafe(self._schedule_shutdown, number)


def wait_for_topics(kafka: KafkaSettings, stage: str) -> None:
    """Wait until a broker answers, as long as it takes; raise Misconfigured when one refuses, or the stage's topics
    aren't there, or can't be used as they are.
    """
    there = until_kafka_answers(lambda: existing_topics(kafka.confluent()), stage)
    names = kafka.names
    its = [topic for topic in BY_NAME.values() if stage in (*topic.read_by, *topic.written_by)]
    wanted = {names.topic(topic.name): topic for topic in its}
    watched = {names.topic(topic.name): topic for topic in BY_NAME.values() if stage in topic.watched_by}
    if names.generation and stage in DOCUMENT_STAGES:
        wanted |= {names.untold(topic.name): topic for topic in its if topic.name in UNTOLD}
        wanted |= watched
    missing = sorted(wanted.keys() - there.keys())
    if missing:
        raise Misconfigured(f"Kafka has no topic {', '.join(missing)}: run `headrace topics create`")
    looked_at = {name: topic for name, topic in (wanted | watched).items() if name in there}
    if wrong := misfits(kafka.confluent(), looked_at):
        raise Misconfigured("; ".join(wrong))


def until_kafka_answers(ask: Callable[[], T], stage: str) -> T:
    """What comes of asking, as often as it takes. Raises what says more than that nobody answers."""
    for attempt in Retrying(
        retry=retry_if_exception_type(Transient),
        wait=wait_exponential_jitter(multiplier=0.5, max=15.0),
        before_sleep=lambda state: log.warning(
            "waiting_for_service", stage=stage, server="kafka", reason=str(state.outcome and state.outcome.exception())
        ),
    ):
        with attempt:
            return ask()
    raise AssertionError("retries have no end")


def build_app(stage: str, kafka: KafkaSettings, worker: WorkerSettings) -> App:
    worker.data_dir.mkdir(parents=True, exist_ok=True)
    return App(
        kafka.names.group(stage),
        broker=[f"kafka://{server.strip()}" for server in kafka.bootstrap_servers.split(",")],
        broker_credentials=credentials(kafka),
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
        datadir=str(worker.data_dir / kafka.names.group(stage).removeprefix(kafka.group_prefix)),
    )
