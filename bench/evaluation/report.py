"""What an evaluation shows: tables that read well on a terminal and as Markdown, and a grid of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from bench.evaluation.comparison import Figures


@dataclass(frozen=True)
class Aim:
    """What was wanted, what was found, and whether that is enough."""

    aim: str
    found: str
    met: bool


@dataclass(frozen=True)
class Result:
    """A whole evaluation. `made_by` says what the images/s hold for; `eligible`: the choice kept to the limits."""

    model: str
    made_by: str
    chosen: str
    eligible: bool
    sweep: Sequence[Figures]
    report: Sequence[Figures]
    aims: Sequence[Aim]


def markdown(result: Result) -> str:
    """The whole result as Markdown."""
    networks = " / ".join(result.report[0].fid)
    shortfall = "" if result.eligible else " No setting kept to the limits on consistency and recall."
    return "\n".join(
        (
            f"# Evaluation of {result.model}",
            "",
            f"Pairs of figures are in the features of two networks: {networks}. Lower FID is better; it"
            f" compares only within a table. Images made by {result.made_by}.",
            "",
            f"## Settings, on {result.sweep[0].num_images:,} held-out images",
            "",
            figures_table(result.sweep),
            "",
            f"Chosen: **{result.chosen}** (base+residual steps@guidance scale).{shortfall}",
            "",
            f"## {result.chosen}, on {result.report[0].num_images:,} test images",
            "",
            figures_table(result.report),
            "",
            "## Aims",
            "",
            table(
                ("aim", "found", "met"),
                [(aim.aim, aim.found, "yes" if aim.met else "no") for aim in result.aims],
            ),
            "",
        )
    )


def figures_table(rows: Sequence[Figures]) -> str:
    header = ("images", "consistency", "FID", "intra-class FID", "precision", "recall", "images/s")
    return table(header, [_cells(row) for row in rows])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, the first to the left."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(cells, widths) for cells in (header, rule, *rows))


def save_grid(path: Path, images: Tensor, num_rows: int, scale: int = 2) -> None:
    """Write images (N, C, H, W) uint8, grey or RGB, as a PNG of `num_rows` rows, filled row by row."""
    _, channels, height, width = images.shape
    tiled = images.reshape(num_rows, -1, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = tiled.reshape(num_rows * height, -1, channels).numpy()
    picture = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST).save(path)


def _cells(row: Figures) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.consistency:.3f}",
        _pair(row.fid, 3),
        _pair(row.intra_class_fid, 3),
        _pair(row.precision, 3),
        _pair(row.recall, 3),
        "" if row.images_per_s is None else f"{row.images_per_s:.1f}",
    )


def _pair(values: Mapping[str, float], digits: int) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in values.values())


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
    return f"| {' | '.join(aligned)} |"
