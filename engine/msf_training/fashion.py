"""The recipe of the shipped model: an autoencoder and two denoisers on Fashion-MNIST.

    python -m msf_training.fashion all --data data --out runs/fashion

trains what is not trained yet (each part goes on from its checkpoint) and writes a model repository's version.
The parts can also run side by side, a process each: `autoencoder` first, then `base` and `residual`, then `export`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from msf_engine.autoencoder import Autoencoder
from msf_engine.config import (
    AutoencoderConfig,
    DenoiserConfig,
    GuidanceConfig,
    ImageConfig,
    ModelConfig,
    SamplingConfig,
    StageConfig,
)
from msf_engine.denoiser import Denoiser
from msf_engine.model import MsfModel
from msf_engine.repository import save_version
from msf_training.autoencoder import AutoencoderObjective, autoencoder_loss
from msf_training.data import LABELS, FashionMnist, load_fashion_mnist
from msf_training.denoiser import DenoiserObjective, Latents, base_loss, encode_latents, residual_loss
from msf_training.trainer import Loop, LoopConfig, LossFunction

Module = TypeVar("Module", bound=nn.Module)

AUTOENCODER = AutoencoderConfig(
    patch_size=2,
    kl={
        "in_channels": 4,
        "out_channels": 4,
        "latent_channels": 4,
        "block_out_channels": [32, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "layers_per_block": 1,
        "norm_num_groups": 16,
        "sample_size": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
)
BASE = DenoiserConfig(in_channels=4, size=4, width=256, depth=6, num_heads=4, num_classes=len(LABELS))
RESIDUAL = DenoiserConfig(
    in_channels=12, cond_channels=4, size=4, width=256, depth=4, num_heads=4, num_classes=len(LABELS)
)
AUTOENCODER_LOOP = LoopConfig(num_iterations=2800, learning_rate=1.5e-3)
BASE_LOOP = LoopConfig(num_iterations=2700, learning_rate=6e-4)
RESIDUAL_LOOP = LoopConfig(num_iterations=2000, learning_rate=6e-4)
AUTOENCODER_OBJECTIVE = AutoencoderObjective(residual_share_weight=0.02)
SERVED_AVERAGE = 0.995  # the EMA that is exported


def train_autoencoder(
    data: FashionMnist, out: Path, objective: AutoencoderObjective = AUTOENCODER_OBJECTIVE
) -> Autoencoder:
    torch.manual_seed(AUTOENCODER_LOOP.seed)
    autoencoder: Autoencoder = Autoencoder(AUTOENCODER).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(generator: torch.Generator) -> Mapping[str, Tensor]:
        return autoencoder_loss(autoencoder, data.train, objective, generator)

    return _trained(autoencoder, AUTOENCODER_LOOP, out / "autoencoder.pt", loss)


def train_denoiser(config: DenoiserConfig, loop: LoopConfig, latents: Latents, checkpoint: Path) -> Denoiser:
    torch.manual_seed(loop.seed)
    denoiser = Denoiser(config)
    objective = residual_loss if config.cond_channels else base_loss

    def loss(generator: torch.Generator) -> Mapping[str, Tensor]:
        return objective(denoiser, latents, DenoiserObjective(), generator)

    return _trained(denoiser, loop, checkpoint, loss)


def _trained(module: Module, config: LoopConfig, checkpoint: Path, loss: LossFunction) -> Module:
    """The average that is served."""
    loop = Loop(module, config, checkpoint)
    loop.run(loss)
    average = loop.averages[SERVED_AVERAGE]
    assert isinstance(average, type(module))
    return average


def export(autoencoder: Autoencoder, latents: Latents, base: Denoiser, residual: Denoiser, repository: Path) -> Path:
    """Write the trained parts as version 1 of `fashion-mnist`."""
    config = ModelConfig(
        description="Clothes of Fashion-MNIST, ten classes, 32x32 grey",
        image=ImageConfig(size=32, channels=1),
        autoencoder=AUTOENCODER,
        base=StageConfig(denoiser=BASE, statistics=latents.base_statistics, default_num_steps=8),
        residual=StageConfig(
            denoiser=RESIDUAL,
            statistics=latents.residual_statistics,
            default_num_steps=8,
            guidance=GuidanceConfig(interval=None),
        ),
        conditioning_noise=0.1,
        sampling=SamplingConfig(solver="ab2", default_guidance_scale=1.25),
    )
    model = MsfModel(config)
    model.autoencoder.load_state_dict(autoencoder.state_dict())
    model.base.load_state_dict(base.state_dict())
    model.residual.load_state_dict(residual.state_dict())
    return save_version(repository, "fashion-mnist", "1", model, LABELS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("autoencoder", "base", "residual", "export", "all"))
    parser.add_argument("--data", type=Path, required=True, help="folder with the Fashion-MNIST files")
    parser.add_argument("--out", type=Path, default=Path("runs/fashion"), help="folder of checkpoints")
    parser.add_argument("--model-repo", type=Path, default=Path("model_repo"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    part, out = arguments.part, arguments.out
    data = load_fashion_mnist(arguments.data)
    autoencoder = train_autoencoder(data, out)
    if part == "autoencoder":
        return
    latents = encode_latents(autoencoder, data.train)
    if part in ("base", "all", "export"):
        base = train_denoiser(BASE, BASE_LOOP, latents, out / "base.pt")
    if part in ("residual", "all", "export"):
        residual = train_denoiser(RESIDUAL, RESIDUAL_LOOP, latents, out / "residual.pt")
    if part in ("all", "export"):
        print(export(autoencoder, latents, base, residual, arguments.model_repo))


if __name__ == "__main__":
    main()
