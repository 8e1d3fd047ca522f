"""What the comparison of MSF with DiTs shows: tables, learning curves and a Pareto plot."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

from bench.evaluation.comparison import Figures
from bench.evaluation.report import table
from bench.reproduction.sampler import Speed
from msf_cli.load.chart import Panel, chart

_BUDGETS = {
    "images": "Equal images seen",
    "flops": "Equal training FLOPs",
    "longer": "Equal images seen, four times as many",
}
_T_95 = {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132, 5: 2.015, 6: 1.943, 7: 1.895, 8: 1.860, 9: 1.833}  # one-sided Student


@dataclass(frozen=True)
class Outcome:
    """One contender's figures, always a list by seed: on test images by budget, with the guidance scale that was best
    there, and of `steps_each` (all the steps in each stage); on held-out images along its learning curve, by mark.
    """

    name: str
    num_parameters: int
    flops: float
    seen: Mapping[str, int]
    guidance: Mapping[str, float]
    curve: Mapping[str, Sequence[Figures]]
    figures: Mapping[str, Sequence[Figures]]
    steps_each: Sequence[Figures]


def upper_bound(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """The one-sided upper 95 % bound of the mean relative difference over the seeds of both; None of a single one."""
    differences = [our / their - 1 for our, their in zip(ours, theirs, strict=False)]
    if len(differences) < 2:
        return None
    quantile = _T_95[min(len(differences) - 1, max(_T_95))]
    return fmean(differences) + quantile * stdev(differences) / math.sqrt(len(differences))


def write_report(
    out: Path, scale_name: str, scale: object, outcomes: Sequence[Outcome], speeds: Mapping[str, Speed], baseline: str
) -> str:
    """Returns the Markdown that it also writes, beside the plot and all figures as JSON."""
    networks = tuple(outcomes[0].figures["images"][0].fid)
    parts = [f"## Scale `{scale_name}`", "", f"`{scale}`", ""]
    for mark, title in _BUDGETS.items():
        reached = [each for each in outcomes if mark in each.figures]
        parts += [f"### {title}", "", _budget_table(reached, mark, networks), ""]
    parts += ["### Images per second", "", _speed_table(outcomes, speeds, baseline), ""]
    parts += ["### All runs", "", _runs_table(outcomes, networks), ""]
    text = "\n".join(parts)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(text)
    (out / "report.svg").write_text(_plot(outcomes, speeds, networks[0]))
    whole = {"outcomes": [asdict(each) for each in outcomes], "speeds": {n: asdict(s) for n, s in speeds.items()}}
    (out / "report.json").write_text(json.dumps(whole, indent=2) + "\n")
    return text


def _budget_table(outcomes: Sequence[Outcome], mark: str, networks: Sequence[str]) -> str:
    msf = outcomes[0].figures[mark]
    rows = []
    for outcome in outcomes:
        found = outcome.figures[mark]
        fids = " / ".join(mean_of([each.fid[network] for each in found]) for network in networks)
        verdicts = []
        for network in networks:
            bound = upper_bound([each.fid[network] for each in msf], [each.fid[network] for each in found])
            verdicts.append("" if outcome is outcomes[0] else "?" if bound is None else f"{100 * bound:+.0f} %")
        rows.append(
            (
                outcome.name,
                f"{outcome.num_parameters / 1e6:.2f}",
                f"{outcome.flops / 1e6:.0f}",
                f"{outcome.seen[mark]:,}",
                f"{outcome.guidance[mark]:g}",
                fids,
                f"{fmean(each.consistency for each in found):.3f}",
                " / ".join(verdicts),
            )
        )
    header = ("", "M parameters", "MFLOP", "images seen", "guidance", f"FID ({' / '.join(networks)})")
    return table((*header, "consistency", "MSF's FID, upper bound"), rows)


def mean_of(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{spread}"


def _speed_table(outcomes: Sequence[Outcome], speeds: Mapping[str, Speed], baseline: str) -> str:
    reference = speeds[baseline]
    rows = [
        (
            outcome.name,
            f"{speeds[outcome.name].alone:.1f}",
            f"{speeds[outcome.name].alone / reference.alone:.2f}",
            f"{speeds[outcome.name].best:.1f} (x{speeds[outcome.name].bucket})",
            f"{speeds[outcome.name].best / reference.best:.2f}",
        )
        for outcome in outcomes
    ]
    return table(("", "one at a time", f"ratio to {baseline}", "best bucket", "ratio"), rows)


def _runs_table(outcomes: Sequence[Outcome], networks: Sequence[str]) -> str:
    rows = []
    for outcome in outcomes:
        sets = [("held out", mark, found) for mark, found in outcome.curve.items()]
        sets += [("test", mark, found) for mark, found in outcome.figures.items()]
        sets += [("test", "longer", outcome.steps_each)]
        for split, mark, found in sets:
            for number, each in enumerate(found):
                fids = " / ".join(f"{each.fid[network]:.3f}" for network in networks)
                precision, recall = (
                    "/".join(f"{v:.2f}" for v in pairs.values()) for pairs in (each.precision, each.recall)
                )
                judged_by = f"{each.num_images:,} {split}"
                cells = (outcome.name, mark, f"{outcome.seen[mark]:,}", judged_by, str(number), each.name, fids)
                rows.append((*cells, f"{each.consistency:.3f}", precision, recall))
    header = ("", "mark", "images seen", "judged by", "seed", "setting", "FID", "consistency", "precision", "recall")
    return table(header, rows)


def _short(name: str) -> str:
    """P: equal parameters; D: equal depth."""
    return name.replace(", equal parameters", " P").replace(", equal depth", " D")


def _plot(outcomes: Sequence[Outcome], speeds: Mapping[str, Speed], network: str) -> str:
    def mean_fid(found: Sequence[Figures]) -> float:
        return fmean(each.fid[network] for each in found)

    curves = {
        _short(each.name): sorted((each.seen[mark] / 1e3, mean_fid(found)) for mark, found in each.curve.items())
        for each in outcomes
    }
    costs = {
        _short(each.name): sorted(
            (3 * each.seen[mark] * each.flops / 1e12, mean_fid(found)) for mark, found in each.curve.items()
        )
        for each in outcomes
    }
    pareto = {
        _short(each.name): sorted((speeds[each.name].best, mean_fid(found)) for found in each.figures.values())
        for each in outcomes
    }
    return chart(
        [
            Panel("Held-out FID over images seen", "thousand images", curves, "{:g}".format, log_y=True),
            Panel("Held-out FID over training operations", "TFLOP", costs, "{:g}".format, log_y=True),
            Panel("Test FID over speed", "images/s at the best bucket", pareto, "{:g}".format, log_y=True),
        ]
    )
