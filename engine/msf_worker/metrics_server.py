"""A worker's own HTTP endpoint, in a thread: /metrics for Prometheus, /live and /ready for orchestrators."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class Endpoint:
    """Listens from its start on; `is_ready` is set by whoever finds the worker able to make images."""

    def __init__(self, registry: CollectorRegistry, port: int) -> None:
        """Raises OSError where `port` cannot be had; 0 takes any."""
        self.is_ready = False
        self._metrics = make_wsgi_app(registry)
        self._server = make_server("", port, self._answer, ThreadingWSGIServer, handler_class=_Quiet)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, name="endpoint", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                answer: Iterable[bytes] = self._metrics(environ, start_response)
                return answer
            case "/live":
                return _plain(start_response, "200 OK", "live")
            case "/ready" if self.is_ready:
                return _plain(start_response, "200 OK", "ready")
            case "/ready":
                return _plain(start_response, "503 Service Unavailable", "plans are not loaded, or it is draining")
        return _plain(start_response, "404 Not Found", "allowed: /metrics, /live, /ready")


def _plain(start_response: StartResponse, status: str, text: str) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no news."""
