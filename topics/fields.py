"""What every field of the published messages means, in the words that readers of the schemas see.

They stand here and not beside the fields so that the message types stay as short as the messages. A test holds this
table and the types to each other: a field without a meaning, and a meaning without a field, fail it.
"""

import msgspec

from schemas import (
    Answer,
    AnswerError,
    AnswerText,
    Attributes,
    Chunk,
    ChunkBatch,
    Chunking,
    Citation,
    Delta,
    Document,
    DocumentEvent,
    EmbeddingBatch,
    EventError,
    Explanation,
    Fusion,
    GenerationInfo,
    Generations,
    Highlight,
    Hit,
    HitScores,
    Passage,
    Query,
    Receipt,
    Replaced,
    Revision,
    Settlement,
    Usage,
)
from schemas.document import Deletion

_DOC_ID = "The document's name within its tenant: 1 to 512 bytes of UTF-8."
_TENANT = "Whose document it is; `default` for those who have no tenants."
_VERSION = (
    "A higher version wins, whatever order they arrive in. An integer of 64 bits, written without a decimal point. "
    "Without it the record's timestamp in Unix milliseconds is the version."
)
_START = "Where the passage begins: characters (Unicode code points) into the document's text as it was sent."
_END = "Where the passage ends: the offset of the character after its last one."
_TITLE = "The document's title."
_SOURCE = "Where the document came from, usually a URI."
_CONFIDENCE = "The producer's confidence in the source, from 0 to 1."
_TAGS = "The document's tags."
_METADATA = "The document's metadata."
_REVISION = "The version of the document, as it is processed."
_PUBLISHED = (
    "The timestamp of the document's record, in Unix milliseconds, where freshness is measured from it. Null where "
    "that would say nothing: a record that was a day old when it was first read, or a dead letter that was replayed."
)
_BATCH = {
    "tenant": _TENANT,
    "doc_id": _DOC_ID,
    "revision": _REVISION,
    "total": "How many chunks the whole version has.",
    "first": "The ordinal of this batch's first chunk.",
    "attributes": "What the document says of itself beside its text.",
    "chunks": "Consecutive chunks, in order.",
    "deleted": "This version is the end of the document.",
    "published": _PUBLISHED,
}

ABOUT: dict[type[msgspec.Struct], str] = {
    Query: (
        "A question of an app, on the topic `queries`; its headers say where the reply goes and how it is recognised."
    ),
    AnswerText: "The answer in words, each statement of it cited.",
    AnswerError: "Why there is no answer. The reply's header `headrace.error` holds the same code.",
}
"""What types are that say nothing themselves."""

