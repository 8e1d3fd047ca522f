"""`msf load`: an open-loop load against a server, and what it shows."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

try:
    from msf_cli.load.arrivals import Arrivals, bursty, poisson
    from msf_cli.load.generator import LoadClient, LoadError
    from msf_cli.load.mix import Mix, Weighted, parse_weighted
    from msf_cli.load.page import page
    from msf_cli.load.sweep import Sweep
    from msf_cli.load.text import report_text, sweep_text
except ModuleNotFoundError as error:
    raise click.ClickException(f"msf load needs {error.name}: pip install 'msf-serve[load]'") from error

INTERRUPTED = 130


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


def _read_positive(context: click.Context, param: click.Parameter, text: str | None) -> float | None:
    try:
        return None if text is None else _positive(text)
    except ValueError:
        raise click.BadParameter(f"{text!r}; allowed: a number above 0") from None


def _read_numbers(context: click.Context, param: click.Parameter, text: str) -> tuple[float, ...]:
    try:
        return tuple(_positive(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r}; allowed: numbers above 0 between commas, such as 5,10,20") from None


def _read_weights(context: click.Context, param: click.Parameter, text: str | None) -> Weighted[Any] | None:
    try:
        return None if text is None else parse_weighted(text, _finite if param.name == "guidance" else int)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _read_object(context: click.Context, param: click.Parameter, text: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        fields = json.loads(text, parse_constant=refuse)
        if isinstance(fields, dict):
            return fields
    except ValueError:
        pass
    raise click.BadParameter(f'{text!r}; allowed: a JSON object, such as {{"output_format": "webp"}}')


def _read_file(context: click.Context, param: click.Parameter, file: Path | None) -> Path | None:
    if file is not None and not file.parent.is_dir():
        raise click.BadParameter(f"{file}: {file.parent} is not a folder")  # now, not after the load
    return file


def _read_arrivals(name: str, burstiness: float | None) -> Arrivals:
    if name == "poisson" and burstiness is not None:
        raise click.UsageError("--burstiness is for --arrivals bursty")
    return poisson if name == "poisson" else bursty if burstiness is None else partial(bursty, burstiness=burstiness)


@click.command()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The server.")
@click.option(
    "--rate",
    "--rates",
    "rates",
    callback=_read_numbers,
    required=True,
    metavar="RATE,...",
    help="Requests/s; several between commas: a sweep.",
)
@click.option(
    "--duration-s",
    callback=_read_positive,
    default="30",
    show_default=True,
    metavar="SECONDS",
    help="How long requests are sent, for each rate.",
)
@click.option("--arrivals", type=click.Choice(["poisson", "bursty"]), default="poisson", show_default=True)
@click.option(
    "--burstiness",
    type=click.FloatRange(1, 5),
    help="Rate in bursts over the mean rate, with --arrivals bursty.  [default: 3]",
)
@click.option(
    "--steps",
    callback=_read_weights,
    metavar="VALUE:WEIGHT,...",
    help="Mix of num_steps, such as 4:3,20:5,100:1.  [default: the model's]",
)
@click.option(
    "--n",
    callback=_read_weights,
    metavar="VALUE:WEIGHT,...",
    help="Mix of images of a request, such as 1:8,4:1.  [default: 1]",
)
@click.option(
    "--guidance",
    callback=_read_weights,
    metavar="VALUE:WEIGHT,...",
    help="Mix of guidance_scale.  [default: the model's]",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed: the same requests.")
@click.option("--model", help="Model name, or name:version.  [default: the server's first]")
@click.option("--timeout-s", callback=_read_positive, metavar="SECONDS", help="Of each request, queue and execution.")
@click.option("--priority", type=click.Choice(["high", "normal", "low"]))
@click.option("--user", help="Whose requests these are, for fair sharing.")
@click.option("--body", callback=_read_object, default="{}", metavar="JSON", help="More fields of each request.")
@click.option("--max-connections", type=click.IntRange(1), help="[default: as many as requests in flight]")
@click.option(
    "--alone-runs",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="How often each kind is first sent alone, for the objectives; 0: no objectives.",
)
@click.option(
    "--slo",
    callback=_read_numbers,
    default="2,3,5,10",
    show_default=True,
    metavar="SCALE,...",
    help="Objectives: an answer within so many times what its kind takes alone.",
)
@click.option("--api-key", envvar="MSF_API_KEY", help="[default: MSF_API_KEY]")
@click.option(
    "--html",
    "html_file",
    callback=_read_file,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Page to write, with the latencies' distribution.",
)
@click.option("--json", "json_file", callback=_read_file, type=click.Path(path_type=Path, dir_okay=False),
              help="File to write the reports to.")  # fmt: skip
def command(
    url: str,
    rates: tuple[float, ...],
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
    slo: tuple[float, ...],
    api_key: str | None,
    html_file: Path | None,
    json_file: Path | None,
    **fields: Any,
) -> None:
    """Send a load to a server and report its latencies.

    Requests leave at their times whatever became of the others, and latency counts from the time that a request was
    due. Ctrl-C ends the load and reports what was done until then.
    """
    body |= {name: value for name, value in fields.items() if value is not None}
    mix = Mix(steps or Mix.num_steps, n or Mix.num_samples, guidance or Mix.guidance_scale)
    sweep = Sweep(_read_arrivals(arrivals, burstiness), rates, duration_s, mix, seed, alone_runs)
    interrupted = False
    try:
        asyncio.run(_run(sweep, url, body, max_connections, api_key))
    except LoadError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        interrupted = True
    _show(sweep, slo)
    if html_file is not None:
        html_file.write_text(page(sweep, slo, url=url, arrivals=arrivals))
    if json_file is not None:
        settings = {"url": url, "arrivals": arrivals, "duration_s": duration_s, "seed": seed, "body": body}
        json_file.write_text(json.dumps(settings | _as_json(sweep, slo), indent=1) + "\n")
    if interrupted:
        sys.exit(INTERRUPTED)


async def _run(sweep: Sweep, url: str, body: dict[str, Any], max_connections: int | None, api_key: str | None) -> None:
    async with LoadClient(url, body=body, max_connections=max_connections, api_key=api_key) as client:
        await sweep.run(client, sys.stderr)


def _show(sweep: Sweep, slo: tuple[float, ...]) -> None:
    reports = sweep.reports(slo)
    for rate_per_s, report in reports:
        click.echo(f"{rate_per_s:g} requests/s: {report_text(report, sweep.standalone)}\n")
    if len(reports) > 1:
        click.echo(sweep_text(reports))


def _as_json(sweep: Sweep, slo: tuple[float, ...]) -> dict[str, Any]:
    return {
        "alone_s": {kind.name: latency_s for kind, latency_s in sweep.standalone.items()},
        "runs": [{"rate_per_s": rate_per_s, **asdict(report)} for rate_per_s, report in sweep.reports(slo)],
    }
