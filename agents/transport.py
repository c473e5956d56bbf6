"""Faust's Kafka transport, made at-least-once.

Faust 0.15.3 loses or doubles messages at the places that are overridden here;
`docs/decisions/0001-faust-hardened-transport.md` has the measurements. The seams are private, so faust-streaming and
aiokafka are pinned and a test fails when a pin moves.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import faust
import structlog
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from agents.batches import read_past_unreadable_batches
from agents.dead_letters import replays
from agents.progress import PartitionProgress
from topics import Lane

log = structlog.get_logger("headrace.transport")

FETCH_MAX_BYTES = 16_000_000
"""Of one answer of the broker, all partitions together (but one record always comes, whatever its size)."""
BUFFERED_MESSAGES = 4096
"""Held of one lane at most, on top of the bound in bytes:
a small record costs Python about 2 kB however small it is."""
COMMIT_BEFORE_REVOKE_S = 5.0
METADATA_RETRY_S = 0.5
Places = Mapping[TP, tuple[int, int | None]]
"""Where the fetcher stands in each partition, and the last message that it has handed over."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What the transport needs to know of the stage that it serves."""

    lane_of: Mapping[str, Lane]
    buffer_bytes: int
    drain_timeout_s: float
    in_hand: Callable[[], int]
    """Messages that the stage has taken and not acked."""


