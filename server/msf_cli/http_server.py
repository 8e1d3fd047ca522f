"""uvicorn as `msf serve` runs it: stopped from outside, and with an end to its shutdown."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from msf_cli.setup_checks import IncompleteSetup
from msf_server.drain import Drain
from msf_server.middleware.http_protocol import server_config

logger = logging.getLogger(__name__)

ANSWER_S = 1.0  # for the answers of requests that were cut short, and again for what they clean up


class HttpServer(uvicorn.Server):
    """Server of one application. Signals are the caller's, from before the start to after the end."""

    def __init__(self, app: FastAPI, drain_timeout_s: float) -> None:
        super().__init__(server_config(app))
        self._drain: Drain = app.state.drain
        self._drain_timeout_s = drain_timeout_s

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """Accept no more connections, answer accepted requests within the drain timeout, then return from `serve`."""
        if not self.should_exit:
            self.should_exit = True
            self._drain.begin()
            asyncio.get_running_loop().call_later(self._drain_timeout_s, self.cut_short)

    def cut_short(self) -> None:
        """Answer with 503 at once."""
        if not self._drain.is_cut_short:
            self._drain.cut_short()
            asyncio.get_running_loop().call_later(ANSWER_S, self._drain.cut_short)
            asyncio.get_running_loop().call_later(2 * ANSWER_S, self._abort)

    def _abort(self) -> None:
        """Give up clients that do not read, and requests that do not end."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for task in self.server_state.tasks:
            task.cancel()


def listen(host: str, port: int, setting: str = "MSF_PORT") -> socket.socket:
    """Return a listening socket. Raises IncompleteSetup if the address cannot be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0]
        # asyncio disables Nagle's algorithm, 40 ms per answer, only on sockets created as TCP.
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise _cannot_listen(host, port, setting, error) from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen()  # another process could still bind a port that is only bound
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, setting, error) from error
    return listener


def _cannot_listen(host: str, port: int, setting: str, error: Exception) -> IncompleteSetup:
    reason = error.strerror if isinstance(error, OSError) else error
    return IncompleteSetup(f"MSF_HOST={host} {setting}={port}: cannot listen: {reason}")
