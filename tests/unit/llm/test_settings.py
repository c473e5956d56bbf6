import pytest

from headrace.config import load_settings
from headrace.errors import Misconfigured
from headrace.llm import build, is_relevant, unknown_answer
from headrace.llm.settings import LLMSettings
from schemas import AnswerText, Hit, HitScores


def test_without_a_provider_there_is_no_model() -> None:
    assert build(LLMSettings()) is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PROVIDER": "openai"}, "name the model"),
        ({"PROVIDER": "openai", "MODEL": "m"}, "api_key: openai asks for one"),
        ({"PROVIDER": "anthropic", "MODEL": "m"}, "api_key: anthropic asks for one"),
        ({"PROVIDER": "bedrock"}, "llm.provider"),
        ({"MIN_RELEVANCE": "2"}, "llm.min_relevance"),
    ],
)
def test_settings_that_lack_something_are_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"HEADRACE_LLM__{name}", value)
    with pytest.raises(Misconfigured, match=message):
        load_settings()


def test_the_key_is_in_no_text_of_the_settings() -> None:
    settings = LLMSettings.model_validate({"provider": "openai", "model": "m", "api_key": "sk-secret"})
    assert "sk-secret" not in f"{settings} {settings!r} {settings.model_dump_json()}"


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_building_a_model_asks_nobody(provider: str) -> None:
    model = build(LLMSettings.model_validate({"provider": provider, "model": "m", "base_url": "http://host.invalid"}))
    assert model is not None
    assert model.name == "m"


def hits(*cosines: float | None) -> list[Hit]:
    return [
        Hit(rank=n, score=1, doc_id="d", chunk_id="c", ordinal=0, version=1, text="t", start=0, end=1, scores=HitScores(dense=cosine))
        for n, cosine in enumerate(cosines, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("found", "threshold", "relevant"),
    [
        (hits(), None, False),
        (hits(), 0.3, False),
        (hits(0.1), None, True),
        (hits(0.1, 0.29), 0.3, False),
        (hits(None, 0.1, 0.3), 0.3, True),
        (hits(None, None), 0.3, True),
    ],
)
def test_the_nearest_hit_decides_whether_anything_is_relevant(
    found: list[Hit], threshold: float | None, *, relevant: bool
) -> None:
    assert is_relevant(found, threshold) is relevant


def test_what_is_not_known_is_said_in_the_deployments_words() -> None:
    unknown = unknown_answer(LLMSettings(unknown_text="Keine Ahnung."))
    assert unknown == AnswerText(text="Keine Ahnung.", citations=[], model="none", known=False)