class Consumer(driver.Consumer):
    """Commits exactly what is acked, drains in bounded time, and holds a bounded number of bytes."""

    app: "App"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._progress: dict[TP, PartitionProgress] = {}
        self._places: Places = {}
        self._room = asyncio.Event()
        self._draining = False
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> "ConsumerThread":
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # -- The commit position: never past a delivered message that isn't acked, never held up by a gap. Faust's own steps
    #    over a missing offset (losing what is in work there), and stops for ever at a transaction's marker.

    def _to_message(self, tp: TP, record: Any) -> Any:
        if record.offset < (self._read_offset[tp] or 0):
            self._begin_again(tp, record.offset)
        message = super()._to_message(tp, record)
        size = len(record.key or b"") + len(record.value or b"")
        # A letter that was replayed has its first timestamp: it has waited since it came again.
        since = time.time() if record.headers and replays(record.headers) else record.timestamp / 1000
        self._progress.setdefault(tp, PartitionProgress()).deliver(record.offset, size, since)
        return message

    def _begin_again(self, tp: TP, offset: int) -> None:
        """The log ends before the group's place in it (a broker lost its end, or the topic was made anew): what it
        has is read from its beginning. Faust drops what comes before that place, and commits none of it.
        """
        log.warning(
            "log_cut_short", topic=tp.topic, partition=tp.partition, committed=self._committed_offset[tp], offset=offset
        )
        self._progress[tp] = PartitionProgress()
        self._read_offset[tp] = self._committed_offset[tp] = None

    def ack(self, message: Any) -> bool:
        """Mark a message as done. The position follows when everything before it in its partition is done, too."""
        if message.acked:
            return False
        message.acked = True
        progress = self._progress.get(message.tp)
        if progress is not None:
            progress.ack(message.offset)
        self._room.set()
        return True

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Any:
        return [tp for tp in self._progress if topics is None or tp in topics or tp.topic in topics]

    def _new_offset(self, tp: TP) -> int | None:
        return self._progress[tp].committable()

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        log.debug("offsets_without_messages", topic=tp.topic, partition=tp.partition, first=offset_from, last=offset_to)

    def stop_flow(self) -> None:
        """Hand nothing more over; a drain follows, and its commit."""
        self._draining = True
        super().stop_flow()

    async def perform_seek(self) -> None:
        if self._draining:
            # A fetcher that comes with records just now goes back to what is committed, and what is in hand would be
            # forgotten, and be done again by the next owner. Whoever goes on after the drain seeks by himself.
            return
        # What was delivered and not committed is read again from the committed position on.
        self._progress.clear()
        self._places = {}
        self._room.set()
        await super().perform_seek()

    # -- A rebalance: Faust forgets acks that it hasn't committed yet, and the next owner does that work again.

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        try:
            await asyncio.wait_for(self.commit(), COMMIT_BEFORE_REVOKE_S)
        except TimeoutError:
            log.warning("commit_before_revoke_too_slow", limit_s=COMMIT_BEFORE_REVOKE_S)
        await super().on_partitions_revoked(revoked)  # drains what is in hand and commits it
        self._places = {}
        for tp in revoked:
            self._progress.pop(tp, None)
        self._room.set()

    async def wait_empty(self) -> None:
        """Wait for what the stage has in hand, but not longer than `drain_timeout_s`:
        Faust waits for ever, past any grace period.
        """
        delivery = self.app.delivery
        deadline = time.monotonic() + delivery.drain_timeout_s
        try:
            while delivery.in_hand() and not self.should_stop:
                if time.monotonic() > deadline:
                    log.warning("drain_too_slow", unacked=delivery.in_hand(), limit_s=delivery.drain_timeout_s)
                    break
                await asyncio.sleep(0.02)
            await self.commit_and_end_transactions()
        finally:
            self._draining = False

    async def commit_and_end_transactions(self) -> None:
        """Commit all that is acked by now: Faust only waits for a commit that began before, if there is one."""
        while await self.maybe_wait_for_commit_to_finish():
            pass
        await super().commit_and_end_transactions()

    # -- Memory: Faust's buffer counts messages. Here a lane that holds its share of bytes isn't taken from until some
    #    are acked; the other lane goes on. Meanwhile aiokafka fetches one answer ahead for each partition and no more,
    #    so the bound of a lane is its share and, for each partition, 1 MiB or one record.

    def held(self, lane: Lane) -> tuple[int, int]:
        """Messages and bytes of a lane that were delivered and aren't acked."""
        of_lane = [p for tp, p in self._progress.items() if self.app.delivery.lane_of.get(tp.topic) == lane]
        return sum(p.unacked for p in of_lane), sum(p.held_bytes for p in of_lane)

    def has_room(self, lane: Lane) -> bool:
        messages, size = self.held(lane)
        return messages < BUFFERED_MESSAGES and size < self.app.delivery.buffer_bytes

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        # Faust comes here when it has handed over what it got here before.
        for tp, (position, last) in self._places.items():
            self._progress.setdefault(tp, PartitionProgress()).reach(position, last)
        self._places = {}
        active = active_partitions or set()
        lane_of = self.app.delivery.lane_of
        lanes = {lane_of[tp.topic] for tp in active}
        open_lanes = {lane for lane in lanes if self.has_room(lane)}
        if not open_lanes:
            self._room.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._room.wait(), timeout)
            return {}
        if open_lanes != lanes:
            # Records of the open lane wake this call; room in the other one doesn't, so look again soon.
            timeout = min(timeout, 0.05)
        generation = self.app.consumer_generation_id
        fetched: Any = await super()._getmany({tp for tp in active if lane_of[tp.topic] in open_lanes}, timeout)
        records, places = fetched
        if generation == self.app.consumer_generation_id:
            self._places = places
        return records

    # -- Throughput: Faust makes four tasks a message to be able to stop in the middle of handing one over.

    async def wait_first(self, *coros: Any, timeout: Any = None) -> Any:
        if timeout is None and len(coros) == 2 and self._hands_over_at_once():
            coros[1].close()
            await coros[0]
            return None
        return await super().wait_first(*coros, timeout=timeout)

    def _hands_over_at_once(self) -> bool:
        buffer = self.app.producer.buffer
        return (
            self.flow_active
            and not self.should_stop
            and self.app.flow_control.is_active()
            and buffer.size <= buffer.max_messages
        )

    # -- What the stage and its health check ask.

    def positions(self) -> dict[TP, int]:
        """The offset before which everything was delivered, of each partition that is assigned."""
        return {tp: max(committed, self._delivered_to(tp)) for tp, committed in self.committed().items()}

    def committed(self) -> dict[TP, int]:
        """The committed offset of each partition that is assigned, 0 before the first commit."""
        return {TP(*tp): self._committed_offset[tp] or 0 for tp in self.assignment()}

    def _delivered_to(self, tp: TP) -> int:
        progress = self._progress.get(tp)
        return 0 if progress is None else progress.delivered_to

    def lag(self, ends: Mapping[TP, int]) -> dict[TP, int]:
        """Messages from the committed position to the end, of each partition that is assigned: the one of `ends`, or
        where more is known here, that.
        """
        return {
            tp: max(0, ends.get(tp, 0) - offset, (self.highwater(tp) or 0) - offset)
            for tp, offset in self.committed().items()
        }

    def waits_since(self, tp: TP) -> float | None:
        """The timestamp (Unix seconds) of a partition's first message that was delivered and isn't acked; None where
        there is none.
        """
        progress = self._progress.get(tp)
        return None if progress is None else progress.waits_since

    def in_group(self) -> bool:
        """Whether the broker counts this worker as a member:
        after Faust's "quiet" failures it doesn't, and the process lives on.
        """
        consumer = self._thread._consumer
        return consumer is not None and consumer._coordinator.generation > 0 and not self.app.rebalancing

    async def commit_with_note(self, tp: TP, offset: int, note: str) -> None:
        """Commit a position together with a note, which stays until the position moves on."""
        position = {TopicPartition(*tp): OffsetAndMetadata(offset, note)}
        await self._thread.call_thread(self._thread._ensure_consumer().commit, position)

    async def committed_note(self, tp: TP) -> tuple[int, str]:
        """The committed position (-1: none) and its note, from the broker."""
        coordinator = self._thread._ensure_consumer()._coordinator
        found = await self._thread.call_thread(coordinator.fetch_committed_offsets, [TopicPartition(*tp)])
        committed = found.get(TopicPartition(*tp))
        return (-1, "") if committed is None else (committed.offset, committed.metadata or "")


