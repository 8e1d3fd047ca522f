"""Images of many requests with no queue and no clock: for the command line, tests and benchmarks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msf_engine.executor import SampleRequest
from msf_engine.model_plans import ModelPlans
from msf_engine.sampling import initial_noise, noisy_condition, sample, stage_trajectory
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
        finite = (base.isfinite().flatten(1).all(1) & residual.isfinite().flatten(1).all(1)).tolist()
        if not all(finite):
            raise ValueError(f"image {positions[finite.index(False)]} is not finite; lower its guidance scale")
        (pixels,) = plans.bucketed((Stage.DECODE, False), strict=strict)(base, residual)
        images |= zip(positions, pixels.numpy(), strict=True)
    return [images[position] for position in range(len(requests))]


def _latents(plans: ModelPlans, requests: Sequence[SampleRequest], strict: bool) -> tuple[Tensor, Tensor]:
    """Normalised base (B, C, h, w) and residual (B, 3C, h, w) of requests with the same steps and guidance scale."""
    config, first = plans.config, requests[0]
    labels = torch.tensor([request.label for request in requests])

    def run(stage: Stage, num_steps: int, cond: Tensor | None) -> Tensor:
        embed = plans.time_embeddings[stage]
        trajectory = stage_trajectory(config, stage, embed, num_steps, first.guidance_scale)
        steps = {guided: plans.bucketed((stage, guided), strict=strict) for guided in set(trajectory.guided)}
        noise = torch.stack([initial_noise(config, stage, seed=r.seed, index=r.index) for r in requests])
        return sample(steps, trajectory, noise, noise[:, :0] if cond is None else cond, labels)

    base = run(Stage.BASE, first.num_base_steps, None)
    cond = [noisy_condition(config, z, seed=r.seed, index=r.index) for z, r in zip(base, requests, strict=True)]
    return base, run(Stage.RESIDUAL, first.num_residual_steps, torch.stack(cond))
