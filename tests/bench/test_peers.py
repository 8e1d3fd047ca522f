"""Benchmark against other servers: its client, its figures and its report."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from itertools import repeat
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from PIL import Image

from bench.mixed_load import MIX
from bench.peers.client import PeerClient, closed_loop, complete_answer, open_loop
from bench.peers.comparison import Comparison
from bench.peers.contenders import OURS, PEERS, StartError, serve_peer
from bench.peers.installation import peer_requirements
from bench.peers.measurements import LoadName, LoadRun, PlansAlone, answered_between
from bench.peers.pipeline import PATH, Pipeline, PipelineOptions
from bench.peers.report import markdown, results_json
from msf_cli.load.mix import Kind, PlannedRequest
from msf_cli.load.results import RequestOutcome, RequestResult
from msf_worker.settings import WorkerSettings

FAST = Kind(num_steps=4)
NOOP = PipelineOptions("fashion-mnist", WorkerSettings(model_repo=Path("model_repo").resolve()), noop=True)


def answered(kind: Kind, ended_s: float, *, due_s: float = 0.0) -> RequestResult:
    return RequestResult(kind, due_s, due_s, ended_s, RequestOutcome.SUCCEEDED, 200)


def closed_run(contender: str, number: int, num_answers: int, latency_s: float, level: float = 1) -> LoadRun:
    results = [answered(Kind(), latency_s)] * num_answers
    return LoadRun(contender, number, LoadName.CLOSED, level, 10.0, 0.1, results)


@pytest.fixture
def comparison() -> Comparison:
    """Two rounds in which the peer makes more images and serves short requests later."""
    comparison = Comparison(["a machine"], {"ray": "pip cannot install ray"})
    for number in range(2):
        comparison.plans.append(PlansAlone({16: 8.0, 32: 10.0}, 20.0))
        for name, num_answers, alone_s, fast_s in ((OURS, 50 + 10 * number, 0.02, 0.05), ("mosec", 100, 0.01, 0.5)):
            comparison.runs.append(closed_run(name, number, num_answers, 0.1))
            alone = [answered(kind, alone_s) for kind in MIX.kinds]
            comparison.runs.append(LoadRun(name, number, LoadName.ALONE, 1, 10.0, 0.1, alone))
            mixed = [answered(FAST, latency_s) for latency_s in (0.02, 0.03, fast_s)]
            comparison.runs.append(LoadRun(name, number, LoadName.MIXED, 8.0, 10.0, 0.1, mixed))
    return comparison


@asynccontextmanager
async def http_server(statuses: Iterable[int]) -> AsyncIterator[str]:
    """Answer requests with these statuses in turn; at 0, close the connection."""
    remaining = iter(statuses)

    async def answer(request: web.Request) -> web.Response:
        status = next(remaining)
        if not status and request.transport is not None:
            request.transport.close()
        return web.json_response({}, status=status or 200)

    app = web.Application()
    app.router.add_post(PATH, answer)
    async with TestServer(app) as server:
        yield str(server.make_url(""))


@pytest.mark.parametrize(
    ("received", "answer"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", (200, b"{}")),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", (503, b"")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", (200, b"{}")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", None),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{", None),
        (b"HTTP/1.1 200 OK\r\ncontent-", None),
    ],
)
def test_an_answer_is_complete_with_its_length_or_its_last_chunk(
    received: bytes, answer: tuple[int, bytes] | None
) -> None:
    assert complete_answer(received) == answer


async def test_a_closed_loop_keeps_each_caller_waiting_for_one_answer() -> None:
    async with http_server(repeat(200)) as url, PeerClient(url) as client:
        results = await closed_loop(client, Kind(), num_callers=3, duration_s=0.2)
    assert {result.outcome for result in results} == {RequestOutcome.SUCCEEDED}
    moments = [(result.sent_s, 1) for result in results] + [(result.ended_s, -1) for result in results]
    in_flight = num_in_flight = 0
    for _, change in sorted(moments):
        num_in_flight += change
        in_flight = max(in_flight, num_in_flight)
    assert in_flight == 3


async def test_a_failed_request_is_a_result_with_its_reason() -> None:
    async with http_server([0, 500, 200]) as url, PeerClient(url) as client:
        results = [await client.send(PlannedRequest(0.0, Kind(), 0, seed), 0.0) for seed in range(3)]
    expected = [RequestOutcome.UNREACHED, RequestOutcome.FAILED, RequestOutcome.SUCCEEDED]
    assert [result.outcome for result in results] == expected
    assert results[1].error == "500 {}"


async def test_an_open_loop_answers_in_the_order_of_its_plan() -> None:
    requests = [PlannedRequest(due_s, FAST, 0, seed) for seed, due_s in enumerate((0.0, 0.01, 0.01, 0.03))]
    async with http_server(repeat(200)) as url, PeerClient(url) as client:
        results = await open_loop(client, requests)
    assert [result.due_s for result in results] == [request.due_s for request in requests]
    assert all(result.sent_s >= result.due_s for result in results)


def test_a_closed_loop_counts_neither_its_start_nor_its_end() -> None:
    results = [answered(Kind(), ended_s) for ended_s in (0.5, 1.0, 1.9, 2.0)]
    assert [result.ended_s for result in answered_between(results, 1.0, 2.0)] == [1.0, 1.9]


def test_the_objective_is_the_same_for_all_servers(comparison: Comparison) -> None:
    assert comparison.objectives_s()[FAST] == pytest.approx(0.03)  # 3 × the fastest server's 10 ms
    assert comparison.goodput_per_s(OURS, 8.0).values == (0.2, 0.2)  # two of three requests, in 10 s
    assert comparison.kind_latency_ms("mosec", 8.0, FAST, 0.99) == pytest.approx(500)
    assert comparison.kind_latency_ms("mosec", 8.0, Kind(100), 0.99) is None


def test_ratios_are_of_figures_of_the_same_round(comparison: Comparison) -> None:
    assert comparison.ratio(LoadName.CLOSED, 1, "mosec").values == (0.5, 0.6)
    assert comparison.plans_ratio(1).values == (0.5, 0.6)  # over the plans' best batch size
    assert comparison.offered_rates() == [8.0, 14.0, 18.0, 24.0]


def test_a_turn_that_a_peer_missed_has_no_ratio(comparison: Comparison) -> None:
    comparison.runs = [run for run in comparison.runs if (run.contender, run.round_number) != ("mosec", 0)]
    assert comparison.ratio(LoadName.CLOSED, 1, "mosec").values == (0.6,)


def test_a_server_without_answers_is_not_the_fastest(comparison: Comparison) -> None:
    comparison.runs.append(LoadRun("mosec", 0, LoadName.CLOSED, 16, 10.0, 0.1, []))
    assert comparison.latency_ms("mosec", LoadName.CLOSED, 16, 0.5).median == float("inf")
    assert comparison.contenders(LoadName.CLOSED) == ["mosec"]  # ours has no result with 16 callers


def test_the_report_says_where_we_are_behind_and_what_was_skipped(comparison: Comparison) -> None:
    text = markdown(comparison)
    verdicts = {cells[1]: cells[-2] for line in text.splitlines() if len(cells := re.split(r" *\| *", line)) > 3}
    assert verdicts["closed loop, 1 caller: images/s"] == "behind"
    assert verdicts["mixed load, 8 requests/s: p99 of 4 steps, n=1, ms"] == "ahead"
    assert "skipped: ray: pip cannot install ray" in text
    assert '"skipped": {\n  "ray": "pip cannot install ray"' in results_json(comparison)


def test_the_report_says_whether_all_servers_made_the_same_image(comparison: Comparison) -> None:
    comparison.pixels = {OURS: "a", "mosec": "a"}
    assert "all servers answer the same request with the same pixels" in markdown(comparison)
    comparison.pixels["mosec"] = "b"
    assert "NOT the same pixels as msf-serve for the same request: mosec" in markdown(comparison)


def test_a_peer_without_its_package_is_reported_with_the_reason() -> None:
    with pytest.raises(StartError, match="No module named 'mosec'"), serve_peer("mosec", Path(sys.executable), NOOP):
        pass


def test_every_peer_has_a_requirement() -> None:
    assert peer_requirements().keys() == PEERS.keys()


def test_a_peer_answers_each_request_with_its_own_images(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NOOP.environment().items():
        monkeypatch.setenv(name, value)
    one, several = Pipeline.from_environment().answer(
        [{"prompt": "3", "seed": 1}, {"prompt": "4", "n": 3, "seed": 2, "num_steps": 100}]
    )
    assert (one["seed"], one["num_steps"], len(one["data"])) == (1, 16, 1)
    assert (several["seed"], several["num_steps"]) == (2, 100)
    assert [image["index"] for image in several["data"]] == [0, 1, 2]
    image = Image.open(io.BytesIO(base64.b64decode(several["data"][2]["b64_json"])))
    assert image.format == "PNG"
