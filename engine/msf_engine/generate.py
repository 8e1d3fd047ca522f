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
    groups: dict[tuple[tuple[int, ...], float], list[int]] = defaultdict(list)
    for position, request in enumerate(requests):
        groups[request.num_steps, request.guidance_scale].append(position)
    images: dict[int, NDArray[np.uint8]] = {}
    for positions in groups.values():
        latents = _latents(plans, [requests[position] for position in positions], strict)
        finite = np.all([np.isfinite(stage).all(axis=(1, 2, 3)) for stage in latents], axis=0).tolist()
        if not all(finite):
            raise ValueError(f"image {positions[finite.index(False)]} is not finite; lower its guidance scale")
        images |= zip(positions, plans.decode(latents, strict=strict), strict=True)
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
    negative_labels: NDArray[np.int64] | None = None,
    strict: bool = False,
) -> Latents:
    """Carry `noise` (B, C, h, w) through a stage to normalised latents (B, C, h, w) of `labels` (B,).

    Guidance steers away from `negative_labels` (B,), by default the null label.
    """
    trajectory = stage_trajectory(plans.config, stage, plans.time_embeddings[stage], num_steps, guidance_scale)
    network = partial(plans.run, stage, strict=strict)
    negative = plans.config.num_classes if negative_labels is None else negative_labels
    return sample(network, trajectory, noise, labels, negative, cond)


def denoise_stages(
    plans: ModelPlans,
    noise: SampleNoise,
    labels: NDArray[np.int64],
    num_steps: Sequence[int],
    guidance_scale: float,
    *,
    first: Latents | None = None,
    negative_labels: NDArray[np.int64] | None = None,
    strict: bool = False,
) -> list[Latents]:
    """Return the normalised latents (B, C, h, w) of each stage; `first` takes the place of the first stage's."""
    latents = [] if first is None else [first]
    stages = list(zip(plans.config.denoising_stages, noise.stages, num_steps, strict=True))
    for stage, start, count in stages[len(latents) :]:
        cond: Latents | None = None
        if latents and noise.condition is not None:
            cond = noisy_condition(plans.config, latents[-1], noise.condition)
        latents.append(
            denoise(
                plans, stage, start, labels, count, guidance_scale, cond, negative_labels=negative_labels, strict=strict
            )
        )
    return latents


def _latents(plans: ModelPlans, requests: Sequence[SampleRequest], strict: bool) -> list[Latents]:
    """Return the latents of requests with the same steps and guidance scale."""
    first = requests[0]
    return denoise_stages(
        plans,
        SampleNoise.of(plans.config, [r.seed for r in requests], [r.index for r in requests]),
        np.array([request.label for request in requests]),
        first.num_steps,
        first.guidance_scale,
        negative_labels=np.array([request.null_label(plans.config) for request in requests]),
        strict=strict,
    )
