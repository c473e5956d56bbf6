import pytest
from pydantic import ValidationError

from headrace.errors import Misconfigured
from headrace.tracing import TracingSettings, build_tracer


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"endpoint": "127.0.0.1:4317"}, "must be http://host:port"),
        ({"endpoint": "http://collector:4318/v1/traces"}, "must be http://host:port"),
        ({"endpoint": "http://collector:4317", "tls": {"ca": "ca.pem"}}, "tls needs an endpoint with https://"),
        (
            {
                "endpoint": "https://collector:4317",
                "tls": {"certificate": "a.pem", "key": "a.key", "key_password": "secret"},
            },
            "gRPC reads keys that aren't encrypted",
        ),
        ({"sample_ratio": 1.5}, "less than or equal to 1"),
        ({"sampling": 1.0}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TracingSettings.model_validate(settings)


def test_a_certificate_that_is_not_there_is_told_at_the_start() -> None:
    settings = TracingSettings.model_validate(
        {"enabled": True, "endpoint": "https://collector:4317", "tls": {"ca": "nowhere.pem"}}
    )
    with pytest.raises(Misconfigured, match=r"tracing\.tls\.ca: nowhere\.pem can't be read"):
        build_tracer(settings, "headrace-chunk")
