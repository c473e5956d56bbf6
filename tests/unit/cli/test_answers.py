import io

from rich.console import Console

from headrace.cli.answers import print_answer, quote
from schemas import Answer, AnswerError, AnswerText, Citation, Hit

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
