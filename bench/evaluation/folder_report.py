"""What the evaluation of a folder's model shows: Markdown for its model card, and a picture of nearest neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.evaluation.folder_comparison import ClassFigures, Nearness, Quality
from bench.evaluation.folder_features import COARSE_SIDE
from bench.evaluation.neighbours import MEMORISED_BELOW, NUM_NEIGHBOURS, Neighbours
from bench.evaluation.report import save_grid, table
from msf_training.data import Split

NUM_EXTREMES = 8  # classes shown at each end
NUM_SHOWN = 24  # images in the picture of neighbours
NEIGHBOURS_SHOWN = 4
GROUPS_A_ROW = 2


@dataclass(frozen=True)
class FolderResult:
    """A whole evaluation. `default` is the setting that the model serves with; `fid_size`: images a FID is taken of."""

    model: str
    made_by: str
    default: str
    num_train: int
    num_held_out: int
    psnr_db: float
    residual_share: float
    fid_size: int
    images_per_class: int
    quality: Sequence[Quality]
    nearness: Sequence[Nearness]
    classes: Sequence[ClassFigures]
    grid_classes: Sequence[str]


def folder_markdown(result: FolderResult) -> str:
    ordered = sorted(result.classes, key=lambda each: -each.generated)
    best, worst = ordered[:NUM_EXTREMES], ordered[NUM_EXTREMES:][-NUM_EXTREMES:]
    return "\n".join(
        (
            f"# Evaluation of {result.model}",
            "",
            f"{result.num_train:,} images were trained on, {result.num_held_out:,} held out, in"
            f" {len(result.classes)} classes. Images made by {result.made_by}; settings are written base+residual"
            f" steps@guidance scale, and the model serves with {result.default}.",
            "",
            "## Autoencoder",
            "",
            f"Held-out images come back with a PSNR of {result.psnr_db:.1f} dB (8 bit, mean over the images). The"
            f" residual holds {result.residual_share:.0%} of their latents' variance.",
            "",
            "## Class consistency",
            "",
            "An independent classifier learnt from the same training images, never from the model. How often it sees"
            " the class that was asked for (of a picture's own name: that picture's class), as its first answer or"
            " among its first three; one standard error, were images independent, which variants of a picture are not."
            " Labels are those of the held-out images, so rows compare. FID is to the training images in the"
            f" classifier's features, of {result.fid_size:,} images at a time; it compares within this table only.",
            "",
            table(("images", "number", "top-1", "top-3", "FID", "images/s"), [_quality(row) for row in result.quality]),
            "",
            "## Nearest training images",
            "",
            "Distance of each image to the nearest training image, in the features of a network that learnt without"
            f" labels and in plain pixels at {COARSE_SIDE}x{COARSE_SIDE}; mirrored and moved ones count where the"
            " recipe flips and shifts. And its ratio to the"
            f" mean distance of the next {NUM_NEIGHBOURS}. An image counts as memorised where that ratio is below"
            f" {MEMORISED_BELOW:.2f} (after Carlini et al., arXiv 2301.13188, and Yoon et al., 2023). Held-out images"
            " are the control: their share is that of near-duplicates in the data itself. Reconstructions of training"
            " images show what copies look like.",
            "",
            table(
                ("images", "space", "distance 5 %", "median", "95 %", "ratio 1 %", "5 %", "median", "memorised"),
                [_nearness(row) for row in result.nearness],
            ),
            "",
            f"## Classes, at {result.default}",
            "",
            f"{result.images_per_class} images of each class, the best and the worst by the classifier's first answer;"
            " `seen as` is its commonest one.",
            "",
            table(
                ("class", "training images", "held out", "top-1 held out", "top-1 generated", "seen as"),
                [_class(row) for row in (*best, *worst)],
            ),
            "",
            f"## Samples, at {result.default}",
            "",
            f"`samples.png`, nothing picked, has a row for each of: {', '.join(result.grid_classes)}."
            f" `neighbours.png` has the {NUM_SHOWN} images of lowest ratio in pixels, framed, with their nearest"
            " training images to the right.",
            "",
        )
    )


def _quality(row: Quality) -> tuple[str, ...]:
    speed = "" if row.images_per_s is None else f"{row.images_per_s:.1f}"
    shares = (_with_error(share, row.num_images) for share in (row.top_1, row.top_3))
    return (row.name, f"{row.num_images:,}", *shares, f"{row.fid:.3f}", speed)


def _with_error(share: float, count: int) -> str:
    return f"{share:.3f} ± {math.sqrt(share * (1 - share) / count):.3f}"


def _nearness(row: Nearness) -> tuple[str, ...]:
    distances = [f"{row.distance[share]:.3f}" for share in (0.05, 0.5, 0.95)]
    ratios = [f"{row.ratio[share]:.3f}" for share in (0.01, 0.05, 0.5)]
    return (row.name, row.space, *distances, *ratios, f"{row.memorised:.1%}")


def _class(row: ClassFigures) -> tuple[str, ...]:
    held_out = "" if row.held_out is None else f"{row.held_out:.2f}"
    return (row.name, f"{row.num_train}", f"{row.num_held_out}", held_out, f"{row.generated:.2f}", row.seen_as)


def save_neighbours(path: Path, images: Tensor, found: Neighbours, training: Split) -> None:
    """The images (N, C, H, W) uint8 of lowest ratio, framed, each followed by its nearest training images."""
    chosen = found.ratios.argsort()[:NUM_SHOWN]
    shown = min(NEIGHBOURS_SHOWN, found.rows.shape[1])
    nearest = found.rows[chosen, :shown]  # (n, k)
    rows = nearest if training.rows is None else training.rows[nearest]
    neighbours = training.all_images[rows]  # (n, k, C, H, W)
    as_found = torch.where(found.mirrored[chosen, :shown, None, None, None], neighbours.flip(-1), neighbours)
    groups = torch.cat((_framed(images[chosen])[:, None], as_found), dim=1)
    missing = -len(groups) % GROUPS_A_ROW
    whole = torch.cat((groups, torch.full_like(groups[:missing], 255)))
    save_grid(path, whole.flatten(0, 1), num_rows=len(whole) // GROUPS_A_ROW, scale=1)


def _framed(images: Tensor, thickness: int = 2) -> Tensor:
    inner = images[..., thickness:-thickness, thickness:-thickness]
    return F.pad(inner, (thickness,) * 4, value=0)
