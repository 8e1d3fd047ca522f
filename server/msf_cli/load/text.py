"""Reports and progress as plain text."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TextIO

from msf_cli.load.report import LATE_S, Group, Report, Standalone
from msf_cli.load.results import LoadTally, RequestOutcome
from msf_cli.percentiles import percentile

REDRAW_S, LINE_EVERY_S = 0.5, 5.0


def report_text(report: Report, standalone: Standalone) -> str:
    """A line for the whole, a table by kind, and what went wrong."""
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in report.overall.outcomes.items()) or "nothing sent"
    lines = [
        f"{outcomes} in {report.elapsed_s:.1f} s: {report.requests_per_s:.2f} requests/s, "
        f"{report.images_per_s:.2f} images/s",
        _kinds_table(report, {kind.name: latency_s for kind, latency_s in standalone.items()}),
    ]
    if report.late_share > 0.01:
        lines.append(
            f"{report.late_share:.0%} of the requests were sent more than {1000 * LATE_S:g} ms late: "
            "this generator was too slow, or its machine too busy"
        )
    lines += [f"{count} x {error}" for error, count in report.errors.items()]
    return "\n".join(lines)


def sweep_text(reports: Sequence[tuple[float, Report]]) -> str:
    """One line for each rate."""
    scales = list(reports[0][1].overall.attainment)
    head = ["rate/s", "requests", "succeeded", "images/s", "p50 ms", "p95 ms", "p99 ms", *_slo_heads(scales)]
    rows = []
    for rate_per_s, report in reports:
        group = report.overall
        rows.append([f"{rate_per_s:g}", *_counts(group), f"{report.images_per_s:.2f}", *_latencies(group)])
    return table([head, *rows])


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left and the others to the right; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def progress_line(tally: LoadTally, elapsed_s: float) -> str:
    outcomes = tally.outcomes
    succeeded = [result.latency_s for result in tally.results if result.outcome is RequestOutcome.SUCCEEDED]
    return (
        f"{elapsed_s:6.1f} s  sent {tally.num_sent}  in flight {tally.num_in_flight}  "
        f"done {outcomes[RequestOutcome.SUCCEEDED]}  failed {len(tally.results) - outcomes[RequestOutcome.SUCCEEDED]}  "
        f"p50 {_ms(percentile(succeeded, 0.50))} ms  p99 {_ms(percentile(succeeded, 0.99))} ms"
    )


async def show_progress(tally: LoadTally, stream: TextIO) -> None:
    """Until cancelled: one line that is written anew on a terminal, and a new line now and then elsewhere."""
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    live = stream.isatty()
    try:
        while True:
            await asyncio.sleep(REDRAW_S if live else LINE_EVERY_S)
            line = progress_line(tally, loop.time() - started_at)
            print(f"\r\x1b[K{line}" if live else line, end="" if live else "\n", file=stream, flush=True)
    finally:
        if live:
            print("\r\x1b[K", end="", file=stream, flush=True)


def _kinds_table(report: Report, standalone: dict[str, float]) -> str:
    scales = list(report.overall.attainment)
    head = [
        "kind",
        "requests",
        "succeeded",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        *_slo_heads(scales),
        "queued p50",
        "alone ms",
    ]
    rows = [
        [name, *_counts(group), *_latencies(group), _ms(group.queue_p50_s), _ms(standalone.get(name))]
        for name, group in {"all": report.overall, **report.kinds}.items()
    ]
    return table([head, *rows])


def _slo_heads(scales: Sequence[float]) -> list[str]:
    return [f"<={scale:g}x" for scale in scales]


def _counts(group: Group) -> list[str]:
    return [str(group.num_requests), str(group.outcomes.get(RequestOutcome.SUCCEEDED, 0))]


def _latencies(group: Group) -> list[str]:
    shares = [f"{share:.1%}" for share in group.attainment.values()]
    return [_ms(group.p50_s), _ms(group.p95_s), _ms(group.p99_s), *shares]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f}"
