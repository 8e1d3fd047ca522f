"""Results of an evaluation: Markdown for the model card, and a picture of nearest neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from bench.evaluation.comparison import ClassAccuracy, Quality
from bench.evaluation.nearness import COARSE_SIDE, Nearness
from bench.evaluation.neighbours import MEMORISED_BELOW, NUM_NEIGHBOURS, Neighbours
from msf_training.dataset import Split
from msf_training.sample_grids import save_grid

NUM_EXTREMES = 8  # classes listed at each end
NUM_FRAMED = 24  # images in the picture of neighbours
NEIGHBOURS_EACH = 4
GROUPS_PER_ROW = 2


@dataclass(frozen=True)
class EvaluationResult:
    """A whole evaluation. FID, precision and recall are of `part_size` images at a time, against `reference`."""

    model: str
    engine: str
    default_setting: str
    reference: str
    num_train: int
    num_held_out: int
    psnr_db: float
    residual_share: float
    part_size: int
    images_per_class: int
    quality: Sequence[Quality]
    nearness: Sequence[Nearness]
    classes: Sequence[ClassAccuracy]
    grid_classes: Sequence[str]


_TEMPLATE = Path(__file__).with_name("report_template.md").read_text("utf-8")


def markdown(result: EvaluationResult) -> str:
    """Return the whole result as Markdown."""
    ranked = sorted(result.classes, key=lambda accuracy: -accuracy.generated)
    extremes = (*ranked[:NUM_EXTREMES], *ranked[NUM_EXTREMES:][-NUM_EXTREMES:])
    return _TEMPLATE.format(
        **vars(result) | {"grid_classes": ", ".join(result.grid_classes)},
        num_classes=len(result.classes),
        networks=" / ".join(result.quality[0].fid),
        coarse_side=COARSE_SIDE,
        num_neighbours=NUM_NEIGHBOURS,
        memorised_below=MEMORISED_BELOW,
        num_framed=NUM_FRAMED,
        quality_table=markdown_table(
            ("images", "number", "top-1", "top-3", "FID", "precision", "recall", "images/s"),
            [_quality_cells(row) for row in result.quality],
        ),
        nearness_table=markdown_table(
            ("images", "space", "distance 5 %", "median", "95 %", "ratio 1 %", "5 %", "median", "memorised"),
            [_nearness_cells(row) for row in result.nearness],
        ),
        class_table=markdown_table(
            ("class", "training images", "held out", "top-1 held out", "top-1 generated", "seen as"),
            [_class_cells(row) for row in extremes],
        ),
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned Markdown table, the first column to the left."""
    alignment = ("left", *("right" for _ in header[1:]))
    return tabulate(rows, header, tablefmt="pipe", disable_numparse=True, colalign=alignment)


def joined(values: Mapping[str, float], digits: int = 3) -> str:
    """Join the figures of all networks with slashes."""
    return " / ".join(f"{value:.{digits}f}" for value in values.values())


def _quality_cells(row: Quality) -> tuple[str, ...]:
    speed = "" if row.images_per_s is None else f"{row.images_per_s:.1f}"
    shares = (_with_error(share, row.num_images) for share in (row.top_1, row.top_3))
    return (row.name, f"{row.num_images:,}", *shares, *map(joined, (row.fid, row.precision, row.recall)), speed)


def _with_error(share: float, count: int) -> str:
    return f"{share:.3f} ± {math.sqrt(share * (1 - share) / count):.3f}"


def _nearness_cells(row: Nearness) -> tuple[str, ...]:
    distances = [f"{row.distance[quantile]:.3f}" for quantile in (0.05, 0.5, 0.95)]
    ratios = [f"{row.ratio[quantile]:.3f}" for quantile in (0.01, 0.05, 0.5)]
    return (row.name, row.space, *distances, *ratios, f"{row.memorised:.1%}")


def _class_cells(row: ClassAccuracy) -> tuple[str, ...]:
    held_out = "" if row.held_out is None else f"{row.held_out:.2f}"
    return (row.name, f"{row.num_train}", f"{row.num_held_out}", held_out, f"{row.generated:.2f}", row.seen_as)


def save_neighbours(path: Path, images: Tensor, neighbours: Neighbours, training: Split) -> None:
    """Write the images (N, C, H, W) uint8 with the lowest ratios, framed, each with its nearest training images."""
    lowest = neighbours.ratios.argsort()[:NUM_FRAMED]
    count = min(NEIGHBOURS_EACH, neighbours.rows.shape[1])
    nearest = training.all_images[training.rows[neighbours.rows[lowest, :count]]]  # (n, k, C, H, W)
    mirrored = neighbours.mirrored[lowest, :count, None, None, None]
    groups = torch.cat((_framed(images[lowest])[:, None], torch.where(mirrored, nearest.flip(-1), nearest)), dim=1)
    save_grid(path, groups.flatten(0, 1), columns=GROUPS_PER_ROW * (1 + count))


def _framed(images: Tensor, thickness: int = 2) -> Tensor:
    inner = images[..., thickness:-thickness, thickness:-thickness]
    return F.pad(inner, (thickness,) * 4, value=0)
