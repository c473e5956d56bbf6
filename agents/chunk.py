"""documents.raw, documents.urgent -> documents.chunks, documents.chunks.urgent: reads a document, lets its version in,
cuts it.

Key: tenant/doc_id, all along. A replay is harmless: the same record gives the same revision, the same chunks and the
same ids, and its version is noted in the manifest once. Poison: what can't be read, a key of another form, descriptions
that are too large, a chunking that the encoder can't read; with auth on, no token that lets its sender do this.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import msgspec

from agents.stage import Item, Outgoing, Record, Stage
from headrace import telemetry, tracing
from headrace.auth import PUBLISH, Authenticator, Denied, authorization_of
from headrace.chunking import Chunks, TokenCounter, check_chunking, chunk
from headrace.errors import Poison
from headrace.stores.limits import check_attributes
from headrace.stores.ports import ManifestStore, Stored
from headrace.versions import DELETED_FINGERPRINT, Admission, admit, fingerprint, replaced
from schemas import (
    Attributes,
    ChunkBatch,
    Chunking,
    Document,
    DocumentEvent,
    Intake,
    Key,
    Replaced,
    Revision,
    Status,
    encode,
    parse_key,
)
from schemas.batches import pack_chunks
from schemas.document import Deletion, read_document
from topics import RAW_MAX_BYTES, RECORD_MAX_BYTES

STAGE = "chunk"
FRESH_MS = 24 * 3_600_000
"""A record that is older when it comes here is a backfill, or of a clock that is wrong: how long it has lain says
nothing of how fast documents become searchable."""
CHUNKS_ROOM_BYTES = RECORD_MAX_BYTES // 2
"""Of a record, for its chunks; a document's attributes and the record's own fields fit in the rest."""


@dataclass(frozen=True, kw_only=True)
class Incoming:
    """A version of a document as it arrived, complete with what its record says of it."""

    key: Key
    document: Document | Deletion
    revision: Revision
    attributes: Attributes
    chunking: Chunking


@dataclass(frozen=True, kw_only=True)
class Chunker:
    """What `chunk` works with. `encoder` is its recipe: another one makes other rows of the same document.
    Without an `authenticator` anybody may send documents.
    """

    tokenizer: TokenCounter
    encoder: str
    encoder_max_tokens: int
    default: Chunking
    manifests: ManifestStore
    authenticator: Authenticator | None = None

    def stage(self, *, batch_messages: int, batch_bytes: int) -> Stage[Incoming]:
        return Stage(
            name=STAGE, decode=self.decode, work=self.work, batch_messages=batch_messages, batch_bytes=batch_bytes
        )

    def decode(self, record: Record) -> Incoming:
        telemetry.INGEST_REQUESTS.inc()
        try:
            key = parse_key(record.key)
        except ValueError as exc:
            raise Poison("bad_key", str(exc)) from exc
        if len(record.value or b"") > RAW_MAX_BYTES:
            raise Poison(
                "record_too_large",
                f"{len(record.value or b'')} bytes when decompressed, and a document may have {RAW_MAX_BYTES}",
            )
        try:
            document = read_document(record.value)
        except msgspec.ValidationError as exc:
            raise Poison("bad_document", str(exc)) from exc
        except msgspec.DecodeError as exc:
            raise Poison("bad_json", str(exc)) from exc
        for name, named, expected in (
            ("tenant", document.tenant, key.tenant),
            ("doc_id", document.doc_id, key.doc_id),
        ):
            if named is not None and named != expected:
                raise Poison(
                    "key_mismatch", f"{name} is {named!r} in the document and {expected!r} in the record's key"
                )
        chunking = self.default
        attributes = _attributes(document, record)
        content = DELETED_FINGERPRINT
        if isinstance(document, Document):
            chunking = _sparing(document.chunking) if document.chunking is not None else self.default
            try:
                check_chunking(
                    chunking, encoder_max_tokens=self.encoder_max_tokens, special_tokens=self.tokenizer.special_tokens
                )
            except ValueError as exc:
                raise Poison("bad_chunking", str(exc)) from exc
            content = fingerprint(document, chunking, self.encoder)
        version = record.timestamp if document.version is None else document.version
        revision = Revision(version=version, timestamp=record.timestamp, offset=record.offset, fingerprint=content)
        return Incoming(key=key, document=document, revision=revision, attributes=attributes, chunking=chunking)

    async def work(self, batch: Sequence[Item[Incoming]]) -> Iterable[Outgoing]:
        return await asyncio.to_thread(self._let_in, batch)

    def _let_in(self, batch: Sequence[Item[Incoming]]) -> "_Answers":
        # All of them first: the stage halves a batch that one of them spoils, and cutting is the dear part.
        for item in batch:
            self._check_sender(item)
        answers = self._work(batch)
        for item in batch:
            telemetry.TENANT_DOCUMENTS.labels(telemetry.tenants.label(item.message.key.tenant)).inc()
        return answers

    def _check_sender(self, item: Item[Incoming]) -> None:
        """The token must have been good when the record was written: Kafka may hold it for longer than a token lasts,
        and a dead letter that is sent again has its first timestamp.
        """
        if self.authenticator is None:
            return
        record = item.record
        try:
            self.authenticator.check(
                authorization_of(record.headers), tenant=item.message.key.tenant, scope=PUBLISH, at_ms=record.timestamp
            )
        except Denied as denied:
            raise Poison(denied.code, str(denied)) from denied

    def _work(self, batch: Sequence[Item[Incoming]]) -> "_Answers":
        versions = [item.message for item in batch]
        cut: dict[int, Chunks] = {}
        answers: list[tuple[Incoming, Record, _Cut | Status]] = []
        with tracing.span("admit"):
            admitted = self._admit(versions, cut)
        for index, (admission, replaces) in enumerate(admitted):
            answer: _Cut | Status
            if admission is Admission.SEND:
                chunks = cut[index] if index in cut else self._chunked(versions[index])
                answer = _Cut(chunks, replaces, published=_published(batch[index].record))
            else:
                answer = "unchanged" if admission is Admission.UNCHANGED else "superseded"
            answers.append((versions[index], batch[index].record, answer))
        return _Answers(answers)

    def redelivered(self, record: Record, intake: Intake | None) -> Iterable[Outgoing] | None:
        """What follows when a record comes again, so that the rows of what it brought are made anew.

        Beyond `work`, a record whose content is that of an earlier one makes the rows of that one again, under the ids
        that they had: `work` would call it unchanged. None where it is cut into other chunks than it was then. Tokens
        are not looked at: they were when the record came first, and their keys may be long gone.
        """
        incoming = self.decode(record)
        revision = incoming.revision
        if (
            intake is None
            or revision.order > intake.revision.order
            or revision.fingerprint != intake.content.fingerprint
        ):
            return self._work([Item(record=record, message=incoming)])
        # Its rows carry the time of the record that they were first made of, where the document names none.
        first = replace(record, timestamp=intake.content.timestamp, offset=intake.content.offset)
        content = replace(self.decode(first), revision=intake.content)
        chunks = self._chunked(content)
        return _Answers([(content, record, _Cut(chunks))]) if len(chunks) == intake.chunks else None

    def _chunked(self, incoming: Incoming) -> Chunks:
        document = incoming.document
        if isinstance(document, Deletion):
            return chunk("", "text/plain", incoming.chunking, self.tokenizer)
        return chunk(document.text, document.content_type, incoming.chunking, self.tokenizer)

    def _admit(self, versions: Sequence[Incoming], cut: dict[int, Chunks]) -> list[tuple[Admission, Replaced | None]]:
        """Note in the manifests what is let in, and cut it. Where somebody else wrote one first, look at it again."""
        admissions: dict[int, tuple[Admission, Replaced | None]] = {}
        undecided = list(range(len(versions)))
        while undecided:
            stored = self.manifests.read({versions[index].key for index in undecided})
            replacements: dict[Key, Stored] = {}
            for index in undecided:
                incoming = versions[index]
                current = replacements.get(incoming.key, stored[incoming.key])

                def chunks(index: int = index, incoming: Incoming = incoming) -> int:
                    if index not in cut:
                        cut[index] = self._chunked(incoming)
                    return len(cut[index])

                verdict = admit(
                    current.manifest,
                    incoming.revision,
                    chunks=chunks,
                    deleted=isinstance(incoming.document, Deletion),
                    at=datetime.now(UTC),
                )
                admissions[index] = verdict.admission, replaced(current.manifest, incoming.revision)
                if verdict.manifest is not None:
                    replacements[incoming.key] = msgspec.structs.replace(current, manifest=verdict.manifest)
            conflicts = self.manifests.write(replacements)
            undecided = [index for index in undecided if versions[index].key in conflicts]
        return [admissions[index] for index in range(len(versions))]


@dataclass(frozen=True)
class _Cut:
    chunks: Chunks
    replaces: Replaced | None = None
    published: int | None = None


@dataclass(frozen=True)
class _Answers:
    """What follows from a batch of documents. The records are made each time they are gone through: held together they
    would be many times the documents' size where chunks are small, for each repeats its headings, each record all
    attributes.
    """

    answers: Sequence[tuple[Incoming, Record, _Cut | Status]]

    def __iter__(self) -> Iterator[Outgoing]:
        for incoming, record, answer in self.answers:
            if isinstance(answer, _Cut):
                yield from _batches(incoming, answer, record)
            else:
                yield _event(incoming, answer, record)


def _sparing(chunking: Chunking) -> Chunking:
    """An overlap of more than half becomes a quarter: what is cut and sent stays in proportion to the text."""
    if 2 * chunking.overlap_tokens <= chunking.max_tokens:
        return chunking
    return msgspec.structs.replace(chunking, overlap_tokens=chunking.max_tokens // 4)


def _attributes(document: Document | Deletion, record: Record) -> Attributes:
    try:
        arrived = datetime.fromtimestamp(record.timestamp / 1000, UTC)
        if isinstance(document, Deletion):
            return Attributes(created_at=arrived)
        created_at = (document.created_at or arrived).astimezone(UTC)
    except (OverflowError, ValueError) as exc:
        raise Poison("bad_document", f"a time that no calendar has: {exc}") from exc
    attributes = Attributes(
        created_at=created_at,
        title=document.title,
        source=document.source,
        source_confidence=document.source_confidence,
        tags=document.tags,
        metadata=document.metadata,
    )
    try:
        check_attributes(attributes)
    except ValueError as exc:
        raise Poison("attributes_too_large", str(exc)) from exc
    return attributes


def _published(record: Record) -> int | None:
    """From when the document's freshness is measured. A letter that was replayed waited for people."""
    is_old = record.timestamp < time.time() * 1000 - FRESH_MS
    return None if is_old or record.sent_again else record.timestamp


