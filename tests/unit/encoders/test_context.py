import pytest

from headrace.encoders import context_of
from headrace.encoders.context import Context


@pytest.mark.parametrize(
    ("context", "title", "headings", "text", "expected"),
    [
        ("none", "Pump 7", ["Care"], "Oil it.", ""),
        ("title", "Pump 7", ["Care"], "Oil it.", "Pump 7"),
        ("title", " Pump\n 7 ", [], "Oil it.", "Pump 7"),
        ("title", None, ["Care"], "Oil it.", ""),
        ("title", "Pump 7", [], "Pump 7\n\nOil it.", ""),
        ("title_headings", "Pump 7", ["Care", "Oil"], "It drips.", "Pump 7. Care. Oil"),
        ("title_headings", "Pump 7", ["Pump 7", "Care"], "It drips.", "Pump 7. Care"),
        ("title_headings", None, ["Care"], "It drips.", "Care"),
        ("title_headings", "Pump 7", ["Care"], "Care\nOil it.", "Pump 7"),
    ],
)
def test_a_passage_is_read_with_what_it_does_not_say_itself(
    context: Context, title: str | None, headings: list[str], text: str, expected: str
) -> None:
    assert context_of(context, title, headings, text) == expected
