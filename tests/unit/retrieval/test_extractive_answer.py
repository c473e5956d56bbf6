import re
import zlib
from collections.abc import Sequence

import numpy as np
import pytest

from headrace.encoders import Vectors
from headrace.retrieval import extractive_answer
from headrace.retrieval.answering import sentences, worth_saying
from headrace.retrieval.settings import RetrievalSettings
from schemas import AnswerText, EncoderIdentity, Hit

SETTINGS = RetrievalSettings(answer_passages=3, answer_sentences=2)


class BagOfWords:
    """Texts that share words are near each other."""

    identity = EncoderIdentity(name="bag-of-words", dimension=4096, normalised=True)
    max_tokens = 16

    def encode(self, texts: Sequence[str], *, truncate: bool = False) -> Vectors:
        assert truncate, "a sentence of any length can be scored"
        vectors = np.zeros((len(texts), 4096), dtype=np.float32)
        for place, text in enumerate(texts):
            for word in re.findall(r"\w+", text.casefold()):
                vectors[place, zlib.crc32(word.encode()) % 4096] += 1
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        return self.encode(texts, truncate=True)


def hit(
    document: str, start: int = 0, end: int | None = None, *, rank: int = 1, ordinal: int = 0, doc: str = "d"
) -> Hit:
    end = len(document) if end is None else end
    return Hit(
        rank=rank,
        score=1 / rank,
        doc_id=doc,
        chunk_id=f"{doc}-{ordinal}",
        ordinal=ordinal,
        version=1,
        text=document[start:end],
        start=start,
        end=end,
    )


def answer(question: str, *hits: Hit, settings: RetrievalSettings = SETTINGS) -> AnswerText:
    return extractive_answer(question, hits, BagOfWords(), settings)


DOCUMENT = (
    "# On turbines\n\nBread is baked in an oven. 😀 The headrace leads  water\nto the turbine.  "
    "Dr. Smith has a dog.\n\nThe tailrace leads water away from the turbine."
)


def test_the_sentences_nearest_to_the_question_are_quoted_each_with_its_marker() -> None:
    found = answer("What leads water to the turbine?", hit(DOCUMENT))
    assert found.text == (
        "😀 The headrace leads water to the turbine. [1] The tailrace leads water away from the turbine. [2]"
    )
    assert found.model == "extractive"


def test_a_citation_locates_its_sentence_in_the_document_as_it_was_sent() -> None:
    found = answer("What leads water to the turbine?", hit(DOCUMENT, 15, ordinal=1))
    assert [DOCUMENT[one.start : one.end] for one in found.citations] == [
        "😀 The headrace leads  water\nto the turbine.",
        "The tailrace leads water away from the turbine.",
    ]
    assert [(one.marker, one.doc_id, one.chunk_id) for one in found.citations] == [
        ("[1]", "d", "d-1"),
        ("[2]", "d", "d-1"),
    ]


def test_of_a_text_that_is_not_the_documents_own_slice_the_whole_passage_is_cited() -> None:
    html = "<p>The headrace leads <b>water</b> to the turbine.</p>"
    shown = Hit(
        rank=1, score=1, doc_id="d", chunk_id="c", ordinal=0, version=1, start=0, end=len(html),
        text="The headrace leads water to the turbine.",
    )  # fmt: skip
    [citation] = answer("What leads water to the turbine?", shown).citations
    assert (citation.start, citation.end) == (0, len(html))


def test_a_sentence_that_two_overlapping_chunks_share_is_said_once() -> None:
    text = "The headrace leads water to the turbine. Bread is baked in an oven."
    found = answer("What leads water to the turbine?", hit(text), hit(text, rank=2, ordinal=1))
    assert found.text.count("headrace") == 1
    assert found.citations[0].chunk_id == "d-0"


def test_a_sentence_that_another_document_repeats_is_said_once() -> None:
    first, copy = hit("Water drives the big turbine."), hit("WATER drives the  big turbine!", rank=2, doc="copy")
    assert answer("What drives the turbine?", first, copy).text == "Water drives the big turbine. [1]"


def test_headings_labels_and_halves_of_sentences_are_not_said() -> None:
    text = "and so the turbine turned. ## The turbine turns now.\n\nTurbine turns.\n\nThe turbine\n\nWater turns the turbine."
    assert [one.text for one in worth_saying(sentences(hit(text, ordinal=3)))] == ["Water turns the turbine."]


def test_a_text_without_any_whole_sentence_is_quoted_as_it_is() -> None:
    assert answer("turbine?", hit("turbine: on\n\noven: off")).text.startswith("turbine: on [1]")


def test_languages_without_spaces_have_sentences_too() -> None:
    text = "水车由引水渠的水驱动。面包在烤箱里烤。"
    assert [one.text for one in worth_saying(sentences(hit(text)))] == ["水车由引水渠的水驱动。", "面包在烤箱里烤。"]


def test_of_equally_near_sentences_the_better_hits_is_chosen() -> None:
    hits = [hit(f"The turbine number {n} turns.", rank=n, doc=str(n)) for n in (1, 2, 3)]
    found = answer("Which turbine turns?", *hits, settings=RetrievalSettings(answer_sentences=1))
    assert [one.doc_id for one in found.citations] == ["1"]


def test_sentences_of_one_document_stay_in_the_order_of_its_text() -> None:
    text = "The turbine turns by itself. Nothing else of that kind. Water turns the turbine wheel."
    found = answer("Water turns the turbine wheel?", hit(text))
    assert found.text == "The turbine turns by itself. [1] Water turns the turbine wheel. [2]"


def test_hits_beyond_the_set_number_of_passages_are_not_read() -> None:
    hits = [hit("Bread is baked in ovens.", rank=n, doc=str(n)) for n in (1, 2, 3)]
    last = hit("Water turns the turbine wheel.", rank=4, doc="4")
    assert "turbine" not in answer("What turns the turbine wheel?", *hits, last).text


def test_a_marker_that_a_sentence_brings_along_is_not_used_again() -> None:
    found = answer("What turns the turbine?", hit("Water turns the turbine [1], as [2] says. A turbine turns slowly."))
    assert [one.marker for one in found.citations] == ["[3]", "[4]"]
    assert all(found.text.count(one.marker) == 1 for one in found.citations)


@pytest.mark.parametrize("hits", [[], [hit("")], [hit(" \n ")], [hit("— * —")]])
def test_without_anything_to_say_the_answer_says_so_and_cites_nothing(hits: list[Hit]) -> None:
    assert answer("What?", *hits) == AnswerText(
        text="Nothing relevant was found.", citations=[], model="extractive", known=False
    )