def _batches(incoming: Incoming, cut: _Cut, record: Record) -> Iterator[Outgoing]:
    topic = "documents.chunks.urgent" if record.lane == "urgent" else "documents.chunks"
    first = 0
    # A deletion, and a document without text, travels as one batch without chunks.
    for group in pack_chunks(cut.chunks, room=CHUNKS_ROOM_BYTES) if len(cut.chunks) else ([],):
        batch = ChunkBatch(
            tenant=incoming.key.tenant,
            doc_id=incoming.key.doc_id,
            revision=incoming.revision,
            total=len(cut.chunks),
            first=first,
            attributes=incoming.attributes,
            chunks=group,
            deleted=isinstance(incoming.document, Deletion),
            replaces=cut.replaces if group else None,
            published=cut.published,
        )
        yield Outgoing(topic=topic, key=incoming.key.encode(), value=encode(batch), chunks=len(group), cause=record)
        first += len(group)


def _event(incoming: Incoming, status: Status, record: Record) -> Outgoing:
    event = DocumentEvent(
        status=status,
        stage=STAGE,
        at=datetime.now(UTC),
        doc_id=incoming.key.doc_id,
        tenant=incoming.key.tenant,
        version=incoming.revision.version,
    )
    return Outgoing(topic="documents.events", key=incoming.key.encode(), value=encode(event), cause=record)
