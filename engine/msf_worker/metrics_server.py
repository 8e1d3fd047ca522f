"""HTTP server of a worker, in a thread: /metrics for Prometheus, /live and /ready for orchestrators."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class MetricsServer:
    """Listens from the start, before the worker is ready: `is_ready` is set once it can serve."""

    def __init__(self, registry: CollectorRegistry, port: int) -> None:
        """Listen on `port`, 0 for any free one. Raises OSError if it is not available."""
        self.is_ready = False
        self._metrics = make_wsgi_app(registry)
        self._server = make_server("", port, self._respond, ThreadingWSGIServer, handler_class=_SilentHandler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, name="metrics server", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def _respond(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                response: Iterable[bytes] = self._metrics(environ, start_response)
                return response
            case "/live":
                return _plain(start_response, "200 OK", "live")
            case "/ready" if self.is_ready:
                return _plain(start_response, "200 OK", "ready")
            case "/ready":
                return _plain(start_response, "503 Service Unavailable", "models are still being loaded")
        return _plain(start_response, "404 Not Found", "Unknown path. Allowed: /metrics, /live, /ready")


def _plain(start_response: StartResponse, status: str, text: str) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: scrapes are routine."""
