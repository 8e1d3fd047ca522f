"""Summary of a load: percentiles, throughput, outcomes, and the share of requests that met their objectives."""

from __future__ import annotations

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

    `attainment`: for each scale k, the share of *all* requests that succeeded within k times their kind's standalone
    latency; empty when that was not measured.
    """

    num_requests: int
    outcomes: dict[str, int]
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    queue_p50_s: float | None
    attainment: dict[float, float]


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
        overall=_group(results, standalone, slo_scales),
        kinds={kind.name: _group(by_kind[kind], standalone, slo_scales) for kind in sorted(by_kind, key=_by_cost)},
        errors=dict(Counter(result.error for result in results if result.error).most_common()),
    )


def standalone_latencies(alone: Sequence[RequestResult]) -> dict[Kind, float]:
    """Return the median latency of each kind in the results of `measure_alone`."""
    latencies: dict[Kind, list[float]] = defaultdict(list)
    for result in alone:
        latencies[result.kind].append(result.latency_s)
    return {kind: median(values) for kind, values in latencies.items()}


def _group(results: Sequence[RequestResult], standalone: Standalone, slo_scales: Sequence[float]) -> Group:
    succeeded = [result for result in results if result.outcome is RequestOutcome.SUCCEEDED]
    latencies = [result.latency_s for result in succeeded]
    queued = [result.timings_ms["queue"] / 1000 for result in succeeded if "queue" in result.timings_ms]
    attainment = {
        scale: _share(sum(r.latency_s <= scale * standalone[r.kind] for r in succeeded), len(results))
        for scale in (slo_scales if standalone else ())
    }
    return Group(
        num_requests=len(results),
        outcomes={outcome.value: count for outcome, count in Counter(r.outcome for r in results).items()},
        p50_s=percentile(latencies, 0.50),
        p95_s=percentile(latencies, 0.95),
        p99_s=percentile(latencies, 0.99),
        queue_p50_s=percentile(queued, 0.50),
        attainment=attainment,
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _by_cost(kind: Kind) -> tuple[float, ...]:
    return kind.num_steps or 0, kind.num_samples, kind.guidance_scale or 0.0
