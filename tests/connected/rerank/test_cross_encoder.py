"""The real class with a real model: a tiny BERT that learned here to look for the question's word in the passage."""

import random
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from headrace import wiring
from headrace.config import load_settings
from headrace.errors import Misconfigured
from headrace.rerank import Reranker, RerankSettings
from headrace.rerank.cross_encoder import CrossEncoderReranker
from headrace.retrieval import Found, Retriever
from headrace.retrieval.settings import RetrievalSettings
from headrace.stores import Stored, TextRow, VectorRow
from schemas import Attributes, Key, Live, Manifest, Query, Revision, chunk_id, revision_id
from tests.fakes.encoder import FakeEncoder
from tests.fakes.stores import FakeTextStore, FakeVectorStore

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WORDS = [
    *("water", "wheel", "mill", "corn", "sail", "wind", "bread", "oven"),
    *("dog", "cat", "river", "stone", "iron", "fire", "road", "ship"),
]
WIDTH, POSITIONS, BATCH = 32, 32, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As sentence-transformers writes a cross-encoder."""
    made = tmp_path_factory.mktemp("cross-encoder")
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = BertTokenizer(vocab=vocabulary)
    trained(tokenizer, labels=1).save_pretrained(made / "trained")
    tokenizer.save_pretrained(made / "trained")
    CrossEncoder(str(made / "trained"), device="cpu").save_pretrained(str(made / "saved"))
    return made / "saved"


def trained(tokenizer: BertTokenizer, labels: int) -> BertForSequenceClassification:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Tensors this small are not worth a second one.
    try:
        for seed in range(5):
            chance = random.Random(seed)
            torch.manual_seed(seed)
            model = untrained(len(tokenizer), labels)
            steps = torch.optim.AdamW(model.parameters(), lr=1e-3)
            for _ in range(600):
                questions, passages, wanted = zip(*(example(chance) for _ in range(BATCH)), strict=True)
                read = tokenizer(list(questions), list(passages), padding=True, return_tensors="pt")
                loss = torch.nn.functional.binary_cross_entropy_with_logits(
                    model(**read).logits[:, 0], torch.tensor(wanted)
                )
                if loss.item() < 0.03:
                    return model
                steps.zero_grad()
                loss.backward()
                steps.step()
    finally:
        torch.set_num_threads(threads)
    raise AssertionError("it learned nothing")


def untrained(words: int, labels: int) -> BertForSequenceClassification:
    """Its first layer looks for the same word again, so that there is little to learn."""
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=words,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=1,
            max_position_embeddings=POSITIONS,
            num_labels=labels,
            hidden_dropout_prob=0,
            attention_probs_dropout_prob=0,
        )
    )
    with torch.no_grad():
        embeddings, attention = model.bert.embeddings, model.bert.encoder.layer[0].attention.self
        torch.nn.init.orthogonal_(embeddings.word_embeddings.weight)
        embeddings.position_embeddings.weight.zero_()
        embeddings.token_type_embeddings.weight.mul_(5)
        for part in (attention.query, attention.key):
            part.weight.copy_(torch.eye(WIDTH))
    return model


def example(chance: random.Random) -> tuple[str, str, float]:
    question, passage = chance.choice(WORDS), chance.sample(WORDS, chance.randint(2, 6))
    if chance.random() < 0.5:
        passage = [word for word in passage if word != question]
    elif question not in passage:
        passage[chance.randrange(len(passage))] = question
    return question, " ".join(passage), float(question in passage)


@pytest.fixture(scope="module")
def reranker(folder: Path) -> CrossEncoderReranker:
    return CrossEncoderReranker(RerankSettings(enabled=True, model=str(folder), device="cpu", batch_size=4))


def test_it_is_a_reranker_that_prefers_what_answers_the_question(reranker: CrossEncoderReranker) -> None:
    port: Reranker = reranker
    chance = random.Random("not seen in training")
    for question in WORDS:
        other = [word for word in WORDS if word != question]
        without = [" ".join(chance.sample(other, 4)) for _ in range(3)]
        scores = port.score([(question, passage) for passage in [*without, f"{without[0]} {question}"]])
        assert (scores.dtype, scores.shape) == (np.float32, (4,))
        assert scores.argmax() == 3


def test_scores_are_the_models_own_before_they_are_squeezed(reranker: CrossEncoderReranker, folder: Path) -> None:
    pairs = [
        ("water", "the wheel"),
        ("water", "water"),
        ("mill", "corn mill dog"),
        ("mill", "cat"),
        ("cat", "oven cat"),
    ]
    squeezed = CrossEncoder(str(folder), device="cpu").predict(pairs, show_progress_bar=False)
    assert 1 / (1 + np.exp(-reranker.score(pairs))) == pytest.approx(squeezed, abs=1e-5)
    assert reranker.score(pairs).max() > 1


def test_a_passage_that_is_too_long_is_cut_at_its_end(reranker: CrossEncoderReranker) -> None:
    within, beyond = reranker.score([("water", "water " + "corn " * 500), ("water", "corn " * 500 + "water")])
    assert within > beyond


def test_nothing_to_score_is_an_empty_array(reranker: CrossEncoderReranker) -> None:
    assert reranker.score([]).shape == (0,)


async def test_it_reorders_the_hits_of_a_search(reranker: CrossEncoderReranker) -> None:
    passages = ["corn mill bread", "dog cat road", "iron river stone", "ship sail wind"]
    retriever = searching(passages, reranker, candidates=3)
    first = await found(retriever, "river", rerank=False)
    reranked = await found(retriever, "river", rerank=None)
    assert [hit.text for hit in first.hits] == passages
    assert [hit.text for hit in reranked.hits] == [passages[2], passages[0], passages[1], passages[3]]
    assert reranked.degraded == []
    scores = {hit.text: hit.scores.rerank for hit in reranked.hits}
    assert scores[passages[3]] is None, "beyond the candidates"
    assert scores[passages[2]] > scores[passages[0]]


def searching(passages: list[str], reranker: Reranker, *, candidates: int) -> Retriever:
    """Vectors find the passages in the order given; words find nothing."""
    vectors, texts = FakeVectorStore(), FakeTextStore()
    revision = Revision(version=1, timestamp=1, offset=1, fingerprint="f")
    asked = FakeEncoder().vector("river")
    away = np.roll(asked, 1)
    for place, passage in enumerate(passages):
        key = Key("t", f"d{place}")
        shared = {
            "id": chunk_id(revision_id(key, revision), 0),
            "doc_id": key.doc_id,
            "version": 1,
            "ordinal": 0,
            "content_hash": "h",
            "attributes": Attributes(created_at=NOW),
        }
        vectors.upsert("t", [VectorRow(**shared, vector=asked + place * away)])
        texts.upsert("t", [TextRow(**shared, text=passage, start=0, end=len(passage))])
        texts.manifests.stored[key] = Stored(
            manifest=Manifest(tenant="t", doc_id=key.doc_id, live=Live(revision=revision, chunks=1, at=NOW))
        )
    return Retriever(
        vectors,
        texts,
        RetrievalSettings(alpha=1.0),
        reranker=reranker,
        rerank=RerankSettings(enabled=True, candidates=candidates, weight=0.8),
    )


async def found(retriever: Retriever, question: str, *, rerank: bool | None) -> Found:
    query = Query(query=question, tenant="t", top_k=4, rerank=rerank)
    return await retriever.search(query, FakeEncoder().vector(question))


def test_a_model_that_is_not_there_is_told_at_the_start_and_only_where_one_is_wanted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HEADRACE_RERANK__MODEL", str(tmp_path / "nowhere"))
    assert wiring.build_reranker(load_settings()) is None
    monkeypatch.setenv("HEADRACE_RERANK__ENABLED", "true")
    with pytest.raises(Misconfigured, match=r"rerank\.model: .*nowhere.* is not a folder here, and the hub did not"):
        wiring.build_reranker(load_settings())


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"rerank\.model: .* can't be loaded"):
        CrossEncoderReranker(RerankSettings(model=str(tmp_path), device="cpu"))


def test_a_model_that_gives_several_scores_is_refused(folder: Path, tmp_path: Path) -> None:
    tokenizer = BertTokenizer.from_pretrained(folder)
    untrained(len(tokenizer), labels=3).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(Misconfigured, match="gives 3 scores for a pair"):
        CrossEncoderReranker(RerankSettings(model=str(tmp_path), device="cpu"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"device": "cpu", "precision": "float16"}, "float16 needs a CUDA device"),
        ({"device": "cuda:99"}, "is not here"),
    ],
)
def test_a_device_that_cannot_do_it_is_refused(folder: Path, settings: dict[str, str], says: str) -> None:
    with pytest.raises(Misconfigured, match=says):
        CrossEncoderReranker(RerankSettings(model=str(folder), **settings))
