"""Whole models with random weights, of the sizes of `bench.engine.sizes`, with Stable Diffusion's autoencoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch

from bench.engine.sizes import DOWNSAMPLING, LATENT_CHANNELS, DenoiserSize, fill_zeros
from msf_engine.config import ModelConfig
from msf_engine.model import MsfModel
from msf_scheduler.stage import Stage

SD_WIDTHS = (128, 256, 512, 512)
NUM_STEPS = {Stage.BASE: 16, Stage.RESIDUAL: 4}
GUIDANCE_SCALE = 1.5


def model_config(
    sizes: Mapping[Stage, DenoiserSize], image_size: int, widths: Sequence[int] = SD_WIDTHS, num_groups: int = 32
) -> ModelConfig:
    """Return the config of a model with these denoisers; `widths` are those of the autoencoder."""
    autoencoder = {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": LATENT_CHANNELS,
        "block_out_channels": list(widths),
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": 2,
        "norm_num_groups": num_groups,
        "sample_size": image_size,
    }
    stages = [
        {
            "name": stage,
            "conditioning_noise": 0.1 if size.cond_channels else 0.0,
            "denoiser": asdict(size),
            "statistics": {"mean": (0.0,) * size.in_channels, "std": (1.0,) * size.in_channels},
            "default_num_steps": NUM_STEPS[stage],
        }
        for stage, size in sizes.items()
    ]
    return ModelConfig.model_validate(
        {
            "image": {"size": image_size, "channels": 3},
            "autoencoder": {"patch_size": DOWNSAMPLING // 2 ** (len(widths) - 1), "kl": autoencoder},
            "stages": stages,
            "sampling": {"solver": "ab2", "default_guidance_scale": GUIDANCE_SCALE},
        }
    )


def random_model(config: ModelConfig, device: torch.device) -> MsfModel:
    """Return a model on `device`, without zero weights in its denoisers."""
    torch.manual_seed(0)
    with device:
        model = MsfModel(config).eval().requires_grad_(False)
    for denoiser in map(model.denoiser, model.config.denoising_stages):
        fill_zeros(denoiser)
    return model
