"""Images of many requests with no queue and no clock: for the command line, tests and benchmarks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from msf_engine.executor import SampleRequest
from msf_engine.model_plans import ModelPlans
from msf_engine.sampling import Latents, SampleNoise, noisy_condition, sample, stage_trajectory
from msf_scheduler.stage import Stage


def generate(plans: ModelPlans, requests: Sequence[SampleRequest], *, strict: bool = False) -> list[NDArray[np.uint8]]:
    """Return images (H, W, channels) in the order of the requests; those with the same steps and scale share batches.

    `strict`: only in buckets that leave each image's bytes alone. Raises PlanError where there are none, ValueError for
    an image that is not finite.
    """
    groups: dict[tuple[int, int, float], list[int]] = defaultdict(list)
    for position, request in enumerate(requests):
        groups[request.num_base_steps, request.num_residual_steps, request.guidance_scale].append(position)
    images: dict[int, NDArray[np.uint8]] = {}
    for positions in groups.values():
        base, residual = _latents(plans, [requests[position] for position in positions], strict)
        finite = [bool(np.isfinite(z).all() and np.isfinite(r).all()) for z, r in zip(base, residual, strict=True)]
        if not all(finite):
            raise ValueError(f"image {positions[finite.index(False)]} is not finite; lower its guidance scale")
        images |= zip(positions, plans.run(Stage.DECODE, (base, residual), strict=strict), strict=True)
    return [images[position] for position in range(len(requests))]


def denoise(
    plans: ModelPlans,
    stage: Stage,
    noise: Latents,
    labels: NDArray[np.int64],
    num_steps: int,
    guidance_scale: float,
    cond: Latents | None = None,
    *,
    strict: bool = False,
) -> Latents:
    """Carry `noise` (B, C, h, w) through a stage to normalised latents (B, C, h, w) of `labels` (B,)."""
    trajectory = stage_trajectory(plans.config, stage, plans.time_embeddings[stage], num_steps, guidance_scale)
    network = partial(plans.run, stage, strict=strict)
    return sample(network, trajectory, noise, labels, plans.config.num_classes, cond)


def _latents(plans: ModelPlans, requests: Sequence[SampleRequest], strict: bool) -> tuple[Latents, Latents]:
    """Normalised base (B, C, h, w) and residual (B, 3C, h, w) of requests with the same steps and guidance scale."""
    first, scale = requests[0], requests[0].guidance_scale
    labels = np.array([request.label for request in requests])
    noise = SampleNoise.of(plans.config, [r.seed for r in requests], [r.index for r in requests])
    base = denoise(plans, Stage.BASE, noise.base, labels, first.num_base_steps, scale, strict=strict)
    cond = noisy_condition(plans.config, base, noise.condition)
    num_steps = first.num_residual_steps
    return base, denoise(plans, Stage.RESIDUAL, noise.residual, labels, num_steps, scale, cond, strict=strict)
