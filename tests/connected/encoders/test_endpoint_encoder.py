import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from headrace.calls import longest_unanswered
from headrace.encoders import Encoder, build_encoder, tokenizer_file
from headrace.encoders.settings import EncoderSettings
from headrace.errors import HeadraceError, Misconfigured, Poison, Transient
from tests.fakes.providers import KEY, MODEL, Embedded, Providers, Silent, Status, embedding

TEXTS = [f"Pump {number} is oiled daily." for number in range(10)]


@pytest.fixture
def server() -> Iterator[Providers]:
    with Providers() as providers:
        yield providers


def endpoint(server: Providers, **settings: Any) -> Encoder:
    return build_encoder(
        EncoderSettings(
            **{
                "backend": "openai",
                "base_url": server.openai_url,
                "api_key": KEY,
                "model": MODEL,
                "dimension": 8,
                "tokenizer": str(tokenizer_file(EncoderSettings()).parent),
                "max_tokens": 64,
                "texts_per_request": 2,
                **settings,
            }
        )
    )


def expected(texts: list[str], dimension: int = 8) -> Any:
    vectors = np.array([embedding(text, dimension) for text in texts], dtype=np.float32)
    return pytest.approx(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), abs=1e-6)


def test_vectors_are_the_endpoints_in_the_order_of_the_texts_and_of_length_one(server: Providers) -> None:
    encoder = endpoint(server)
    vectors = encoder.encode(TEXTS)
    assert vectors == expected(TEXTS)
    assert (vectors.dtype, vectors.flags.c_contiguous) == (np.float32, True)
    assert [len(asked.body["input"]) for asked in server.asked] == [2] * 5
    assert {asked.body["encoding_format"] for asked in server.asked} == {"base64"}
    assert encoder.encode([]).shape == (0, 8)
    assert encoder.identity.recipe == f"{MODEL}+title"


def test_contexts_are_sent_before_the_texts(server: Providers) -> None:
    assert endpoint(server).encode(TEXTS[:2], contexts=["Care", ""]) == expected([f"Care {TEXTS[0]}", TEXTS[1]])


def test_a_text_too_long_is_refused_before_anything_is_sent(server: Providers) -> None:
    with pytest.raises(Misconfigured, match="a text of 102 tokens does not fit the encoder, which reads 64"):
        endpoint(server).encode(["oil " * 100])
    assert server.asked == []


def test_a_question_that_is_too_long_is_cut_at_its_end(server: Providers) -> None:
    assert endpoint(server).encode_queries(["oil " * 100]) == expected([("oil " * 62).strip()])


def test_an_empty_text_has_a_vector_too(server: Providers) -> None:
    assert endpoint(server).encode([""]) == expected([" "])


def test_a_server_that_knows_no_base64_is_asked_for_numbers_from_then_on(server: Providers) -> None:
    server.default = Embedded(knows_base64=False)
    encoder = endpoint(server, concurrency=1)
    assert encoder.encode(TEXTS) == expected(TEXTS)
    assert [asked.body["encoding_format"] for asked in server.asked] == ["base64", *["float"] * 5]


