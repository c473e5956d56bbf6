"""The published contract: a JSON Schema for each message type, and one AsyncAPI document of the topics that carry them.

Both are made from the message types and the topic table and from nothing else, and the same every time.
"""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from schemas import (
    Answer,
    ChunkBatch,
    Delta,
    Document,
    DocumentEvent,
    EmbeddingBatch,
    Generations,
    Query,
    Receipt,
    Settlement,
)
from schemas.document import Deletion
from schemas.key import DOC_ID_MAX_BYTES, TENANT_PATTERN
from topics.fields import ABOUT, FIELDS
from topics.table import GROUPS, TOPICS, Names, Topic

Json = dict[str, Any]

CONTRACT_VERSION = "0.1.0"
"""Of the messages, not of the program: it moves when they do."""
PARTITIONS = 12
"""What `headrace topics create` makes unless it is told otherwise."""
MESSAGES: tuple[type[msgspec.Struct], ...] = (
    Document,
    Deletion,
    ChunkBatch,
    EmbeddingBatch,
    Receipt,
    DocumentEvent,
    Settlement,
    Generations,
    Query,
    Answer,
    Delta,
)
"""What travels, in travel order."""
ASYNCAPI = "asyncapi.json"

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_KAFKA_BINDING = "0.5.0"
_REPLY_TO = "replies.requested"
_EITHER_SET = "Either set of names is understood, and the reply carries the set that came."


def json_schemas() -> dict[str, Json]:
    """The JSON Schema (2020-12) of each message type, by file name."""
    return {f"{_file_stem(message)}.schema.json": _json_schema(message) for message in MESSAGES}


def asyncapi() -> Json:
    """The AsyncAPI 3.0 document, seen from headrace: what it receives and what it sends."""
    names = Names()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "headrace",
            "version": CONTRACT_VERSION,
            "description": (
                "Documents in, cited answers out, over Kafka. Values are UTF-8 JSON. Ignore fields that you do not "
                "know: a new field always has a default, and no field changes its type. Topics and consumer groups are "
                "named as they are without a prefix of the deployment's own."
            ),
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {topic.name: _channel(topic) for topic in TOPICS} | {_REPLY_TO: _requested_replies()},
        "operations": {
            **{f"{stage}.receive.{topic.name}": _receive(stage, topic, names) for stage, topic in _reads()},
            **{f"{stage}.receive.{topic.name}": _watch(stage, topic) for stage, topic in _watches()},
            **{f"{stage}.send.{topic.name}": _send(stage, topic) for stage, topic in _writes()},
        },
        "components": {"messages": _messages(), "schemas": _components(MESSAGES, "#/components/schemas/{name}")},
    }


