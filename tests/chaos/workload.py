"""What is sent and who is killed, drawn from a seed, and what must be live in the end. Pure: no clock, no server."""

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

TENANTS = ("acme", "globex")
DOCUMENTS = 200
FLIPS = 2
WORKERS = {"chunk": 2, "embed": 1, "upsert-milvus": 2, "upsert-opensearch": 1, "commit": 2, "query": 1}
"""Where there are two, a death is also a rebalance, and a worker that wakes up finds its partitions with somebody else."""
SENDING_S = 60.0
SLEEPS_S = 9.0
"""Past the session time-out of 6 s: the others have taken the sleeper's partitions by then."""

Action = Literal["SIGKILL", "SIGTERM", "SIGSTOP", "flip"]

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
    """What happens to a worker, at this second after the start or as soon as the worker is ready to take it.

    A `flip` waits for the moment in which a manifest goes over to a new version, and kills every `commit` worker then:
    what follows the flip (the sweep, the event, the ack) is left undone. `number` says which of the documents it is.
    """

    at: float
    action: Action
    worker: str
    number: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    seed: int
    sends: tuple[Send, ...]
    blows: tuple[Blow, ...]


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


def draw(seed: int) -> Plan:
    """The same seed gives the same plan."""
    random_ = random.Random(seed)
    blows = tuple(sorted(_blows(random_), key=lambda blow: blow.at))
    sends: list[Send] = []
    for number in range(DOCUMENTS):
        key = f"{TENANTS[number % len(TENANTS)]}/d{number // len(TENANTS):03}"
        document = _explicit(random_, key) if random_.random() < 0.35 else _by_timestamp(random_, key)
        sends += _twice_at_times(random_, _timed(random_, list(document), blows))
    sends += [flip_version(number, 0, at=0.0) for number in range(FLIPS)]
    sends += _poison(random_, sends)
    return Plan(seed=seed, sends=tuple(sorted(sends, key=lambda send: send.at)), blows=blows)


def flip_version(number: int, step: int, *, at: float) -> Send:
    """The document of one `flip`: there first, then changed (the kill comes as that goes live), then changed again."""
    key = f"{TENANTS[0]}/flip{number}"
    text = _text(random.Random(f"{number} {step}"), f"{key} revision {step}", sentences=8 - 2 * step)
    topic = "documents.urgent" if step else "documents.raw"
    value = json.dumps({"text": text, "version": step + 1, "chunking": _CHUNKING}).encode()
    return Send(
        at=at, topic=topic, key=key, value=value, timestamp=int(at * 1000), kind="flip", text=text, version=step + 1
    )


def _blows(random_: random.Random) -> Iterator[Blow]:
    """Each stage dies twice, once in each half, once by either signal; two sleepers; the flips."""
    half = SENDING_S / 2
    first = {stage: random_.choice(("SIGKILL", "SIGTERM")) for stage in WORKERS}
    for begin in (0.0, half):
        for place, stage in enumerate(_order(random_)):
            other: Action = "SIGTERM" if first[stage] == "SIGKILL" else "SIGKILL"
            yield Blow(
                at=begin + (place + random_.uniform(0.2, 0.8)) * half / len(WORKERS),
                action=first[stage] if begin == 0.0 else other,
                worker=f"{stage}-{random_.randrange(WORKERS[stage])}",
            )
    for begin, stage in zip((0.0, half), random_.sample(("chunk", "upsert-milvus", "commit"), 2), strict=True):
        at = begin + random_.uniform(0.2, 0.8) * half
        yield Blow(at=at, action="SIGSTOP", worker=f"{stage}-{random_.randrange(2)}")
    for number in range(FLIPS):
        yield Blow(at=SENDING_S * (number + random_.uniform(0.5, 1.0)) / FLIPS, action="flip", worker="", number=number)


def _order(random_: random.Random) -> list[str]:
    """Who dies first. The two that load the encoder, for many seconds of two cores, are kept apart."""
    while True:
        order = random_.sample(list(WORKERS), len(WORKERS))
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


def _timed(random_: random.Random, document: list[Send], blows: tuple[Blow, ...]) -> list[Send]:
    """When each version is sent: half of the documents come as somebody dies; a third comes out of order."""
    start = random_.uniform(0, 0.8 * SENDING_S)
    if random_.random() < 0.5:
        start = random_.choice(blows).at + random_.uniform(-0.5, 0.3)
    moments = [max(0.0, start)]
    while len(moments) < len(document):
        gap = random_.choice((0.0, 0.05, 0.5, 3.0, 10.0)) + random_.uniform(0.001, 0.01)
        moments.append(min(moments[-1] + gap, SENDING_S + len(moments) * 0.001))
    stamps: list[int] = []
    for moment in moments:
        # No two versions of a document have one timestamp: the offsets that would tell them apart are of two lanes.
        stamps.append(max(int(moment * 1000), stamps[-1] + 1 if stamps else 0))
    timed = [replace(send, timestamp=stamp) for send, stamp in zip(document, stamps, strict=True)]
    if random_.random() < 0.33:
        timed = random_.sample(timed, len(timed))
    return [replace(send, at=moment) for send, moment in zip(timed, moments, strict=True)]


def _twice_at_times(random_: random.Random, document: list[Send]) -> Iterator[Send]:
    """Producers retry: the very same record comes again, soon or much later, maybe on the other lane."""
    for send in document:
        yield send
        if random_.random() < 0.15:
            late = min(send.at + random_.choice((0.001, 0.2, 8.0)), SENDING_S)
            topic = random_.choice((send.topic, "documents.raw", "documents.urgent"))
            yield replace(send, at=max(late, send.at), topic=topic, kind="duplicate")


def _poison(random_: random.Random, sends: list[Send]) -> Iterator[Send]:
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
        at = random_.uniform(0, SENDING_S)
        topic = random_.choice(("documents.raw", "documents.urgent"))
        mark = f"poison {number}".encode()
        yield Send(at=at, topic=topic, key=key, value=value, timestamp=int(at * 1000), kind="poison", mark=mark)
