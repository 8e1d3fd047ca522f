"""The generator against a fake server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from msf_cli.load.generator import LoadClient, LoadError, closed_loop, measure_alone, open_loop
from msf_cli.load.mix import Kind, PlannedRequest
from msf_cli.load.results import LoadTally, RequestOutcome
from tests.cli.load.support import Answer, Fake, planned, refusal, serving, succeed

PATIENCE_S = 60.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  a thread decides
            await asyncio.sleep(0.005)


async def test_each_planned_request_is_sent_once_with_all_its_fields() -> None:
    requests = [
        PlannedRequest(0.0, Kind(4, 2, 1.5), label=2, seed=11),
        PlannedRequest(0.01, Kind(), label=0, seed=12),
    ]
    tally = LoadTally()
    with serving(Fake()) as fake:
        async with LoadClient(fake.url, body={"user": "ann"}) as client:
            await open_loop(client, requests, tally)
    assert sorted(fake.bodies, key=lambda body: int(body["seed"])) == [
        {"prompt": "2", "n": 2, "seed": 11, "num_steps": 4, "guidance_scale": 1.5, "cache": False, "user": "ann"},
        {"prompt": "0", "n": 1, "seed": 12, "cache": False, "user": "ann"},
    ]
    assert (tally.num_sent, tally.num_in_flight) == (2, 0)
    assert tally.results[0].timings_ms == {"queue": 1.5, "base": 20.0, "total": 25.25}


async def test_every_outcome_has_a_name() -> None:
    answers: dict[int, Answer] = {
        0: succeed({}),
        1: refusal(429, "queue_full"),
        2: refusal(504, "deadline"),
        3: refusal(500, "failed"),
        4: (502, {}),
    }
    tally = LoadTally()
    with serving(Fake(lambda body: answers[body["seed"]])) as fake:
        async with LoadClient(fake.url) as client:
            await open_loop(client, planned([0.0] * 5), tally)
    async with LoadClient(fake.url) as client:
        await open_loop(client, planned([0.0]), tally)
    ends = {(result.outcome, result.status, result.error) for result in tally.results}
    assert ends == {
        (RequestOutcome.SUCCEEDED, 200, None),
        (RequestOutcome.REFUSED, 429, "429 queue_full: told to answer queue_full"),
        (RequestOutcome.EXPIRED, 504, "504 deadline: told to answer deadline"),
        (RequestOutcome.FAILED, 500, "500 failed: told to answer failed"),
        (RequestOutcome.FAILED, 502, "status 502"),
        (RequestOutcome.UNREACHED, None, "ClientConnectorError"),
    }


@pytest.mark.parametrize("max_connections", [None, 1])
async def test_a_stall_shows_in_every_request_due_while_it_lasts(max_connections: int | None) -> None:
    """Even when the stall leaves requests without a connection."""
    resume = threading.Event()

    def stall(body: dict[str, Any]) -> Answer:
        assert resume.wait(PATIENCE_S)
        return succeed(body)

    due_s = [place / 100 for place in range(20)]
    tally = LoadTally()
    with serving(Fake(stall)) as fake:
        async with LoadClient(fake.url, max_connections=max_connections) as client:
            load = asyncio.create_task(open_loop(client, planned(due_s), tally))
            # A generator that waits for answers before it sends more never gets here.
            await until(lambda: tally.num_sent == len(due_s))
            resume.set()
            await load
    assert len(tally.results) == len(due_s)
    stalled_s = max(result.sent_s for result in tally.results)  # nothing was answered before
    assert all(result.latency_s >= stalled_s - result.due_s for result in tally.results)


async def test_connections_are_reused_unless_broken() -> None:
    def leave_at_the_third(body: dict[str, Any]) -> Answer:
        if body["seed"] == 2:
            raise ConnectionAbortedError
        return succeed(body)

    tally = LoadTally()
    with serving(Fake(leave_at_the_third)) as fake:
        async with LoadClient(fake.url) as client:
            await closed_loop(client, planned([0.0] * 6), num_in_flight=1, tally=tally)
    assert tally.outcomes == {RequestOutcome.SUCCEEDED: 5, RequestOutcome.UNREACHED: 1}
    assert fake.num_connections == 2


async def test_a_late_generator_does_not_flatter_the_server() -> None:
    tally = LoadTally()
    with serving(Fake()) as fake:
        async with LoadClient(fake.url) as client:
            await open_loop(client, planned([-2.0]), tally)  # due two seconds before the start
    (result,) = tally.results
    assert result.late_s >= 2.0
    assert result.latency_s >= result.late_s


async def test_a_stopped_load_keeps_its_results() -> None:
    resume = threading.Event()

    def stall_after_the_first(body: dict[str, Any]) -> Answer:
        assert body["seed"] == 0 or resume.wait(PATIENCE_S)
        return succeed(body)

    tally = LoadTally()
    with serving(Fake(stall_after_the_first)) as fake:
        async with LoadClient(fake.url) as client:
            load = asyncio.create_task(open_loop(client, planned([0.0, 0.0, 0.0, 1000.0]), tally))
            await until(lambda: len(tally.results) == 1 and len(fake.bodies) == 3)
            load.cancel()
            with pytest.raises(asyncio.CancelledError):
                await load
        resume.set()
    assert tally.outcomes == {RequestOutcome.SUCCEEDED: 1, RequestOutcome.UNFINISHED: 2}
    assert tally.num_in_flight == 0


async def test_a_closed_loop_keeps_a_number_of_requests_in_flight() -> None:
    """Three requests meet at a barrier: fewer would break it, more would be counted."""
    barrier = threading.Barrier(3)
    inside, most, lock = 0, 0, threading.Lock()

    def meet(body: dict[str, Any]) -> Answer:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        barrier.wait(PATIENCE_S)
        with lock:
            inside -= 1
        return succeed(body)

    tally = LoadTally()
    with serving(Fake(meet)) as fake:
        async with LoadClient(fake.url) as client:
            await closed_loop(client, planned([0.0] * 30), num_in_flight=3, tally=tally)
    assert most == 3
    assert tally.outcomes == {RequestOutcome.SUCCEEDED: 30}


async def test_each_kind_is_measured_alone_after_a_warm_up() -> None:
    kinds = [Kind(4, 1), Kind(20, 4)]
    with serving(Fake()) as fake:
        async with LoadClient(fake.url) as client:
            results = await measure_alone(client, kinds, num_runs=2)
    assert [result.kind for result in results] == [kinds[0], kinds[0], kinds[1], kinds[1]]
    assert len(fake.bodies) == 6


async def test_a_request_refused_alone_stops_the_load_with_the_server_s_reason() -> None:
    with serving(Fake(lambda _: refusal(400, "invalid_value"))) as fake:
        async with LoadClient(fake.url) as client:
            with pytest.raises(LoadError, match=r"alone \(4 steps, n=1\) failed: 400 invalid_value: told to"):
                await measure_alone(client, [Kind(4, 1)], num_runs=1)


async def test_labels_are_those_of_the_requested_model() -> None:
    with serving(Fake()) as fake:
        for model in (None, "tiny", "tiny:1"):
            async with LoadClient(fake.url, body={"model": model} if model else {}) as client:
                assert await client.num_labels() == 3
        async with LoadClient(fake.url, body={"model": "big"}) as client:
            with pytest.raises(LoadError, match=r"Unknown model 'big'. Allowed: tiny:1"):
                await client.num_labels()
    async with LoadClient(fake.url) as client:
        with pytest.raises(LoadError, match=f"Cannot list the models of {fake.url}"):
            await client.num_labels()
