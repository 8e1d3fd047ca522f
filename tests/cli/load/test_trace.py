"""Traces in the formats in which they are published, and the loads that replay them."""

from __future__ import annotations

from pathlib import Path

import pytest

from msf_cli.load.arrivals import poisson
from msf_cli.load.mix import Kind, Mix, parse_weighted
from msf_cli.load.trace import Trace, TraceEntry, read_trace
from msf_cli.load.workload import TraceWorkload, Workload

OMNI = """Request(request_id='req-0001', prompt='a city at dawn', width=1536, height=1536, num_inference_steps=70)
Request(request_id='req-0002', prompt='a cup, of (coffee)', width=512, height=512, num_inference_steps=20, seed=3)
"""
LLM = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
LLM_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01+00:00,2399,6
"""
FUNCTIONS = """app,func,end_timestamp,duration
b,f,18.5,0.5
a,f,3.25,0.25
"""


def read(tmp_path: Path, text: str) -> Trace:
    file = tmp_path / "trace"
    file.write_text(text)
    return read_trace(file)


def test_vllm_omnis_requests(tmp_path: Path) -> None:
    assert read(tmp_path, OMNI).entries == (TraceEntry(num_steps=70), TraceEntry(num_steps=20, seed=3))


@pytest.mark.parametrize(("text", "gap_s"), [(LLM, 4.314579), (LLM_2024, 0.99007), (FUNCTIONS, 15.0)])
def test_azures_times(tmp_path: Path, text: str, gap_s: float) -> None:
    first, last = read(tmp_path, text).entries
    assert first.arrived_s is not None
    assert last.arrived_s is not None
    assert last.arrived_s - first.arrived_s == pytest.approx(gap_s, abs=2e-6)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("is empty",)),
        ("time,tokens\n1,2\n", ("no known format", "TIMESTAMP")),
        ("Request(prompt='a')\nRequest(prompt=", ("line 2",)),
        ("Request(prompt=print())", ("line 1",)),
        ("TIMESTAMP\nnoon\n", ("line 2", "noon")),
        ("Request(timestamp=1)\nRequest(prompt='a')", ("a time for 1 of 2",)),
        ("TIMESTAMP\n", ("0 of 0",)),
    ],
)
def test_a_damaged_trace_is_refused_with_the_place(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="trace") as error:
        read(tmp_path, text)
    for part in parts:
        assert part in str(error.value)


def test_a_trace_is_replayed_as_recorded_or_stretched_to_a_rate() -> None:
    trace = Trace(tuple(TraceEntry(arrived_s=100 + 0.5 * place, num_steps=20 + place) for place in range(11)))
    workload = TraceWorkload(poisson, Mix(num_samples=parse_weighted("1,4", int)), trace)
    plan = workload.plan(None, 30.0, 10, seed=0)
    assert [request.due_s for request in plan.requests] == pytest.approx([0.5 * place for place in range(11)])
    assert plan.offered_per_s == pytest.approx(11 / 5)
    fast = workload.plan(20.0, 0.26, 10, seed=0)
    assert [request.due_s for request in fast.requests] == pytest.approx([0.05 * place for place in range(6)])
    assert [request.kind.num_steps for request in fast.requests] == list(range(20, 26))
    assert Kind(25, 4) in workload.kinds


def test_a_trace_without_times_gets_them_from_the_rate() -> None:
    trace = Trace((TraceEntry(num_steps=70), TraceEntry(num_steps=20)))
    plan = TraceWorkload(poisson, Mix(), trace).plan(100.0, 1.0, 10, seed=0)
    assert [request.kind.num_steps for request in plan.requests[:4]] == [70, 20, 70, 20]
    assert plan.offered_per_s == len(plan.requests)


def test_the_offered_rate_is_the_one_that_was_drawn() -> None:
    plan = Workload(poisson, Mix()).plan(2.0, 5.0, 10, seed=0)
    assert plan.offered_per_s == len(plan.requests) / 5.0 != 2.0
