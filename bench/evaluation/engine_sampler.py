"""The evaluation's sampler over the plans that serve a model: quality is measured on what users get."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from msf_engine.backends import BackendName, get_backend
from msf_engine.model import DecodeModule
from msf_engine.model_plans import ModelPlans
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_plans
from msf_engine.repository import ModelVersion
from msf_engine.sampling import initial_noise, noisy_condition, sample, stage_trajectory
from msf_scheduler.stage import Stage
from msf_training.data import to_unit_range

BUCKET = 16


class EngineSampler:
    """An `ImageSampler` that runs full buckets. `pixels`, the model's uncompiled decoder, also encodes."""

    def __init__(self, plans: ModelPlans, pixels: DecodeModule) -> None:
        self.plans = plans
        self.pixels = pixels
        zero = torch.zeros(1, 3 * plans.config.latent_channels, 1, 1)
        self.zero_residual = pixels.residual.normalize(zero)

    def base(self, labels: Tensor, *, num_steps: int, guidance_scale: float, seed: int) -> Tensor:
        return self._denoise(Stage.BASE, None, labels, num_steps, guidance_scale, seed)

    def residual(self, base: Tensor, labels: Tensor, *, num_steps: int, guidance_scale: float, seed: int) -> Tensor:
        config = self.plans.config
        cond = torch.stack([noisy_condition(config, row, seed=seed, index=index) for index, row in enumerate(base)])
        return self._denoise(Stage.RESIDUAL, cond, labels, num_steps, guidance_scale, seed)

    def decode(self, base: Tensor, residual: Tensor | None) -> Tensor:
        if residual is None:
            residual = self.zero_residual.expand(len(base), -1, *base.shape[2:])
        (images,) = self.plans.bucketed((Stage.DECODE, False))(base, residual)
        return images.movedim(-1, 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.pixels.encode(to_unit_range(images))

    def _denoise(
        self, stage: Stage, cond: Tensor | None, labels: Tensor, num_steps: int, guidance_scale: float, seed: int
    ) -> Tensor:
        config, embed = self.plans.config, self.plans.time_embeddings[stage]
        trajectory = stage_trajectory(config, stage, embed, num_steps, guidance_scale)
        steps = {guided: self.plans.bucketed((stage, guided)) for guided in set(trajectory.guided)}
        noise = torch.stack([initial_noise(config, stage, seed=seed, index=index) for index in range(len(labels))])
        return sample(steps, trajectory, noise, noise[:, :0] if cond is None else cond, labels)


def load_sampler(version: ModelVersion, backend: BackendName, plan_folder: Path) -> EngineSampler:
    """Raises what `get_backend` and `load_plans` raise."""
    num_threads = torch.get_num_threads()
    plans = load_plans(version, get_backend(backend, None, num_threads), PlanCache(plan_folder), buckets=(BUCKET,))
    return EngineSampler(plans, DecodeModule(version.load()))
