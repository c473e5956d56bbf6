import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.llm import CitationChecker, Prompt, Source, estimated_tokens
from headrace.llm.prompts import NO_ANSWER, build_prompt
from headrace.llm.quotations import Text
from headrace.llm.settings import LLMSettings
from schemas import AnswerText, Citation, Hit, Passage

WATER = "# Turbines\n\nThe headrace leads  water\nto the turbine [12]. It’s 3–5 km long; it is never used for drinking."
BREAD = "Bread is baked in an oven. It is unable to swim in cold water. 面包在烤箱里烤，水车由引水渠的水驱动。"
PAGE = "<p>Sluices let <b>water</b> pass through the dam.</p>"
PAGE_TEXT = "Sluices let water pass through the dam."
UNKNOWN = "I don't know."


def hit(number: int, text: str, *, start: int = 0, end: int | None = None, title: str | None = None) -> Hit:
    end = start + len(text) if end is None else end
    return Hit(
        rank=number, score=1 / number, doc_id=f"d{number}", chunk_id=f"c{number}", ordinal=0, version=1, text=text,
        start=start, end=end, title=title,
    )  # fmt: skip


HITS = [hit(1, WATER, start=100, title="The Book of Water and Wheels"), hit(2, BREAD), hit(3, PAGE_TEXT, end=len(PAGE))]
PROMPT: Prompt = build_prompt("Who first built a headrace?", HITS, LLMSettings(unknown_text=UNKNOWN), estimated_tokens)


def checked(text: str, prompt: Prompt = PROMPT) -> tuple[AnswerText, CitationChecker]:
    checker = CitationChecker(prompt)
    shown = checker.feed(text)
    rest, whole = checker.finish()
    assert shown + rest == whole.text
    return whole, checker


def cited(text: str) -> list[tuple[str, str]]:
    whole, _ = checked(text)
    return [(one.marker, one.chunk_id) for one in whole.citations]


def removals(text: str) -> dict[str, int]:
    return dict(checked(text)[1].removals)


def test_a_marker_cites_the_passage_that_it_points_to() -> None:
    whole, checker = checked("Water comes from the headrace [1]. Ovens bake bread. [2]")
    assert whole.text == "Water comes from the headrace [1]. Ovens bake bread. [2]"
    assert whole.citations == [
        Citation(marker="[1]", chunk_id="c1", doc_id="d1", start=100, end=100 + len(WATER)),
        Citation(marker="[2]", chunk_id="c2", doc_id="d2", start=0, end=len(BREAD)),
    ]
    assert (whole.known, checker.removed) == (True, 0)


@pytest.mark.parametrize(
    ("text", "markers"),
    [
        ("A claim [1, 2].", [("[1, 2]", "c1"), ("[1, 2]", "c2")]),
        ("A claim [1][2].", [("[1]", "c1"), ("[2]", "c2")]),
        ("A claim [1] [3].", [("[1]", "c1"), ("[3]", "c3")]),
        ("A claim [1-3].", [("[1-3]", "c1"), ("[1-3]", "c2"), ("[1-3]", "c3")]),
        ("A claim [2; 3].", [("[2; 3]", "c2"), ("[2; 3]", "c3")]),
        ("A claim【2】.", [("【2】", "c2")]),
        ("A claim [1]. Another [1].", [("[1]", "c1")]),
        ("[2] says so.", [("[2]", "c2")]),
        ("- one [1]\n- two [2]\n", [("[1]", "c1"), ("[2]", "c2")]),
    ],
)
def test_markers_of_every_form_are_read(text: str, markers: list[tuple[str, str]]) -> None:
    assert cited(text) == markers
    assert checked(text)[0].text == text.strip()


@pytest.mark.parametrize(
    ("text", "left", "removed"),
    [
        ("A claim [9].", "A claim.", 1),
        ("A claim [0].", "A claim.", 1),
        ("A claim [1, 9].", "A claim [1].", 1),
        ("A claim [7, 8, 2, 3] goes on.", "A claim [2, 3] goes on.", 2),
        ("A claim [2-9].", "A claim [2, 3].", 1),
        ("A claim [3-1].", "A claim.", 1),
        ("A claim [1][9][2].", "A claim [1][2].", 1),
        ("[9] says so.", "says so.", 1),
        ("A claim. [9] Another. [1]", "A claim. Another. [1]", 1),
        ("Three words here. [9].\n\nNext [1].", "Three words here.\n\nNext [1].", 1),
    ],
)
def test_a_marker_that_points_to_nothing_is_removed_and_counted(text: str, left: str, removed: int) -> None:
    whole, checker = checked(text)
    assert whole.text == left
    assert checker.removals == {"unknown_source": removed}
    assert checker.removed == removed


