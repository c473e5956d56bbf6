"""What is made of a streamed answer's replies, in whatever way they come."""

import json

import pytest
from headrace_client import Answer, AnswerError, AnswerText, Delta, Found, Hit, Reset
from headrace_client.messages import encode
from headrace_client.streams import Assembly, Piece
from hypothesis import given, settings
from hypothesis import strategies as st

HIT = Hit(rank=1, score=1.0, doc_id="a", chunk_id="a-0", ordinal=0, version=1, text="ice", start=0, end=3)
Reply = tuple[dict[str, bytes], bytes]


def stream(name: str, *deltas: str, hits: int = 1) -> list[Reply]:
    """The replies of one worker."""
    found = [HIT] * hits
    text = AnswerText(text="".join(deltas), citations=[], model="m")
    values = [
        encode(Answer(hits=found)),
        *(encode(Delta(delta=d)) for d in deltas),
        encode(Answer(hits=found, answer=text)),
    ]
    return [
        (
            {
                "stream-id": name.encode(),
                "stream-index": str(index).encode(),
                "stream-last-message": b"true" if index == len(values) - 1 else b"false",
            },
            value,
        )
        for index, value in enumerate(values)
    ]


def pieces(*replies: Reply) -> list[Piece]:
    assembly = Assembly()
    return [piece for headers, value in replies for piece in assembly.take(headers, value)]


def told(found: list[Piece]) -> list[str]:
    """In short: what each piece says."""
    words = []
    for piece in found:
        match piece:
            case Found():
                words.append(f"{len(piece.hits)} hits")
            case Delta():
                words.append(piece.delta)
            case Reset():
                words.append(f"!{piece.reason}")
            case Answer():
                words.append(f"={piece.answer.text if piece.answer else piece.error}")
    return words


def test_hits_come_first_then_text_then_the_whole() -> None:
    assert told(pieces(*stream("s", "Ice ", "floats."))) == ["1 hits", "Ice ", "floats.", "=Ice floats."]


def test_a_reply_that_is_no_stream_is_the_whole() -> None:
    [piece] = pieces(({}, encode(Answer(hits=[HIT]))))
    assert piece == Answer(hits=[HIT])


def test_a_worker_that_dies_is_followed_by_another_whose_answer_is_not_mixed_with_the_first() -> None:
    died = stream("one", "Ice ", "sinks.")[:2]
    assert told(pieces(*died, *stream("two", "Ice ", "floats.", hits=2))) == [
        "1 hits", "Ice ", "!another_stream", "2 hits", "Ice ", "floats.", "=Ice floats.",
    ]  # fmt: skip


def test_what_a_worker_sends_after_another_took_over_is_passed_over() -> None:
    slow, quick = stream("slow", "a", "b"), stream("quick", "c", "d")
    found = pieces(slow[0], slow[1], quick[0], slow[2], quick[1], quick[2], quick[3])
    assert told(found) == ["1 hits", "a", "!another_stream", "1 hits", "c", "d", "=cd"]


def test_the_whole_of_the_slower_worker_voids_what_the_other_began() -> None:
    slow, quick = stream("slow", "a", "b"), stream("quick", "c", "d")
    found = pieces(slow[0], slow[1], quick[0], quick[1], slow[2], slow[3])
    assert told(found) == ["1 hits", "a", "!another_stream", "1 hits", "c", "!another_stream", "=ab"]


def test_a_missing_piece_voids_what_came_and_the_whole_follows() -> None:
    replies = stream("s", "a", "b", "c")
    assert told(pieces(*replies[:2], *replies[3:])) == ["1 hits", "a", "!missing_piece", "=abc"]


def test_the_last_pieces_missing_voids_what_came() -> None:
    replies = stream("s", "a", "b")
    assert told(pieces(*replies[:2], replies[-1])) == ["1 hits", "a", "!missing_piece", "=ab"]


def test_a_stream_whose_beginning_is_missing_is_told_by_its_whole_alone() -> None:
    assert told(pieces(*stream("s", "a", "b")[1:])) == ["=ab"]


def test_a_piece_that_comes_twice_counts_once() -> None:
    replies = stream("s", "a", "b")
    assert told(pieces(*[reply for reply in replies[:-1] for _ in range(2)], replies[-1])) == [
        "1 hits",
        "a",
        "b",
        "=ab",
    ]


def test_an_error_after_some_text_is_an_answer_with_an_error() -> None:
    failed = Answer(error=AnswerError(code="unavailable", message="llm"))
    last = ({"stream-id": b"s", "stream-index": b"2", "stream-last-message": b"true"}, encode(failed))
    assert pieces(*stream("s", "a", "b")[:2], last)[-1] == failed


@pytest.mark.parametrize(
    ("headers", "value"),
    [
        ({"stream-index": b"one"}, b"{}"),
        ({"stream-id": b"s", "stream-index": b"0"}, b"not json"),
        ({}, b"[]"),
        ({"stream-index": b"\xff"}, b"{}"),
    ],
)
def test_a_reply_of_another_form_is_an_error(headers: dict[str, bytes], value: bytes) -> None:
    with pytest.raises(ValueError):
        Assembly().take(headers, value)


@settings(deadline=None)
@given(st.data())
def test_what_is_shown_is_never_a_mixture_and_ends_as_the_answer(data: st.DataObject) -> None:
    """Two workers' replies, some lost, some twice, interleaved in any way that keeps each one's order."""
    texts = {name: data.draw(st.lists(st.text("xyz", min_size=1, max_size=2), max_size=4)) for name in ("one", "two")}
    left = {
        name: [reply for reply in stream(name, *deltas) for _ in range(data.draw(st.sampled_from([0, 1, 1, 1, 2])))]
        for name, deltas in texts.items()
    }
    wholes = {"".join(deltas) for deltas in texts.values()}
    assembly, shown = Assembly(), ""
    while any(left.values()):
        name = data.draw(st.sampled_from([name for name, replies in left.items() if replies]))
        headers, value = left[name].pop(0)
        for piece in assembly.take(headers, value):
            match piece:
                case Found() | Reset():
                    assert isinstance(piece, Reset) or shown == ""
                    shown = ""
                case Delta():
                    shown += piece.delta
                    assert any(whole.startswith(shown) for whole in wholes)
                case Answer():
                    assert piece.answer is not None
                    assert shown in {"", piece.answer.text}
                    assert piece.answer.text in wholes
                    return
    assert json.loads(encode(Delta(delta=shown)))["delta"] == shown
