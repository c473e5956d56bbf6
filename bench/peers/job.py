"""What a peer is given and what it tells. It runs in the peer's environment, where there is no headrace."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import wordllama

DIMENSION = 256
BATCH = 64
"""Texts that the encoder is given at once."""
WRITTEN_AT_ONCE = 1000
"""Rows of one request to a store."""
SAMPLE = 200
"""Documents whose words and tokens are counted."""
FLAT = {"index_type": "FLAT", "metric_type": "COSINE", "params": {}}


@dataclass(frozen=True, kw_only=True)
class Job:
    documents: str
    """A file of JSON Lines with `id`, `title` and `text`. The first is written before the time begins, which makes the
    collection and the index; the last is the first one's next version, and is written behind the time.
    """
    count: int
    milvus: str
    opensearch: str
    name: str
    """Of the collection and of the index."""
    max_tokens: int
    overlap_tokens: int
    kafka: str
    topic: str
    group: str

    def read(self) -> list[dict[str, str]]:
        with Path(self.documents).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def chunk_size(self, count: Callable[[str], int], encoder: Any) -> tuple[int, int]:
        """The length of a chunk, and of what two share, for a splitter that counts otherwise than the encoder."""
        texts = [one["text"] for one in self.read()[:SAMPLE]]
        tokens = sum(len(encoder.tokenizer.encode(text, add_special_tokens=False)) for text in texts)
        share = sum(map(count, texts)) / tokens
        return round(self.max_tokens * share), round(self.overlap_tokens * share)


@dataclass(frozen=True, kw_only=True)
class Done:
    versions: dict[str, str]
    seconds: float
    cpu_s: float
    chunks: int


def given() -> Job:
    return Job(**json.loads(sys.argv[1]))


class Watch:
    """Seconds, and this process' CPU seconds, from its making on."""

    def __init__(self) -> None:
        self._started, self._cpu_started = time.perf_counter(), time.process_time()

    def tell(self, *, chunks: int, packages: list[str]) -> None:
        """The last line of the output is read."""
        done = Done(
            versions={name: version(name) for name in packages},
            seconds=time.perf_counter() - self._started,
            cpu_s=time.process_time() - self._cpu_started,
            chunks=chunks,
        )
        print(json.dumps(asdict(done)), flush=True)


def load_encoder() -> Any:
    """With the weights that lie in its package."""
    folder = Path(wordllama.__file__).parent
    return wordllama.WordLlama.load(cache_dir=folder, dim=DIMENSION, disable_download=True)


def text_index() -> dict[str, Any]:
    """Settings and mappings of an index that takes texts as headrace's does: in English, and searchable in a second."""
    return {
        "settings": {"number_of_shards": 1, "number_of_replicas": 0, "refresh_interval": "1s"},
        "mappings": {
            "dynamic": False,
            "properties": {
                "doc_id": {"type": "keyword"},
                "title": {"type": "text", "analyzer": "english"},
                "content": {"type": "text", "analyzer": "english"},
            },
        },
    }
