"""MSF and DiTs of equal parameters as models of one service: `make bench-msf-dit`.

    python -m bench.reproduction.served --size seeds

writes a model version of each contender, with random denoisers (speed does not depend on the weights), serves all of
them by one `msf serve` with the settings of the environment, and measures them in turns, through HTTP and the queue:
images per second and CPU time per image at saturation, the latency of one image alone, and latencies under the
benchmarks' mixed load, whose rate is the same for all.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from bench.engine.random_models import model_config, random_model
from bench.engine.sizes import DOWNSAMPLING, fill_zeros, msf_size
from bench.evaluation.report import markdown_table
from bench.local_stack import LocalService, local_service
from bench.mixed_load import MIX
from bench.reproduction.architectures import (
    BASELINE,
    LATENT_SIZE,
    NUM_CLASSES,
    SCALES,
    STEPS,
    Architecture,
    Scale,
    architectures,
    sampling_of,
)
from msf_cli.load.arrivals import poisson
from msf_cli.load.generator import LoadClient, closed_loop, measure_alone, open_loop
from msf_cli.load.mix import Kind, Mix, plan_load, plan_typical
from msf_cli.load.results import LoadTally, RequestOutcome
from msf_engine.config import LatentStatistics, ModelConfig, SamplingConfig, StageConfig
from msf_engine.denoiser import SIZES
from msf_engine.device import cpu_name
from msf_engine.model import MsfModel
from msf_engine.repository import read_version, save_version
from msf_scheduler.stage import Stage

GUIDANCE_SCALE = 1.5
STAGE_NAMES: dict[int, tuple[Stage, ...]] = {1: (Stage.DENOISE,), 2: (Stage.BASE, Stage.RESIDUAL)}
IMAGE_SIZE = 256  # of DiT's sizes
NARROW_WIDTHS = (32, 64, 128, 128)  # a quarter of Stable Diffusion's autoencoder: decoding is the same for all
NARROW_GROUPS = 8
NUM_STEPS = sum(STEPS[1])


@dataclass(frozen=True)
class Load:
    """Amount of each load in a round. `mixed_share`: offered work over what BASELINE completes at saturation."""

    num_requests: int
    num_clients: int
    num_alone: int
    mixed_share: float
    mixed_s: float


@dataclass
class Figures:
    """Results of a contender: by round, images per second and the service's CPU time per image; all latencies."""

    images_per_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    alone_s: list[float] = field(default_factory=list)
    mixed_s: list[float] = field(default_factory=list)


def contenders(scale: Scale, latent_size: int) -> list[Architecture]:
    """Return MSF/2 and DiT/2 of equal parameters."""
    return [entry for entry in architectures(scale, latent_size) if not entry.is_of_equal_depth]


def with_patches_of_one(every: Sequence[Architecture]) -> list[Architecture]:
    """Add each architecture with patches of 1, which has four times the tokens."""
    return [
        *every,
        *(
            Architecture(
                entry.name.replace("/2", "/1"),
                tuple(stage.model_copy(update={"patch_size": 1}) for stage in entry.stages),
            )
            for entry in every
        ),
    ]


def servable_model(architecture: Architecture, template: MsfModel) -> MsfModel:
    """Return a model with random denoisers of the architecture and the template's autoencoder."""
    sampling = sampling_of(architecture, GUIDANCE_SCALE)
    stages = tuple(
        StageConfig(
            name=name,
            denoiser=denoiser,
            statistics=LatentStatistics(mean=(0.0,) * denoiser.in_channels, std=(1.0,) * denoiser.in_channels),
            default_num_steps=num_steps,
            conditioning_noise=sampling.conditioning_noise if denoiser.cond_channels else 0.0,
        )
        for name, denoiser, num_steps in zip(
            STAGE_NAMES[len(architecture.stages)], architecture.stages, sampling.steps, strict=True
        )
    )
    config = ModelConfig(
        image=template.config.image,
        autoencoder=template.config.autoencoder,
        stages=stages,
        sampling=SamplingConfig(solver=sampling.solver, default_guidance_scale=GUIDANCE_SCALE),
    )
    torch.manual_seed(0)  # plans of an earlier run are in the cache then
    model = MsfModel(config).eval().requires_grad_(False)
    for stage in config.denoising_stages:
        fill_zeros(model.denoiser(stage))
    model.autoencoder.load_state_dict(template.autoencoder.state_dict())
    return model


async def saturate(service: LocalService, name: str, load: Load, seed: int) -> tuple[float, float]:
    """Return images per second, and CPU seconds of the service per image, with several requests always in flight."""
    tally, started_at_cpu_s = LoadTally(), cpu_seconds(service)
    async with LoadClient(service.url, body={"model": name}) as client:
        requests = plan_typical(load.num_requests, Mix(), NUM_CLASSES, seed)
        await closed_loop(client, requests, load.num_clients, tally)
    check(tally)
    seconds = max(result.ended_s for result in tally.results)
    return load.num_requests / seconds, (cpu_seconds(service) - started_at_cpu_s) / load.num_requests


def cpu_seconds(service: LocalService) -> float:
    """Return the CPU time of the service's processes so far."""
    return sum(sum(process.cpu_times()[:2]) for process in service.msf.processes().values())


async def measure_one(
    service: LocalService, name: str, load: Load, mixed_per_s: float, seed: int, figures: Figures
) -> None:
    """Add a contender's results of one round."""
    async with LoadClient(service.url, body={"model": name}) as client:
        figures.alone_s += [result.latency_s for result in await measure_alone(client, [Kind()], load.num_alone)]
    images_per_s, cpu_s = await saturate(service, name, load, seed)
    figures.images_per_s.append(images_per_s)
    figures.cpu_s.append(cpu_s)
    if load.mixed_s:
        tally = LoadTally()
        async with LoadClient(service.url, body={"model": name}) as client:
            requests = plan_load(poisson, mixed_per_s, load.mixed_s, MIX, NUM_CLASSES, seed)
            await open_loop(client, requests, tally)
        check(tally)
        figures.mixed_s += [result.latency_s for result in tally.results]


