"""headrace, LlamaIndex, Haystack and Quix Streams with the same documents, encoder and stores: documents a second.

Each round publishes the documents to headrace's own workers, then runs each peer with them in a process and an
environment of its own (made from its lock in the first run), one after the other. The encoder is the static one, so
what is compared is everything around the model.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from opensearchpy import OpenSearch
from pymilvus import MilvusClient

from bench import report, text
from bench.deployment import STATIC, Deployment, Silent, deployment
from bench.peers.environments import HERE, NoEnvironment, interpreter
from bench.report import Options, Report, Table, Target, spread
from headrace import wiring
from headrace.cli.publishing import Outgoing, Tally, publish
from headrace.config import Settings
from schemas import Document, Key, encode
from topics.table import DOCUMENT_STAGES

NAME = "peers"
HEADRACE = "headrace"
PEERS = {"llama_index": "LlamaIndex", "haystack": "Haystack", "quix_streams": "Quix Streams"}
DOCUMENTS, QUICK_DOCUMENTS = 4_000, 300
ROUNDS = 3
JOINED = 12
CHANGED = Document(title="Pump 7", text="It has been taken away.")
"""The new version of what was long before: as many documents, joined."""
IDLE_S = 120.0
PEER_WITHIN_S = 300.0
WANTED = 2.0
NOTES = [
    """headrace's time is from the first record to the last `indexed` event, when everything is searchable; a peer's is
    from the first document to the return of its last write. All write to the same Milvus (FLAT, cosine) and OpenSearch
    (one shard, no replica, English analyzer), on the same cores as the servers, whose CPU seconds are not counted.""",
    """LlamaIndex and Haystack are given their documents in memory, in one run, and read no Kafka. Quix Streams reads
    the records that headrace has just read, from the same topic, which is full when it starts.""",
    """LlamaIndex: SentenceSplitter, a transformation that writes texts to OpenSearch in bulk, embeddings of 64 at once,
    MilvusVectorStore of 1,000 at once, SimpleDocumentStore with upserts, its own cache on. Haystack: DocumentSplitter
    by words, an embedder of 64 at once, a DocumentWriter for each store, which overwrites; its OpenSearch store waits
    for a refresh after every 500 rows, which its writer can't be told to leave. Quix Streams: a function that cuts and
    embeds a document, checkpoints every 5 s, as it does by itself, and a BatchingSink for each store.""",
    """None of the peers' applications has versions: what a changed document leaves behind is in the second table. The
    Milvus stores of LlamaIndex and Haystack hold the texts too.""",
]


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """Rows in Milvus and in OpenSearch."""

    vectors: int
    texts: int


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """One pipeline in one round."""

    seconds: float
    cpu_s: float
    """Of its own processes, the servers not counted."""
    chunks: int
    versions: dict[str, str] = {}
    left: Left | None = None
    """Of the document that has one chunk in its new version."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--documents", type=int, help=f"in each round; {DOCUMENTS:,} by themselves")
    parser.add_argument("--peer", action="append", choices=PEERS, help="this one alone; may be given again")


def run(options: Options) -> Report:
    pythons, skipped = _environments(options.peer or list(PEERS))
    count = options.documents or (QUICK_DOCUMENTS if options.quick else DOCUMENTS)
    rounds = options.rounds or (1 if options.quick else ROUNDS)
    runs: dict[str, list[Ran]] = {name: [] for name in (HEADRACE, *pythons)}
    documents = [text.document(number) for number in range(count)]
    long = Document(title=CHANGED.title, text="\n\n".join(document.text for document in documents[:JOINED]))
    with deployment(STATIC) as deployed, _group(deployed.settings) as group:
        for number in range(rounds):
            # Under other ids in each round: what hasn't changed would be skipped.
            given = [(f"{number}-{place}", document) for place, document in enumerate(documents)]
            given = [(f"changed-{number}", long), *given, (f"changed-{number}", CHANGED)]
            runs[HEADRACE].append(_headrace(deployed, given))
            for peer, python in pythons.items():
                runs[peer].append(_peer(deployed, given, peer, python, group))
    characters = sum(len(document.text) for document in documents)
    ratios = {
        peer: [theirs.seconds / ours.seconds for ours, theirs in zip(runs[HEADRACE], runs[peer], strict=True)]
        for peer in pythons
    }
    return Report(
        name=NAME,
        what="The same documents, static encoder and stores through headrace and through its peers.",
        tables=[_rates(runs, ratios, count, characters), _leftovers(runs)],
        figures={"documents": count, "characters": characters, "rounds": runs, "ratios": ratios},
        targets=[
            Target(f"documents/s, headrace / {PEERS[peer]}", "at least", WANTED, spread(ratio).median)
            for peer, ratio in ratios.items()
        ],
        notes=[
            *(f"{PEERS[peer]}: {_versions(runs[peer][-1])}." for peer in pythons),
            *(f"{PEERS[peer]} was left out: {why}" for peer, why in skipped.items()),
            *(" ".join(note.split()) for note in NOTES),
        ],
    )


