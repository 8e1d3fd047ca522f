"""MSF/2 and the single-stage DiTs that it is compared with, at several scales and training budgets: PROTOCOL.md."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from bench.engine.flops import row_flops
from bench.reproduction.sampling import Sampling
from msf_engine.denoiser import Denoiser
from msf_engine.denoiser_config import DenoiserConfig
from msf_training.class_folders import ClassFolders, load_class_folders
from msf_training.dataset import Split
from msf_training.recipe import Recipe, read_recipe

LATENT_CHANNELS, LATENT_SIZE, NUM_CLASSES = 4, 8, 10
STEPS = {1: (20,), 2: (16, 4)}  # by number of stages: 20 in total
OURS, BASELINE = "MSF/2", "DiT/2, equal parameters"


@dataclass(frozen=True)
class Architecture:
    """A DiT, or MSF: `stages` are its denoisers, which may share their blocks and label embedding.

    One of equal depth has as many blocks as MSF's deeper denoiser.
    """

    name: str
    stages: tuple[DenoiserConfig, ...]
    is_of_equal_depth: bool = False
    shares_blocks: bool = False

    def build(self, seed: int) -> nn.ModuleList:
        """Return new denoisers of all stages."""
        denoisers = []
        for stage in self.stages:
            torch.manual_seed(seed)
            denoisers.append(Denoiser(stage))
        if self.shares_blocks:
            for denoiser in denoisers[1:]:
                denoiser.blocks, denoiser.labels = denoisers[0].blocks, denoisers[0].labels
        return nn.ModuleList(denoisers)

    @property
    def flops(self) -> float:
        """Operations of one forward pass of every stage for one image; training takes three times as many."""
        return sum(row_flops(stage) for stage in self.stages)

    @property
    def num_parameters(self) -> int:
        """Number of weights of all stages; shared ones count once."""
        return sum(parameter.numel() for parameter in self.build(0).parameters())

    @property
    def folder(self) -> str:
        """Name as a folder."""
        return self.name.replace("/", "-").replace(", ", "-").replace(" ", "-")


@dataclass(frozen=True)
class Scale:
    """Size and length of a comparison.

    BASELINE sees `num_images` in training. A setting, and a point of a learning curve, is judged by `num_tuning`
    held-out images; the end of a budget by `num_evaluated` test images.
    """

    width: int
    depth: int  # blocks in total; MSF divides them between its stages
    num_heads: int
    batch_size: int
    num_images: int
    seeds: tuple[int, ...]
    num_tuning: int
    num_evaluated: int
    guidance: tuple[float, ...] = (1.25, 1.5, 2.0, 2.5, 3.0)  # candidates at the end of each budget

    @property
    def denoisers(self) -> str:
        """Describe what figures after a number of images depend on."""
        return f"width {self.width}, {self.depth} blocks, {self.num_heads} heads, batches of {self.batch_size}"


SCALES = {
    "short": Scale(64, 5, 2, 64, 51_200, (0,), 500, 1_000),
    "seeds": Scale(64, 5, 2, 64, 204_800, (0, 1, 2), 2_000, 10_000),
    "small": Scale(96, 8, 3, 128, 409_600, (0, 1, 2), 2_000, 10_000),
    "full": Scale(128, 10, 4, 128, 2_048_000, (0, 1, 2), 2_000, 10_000),
}


def denoiser_config(
    scale: Scale, in_channels: int, cond_channels: int, size: int, patch_size: int, depth: int
) -> DenoiserConfig:
    """Return a denoiser of the scale's width."""
    return DenoiserConfig(
        in_channels=in_channels,
        cond_channels=cond_channels,
        size=size,
        patch_size=patch_size,
        width=scale.width,
        depth=depth,
        num_heads=scale.num_heads,
        num_classes=NUM_CLASSES,
    )


def architectures(scale: Scale, size: int = LATENT_SIZE) -> list[Architecture]:
    """Return MSF/2, then the DiTs, for latents of `size` x `size`."""
    denoiser = partial(denoiser_config, scale)
    channels = LATENT_CHANNELS
    base_depth = round(scale.depth * 0.6)
    base = denoiser(channels, 0, size // 2, 2, base_depth)
    residual = denoiser(3 * channels, channels, size // 2, 2, scale.depth - base_depth)
    return [
        Architecture(OURS, (base, residual)),
        Architecture(BASELINE, (denoiser(channels, 0, size, 2, scale.depth),)),
        Architecture("DiT/2, equal depth", (denoiser(channels, 0, size, 2, base_depth),), is_of_equal_depth=True),
    ]


def affordable_images(scale: Scale, flops: float, fraction: float = 1.0) -> int:
    """Return how many images, in whole batches, networks of `flops` see for a fraction of BASELINE's operations."""
    baseline = next(entry for entry in architectures(scale) if entry.name == BASELINE)
    batches = fraction * scale.num_images * baseline.flops / flops / scale.batch_size
    return round(batches) * scale.batch_size


def marks(scale: Scale, architecture: Architecture) -> dict[str, int]:
    """Return the numbers of images after which a run is evaluated, from the fewest.

    They are a quarter, half and all of the images that BASELINE sees; as many as half of its operations and all of them
    allow; and, for BASELINE, as many as these operations allow MSF/2.
    """
    total = scale.num_images
    numbers = {"quarter": total // 4, "half": total // 2, "images": total}
    numbers["half of FLOPs"] = affordable_images(scale, architecture.flops, 0.5)
    numbers["flops"] = affordable_images(scale, architecture.flops)
    if not architecture.is_of_equal_depth:
        ours = next(entry for entry in architectures(scale) if entry.name == OURS)
        numbers["longer"] = affordable_images(scale, ours.flops)
    return dict(sorted(numbers.items(), key=lambda item: item[1]))


def sampling_of(architecture: Architecture, guidance: float) -> Sampling:
    """Return the sampling with the same steps in total for all, guided in every stage."""
    steps = STEPS[len(architecture.stages)]
    return Sampling(steps, (guidance,) * len(steps))


def load_fashion_mnist(folder: Path, out: Path) -> tuple[Recipe, ClassFolders, Split]:
    """Load the class folders that `make data` writes: the recipe, training and held-out images, test images."""
    recipe = read_recipe("fashion-mnist")
    data = load_class_folders(folder / "train", out / "images.npy", recipe.image_format, recipe.held_out_percent)
    return recipe, data, load_class_folders(folder / "test", out / "test.npy", recipe.image_format).train