def export(folder: Path) -> list[Path]:
    """Write the whole contract into a folder, made if need be. Returns what it wrote;
    other files there are left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in _files().items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def drift(folder: Path) -> list[str]:
    """One line for each file that is not what `export` would write, or that it would not write;
    empty when all agree.
    """
    files = _files()
    lines = []
    for name, text in files.items():
        path = folder / name
        if not path.is_file():
            lines.append(f"{name} is missing")
        elif path.read_text(encoding="utf-8") != text:
            lines.append(f"{name} differs from the message types and the topic table")
    stray = sorted({path.name for path in folder.glob("*.json")} - set(files))
    return lines + [f"{name} is no part of the contract any more" for name in stray]


def _files() -> dict[str, str]:
    documents = json_schemas() | {ASYNCAPI: asyncapi()}
    return {name: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for name, document in documents.items()}


def _file_stem(message: type) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in message.__name__).lstrip("_")


# Schemas


def _json_schema(message: type[msgspec.Struct]) -> Json:
    definitions = _components((message,), "#/$defs/{name}")
    root = definitions.pop(message.__name__)
    schema = {"$schema": _DIALECT, "$id": f"{_file_stem(message)}.schema.json", **root}
    return schema | {"$defs": definitions} if definitions else schema


def _components(messages: tuple[type[msgspec.Struct], ...], ref_template: str) -> dict[str, Json]:
    _, components = msgspec.json.schema_components(messages, ref_template=ref_template)
    described = {struct.__name__: struct for struct in FIELDS}
    return {name: _described(described[name], components[name]) for name in sorted(components)}


def _described(struct: type[msgspec.Struct], schema: Json) -> Json:
    properties = {name: _property(struct, name, value) for name, value in schema["properties"].items()}
    required = list(schema["required"])
    if struct is Deletion:
        # Its decoder is only ever given what says "delete".
        required.append("op")
    return {
        "title": struct.__name__,
        "description": _about(struct),
        "type": "object",
        "properties": properties,
        **({"required": required} if required else {}),
    }


def _property(struct: type[msgspec.Struct], name: str, schema: Json) -> Json:
    meaning = {"description": FIELDS[struct][name]}
    if struct is Query and name == "filters":
        return meaning | _filters() | {"default": {}}
    return meaning | schema


def _about(struct: type[msgspec.Struct]) -> str:
    """The type's docstring with a paragraph a line."""
    text = inspect.cleandoc(struct.__doc__ or ABOUT[struct])
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _filters() -> Json:
    """What `headrace.stores.filters` reads; a test holds the two to each other."""
    strings = {"type": "array", "items": {"type": "string"}, "maxItems": 1000}
    value = {"type": ["string", "number", "boolean"]}
    moment = {"type": "string", "format": "date-time"}
    return {
        "type": "object",
        "properties": {
            "tags": _conditions("Any of these tags, all of them, or both conditions.", any=strings, all=strings),
            "doc_id": {"description": "One of these documents.", **strings},
            "source": {"description": "Exactly this source.", "type": "string", "minLength": 1},
            "created_at": _conditions("From `gte` up to, not including, `lt`; RFC 3339.", gte=moment, lt=moment),
        },
        "patternProperties": {
            r"^metadata\.": {
                "description": "This value of the metadata's key, one of these values, or a range.",
                "anyOf": [
                    value,
                    {"type": "array", "items": value, "maxItems": 1000},
                    _range("Numbers in this range.", {"type": "number"}),
                    _range("Strings in this range, in the order of their code points.", {"type": "string"}),
                ],
            }
        },
        "additionalProperties": False,
        "maxProperties": 100,
    }


def _conditions(description: str, **conditions: Json) -> Json:
    return {
        "description": description,
        "type": "object",
        "properties": conditions,
        "additionalProperties": False,
        "minProperties": 1,
    }


def _range(description: str, bound: Json) -> Json:
    one_a_side = [{"not": {"required": ["gte", "gt"]}}, {"not": {"required": ["lte", "lt"]}}]
    return _conditions(description, gte=bound, gt=bound, lte=bound, lt=bound) | {"allOf": one_a_side}


# Channels and operations


def _channel(topic: Topic) -> Json:
    configuration: Json = {"cleanup.policy": [topic.cleanup], "max.message.bytes": topic.max_bytes}
    if topic.cleanup == "delete":
        configuration["retention.ms"] = -1 if topic.retention_ms is None else topic.retention_ms
    if topic.retention_bytes is not None:
        configuration["retention.bytes"] = topic.retention_bytes
    if topic.ahead_ms is not None:
        configuration["message.timestamp.after.max.ms"] = topic.ahead_ms
    return {
        "address": topic.name,
        "title": topic.name,
        "summary": topic.summary,
        "description": (
            f"Written by {', '.join(topic.written_by)}; read by {', '.join((*topic.read_by, *topic.watched_by))}. "
            f"Key: {topic.key}."
        ),
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in _message_names(topic)},
        "bindings": {
            "kafka": {
                "partitions": PARTITIONS,
                "topicConfiguration": configuration,
                "bindingVersion": _KAFKA_BINDING,
            }
        },
    }


def _requested_replies() -> Json:
    return {
        "address": None,
        "title": "where the request says",
        "summary": "`replies`, or the topic that the request's headers name.",
        "description": (
            "It must be `replies` or start with `replies.`; whoever names another topic than `replies` makes it. A "
            "request that names one which isn't there gets an error on `replies`."
        ),
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in ("Answer", "Delta")},
    }


def _message_names(topic: Topic) -> tuple[str, ...]:
    if topic.message_type is None:
        return ("DeadLetter",)
    if topic.message_type is Document:
        return ("Document", "Deletion", "Tombstone")
    if topic.message_type is Answer:
        return ("Answer", "Delta")
    return (topic.message_type.__name__,)


def _reads() -> list[tuple[str, Topic]]:
    return [(stage, topic) for topic in TOPICS for stage in topic.read_by if stage in GROUPS]


def _watches() -> list[tuple[str, Topic]]:
    return [(stage, topic) for topic in TOPICS for stage in topic.watched_by]


