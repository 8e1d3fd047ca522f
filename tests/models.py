"""A model small enough for tests: real code, a few thousand weights, images of 16x16."""

from __future__ import annotations

from pathlib import Path

import torch

from msf_engine.config import (
    AutoencoderConfig,
    DenoiserConfig,
    GuidanceConfig,
    ImageConfig,
    LatentStatistics,
    ModelConfig,
    SamplingConfig,
    StageConfig,
)
from msf_engine.model import MsfModel
from msf_engine.repository import ModelVersion, read_version, save_version

LABELS = ("circle", "square", "star")
_LATENT = 2
_HALF = 2


def tiny_config() -> ModelConfig:
    channels = _LATENT
    return ModelConfig(
        description="for tests",
        image=ImageConfig(size=16, channels=1),
        autoencoder=AutoencoderConfig(
            patch_size=2,
            kl={
                "in_channels": 4,
                "out_channels": 4,
                "latent_channels": channels,
                "block_out_channels": [8, 8],
                "down_block_types": ["DownEncoderBlock2D"] * 2,
                "up_block_types": ["UpDecoderBlock2D"] * 2,
                "layers_per_block": 1,
                "norm_num_groups": 4,
                "sample_size": 8,
                "use_quant_conv": False,
                "use_post_quant_conv": False,
            },
        ),
        base=StageConfig(
            denoiser=DenoiserConfig(
                in_channels=channels, size=_HALF, width=32, depth=1, num_heads=2, num_classes=len(LABELS)
            ),
            statistics=LatentStatistics(mean=(0.1,) * channels, std=(1.5,) * channels),
            default_num_steps=4,
        ),
        residual=StageConfig(
            denoiser=DenoiserConfig(
                in_channels=3 * channels,
                cond_channels=channels,
                size=_HALF,
                width=32,
                depth=1,
                num_heads=2,
                num_classes=len(LABELS),
            ),
            statistics=LatentStatistics(mean=(0.0,) * 3 * channels, std=(0.5,) * 3 * channels),
            default_num_steps=2,
        ),
        conditioning_noise=0.1,
        sampling=SamplingConfig(solver="ab2", default_guidance_scale=1.5, max_num_steps=50),
    )


def flow_map_config() -> ModelConfig:
    """The tiny model as one of flow maps, in 2 + 1 steps."""
    config = tiny_config()
    unguided = GuidanceConfig(interval=None)
    stages = {
        "base": config.base.model_copy(update={"guidance": unguided, "default_num_steps": 2}),
        "residual": config.residual.model_copy(update={"guidance": unguided, "default_num_steps": 1}),
    }
    sampling = {"solver": "flow_map", "max_guidance_scale": 2.0, "max_num_steps": 16}
    return config.model_copy(update={**stages, "sampling": config.sampling.model_copy(update=sampling)})


def tiny_model(seed: int = 0, config: ModelConfig | None = None) -> MsfModel:
    """Random weights, none of them zero: untrained DiT blocks would predict nothing."""
    torch.manual_seed(seed)
    model = MsfModel(config or tiny_config()).eval().requires_grad_(False)
    for parameter in (*model.base.parameters(), *model.residual.parameters()):
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def tiny_repository(folder: Path, name: str = "tiny", version: str = "1") -> ModelVersion:
    save_version(folder, name, version, tiny_model(), LABELS)
    return read_version(folder, name, version)


def tiny_recipe(head: str, num_iterations: int) -> str:
    """A recipe of `msf train` in TOML: `head` says all but its networks and their training."""
    fit = f"fit = {{ num_iterations = {num_iterations}, batch_size = 2, learning_rate = 1e-3 }}"
    denoiser = "width = 32\ndepth = 1\nnum_heads = 2"
    return f"""
name = "shapes"
description = "for tests"
image_size = 16
{head}
[autoencoder]
patch_size = 2
widths = [8, 8]
{fit}
[base]
{denoiser}
num_steps = 2
{fit}
[residual]
{denoiser}
num_steps = 1
{fit}
"""
