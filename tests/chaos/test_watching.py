"""`headrace top` goes on while Kafka is away."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

import orjson

from tests.chaos.servers import OwnServers
from tests.conftest import Deployment

WITHIN_S = 120.0


def test_who_watches_is_told_that_kafka_is_away_and_sees_it_come_back(
    own_servers: OwnServers, own_deployment: Deployment
) -> None:
    watching = subprocess.Popen(
        own_deployment.command("top", "--json", "--every", "0.5"),
        env=own_deployment.environment,
        stdout=subprocess.PIPE,
    )
    views: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def read() -> None:
        assert watching.stdout is not None
        for line in watching.stdout:
            views.put(orjson.loads(line))

    threading.Thread(target=read, daemon=True).start()

    def until(wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            assert watching.poll() is None
            try:
                view = views.get(timeout=1)
            except Empty:
                continue
            if wanted(view):
                return view
        raise AssertionError(f"not seen within {WITHIN_S:.0f} s")

    def knows_lag(view: dict[str, Any]) -> bool:
        return all(row["lag"] is not None and row["messages_per_s"] is not None for row in view["stages"])

    try:
        until(knows_lag)
        with own_servers.away("kafka"):
            view = until(lambda view: not any(row["lag"] for row in view["stages"]))
            assert any("lag" in one["columns"] and own_deployment.settings.kafka.bootstrap_servers in one["why"] for one in view["unknown"])  # fmt: skip
        until(knows_lag)
    finally:
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=60) == 0
