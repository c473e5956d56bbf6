"""Record batches as a producer would send them, and what spoils them."""

import struct
from collections.abc import Sequence

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition

CRC, CHECKED = 17, 21
"""Where the CRC is, and where what it covers begins."""
GZIP = 1
NOT_LEADER = 6
HEADER_NAME = "spoiltheheader"


def batch(values: Sequence[bytes], *, codec: int = 0, base_offset: int = 0) -> bytes:
    """Of records without keys, each with a header."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=codec,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=16_000_000,
    )
    for number, value in enumerate(values):
        builder.append(number, 1_700_000_000_000, None, value, [(HEADER_NAME, b"")])
    return struct.pack(">q", base_offset) + bytes(builder.build())[8:]


def resealed(data: bytes) -> bytes:
    """With the CRC of what it holds now."""
    return data[:CRC] + struct.pack(">I", calc_crc32c(data[CHECKED:])) + data[CHECKED:]


def with_foreign_header(values: Sequence[bytes], spoilt: int, *, base_offset: int = 0) -> bytes:
    """The header's name of one record is no UTF-8: brokers take that, and so may clients in other languages."""
    before, name, after = batch(values, base_offset=base_offset).partition(HEADER_NAME.encode())
    parts = [before, *after.split(HEADER_NAME.encode())]
    names = [b"\xff" * len(name) if number == spoilt else name for number in range(len(values))]
    return resealed(b"".join(part for pair in zip(parts, [*names, b""], strict=True) for part in pair))


async def send_raw(bootstrap_servers: str, topic: str, partition: int, data: bytes) -> int:
    """Have the broker append a batch byte for byte; returns the offset it gave it."""
    client = AIOKafkaClient(bootstrap_servers=bootstrap_servers)
    await client.bootstrap()
    try:
        await client.set_topics([topic])
        place = TopicPartition(topic, partition)
        while (leader := client.cluster.leader_for_partition(place)) in {None, -1}:  # The topic was made just now.
            await client.force_metadata_update()
        request = ProduceRequest(
            transactional_id=None, required_acks=-1, timeout=10_000, topics=[(topic, [(partition, data)])]
        )
        error = NOT_LEADER
        while error == NOT_LEADER:  # That's what a topic says that was made just now.
            answer = await client.send(leader, request)
            [(_, [(_, error, offset, *_)])] = answer.topics
        assert error == 0, f"the broker refused it: {error}"
        return int(offset)
    finally:
        await client.close()
