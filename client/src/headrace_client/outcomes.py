"""What was published and has no outcome yet, matched with the events that come. Pure: no Kafka, no clock."""

from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from headrace_client.messages import DocumentEvent, EventError, Status


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a version.

    `indexed`: questions see it now. `deleted`: the document is gone. `unchanged`: the live version has the same
    content. `superseded`: a newer version came first. `failed`: it is in the dead letters, and `error` says why.
    """

    tenant: str
    doc_id: str
    version: int
    status: Status
    stage: str | None = None
    """The stage that says so; None where a newer version's event says it."""
    chunks: int | None = None
    error: EventError | None = None


@dataclass(eq=False, kw_only=True)
class Sent:
    """A record that waits for its outcome. `at_ms` is its timestamp, which is its version where it names none."""

    key: bytes
    at_ms: int
    named: int | None
    confirmed: bool = False

    @property
    def version(self) -> int:
        return self.at_ms if self.named is None else self.named


@dataclass
class _Waiting:
    sents: list[Sent] = field(default_factory=list)
    events: list[DocumentEvent] = field(default_factory=list)
    """What came while a record's timestamp was not known for sure."""


class Outcomes:
    """By key. Not thread-safe: its owner has a lock."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, _Waiting] = {}
        self._lately: dict[bytes, int] = {}
        """The newest timestamp by key, of this millisecond and of what runs ahead of it."""
        self._newest_ms = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __contains__(self, key: bytes) -> bool:
        return key in self._waiting

    def stamp(self, key: bytes, now_ms: int, *, waited_for: bool) -> int:
        """A timestamp for a record of this key, no earlier than those before it.

        One that is `waited_for` shares it with no record of the key: equal ones would share their events.
        """
        if now_ms > self._newest_ms:
            self._lately.clear()
        at_ms = max(now_ms, self._lately[key] + waited_for) if key in self._lately else now_ms
        if key in self._waiting:
            at_ms = max([at_ms, *(sent.at_ms + 1 for sent in self._waiting[key].sents)])
        self._lately[key] = at_ms
        self._newest_ms = max(self._newest_ms, at_ms)
        return at_ms

    def expect(self, sent: Sent) -> None:
        self._waiting.setdefault(sent.key, _Waiting()).sents.append(sent)

    def confirm(self, sent: Sent, stamped_ms: int) -> list[tuple[Sent, Outcome]]:
        """The broker has it, with this timestamp, which may be its own; what came before counts now."""
        sent.at_ms, sent.confirmed = stamped_ms, True
        return self._judged(sent.key)

    def forget(self, sent: Sent) -> list[tuple[Sent, Outcome]]:
        """Nobody waits for it any more; what had to wait for it counts now."""
        waiting = self._waiting.get(sent.key)
        if waiting is None:
            return []
        waiting.sents = [other for other in waiting.sents if other is not sent]
        return self._judged(sent.key)

    def note(self, key: bytes, event: DocumentEvent) -> list[tuple[Sent, Outcome]]:
        """The outcomes that are known with this event."""
        if key not in self._waiting:
            return []
        self._waiting[key].events.append(event)
        return self._judged(key)

    def _judged(self, key: bytes) -> list[tuple[Sent, Outcome]]:
        """What the events tell, once every record's timestamp is known for sure."""
        waiting = self._waiting.get(key)
        told: list[tuple[Sent, Outcome]] = []
        if waiting is not None and all(sent.confirmed for sent in waiting.sents):
            for event in waiting.events:
                found = self._told(waiting.sents, event)
                told += found
                waiting.sents = [sent for sent in waiting.sents if all(sent is not other for other, _ in found)]
            waiting.events.clear()
        if waiting is not None and not waiting.sents:
            del self._waiting[key]
        return told

    @staticmethod
    def _told(sents: list[Sent], event: DocumentEvent) -> list[tuple[Sent, Outcome]]:
        # Events of one version come in the order of its records, so each tells of the oldest that waits.
        own = next((sent for sent in sents if _is_of(event, sent)), None)
        told = [(own, _outcome(own, event))] if own is not None else []
        if event.version is not None and event.status != "failed":
            # Kafka keeps only the newest record of a key when it compacts, so an older one may never be judged.
            told += [(sent, _superseded(sent)) for sent in sents if sent.version < event.version]
        return told


def _is_of(event: DocumentEvent, sent: Sent) -> bool:
    if event.version is None:
        # Nobody could read it; it can only be one that was sent before it was judged.
        return event.status == "failed" and sent.at_ms <= _unix_ms(event.at)
    # A record whose value can't be read has its timestamp for a version, whatever it names.
    return event.version == sent.version or (event.status == "failed" and event.version == sent.at_ms)


def _outcome(sent: Sent, event: DocumentEvent) -> Outcome:
    tenant, _, doc_id = sent.key.decode().partition("/")
    return Outcome(
        tenant=tenant,
        doc_id=doc_id,
        version=sent.version,
        status=event.status,
        stage=event.stage,
        chunks=event.chunks,
        error=event.error,
    )


def _superseded(sent: Sent) -> Outcome:
    tenant, _, doc_id = sent.key.decode().partition("/")
    return Outcome(tenant=tenant, doc_id=doc_id, version=sent.version, status="superseded")


def _unix_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
