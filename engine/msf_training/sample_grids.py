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
from msf_engine.model import Normalizer
from msf_engine.schedule import integrate, timesteps
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
        residual = sample(denoiser, labels, cond, config, config.residual.default_num_steps, device)
        z = compose(base_values.restore(base), residual_values.restore(residual))
    else:
        no_cond = latents.base[:NUM_SHOWN, :0].float()
        base = sample(denoiser, labels, no_cond, config, config.base.default_num_steps, device)
        z = up(base_values.restore(base))
    decoded = torch.cat([autoencoder.decode(part.to(device)).cpu() for part in torch.split(z, COLUMNS)])
    save_images(file, decoded)


def sample(
    denoiser: Denoiser, labels: Tensor, cond: Tensor, config: ModelConfig, num_steps: int, device: torch.device
) -> Tensor:
    """Guided samples (N, C, h, w), normalised, of `labels` (N,) and `cond` (N, K, h, w; K may be 0)."""
    size, count = denoiser.config.size, len(labels)
    guidance = (config.residual if denoiser.config.cond_channels else config.base).guidance
    both_labels = torch.cat((labels, torch.full_like(labels, denoiser.null_label))).to(device)
    both_cond = torch.cat((cond.expand(count, -1, size, size),) * 2).to(device)
    levels = torch.full((2 * count,), config.conditioning_noise, device=device)

    def velocity(x: Tensor, t: float) -> Tensor:
        embedding = denoiser.time(torch.full((2 * count,), t, device=device), levels)
        given, null = denoiser(torch.cat((x, x)), embedding, both_labels, both_cond).float().chunk(2)
        scale = guidance.scale_at(t, config.sampling.default_guidance_scale)
        guided: Tensor = null + scale * (given - null)
        return guided

    noise = _noise((count, denoiser.config.in_channels, size, size), seed=0).to(device)
    times = timesteps(num_steps, config.sampling.time_shift)
    return integrate(velocity, noise, times, config.sampling.solver).cpu()


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
