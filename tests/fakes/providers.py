"""A server that speaks the wire formats of OpenAI's chat completions and embeddings, and of Anthropic's messages,
streamed and not.

Each request takes the next behaviour of a script; without one, any question is answered from the numbered sources of
its prompt: `According to the source, "<first sentence>" [1] <first sentence of the second> [2]`.

    with Providers() as server:
        server.script += [Status(429, {"retry-after": "1"}), Cut(after=2)]
        settings = LLMSettings(provider="openai", model="test-model", base_url=server.openai_url, api_key="test-key")

`python -m tests.fakes.providers --port 8900` runs it as a process, which answers alone.
"""

import argparse
import base64
import json
import re
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import numpy as np

KEY = "test-key-0123456789"
MODEL = "test-model"


@dataclass(frozen=True)
class Status:
    """An error instead of an answer. `body` None is the provider's own form."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None


@dataclass(frozen=True)
class Reply:
    """An answer in these pieces; None is the default answer."""

    pieces: Sequence[str] | None = None
    finish: str | None = None
    """In the provider's words; None is its own for a whole answer."""
    usage: bool = True
    pause_s: float = 0
    """Before each piece."""


@dataclass(frozen=True)
class Cut(Reply):
    """The connection is reset after so many pieces."""

    after: int = 1


@dataclass(frozen=True)
class Endless(Reply):
    """The body ends in good order after so many pieces, without the provider's own end."""

    after: int = 1


@dataclass(frozen=True)
class Malformed(Reply):
    """After so many pieces comes this instead of an event's JSON."""

    after: int = 1
    data: bytes = b'{"choices": [{"del'


@dataclass(frozen=True)
class GivesUp(Reply):
    """After so many pieces comes the provider's error event, on a stream that began with 200."""

    after: int = 1


@dataclass(frozen=True)
class Silent:
    """Nothing at all is sent for so long; then the connection is closed."""

    seconds: float = 30.0


@dataclass(frozen=True)
class Embedded:
    """Vectors, the last text's first, each of the length that was asked for, or else of this one."""

    dimension: int = 8
    knows_base64: bool = True
    pause_s: float = 0
    first: int = 0
    """The index of the first one."""
    refuses: str | None = None
    """A text: whatever request holds it gets a 400."""


Behaviour = Status | Reply | Silent | Embedded


@dataclass(frozen=True)
class Asked:
    """A request as it came. `at` is in monotonic seconds."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float

    @property
    def prompt(self) -> str:
        """System and user text, however the provider packs them."""
        texts = [self.body.get("system", ""), *(message["content"] for message in self.body["messages"])]
        return "\n".join(texts)


class Providers:
    """Listens from the beginning of the `with` block to its end."""

    def __init__(self, port: int = 0, default: Behaviour = Reply()) -> None:
        self.script: deque[Behaviour] = deque()
        self.default = default
        self.asked: list[Asked] = []
        self.open = 0
        """Requests that are being answered now."""
        self.most_open = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        providers = self

        class Handler(_Handler):
            server_of_tests = providers

        self._server = _Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_port

    @property
    def anthropic_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def openai_url(self) -> str:
        return f"{self.anthropic_url}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def take(self, asked: Asked) -> Behaviour:
        with self._lock:
            self.asked.append(asked)
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            return self.script.popleft() if self.script else self.default

    def done(self) -> None:
        with self._lock:
            self.open -= 1

    def wait(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    def wait_asked(self, within_s: float = 10) -> None:
        until = time.monotonic() + within_s
        while not self.asked:
            assert time.monotonic() < until, "nobody asks"
            time.sleep(0.01)

    def wait_idle(self, within_s: float = 10) -> None:
        until = time.monotonic() + within_s
        while self.open:
            assert time.monotonic() < until, "a request is still open"
            time.sleep(0.01)


def embedding(text: str, dimension: int) -> list[float]:
    """What a text's vector is, far from length 1."""
    made = np.random.default_rng(list(text.encode())).normal(size=dimension)
    return [float(value) for value in (3 * made).astype(np.float32)]