def check(tally: LoadTally) -> None:
    """Raise RuntimeError if a request failed."""
    if failed := [result for result in tally.results if result.outcome is not RequestOutcome.SUCCEEDED]:
        raise RuntimeError(f"{len(failed)} of {tally.num_sent} requests failed, the first: {failed[0].error}")


def mixed_rate(images_per_s: float, share: float) -> float:
    """Return the requests per second of the mixed load that are this share of what makes `images_per_s`."""
    kinds = MIX.weighted_kinds.choices
    sample_steps = np.average(
        [(kind.num_steps or NUM_STEPS) * kind.num_samples for kind, _ in kinds], weights=[w for _, w in kinds]
    )
    return float(share * images_per_s * NUM_STEPS / sample_steps)


async def measure(
    service: LocalService, names: Sequence[str], baseline: str, num_rounds: int, load: Load
) -> dict[str, Figures]:
    """Measure all models in turns; a round before the first warms up, and decides the rate of the mixed load."""
    warm_up = {name: (await saturate(service, name, load, seed=0))[0] for name in names}
    mixed_per_s = mixed_rate(warm_up[baseline], load.mixed_share)
    figures = {name: Figures() for name in names}
    for round_number in range(1, num_rounds + 1):
        for name in names:
            await measure_one(service, name, load, mixed_per_s, round_number, figures[name])
            print(f"round {round_number}, {name}: {figures[name].images_per_s[-1]:.2f} images/s", file=sys.stderr)
    if load.mixed_s:
        print(f"mixed load: {mixed_per_s:.2f} requests/s, {load.mixed_share:.0%} of what {baseline} completes")
    return figures


def report(every: Sequence[Architecture], figures: Sequence[Figures]) -> str:
    """Return a table of all contenders."""
    baseline = next(each for entry, each in zip(every, figures, strict=True) if entry.name == BASELINE)
    rows = []
    for entry, each in zip(every, figures, strict=True):
        ratios = [one / other for one, other in zip(each.images_per_s, baseline.images_per_s, strict=True)]
        rows.append(
            (
                entry.name,
                f"{entry.num_parameters / 1e6:.2f}",
                f"{median(each.images_per_s):.2f}",
                f"{median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})",
                f"{1000 * median(each.cpu_s):.0f}",
                *(f"{1000 * value:.0f}" for value in np.percentile(each.alone_s, (50, 99))),
                f"{1000 * np.percentile(each.mixed_s, 99):.0f}" if each.mixed_s else "",
            )
        )
    header = (
        "",
        "M parameters",
        "images/s",
        f"ratio to {BASELINE}",
        "CPU, ms",
        "alone: p50, ms",
        "p99, ms",
        "mixed: p99, ms",
    )
    return markdown_table(header, rows)


def write_models(folder: Path, every: Sequence[Architecture], template: MsfModel) -> list[str]:
    """Write a version of each contender; return the models' names."""
    labels = tuple(str(number) for number in range(NUM_CLASSES))
    names = [entry.folder.lower() for entry in every]
    for entry, name in zip(every, names, strict=True):
        save_version(folder, name, "1", servable_model(entry, template), labels)
    return names


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=(*SCALES, *SIZES), default="seeds", help="Fashion-MNIST's, or DiT's at 256²")
    parser.add_argument("--model-repo", type=Path, default=Path("model_repo"), help="repository of the autoencoder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=300, help="images per model and round at saturation")
    parser.add_argument("--clients", type=int, default=64, help="requests in flight (default: 64)")
    parser.add_argument("--alone", type=int, default=60, help="images per model and round, one at a time")
    parser.add_argument("--mixed-share", type=float, default=0.6, help=f"of what {BASELINE} completes")
    parser.add_argument("--mixed-seconds", type=float, default=15, help="per model and round; 0: none")
    arguments = parser.parse_args()
    if arguments.size in SIZES:
        width, depth, num_heads = SIZES[arguments.size]
        scale = replace(SCALES["full"], width=width, depth=depth, num_heads=num_heads)
        sizes = {stage: msf_size(arguments.size, stage) for stage in STAGE_NAMES[2]}
        config = model_config(sizes, IMAGE_SIZE, NARROW_WIDTHS, NARROW_GROUPS)
        template, every = random_model(config, torch.device("cpu")), contenders(scale, IMAGE_SIZE // DOWNSAMPLING)
    else:
        template = read_version(arguments.model_repo, "fashion-mnist").load()
        every = with_patches_of_one(contenders(SCALES[arguments.size], LATENT_SIZE))
    load = Load(arguments.requests, arguments.clients, arguments.alone, arguments.mixed_share, arguments.mixed_seconds)
    with tempfile.TemporaryDirectory(prefix="msf-") as name:
        folder = Path(name)
        names = write_models(folder / "contenders", every, template)
        settings = {"MSF_MODEL_REPO": str(folder / "contenders")}
        subprocess.run([sys.executable, "-m", "msf_cli.main", "compile"], env=os.environ | settings, check=True)
        with local_service(folder, **settings) as service:
            baseline = next(name for entry, name in zip(every, names, strict=True) if entry.name == BASELINE)
            figures = asyncio.run(measure(service, names, baseline, arguments.rounds, load))
    print(f"{cpu_name()}, {os.cpu_count()} cores; size {arguments.size}, {NUM_STEPS} steps\n")
    print(report(every, [figures[name] for name in names]))


if __name__ == "__main__":
    main()
