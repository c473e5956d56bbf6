"""Harm to the servers, one after the other, in a thread of its own: each is waited for until it answers again."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import opensearchpy
from opensearchpy import OpenSearch

from tests.chaos.servers import OwnServers, ServerName
from tests.chaos.workload import Outage

FLOODERS = 12
FLOOD_BYTES = 9_000_000
"""Together more than a tenth of OpenSearch's heap, which is what it takes in at once; it refuses the rest with 429."""


@dataclass(frozen=True)
class Over:
    """An outage that is over. Times are monotonic; `refused` counts the 429 that a flood got itself."""

    outage: Outage
    began: float
    answered: float
    """When all servers answered again."""
    refused: int = 0


@dataclass
class Outages:
    servers: OwnServers
    index: str
    """A pattern of the indexes that get read-only while the disk is `full`."""
    plan: Sequence[Outage]
    ready: Callable[[], bool]
    """Whether the pipeline is whole: the next server isn't harmed before."""
    say: Callable[[str], None]
    over: list[Over] = field(default_factory=list)
    broken: Exception | None = None
    _enough: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="outages", daemon=True)
        self._thread.start()

    def done(self) -> bool:
        return self._thread is not None and not self._thread.is_alive()

    def stop(self) -> None:
        """No further ones; returns when the one that is under way is over."""
        self._enough.set()
        if self._thread is not None:
            self._thread.join(300)

    def _run(self) -> None:
        try:
            for outage in self.plan:
                self._enough.wait(outage.wait_s)
                while not self.ready() and not self._enough.is_set():
                    time.sleep(0.2)
                if self._enough.is_set():
                    return
                self.say(f"{outage.harm} {outage.server} for {outage.seconds:.0f} s")
                began = time.monotonic()
                refused = self._harm(outage)
                self.over.append(Over(outage, began, time.monotonic(), refused))
                self.say(f"{outage.server} answers again")
        except Exception as exc:  # noqa: BLE001  # the test's thread is the one to fail
            self.broken = exc

    def _harm(self, outage: Outage) -> int:
        server = cast(ServerName, outage.server)
        match outage.harm:
            case "kill":
                self.servers.kill(server)
                self.servers.back(server)
            case "stop" | "freeze":
                with self.servers.away(server, frozen=outage.harm == "freeze"):
                    time.sleep(outage.seconds)
            case "full":
                self._full(outage.seconds)
            case "flood":
                return self._flood(outage.seconds)
        return 0

    def _full(self, seconds: float) -> None:
        """What OpenSearch does to its indexes when the disk is nearly full: writes get 429."""
        client = self._opensearch()
        for blocked in (True, None):
            settings = {"index.blocks.read_only_allow_delete": blocked}
            client.indices.put_settings(body=settings, index=self.index, params={"expand_wildcards": "all"})
            if blocked:
                time.sleep(seconds)
        client.close()

    def _flood(self, seconds: float) -> int:
        """Large bulk requests from many sides, until OpenSearch refuses what comes on top."""
        until, refused = time.monotonic() + seconds, []
        body = (b'{"index": {"_index": "flood"}}\n{"text": "%s"}\n' % (b"flood " * 15_000)) * (FLOOD_BYTES // 90_000)

        def flood() -> None:
            client = self._opensearch()
            while time.monotonic() < until:
                with suppress(opensearchpy.ConnectionError):
                    try:
                        answered: Any = client.bulk(body=body, params={"request_timeout": 30})
                        refused.extend(item for item in answered["items"] if item["index"]["status"] == 429)
                    except opensearchpy.TransportError as exc:
                        refused.append(exc)
            client.close()

        flooders = [threading.Thread(target=flood) for _ in range(FLOODERS)]
        for flooder in flooders:
            flooder.start()
        for flooder in flooders:
            flooder.join()
        client = self._opensearch()
        client.indices.delete(index="flood", params={"request_timeout": 60})
        client.close()
        return len(refused)

    def _opensearch(self) -> OpenSearch:
        return OpenSearch(hosts=[self.servers.settings.stores.opensearch.url], max_retries=0)