def default_answer(prompt: str) -> str:
    """From the first two sources, quoted and cited as the instructions ask for."""
    found = re.findall(r'<source-([0-9a-f]+) number="(\d+)">\n(.*?)\n</source-\1>', prompt, re.DOTALL)
    sentences = []
    for _, number, body in found[:2]:
        text = body.split("\n\n", 1)[-1].strip()
        sentence = re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0].replace('"', "'")
        sentences.append(
            f'According to the source, "{sentence}" [{number}]' if not sentences else f"{sentence} [{number}]"
        )
    return " ".join(sentences) if sentences else "NOT_IN_SOURCES"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away, and connections that were cut, are what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_tests: Providers

    def log_message(self, *args: Any, **kwargs: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.path, headers, body, time.monotonic())
        behaviour = self.server_of_tests.take(asked)
        wire: _OpenAI | _Anthropic = _Anthropic(body) if self.path == "/v1/messages" else _OpenAI(body)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):
                self._answer(wire, asked, behaviour)
        finally:
            self.server_of_tests.done()

    def _answer(self, wire: "_OpenAI | _Anthropic", asked: Asked, behaviour: Behaviour) -> None:
        key = asked.headers.get("x-api-key") or asked.headers.get("authorization", "").removeprefix("Bearer ")
        if isinstance(behaviour, Silent):
            self.server_of_tests.wait(behaviour.seconds)
            self.close_connection = True
        elif isinstance(behaviour, Status):
            self._whole(
                behaviour.status, behaviour.body or wire.error(behaviour.status, "as scripted"), behaviour.headers
            )
        elif self.path not in {"/v1/messages", "/v1/chat/completions", "/v1/embeddings"}:
            self._whole(404, wire.error(404, f"no path {self.path}"), {})
        elif key != KEY:
            self._whole(401, wire.error(401, f"Incorrect API key provided: {key}"), {})
        elif asked.body["model"] != MODEL:
            self._whole(404, wire.error(404, f"The model {asked.body['model']} does not exist"), {})
        elif self.path == "/v1/embeddings":
            self._embed(wire, asked.body, behaviour if isinstance(behaviour, Embedded) else Embedded())
        elif isinstance(behaviour, Embedded):
            self._whole(400, wire.error(400, "this is no request for embeddings"), {})
        elif asked.body.get("stream"):
            self._stream(wire, asked, behaviour)
        else:
            pieces = _pieces(behaviour, asked)
            self.server_of_tests.wait(behaviour.pause_s * len(pieces))
            text = wire.whole("".join(pieces), behaviour)
            self._whole(200, behaviour.data if isinstance(behaviour, Malformed) else text.encode(), {})

    def _embed(self, wire: "_OpenAI | _Anthropic", body: dict[str, Any], behaviour: Embedded) -> None:
        self.server_of_tests.wait(behaviour.pause_s)
        in_base64 = body.get("encoding_format") == "base64"
        refused = {"", behaviour.refuses}.intersection(body["input"])
        if refused or (in_base64 and not behaviour.knows_base64):
            self._whole(400, wire.error(400, "input or encoding_format is invalid"), {})
            return
        data = []
        for index, text in enumerate(body["input"], start=behaviour.first):
            vector: Any = embedding(text, body.get("dimensions") or behaviour.dimension)
            if in_base64:
                vector = base64.b64encode(np.array(vector, dtype="<f4").tobytes()).decode()
            data.append({"object": "embedding", "index": index, "embedding": vector})
        self._whole(200, json.dumps({"object": "list", "model": MODEL, "data": data[::-1], "usage": {}}), {})

    def _whole(self, status: int, body: str | bytes, headers: dict[str, str]) -> None:
        raw = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(raw)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def _stream(self, wire: "_OpenAI | _Anthropic", asked: Asked, reply: Reply) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        pieces = _pieces(reply, asked)
        after = reply.after if isinstance(reply, Cut | Endless | Malformed | GivesUp) else None
        for event in wire.begin():
            self._send(event)
        for piece in pieces[:after]:
            self.server_of_tests.wait(reply.pause_s)
            self._send(wire.piece(piece))
        if isinstance(reply, Cut):
            # A reset instead of an orderly end, as of a process that was killed.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        if isinstance(reply, Malformed):
            self._chunk((b"event: content_block_delta\n" if wire.named else b"") + b"data: " + reply.data + b"\n\n")
        if isinstance(reply, GivesUp):
            self._send(wire.gives_up())
        if after is None:
            for event in wire.end(reply, "".join(pieces)):
                self._send(event)
        self._chunk(b"")

    def _send(self, event: str) -> None:
        self._chunk(event.encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


def _pieces(reply: Reply, asked: Asked) -> list[str]:
    if reply.pieces is not None:
        return list(reply.pieces)
    return re.findall(r"\S+\s*", default_answer(asked.prompt))


class _OpenAI:
    named = False

    def __init__(self, asked: dict[str, Any]) -> None:
        self._asked = asked

    def begin(self) -> Iterator[str]:
        yield self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> str:
        return self._chunk({"content": text})

    def end(self, reply: Reply, text: str) -> Iterator[str]:
        yield self._chunk({}, finish=reply.finish or "stop")
        if reply.usage and self._asked.get("stream_options", {}).get("include_usage"):
            yield self._data({"choices": [], "usage": self._usage(text)})
        yield "data: [DONE]\n\n"

    def gives_up(self) -> str:
        return self._data({"error": {"message": "CUDA out of memory", "type": "internal_error"}}, bare=True)

    def whole(self, text: str, reply: Reply) -> str:
        message = {"role": "assistant", "content": text}
        body = {"choices": [{"index": 0, "message": message, "finish_reason": reply.finish or "stop"}]}
        usage = {"usage": self._usage(text)} if reply.usage else {}
        return json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": MODEL} | body | usage)

    def error(self, status: int, message: str) -> str:
        return json.dumps({"error": {"message": message, "type": "error", "code": str(status)}})

    def _usage(self, text: str) -> dict[str, int]:
        read = sum(len(message["content"].split()) for message in self._asked["messages"])
        return {"prompt_tokens": read, "completion_tokens": len(text.split()), "total_tokens": 0}

    def _chunk(self, delta: dict[str, str], finish: str | None = None) -> str:
        return self._data({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def _data(self, data: dict[str, Any], *, bare: bool = False) -> str:
        common = {} if bare else {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
        return f"data: {json.dumps(common | data)}\n\n"


class _Anthropic:
    named = True

    def __init__(self, asked: dict[str, Any]) -> None:
        self._asked = asked

    def begin(self) -> Iterator[str]:
        message = {
            "id": "1",
            "type": "message",
            "role": "assistant",
            "model": MODEL,
            "content": [],
            "stop_reason": None,
        }
        yield self._event(
            "message_start", message=message | {"usage": {"input_tokens": self._read(), "output_tokens": 1}}
        )
        yield self._event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        yield self._event("ping")

    def piece(self, text: str) -> str:
        return self._event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    def end(self, reply: Reply, text: str) -> Iterator[str]:
        yield self._event("content_block_stop", index=0)
        delta = {"stop_reason": reply.finish or "end_turn", "stop_sequence": None}
        usage = {"usage": {"output_tokens": len(text.split())}} if reply.usage else {}
        yield self._event("message_delta", delta=delta, **usage)
        yield self._event("message_stop")

    def gives_up(self) -> str:
        return self._event("error", error={"type": "overloaded_error", "message": "Overloaded"})

    def whole(self, text: str, reply: Reply) -> str:
        message: dict[str, Any] = {"id": "1", "type": "message", "role": "assistant", "model": MODEL}
        message |= {"content": [{"type": "text", "text": text}], "stop_reason": reply.finish or "end_turn"}
        if reply.usage:
            message["usage"] = {"input_tokens": self._read(), "output_tokens": len(text.split())}
        return json.dumps(message)

    def error(self, status: int, message: str) -> str:
        return json.dumps({"type": "error", "error": {"type": f"error_{status}", "message": message}})

    def _read(self) -> int:
        return len(self._asked["system"].split()) + sum(len(one["content"].split()) for one in self._asked["messages"])

    def _event(self, name: str, **data: Any) -> str:
        return f"event: {name}\ndata: {json.dumps({'type': name} | data)}\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    with Providers(parser.parse_args().port) as server:
        print(f"{server.anthropic_url} key {KEY} model {MODEL}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