def _writes() -> list[tuple[str, Topic]]:
    return [(stage, topic) for topic in TOPICS for stage in topic.written_by if stage in GROUPS]


def _receive(stage: str, topic: Topic, names: Names) -> Json:
    operation: Json = {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{topic.name}"},
        "summary": f"{stage} reads {topic.name}.",
        "bindings": {
            "kafka": {
                "groupId": {"type": "string", "enum": [names.group(stage)]},
                "bindingVersion": _KAFKA_BINDING,
            }
        },
    }
    if topic.message_type is Query:
        operation["reply"] = {
            "address": {
                "location": "$message.header#/kafka_replyTopic",
                "description": "Or `REPLY_TOPIC`; without either, `replies`.",
            },
            "channel": {"$ref": f"#/channels/{_REPLY_TO}"},
            "messages": [{"$ref": f"#/channels/{_REPLY_TO}/messages/{name}"} for name in ("Answer", "Delta")],
        }
    return operation


def _watch(stage: str, topic: Topic) -> Json:
    """Without a group: each worker reads all of it."""
    return {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{topic.name}"},
        "summary": f"Every worker of {stage} reads {topic.name}.",
    }


def _send(stage: str, topic: Topic) -> Json:
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{topic.name}"},
        "summary": f"{stage} writes {topic.name}.",
    }


# Messages


def _messages() -> dict[str, Json]:
    document = _document_key()
    request = _any_key("Any key, or none; the reply has the same.")
    reply = _any_key("The request's key.")
    letter: Json = {
        "type": "string",
        "description": "The letter's place in documents.dead: `partition:offset`.",
        "pattern": "^[0-9]+:[0-9]+$",
    }
    messages = {
        "Document": _message(Document, document, "A document, or a new version of one."),
        "Deletion": _message(Deletion, document, "Deletes a document; may say which version that is."),
        "Tombstone": {
            "name": "Tombstone",
            "summary": "A record without a value deletes the document; its timestamp is its version.",
            "payload": {"type": "null"},
            "bindings": _key_binding(document),
        },
        "ChunkBatch": _message(ChunkBatch, document, "Chunks of one document."),
        "EmbeddingBatch": _message(EmbeddingBatch, document, "Chunks of one document with their vectors."),
        "Receipt": _message(Receipt, document, "A store holds these chunks."),
        "DocumentEvent": _message(DocumentEvent, document, "What became of a version of a document."),
        "DeadLetter": {
            "name": "DeadLetter",
            "summary": "The original record as it came, and headers that say why it is here.",
            "contentType": "application/octet-stream",
            "headers": _dead_letter_headers(),
            "payload": {"description": "The original value, byte for byte."},
            "bindings": _key_binding(_any_key("The original key, byte for byte.")),
        },
        "Settlement": _message(Settlement, letter, "What was decided about a dead letter."),
        "Generations": _message(
            Generations,
            {"type": "string", "description": "The one record, on partition 0.", "enum": ["generations"]},
            "Which generation answers, and which one tells.",
        ),
        "Query": _message(Query, request, "A question."),
        "Answer": _message(Answer, reply, "The reply, whole."),
        "Delta": _message(Delta, reply, "A piece of a streamed answer, between its hits and its end."),
    }
    for name in ("Document", "Deletion", "Tombstone"):
        messages[name]["headers"] = {
            "type": "object",
            "properties": _trace_headers("The producer's trace, which all that follows from the record belongs to."),
        }
    for name in ("ChunkBatch", "EmbeddingBatch", "Receipt", "DocumentEvent"):
        messages[name]["headers"] = {
            "type": "object",
            "properties": _trace_headers("The document's trace."),
        }
    messages["Query"]["headers"] = _request_headers()
    for name in ("Answer", "Delta"):
        messages[name]["headers"] = _reply_headers()
    for name in ("Query", "Answer", "Delta"):
        messages[name]["correlationId"] = {
            "location": "$message.header#/kafka_correlationId",
            "description": "Or `REPLY_CORRELATION_ID`. Opaque bytes, echoed unchanged.",
        }
    return messages


def _message(message: type[msgspec.Struct], key: Json, summary: str) -> Json:
    return {
        "name": message.__name__,
        "summary": summary,
        "payload": {"$ref": f"#/components/schemas/{message.__name__}"},
        "bindings": _key_binding(key),
    }


