"""Bytes that are almost HTTP, against the process of `msf serve`."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bench.local_stack import free_port
from tests.cli.support import msf
from tests.hostile.conftest import Attempts
from tests.polling import TIMEOUT_S

SILENCE_S = 0.5  # a server that says nothing for this long waits for the rest of a request
NUM_EXAMPLES = 100
LIVE = b"/v2/health/live"
LAST = b"GET " + LIVE + b" HTTP/1.1\r\nHost: last\r\nConnection: close\r\n\r\n"

GOOD = (
    b"GET " + LIVE + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://elsewhere/v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\nA: b\r\n\r\n",
    b"GET /v1/jobs/x/events HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    b"GET " + LIVE + b" HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\n{}",
    b"GET //v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/%2e%2e/v2/health%2flive?%00=%ff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX-Request-ID: a\xff\xe2\x80\xa8\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 100 + b"\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70_000,
    b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n11170\r\n"
    + b"x" * 70_000
    + b"\r\n0\r\n\r\n",
)
BAD = (
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\na",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\na",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
    b"GET / HTTP/1.1\nHost: x\n\n",
    b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/3.7\r\nHost: x\r\n\r\n",
    b"GET /\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
)


@dataclass(frozen=True)
class RawAnswer:
    """One response, without what differs each time."""

    status: int
    body: bytes


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Address of a server without workers, which these requests do not need."""
    folder = tmp_path_factory.mktemp("framing")
    port = free_port()
    variables = {"MSF_PORT": str(port), "MSF_WORKERS": "0", "MSF_DATA_DIR": str(folder / "data")}
    with msf("serve", settings=variables, log=folder / "log"):
        until = time.monotonic() + TIMEOUT_S
        while not is_alive(("127.0.0.1", port)):
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.1)
        yield "127.0.0.1", port
    check_log(folder / "log")


def check_log(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if " ERROR " in line or "Traceback" in line]
    assert not lines, lines[:3]


def is_alive(address: tuple[str, int]) -> bool:
    try:
        return httpx.get(f"http://{address[0]}:{address[1]}{LIVE.decode()}", timeout=TIMEOUT_S).status_code == 200
    except httpx.TransportError:
        return False


def exchange(
    address: tuple[str, int], pieces: Sequence[bytes], *, half_close: bool = False, silence_s: float = SILENCE_S
) -> bytes:
    """Send the pieces, and return everything that the server answers until it closes or falls silent."""
    received = bytearray()
    with socket.create_connection(address, timeout=TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in pieces:
                connection.sendall(piece)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            connection.settimeout(silence_s)
            while data := connection.recv(65_536):
                received += data
        except (TimeoutError, ConnectionError):
            pass
    return bytes(received)


def answers_in(received: bytes) -> list[RawAnswer]:
    """Parse responses strictly; an answer to HEAD announces the length of a body that it lacks."""
    answers = []
    while received:
        match = re.match(rb"HTTP/1\.1 (\d{3}) [ -~]*\r\n((?:[a-z-]+: [ -~]*\r\n)+)\r\n", received)
        assert match, f"not a response: {received[:80]!r}"
        headers = dict(line.split(b": ", 1) for line in match[2].split(b"\r\n") if line)
        received = received[match.end() :]
        assert int(match[1]) < 500, match[0]
        assert b"content-length" in headers, match[0]
        length = 0 if received.startswith(b"HTTP/1.1 ") or not received else int(headers[b"content-length"])
        assert len(received) >= length, "a truncated body"
        answers.append(RawAnswer(int(match[1]), received[:length]))
        received = received[length:]
    return answers


def split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    ends = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(ends)]


places = st.integers(0, 10**6)
cuts = st.lists(places, max_size=12)
examples = settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


def test_pipelined_requests_are_answered_alike_however_they_are_split(
    address: tuple[str, int], attempts: Attempts
) -> None:
    """Odd but complete requests, pipelined and split anywhere."""
    alone = {request: answers_in(exchange(address, [request]))[0] for request in GOOD}

    @examples
    @given(requests=st.lists(st.sampled_from(GOOD), min_size=1, max_size=6), cuts=cuts)
    def ask(requests: list[bytes], cuts: list[int]) -> None:
        attempts.num_tried += 1
        answers = answers_in(exchange(address, split(b"".join([*requests, LAST]), cuts), silence_s=TIMEOUT_S))
        assert [answer.status for answer in answers] == [*(alone[request].status for request in requests), 200]

    ask()
    assert is_alive(address)


def test_a_malformed_request_ends_the_connection_after_the_answers_before_it(
    address: tuple[str, int], attempts: Attempts
) -> None:
    """Malformed requests behind complete ones, split anywhere."""

    @examples
    @given(requests=st.lists(st.sampled_from(GOOD[:6]), max_size=3), bad=st.sampled_from(BAD), cuts=cuts)
    def ask(requests: list[bytes], bad: bytes, cuts: list[int]) -> None:
        attempts.num_tried += 1
        data = b"".join([*requests, bad, LAST])
        whole, pieces = (
            answers_in(exchange(address, sent, silence_s=TIMEOUT_S)) for sent in ([data], split(data, cuts))
        )
        assert len(whole) == len(requests) + 1, "a malformed request has one answer, and none after it"
        assert whole[-1].status in (400, 404, 405)
        assert whole == pieces

    ask()
    assert is_alive(address)


def test_anything_may_be_sent_and_left(address: tuple[str, int], attempts: Attempts) -> None:
    """Changed, truncated and random bytes, half-closed or left open."""
    mutations = st.one_of(
        st.binary(max_size=300),
        st.builds(
            lambda request, end: request[: end % len(request)], st.sampled_from(GOOD + BAD), st.integers(0, 10**6)
        ),
        st.builds(
            lambda request, place, byte: request[: place % 120] + byte + request[place % 120 + 1 :],
            st.sampled_from(GOOD + BAD),
            st.integers(0, 10**6),
            st.binary(max_size=2),
        ),
    )

    @examples
    @given(parts=st.lists(mutations, min_size=1, max_size=3), half_close=st.booleans())
    def ask(parts: list[bytes], half_close: bool) -> None:
        attempts.num_tried += 1
        answers_in(exchange(address, parts, half_close=half_close))

    ask()
    assert is_alive(address)
