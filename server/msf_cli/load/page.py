"""The report of a load as one self-contained HTML page, with the latency distribution."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from msf_cli.load.chart import Panel, Points, chart
from msf_cli.load.report import Report
from msf_cli.load.results import RequestOutcome, RequestResult
from msf_cli.load.sweep import Sweep
from msf_cli.load.text import report_text, sweep_text

NUM_POINTS = 60  # of a curve
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>msf load</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }}
pre {{ overflow-x: auto; padding: 1rem; border: 1px solid #8884; border-radius: 6px }}
svg {{ max-width: 100%; height: auto }}
</style>
<h1>Load on {url}</h1>
<p>Open loop ({arrivals}): latency counts from the time that a request was due. SLO attainment is the share of all
requests that succeed within k times the latency of the same request on an idle server (or within the trace's
objective), goodput their number per second. Rates are offered rates, as they were drawn.</p>
{overview}
<pre>{table}</pre>
{sections}
</html>
"""


def page(sweep: Sweep, slo_scales: Sequence[float], *, url: str, arrivals: str) -> str:
    """Render p50, p99 and goodput over the rate first, then one section per rate: latency curve and text report."""
    reports = sweep.reports(slo_scales)
    sections = [
        f"<h2>{offered_per_s:.3g} requests/s offered</h2>\n{_curve(tally.results)}"
        f"<pre>{escape(report_text(report, sweep.standalone))}</pre>"
        for (offered_per_s, report), tally in zip(reports, sweep.tallies, strict=True)
    ]
    return _PAGE.format(
        url=escape(url),
        arrivals=escape(arrivals),
        overview=overview(reports),
        table=escape(sweep_text(reports)) if reports else "",
        sections="\n".join(sections),
    )


def overview(reports: Sequence[tuple[float, Report]]) -> str:
    """Draw p50, p99 and goodput over the offered rate; nothing if no request of any load succeeded."""
    reports = sorted(reports, key=lambda pair: pair[0])
    answered = [(rate, report.overall) for rate, report in reports if report.overall.p50_s is not None]
    if not answered:
        return ""
    latency = {
        "p50": [(rate, group.p50_s or 0.0) for rate, group in answered],
        "p99": [(rate, group.p99_s or 0.0) for rate, group in answered],
    }
    goodput: dict[str, Points] = {"offered": [(rate, rate) for rate, _ in reports]}
    for scale in reports[0][1].overall.goodput_per_s:
        goodput[f"SLO {scale:g}x"] = [(rate, report.overall.goodput_per_s[scale]) for rate, report in reports]
    label = "requests/s offered"
    panels = [Panel("Latency in seconds", label, latency, "{:g}".format, log_y=True)]
    if len(goodput) > 1:
        panels.append(Panel("Goodput in requests/s", label, goodput, "{:g}".format))
    return chart(panels)


def _curve(results: Sequence[RequestResult]) -> str:
    points = cumulative(results)
    if not points:
        return "<p>No request succeeded.</p>\n"
    title = "Share of requests answered within a latency"
    return chart([Panel(title, "latency in seconds", {"succeeded": points}, lambda share: f"{100 * share:.0f} %")])


def cumulative(results: Sequence[RequestResult]) -> Points:
    """Return (latency in seconds, share of all requests that succeeded by then), thinned out."""
    latencies = sorted(result.latency_s for result in results if result.outcome is RequestOutcome.SUCCEEDED)
    places = sorted({round(step * (len(latencies) - 1) / NUM_POINTS) for step in range(NUM_POINTS + 1)})
    return [(latencies[place], (place + 1) / len(results)) for place in places] if latencies else []
