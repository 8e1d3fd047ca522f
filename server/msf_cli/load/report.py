"""Summary of a load: percentiles, throughput, outcomes, and the share of requests that met their objectives."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from msf_cli.load.mix import Kind
from msf_cli.load.results import RequestOutcome, RequestResult
from msf_cli.percentiles import percentile

LATE_S = 0.005
Standalone = Mapping[Kind, float]  # seconds that a request of each kind takes on an idle server


@dataclass(frozen=True)
class Group:
    """Statistics of a group of requests. Percentiles are of those that succeeded, None without any.

    `slo_attainment`: for each scale k, the share of *all* requests that succeeded within their objective, which is k
    times the standalone latency of their kind unless a trace gives another; empty without any. `goodput_per_s`: those
    requests per second.
    """

    num_requests: int
    outcomes: dict[str, int]
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    queue_p50_s: float | None
    slo_attainment: dict[float, float]
    goodput_per_s: dict[float, float]


@dataclass(frozen=True)
class Report:
    """`elapsed_s`: from the start to the last answer. `late_share`: share sent more than `LATE_S` late."""

    elapsed_s: float
    requests_per_s: float
    images_per_s: float
    late_share: float
    overall: Group
    kinds: dict[str, Group]
    errors: dict[str, int]


def summarize(results: Sequence[RequestResult], standalone: Standalone, slo_scales: Sequence[float]) -> Report:
    """Summarize a load. `standalone` is empty, or has every kind in `results`."""
    elapsed_s = max((result.ended_s for result in results), default=0.0)
    succeeded = [result for result in results if result.outcome is RequestOutcome.SUCCEEDED]
    num_images = sum(result.kind.num_samples for result in succeeded)
    by_kind: dict[Kind, list[RequestResult]] = defaultdict(list)
    for result in results:
        by_kind[result.kind].append(result)
    return Report(
        elapsed_s=elapsed_s,
        requests_per_s=len(succeeded) / elapsed_s if elapsed_s else 0.0,
        images_per_s=num_images / elapsed_s if elapsed_s else 0.0,
        late_share=_share(sum(result.late_s > LATE_S for result in results), len(results)),
        overall=_group(results, standalone, slo_scales, elapsed_s),
        kinds={
            kind.name: _group(by_kind[kind], standalone, slo_scales, elapsed_s)
            for kind in sorted(by_kind, key=_by_cost)
        },
        errors=dict(Counter(result.error for result in results if result.error).most_common()),
    )


def standalone_latencies(alone: Sequence[RequestResult]) -> dict[Kind, float]:
    """Return the median latency of each kind in the results of `measure_alone`."""
    latencies: dict[Kind, list[float]] = defaultdict(list)
    for result in alone:
        latencies[result.kind].append(result.latency_s)
    return {kind: median(values) for kind, values in latencies.items()}


def _group(
    results: Sequence[RequestResult], standalone: Standalone, slo_scales: Sequence[float], elapsed_s: float
) -> Group:
    succeeded = [result for result in results if result.outcome is RequestOutcome.SUCCEEDED]
    latencies = [result.latency_s for result in succeeded]
    queued = [result.timings_ms["queue"] / 1000 for result in succeeded if "queue" in result.timings_ms]
    has_objectives = bool(standalone) or any(result.slo_s is not None for result in results)
    num_good = {
        scale: sum(result.latency_s <= _objective_s(result, standalone, scale) for result in succeeded)
        for scale in (slo_scales if has_objectives else ())
    }
    return Group(
        num_requests=len(results),
        outcomes={outcome.value: count for outcome, count in Counter(r.outcome for r in results).items()},
        p50_s=percentile(latencies, 0.50),
        p95_s=percentile(latencies, 0.95),
        p99_s=percentile(latencies, 0.99),
        queue_p50_s=percentile(queued, 0.50),
        slo_attainment={scale: _share(number, len(results)) for scale, number in num_good.items()},
        goodput_per_s={scale: number / elapsed_s for scale, number in num_good.items() if elapsed_s},
    )


def _objective_s(result: RequestResult, standalone: Standalone, scale: float) -> float:
    if result.slo_s is not None:
        return result.slo_s
    return scale * standalone[result.kind] if standalone else math.inf


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _by_cost(kind: Kind) -> tuple[float, ...]:
    return kind.num_steps or 0, kind.num_samples, kind.guidance_scale or 0.0
