"""The report of a load as one self-contained HTML page, with the latency distribution."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from msf_cli.load.chart import Panel, Points, chart
from msf_cli.load.results import RequestOutcome, RequestResult
from msf_cli.load.sweep import Sweep
from msf_cli.load.text import report_text

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
<p>Open loop ({arrivals} arrivals): latency counts from the time that a request was due.</p>
{sections}
</html>
"""


def page(sweep: Sweep, slo_scales: Sequence[float], *, url: str, arrivals: str) -> str:
    """Render one section per rate: the latency curve and the text report."""
    reports = sweep.reports(slo_scales)
    sections = [
        f"<h2>{rate_per_s:g} requests/s</h2>\n{_curve(tally.results)}"
        f"<pre>{escape(report_text(report, sweep.standalone))}</pre>"
        for (rate_per_s, report), tally in zip(reports, sweep.tallies, strict=True)
    ]
    return _PAGE.format(url=escape(url), arrivals=escape(arrivals), sections="\n".join(sections))


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
