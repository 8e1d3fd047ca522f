"""Tables, learning curves and a Pareto plot of the comparison of MSF with DiTs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

from bench.evaluation.comparison import Quality
from bench.evaluation.report import joined, markdown_table
from bench.reproduction.sampling import Speed
from msf_cli.load.chart import Panel, Points, chart

BUDGETS = {
    "images": "Equal images seen",
    "flops": "Equal training FLOPs",
    "longer": "Equal images seen, four times as many",
}
_T_95 = {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132, 5: 2.015, 6: 1.943, 7: 1.895, 8: 1.860, 9: 1.833}  # one-sided Student


@dataclass(frozen=True)
class ArchitectureResult:
    """Figures of one architecture, always a list by seed.

    `quality` is on test images by budget, at the guidance scale that is best there; `steps_each` has all steps in each
    stage. `curve` is on held-out images by mark; `num_images` are the images seen at each mark.
    """

    name: str
    num_parameters: int
    flops: float
    num_images: Mapping[str, int]
    guidance: Mapping[str, float]
    curve: Mapping[str, Sequence[Quality]]
    quality: Mapping[str, Sequence[Quality]]
    steps_each: Sequence[Quality]


def upper_bound(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return the one-sided upper 95 % bound of the mean relative difference, paired by seed; None for one seed."""
    differences = [our / their - 1 for our, their in zip(ours, theirs, strict=False)]
    if len(differences) < 2:
        return None
    quantile = _T_95[min(len(differences) - 1, max(_T_95))]
    return fmean(differences) + quantile * stdev(differences) / math.sqrt(len(differences))


def write_report(
    out: Path,
    scale_name: str,
    scale: object,
    results: Sequence[ArchitectureResult],
    speeds: Mapping[str, Speed],
    baseline: str,
) -> str:
    """Write the Markdown, the plot and all figures as JSON, and return the Markdown."""
    parts = [f"## Scale `{scale_name}`", f"`{scale}`"]
    for mark, title in BUDGETS.items():
        parts += [f"### {title}", _budget_table([result for result in results if mark in result.quality], mark)]
    parts += ["### Images per second", _speed_table(results, speeds, baseline)]
    parts += ["### All runs", _runs_table(results)]
    text = "\n\n".join(parts) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(text)
    (out / "report.svg").write_text(_plot(results, speeds))
    figures = {"results": list(map(asdict, results)), "speeds": {name: asdict(speed) for name, speed in speeds.items()}}
    (out / "report.json").write_text(json.dumps(figures, indent=2) + "\n")
    return text


def mean_fids(by_seed: Sequence[Quality]) -> str:
    """Return the mean FID over the seeds, with its deviation, of each network."""
    return " / ".join(_mean([quality.fid[network] for quality in by_seed]) for network in by_seed[0].fid)


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{spread}"


def _budget_table(results: Sequence[ArchitectureResult], mark: str) -> str:
    msf = results[0].quality[mark]
    rows = []
    for result in results:
        by_seed = result.quality[mark]
        bounds = []
        for network in by_seed[0].fid:
            bound = upper_bound(*([quality.fid[network] for quality in runs] for runs in (msf, by_seed)))
            bounds.append("?" if bound is None else f"{100 * bound:+.0f} %")
        rows.append(
            (
                result.name,
                f"{result.num_parameters / 1e6:.2f}",
                f"{result.flops / 1e6:.0f}",
                f"{result.num_images[mark]:,}",
                f"{result.guidance[mark]:g}",
                mean_fids(by_seed),
                f"{fmean(quality.top_1 for quality in by_seed):.3f}",
                "" if by_seed is msf else " / ".join(bounds),
            )
        )
    header = ("", "M parameters", "MFLOP", "images seen", "guidance", f"FID ({' / '.join(msf[0].fid)})")
    return markdown_table((*header, "accuracy", "MSF's FID, upper bound"), rows)


def _speed_table(results: Sequence[ArchitectureResult], speeds: Mapping[str, Speed], baseline: str) -> str:
    reference = speeds[baseline]
    rows = []
    for name in (result.name for result in results):
        alone, best = speeds[name].alone, speeds[name].best
        ratios = f"{alone / reference.alone:.2f}", f"{best / reference.best:.2f}"
        rows.append((name, f"{alone:.1f}", ratios[0], f"{best:.1f} (x{speeds[name].batch_size})", ratios[1]))
    return markdown_table(("", "one at a time", f"ratio to {baseline}", "best batch size", "ratio"), rows)


def _runs_table(results: Sequence[ArchitectureResult]) -> str:
    rows = []
    for result in results:
        runs = [("held out", mark, by_seed) for mark, by_seed in result.curve.items()]
        runs += [("test", mark, by_seed) for mark, by_seed in result.quality.items()]
        runs += [("test", "longer", result.steps_each)]
        for split, mark, by_seed in runs:
            for number, quality in enumerate(by_seed):
                judged_by = f"{quality.num_images:,} {split}"
                cells = (result.name, mark, f"{result.num_images[mark]:,}", judged_by, str(number), quality.name)
                manifolds = (joined(quality.precision, 2), joined(quality.recall, 2))
                rows.append((*cells, joined(quality.fid), f"{quality.top_1:.3f}", *manifolds))
    header = ("", "mark", "images seen", "judged by", "seed", "setting", "FID", "accuracy", "precision", "recall")
    return markdown_table(header, rows)


def _plot(results: Sequence[ArchitectureResult], speeds: Mapping[str, Speed]) -> str:
    def series(runs: str, x_of: Callable[[ArchitectureResult, str], float]) -> Mapping[str, Points]:
        """Return the first network's mean FID over x, by short name (P: equal parameters; D: equal depth)."""
        lines = {}
        for result in results:
            name = result.name.replace(", equal parameters", " P").replace(", equal depth", " D")
            fids = {
                mark: fmean(next(iter(quality.fid.values())) for quality in by_seed)
                for mark, by_seed in getattr(result, runs).items()
            }
            lines[name] = sorted((x_of(result, mark), fid) for mark, fid in fids.items())
        return lines

    by_images = series("curve", lambda result, mark: result.num_images[mark] / 1e3)
    by_operations = series("curve", lambda result, mark: 3 * result.num_images[mark] * result.flops / 1e12)
    by_speed = series("quality", lambda result, mark: speeds[result.name].best)
    return chart(
        [
            Panel("Held-out FID over images seen", "thousand images", by_images, "{:g}".format, log_y=True),
            Panel("Held-out FID over training operations", "TFLOP", by_operations, "{:g}".format, log_y=True),
            Panel("Test FID over speed", "images/s at the best batch size", by_speed, "{:g}".format, log_y=True),
        ]
    )