def _key_binding(key: Json) -> Json:
    return {"kafka": {"key": key, "bindingVersion": _KAFKA_BINDING}}


def _document_key() -> Json:
    return {
        "type": "string",
        "description": (
            "`tenant/doc_id`, split at the first `/`. The doc_id is any non-empty string of at most "
            f"{DOC_ID_MAX_BYTES} bytes of UTF-8."
        ),
        "pattern": rf"^{TENANT_PATTERN}/[\s\S]+$",
    }


def _any_key(description: str) -> Json:
    return {"description": description, "type": "string", "format": "binary"}


# Headers


def _request_headers() -> Json:
    return {
        "type": "object",
        "description": (
            f"Correlation id, reply topic and partition, once for Spring Kafka, once for SmallRye. {_EITHER_SET}"
        ),
        "properties": {
            **_both_sets("kafka_correlationId", "REPLY_CORRELATION_ID", _bytes("Opaque, echoed unchanged.")),
            **_both_sets(
                "kafka_replyTopic",
                "REPLY_TOPIC",
                _text("Where to answer: `replies`, or a topic that starts with `replies.`. Default `replies`.")
                | {"pattern": r"^replies($|\..)"},
            ),
            **_both_sets(
                "kafka_replyPartition", "REPLY_PARTITION", _bytes("The partition to answer on: 4-byte big-endian int.")
            ),
            "headrace.deadline": _text("Unix milliseconds in decimal digits; a request past it is not worked on.")
            | {"pattern": "^[0-9]+$"},
            **_trace_headers("The asker's trace, which the answer belongs to."),
            "authorization": _text("Credentials. Reserved: not used by this version."),
        },
    }


def _trace_headers(whose: str) -> Json:
    return {
        "traceparent": _text(f"W3C trace context. {whose}"),
        "tracestate": _text("W3C trace context: what goes with `traceparent`; up to 512 bytes."),
    }


def _reply_headers() -> Json:
    return {
        "type": "object",
        "description": "The correlation id under the name it came under; those of a stream only on its messages.",
        "properties": {
            **_both_sets("kafka_correlationId", "REPLY_CORRELATION_ID", _bytes("The request's.")),
            "headrace.error": _text("The error's code; only where the answer is an error."),
            **_trace_headers("The request's trace, or the one that began with it."),
            "stream-id": _text("The same on all messages of one streamed answer."),
            "stream-index": _text("From 0: first the hits, then the pieces of the text, last the whole answer."),
            "stream-last-message": _text("Whether this one ends the stream.") | {"enum": ["true", "false"]},
        },
    }


def _dead_letter_headers() -> Json:
    properties = {
        "headrace.error.stage": _text("The stage that gave up."),
        "headrace.error.code": _text("The stable name of the reason."),
        "headrace.error.message": _text("The reason in words."),
        "headrace.error.attempts": _text("How many times it was tried, in decimal digits."),
        "__connect.errors.topic": _text("The original topic."),
        "__connect.errors.partition": _text("The original partition, in decimal digits."),
        "__connect.errors.offset": _text("The original offset, in decimal digits."),
        "__connect.errors.exception.class.name": _text("The class of the error."),
        "__connect.errors.exception.message": _text("The reason in words."),
        "kafka_dlt-original-topic": _text("The original topic."),
        "kafka_dlt-original-partition": _bytes("The original partition: 4-byte big-endian int."),
        "kafka_dlt-original-offset": _bytes("The original offset: 8-byte big-endian long."),
        "kafka_dlt-exception-fqcn": _text("The class of the error."),
        "kafka_dlt-exception-message": _text("The reason in words."),
    }
    batch = {"headrace.error.last_offset": _text("Of an unreadable batch alone: the last offset that can't be read.")}
    left_out = {
        "headrace.error.left_out_bytes": _text("The size of a value that is too large for this topic, and so not here.")
    }
    replays = {"headrace.replays": _text("How often it was sent again before it died here; only where it was.")}
    return {
        "type": "object",
        "description": "After the original record's own headers, which come unchanged.",
        "properties": properties | batch | left_out | replays,
        "required": list(properties),
    }


def _both_sets(spring: str, smallrye: str, schema: Json) -> Mapping[str, Json]:
    return {spring: schema, smallrye: schema}


def _text(description: str) -> Json:
    return {"type": "string", "description": description}


def _bytes(description: str) -> Json:
    return {"type": "string", "format": "binary", "description": description}
