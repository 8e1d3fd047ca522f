"""Picture of the dashboard as SVG: every panel at its place in the grid, drawn from Prometheus's values over time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from typing import Any

WIDTH, COLUMNS, ROW_HEIGHT, GAP = 1536, 24, 30, 8
COLUMN_WIDTH = WIDTH / COLUMNS
PADDING, TITLE_HEIGHT, LEGEND_LINE, AXIS_WIDTH, TIME_HEIGHT = 10, 26, 16, 50, 18
CHARACTER_WIDTH = 6.1  # of the legend's font
COLORS = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#37872d", "#ffa6b0", "#96d98d")
STYLE = """
text { font: 11px Inter, system-ui, sans-serif; fill: #ccccdc }
.title { font-size: 13px; font-weight: 500 } .row { font-size: 15px; font-weight: 500 } .axis { fill: #8e8e9c }
.panel { fill: #181b1f; stroke: #2c2f34 } .grid { stroke: #2b2e33 } .line { fill: none; stroke-width: 1.6 }
.value { font-size: 26px; font-weight: 500; text-anchor: middle }
"""
SCALES = {  # unit → (factor to the next, names); a value below 1 is shown in the unit before
    "bytes": (1024.0, ("B", "KiB", "MiB", "GiB", "TiB")),
    "none": (1000.0, ("", "K", "M")),
    "reqps": (1000.0, (" req/s", "K req/s")),
}


@dataclass(frozen=True)
class Curve:
    """Name in the legend, and values by seconds since the start of the picture."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class PanelPicture:
    """A panel of the dashboard's JSON with its series."""

    panel: Mapping[str, Any]
    series: Sequence[Curve]

    @property
    def options(self) -> dict[str, Any]:
        """Defaults of its fields: unit, thresholds and how lines are drawn."""
        options: dict[str, Any] = self.panel["fieldConfig"]["defaults"]
        return options

    @property
    def unit(self) -> str:
        return str(self.options.get("unit", "none"))

    @property
    def is_stacked(self) -> bool:
        custom = self.options.get("custom") or {}
        return bool((custom.get("stacking") or {}).get("mode") == "normal")


def picture(rows: Sequence[tuple[str, int]], panels: Sequence[PanelPicture], duration_s: float) -> str:
    """Draw the rows (title and place in the grid) and their panels."""
    height = max(_box(shown.panel)[1] + _box(shown.panel)[3] for shown in panels) + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'width="{WIDTH}" height="{height:.0f}">',
        f'<style>{STYLE}</style><rect width="{WIDTH}" height="{height:.0f}" fill="#111217"/>',
    ]
    parts += [
        f'<text class="row" x="{GAP}" y="{(place + 0.7) * ROW_HEIGHT:.0f}">▾ {escape(title)}</text>'
        for title, place in rows
    ]
    for shown in panels:
        x, y, width, box_height = _box(shown.panel)
        draw = _stat if shown.panel["type"] == "stat" else _time_series
        parts.append(f'<g transform="translate({x:.1f} {y:.1f})">')
        parts.append(f'<rect class="panel" width="{width:.1f}" height="{box_height:.1f}" rx="3"/>')
        parts.append(f'<text class="title" x="{PADDING}" y="18">{escape(str(shown.panel["title"]))}</text>')
        parts += draw(shown, width, box_height, duration_s)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>\n"])


def _box(panel: Mapping[str, Any]) -> tuple[float, float, float, float]:
    grid: dict[str, int] = panel["gridPos"]
    return (
        grid["x"] * COLUMN_WIDTH + GAP / 2,
        grid["y"] * ROW_HEIGHT + GAP / 2,
        grid["w"] * COLUMN_WIDTH - GAP,
        grid["h"] * ROW_HEIGHT - GAP,
    )


def _stat(shown: PanelPicture, width: float, height: float, duration_s: float) -> Iterator[str]:
    value = next((series.points[-1][1] for series in shown.series if series.points), math.nan)
    color = "#ccccdc"
    thresholds: dict[str, Any] = shown.options.get("thresholds") or {}
    for step in thresholds.get("steps", ()):
        if step.get("value") is None or value >= step["value"]:
            color = {"green": "#73bf69", "red": "#f2495c"}[step["color"]]
    label = shown_value(value, shown.unit)
    yield f'<text class="value" x="{width / 2:.1f}" y="{height / 2 + 18:.1f}" style="fill:{color}">{label}</text>'


def _time_series(shown: PanelPicture, width: float, height: float, duration_s: float) -> Iterator[str]:
    legend = list(_legend([series.name for series in shown.series], width - 2 * PADDING))
    num_lines = max((line for *_, line in legend), default=0) + 1
    left, right = AXIS_WIDTH, width - PADDING
    top, bottom = TITLE_HEIGHT + 8, height - TIME_HEIGHT - num_lines * LEGEND_LINE - 4
    curves = stacked(shown.series) if shown.is_stacked else [series.points for series in shown.series]
    highest = max((value for points in curves for _, value in points), default=0.0)
    step, ceiling = _ticks(highest)

    def at(point: tuple[float, float]) -> str:
        x = left + (right - left) * min(max(point[0] / duration_s, 0), 1)
        return f"{x:.1f} {bottom - (bottom - top) * point[1] / ceiling:.1f}"

    for number in range(round(ceiling / step) + 1):
        y = bottom - (bottom - top) * number * step / ceiling
        yield f'<path class="grid" d="M{left} {y:.1f}H{right:.1f}"/>'
        label = shown_value(number * step, shown.unit)
        yield f'<text class="axis" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    for share in (0.0, 0.25, 0.5, 0.75):
        x, seconds = left + (right - left) * share, round(duration_s * share)
        label = f"{seconds // 60}:{seconds % 60:02}"
        yield f'<text class="axis" x="{x:.1f}" y="{bottom + 15:.1f}">{label}</text>'
    below: Sequence[tuple[float, float]] = ()
    for number, points in enumerate(curves):
        color = COLORS[number % len(COLORS)]
        line = "L".join(map(at, points))
        if line:
            yield f'<path class="line" d="M{line}" stroke="{color}"/>'
        if shown.is_stacked and points:
            floor = "L".join(map(at, reversed(below or [(time_s, 0.0) for time_s, _ in points])))
            yield f'<path d="M{line}L{floor}Z" fill="{color}" fill-opacity=".25"/>'
            below = points
    for number, (name, x, line_number) in enumerate(legend):
        y = height - (num_lines - line_number) * LEGEND_LINE + 4
        color = COLORS[number % len(COLORS)]
        yield f'<path d="M{PADDING + x:.1f} {y - 4:.1f}h12" stroke="{color}" stroke-width="3"/>'
        yield f'<text x="{PADDING + x + 17:.1f}" y="{y:.1f}">{escape(name)}</text>'


def stacked(series: Sequence[Curve]) -> list[list[tuple[float, float]]]:
    """Return the running sums of the series, at the times of all; a series without a value then counts as 0."""
    times = sorted({time_s for each in series for time_s, _ in each.points})
    values = [[dict(each.points).get(time_s, 0.0) for time_s in times] for each in series]
    columns = [list(accumulate(column)) for column in zip(*values, strict=True)]
    return [list(zip(times, row, strict=True)) for row in zip(*columns, strict=True)]


def _legend(names: Sequence[str], width: float) -> Iterator[tuple[str, float, int]]:
    """Yield each name with its place: the distance from the left, and the number of the line."""
    x, line = 0.0, 0
    for name in names:
        needed = 17 + CHARACTER_WIDTH * len(name) + 12
        if x and x + needed > width:
            x, line = 0.0, line + 1
        yield name, x, line
        x += needed


def _ticks(highest: float) -> tuple[float, float]:
    """Return a round step and the multiple of it, about four, that is not below `highest`."""
    rough = (highest or 1.0) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return step, step * max(math.ceil(highest / step - 1e-9), 1)


def shown_value(value: float, unit: str) -> str:
    """Return a value as the dashboard shows it."""
    if math.isnan(value):
        return "No data"
    if unit == "percentunit":
        return f"{_rounded(100 * value)}%"
    if unit == "s":
        names = ((1e-3, 1e6, " µs"), (1.0, 1e3, " ms"), (60.0, 1.0, " s"), (math.inf, 1 / 60, " min"))
        factor, name = next((factor, name) for limit, factor, name in names if abs(value) < limit or value == 0)
        return "0 s" if value == 0 else f"{_rounded(value * factor)}{name}"
    factor, suffixes = SCALES.get(unit, SCALES["none"])
    place = 0
    while abs(value) >= factor and place < len(suffixes) - 1:
        value, place = value / factor, place + 1
    return f"{_rounded(value)}{' ' if unit == 'bytes' else ''}{suffixes[place]}"


def _rounded(value: float) -> str:
    digits = 0 if abs(value) >= 100 or value == round(value) else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"
