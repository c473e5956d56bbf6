"""What the Faust app shows a broker, from the settings that confluent-kafka's clients are made with, too."""

import asyncio
from typing import Any

import faust
from aiokafka.abc import AbstractTokenProvider

from headrace.errors import HeadraceError
from headrace.oauth import Tokens
from topics.settings import TLS_SECTION, KafkaSettings


def credentials(kafka: KafkaSettings) -> Any:
    """Faust's credentials, or None where there are none. Raises Misconfigured where a file can't be used."""
    context = kafka.tls.context(TLS_SECTION) if kafka.secured else None
    if not kafka.sasl:
        return faust.SSLCredentials(context) if context is not None else None
    if kafka.sasl_mechanism == "OAUTHBEARER":
        return faust.OAuthCredentials(oauth_cb=TokenProvider(kafka.tokens()), ssl_context=context)
    return faust.SASLCredentials(
        username=kafka.sasl_username,
        password=kafka.password(),
        mechanism=kafka.sasl_mechanism,
        ssl_context=context,
    )


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka ships no types
    """Gives each new connection the token of the moment."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def token(self) -> str:
        """Raises ConnectionError, which aiokafka takes for a broker that is away: it tries again."""
        try:
            return (await asyncio.to_thread(self._tokens.token)).value
        except HeadraceError as exc:
            raise ConnectionError(str(exc)) from exc
