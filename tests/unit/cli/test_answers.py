import io

import msgspec
from rich.console import Console

from headrace.cli.answers import print_answer, quote
from schemas import Answer, AnswerError, AnswerText, Citation, Explanation, Highlight, Hit, HitScores

TEXT = "Hepcidin was first discovered in human urine. It is made by the liver."
HIT = Hit(
    rank=1,
    score=0.91234,
    doc_id="1560",
    chunk_id="c-0",
    ordinal=0,
    version=1,
    text=TEXT,
    start=1000,
    end=1000 + len(TEXT),
    title="Hepcidin in calves [1]",
)
CITATION = Citation(marker="[1]", chunk_id="c-0", doc_id="1560", start=1000, end=1045)


def shown(answer: Answer, *, hits: bool = True, width: int = 60) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, color_system=None)
    print_answer(console, answer, hits=hits)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def test_an_answer_quotes_what_it_cites() -> None:
    text = AnswerText(text="In human urine [1].", citations=[CITATION], model="extractive")
    assert shown(Answer(hits=[HIT], answer=text, timings_ms={"total": 12.3}), hits=False) == (
        "In human urine [1].\n"
        "\n"
        "[1] 1560 · Hepcidin in calves [1] · characters 1,000–1,045\n"
        "    “Hepcidin was first discovered in human urine.”\n"
        "\n"
        "12 ms"
    )


def test_hits_are_wrapped_to_the_width_behind_their_place() -> None:
    assert shown(Answer(hits=[HIT]), width=50) == (
        "1 hit\n"
        " 1. 1560 · Hepcidin in calves [1] · characters\n"
        "1,000–1,070  0.912\n"
        "    “Hepcidin was first discovered in human urine.\n"
        "    It is made by the liver.”"
    )


def test_an_error_and_what_was_done_without_are_said() -> None:
    error = AnswerError(code="unavailable", message="opensearch: away [x]", retry_after_ms=1500)
    assert shown(Answer(error=error, degraded=["dense"])) == (
        "unavailable: opensearch: away [x]\nTry again in 1.5 s.\nDegraded: had to do without dense."
    )


def test_nothing_found_is_said() -> None:
    assert shown(Answer()) == "Nothing was found."


def test_a_quote_of_a_passage_that_is_no_slice_is_the_whole_passage() -> None:
    html = Hit(**{**{name: getattr(HIT, name) for name in HIT.__struct_fields__}, "end": HIT.end + 50})
    assert quote(CITATION, html) == TEXT
    assert quote(CITATION, HIT) == "Hepcidin was first discovered in human urine."


def test_a_long_hit_is_shown_where_the_questions_words_are() -> None:
    text = "Before. " * 100 + "The sluice opens at six." + " After." * 100
    at = text.index("sluice")
    hit = msgspec.structs.replace(
        HIT, text=text, end=HIT.start + len(text), highlights=[Highlight(start=at, end=at + 6)]
    )
    assert "The sluice opens at six." in " ".join(shown(Answer(hits=[hit])).split())
    without = msgspec.structs.replace(hit, highlights=[])
    assert "sluice" not in shown(Answer(hits=[without]))


def test_an_explanation_has_every_step_that_saw_the_hit() -> None:
    said = Explanation(dense_rank=3, dense=0.5, fused=0.25, fused_rank=2)
    hit = msgspec.structs.replace(HIT, scores=HitScores(dense=0.7), explanation=said)
    assert shown(Answer(hits=[hit])).endswith("vectors 3. 0.700 (as 0.500) · fused 2. 0.250")
