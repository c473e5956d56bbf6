"""What is sent and what is killed, drawn from a seed, and what must be live in the end. Pure: no clock, no server."""

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

TENANTS = ("acme", "globex")
SLEEPS_S = 9.0
"""Past the session time-out of 6 s: the others have taken the sleeper's partitions by then."""

Action = Literal["SIGKILL", "SIGTERM", "SIGSTOP"]
Harm = Literal["kill", "stop", "freeze", "full", "flood"]
POINTS = {
    "chunk": ("intake-noted", "sent-chunk"),
    "embed": ("sent-embed",),
    "upsert-milvus": ("vectors-written", "sent-upsert-milvus"),
    "upsert-opensearch": ("texts-written", "sent-upsert-opensearch"),
    "commit": ("made-searchable", "flipped", "half-swept", "swept", "sent-commit"),
    "query": ("sent-query",),
}
"""The narrow places of each stage, in the order in which a message passes them (`faulty_worker.py`)."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of everything. Where a stage has two workers, a death is also a rebalance, and a worker that wakes up
    finds its partitions with somebody else.
    """

    documents: int
    sending_s: float
    workers: Mapping[str, int]
    deaths: int
    """Of each stage, by either signal."""
    sleepers: int
    faults: tuple[Action, ...]
    """What happens at each narrow place."""
    flips: int
    outages: tuple[tuple[str, Harm, float], ...]
    """(server, what is done to it, for how many seconds), in an order that the seed draws."""
    drawn: int
    """So many of the outages."""


SHORT = Scale(
    documents=200,
    sending_s=75.0,
    workers={"chunk": 2, "embed": 1, "upsert-milvus": 2, "upsert-opensearch": 1, "commit": 2, "query": 1},
    deaths=1,
    sleepers=2,
    faults=("SIGKILL",),
    flips=2,
    outages=(
        ("kafka", "kill", 0.0),
        ("milvus", "kill", 0.0),
        ("milvus", "freeze", 8.0),
        ("opensearch", "kill", 0.0),
        ("opensearch", "stop", 8.0),
        ("opensearch", "full", 8.0),
    ),
    drawn=3,
)
LONG = Scale(
    documents=2000,
    sending_s=270.0,
    workers=dict.fromkeys(POINTS, 2),
    deaths=2,
    sleepers=6,
    faults=("SIGKILL", "SIGKILL", "SIGSTOP"),
    flips=6,
    # Longer than every time-out: of a store 10 s (in `workers.py`), of a session 6 s, of a drain 15 s.
    outages=(
        ("kafka", "kill", 0.0),
        ("kafka", "stop", 30.0),
        ("kafka", "freeze", 20.0),
        ("milvus", "kill", 0.0),
        ("milvus", "stop", 25.0),
        ("milvus", "freeze", 25.0),
        ("opensearch", "kill", 0.0),
        ("opensearch", "stop", 25.0),
        ("opensearch", "freeze", 25.0),
        ("opensearch", "full", 20.0),
        ("opensearch", "flood", 10.0),
    ),
    drawn=11,
)

_WORDS = (
    "harbour",
    "lantern",
    "granite",
    "orchard",
    "whistle",
    "copper",
    "meadow",
    "thunder",
    "velvet",
    "anchor",
    "biscuit",
    "canyon",
    "drizzle",
    "ember",
    "falcon",
    "glacier",
    "hammock",
    "island",
    "jasmine",
    "kettle",
    "lagoon",
    "marble",
    "nectar",
    "oyster",
    "pepper",
    "quarry",
    "ribbon",
    "saddle",
    "timber",
    "umbrella",
)
_CHUNKING = {"max_tokens": 48, "overlap_tokens": 8}
"""A chunk is about two of the sentences below, so that small documents have several."""


@dataclass(frozen=True, kw_only=True)
class Send:
    """One record. `at` is in seconds after the start, `timestamp` in milliseconds after it."""

    at: float
    topic: str
    key: str
    value: bytes | None
    timestamp: int
    kind: str
    text: str | None = None
    """What the document says; None for a deletion (and for poison)."""
    version: int | None = None
    """None: the record's timestamp is the version."""
    mark: bytes | None = None
    """Of poison, to know its dead letter by."""


