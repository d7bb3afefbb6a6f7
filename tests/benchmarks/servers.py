"""Scripted servers for tests of what asks endpoints."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Endpoint(ThreadingHTTPServer):
    """Speaks as the chat endpoints of OpenAI do; what it says is scripted, `None` is a failure."""

    def __init__(self, *script: Any) -> None:
        self.script, self.asked, self.lock = list(script), [], threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append({**body, "key": self.headers["Authorization"]})
            say = (
                self.server.script.pop(0) if len(self.server.script) > 1 else self.server.script[0]
            )
        if callable(say):
            say = say(body)
        code, content = (say, "secret-words") if isinstance(say, int) else (200, say)
        if say == "not json":
            data = b"<html>not json"
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": content}}
            usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
            fields = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
            data = json.dumps({**fields, "choices": [choice], "usage": usage}).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Callable[..., Endpoint]]:
    """Starts endpoints, and stops them."""
    started: list[Endpoint] = []

    def start(*script: Any) -> Endpoint:
        started.append(Endpoint(*script))
        return started[-1]

    try:
        yield start
    finally:
        for server in started:
            server.shutdown()
            server.server_close()
