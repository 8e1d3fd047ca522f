"""`msf plan`: how many workers a load needs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from msf_cli.simulation.cluster import Hardware
from msf_cli.simulation.planning import Load, Plan, plan
from msf_scheduler.step_costs import Stage, StepCost, StepCosts, Work

TRANSITION_S = 0.0004  # measured: some 2,500 scripts/s of a Valkey on one core


@click.command()
@click.option("--images-per-s", type=click.FloatRange(0, min_open=True), required=True, help="What is asked for.")
@click.option("--p99-s", type=click.FloatRange(0, min_open=True), required=True, help="What 99 % may not exceed.")
@click.option("--base-steps", type=click.IntRange(1), default=16, show_default=True)
@click.option("--residual-steps", type=click.IntRange(1), default=4, show_default=True)
@click.option("--n", "num_samples", type=click.IntRange(1), default=1, show_default=True, help="Images of a request.")
@click.option("--unguided", is_flag=True, help="Requests with guidance scale 1.")
@click.option("--slots", type=click.IntRange(1, 1024), default=32, show_default=True, help="MSF_SLOTS.")
@click.option("--costs", "costs_file", type=click.Path(path_type=Path, dir_okay=False), help="Measured costs.")
@click.option("--save-costs", type=click.Path(path_type=Path, dir_okay=False), help="Keep what was measured here.")
def command(
    images_per_s: float,
    p99_s: float,
    base_steps: int,
    residual_steps: int,
    num_samples: int,
    unguided: bool,
    slots: int,
    costs_file: Path | None,
    save_costs: Path | None,
) -> None:
    """How many workers make so many images per second at such a p99, by simulation.

    The costs of step batches are those of this machine and of the first model of MSF_MODEL_REPO, measured now, unless
    --costs names a file that --save-costs wrote on the machine in question.
    """
    costs = _read_costs(costs_file) if costs_file else _measure_costs()
    if save_costs:
        save_costs.write_text(json.dumps([_as_json(cost) for cost in costs], indent=1))
    guided = set() if unguided else {cost.stage for cost in costs if cost.guided}  # not every model guides each stage
    work = Work(base_steps, residual_steps, Stage.BASE in guided, Stage.RESIDUAL in guided)
    load = Load(images_per_s, work, num_samples)
    found = plan(load, p99_s, Hardware(costs, slots, transition_s=TRANSITION_S))
    click.echo(_table(found))
    if found.answer is None:
        raise click.ClickException(f"--p99-s {p99_s:g} cannot be met: {found.reason}")
    click.echo(f"\n{found.answer} workers make {images_per_s:g} images/s at a p99 of {p99_s:g} s")


def _table(found: Plan) -> str:
    lines = ["workers  devices busy  Redis busy   p50 ms   p99 ms"]
    lines += [
        f"{trial.num_workers:7d}  {100 * trial.outcome.utilisation:10.0f} %  "
        f"{100 * trial.outcome.redis_utilisation:8.0f} %  {1000 * trial.p50_s:7.0f}  {1000 * trial.p99_s:7.0f}"
        for trial in found.trials
    ]
    return "\n".join(lines)


def _measure_costs() -> StepCosts:
    from msf_cli.loading import load_model
    from msf_cli.settings import read_settings
    from msf_engine.errors import EngineError
    from msf_engine.executor import Executor
    from msf_engine.repository import find_models
    from msf_worker.model_runner import ModelRunner

    settings = read_settings()
    try:
        version = find_models(settings.model_repo)[0]
        _, plans = load_model(settings, version)
    except EngineError as error:
        raise click.ClickException(str(error)) from error
    runner = ModelRunner(version, Executor(plans, settings.slots))
    for _ in range(3):
        runner.warm_up()
    return runner.costs


def _as_json(cost: StepCost) -> dict[str, object]:
    return {
        "stage": cost.stage,
        "guided": cost.guided,
        "bucket": cost.bucket,
        "mean_s": cost.mean_s,
        "least_s": cost.least_s,
    }


def _read_costs(file: Path) -> StepCosts:
    try:
        found = [
            StepCost(
                Stage(each["stage"]), each["guided"], each["bucket"], float(each["mean_s"]), float(each["least_s"])
            )
            for each in json.loads(file.read_text())
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise click.BadParameter(
            f"{str(file)!r} holds no costs ({error}); allowed: a file that --save-costs wrote", param_hint="--costs"
        ) from error
    return StepCosts(sorted({cost.bucket for cost in found}), found)
