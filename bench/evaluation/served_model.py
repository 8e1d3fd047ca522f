"""A model version by the plans that serve it: the evaluation measures what users get."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from msf_engine.backends import BackendName, get_backend
from msf_engine.generate import denoise
from msf_engine.model import DecodeModule
from msf_engine.model_plans import ModelPlans
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_plans
from msf_engine.repository import ModelVersion
from msf_engine.sampling import SampleNoise, noisy_condition
from msf_scheduler.stage import Stage
from msf_training.dataset import to_unit_range

BUCKET = 32  # rows: 16 guided samples
_SETTING = re.compile(r"(\d+)\+(\d+)@(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class SamplingSetting:
    """Steps of each stage and the request's guidance scale, written `16+4@1.5`."""

    num_base_steps: int
    num_residual_steps: int
    guidance_scale: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a setting. Raises ValueError that shows the syntax."""
        match = _SETTING.fullmatch(text.strip())
        if match is None or not int(match[1]) or not int(match[2]):
            raise ValueError(f"invalid setting {text!r}; write base+residual steps@guidance scale, such as 16+4@1.5")
        return cls(int(match[1]), int(match[2]), float(match[3]))

    def __str__(self) -> str:
        return f"{self.num_base_steps}+{self.num_residual_steps}@{self.guidance_scale:g}"


class ServedModel:
    """Stages of a model on its plans. Latents are normalised; images are uint8 (N, C, H, W)."""

    def __init__(self, plans: ModelPlans, pixels: DecodeModule) -> None:
        self.plans = plans
        self.config = plans.config
        self.pixels = pixels  # the uncompiled decoder, which also encodes

    @property
    def default_setting(self) -> SamplingSetting:
        """Setting that the model serves with."""
        config = self.config
        steps = config.base.default_num_steps, config.residual.default_num_steps
        return SamplingSetting(*steps, config.sampling.default_guidance_scale)

    def generate(self, labels: Tensor, setting: SamplingSetting, seed: int) -> Tensor:
        """Return images of `labels` (N,)."""
        return self.complete(self.generate_base(labels, setting, seed), labels, setting, seed)

    def generate_base(self, labels: Tensor, setting: SamplingSetting, seed: int) -> Tensor:
        """Return bases (N, C, h, w) of `labels` (N,)."""
        noise = self._noise(len(labels), seed)
        steps, scale = setting.num_base_steps, setting.guidance_scale
        return torch.from_numpy(denoise(self.plans, Stage.BASE, noise.base, labels.numpy(), steps, scale))

    def complete(self, base: Tensor, labels: Tensor, setting: SamplingSetting, seed: int) -> Tensor:
        """Return images with these bases and generated residuals."""
        noise = self._noise(len(labels), seed)
        cond = noisy_condition(self.config, base.numpy(), noise.condition)
        steps, scale = setting.num_residual_steps, setting.guidance_scale
        residual = denoise(self.plans, Stage.RESIDUAL, noise.residual, labels.numpy(), steps, scale, cond)
        return self.decode(base, torch.from_numpy(residual))

    def decode(self, base: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the images of latents; without a residual, those of the base alone."""
        if residual is None:
            zero = torch.zeros(1, 3 * self.config.latent_channels, 1, 1)
            residual = self.pixels.residual.normalize(zero).expand(len(base), -1, *base.shape[2:])
        pixels = self.plans.run(Stage.DECODE, (base.numpy(), residual.numpy()))
        return torch.from_numpy(pixels).movedim(-1, 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return base and residual of images."""
        parts = [self.pixels.encode(to_unit_range(part)) for part in torch.split(images, BUCKET)]
        base, residual = (torch.cat(stage) for stage in zip(*parts, strict=True))
        return base, residual

    def _noise(self, num_samples: int, seed: int) -> SampleNoise:
        return SampleNoise.of(self.config, [seed] * num_samples, range(num_samples))


def load_served_model(version: ModelVersion, backend: BackendName, plan_folder: Path) -> ServedModel:
    """Load the plans for batches of `BUCKET` rows. Raises what `get_backend` and `load_plans` raise."""
    plans = load_plans(version, get_backend(backend, None, torch.get_num_threads()), PlanCache(plan_folder), (BUCKET,))
    return ServedModel(plans, DecodeModule(version.load()))