def test_brackets_that_are_no_markers_stay() -> None:
    text = "An array [x] of [two words] and a[i] [1]."
    assert checked(text)[0].text == text


def test_a_quotation_is_cited_by_its_own_place_in_the_document() -> None:
    whole, checker = checked('It says "the headrace leads water to the turbine" [1].')
    [citation] = whole.citations
    assert WATER[citation.start - 100 : citation.end - 100] == "The headrace leads  water\nto the turbine"
    assert checker.removed == 0


@pytest.mark.parametrize(
    "quotation",
    [
        '"The headrace leads water to the turbine."',
        "“the HEADRACE leads water to the turbine”",
        "«the headrace leads water to the turbine»",
        "„the headrace leads water to the turbine“",
        '"the headrace leads water to the turbine [12]"',
        '"the headrace leads water to the turbine [1]"',
        '"It\'s 3-5 km long; it is never used"',
        '"The headrace leads water … it is never used for drinking"',
        '"The headrace leads water ... [...] never used for drinking..."',
        '"**The headrace** leads water to the turbine"',
    ],
)
def test_white_space_case_typography_and_reference_numbers_make_no_difference(quotation: str) -> None:
    whole, checker = checked(f"It says {quotation} [1].")
    assert checker.removals["not_quoted"] == 0
    assert [one.chunk_id for one in whole.citations][-1] == "c1"
    assert all(one.end - one.start < len(WATER) for one in whole.citations)


@pytest.mark.parametrize(
    "quotation",
    [
        '"The headrace leads oil to the turbine"',
        '"able to swim in cold water"',
        '"The headrace … never used … drinking"',
        '"never used for drinking ... The headrace leads water"',
        '"Bread is baked in an oven"',
        "“The tailrace leads water away from it”",
    ],
)
def test_a_quotation_that_its_source_does_not_hold_is_removed_with_its_marker(quotation: str) -> None:
    whole, checker = checked(f"The channel is long [2]. The book says, {quotation} [1]. That is all.")
    assert whole.text == "The channel is long [2]. The book says. That is all."
    assert checker.removals == {"not_quoted": 1}
    assert [one.chunk_id for one in whole.citations] == ["c2"]


@pytest.mark.parametrize(
    "text",
    [
        'As it says, "the headrace leads water to the turbine" and more [1].',
        'As [1] says, "the headrace leads water to the turbine".',
        'As it says, "the headrace leads water to the turbine." [1]',
        'As it says, "the headrace leads water to the turbine". [1]',
        'As it says, "the headrace leads water to the turbine [1]."',
        'As it says, "the headrace leads water to the turbine" [2][1].',
    ],
)
def test_a_marker_near_a_quotation_is_the_quotations(text: str) -> None:
    whole, checker = checked(text)
    assert whole.text == text
    assert checker.removed == 0
    places = [WATER[one.start - 100 : one.end - 100] for one in whole.citations if one.chunk_id == "c1"]
    assert places == ["The headrace leads  water\nto the turbine"]


def test_the_next_sentences_marker_is_not_the_quotations() -> None:
    text = 'It says "the headrace leads water to the turbine." Bread needs an oven [2].'
    assert checked(text)[0].text == text
    assert removals(text) == {}


def test_a_marker_that_another_quotation_bears_out_stays() -> None:
    whole, checker = checked(
        'It says "the headrace leads water to the turbine" and "no such words stand there" [1], too.'
    )
    assert whole.text == 'It says "the headrace leads water to the turbine" and [1], too.'
    assert checker.removals == {"not_quoted": 1}


def test_a_marker_of_what_was_said_before_a_false_quotation_stays() -> None:
    whole, _ = checked('Water flows [1], and it says "no such words stand there".')
    assert whole.text == "Water flows [1], and it says."
    assert [one.marker for one in whole.citations] == ["[1]"]


