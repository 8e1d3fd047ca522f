"""Reports and progress as plain text."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TextIO

from tabulate import tabulate

from msf_cli.load.report import LATE_S, Group, Report, Standalone
from msf_cli.load.results import LoadTally, RequestOutcome
from msf_cli.percentiles import percentile

TERMINAL_INTERVAL_S, FILE_INTERVAL_S = 0.5, 5.0


def report_text(report: Report, standalone: Standalone) -> str:
    """Format a report: a line of totals, a table by kind, and the errors."""
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in report.overall.outcomes.items()) or "nothing sent"
    lines = [
        f"{outcomes} in {report.elapsed_s:.1f} s: {report.requests_per_s:.2f} requests/s, "
        f"{report.images_per_s:.2f} images/s",
        _kinds_table(report, {kind.name: latency_s for kind, latency_s in standalone.items()}),
    ]
    if report.late_share > 0.01:
        lines.append(
            f"{report.late_share:.0%} of the requests were sent more than {1000 * LATE_S:g} ms late: "
            "the load generator, or its machine, is too slow for this rate"
        )
    lines += [f"{count} x {error}" for error, count in report.errors.items()]
    return "\n".join(lines)


def sweep_text(reports: Sequence[tuple[float, Report]]) -> str:
    """Format one line per offered rate: latencies, goodput and SLO attainment."""
    head = ["offered/s", "requests", "succeeded", "p50 ms", "p99 ms", "images/s"]
    rows = []
    for offered_per_s, report in reports:
        group = report.overall
        goodput = [f"{value:.2f}" for value in group.goodput_per_s.values()]
        shares = [f"{share:.1%}" for share in group.slo_attainment.values()]
        rows.append(
            [
                *(f"{offered_per_s:.2f}", *_counts(group), _ms(group.p50_s), _ms(group.p99_s)),
                *(f"{report.images_per_s:.2f}", *goodput, *shares),
            ]
        )
    scales = list(reports[0][1].overall.slo_attainment)
    objectives = [f"goodput/s {scale:g}x" for scale in scales] + [f"SLO {scale:g}x" for scale in scales]
    return _table([*head, *objectives], rows)


def progress_line(tally: LoadTally, elapsed_s: float) -> str:
    """Return one line on the requests so far: outcomes, images per second, latency."""
    num_succeeded = tally.outcomes[RequestOutcome.SUCCEEDED]
    latencies = [result.latency_s for result in tally.results if result.outcome is RequestOutcome.SUCCEEDED]
    return (
        f"{elapsed_s:6.1f} s  sent {tally.num_sent}  in flight {tally.num_in_flight}  "
        f"succeeded {num_succeeded}  failed {len(tally.results) - num_succeeded}  "
        f"p50 {_ms(percentile(latencies, 0.50))} ms  p99 {_ms(percentile(latencies, 0.99))} ms"
    )


async def show_progress(tally: LoadTally, stream: TextIO) -> None:
    """Print progress until cancelled: in place on a terminal, as occasional lines elsewhere."""
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    is_terminal = stream.isatty()
    try:
        while True:
            await asyncio.sleep(TERMINAL_INTERVAL_S if is_terminal else FILE_INTERVAL_S)
            line = progress_line(tally, loop.time() - started_at)
            print(f"\r\x1b[K{line}" if is_terminal else f"{line}\n", end="", file=stream, flush=True)
    finally:
        if is_terminal:
            print("\r\x1b[K", end="", file=stream, flush=True)


def _kinds_table(report: Report, standalone: dict[str, float]) -> str:
    head = ["kind", "requests", "succeeded", "p50 ms", "p95 ms", "p99 ms"]
    rows = [
        [name, *_counts(group), *_latencies(group), _ms(group.queue_p50_s), _ms(standalone.get(name))]
        for name, group in {"all": report.overall, **report.kinds}.items()
    ]
    return _table([*head, *_objectives(report), "queued p50", "alone ms"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    alignment = ("left", *["right"] * (len(head) - 1))
    return tabulate(rows, head, colalign=alignment, disable_numparse=True)


def _objectives(report: Report) -> list[str]:
    return [f"SLO {scale:g}x" for scale in report.overall.slo_attainment]


def _counts(group: Group) -> list[str]:
    return [str(group.num_requests), str(group.outcomes.get(RequestOutcome.SUCCEEDED, 0))]


def _latencies(group: Group) -> list[str]:
    shares = [f"{share:.1%}" for share in group.slo_attainment.values()]
    return [_ms(group.p50_s), _ms(group.p95_s), _ms(group.p99_s), *shares]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f}"
