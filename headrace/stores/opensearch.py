"""The text store: a tenant's chunks with their text in one OpenSearch index, found by BM25.

Metadata is held twice: as it was sent, unindexed, for hits; and as keywords of key and value (`headrace.stores.terms`),
for filters. OpenSearch's own ways don't fit: mapped fields would grow with every key that a producer thinks of,
`flat_object` has no numeric ranges and tells neither 1 from "1" nor a dot in a key from a path, and nested documents
cost a Lucene document a key for every chunk. Terms make equality, ranges and lists exact in one field.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any
from uuid import uuid4

import msgspec
import structlog

from headrace.errors import Misconfigured
from headrace.stores.filters import Filters, opensearch_clauses
from headrace.stores.known_revisions import Known, KnownRevisions
from headrace.stores.manifests import manifest_indexes
from headrace.stores.opensearch_connection import OpenSearchConnection
from headrace.stores.opensearch_indexes import Action, Got, Scanned, TenantIndexes, Wanted, get_many
from headrace.stores.ports import Candidate, LiveRead, StoreCount, StoredRow, TextRow
from headrace.stores.settings import OpenSearchSettings, StoreSettings
from headrace.stores.terms import created_at_ms, metadata_keywords
from schemas import Attributes, Manifest, MetadataValue
from schemas.wire import decode, encode

log = structlog.get_logger("headrace.stores")

QUERY_WORDS = 800
"""Words of a question that are searched for, of the 1,024 clauses that OpenSearch takes."""

SEARCHED = "searched"
"""Title and text as one field. Searched apart, as best of the two, they were worse on SciFact and on COVID-QA
(docs/evaluation.md), and so they were with BM25's usual parameters."""
_BM25 = {"type": "BM25", "k1": 0.9, "b": 0.4}
_DISTINCT_PAGE = 10_000
_SCAN_PAGE = 5_000
_ROW_FIELDS = ["doc_id", "version", "ordinal", "content_hash"]
# A word as the tokenizers see it: a run of letters and digits of an alphabet, or one sign of a script without spaces.
_word = re.compile(r"[^\W\u2000-\U0010ffff]+|[^\s\x00-\x7f]")
_TOKEN_MAX_CHARS = 255  # where the tokenizers cut a longer word


