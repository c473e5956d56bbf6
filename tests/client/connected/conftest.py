"""The client against real servers and real workers."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from headrace_client import Client

from tests.conftest import Deployment

Connect = Callable[..., Client]


@pytest.fixture
def connect(pipeline: Deployment) -> Iterator[Connect]:
    """Clients of the pipeline, with whatever settings; closed after the test."""
    kafka = pipeline.settings.kafka
    with ExitStack() as opened:

        def made(**settings: Any) -> Client:
            client = Client(kafka.bootstrap_servers, topic_prefix=kafka.topic_prefix, **settings)
            return opened.enter_context(client)

        yield made


@pytest.fixture(scope="session")
def client(pipeline: Deployment) -> Iterator[Client]:
    kafka = pipeline.settings.kafka
    with Client(kafka.bootstrap_servers, topic_prefix=kafka.topic_prefix) as made:
        yield made