FIELDS: dict[type[msgspec.Struct], dict[str, str]] = {
    Document: {
        "text": "The content.",
        "op": "What the record does. A document is an upsert; see Deletion for `delete`.",
        "doc_id": "The record's key names the document; where this is given too, it must agree with the key.",
        "tenant": "The record's key names the tenant; where this is given too, it must agree with the key.",
        "title": "Indexed for keyword search, and shown in citations.",
        "content_type": "How the text is to be read.",
        "source": f"{_SOURCE} Filterable; at most 8 KiB.",
        "source_confidence": f"{_CONFIDENCE} Carried through to the hits.",
        "created_at": "RFC 3339 with an offset or `Z`; filterable. Without it: the record's timestamp.",
        "tags": "Filterable. At most 1000, each of at most 512 bytes.",
        "metadata": (
            "Filterable as `metadata.<key>`: strings, numbers, booleans, lists of strings. Title, source, tags and "
            "metadata together may take 64 KiB."
        ),
        "version": _VERSION,
        "chunking": "How this document is cut; null for the deployment's way.",
    },
    Deletion: {
        "op": "Always `delete`. Without it the record is read as a document, which needs a text.",
        "doc_id": "The record's key names the document; where this is given too, it must agree with the key.",
        "tenant": "The record's key names the tenant; where this is given too, it must agree with the key.",
        "version": _VERSION,
    },
    Chunking: {
        "strategy": "A fixed window of tokens, whole sentences, or along the document's headings.",
        "max_tokens": "The largest chunk, in the encoder's tokens, its special tokens included.",
        "overlap_tokens": "What neighbouring chunks share; more than half of `max_tokens` counts as a quarter.",
    },
    Revision: {
        "version": "What the producer named, or the record's timestamp in Unix milliseconds.",
        "timestamp": "The record's timestamp in Unix milliseconds; orders equal versions.",
        "offset": "The record's offset; orders equal versions of one timestamp.",
        "fingerprint": "Covers the text, what describes it, and how it is chunked and encoded.",
    },
    Attributes: {
        "created_at": "RFC 3339.",
        "title": _TITLE,
        "source": _SOURCE,
        "source_confidence": _CONFIDENCE,
        "tags": _TAGS,
        "metadata": _METADATA,
    },
    Chunk: {
        "ordinal": "The chunk's place in its document, from 0.",
        "text": "The passage.",
        "start": _START,
        "end": _END,
        "tokens": "Its length in the encoder's tokens, the special tokens included.",
        "headings": "The headings it stands under, outermost first.",
    },
    ChunkBatch: _BATCH
    | {
        "replaces": (
            "The version that was live when this one was let in: a chunk that both have need not be embedded again. "
            "Null where there was none. A hint: it may be gone by now."
        ),
    },
    Replaced: {
        "revision": "Which version that is.",
        "chunks": "How many chunks it has.",
    },
    EmbeddingBatch: _BATCH
    | {
        "encoder": "The model that made the vectors.",
        "dimension": "Numbers in a vector.",
        "vectors": "Base64 of the vectors of `chunks`, one after another, each `dimension` little-endian float32.",
    },
    Receipt: {
        "tenant": _TENANT,
        "doc_id": _DOC_ID,
        "revision": _REVISION,
        "store": "Which store holds the rows.",
        "total": "How many chunks the whole version has.",
        "first": "The ordinal of the first chunk that this receipt is for.",
        "count": "How many chunks it is for.",
        "deleted": "This version is the end of the document.",
        "published": _PUBLISHED,
        "urgent": "Whether they came on the fast path.",
    },
    DocumentEvent: {
        "status": (
            "`indexed`: queries see this version now. `deleted`: the document is gone. `unchanged`: the live version "
            "has the same content. `superseded`: a newer version came first. `failed`: it is in `documents.dead`."
        ),
        "stage": "The stage that says so.",
        "at": "When, RFC 3339.",
        "doc_id": f"{_DOC_ID} Null where the record's key can't be read.",
        "tenant": f"{_TENANT} Null where the record's key can't be read.",
        "version": "The version that the event is about. Null where the record can't be read.",
        "chunks": "How many chunks the version has, where that is known.",
        "error": "Why it failed; null for every other status.",
    },
    EventError: {
        "code": "The stable name of the reason, the same as the dead letter's `headrace.error.code`.",
        "message": "The reason in words.",
    },
    Settlement: {
        "action": (
            "`replayed`: sent again to the topic it came from. `parked`: kept for later. `dropped`: not wanted any "
            "more. `reopened`: open again."
        ),
        "at": "When, RFC 3339.",
        "run": "The run of `headrace dead` that decided it.",
        "reason": "Why, in words; null where nobody said.",
    },
    Generations: {
        "live": "The generation that questions are answered from. The first one's name is empty.",
        "telling": "The generation whose events and dead letters everybody sees; null, for some seconds, for none.",
        "held": "Generations whose `commit` begins no batch.",
        "known": "The generations that there are, by name; the first one is here only beside others.",
        "highest": "The highest number that any generation has had; a number is not given again.",
        "previous": "The generation that was live before; null where there was none.",
        "target": "The generation that is made, or gone over to; null when nothing is under way.",
        "lease_s": "For how many seconds a worker goes by this record after it has asked for it.",
        "phase": "How far `headrace reindex` has got; `done` when nothing is under way.",
        "marks": (
            "Offsets, by topic and partition: what of the new generation's own events and dead letters is still to be "
            "told lies at or after them."
        ),
    },
    GenerationInfo: {
        "encoder": "The settings of the encoder that made its vectors, without secrets.",
        "since": "When it was begun, RFC 3339.",
        "state": "What is to be said of it, in words.",
    },
    Query: {
        "query": "The question, or what to look for.",
        "tenant": "Whose documents are searched.",
        "mode": "`search` for hits alone, `answer` for hits and an answer in words.",
        "top_k": "How many hits at most.",
        "filters": "Conditions that every hit meets, combined with AND.",
        "fusion": "How the hits of the two searchers become one list; null for the deployment's choice.",
        "rerank": "Whether a reranker orders the hits once more; null for the deployment's choice.",
        "expand": "How many neighbours on each side a hit's `passage` has; 0 for no passage.",
        "max_per_document": "Hits of one document at most; null for no such bound.",
        "highlight": "Whether hits say where the question's words are in them.",
        "explain": "Whether hits say how they came to their places.",
        "stream": "Whether the answer comes in pieces, as it is written.",
        "request_id": (
            "Any text; it comes back in the answer. The same text again, with the same query, gets the same answer for "
            "a while without the work being done twice."
        ),
    },
    Fusion: {
        "method": (
            "A convex combination of scores normalised by least and greatest (`convex`) or by mean and deviation "
            "(`zscore`), or reciprocal rank fusion (`rrf`)."
        ),
        "alpha": "The weight of the dense scores, from 0 to 1; not used by `rrf`.",
    },
    Answer: {
        "request_id": "The query's.",
        "hits": "The passages that were found, best first.",
        "answer": "The answer in words; null for a search and for an error.",
        "degraded": "What the answer had to do without; empty when all was well.",
        "timings_ms": "Milliseconds, by step.",
        "error": "Why there is no answer; null when there is one.",
    },
    AnswerText: {
        "text": "The answer, with the citations' markers in it.",
        "citations": "What the answer rests on.",
        "model": "What wrote the answer.",
        "known": "False where nothing relevant was found: the text says so, and cites nothing.",
        "usage": "What a language model read and wrote for it; null without one.",
    },
    Usage: {
        "input_tokens": "Tokens that the model read.",
        "output_tokens": "Tokens that it wrote.",
        "cost": "In the currency of the deployment's prices; null where it has none.",
    },
    Citation: {
        "marker": "As it stands in the answer's text.",
        "chunk_id": "The hit that is cited.",
        "doc_id": _DOC_ID,
        "start": _START,
        "end": _END,
    },
    AnswerError: {
        "code": "The stable name of the reason.",
        "message": "The reason in words.",
        "retry_after_ms": "When to try again; null where trying again is of no use or nobody can tell.",
    },
    Hit: {
        "rank": "Its place among the hits, from 1.",
        "score": "What the hits are ordered by; to be compared within one answer only.",
        "doc_id": _DOC_ID,
        "chunk_id": "The passage's name: the same for the same version of the document, never for another.",
        "ordinal": "The passage's place in its document, from 0.",
        "version": "The document's version that the passage is of.",
        "text": "The passage: for plain text exactly the document's text from `start` to `end`.",
        "start": _START,
        "end": _END,
        "title": _TITLE,
        "source": _SOURCE,
        "source_confidence": _CONFIDENCE,
        "tags": _TAGS,
        "metadata": _METADATA,
        "scores": "Where the score comes from.",
        "passage": "The hit with its neighbours, where the query asks for them.",
        "highlights": "Where the question's words are in `text`, where the query asks for it.",
        "explanation": "How the hit came to its place, where the query asks for it.",
    },
    Passage: {
        "text": "The hit's text and its neighbours', without what they overlap in.",
        "start": _START,
        "end": _END,
        "chunk_ids": "The chunks that it is made of, in the document's order.",
    },
    Highlight: {
        "start": "The first character, counted in the hit's `text`.",
        "end": "The character after the last.",
    },
    Explanation: {
        "dense_rank": "Its place in the vector search, from 1; null where it was not found there.",
        "bm25_rank": "Its place in the keyword search.",
        "dense": "The vector search's score as the fusion took it.",
        "bm25": "The keyword search's score as the fusion took it.",
        "fused": "The fused score.",
        "fused_rank": "Its place by the fused score.",
        "rerank": "The reranker's score as it was blended.",
        "rerank_rank": "Its place by the reranker alone.",
    },
    HitScores: {
        "dense": "Cosine similarity of the question's vector and the passage's.",
        "bm25": "The keyword score.",
        "rerank": "The reranker's score.",
    },
    Delta: {"delta": "The next piece of the answer's text."},
}
