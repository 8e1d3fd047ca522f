"""A model small enough for tests: real code, a few thousand weights, images of 16x16."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import torch

from msf_engine.config import (
    AutoencoderConfig,
    GuidanceConfig,
    ImageConfig,
    LatentStatistics,
    ModelConfig,
    SamplingConfig,
    StageConfig,
)
from msf_engine.denoiser_config import DenoiserConfig
from msf_engine.diffusion_process import DiffusionProcess, VariancePreservingProcess
from msf_engine.model import MsfModel
from msf_engine.repository import ModelVersion, read_version, save_version
from msf_scheduler.stage import Stage

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
        stages=(
            StageConfig(
                name=Stage.BASE,
                denoiser=DenoiserConfig(
                    in_channels=channels, size=_HALF, width=32, depth=1, num_heads=2, num_classes=len(LABELS)
                ),
                statistics=LatentStatistics(mean=(0.1,) * channels, std=(1.5,) * channels),
                default_num_steps=4,
            ),
            StageConfig(
                name=Stage.RESIDUAL,
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
                conditioning_noise=0.1,
            ),
        ),
        sampling=SamplingConfig(solver="ab2", default_guidance_scale=1.5, max_num_steps=50),
    )


def flow_map_config() -> ModelConfig:
    """The tiny model as one of flow maps, in 2 + 1 steps."""
    config = tiny_config()
    for stage, num_steps in ((Stage.BASE, 2), (Stage.RESIDUAL, 1)):
        config = with_stage(config, stage, guidance=GuidanceConfig(interval=None), default_num_steps=num_steps)
    sampling = {"solver": "flow_map", "max_guidance_scale": 2.0, "max_num_steps": 16}
    return config.model_copy(update={"sampling": config.sampling.model_copy(update=sampling)})


def with_stage(config: ModelConfig, name: Stage, **changes: object) -> ModelConfig:
    """Return the config with some fields of a stage replaced."""
    stages = (stage.model_copy(update=changes if stage.name is name else {}) for stage in config.stages)
    return config.model_copy(update={"stages": tuple(stages)})


def one_stage_config(process: DiffusionProcess | None = None, **sampling: object) -> ModelConfig:
    """A tiny DiT over whole latents of 4x4, in patches of 2, guided on its first channel alone."""
    config = tiny_config()
    base = config.stages[0]
    stage = StageConfig(
        name=Stage.DENOISE,
        denoiser=base.denoiser.model_copy(update={"size": 2 * _HALF, "patch_size": 2}),
        statistics=base.statistics,
        default_num_steps=5,
        guidance=GuidanceConfig(channels=1),
    )
    fields = {**vars(config), "stages": (stage,), "sampling": config.sampling.model_copy(update=sampling)}
    return ModelConfig(**fields | {"process": process or config.process})


def ddpm_config() -> ModelConfig:
    """The tiny DiT as diffusers' are: it predicts the noise of a variance-preserving process."""
    return one_stage_config(VariancePreservingProcess(), solver="ddim")


def tiny_model(seed: int = 0, config: ModelConfig | None = None) -> MsfModel:
    """Random weights, none of them zero: untrained DiT blocks would predict nothing."""
    torch.manual_seed(seed)
    model = MsfModel(config or tiny_config()).eval().requires_grad_(False)
    parameters = (model.denoiser(stage).parameters() for stage in model.config.denoising_stages)
    for parameter in chain.from_iterable(parameters):
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def tiny_repository(
    folder: Path, name: str = "tiny", version: str = "1", config: ModelConfig | None = None
) -> ModelVersion:
    save_version(folder, name, version, tiny_model(config=config), LABELS)
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
