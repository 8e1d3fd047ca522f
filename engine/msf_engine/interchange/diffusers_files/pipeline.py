"""A model of msf-serve as a pipeline of diffusers: the images of `msf generate`, sample by sample of a seed.

pipeline = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
pipeline(["cat", "cat"], seed=7).images
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor

from msf_engine.factorization import compose
from msf_engine.noise import NoiseStream, gaussian_noise
from msf_engine.schedule import flow_schedule, flow_times

TOLD_SCALE_STEP = 0.05  # flow maps are told multiples of it


class MsfPipeline(DiffusionPipeline):
    """Class-conditional images by flow matching, in one stage or two. `settings` are those of the model's config."""

    _optional_components: ClassVar = ["residual"]  # two-stage models have it

    def __init__(self, vae: Any, base: Any, residual: Any, settings: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.register_modules(vae=vae, base=base, residual=residual)
        self.register_to_config(settings=settings)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int | str],
        seed: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[list[Image.Image]]:
        """Return an image of each class, by name or id; image i has the noise of sample i of `seed`."""
        settings = self.config.settings
        names = settings["labels"]
        ids = [names.index(label) if isinstance(label, str) else label for label in class_labels]
        labels = torch.tensor(ids, device=self._execution_device)
        scale = settings["default_guidance_scale"] if guidance_scale is None else guidance_scale
        latents: list[Tensor] = []
        for index, num_steps in enumerate(self._split(num_inference_steps)):
            latents.append(self._denoise(index, latents, labels, seed, num_steps, scale))
        stages = settings["stages"]
        restored = [self._restore(latent, stage) for latent, stage in zip(latents, stages, strict=True)]
        decoded = self.vae.decode(compose(*restored) if len(restored) == 2 else restored[0]).sample
        pixels = ((F.pixel_shuffle(decoded, settings["patch_size"]).float() + 1) * 127.5).round().clamp(0, 255)
        arrays = pixels.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
        images = [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _split(self, num_steps: int | None) -> list[int]:
        """Split steps among the stages as the model's defaults do."""
        defaults = [stage["default_num_steps"] for stage in self.config.settings["stages"]]
        if num_steps is None or len(defaults) == 1:
            return [num_steps or defaults[0]] if len(defaults) == 1 else defaults
        num_last = min(max(round(num_steps * defaults[1] / sum(defaults)), 1), num_steps - 1)
        return [num_steps - num_last, num_last]

    def _denoise(
        self, index: int, before: list[Tensor], labels: Tensor, seed: int, num_steps: int, scale: float
    ) -> Tensor:
        """Carry the noise of a stage to its normalised latents (B, C, h, w)."""
        settings, stage = self.config.settings, self.config.settings["stages"][index]
        network = (self.base, self.residual)[index]
        x = self._noise(stage["shape"], len(labels), seed, NoiseStream(index))
        cond, level = None, float(stage["conditioning_noise"])
        if before:
            cond_noise = self._noise(before[-1].shape[1:], len(labels), seed, NoiseStream.CONDITION)
            cond = before[-1] + level * (cond_noise - before[-1])
        told_scale = 1.0
        if settings["solver"] == "flow_map":
            steps = round((min(scale, settings["max_guidance_scale"]) - 1) / TOLD_SCALE_STEP)
            told_scale = 1 + max(steps, 0) * TOLD_SCALE_STEP
        schedule = flow_schedule(flow_times(num_steps, settings["shift"]), settings["data_at"])
        null, d_prev = torch.full_like(labels, len(settings["labels"])), torch.zeros_like(x)
        interval, channels = stage["guidance"]["interval"], stage["guidance"]["channels"]
        for step, (a, b, c) in enumerate(schedule.updates(settings["solver"]).astype(np.float32).tolist()):
            values = (schedule.times[step], level, schedule.u_start[step] - schedule.u_end[step], told_scale)
            names = ("timestep", "cond_level", "interval", "guidance_scale")
            times = {
                name: torch.full((len(x),), float(v), device=x.device) for name, v in zip(names, values, strict=True)
            }
            d = network(x, times, labels, cond)
            if interval and interval[0] <= schedule.noise_times[step] <= interval[1] and scale != 1:
                unguided = network(x, times, null, cond)
                guided = unguided + scale * (d - unguided)
                d = guided if channels is None else torch.cat((guided[:, :channels], d[:, channels:]), dim=1)
            x, d_prev = a * x + b * d + c * d_prev, d
        return x

    def _noise(self, shape: Sequence[int], num_samples: int, seed: int, stream: NoiseStream) -> Tensor:
        noise = [gaussian_noise(tuple(shape), seed=seed, index=index, stream=stream) for index in range(num_samples)]
        return torch.from_numpy(np.stack(noise)).to(self._execution_device)

    def _restore(self, latents: Tensor, stage: dict[str, Any]) -> Tensor:
        mean, std = (torch.tensor(stage[name], device=latents.device)[:, None, None] for name in ("mean", "std"))
        return latents * std + mean