@dataclass(frozen=True, kw_only=True)
class Blow:
    """What happens to a worker, at this second after the start or as soon as the worker is ready to take it."""

    at: float
    action: Action
    worker: str


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The first worker that passes `point` after this second is struck there.

    `document` is the number of a flip's document: that fault strikes as its second version goes live, and the third is
    sent before the worker is back.
    """

    at: float
    action: Action
    point: str
    document: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outage:
    """What happens to a server, `wait_s` after the one before it is over."""

    server: str
    harm: Harm
    seconds: float
    wait_s: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    seed: int
    scale: Scale
    sends: tuple[Send, ...]
    blows: tuple[Blow, ...]
    faults: tuple[Fault, ...]
    outages: tuple[Outage, ...]


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A version that a broker has confirmed. `at` is the monotonic time at which it was handed to the client."""

    key: str
    version: int
    timestamp: int
    offset: int
    text: str | None
    at: float

    @property
    def order(self) -> tuple[int, int, int]:
        return (self.version, self.timestamp, self.offset)


@dataclass
class Expectation:
    """By the contract alone: of each document, the highest version wins, whatever happened on the way.

    One version of one document always has one text here, however often it is sent.
    """

    _sent: dict[str, list[Sent]] = field(default_factory=lambda: defaultdict(list))

    def note(self, sent: Sent) -> None:
        self._sent[sent.key].append(sent)

    @property
    def keys(self) -> list[str]:
        return sorted(self._sent)

    def versions(self, key: str) -> set[int]:
        return {sent.version for sent in self._sent[key]}

    def winner(self, key: str) -> Sent:
        return max(self._sent[key], key=lambda sent: sent.order)

    def may_be_live(self, key: str) -> set[int]:
        """The winner, and earlier versions of the same content: the winner may have been `unchanged`."""
        return {sent.version for sent in self._sent[key] if sent.text == self.winner(key).text}

    def text(self, key: str, version: int) -> str | None:
        """What a version says, None for a deletion; raises KeyError for one that nobody sent."""
        for sent in self._sent.get(key, ()):
            if sent.version == version:
                return sent.text
        raise KeyError(key, version)

    def may_be_deleted(self, key: str, *, since: int, until: float) -> bool:
        """Whether a deletion above version `since` was on its way at the monotonic time `until`."""
        return any(sent.text is None and sent.version > since and sent.at <= until for sent in self._sent[key])


def draw(seed: int, scale: Scale) -> Plan:
    """The same seed gives the same plan."""
    random_ = random.Random(seed)
    blows = tuple(sorted(_blows(random_, scale), key=lambda blow: blow.at))
    faults = tuple(sorted(_faults(random_, scale), key=lambda fault: fault.at))
    sends: list[Send] = []
    for number in range(scale.documents):
        key = f"{TENANTS[number % len(TENANTS)]}/d{number // len(TENANTS):04}"
        document = _explicit(random_, key) if random_.random() < 0.35 else _by_timestamp(random_, key)
        sends += _twice_at_times(random_, _timed(random_, list(document), blows, scale.sending_s), scale.sending_s)
    sends += [flip_version(number, 0, at=0.0) for number in range(scale.flips)]
    sends += _poison(random_, sends, scale.sending_s)
    return Plan(
        seed=seed,
        scale=scale,
        sends=tuple(sorted(sends, key=lambda send: send.at)),
        blows=blows,
        faults=faults,
        outages=tuple(_outages(random_, scale)),
    )


def flip_version(number: int, step: int, *, at: float) -> Send:
    """The document of one `flip`: there first, then changed (the kill comes as that goes live), then changed again."""
    key = f"{TENANTS[0]}/flip{number}"
    text = _text(random.Random(f"{number} {step}"), f"{key} revision {step}", sentences=8 - 2 * step)
    topic = "documents.urgent" if step else "documents.raw"
    value = json.dumps({"text": text, "version": step + 1, "chunking": _CHUNKING}).encode()
    return Send(
        at=at, topic=topic, key=key, value=value, timestamp=int(at * 1000), kind="flip", text=text, version=step + 1
    )


