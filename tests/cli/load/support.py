"""A small HTTP server in a thread that answers as it is told, and plans to send to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from msf_cli.load.mix import Kind, PlannedRequest

MODELS = {"data": [{"id": "tiny:1", "name": "tiny", "labels": ["circle", "square", "star"]}]}
Answer = tuple[int, dict[str, Any]]


def succeed(_: dict[str, Any]) -> Answer:
    return 200, {"data": []}


def refusal(status: int, code: str) -> Answer:
    return status, {"error": {"code": code, "message": f"told to answer {code}"}}


@dataclass
class Fake:
    """`answer` makes the answer to an image request's body, in a thread of its own; it may wait."""

    answer: Callable[[dict[str, Any]], Answer] = succeed
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)  # of image requests, as they came
    num_connections: int = 0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Some tests break connections."""


@contextmanager
def serving(fake: Fake) -> Iterator[Fake]:
    class _Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            fake.num_connections += 1

        def do_GET(self) -> None:
            self._send(200, MODELS)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.bodies.append(body)
            self._send(*fake.answer(body))

        def _send(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Server-Timing", "queue;dur=1.500, base;dur=20.000, total;dur=25.250")
            with suppress(ConnectionError):  # the caller has left
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Tests are quiet."""

    with _Server(("127.0.0.1", 0), _Handler) as server:
        fake.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()


def planned(due_s: Sequence[float], kind: Kind = Kind()) -> list[PlannedRequest]:  # noqa: B008  frozen
    return [PlannedRequest(due, kind, label=0, seed=place) for place, due in enumerate(due_s)]
