"""An endpoint that speaks OpenAI's chat completions as far as a query worker asks: streamed, with or without usage."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAME = "same-answer"
ANSWER = "It opens at six [1]."


class LanguageModel:
    """Gives the same cited answer to whatever is asked."""

    def __init__(self, url: str) -> None:
        self.counts = True
        """Whether it says how many tokens it read and wrote; some servers don't."""
        self.environment: Mapping[str, str] = {
            "HEADRACE_LLM__PROVIDER": "openai",
            "HEADRACE_LLM__MODEL": NAME,
            "HEADRACE_LLM__BASE_URL": url,
            **prices(1),
        }

    def events(self, prompt: str) -> Iterator[dict[str, Any]]:
        yield _chunk({"role": "assistant", "content": ANSWER})
        yield _chunk({}, finish="stop")
        if self.counts:
            read, wrote = len(prompt.split()), len(ANSWER.split())
            usage = {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}
            yield _completion(choices=[], usage=usage)


def prices(million_tokens: float) -> dict[str, str]:
    """The settings of a model that costs this."""
    return {f"HEADRACE_LLM__{way}_PRICE": str(million_tokens) for way in ("INPUT", "OUTPUT")}


@contextmanager
def language_model() -> Iterator[LanguageModel]:
    """It listens until the end, on this machine alone."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            events = model.events(" ".join(message["content"] for message in asked["messages"]))
            body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    model = LanguageModel(f"http://127.0.0.1:{server.server_port}/v1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield model
    finally:
        server.shutdown()
        server.server_close()


def _chunk(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return _completion(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])


def _completion(**rest: Any) -> dict[str, Any]:
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": NAME, **rest}
