"""What questions are answered from: the collections and indexes of one generation, and the encoder of its vectors."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from headrace.encoders import Encoder
from headrace.errors import HeadraceError, Misconfigured, Transient
from headrace.retrieval import Retriever
from headrace.serving.embedding import QueryEmbedder
from schemas import GenerationInfo, Generations

log = structlog.get_logger("headrace.query")

POLL_S = 0.05
TRY_AGAIN_S = 30.0
"""After a corpus could not be loaded."""
_LOADING = "its encoder is being loaded"
_UNKNOWN = "nobody has said which encoder it is of"


class Corpus:
    """To be used from one event loop."""

    def __init__(self, retriever: Retriever, encoder: Encoder) -> None:
        self.retriever = retriever
        self.encoder = encoder
        self.embedder = QueryEmbedder(encoder)


class Corpora(Protocol):
    """Knows from what a question that begins now is to be answered."""

    async def live(self) -> Corpus:
        """Raises Transient while it isn't loaded."""


class OneCorpus:
    """For who answers from one generation alone."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    async def live(self) -> Corpus:
        return self._corpus


Build = Callable[[str, GenerationInfo], Corpus]
"""Loads what a generation needs, in any thread. Raises HeadraceError when it can't."""


@dataclass(frozen=True)
class _Failure:
    reason: str
    at: float


class GenerationCorpora:
    """A corpus for each generation that there is, so that another one may be live from one moment to the next.

    The deployment's own is there from the beginning; the others are loaded by one thread, one after another, and those
    that are no more are let go. Nobody closes them: a question may be under way in one, and its threads end with it.
    """

    def __init__(self, own: str, corpus: Corpus, build: Build, fresh: Callable[[], Generations | None]) -> None:
        """`fresh` is the record of generations, None while nobody knows."""
        self._own = own
        self._build = build
        self._fresh = fresh
        self._corpora = {own: corpus}
        self._failures: dict[str, _Failure] = {}
        self._since: dict[str, float] = {}
        """Since when (monotonic seconds) each one that is not loaded is wanted."""
        self._wanted: dict[str, GenerationInfo] = {}
        self._loading = False
        self._lock = threading.Lock()

    async def live(self) -> Corpus:
        while True:
            record = self._fresh()
            if record is not None:
                if (corpus := self._corpora.get(record.live)) is not None:
                    return corpus
                if (missing := self.missing(record)) is not None:
                    raise Transient(_said(record.live), missing[0])
            await asyncio.sleep(POLL_S)

    def load_live(self, record: Generations) -> None:
        """Return when the one that is live is there. Raises Misconfigured when it can't be."""
        name = record.live
        if name in self._corpora:
            return
        if name not in record.known:
            raise Misconfigured(
                f"questions are answered from {_said(name)}, and {_UNKNOWN}; "
                f"set generation.name to {name!r}, and the encoder to its own"
            )
        self._wanted[name] = record.known[name]
        self._corpora[name] = self._build(name, record.known[name])

    def follow(self, record: Generations) -> None:
        """Load what is known and not there yet, beside the work, and let go of what is known no more, or is of another
        encoder now.
        """
        with self._lock:
            before = self._wanted
            self._wanted = {name: info for name, info in record.known.items() if name != self._own}
            changed = {name for name in before.keys() & self._wanted.keys() if not self._wants(name, before[name])}
            for name in changed | (self._corpora.keys() - self._wanted.keys() - {self._own, record.live}):
                self._corpora.pop(name, None)
            for name in changed | (self._failures.keys() - self._wanted.keys()):
                self._failures.pop(name, None)
            for name in self._wanted.keys() - self._corpora.keys():
                self._since.setdefault(name, time.monotonic())
            begin = not self._loading and bool(self._wanted.keys() - self._corpora.keys())
            self._loading = self._loading or begin
        if begin:
            threading.Thread(target=self._load, name="generations-load", daemon=True).start()

    def missing(self, record: Generations) -> tuple[str, float] | None:
        """Why the one that is live isn't there, and since when (monotonic seconds); None when it is."""
        name = record.live
        if name in self._corpora:
            return None
        failure = self._failures.get(name)
        reason = _LOADING if failure is None else failure.reason
        return reason if name in record.known else _UNKNOWN, self._since.get(name, time.monotonic())

    def _load(self) -> None:
        """Until all that is wanted is there."""
        while True:
            with self._lock:
                missing = sorted(self._wanted.keys() - self._corpora.keys())
                if not missing:
                    self._loading = False
                    return
                wait_s = min(self._wait_s(name) for name in missing)
                name = min(missing, key=self._wait_s)
                info = self._wanted[name]
            if wait_s > 0:
                time.sleep(min(wait_s, 1.0))
                continue
            self._load_one(name, info)

    def _load_one(self, name: str, info: GenerationInfo) -> None:
        started = time.monotonic()
        try:
            corpus = self._build(name, info)
        except Exception as exc:  # Whatever it is, the others go on being answered from.
            log.exception("generation_not_loaded", generation=name)
            reason = str(exc) if isinstance(exc, HeadraceError) else type(exc).__name__
            with self._lock:
                if self._wants(name, info):
                    self._failures[name] = _Failure(f"it could not be loaded: {reason}", time.monotonic())
            return
        with self._lock:
            if self._wants(name, info):
                self._failures.pop(name, None)
                self._since.pop(name, None)
                self._corpora[name] = corpus
        log.info("generation_loaded", generation=name, seconds=round(time.monotonic() - started, 1))

    def _wants(self, name: str, info: GenerationInfo) -> bool:
        """Whether it is still that one: vectors of another encoder can't be searched with this one's."""
        return name in self._wanted and self._wanted[name].encoder == info.encoder

    def _wait_s(self, name: str) -> float:
        failure = self._failures.get(name)
        return 0.0 if failure is None else failure.at + TRY_AGAIN_S - time.monotonic()


def _said(generation: str) -> str:
    return f"generation {generation or 1}"