def test_no_more_requests_than_allowed_are_open_whoever_asks(server: Providers) -> None:
    server.default = Embedded(pause_s=0.02)
    encoder = endpoint(server, concurrency=3, texts_per_request=1)
    threads = [threading.Thread(target=encoder.encode, args=(TEXTS,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(server.asked) == 30
    assert server.most_open == 3


def test_an_urgent_call_goes_before_what_waits(server: Providers) -> None:
    server.default = Embedded(pause_s=0.1)
    encoder = endpoint(server, concurrency=1, texts_per_request=1)
    bulk = threading.Thread(target=encoder.encode, args=(TEXTS,))
    bulk.start()
    server.wait_asked()
    encoder.encode_queries(["now"])
    assert "now" in [asked.body["input"][0] for asked in server.asked[:3]]
    bulk.join(30)


def test_the_endpoint_is_asked_for_a_dimension_only_where_the_settings_say_so(server: Providers) -> None:
    endpoint(server).encode(TEXTS[:1])
    assert "dimensions" not in server.asked[0].body
    assert endpoint(server, dimension=4, ask_dimension=True).encode(TEXTS[:1]) == expected(TEXTS[:1], 4)


def test_vectors_of_another_length_are_refused_with_the_setting_to_mend(server: Providers) -> None:
    with pytest.raises(Misconfigured, match=r"encoder.dimension is 16, and the vectors of test-model at .* have 8"):
        endpoint(server, dimension=16).encode(TEXTS)


@pytest.mark.parametrize(
    ("behaviour", "meaning", "message"),
    [
        (Status(429), Transient, r"can't answer now \(429\)"),
        (Status(500), Transient, r"can't answer now \(500\)"),
        (Status(503), Transient, r"can't answer now \(503\)"),
        (Silent(seconds=5), Transient, "silent: see encoder.timeout_s"),
        (Silent(seconds=0), Transient, "can't be reached"),
        (Status(200, body="<html>"), Transient, "can't be read"),
        (Status(200, body='{"data": [{"index": 0, "embedding": "AAAA"}]}'), Transient, "can't be read"),
        (Embedded(first=1), Transient, "can't be read"),
        (Status(400), Misconfigured, r"refuses the request \(400\)"),
        (Status(401), Misconfigured, r"refuses the key \(401\): set encoder.api_key"),
        (Status(403), Misconfigured, r"refuses the key \(403\)"),
        (Status(404), Misconfigured, r"no such model or path \(404\): see encoder.model and encoder.base_url"),
        (Status(413), Misconfigured, r"refuses the request \(413\)"),
    ],
)
def test_what_goes_wrong_is_told_by_what_it_means(
    server: Providers, behaviour: Any, meaning: type[HeadraceError], message: str
) -> None:
    server.default = behaviour
    with pytest.raises(meaning, match=message):
        endpoint(server, timeout_s=0.5).encode(["oil"], urgent=True)
    assert longest_unanswered() is None


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[3:4]], ids=["among others", "alone"])
def test_a_text_that_is_refused_while_others_are_taken_is_poison(server: Providers, texts: list[str]) -> None:
    server.default = Embedded(refuses=TEXTS[3])
    encoder = endpoint(server, texts_per_request=8)
    with pytest.raises(Poison, match=r"refuses the request \(400\)") as refused:
        encoder.encode(texts)
    assert refused.value.code == "text_refused"
    assert encoder.encode(TEXTS[:3] + TEXTS[4:]) == expected(TEXTS[:3] + TEXTS[4:])


def test_a_request_that_is_too_large_in_all_is_sent_in_parts(server: Providers) -> None:
    server.script += [Status(413)]
    assert endpoint(server, texts_per_request=4, concurrency=1).encode(TEXTS) == expected(TEXTS)
    assert [len(asked.body["input"]) for asked in server.asked] == [4, 2, 2, 4, 2]


def test_an_endpoint_that_is_away_is_waited_for(server: Providers) -> None:
    encoder = endpoint(server, base_url="http://127.0.0.1:9/v1")
    with pytest.raises(Transient, match="encoder: the endpoint can't be reached"):
        encoder.encode(["oil"], urgent=True)


def test_one_request_of_many_is_tried_again_by_itself(server: Providers) -> None:
    server.script += [Status(503, {"retry-after-ms": "1"})]
    assert endpoint(server).encode(TEXTS) == expected(TEXTS)
    assert len(server.asked) == 6


def test_the_key_is_never_shown(server: Providers) -> None:
    wrong = "sk-wrong-0123456789"
    server.default = Status(400, body=f'{{"error": {{"message": "bad key {wrong}"}}}}')
    with pytest.raises(Misconfigured) as refused:
        endpoint(server, api_key=wrong).encode(["oil"])
    assert wrong not in str(refused.value)
    assert "***" in str(refused.value)
