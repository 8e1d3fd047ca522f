"""Report of the comparison: JSON of everything, and Markdown with medians and ranges over the rounds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from tabulate import tabulate

from bench.mixed_load import MIX
from bench.peers.comparison import SLO_SCALE, Comparison, Spread, images_per_s, latencies_s
from bench.peers.contenders import OURS
from bench.peers.measurements import LoadName, LoadRun
from msf_cli.load.mix import Kind
from msf_cli.percentiles import percentile


@dataclass(frozen=True)
class Standing:
    """Our figure of a measure and the best peer's."""

    measure: str
    ours: float
    best: float
    peer: str
    is_behind: bool


def markdown(comparison: Comparison) -> str:
    loads = {run.load for run in comparison.runs}
    sections = ["# Servers side by side", "\n".join(f"- {line}" for line in _setup(comparison))]
    if LoadName.CLOSED in loads:
        sections += ["## Closed loop, one kind of request", _closed_table(comparison), _ratios_table(comparison)]
    if LoadName.NOOP in loads:
        sections += ["## An engine that computes nothing", _noop_table(comparison)]
    if LoadName.MIXED in loads:
        sections += ["## Mixed load", _objectives_table(comparison), _mixed_table(comparison)]
    return "\n\n".join([*sections, "## Against the best peer of each measure", _standings_table(comparison)]) + "\n"


def results_json(comparison: Comparison) -> str:
    """Return everything that was measured, with every latency in milliseconds by kind."""
    fields = {
        "setup": comparison.setup,
        "skipped": comparison.skipped,
        "pixels": comparison.pixels,
        "plans_alone": [asdict(plans) for plans in comparison.plans],
        "runs": [_run_fields(run) for run in comparison.runs],
    }
    return json.dumps(fields, indent=1) + "\n"


def run_text(run: LoadRun) -> str:
    """Describe a run in one line."""
    p50, p99 = (1000 * (percentile(latencies_s(run), share) or math.inf) for share in (0.5, 0.99))
    failures = len(run.results) - len(run.succeeded)
    return (
        f"{run.contender}, {run.load} {run.level:g}: {images_per_s(run):.1f} images/s, p50 {p50:.1f} ms, "
        f"p99 {p99:.1f} ms, client {run.client_cores:.2f} cores" + (f", {failures} FAILED" if failures else "")
    )


def _run_fields(run: LoadRun) -> dict[str, object]:
    kinds = sorted({result.kind for result in run.results}, key=lambda kind: kind.name)
    errors = [result.error for result in run.results if result.error]
    return {
        "contender": run.contender,
        "round": run.round_number,
        "load": run.load,
        "level": run.level,
        "duration_s": run.duration_s,
        "client_cores": round(run.client_cores, 3),
        "images_per_s": round(images_per_s(run), 2),
        "num_requests": len(run.results),
        "num_errors": len(errors),
        "first_error": errors[0] if errors else None,
        "latencies_ms": {kind.name: [round(1000 * latency, 2) for latency in latencies_s(run, kind)] for kind in kinds},
    }


def _setup(comparison: Comparison) -> list[str]:
    client_cores = max(run.client_cores for run in comparison.runs)
    failures = {
        name: sum(len(run.results) - len(run.succeeded) for run in comparison.runs if run.contender == name)
        for name in sorted({run.contender for run in comparison.runs})
    }
    lines = [*comparison.setup, f"the client takes at most {client_cores:.2f} cores"]
    if comparison.pixels:
        lines.append(_pixels_text(comparison))
    lines += [f"{name}: {count} requests failed" for name, count in failures.items() if count]
    return lines + [f"skipped: {name}: {' '.join(reason.split())}" for name, reason in comparison.skipped.items()]


def _pixels_text(comparison: Comparison) -> str:
    expected = comparison.pixels.get(OURS)
    others = [name for name, digest in comparison.pixels.items() if digest != expected]
    if not others:
        return "all servers answer the same request with the same pixels"
    return f"NOT the same pixels as msf-serve for the same request: {', '.join(others)}"


def _closed_table(comparison: Comparison) -> str:
    callers = comparison.levels(LoadName.CLOSED)
    rows = []
    for name in comparison.contenders(LoadName.CLOSED):
        row = [name]
        for level in callers:
            p50, p99 = (comparison.latency_ms(name, LoadName.CLOSED, level, share).median for share in (0.5, 0.99))
            row += [spread_text(comparison.images_per_s(name, LoadName.CLOSED, level)), f"{p50:.0f}, {p99:.0f}"]
        rows.append(row)
    head = [part for level in callers for part in (f"{_callers(level)}: images/s", "p50, p99 ms")]
    return f"{_table(['', *head], rows)}\n\n{_plans_text(comparison)}"


def _plans_text(comparison: Comparison) -> str:
    sizes = comparison.plans[0].images_per_s
    rates = {size: Spread(tuple(plans.images_per_s[size] for plans in comparison.plans)) for size in sizes}
    text = ", ".join(f"{spread_text(rate)} in batches of {size}" for size, rate in rates.items())
    return f"The plans alone, with no server and no encoding, make {text} (images/s)."


