"""Image grids of the training's progress: samples of the averaged weights, always from the same noise."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from msf_engine.autoencoder import Autoencoder
from msf_engine.config import ModelConfig
from msf_engine.denoiser import Denoiser
from msf_engine.eager_network import eager_network, host_time_embedding
from msf_engine.factorization import compose, up
from msf_engine.model import Normalizer
from msf_engine.plan import Array
from msf_engine.sampling import SampleNoise, noisy_condition, sample, stage_trajectory
from msf_scheduler.stage import Stage
from msf_training.dataset import to_uint8
from msf_training.latents import Latents

COLUMNS = 8
NUM_IMAGES = 24


def save_grid(file: Path, images: Tensor, columns: int = COLUMNS) -> None:
    """Write images (N, C, H, W) uint8, grey or RGB, as a PNG, row by row; empty places are white."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = images.new_full((rows * columns, channels, height, width), 255)
    sheet[:count] = images
    tiled = sheet.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = tiled.reshape(rows * height, columns * width, channels).numpy()
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(file)


@torch.no_grad()
def save_samples(
    file: Path, config: ModelConfig, autoencoder: Autoencoder, denoiser: Denoiser, latents: Latents
) -> None:
    """Write NUM_IMAGES samples, class by class: of the first stage alone, or residuals generated for real bases."""
    device = next(denoiser.parameters()).device
    classes = torch.unique(latents.labels)
    labels = classes[torch.arange(NUM_IMAGES) % len(classes)]
    noise = SampleNoise.of(config, [0] * NUM_IMAGES, range(NUM_IMAGES))
    first, *rest = map(Normalizer, latents.statistics)
    if noise.condition is not None and denoiser.config.cond_channels:
        first_rows = [int((latents.labels == label).nonzero()[0]) for label in labels]
        base = latents.stages[0][first_rows].float()
        cond = noisy_condition(config, base.numpy(), noise.condition)
        residual = _sample_stage(Stage.RESIDUAL, denoiser, config, noise.stages[1], labels, cond)
        z = compose(first.restore(base), rest[0].restore(residual))
    else:
        z = first.restore(_sample_stage(config.stages[0].name, denoiser, config, noise.stages[0], labels))
        z = up(z) if rest else z
    decoded = torch.cat([autoencoder.decode(part.to(device)).cpu() for part in torch.split(z, COLUMNS)])
    save_grid(file, to_uint8(decoded))


def _sample_stage(
    stage: Stage,
    denoiser: Denoiser,
    config: ModelConfig,
    noise: Array,
    labels: Tensor,
    cond: Array | None = None,
) -> Tensor:
    """Return normalised latents (N, C, h, w) of `labels` (N,), at the config's steps and guidance scale."""
    num_steps, scale = config.stage(stage).default_num_steps, config.sampling.default_guidance_scale
    trajectory = stage_trajectory(config, stage, host_time_embedding(denoiser), num_steps, scale)
    network = eager_network(denoiser)
    return torch.from_numpy(sample(network, trajectory, noise, labels.numpy(), denoiser.null_label, cond))