def _blows(random_: random.Random, scale: Scale) -> Iterator[Blow]:
    """Every stage dies by either signal, in rounds; the sleepers are of stages where somebody else takes over."""
    rounds = 2 * scale.deaths
    length = scale.sending_s / rounds
    first = {stage: random_.randrange(2) for stage in scale.workers}
    signals: tuple[Action, Action] = ("SIGKILL", "SIGTERM")
    for number in range(rounds):
        for place, stage in enumerate(_order(random_)):
            yield Blow(
                at=(number + (place + random_.uniform(0.2, 0.8)) / len(scale.workers)) * length,
                action=signals[(first[stage] + number) % 2],
                worker=f"{stage}-{random_.randrange(scale.workers[stage])}",
            )
    shared = [stage for stage, workers in scale.workers.items() if workers > 1 and stage != "query"]
    for number in range(scale.sleepers):
        at = (number + random_.uniform(0.2, 0.8)) * scale.sending_s / scale.sleepers
        yield Blow(at=at, action="SIGSTOP", worker=f"{random_.choice(shared)}-{random_.randrange(2)}")


def _faults(random_: random.Random, scale: Scale) -> Iterator[Fault]:
    """Every narrow place in its time, spread over the run; a flip's own documents are for `flipped` alone."""
    places = [(point, action) for points in POINTS.values() for point in points for action in scale.faults]
    random_.shuffle(places)
    for number, (point, action) in enumerate(places):
        at = (number + random_.random()) * 0.9 * scale.sending_s / len(places)
        # A stage with one worker has nobody to take over from a sleeper.
        stage = next(stage for stage, points in POINTS.items() if point in points)
        yield Fault(at=at, action=action if scale.workers[stage] > 1 else "SIGKILL", point=point)
    for number in range(scale.flips):
        at = 0.9 * scale.sending_s * (number + random_.uniform(0.3, 1.0)) / scale.flips
        yield Fault(at=at, action="SIGKILL", point="flipped", document=number)


def _outages(random_: random.Random, scale: Scale) -> Iterator[Outage]:
    for server, harm, seconds in random_.sample(scale.outages, scale.drawn):
        yield Outage(server=server, harm=harm, seconds=seconds, wait_s=random_.uniform(3.0, 10.0))


def _order(random_: random.Random) -> list[str]:
    """Who dies first. The two that load the encoder, for many seconds of two cores, are kept apart."""
    while True:
        order = random_.sample(list(POINTS), len(POINTS))
        if abs(order.index("embed") - order.index("query")) >= 3:
            return order


def _text(random_: random.Random, marker: str, *, sentences: int) -> str:
    """Every sentence names its document and revision: a chunk of another one can't be taken for it."""
    return " ".join(
        f"Sentence {number} of {marker} tells of {' '.join(random_.sample(_WORDS, 5))}." for number in range(sentences)
    )


def _contents(random_: random.Random, key: str, count: int) -> Iterator[tuple[str, str | None]]:
    """What becomes of a document, version by version: (kind, text or None)."""
    sizes, texts = [random_.randint(1, 8)], []
    for revision in range(count):
        alive = bool(texts) and texts[-1] is not None
        kinds = ("grown", "shrunk", "rewritten", "unchanged", "returned", "deleted") if alive else ("new",)
        if texts and not alive:
            kinds = ("new", "new", "returned", "deleted")
        kind = random_.choice(kinds)
        match kind:
            case "grown":
                sizes.append(min(8, sizes[-1] + random_.randint(1, 4)))
            case "shrunk":
                sizes.append(max(0, sizes[-1] - random_.randint(1, 4)))
            case _:
                sizes.append(max(1, sizes[-1]))
        text: str | None = _text(random_, f"{key} revision {revision}", sentences=sizes[-1])
        if kind == "deleted":
            text = None
        elif kind == "unchanged":
            text = texts[-1]
        elif kind == "returned":
            text = random_.choice([before for before in texts if before is not None] or [text])
        texts.append(text)
        yield kind, text


