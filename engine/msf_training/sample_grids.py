"""Pictures of how training is going: what the average of the weights makes now, always from the same noise."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from msf_engine.autoencoder import Autoencoder
from msf_engine.config import ModelConfig
from msf_engine.denoiser import Denoiser
from msf_engine.factorization import compose, up
from msf_engine.guided_step import StepModule
from msf_engine.model import Normalizer
from msf_engine.sampling import sample, stage_trajectory
from msf_scheduler.stage import Stage
from msf_training.data import to_uint8
from msf_training.denoiser import Latents

COLUMNS = 8
NUM_SHOWN = 24


def save_images(file: Path, images: Tensor) -> None:
    """Images (N, C, H, W) in [-1, 1], COLUMNS of them a row."""
    count, channels, height, width = images.shape
    rows = -(-count // COLUMNS)
    sheet = torch.ones(rows * COLUMNS, channels, height, width)
    sheet[:count] = images
    tiled = to_uint8(sheet).view(rows, COLUMNS, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = tiled.reshape(rows * height, COLUMNS * width, channels).numpy()
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(file)


@torch.no_grad()
def save_samples(
    file: Path, config: ModelConfig, autoencoder: Autoencoder, denoiser: Denoiser, latents: Latents
) -> None:
    """NUM_SHOWN images, class by class: of the base denoiser bases alone, of the residual's on real bases."""
    device = next(denoiser.parameters()).device
    classes = torch.tensor(sorted(set(latents.labels.tolist())))
    labels = classes[torch.arange(NUM_SHOWN) % len(classes)]
    base_values, residual_values = Normalizer(latents.base_statistics), Normalizer(latents.residual_statistics)
    if denoiser.config.cond_channels:
        first = [int((latents.labels == label).nonzero()[0]) for label in labels]
        base = latents.base[first].float()
        cond = torch.lerp(base, _noise(base.shape, seed=1), config.conditioning_noise)
        residual = _generate(denoiser, labels, cond, config, config.residual.default_num_steps)
        z = compose(base_values.restore(base), residual_values.restore(residual))
    else:
        no_cond = latents.base[:NUM_SHOWN, :0].float()
        base = _generate(denoiser, labels, no_cond, config, config.base.default_num_steps)
        z = up(base_values.restore(base))
    decoded = torch.cat([autoencoder.decode(part.to(device)).cpu() for part in torch.split(z, COLUMNS)])
    save_images(file, decoded)


def _generate(denoiser: Denoiser, labels: Tensor, cond: Tensor, config: ModelConfig, num_steps: int) -> Tensor:
    """Guided samples (N, C, h, w), normalised, of `labels` (N,) and `cond` (N, K, h, w; K may be 0)."""
    size, count = denoiser.config.size, len(labels)
    stage = Stage.RESIDUAL if denoiser.config.cond_channels else Stage.BASE
    scale = config.sampling.default_guidance_scale
    trajectory = stage_trajectory(config, stage, denoiser.time, num_steps, scale)
    steps = {guided: StepModule(denoiser, guided=guided) for guided in (True, False)}
    device = next(denoiser.parameters()).device
    noise = _noise((count, denoiser.config.in_channels, size, size), seed=0).to(device)
    cond = cond.expand(count, -1, size, size).to(device)
    return sample(steps, trajectory, noise, cond, labels.to(device)).cpu()


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
