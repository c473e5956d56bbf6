from typing import Any

import pytest
from pydantic import ValidationError

from headrace.encoders import encoder_batch_tokens, encoder_identity
from headrace.encoders.settings import EncoderSettings
from headrace.errors import Misconfigured

ENDPOINT = {"backend": "openai", "model": "some/model", "dimension": 64}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backend": "onnx"}, "encoder.model must name the folder that `headrace encoder export` made"),
        ({"backend": "openai", "dimension": 64}, "encoder.model must name the model as the endpoint does"),
        ({"backend": "openai", "model": "some/model"}, "encoder.dimension must say how long"),
        ({"base_url": "http://127.0.0.1/v1"}, "encoder.base_url is for encoder.backend openai, and it is torch"),
        ({"backend": "static", "max_tokens": 64}, "encoder.max_tokens is for encoder.backend openai"),
        ({"backend": "static", "precision": "float16"}, "encoder.precision is for encoder.backend torch"),
        ({"backend": "static", "device": "cuda"}, "encoder.device cuda is of no use to encoder.backend static"),
        ({"backend": "static", "model": "some/model"}, "encoder.model some/model is not static"),
        ({"batch_size": 64}, "batch_size"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EncoderSettings(**given)


def test_a_static_encoder_needs_nothing_else() -> None:
    settings = EncoderSettings(backend="static")
    assert encoder_identity(settings).recipe == "wordllama/l2_supercat_256+title"


def test_an_endpoint_without_a_tokenizer_is_refused_with_the_setting_to_make(monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.encoders import tokenizer_file

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Misconfigured, match=r"encoder.tokenizer must name the folder"):
        tokenizer_file(EncoderSettings(**ENDPOINT))


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ({"device": "cpu"}, 4_096),
        ({"device": "cpu", "batch_tokens": 1_000}, 1_000),
        ({"backend": "static"}, 65_536),
        (ENDPOINT | {"concurrency": 4, "texts_per_request": 16}, 4 * 16 * 256),
    ],
)
def test_what_an_encoder_works_on_at_once(given: dict[str, Any], tokens: int) -> None:
    assert encoder_batch_tokens(EncoderSettings(**given)) == tokens