def _by_timestamp(random_: random.Random, key: str) -> Iterator[Send]:
    """The record's timestamp is the version. At times a later one overtakes it."""
    for kind, text in _contents(random_, key, _versions(random_)):
        yield _send(random_, key, kind, text, version=None)


def _explicit(random_: random.Random, key: str) -> Iterator[Send]:
    """The producer names the versions, with gaps."""
    version = 0
    for kind, text in _contents(random_, key, _versions(random_) + 1):
        version += random_.randint(1, 3)
        yield _send(random_, key, kind, text, version=version)


def _versions(random_: random.Random) -> int:
    return random_.choices((1, 2, 3, 4, 5), (4, 4, 3, 2, 1))[0]


def _send(random_: random.Random, key: str, kind: str, text: str | None, *, version: int | None) -> Send:
    topic = "documents.urgent" if random_.random() < 0.3 else "documents.raw"
    named = {} if version is None else {"version": version}
    value: bytes | None = json.dumps({"text": text, "chunking": _CHUNKING, "tags": ["chaos"]} | named).encode()
    if text is None:
        value = None if version is None and random_.random() < 0.5 else json.dumps({"op": "delete"} | named).encode()
    return Send(at=0.0, topic=topic, key=key, value=value, timestamp=0, kind=kind, text=text, version=version)


def _timed(random_: random.Random, document: list[Send], blows: tuple[Blow, ...], sending_s: float) -> list[Send]:
    """When each version is sent: half of the documents come as somebody dies; a third comes out of order."""
    start = random_.uniform(0, 0.8 * sending_s)
    if random_.random() < 0.5:
        start = random_.choice(blows).at + random_.uniform(-0.5, 0.3)
    moments = [max(0.0, start)]
    while len(moments) < len(document):
        gap = random_.choice((0.0, 0.05, 0.5, 3.0, 10.0)) + random_.uniform(0.001, 0.01)
        moments.append(min(moments[-1] + gap, sending_s + len(moments) * 0.001))
    stamps: list[int] = []
    for moment in moments:
        # No two versions of a document have one timestamp: the offsets that would tell them apart are of two lanes.
        stamps.append(max(int(moment * 1000), stamps[-1] + 1 if stamps else 0))
    timed = [replace(send, timestamp=stamp) for send, stamp in zip(document, stamps, strict=True)]
    if random_.random() < 0.33:
        timed = random_.sample(timed, len(timed))
    return [replace(send, at=moment) for send, moment in zip(timed, moments, strict=True)]


def _twice_at_times(random_: random.Random, document: list[Send], sending_s: float) -> Iterator[Send]:
    """Producers retry: the very same record comes again, soon or much later, maybe on the other lane."""
    for send in document:
        yield send
        if random_.random() < 0.15:
            late = min(send.at + random_.choice((0.001, 0.2, 8.0)), sending_s)
            topic = random_.choice((send.topic, "documents.raw", "documents.urgent"))
            yield replace(send, at=max(late, send.at), topic=topic, kind="duplicate")


def _poison(random_: random.Random, sends: list[Send], sending_s: float) -> Iterator[Send]:
    """What can't be read, on keys of its own and in the midst of a document's versions."""
    keys = random_.sample(sorted({send.key for send in sends}), 4)
    bodies = (b"{not json", b'{"title": "no text"}', b'{"text": 3}', b'{"text": "x", "doc_id": "of another"}')
    rows: list[tuple[str, bytes]] = [
        *zip(keys, bodies, strict=True),
        ("no-slash", b'{"text": "x"}'),
        ("UPPER/x", b'{"text": "x"}'),
        ("acme/", b'{"text": "x"}'),
        (f"{TENANTS[0]}/poison", b'{"text": "x", "chunking": {"max_tokens": 100000}}'),
    ]
    for number, (key, value) in enumerate(rows):
        at = random_.uniform(0, sending_s)
        topic = random_.choice(("documents.raw", "documents.urgent"))
        mark = f"poison {number}".encode()
        yield Send(at=at, topic=topic, key=key, value=value, timestamp=int(at * 1000), kind="poison", mark=mark)
