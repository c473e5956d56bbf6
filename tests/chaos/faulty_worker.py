"""A worker with the narrow places of its stage laid bare: `python -m tests.chaos.faulty_worker STAGE`.

It is the real worker, but for this: after each step that others can see, it looks for a file named after that step in
the folder CHAOS_FAULTS. If one is there, the process sends itself the signal that the file names, right there. Whoever
renames the file first is struck, so one file strikes one worker. Nothing of this is in headrace itself.
"""

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from agents import app
from agents.chunk import Chunker
from agents.commit import Committer
from agents.worker import KafkaWire
from headrace.config import load_settings
from headrace.stores.milvus import MilvusStore
from headrace.stores.opensearch import OpenSearchTextStore
from headrace.versions import Received
from schemas import Key

FAULTS = Path(os.environ["CHAOS_FAULTS"])
STAGE = sys.argv[1]


def strike(point: str, keys: Iterable[Key] = ()) -> None:
    """Die or sleep here if that is planned; a fault that names a document strikes only if it is among the keys."""
    planned = FAULTS / point
    try:
        action, _, key = planned.read_text().partition(" ")
        if key and key not in {str(key) for key in keys}:
            return
        planned.rename(planned.with_name(f"{point}.struck.{os.getpid()}"))
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.Signals[action])


def after(cls: type, method: str, point: str) -> None:
    original = getattr(cls, method)

    @functools.wraps(original)
    def struck(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        strike(point)
        return result

    setattr(cls, method, struck)


def after_sending() -> None:
    original = KafkaWire.send

    async def send(self: KafkaWire, outgoing: Any) -> None:
        await original(self, outgoing)
        if outgoing:
            strike(f"sent-{STAGE}")

    KafkaWire.send = send  # type: ignore[method-assign]


def around_the_flip() -> None:
    """`commit` makes rows searchable, flips, and sweeps both stores one after the other: each a place of its own."""
    make_searchable, sweep, delete = Committer._make_searchable, Committer._sweep, MilvusStore.delete

    def flips(received: dict[Key, Received]) -> list[Key]:
        return [key for key, outcome in received.items() if outcome.became_live is not None]

    def made_searchable(self: Committer, received: dict[Key, Received]) -> None:
        make_searchable(self, received)
        if flips(received):
            strike("made-searchable")

    def flipped_and_swept(self: Committer, received: dict[Key, Received]) -> None:
        if flips(received):
            strike("flipped", flips(received))
        sweep(self, received)
        if any(outcome.sweeps for outcome in received.values()):
            strike("swept")

    def half_swept(self: MilvusStore, tenant: str, ids: Any) -> None:
        delete(self, tenant, ids)
        if ids:
            strike("half-swept")

    patched: list[tuple[type, str, Callable[..., None]]] = [
        (Committer, "_make_searchable", made_searchable),
        (Committer, "_sweep", flipped_and_swept),
        (MilvusStore, "delete", half_swept),
    ]
    for cls, method, replacement in patched:
        setattr(cls, method, replacement)


if __name__ == "__main__":
    after(Chunker, "_admit", "intake-noted")
    after(MilvusStore, "upsert", "vectors-written")
    after(OpenSearchTextStore, "upsert", "texts-written")
    after_sending()
    around_the_flip()
    sys.exit(app.run(STAGE, load_settings()))
