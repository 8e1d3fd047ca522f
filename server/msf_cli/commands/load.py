"""`msf load`: send an open-loop load to a server and report its latencies."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from msf_cli.load.arrivals import Arrivals, bursty, poisson
from msf_cli.load.generator import LoadClient, LoadError
from msf_cli.load.mix import Mix, Weighted, parse_weighted
from msf_cli.load.page import page
from msf_cli.load.sweep import Sweep
from msf_cli.load.text import report_text, sweep_text
from msf_cli.load.trace import Trace, read_trace
from msf_cli.load.workload import TraceWorkload, Workload
from msf_cli.path_type import UserPath
from msf_cli.setup_checks import EXIT_INTERRUPTED

Callback = Callable[[click.Context, click.Parameter, str | None], Any]


def _parsed(parse: Callable[[str], Any], allowed: str) -> Callback:
    """Return an option callback that parses the text, or refuses it with what is `allowed`."""

    def callback(context: click.Context, param: click.Parameter, text: str | None) -> Any:
        try:
            return None if text is None else parse(text)
        except ValueError:
            raise click.BadParameter(f"{text!r}. Allowed: {allowed}.") from None

    return callback


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError
    return number


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _positives(text: str) -> tuple[float, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _json_object(text: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    fields = json.loads(text, parse_constant=refuse)
    if not isinstance(fields, dict):
        raise ValueError
    return fields


def _read_weights(context: click.Context, param: click.Parameter, text: str | None) -> Weighted[Any] | None:
    try:
        return None if text is None else parse_weighted(text, _finite if param.name == "guidance" else int)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _read_trace(context: click.Context, param: click.Parameter, file: Path | None) -> Trace | None:
    try:
        return None if file is None else read_trace(file)
    except (ValueError, OSError) as error:
        raise click.BadParameter(str(error)) from error


def _read_file(context: click.Context, param: click.Parameter, file: Path | None) -> Path | None:
    if file is not None and not file.parent.is_dir():
        raise click.BadParameter(f"{file}: {file.parent} is not a folder.")  # before the load, not after it
    return file


_SECONDS: dict[str, Any] = {"callback": _parsed(_positive, "a number above 0"), "metavar": "SECONDS"}
_NUMBERS = _parsed(_positives, "numbers above 0 between commas, such as 5,10,20")
_OBJECT = _parsed(_json_object, 'a JSON object, such as {"output_format": "webp"}')
_MIX: dict[str, Any] = {"callback": _read_weights, "metavar": "VALUE:WEIGHT,..."}
_INPUT: dict[str, Any] = {"metavar": "FILE", "type": UserPath(dir_okay=False, exists=True)}
_FILE: dict[str, Any] = {"callback": _read_file, "type": UserPath(dir_okay=False)}


def _read_arrivals(name: str, burstiness: float | None) -> Arrivals:
    if name == "poisson" and burstiness is not None:
        raise click.UsageError("--burstiness needs --arrivals bursty.")
    return poisson if name == "poisson" else bursty if burstiness is None else partial(bursty, burstiness=burstiness)


_RATES_HELP = "Requests per second; several rates make a sweep. A trace has its own, and is stretched to others."
_TRACE_HELP = "Recorded requests to replay: vLLM-Omni's Request(...) lines, or CSV of Azure's LLM or functions traces."
_BURSTINESS_HELP = "Rate of a burst relative to the mean, with --arrivals bursty.  [default: 3]"
_ALONE_HELP = "Runs of each kind on the idle server, for the objectives; 0: no objectives."
_SLO_HELP = "Objectives (SLO) as multiples of the latency of the same request on an idle server."


@click.command()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Server to load.")
@click.option("--rate", "--rates", "rates", callback=_NUMBERS, metavar="RATE,...", help=_RATES_HELP)
@click.option("--trace", callback=_read_trace, help=_TRACE_HELP, **_INPUT)
@click.option("--duration-s", default="30", show_default=True, help="Duration of each rate.", **_SECONDS)
@click.option("--arrivals", type=click.Choice(["poisson", "bursty"]), default="poisson", show_default=True)
@click.option("--burstiness", type=click.FloatRange(1, 5), help=_BURSTINESS_HELP)
@click.option("--steps", help="Mix of num_steps, such as 4:3,20:5,100:1.  [default: the model's]", **_MIX)
@click.option("--n", help="Mix of images per request, such as 1:8,4:1.  [default: 1]", **_MIX)
@click.option("--guidance", help="Mix of guidance_scale.  [default: the model's]", **_MIX)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Equal seeds make equal requests.")
@click.option("--model", help="Model name, or name:version.  [default: the server's first]")
@click.option("--timeout-s", help="Deadline of each request, queue included.", **_SECONDS)
@click.option("--priority", type=click.Choice(["high", "normal", "low"]))
@click.option("--user", help="Tenant of the requests, for fair sharing.")
@click.option("--body", callback=_OBJECT, default="{}", metavar="JSON", help="Further fields of each request.")
@click.option("--max-connections", type=click.IntRange(1), help="[default: one per request in flight]")
@click.option("--alone-runs", type=click.IntRange(0), default=5, show_default=True, help=_ALONE_HELP)
@click.option("--slo-scale", callback=_NUMBERS, default="3,5", show_default=True, metavar="SCALE,...", help=_SLO_HELP)
@click.option("--api-key", envvar="MSF_API_KEY", help="[default: MSF_API_KEY]")
@click.option("--html", "html_file", help="HTML report to write, with the latency distribution.", **_FILE)
@click.option("--json", "json_file", help="JSON report to write.", **_FILE)
def command(
    url: str,
    rates: tuple[float, ...] | None,
    trace: Trace | None,
    duration_s: float,
    arrivals: str,
    burstiness: float | None,
    steps: Weighted[int | None] | None,
    n: Weighted[int] | None,
    guidance: Weighted[float | None] | None,
    seed: int,
    body: dict[str, Any],
    max_connections: int | None,
    alone_runs: int,
    slo_scale: tuple[float, ...],
    api_key: str | None,
    html_file: Path | None,
    json_file: Path | None,
    **fields: Any,
) -> None:
    """Send an open-loop load to a server and report its latencies.

    Requests are sent when they are due, whatever became of the others, and latency counts from that time. Ctrl-C ends
    the load and reports the results so far.
    """
    body |= {name: value for name, value in fields.items() if value is not None}
    mix = Mix(steps or Mix.num_steps, n or Mix.num_samples, guidance or Mix.guidance_scale)
    process = _read_arrivals(arrivals, burstiness)
    if rates is None and (trace is None or not trace.is_timed):
        raise click.UsageError("Missing option '--rate'. Only a trace with times has a rate of its own.")
    workload = TraceWorkload(process, mix, trace) if trace else Workload(process, mix)
    sweep = Sweep(workload, rates or (None,), duration_s, seed, alone_runs)
    interrupted = False
    try:
        asyncio.run(_run(sweep, url, body, max_connections, api_key))
    except LoadError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        interrupted = True
    _show(sweep, slo_scale)
    if html_file is not None:
        source = "times of the trace" if trace and trace.is_timed else f"{arrivals} arrivals"
        html_file.write_text(page(sweep, slo_scale, url=url, arrivals=source))
    if json_file is not None:
        settings = {"url": url, "arrivals": arrivals, "duration_s": duration_s, "seed": seed, "body": body}
        json_file.write_text(json.dumps(settings | _as_json(sweep, slo_scale), indent=1) + "\n")
    if interrupted:
        sys.exit(EXIT_INTERRUPTED)


async def _run(sweep: Sweep, url: str, body: dict[str, Any], max_connections: int | None, api_key: str | None) -> None:
    async with LoadClient(url, body=body, max_connections=max_connections, api_key=api_key) as client:
        await sweep.run(client, sys.stderr)


def _show(sweep: Sweep, slo_scales: tuple[float, ...]) -> None:
    reports = sweep.reports(slo_scales)
    if reports:
        click.echo(sweep_text(reports))
    for offered_per_s, report in reports:
        click.echo(f"\n{offered_per_s:.3g} requests/s offered: {report_text(report, sweep.standalone)}")


def _as_json(sweep: Sweep, slo_scales: tuple[float, ...]) -> dict[str, Any]:
    return {
        "alone_s": {kind.name: latency_s for kind, latency_s in sweep.standalone.items()},
        "runs": [
            {"asked_per_s": asked_per_s, "offered_per_s": offered_per_s, **asdict(report)}
            for asked_per_s, (offered_per_s, report) in zip(sweep.rates_per_s, sweep.reports(slo_scales), strict=False)
        ],
    }
