"""What is wanted of a model's figures: limits under which settings compete, and the aims of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.evaluation.comparison import Figures
from bench.evaluation.report import Aim

MAX_CONSISTENCY_LOSS = 0.02  # below that of real images
MIN_RECALL_RATIO = 0.8  # of that of real images
MAX_FID_RATIO = 3.0  # of that of unpaired reconstructions


def fid_ratio(figures: Figures, of: Figures) -> dict[str, float]:
    """By network: FID as a multiple of another image set's, which makes the networks comparable."""
    return {network: value / of.fid[network] for network, value in figures.fid.items()}


def recall_ratio(figures: Figures, real: Figures) -> dict[str, float]:
    return {network: value / real.recall[network] for network, value in figures.recall.items()}


def choose(rows: Sequence[Figures]) -> tuple[Figures, bool]:
    """The best setting of a sweep's rows (real and reconstructions first), and whether it kept to the limits.

    Lowest mean FID ratio of the settings that lose little consistency and recall, or, if none does, of all.
    """
    real, reconstructions, *candidates = rows
    eligible = [row for row in candidates if _consistent(row, real) and _diverse(row, real)]
    best = min(
        eligible or candidates,
        key=lambda row: sum(fid_ratio(row, of=reconstructions).values()) / len(row.fid),
    )
    return best, bool(eligible)


def judge(rows: Sequence[Figures]) -> list[Aim]:
    """What the model aims at, from a report's rows."""
    real, reconstructions, chosen, residual_zeroed, _ = rows
    ratio, gain = fid_ratio(chosen, of=reconstructions), fid_ratio(chosen, of=residual_zeroed)
    return [
        Aim(
            f"FID at most {MAX_FID_RATIO:g} × that of unpaired reconstructions",
            _ratios(ratio),
            max(ratio.values()) <= MAX_FID_RATIO,
        ),
        Aim(
            f"consistency at least that of real images − {MAX_CONSISTENCY_LOSS:g}",
            f"{chosen.consistency:.3f}, real {real.consistency:.3f}",
            _consistent(chosen, real),
        ),
        Aim(
            f"recall at least {MIN_RECALL_RATIO:g} × that of real images",
            _ratios(recall_ratio(chosen, real)),
            _diverse(chosen, real),
        ),
        Aim("FID below that with the residual zeroed", _ratios(gain), max(gain.values()) < 1),
    ]


def _consistent(figures: Figures, real: Figures) -> bool:
    return figures.consistency >= real.consistency - MAX_CONSISTENCY_LOSS


def _diverse(figures: Figures, real: Figures) -> bool:
    return min(recall_ratio(figures, real).values()) >= MIN_RECALL_RATIO


def _ratios(values: Mapping[str, float]) -> str:
    return f"{' / '.join(f'{value:.2f}' for value in values.values())} ×"
