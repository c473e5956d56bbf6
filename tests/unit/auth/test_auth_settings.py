from pathlib import Path

import pytest
from pydantic import ValidationError

from headrace.auth import Bearer
from headrace.auth.settings import AuthSettings
from headrace.config import load_settings
from headrace.errors import Misconfigured


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"enabled": True}, "needs auth.jwks_url or auth.jwks_file"),
        ({"enabled": True, "audience": "a"}, "needs auth.jwks_url or auth.jwks_file"),
        ({"enabled": True, "jwks_url": "https://x/keys"}, "needs auth.audience"),
        ({"jwks_url": "http://issuer.example/keys"}, "https://"),
        ({"jwks_url": "file:///keys"}, "https://"),
        ({"jwks_url": "https:///keys"}, "https://"),
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"algorithms": ["none"]}, "algorithms"),
        ({"algorithms": []}, "algorithms"),
        ({"audience": ""}, "audience"),
        ({"token": "t", "token_file": "f"}, "exclude each other"),
    ],
)
def test_what_would_let_strangers_in_is_refused(fields: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        AuthSettings.model_validate(fields)


def test_the_environment_turns_it_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_AUTH__ENABLED", "true")
    with pytest.raises(Misconfigured, match=r"auth: .*auth\.jwks_url"):
        load_settings()
    monkeypatch.setenv("HEADRACE_AUTH__JWKS_URL", "http://127.0.0.1:1/keys")
    monkeypatch.setenv("HEADRACE_AUTH__AUDIENCE", "headrace")
    monkeypatch.setenv("HEADRACE_AUTH__ALGORITHMS", '["ES384"]')
    assert load_settings().auth.algorithms == ("ES384",)


def test_without_a_token_nothing_is_sent() -> None:
    assert Bearer(AuthSettings()).headers() == []


def test_a_token_is_sent_and_does_not_show() -> None:
    settings = AuthSettings.model_validate({"token": "a.b.c"})
    assert Bearer(settings).headers() == [("authorization", b"Bearer a.b.c")]
    assert "a.b.c" not in repr(settings)


def test_a_token_that_is_renewed_in_its_file_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "token"
    bearer = Bearer(AuthSettings(token_file=file))
    for token in ("first", "second"):
        file.write_text(f"{token}\n")
        assert bearer.headers() == [("authorization", f"Bearer {token}".encode())]


@pytest.mark.parametrize("text", [None, "", "  \n", "two words", "\N{SNOWMAN}"])
def test_a_token_file_without_a_token_is_refused(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "token"
    if text is not None:
        file.write_text(text)
    with pytest.raises(Misconfigured, match=r"auth\.token"):
        Bearer(AuthSettings(token_file=file)).headers()
