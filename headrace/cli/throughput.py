"""What each stage did between two looks at its metrics."""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from headrace.cli.local import worker_url
from headrace.cli.readiness import scrape
from headrace.config import Settings
from topics import GROUPS

WORK = "work"


@dataclass(frozen=True, kw_only=True)
class Counters:
    """A worker's counters at one moment, by stage."""

    messages_in: float = 0.0
    messages_out: float = 0.0
    chunks: float = 0.0
    work_seconds: float = 0.0
    last_progress: float = 0.0
    """Unix time."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What a stage did. `busy_s` is the time in its work alone, `within_s` that until it last finished something."""

    stage: str
    messages: int
    chunks: int
    busy_s: float
    within_s: float

    @property
    def chunks_per_busy_s(self) -> float | None:
        return self.chunks / self.busy_s if self.busy_s > 0 and self.chunks else None

    @property
    def chunks_per_s(self) -> float | None:
        return self.chunks / self.within_s if self.within_s > 0 and self.chunks else None


def look(settings: Settings) -> dict[str, Counters]:
    """The counters of each worker that answers."""
    pages = {stage: scrape(worker_url(settings, stage, "/metrics")) for stage in GROUPS}
    return {stage: read_counters(page, stage) for stage, page in pages.items() if page is not None}


def read_counters(page: str, stage: str) -> Counters:
    """Out of a Prometheus page."""
    messages = {"in": 0.0, "out": 0.0}
    chunks = work = progress = 0.0
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.labels.get("stage") != stage:
                continue
            match sample.name:
                case "headrace_messages_total":
                    messages[sample.labels["direction"]] += sample.value
                case "headrace_chunks_total":
                    chunks += sample.value
                case "headrace_step_seconds_sum" if sample.labels["step"] == WORK:
                    work += sample.value
                case "headrace_last_progress_timestamp_seconds":
                    progress = max(progress, sample.value)
    return Counters(
        messages_in=messages["in"],
        messages_out=messages["out"],
        chunks=chunks,
        work_seconds=work,
        last_progress=progress,
    )


def between(before: Mapping[str, Counters], after: Mapping[str, Counters], started_at: float) -> list[Throughput]:
    """For each worker that answered at the end; one that was restarted in between counts from its restart."""
    found = []
    for stage, now in after.items():
        then = before.get(stage, Counters())
        if now.messages_in < then.messages_in:
            then = Counters()
        found.append(
            Throughput(
                stage=stage,
                messages=round(now.messages_in - then.messages_in),
                chunks=round(now.chunks - then.chunks),
                busy_s=now.work_seconds - then.work_seconds,
                within_s=max(0.0, now.last_progress - started_at),
            )
        )
    return found