def test_a_quotation_without_a_marker_must_stand_in_some_source() -> None:
    assert removals('It says "the headrace leads water to the turbine".') == {}
    assert removals('It says "the headrace leads beer to the turbine".') == {"not_quoted": 1}


def test_a_quotation_with_nothing_but_a_false_marker_must_stand_in_some_source() -> None:
    assert checked('It says "bread is baked in an oven" [9].')[0].text == 'It says "bread is baked in an oven".'
    assert checked('It says "nothing is baked in an oven" [9].')[0].text == "It says."


def test_the_question_and_a_sources_title_may_be_quoted() -> None:
    assert (
        removals('You ask "who first built a headrace", which "The Book of Water and Wheels" [1] does not say.') == {}
    )
    assert removals('It says "who first built a headrace" [1].') == {"not_quoted": 1}


def test_a_few_words_in_quotation_marks_are_no_quotation() -> None:
    text = 'A so-called "penstock pipe thing" is used [1].'
    assert checked(text)[0].text == text


def test_scripts_without_spaces_are_quoted_too() -> None:
    assert removals("「水车由引水渠的水驱动」[2]。") == {}
    assert removals("「水车由引水渠的油驱动」[2]。") == {"not_quoted": 1}
    assert cited("它说「水车由引水渠的水驱动」[2]。面包很好。[2]") == [("[2]", "c2"), ("[2]", "c2")]


def test_of_a_text_that_is_not_the_documents_own_slice_the_whole_passage_is_cited() -> None:
    whole, checker = checked('"Sluices let water pass" [3].')
    assert [(one.start, one.end) for one in whole.citations] == [(0, len(PAGE))]
    assert checker.removed == 0


def test_a_passage_with_its_neighbours_is_what_is_quoted_and_cited() -> None:
    document = "One comes first here. Two comes right after. Three comes at the end."
    found = hit(1, document[22:44], start=22)
    wide = Passage(text=document, start=0, end=len(document), chunk_ids=["c0", "c1", "c2"])
    wider = Hit(**{name: getattr(found, name) for name in found.__struct_fields__} | {"passage": wide})
    prompt = build_prompt("What?", [wider], LLMSettings(), estimated_tokens)
    whole, checker = checked('"Three comes at the end" [1]. So it is [1].', prompt)
    assert [document[one.start : one.end] for one in whole.citations] == ["Three comes at the end", document]
    assert {one.chunk_id for one in whole.citations} == {"c1"}
    assert checker.removed == 0


def test_what_opens_and_never_closes_loses_its_mark() -> None:
    whole, checker = checked('It says “the headrace leads oil to the turbine.\n\nAnd "so on and so forth')
    assert whole.text == "It says the headrace leads oil to the turbine.\n\nAnd so on and so forth"
    assert checker.removals == {"unclosed": 2}


def test_inches_apostrophes_and_full_stops_within_words_break_nothing() -> None:
    text = "A 12\" pipe isn't 3.5 m long, e.g. here. Mr. Smith's dog wouldn't care [1]."
    assert checked(text)[0].text == text
    assert removals(text) == {}


def test_a_sentence_of_which_nothing_is_left_goes_and_paragraphs_stay_apart() -> None:
    whole, _ = checked(
        'First [1].\n\n"Nobody ever wrote these words" [1].\n\n- "nor these words, for sure" [2]\n\nLast [2].'
    )
    assert whole.text == "First [1].\n\nLast [2]."


@pytest.mark.parametrize("reply", [NO_ANSWER, f" **{NO_ANSWER}**.\n", f"{NO_ANSWER}: the sources [1] are about water."])
def test_a_model_that_does_not_know_is_put_in_the_deployments_words(reply: str) -> None:
    whole, _ = checked(reply)
    assert whole == AnswerText(text=UNKNOWN, citations=[], model="", known=False)


def test_that_the_sources_do_not_say_more_is_not_shown_as_the_models_signal() -> None:
    whole, _ = checked(f"Water comes from the headrace [1]. {NO_ANSWER}")
    assert (whole.text, whole.known) == ("Water comes from the headrace [1].", True)
    whole, _ = checked(f"Nobody says who built it. {NO_ANSWER}")
    assert (whole.text, whole.known) == ("Nobody says who built it.", False)