def _environments(peers: Sequence[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """The Pythons of those that have an environment, and why the others have none."""
    pythons: dict[str, Path] = {}
    skipped: dict[str, str] = {}
    for peer in peers:
        try:
            pythons[peer] = interpreter(peer)
        except NoEnvironment as why:
            skipped[peer] = str(why)
    return pythons, skipped


def _headrace(deployed: Deployment, documents: list[tuple[str, Document]]) -> Ran:
    deployed.start(DOCUMENT_STAGES)
    deployed.wait(DOCUMENT_STAGES)
    first, *others, changed = documents
    _publish(deployed, [first])
    cpu_before = deployed.cpu_seconds()
    tally = _publish(deployed, others)
    cpu_s = deployed.cpu_seconds() - cpu_before
    _publish(deployed, [changed])
    deployed.stop()
    settings, (doc_id, _) = deployed.settings, first
    texts, vectors = wiring.build_texts(settings), wiring.build_vectors(settings)
    left = Left(
        vectors=sum(map(len, vectors.rows(text.TENANT, [doc_id]))),
        texts=sum(map(len, texts.rows(text.TENANT, [doc_id]))),
    )
    texts.close()
    return Ran(seconds=tally.seconds, cpu_s=cpu_s, chunks=tally.chunks, left=left)


def _publish(deployed: Deployment, documents: list[tuple[str, Document]]) -> Tally:
    records = [
        Outgoing(where=doc_id, key=Key(text.TENANT, doc_id), value=encode(document)) for doc_id, document in documents
    ]
    tally = publish(records, deployed.settings.kafka, Silent(), wait_s=IDLE_S)
    if tally.outcomes["indexed"] != len(records):
        sys.exit(f"not every document was indexed: {tally.outcomes}")
    return tally


def _peer(deployed: Deployment, documents: list[tuple[str, Document]], peer: str, python: Path, group: str) -> Ran:
    settings = deployed.settings
    name = f"{settings.stores.prefix}{peer}"
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as lines:
        for doc_id, document in documents:
            lines.write(json.dumps({"id": doc_id, "title": document.title, "text": document.text}) + "\n")
        lines.flush()
        job = {  # As bench/peers/job.py reads it.
            "documents": lines.name,
            "count": len(documents),
            "milvus": settings.stores.milvus.uri,
            "opensearch": settings.stores.opensearch.url,
            "name": name,
            "max_tokens": settings.chunking.max_tokens,
            "overlap_tokens": settings.chunking.overlap_tokens,
            "kafka": settings.kafka.bootstrap_servers,
            "topic": settings.kafka.names.topic("documents.raw"),
            "group": group,
        }
        command = [str(python), str(HERE / f"with_{peer}.py"), json.dumps(job)]
        ended = subprocess.run(
            command, cwd=deployed.folder, capture_output=True, text=True, timeout=PEER_WITHIN_S, check=False
        )
    if ended.returncode:
        sys.exit(f"{PEERS[peer]} failed:\n{ended.stderr[-3000:]}")
    ran = msgspec.json.decode(ended.stdout.splitlines()[-1], type=Ran)
    stored, left = _taken_away(settings, name, documents[0][0])
    if stored != Left(vectors=ran.chunks, texts=ran.chunks):
        sys.exit(f"{PEERS[peer]} told of {ran.chunks} chunks, and stored {stored}")
    return msgspec.structs.replace(ran, left=left)


def _taken_away(settings: Settings, name: str, doc_id: str) -> tuple[Left, Left]:
    """What a peer has stored of the other documents, and of this one; the collection and the index are deleted."""
    milvus = MilvusClient(settings.stores.milvus.uri)

    def vectors(condition: str) -> int:
        found = milvus.query(name, filter=condition, output_fields=["count(*)"], consistency_level="Strong")
        return int(found[0]["count(*)"])

    with OpenSearch(settings.stores.opensearch.url, timeout=60) as opensearch:
        opensearch.indices.refresh(index=name)
        texts = opensearch.count(index=name)["count"]
        texts_left = opensearch.count(index=name, body={"query": {"term": {"doc_id": doc_id}}})["count"]
        opensearch.indices.delete(index=name)
    stored = Left(vectors=vectors(f'doc_id != "{doc_id}"'), texts=texts - texts_left)
    left = Left(vectors=vectors(f'doc_id == "{doc_id}"'), texts=texts_left)
    milvus.drop_collection(name)
    return stored, left


@contextmanager
def _group(settings: Settings) -> Iterator[str]:
    """Of the peer that reads Kafka. It remembers what was read in the rounds before, and goes at the end."""
    group = f"{settings.kafka.group_prefix}peer"
    try:
        yield group
    finally:
        admin = AdminClient(settings.kafka.confluent())
        for future in admin.delete_consumer_groups([group]).values():
            with suppress(KafkaException):  # Nobody may have read anything.
                future.result()


def _rates(runs: dict[str, list[Ran]], ratios: dict[str, list[float]], count: int, characters: int) -> Table:
    rows = []
    for name, ran in runs.items():
        chunk_ratios = [
            ours.chunks / ours.seconds / (theirs.chunks / theirs.seconds)
            for ours, theirs in zip(runs[HEADRACE], ran, strict=True)
        ]
        rows.append(
            [
                PEERS.get(name, name),
                f"{ran[-1].chunks:,}",
                spread([one.seconds for one in ran]).text(1),
                spread([one.cpu_s for one in ran]).text(1),
                spread([count / one.seconds for one in ran]).text(0),
                spread([one.chunks / one.seconds for one in ran]).text(0),
                spread(ratios[name]).text() if name in ratios else "",
                spread(chunk_ratios).text() if name in ratios else "",
            ]
        )
    return Table(
        f"{count:,} documents, {characters / 1e6:.1f} MB of text",
        ["", "chunks", "seconds", "CPU s", "documents/s", "chunks/s", "headrace / it", "by chunks"],
        rows,
    )


def _versions(ran: Ran) -> str:
    return ", ".join(f"{package} {number}" for package, number in ran.versions.items())


def _leftovers(runs: dict[str, list[Ran]]) -> Table:
    rows = [
        [PEERS.get(name, name), str(ran[-1].left.vectors), str(ran[-1].left.texts)]
        for name, ran in runs.items()
        if ran[-1].left is not None
    ]
    return Table("What is stored of a long document after it became a sentence", ["", "vectors", "texts"], rows)


if __name__ == "__main__":
    report.main(NAME, __doc__, run, arguments)
