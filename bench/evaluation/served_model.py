"""A model version by the plans that serve it: the evaluation measures what users get."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from msf_engine.backends import BackendName, get_backend
from msf_engine.generate import denoise_stages
from msf_engine.model import DecodeModule
from msf_engine.model_plans import ModelPlans
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_plans
from msf_engine.repository import ModelVersion
from msf_engine.sampling import SampleNoise, blank_latents, latent_shape
from msf_training.dataset import to_unit_range

BUCKET = 32  # rows: 16 guided samples
_SETTING = re.compile(r"(\d+(?:\+\d+)?)@(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class SamplingSetting:
    """Steps of each stage and the request's guidance scale, written `16+4@1.5`, or `20@1.5` for one stage."""

    num_steps: tuple[int, ...]
    guidance_scale: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a setting. Raises ValueError that shows the syntax."""
        match = _SETTING.fullmatch(text.strip())
        num_steps = tuple(map(int, match[1].split("+"))) if match else ()
        if match is None or 0 in num_steps:
            raise ValueError(f"invalid setting {text!r}; write base+residual steps@guidance scale, such as 16+4@1.5")
        return cls(num_steps, float(match[2]))

    def __str__(self) -> str:
        return f"{'+'.join(map(str, self.num_steps))}@{self.guidance_scale:g}"


class ServedModel:
    """Stages of a model on its plans. Latents are normalised; images are uint8 (N, C, H, W)."""

    def __init__(self, plans: ModelPlans, pixels: DecodeModule) -> None:
        self.plans = plans
        self.config = plans.config
        self.pixels = pixels  # the uncompiled decoder, which also encodes

    @property
    def default_setting(self) -> SamplingSetting:
        """Setting that the model serves with."""
        num_steps = tuple(stage.default_num_steps for stage in self.config.stages)
        return SamplingSetting(num_steps, self.config.sampling.default_guidance_scale)

    def generate(self, labels: Tensor, setting: SamplingSetting, seed: int, first: Tensor | None = None) -> Tensor:
        """Return images of `labels` (N,); `first` are latents in the place of the first stage's."""
        return self.decode(*self.latents(labels, setting, seed, first))

    def latents(
        self, labels: Tensor, setting: SamplingSetting, seed: int, first: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return each stage's latents (N, C, h, w) of `labels` (N,), as `generate` decodes them."""
        noise = SampleNoise.of(self.config, [seed] * len(labels), range(len(labels)))
        start = None if first is None else first.numpy()
        arrays = denoise_stages(
            self.plans, noise, labels.numpy(), setting.num_steps, setting.guidance_scale, first=start
        )
        return tuple(map(torch.from_numpy, arrays))

    def decode(self, *latents: Tensor) -> Tensor:
        """Return the images of latents; without those of the last stage, of the stage before alone."""
        arrays = [stage.numpy() for stage in latents]
        if len(arrays) < len(self.config.stages):
            shape = len(arrays[0]), *latent_shape(self.config, self.config.denoising_stages[-1])
            arrays.append(np.broadcast_to(blank_latents(self.config), shape))
        return torch.from_numpy(self.plans.decode(arrays)).movedim(-1, 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return each stage's latents of images."""
        parts = [self.pixels.encode(to_unit_range(part)) for part in torch.split(images, BUCKET)]
        return tuple(torch.cat(stage) for stage in zip(*parts, strict=True))


def load_served_model(version: ModelVersion, backend: BackendName, plan_folder: Path) -> ServedModel:
    """Load the plans for batches of `BUCKET` rows. Raises what `get_backend` and `load_plans` raise."""
    plans = load_plans(version, get_backend(backend, None, torch.get_num_threads()), PlanCache(plan_folder), (BUCKET,))
    return ServedModel(plans, DecodeModule(version.load()))