def _ratios_table(comparison: Comparison) -> str:
    callers = comparison.levels(LoadName.CLOSED)
    rows = [["the plans alone", *(spread_text(comparison.plans_ratio(level), 2) for level in callers)]]
    for name in comparison.contenders(LoadName.CLOSED)[1:]:
        rows.append([name, *(spread_text(comparison.ratio(LoadName.CLOSED, level, name), 2) for level in callers)])
    return _table(["images/s of msf-serve over", *map(_callers, callers)], rows)


def _noop_table(comparison: Comparison) -> str:
    rows = []
    few, *_, many = comparison.levels(LoadName.NOOP)
    for name in comparison.contenders(LoadName.NOOP):
        p50 = comparison.latency_ms(name, LoadName.NOOP, few, 0.5)
        rate = comparison.images_per_s(name, LoadName.NOOP, many)
        rows.append([name, spread_text(p50, 1), spread_text(rate, 0)])
    return _table(["a request of 16 steps", f"{_callers(few)}: p50, ms", f"{_callers(many)}: requests/s"], rows)


def _objectives_table(comparison: Comparison) -> str:
    rows = []
    for name in comparison.contenders(LoadName.MIXED):
        alone = comparison.standalone_s(name)
        rows.append([f"{name} alone", *(f"{1000 * alone[kind]:.0f}" for kind in MIX.kinds)])
    objectives = comparison.objectives_s()
    rows.append([f"objective: {SLO_SCALE:g} × the fastest", *(f"{1000 * objectives[kind]:.0f}" for kind in MIX.kinds)])
    return _table(["latency, ms", *(kind.name for kind in MIX.kinds)], rows)


def _mixed_table(comparison: Comparison) -> str:
    rows = []
    for rate in comparison.levels(LoadName.MIXED):
        for name in comparison.contenders(LoadName.MIXED):
            images = spread_text(comparison.images_per_s(name, LoadName.MIXED, rate))
            goodput = spread_text(comparison.goodput_per_s(name, rate))
            cells = (_kind_cell(comparison, name, rate, kind) for kind in MIX.kinds)
            rows.append([f"{rate:g}", name, images, goodput, *cells])
    kinds = (f"{kind.name}: p50, p99 ms" for kind in MIX.kinds)
    return _table(["offered requests/s", "", "images/s", "requests/s within the objective", *kinds], rows)


def _kind_cell(comparison: Comparison, name: str, rate: float, kind: Kind) -> str:
    p50, p99 = (comparison.kind_latency_ms(name, rate, kind, share) for share in (0.5, 0.99))
    return "-" if p50 is None or p99 is None else f"{p50:.0f}, {p99:.0f}"


def _standings_table(comparison: Comparison) -> str:
    rows = [
        [
            each.measure,
            f"{each.ours:.3g}",
            f"{each.best:.3g} ({each.peer})",
            f"{each.ours / each.best:.2f}" if each.best else "-",
            "behind" if each.is_behind else "ahead",
        ]
        for each in _standings(comparison)
    ]
    return _table(["", "msf-serve", "best peer", "ratio", "msf-serve is"], rows)


def _standings(comparison: Comparison) -> Iterator[Standing]:
    """Yield our figure and the best peer's of every measure of the tables."""
    for load, subject in ((LoadName.CLOSED, "closed loop"), (LoadName.NOOP, "no-op engine")):
        names = comparison.contenders(load)
        for level in comparison.levels(load):
            place = f"{subject}, {_callers(level)}"
            rates = {name: comparison.images_per_s(name, load, level).median for name in names}
            yield from _standing(f"{place}: images/s", rates, more_is_better=True)
            for share in (0.5, 0.99):
                latencies = {name: comparison.latency_ms(name, load, level, share).median for name in names}
                yield from _standing(f"{place}: p{100 * share:g}, ms", latencies)
    names = comparison.contenders(LoadName.MIXED)
    for rate in comparison.levels(LoadName.MIXED):
        place = f"mixed load, {rate:g} requests/s"
        images = {name: comparison.images_per_s(name, LoadName.MIXED, rate).median for name in names}
        yield from _standing(f"{place}: images/s", images, more_is_better=True)
        goodput = {name: comparison.goodput_per_s(name, rate).median for name in names}
        yield from _standing(f"{place}: requests/s within the objective", goodput, more_is_better=True)
        for kind in MIX.kinds:
            p99s = {name: comparison.kind_latency_ms(name, rate, kind, 0.99) for name in names}
            yield from _standing(f"{place}: p99 of {kind.name}, ms", p99s)


def _standing(measure: str, figures: Mapping[str, float | None], *, more_is_better: bool = False) -> Iterator[Standing]:
    """Yield nothing where there is no figure of ours or of a peer."""
    ours = figures.get(OURS)
    peers = {name: figure for name, figure in figures.items() if name != OURS and figure is not None}
    if ours is not None and peers:
        best = (max if more_is_better else min)(peers, key=lambda name: peers[name])
        yield Standing(measure, ours, peers[best], best, ours < peers[best] if more_is_better else ours > peers[best])


def spread_text(spread: Spread, digits: int = 1) -> str:
    """Return the median, and the range where there are several rounds."""
    middle, *bounds = (f"{value:.{digits}f}" for value in (spread.median, *sorted(spread.values)))
    return f"{middle} ({bounds[0]}–{bounds[-1]})" if len(bounds) > 1 else middle


def _callers(count: float) -> str:
    return "1 caller" if count == 1 else f"{count:g} callers"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)
