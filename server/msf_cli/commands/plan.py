"""`msf plan`: estimate the workers a load needs."""

from __future__ import annotations

import json
from pathlib import Path

import click
from tabulate import tabulate

from msf_cli.path_type import UserPath
from msf_cli.setup_checks import engine_failure
from msf_cli.simulation.capacity import CapacityEstimate, Demand, estimate_workers
from msf_cli.simulation.cluster import Hardware
from msf_scheduler.step_costs import StepCost, StepCosts, StepPattern

TRANSITION_S = 0.0004  # measured: Valkey runs about 2,500 scripts/s on one core


@click.command()
@click.option("--images-per-s", type=click.FloatRange(0, min_open=True), required=True, help="Throughput to reach.")
@click.option("--p99-s", type=click.FloatRange(0, min_open=True), required=True, help="Target 99th percentile latency.")
@click.option("--base-steps", type=click.IntRange(1), default=16, show_default=True)
@click.option("--residual-steps", type=click.IntRange(0), default=4, show_default=True, help="0: there is one stage.")
@click.option("--n", "num_samples", type=click.IntRange(1), default=1, show_default=True, help="Images per request.")
@click.option("--unguided", is_flag=True, help="Requests with guidance scale 1.")
@click.option("--costs", "costs_file", type=UserPath(dir_okay=False), help="Step costs to use.")
@click.option("--save-costs", type=UserPath(dir_okay=False), help="File to write the step costs to.")
def command(
    images_per_s: float,
    p99_s: float,
    base_steps: int,
    residual_steps: int,
    num_samples: int,
    unguided: bool,
    costs_file: Path | None,
    save_costs: Path | None,
) -> None:
    """Estimate the workers a load needs, from step costs measured on this machine.

    Measures the first model of MSF_MODEL_REPO, then simulates ever more workers. For other hardware, measure there with
    --save-costs and pass the file with --costs.
    """
    costs = _read_costs(costs_file) if costs_file else _measure_costs()
    if save_costs:
        save_costs.write_text(json.dumps(costs.dump(), indent=1))
    rows = 1 if unguided else 2
    steps = filter(None, (base_steps, residual_steps))
    pattern = StepPattern.of(*([rows] * count for count in steps), [1])
    hardware = Hardware(costs, transition_s=TRANSITION_S)
    estimate = estimate_workers(Demand(images_per_s, pattern, num_samples), p99_s, hardware)
    if estimate.latencies:
        click.echo(_table(estimate))
    if estimate.num_workers is None:
        raise click.ClickException(f"--p99-s {p99_s:g} cannot be met: {estimate.reason}")
    click.echo(f"\n{estimate.num_workers} workers make {images_per_s:g} images/s at a p99 of {p99_s:g} s")


def _table(estimate: CapacityEstimate) -> str:
    rows = [
        (
            latency.num_workers,
            f"{latency.result.utilisation:.0%}",
            f"{latency.result.redis_utilisation:.0%}",
            f"{1000 * latency.p50_s:.0f}",
            f"{1000 * latency.p99_s:.0f}",
        )
        for latency in estimate.latencies
    ]
    head = ("workers", "devices busy", "Redis busy", "p50 ms", "p99 ms")
    return tabulate(rows, head, disable_numparse=True, colalign=("right",) * len(head))


def _measure_costs() -> StepCosts:
    """Return the costs that were measured when the plans of the repository's first model were validated."""
    from msf_cli.loading import load_model
    from msf_cli.settings import read_settings
    from msf_engine.errors import EngineError
    from msf_engine.repository import list_versions, read_version

    settings = read_settings()
    try:
        version = read_version(settings.model_repo, *list_versions(settings.model_repo)[0])
        _, plans = load_model(settings, version)
    except EngineError as error:
        raise engine_failure(error) from error
    costs = [StepCost(stage, bucket, seconds, seconds) for (stage, bucket), seconds in plans.seconds.items()]
    return StepCosts(plans.buckets, costs, plans.strict)


def _read_costs(file: Path) -> StepCosts:
    try:
        return StepCosts.load(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise click.BadParameter(
            f"Cannot read step costs from {str(file)!r}: {error!r}. Allowed: a file that --save-costs wrote.",
            param_hint="--costs",
        ) from error