class _Source(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk as it lies in the index."""

    chunk_id: str
    doc_id: str
    version: int
    ordinal: int
    content_hash: str
    text: str
    start: int
    end: int
    headings: list[str]
    title: str | None
    source: str | None
    source_confidence: float | None
    tags: list[str]
    created_at: datetime
    metadata: dict[str, MetadataValue]
    created_at_ms: int = 0
    metadata_terms: list[str] = []


class _Fields(msgspec.Struct, frozen=True, gc=False):
    """A row that somebody wrote by hand may lack them."""

    chunk_id: tuple[str] = ("",)
    doc_id: tuple[str] = ("",)


class _Hit(msgspec.Struct, frozen=True, gc=False):
    score: float = msgspec.field(name="_score")
    fields: _Fields = _Fields()


class _Hits(msgspec.Struct, frozen=True):
    hits: list[_Hit]


class _Found(msgspec.Struct, frozen=True):
    hits: _Hits


class _Highlight(msgspec.Struct, frozen=True):
    text: list[str] = []


class _MarkedHit(msgspec.Struct, frozen=True):
    id: str = msgspec.field(name="_id")
    highlight: _Highlight = _Highlight()


class _MarkedHits(msgspec.Struct, frozen=True):
    hits: list[_MarkedHit]


class _Marked(msgspec.Struct, frozen=True):
    hits: _MarkedHits


class _Distinct(msgspec.Struct, frozen=True):
    buckets: list[Any]
    after_key: dict[str, str] | None = None


class _Aggregations(msgspec.Struct, frozen=True):
    documents: _Distinct = _Distinct(buckets=[])


class _Aggregated(msgspec.Struct, frozen=True):
    aggregations: _Aggregations = _Aggregations()


class OpenSearchTextStore:
    """A TextStore. A tenant's index keeps the analyzer that it was made with."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings.opensearch
        self._connection = OpenSearchConnection(settings.opensearch)
        self._indexes = TenantIndexes(
            self._connection, settings.index_prefix, "docs", partial(_definition, settings.opensearch)
        )
        self._manifests = manifest_indexes(self._connection, settings)
        self._known = KnownRevisions()

    def check(self) -> None:
        """Also says in the log which indexes keep an analyzer that is not the one that is set. Raises Misconfigured for
        an index that an earlier headrace made, in which nothing would be found.
        """
        self._connection.request("GET", "/", msgspec.Raw, timeout_s=self._settings.search_timeout_s)
        mappings = self._indexes.mappings(SEARCHED)
        whole = mappings.keys() & self._indexes.mappings("chunk_id").keys()
        if outdated := sorted(self._indexes.mappings("text").keys() - whole):
            raise Misconfigured(
                f"opensearch: {', '.join(map(self._indexes.name, outdated))}: made by an earlier headrace, without the "
                f"field `{SEARCHED}` or `chunk_id`: delete the index and run `headrace verify --repair`, or set "
                "another stores.prefix and send the documents again"
            )
        for tenant, mapping in mappings.items():
            kept, wanted = mapping.get("analyzer", "standard"), self._settings.analyzer_of(tenant)
            if kept != wanted:
                log.warning("index_keeps_its_analyzer", index=self._indexes.name(tenant), analyzer=kept, set=wanted)

    def upsert(self, tenant: str, rows: Sequence[TextRow]) -> None:
        terms: dict[int, list[str]] = {}  # a document's rows share their attributes
        for row in rows:
            if id(row.attributes) not in terms:
                terms[id(row.attributes)] = metadata_keywords(row.attributes.metadata)
        self._indexes.write(
            Action(operation="index", tenant=tenant, id=row.id, source=encode(_source(row, terms[id(row.attributes)])))
            for row in rows
        )

    def delete(self, tenant: str, ids: Sequence[str]) -> None:
        self._indexes.write(Action(operation="delete", tenant=tenant, id=name) for name in ids)

    def search(self, tenant: str, text: str, *, limit: int, filters: Filters) -> list[Candidate]:
        asked = {SEARCHED: {"query": first_words(text)}}
        body = {
            "query": {"bool": {"must": {"match": asked}, "filter": opensearch_clauses(filters)}},
            "size": limit,
            "track_total_hits": False,
            # Of hundreds that are ranked, a few are shown, and their texts are read then. Here is but what ranks them,
            # and all of it from columns: an `_id` is kept beside the text, which is unpacked for it.
            "stored_fields": "_none_",
            "docvalue_fields": ["chunk_id", "doc_id"],
        }
        found = self._indexes.search(tenant, body, _Found, timeout_s=self._settings.search_timeout_s)
        return [
            Candidate(id=hit.fields.chunk_id[0], doc_id=hit.fields.doc_id[0], score=hit.score)
            for hit in found.hits.hits
        ]

    def read(
        self, tenant: str, chunk_ids: Sequence[str], doc_ids: Sequence[str]
    ) -> tuple[dict[str, TextRow], dict[str, Manifest]]:
        read = self.read_live(tenant, chunk_ids, doc_ids, ())
        return read.rows, read.manifests

    def read_live(
        self, tenant: str, chunk_ids: Sequence[str], doc_ids: Sequence[str], others: Sequence[str]
    ) -> LiveRead:
        rows, manifests = self._indexes.name(tenant), self._manifests.name(tenant)
        known = self._known.of(manifests, others)
        got = self._get(
            [
                *(Wanted(rows, chunk) for chunk in chunk_ids),
                *(Wanted(manifests, doc_id) for doc_id in doc_ids),
                *(Wanted(manifests, doc_id, source=doc_id not in known) for doc_id in others),
            ]
        )
        texts, notes = got[: len(chunk_ids)], got[len(chunk_ids) :]
        unchanged = {one.id for one in notes if one.id in known and one.state == known[one.id].state}
        written = [one.id for one in notes if one.found and not one.source and one.id not in unchanged]
        notes += self._get([Wanted(manifests, doc_id) for doc_id in written])
        read = {one.id: (one.state, decode(bytes(one.source), Manifest)) for one in notes if one.source}
        new = {doc_id: Known(state, manifest.live_revision) for doc_id, (state, manifest) in read.items()}
        self._known.keep(manifests, new)
        now = {doc_id: known[doc_id] for doc_id in unchanged} | new
        return LiveRead(
            rows={one.id: _row(one.id, decode(bytes(one.source), _Source)) for one in texts if one.found},
            manifests={doc_id: read[doc_id][1] for doc_id in doc_ids if doc_id in read},
            revisions={doc_id: one.revision for doc_id, one in now.items() if one.revision is not None},
        )

    def highlight(self, tenant: str, text: str, chunk_ids: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
        # Its own highlighter knows what its analyzer makes of words. The marks around them can't be in any text.
        opening, closing = f"<{uuid4().hex}>", f"</{uuid4().hex}>"
        body = {
            "query": {"ids": {"values": list(chunk_ids)}},
            "size": len(chunk_ids),
            "track_total_hits": False,
            "_source": False,
            "highlight": {
                "type": "unified",
                "fields": {"text": {"number_of_fragments": 0, "require_field_match": False}},
                "highlight_query": {"match": {SEARCHED: {"query": first_words(text)}}},
                "pre_tags": [opening],
                "post_tags": [closing],
            },
        }
        found = self._indexes.search(tenant, body, _Marked, timeout_s=self._settings.search_timeout_s)
        return {
            hit.id: _marks(hit.highlight.text[0], opening, closing) for hit in found.hits.hits if hit.highlight.text
        }

    def count(self, tenant: str) -> StoreCount:
        self._indexes.refresh(tenant)
        return StoreCount(documents=self._documents(tenant), chunks=self._indexes.count(tenant, {"match_all": {}}))

    def rows(self, tenant: str, doc_ids: Collection[str] | None = None) -> Iterator[list[StoredRow]]:
        query = {"match_all": {}} if doc_ids is None else {"terms": {"doc_id": sorted(doc_ids)}}
        # From the columns that the index keeps for sorting: a row's source has its text.
        body = {"query": query, "_source": False, "docvalue_fields": _ROW_FIELDS}
        for page in self._indexes.scan(tenant, body, page=_SCAN_PAGE):
            yield [_stored_row(hit) for hit in page]

    def make_searchable(self, tenant: str) -> None:
        self._indexes.refresh(tenant)

    def tenants(self) -> list[str]:
        return self._indexes.tenants()

    def drop(self, tenant: str) -> None:
        """Delete all texts of a tenant."""
        self._indexes.drop(tenant)

    def close(self) -> None:
        """Close the connections; a later call opens them again."""
        self._connection.close()

    def _get(self, wanted: Sequence[Wanted]) -> list[Got]:
        return get_many(self._connection, wanted, timeout_s=self._settings.search_timeout_s)

    def _documents(self, tenant: str) -> int:
        """Distinct doc_ids, page by page: OpenSearch's cardinality is an estimate."""
        pages: dict[str, Any] = {"size": _DISTINCT_PAGE, "sources": [{"doc_id": {"terms": {"field": "doc_id"}}}]}
        documents = 0
        while True:
            body = {"size": 0, "aggs": {"documents": {"composite": pages}}}
            page = self._indexes.search(tenant, body, _Aggregated)
            documents += len(page.aggregations.documents.buckets)
            if page.aggregations.documents.after_key is None:
                return documents
            pages["after"] = page.aggregations.documents.after_key


def first_words(text: str) -> str:
    """The text up to its 400th word: thousands of words would be more clauses than OpenSearch takes."""
    words = 0
    for word in _word.finditer(text):
        words += 1 + len(word[0]) // _TOKEN_MAX_CHARS
        if words > QUERY_WORDS:
            return text[: word.start()]
    return text


def _marks(marked: str, opening: str, closing: str) -> list[tuple[int, int]]:
    """Where the marked words are in the text without its marks."""
    spans: list[tuple[int, int]] = []
    before, *parts = marked.split(opening)
    at = len(before)
    for part in parts:
        word, after = part.split(closing)
        spans.append((at, at + len(word)))
        at += len(word) + len(after)
    return spans


def _definition(settings: OpenSearchSettings, tenant: str) -> dict[str, Any]:
    analysed = {"type": "text", "analyzer": settings.analyzer_of(tenant)}
    # Analysed when words are marked in it, and searched in the other field alone.
    shown = analysed | {"index": False, "copy_to": SEARCHED}
    return {
        "settings": {
            "number_of_shards": 1,
            "number_of_replicas": settings.replicas,
            "refresh_interval": settings.refresh_interval,
            "similarity": {"passages": _BM25},
        },
        "mappings": {
            "dynamic": False,
            "properties": {
                "chunk_id": {"type": "keyword", "index": False},
                "doc_id": {"type": "keyword"},
                "version": {"type": "long"},
                "ordinal": {"type": "integer"},
                "content_hash": {"type": "keyword"},
                SEARCHED: analysed | {"similarity": "passages"},
                "text": shown,
                "title": shown,
                "tags": {"type": "keyword"},
                "source": {"type": "keyword"},
                "created_at_ms": {"type": "long"},
                "metadata": {"type": "object", "enabled": False},
                "metadata_terms": {"type": "keyword"},
            },
        },
    }


def _source(row: TextRow, metadata_terms: list[str]) -> _Source:
    attributes = row.attributes
    return _Source(
        chunk_id=row.id,
        doc_id=row.doc_id,
        version=row.version,
        ordinal=row.ordinal,
        content_hash=row.content_hash,
        text=row.text,
        start=row.start,
        end=row.end,
        headings=row.headings,
        title=attributes.title,
        source=attributes.source,
        source_confidence=attributes.source_confidence,
        tags=attributes.tags,
        created_at=attributes.created_at,
        metadata=attributes.metadata,
        created_at_ms=created_at_ms(attributes.created_at),
        metadata_terms=metadata_terms,
    )


def _stored_row(hit: Scanned) -> StoredRow:
    """What somebody wrote by hand may lack a field: an empty one fits nothing."""
    fields = {name: (hit.fields.get(name) or [None])[0] for name in _ROW_FIELDS}
    return StoredRow(
        id=hit.id,
        doc_id=fields["doc_id"] or "",
        version=fields["version"] or 0,
        ordinal=-1 if fields["ordinal"] is None else fields["ordinal"],
        content_hash=fields["content_hash"] or "",
    )


def _row(name: str, source: _Source) -> TextRow:
    return TextRow(
        id=name,
        doc_id=source.doc_id,
        version=source.version,
        ordinal=source.ordinal,
        content_hash=source.content_hash,
        text=source.text,
        start=source.start,
        end=source.end,
        headings=source.headings,
        attributes=Attributes(
            created_at=source.created_at,
            title=source.title,
            source=source.source,
            source_confidence=source.source_confidence,
            tags=source.tags,
            metadata=source.metadata,
        ),
    )