@pytest.mark.parametrize("reply", ["", " \n", "[9]", '"These words are in no source" [1].'])
def test_an_answer_of_which_nothing_is_left_is_not_known(reply: str) -> None:
    whole, _ = checked(reply)
    assert (whole.text, whole.known, whole.citations) == (UNKNOWN, False, [])


def test_a_sentence_is_shown_when_it_is_over_and_not_before() -> None:
    checker = CitationChecker(PROMPT)
    assert checker.feed("Water comes ") == ""
    assert checker.feed("from there [1]. ") == ""
    assert checker.feed("Next") == "Water comes from there [1]."
    assert checker.feed(" one\n") == " Next one"
    assert checker.feed('Says "so and. So it') == ""
    assert checker.finish()[0] == "\nSays so and. So it"


def test_a_text_without_any_full_stop_is_shown_all_the_same() -> None:
    checker = CitationChecker(PROMPT)
    shown = "".join(checker.feed("word ") for _ in range(2000))
    assert len(shown) > 5000
    assert shown + checker.finish()[0] == ("word " * 2000).strip()
    checker = CitationChecker(PROMPT)
    assert len(checker.feed("x" * 20_000)) >= 8000


PARTS = st.sampled_from(
    [
        "Water flows", " ", "\n", "\n\n", ". ", ".", "! ", "? ", "… ", "。", "[1]", "[2]", "[1, 2]", "[9]", "[1, 9]", "[", "]",
        "[1", "【2】", "[1–3]", "(", ")", '"', "“", "”", "„", "«", "»", "「", "」", "'", "*", "- ", ", ", ": ", "e.g. ", "Dr. ",
        '"The headrace leads water to the turbine"', "“bread is baked in an oven.”", '"there are no such words"',
        "The headrace leads water to the turbine", "no such words at all", "面包在烤箱里烤", NO_ANSWER, "x" * 60, "word " * 30,
    ]
)  # fmt: skip
TEXTS = st.lists(PARTS | st.text(max_size=8), max_size=25).map("".join)


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 400), max_size=12))
@example("A [" + "1, " * 26 + "2] b. C", [40, 70])
@example("x" * 9000 + ' "a b c d e" [1]', [4000, 8001])
@example('"' + "a b c d " * 300 + '" [1]. So.', [1, 1999, 2000, 2001, 2002])
@example("“a b c d\n\ne”. So.", [9, 10])
def test_however_a_text_is_cut_into_pieces_the_answer_is_the_same(text: str, cuts: list[int]) -> None:
    expected, at_once = checked(text)
    checker, shown, last = CitationChecker(PROMPT), "", 0
    for cut in [*sorted(cuts), len(text)]:
        shown += checker.feed(text[last:cut])
        last = max(last, cut)
    rest, whole = checker.finish()
    assert whole == expected
    assert shown + rest == whole.text
    assert checker.removals == at_once.removals


@settings(max_examples=300, deadline=None)
@given(TEXTS)
@example('"The headrace leads water to the turbine"“[1]“bread is baked in an oven.”')
@example("„“Water flowsWater flowsWater flows”")
@example("„Water“Water flowsWater flowsWater flows”")
def test_no_answer_claims_what_its_passages_do_not_bear_out(text: str) -> None:
    whole, _ = checked(text)
    numbers = {
        int(number)
        for marker in re.findall(r"[\[【]([\d, ;–-]+)[\]】]", whole.text)
        for number in re.findall(r"\d+", marker)
    }
    assert numbers <= {1, 2, 3}
    assert all(one.marker in whole.text for one in whole.citations)
    assert NO_ANSWER not in whole.text
    english = re.sub(r"„[^“”\"„«»「」\n]+[“”]", "", whole.text)  # where “ closes what „ opened
    for quotation in re.findall(r"“([^“”\"„«»「」\n]*)”", english):
        words = re.sub(r"[\[【][\d, ;–-]+[\]】]", "", quotation)
        if len(re.findall(r"\w+", words)) >= 4:
            everything = [Text(source.text) for source in PROMPT.sources] + [
                Text(PROMPT.question),
                Text("The Book of Water and Wheels"),
            ]
            assert any(one.find(words) for one in everything)
    if not whole.known:
        assert whole.citations == []


def test_sources_of_a_prompt_are_numbered_from_one() -> None:
    assert [source.number for source in PROMPT.sources] == [1, 2, 3]
    assert all(isinstance(source, Source) for source in PROMPT.sources)
