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
from bench.reproduction.architectures import BASELINE
from bench.reproduction.sampling import Speed
from msf_cli.load.chart import Panel, Points, chart

BUDGETS = {"flops": "training FLOPs", "images": "images seen", "longer": "images seen, as many as MSF/2 affords"}
NO_WORSE = 0.05  # the largest upper bound of a relative difference that counts as no worse
_T_95 = {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132, 5: 2.015, 6: 1.943, 7: 1.895, 8: 1.860, 9: 1.833}  # one-sided Student


@dataclass(frozen=True)
class ArchitectureResult:
    """Figures of one architecture, always a list by seed.

    `quality` is on test images by budget, at the guidance scale that is best there. `curve` is on held-out images by
    mark; `num_images` are the images seen at each mark.
    """

    name: str
    num_parameters: int
    flops: float
    num_images: Mapping[str, int]
    guidance: Mapping[str, float]
    curve: Mapping[str, Sequence[Quality]]
    quality: Mapping[str, Sequence[Quality]]


@dataclass(frozen=True)
class Difference:
    """Relative differences by seed: their mean, and its one-sided upper 95 % bound, None for one seed."""

    mean: float
    upper: float | None

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Difference:
        """Compare values that are paired by seed."""
        differences = [our / their - 1 for our, their in zip(ours, theirs, strict=True)]
        mean, degrees = fmean(differences), len(differences) - 1
        upper = mean + _T_95[degrees] * stdev(differences) / math.sqrt(len(differences)) if degrees else None
        return cls(mean, upper)

    @property
    def verdict(self) -> str:
        """The protocol's word for the bound."""
        if self.upper is None:
            return "?"
        return "better" if self.upper < 0 else "no worse" if self.upper <= NO_WORSE else "not shown"


def write_report(
    out: Path,
    scale_name: str,
    scale: object,
    results: Sequence[ArchitectureResult],
    speeds: Mapping[str, Speed],
) -> str:
    """Write the Markdown, the plot and all figures as JSON, and return the Markdown."""
    ours, *rivals = results
    claims = [_claim_cells(ours, rival, mark, speeds) for rival in rivals for mark in BUDGETS if mark in rival.quality]
    header = ("MSF/2 against", "at equal", "FID of MSF/2", "of the rival", "difference", "upper 95 % bound", "verdict")
    parts = [
        f"## Scale `{scale_name}`",
        f"`{scale}`",
        f"FID in the features of: {' / '.join(ours.curve['images'][0].fid)}.",
        markdown_table((*header, "images/s"), claims),
        "### Contenders",
        _contenders_table(results, speeds),
        "### All runs",
        _runs_table(results),
    ]
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


def mean_log_fid(by_seed: Sequence[Quality]) -> float:
    """Return the logarithm of the geometric mean of the FIDs over networks and seeds."""
    return fmean(math.log(value) for quality in by_seed for value in quality.fid.values())


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{spread}"


def _claim_cells(
    ours: ArchitectureResult, rival: ArchitectureResult, mark: str, speeds: Mapping[str, Speed]
) -> tuple[str, ...]:
    """Return a row: MSF/2 against a rival after one budget."""
    differences = [
        Difference.of(*([quality.fid[network] for quality in runs.quality[mark]] for runs in (ours, rival)))
        for network in ours.quality[mark][0].fid
    ]
    bounds = ["?" if each.upper is None else f"{each.upper:+.0%}" for each in differences]
    return (
        rival.name,
        f"{BUDGETS[mark]} ({ours.num_images[mark]:,} and {rival.num_images[mark]:,} images)",
        mean_fids(ours.quality[mark]),
        mean_fids(rival.quality[mark]),
        " / ".join(f"{each.mean:+.0%}" for each in differences),
        " / ".join(bounds),
        " / ".join(each.verdict for each in differences),
        f"{speeds[ours.name].best / speeds[rival.name].best:.2f} x",
    )


def _contenders_table(results: Sequence[ArchitectureResult], speeds: Mapping[str, Speed]) -> str:
    reference = speeds[BASELINE]
    rows = []
    for result in results:
        speed = speeds[result.name]
        rows.append(
            (
                result.name,
                f"{result.num_parameters / 1e6:.2f}",
                f"{result.flops / 1e6:.1f}",
                f"{speed.alone:.1f} ({speed.alone / reference.alone:.2f} x)",
                f"{speed.best:.1f} by {speed.batch_size} ({speed.best / reference.best:.2f} x)",
                " / ".join(f"{result.guidance[mark]:g}" for mark in BUDGETS if mark in result.guidance),
            )
        )
    header = ("", "M parameters", "MFLOP", "images/s one at a time", "best batch size", "guidance by budget")
    return markdown_table(header, rows)


def _runs_table(results: Sequence[ArchitectureResult]) -> str:
    rows = []
    for result in results:
        runs = [("held out", mark, by_seed) for mark, by_seed in result.curve.items()]
        runs += [("test", mark, by_seed) for mark, by_seed in result.quality.items()]
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