class ConsumerThread(driver.AIOKafkaConsumerThread):
    def __post_init__(self) -> None:
        super().__post_init__()
        self._handed_over: dict[TP, tuple[Any, int]] = {}
        """The last message of each partition, with the assignment under which it was fetched."""

    async def _fetch_records(
        self, consumer: Any, active_partitions: Any, timeout: float | None = None, max_records: int | None = None
    ) -> Any:
        """The records, and the `Places` after them: nothing happens in this thread in between."""
        records = await super()._fetch_records(consumer, active_partitions, timeout, max_records)
        subscription = consumer._subscription.subscription
        assignment = subscription and subscription.assignment
        for tp, of_partition in records.items():
            self._handed_over[tp] = (assignment, of_partition[-1].offset)
        places: dict[TP, tuple[int, int | None]] = {}
        for tp in active_partitions:
            state = assignment and assignment.state_value(tp)
            if state is not None and state.has_valid_position:
                fetched_under, last = self._handed_over.get(tp, (None, None))
                places[tp] = (state.position, last if fetched_under is assignment else None)
        return records, places

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Faust has no setting for it; aiokafka's default of 50 MB is on top of every lane's bound.
        consumer._fetch_max_bytes = FETCH_MAX_BYTES
        # A producer's aborted transaction was never sent.
        consumer._isolation_level = "read_committed"
        read_past_unreadable_batches()
        _pause_between_metadata_updates(consumer._client)
        return consumer


class Producer(driver.Producer):
    def _settings_extra(self) -> Mapping[str, Any]:
        return {"acks": "all", "enable_idempotence": True}

    def _new_producer(self, transactional_id: str | None = None) -> Any:
        producer = super()._new_producer(transactional_id)
        # However long the brokers are away, what was to be sent is sent when they are back. aiokafka gives up what has
        # no leader after the time-out of a request, and what finds no room in a batch.
        producer._message_accumulator._batch_ttl = math.inf
        producer._request_timeout_ms = math.inf
        _pause_between_metadata_updates(producer.client)
        return producer


def _pause_between_metadata_updates(client: Any) -> None:
    """Unpatched, aiokafka asks a broker that refuses connections 900 times a second."""
    update = client._metadata_update

    async def update_or_pause(cluster: Any, topics: Any) -> Any:
        updated = await update(cluster, topics)
        if not updated:
            await asyncio.sleep(METADATA_RETRY_S)
        return updated

    client._metadata_update = update_or_pause


class Transport(driver.Transport):
    Consumer = Consumer
    Producer = Producer


class App(faust.App):
    """A Faust app on this transport. `delivery` is set before it starts."""

    delivery: Delivery

    @property
    def kafka(self) -> Consumer:
        """The consumer, as what it is here."""
        return cast(Consumer, self.consumer)

    def _new_transport(self) -> Transport:
        return Transport(self.conf.broker_consumer, self)

    def _new_producer_transport(self) -> Transport:
        return Transport(self.conf.broker_producer, self)
