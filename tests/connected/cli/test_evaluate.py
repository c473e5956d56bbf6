"""`headrace evaluate` from outside: its own process, real workers, a data set of a dozen documents."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from headrace.stores.opensearch import OpenSearchTextStore
from tests.conftest import Deployment

# Title, text, a question, and the words that answer it.
ARTICLES = [
    (
        "Pump 7",
        "The sluice of pump 7 is opened at six in the morning.",
        "When is the sluice opened?",
        "six in the morning",
    ),
    ("Sourdough", "A sourdough loaf bakes for forty minutes in a hot oven.", "How long does sourdough bake?", "forty"),
    ("Honey bees", "Worker bees dance to show where nectar is found.", "Why do bees dance?", "show where nectar"),
    ("Glaciers", "Glaciers carve valleys into the shape of a U.", "What shape do glaciers carve?", "shape of a U"),
    ("Violins", "The bridge of a violin is made of maple wood.", "What is a violin's bridge made of?", "maple wood"),
    ("Tides", "The moon pulls the oceans and so makes the tides.", "What makes the tides?", "moon pulls"),
    (
        "Penguins",
        "Emperor penguins keep their eggs warm on their feet.",
        "Where do penguins keep eggs?",
        "on their feet",
    ),
    (
        "Concrete",
        "Concrete hardens because cement reacts with water.",
        "Why does concrete harden?",
        "reacts with water",
    ),
    ("Chess", "A pawn that reaches the last rank becomes a queen.", "What does a pawn become?", "a queen"),
    ("Tea", "Green tea is steamed so that its leaves stay green.", "Why is green tea steamed?", "stay green"),
    ("Volcanoes", "Basalt lava flows fast because it is thin.", "Why is basalt lava fast?", "it is thin"),
    ("Silk", "Silkworms spin their cocoons from a single thread.", "What are cocoons spun from?", "single thread"),
]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of this run alone: its documents say so, and its tenant is named after them."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    folder.mkdir()
    run = uuid4().hex[:8]
    corpus = [
        {"_id": f"d{number}", "title": title, "text": f"{text} ({run})"}
        for number, (title, text, _, _) in enumerate(ARTICLES)
    ]
    (folder / "corpus.jsonl").write_text(lines(corpus))
    (folder / "queries.jsonl").write_text(
        lines(
            [
                {
                    "_id": f"q{number}",
                    "text": question,
                    "evidence": [
                        {"doc": f"d{number}", "start": text.index(answer), "end": text.index(answer) + len(answer)}
                    ],
                }
                for number, (_, text, question, answer) in enumerate(ARTICLES)
            ]
        )
    )
    judged = "".join(f"q{number}\td{number}\t1\n" for number in range(len(ARTICLES)))
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


def evaluate(pipeline: Deployment, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[bytes]:
    done = pipeline.run("evaluate", *map(str, arguments), timeout=300)
    assert done.returncode == code, done.stderr.decode() + done.stdout.decode()
    return done


def report_of(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)["report"]
    return found


def means(report: dict[str, Any], setting: str) -> dict[str, float]:
    [one] = [one for one in report["settings"] if one["setting"]["name"] == setting]
    return {name: found["interval"]["mean"] for name, found in one["measures"].items()}


def test_every_way_is_measured_and_a_second_run_publishes_nothing_again(pipeline: Deployment, dataset: Path) -> None:
    first = evaluate(pipeline, dataset)
    said = first.stdout.decode()
    for name in ("bm25", "dense", "convex", "zscore", "rrf", "default", "nDCG@10", "recall@100", "in 500 words"):
        assert name in said
    assert b"12 indexed" in first.stderr
    again = evaluate(pipeline, dataset, "--json", "-s", "bm25", "-s", "mine=zscore:0.4")
    assert b"12 unchanged" in again.stderr
    report = report_of(again)
    assert [one["setting"]["name"] for one in report["settings"]] == ["bm25", "mine"]
    assert report["questions"] == 12
    assert means(report, "bm25")["recall@100"] == 1
    assert means(report, "mine")["nDCG@10"] > 0.9
    assert means(report, "mine")["evidence@1"] > 0.9


def test_a_run_that_is_worse_than_the_saved_one_fails(pipeline: Deployment, dataset: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    evaluate(pipeline, dataset, "-s", "mine=convex:0.5", "--save", saved)
    same = evaluate(pipeline, dataset, "-s", "mine=convex:0.5", "--baseline", saved, "--json")
    assert all(change["by"]["mean"] == 0 for change in json.loads(same.stdout)["comparison"]["changes"])

    # The same texts and judgements, asked worse: what every question is about is gone from it.
    worse = tmp_path / "worse"
    shutil.copytree(dataset, worse)
    vague = [
        json.loads(line) | {"text": "Who was it?"} for line in (dataset / "queries.jsonl").read_text().splitlines()
    ]
    (worse / "queries.jsonl").write_text(lines(vague))
    fallen = evaluate(pipeline, worse, "-s", "mine=convex:0.5", "--baseline", saved, code=1)
    assert b"mine: nDCG@10 fell from" in fallen.stderr
    assert b"fell" in fallen.stdout


def test_another_data_sets_baseline_is_refused(pipeline: Deployment, dataset: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    evaluate(pipeline, dataset, "-s", "bm25", "--limit-queries", "1", "--save", saved)
    other = tmp_path / "other"
    shutil.copytree(dataset, other)
    with (other / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "more", "text": "Another document."}\n')
    refused = evaluate(pipeline, other, "--baseline", saved, code=2)
    assert b"--baseline" in refused.stderr


def test_ones_own_judgements_are_asked_of_what_is_published(
    pipeline: Deployment, dataset: Path, tmp_path: Path
) -> None:
    tenant = f"own-{uuid4().hex[:8]}"
    published = pipeline.run("publish", str(_published(dataset, tmp_path)), "-t", tenant, "--wait", timeout=300)
    assert published.returncode == 0, published.stderr.decode()
    file = tmp_path / "judgements.jsonl"
    rows = [
        {"query": ARTICLES[0][2], "doc_ids": ["d0"]},
        {"query": ARTICLES[1][2], "evidence": [{"doc_id": "d1", "start": 0, "end": 20}]},
    ]
    file.write_text(lines(rows))
    done = evaluate(pipeline, "--judgements", file, "-t", tenant, "--json", "-s", "bm25")
    assert means(report_of(done), "bm25")["nDCG@10"] == 1
    assert means(report_of(done), "bm25")["evidence@1"] == 1
    assert report_of(done)["documents"] == f"tenant {tenant}"


def _published(dataset: Path, folder: Path) -> Path:
    """As `headrace publish` takes it."""
    file = folder / "published.jsonl"
    rows = [json.loads(line) for line in (dataset / "corpus.jsonl").read_text().splitlines()]
    file.write_text(lines([{"id": row["_id"], "title": row["title"], "text": row["text"]} for row in rows]))
    return file


def test_delete_takes_the_published_documents_away(pipeline: Deployment, dataset: Path, tmp_path: Path) -> None:
    once = tmp_path / "once"
    shutil.copytree(dataset, once)
    (once / "corpus.jsonl").write_text((dataset / "corpus.jsonl").read_text().replace("Pump 7", "Pump 8"))
    evaluate(pipeline, once, "-s", "bm25", "--limit-queries", "2", "--delete")
    texts = OpenSearchTextStore(pipeline.settings.stores)
    left = {tenant: texts.count(tenant).documents for tenant in texts.tenants() if tenant.startswith("eval-once-")}
    texts.close()
    assert list(left.values()) == [0]


def test_a_question_that_needs_what_is_not_there_fails_the_run(pipeline: Deployment, dataset: Path) -> None:
    done = evaluate(pipeline, dataset, "-s", "convex+rerank", "--limit-queries", "2", code=1)
    assert b"2 of 2 questions were not answered as they should be: 2 x answered without rerank" in done.stderr


def test_tuning_looks_at_one_half_and_reports_on_the_other(pipeline: Deployment, dataset: Path) -> None:
    done = evaluate(pipeline, dataset, "--sweep", "--json")
    told = json.loads(done.stdout)
    tuned, report = told["tuned"], told["report"]
    assert tuned["measure"] == "evidence@10"
    assert tuned["passages"] == 1
    assert {trial["chunking"] for trial in tuned["trials"]} == {"fixed 256/64", "fixed 128/32", "fixed 192/48"}
    assert [one["setting"]["name"] for one in report["settings"]] == ["default", "tuned"]
    assert 0 < report["questions"] < 12


def test_the_threshold_for_i_dont_know_is_tuned_on_questions_that_nothing_answers(
    pipeline: Deployment, dataset: Path, tmp_path: Path
) -> None:
    others = tmp_path / "unanswerable.txt"
    others.write_text(
        "Who won the football world cup in 1998?\nHow does a mortgage work?\nHow old is the universe?\n"
        "Who painted the Mona Lisa?\nHow do I install Python on Windows?\nWhat is the tax rate in Germany?\n"
    )
    saved = tmp_path / "saved.json"
    done = evaluate(pipeline, dataset, "-s", "default", "--unanswerable", others, "--save", saved)
    relevance = json.loads(saved.read_bytes())["relevance"]
    recommended = relevance["recommended"]
    assert f"Recommended: HEADRACE_LLM__MIN_RELEVANCE={recommended:.2f}," in done.stdout.decode()
    counts = relevance["tuned_on"], relevance["reported_on"]
    assert sum(one["answerable"] for one in counts) == 12
    assert sum(one["unanswerable"] for one in counts) == 6
    shares = {one["threshold"]: (one["answered"]["mean"], one["unknown"]["mean"]) for one in relevance["thresholds"]}
    # Real vectors tell these apart; only the ends are sure whatever half a question falls into.
    assert sum(shares[recommended]) > 1.5
    assert shares[0.1][0] == 1
    again = evaluate(pipeline, dataset, "-s", "default", "--unanswerable", others, "--json")
    assert report_of(again)["relevance"] == relevance

    few = tmp_path / "few.jsonl"
    few.write_text('{"query": "Who painted the Mona Lisa?"}\n')
    refused = evaluate(pipeline, dataset, "--unanswerable", few, code=2)
    assert b"too few questions" in refused.stderr


def test_a_broken_data_set_is_told_with_its_line(pipeline: Deployment, dataset: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(dataset, broken)
    with (broken / "qrels.tsv").open("a") as file:
        file.write("q1\tnowhere\t1\n")
    done = evaluate(pipeline, broken, code=1)
    told = f"headrace: {broken / 'qrels.tsv'}:14: names the document 'nowhere', which is not there\n"
    assert done.stderr.decode() == told
