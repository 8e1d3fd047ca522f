"""Line charts as SVG, without a plotting library; they follow the reader's light or dark colour scheme."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]

PANEL_WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 64, 46
# A colour-blind safe palette; dashes also distinguish the lines without colour.
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333 }
.title { font-size: 14px; font-weight: 600 }
.back { fill: #fff }
.grid { stroke: #ddd }
.line { fill: none; stroke-width: 2 }
.s0 { stroke: #0072b2 } .s1 { stroke: #d55e00; stroke-dasharray: 6 3 } .s2 { stroke: #009e73; stroke-dasharray: 2 2 }
.s3 { stroke: #cc79a7; stroke-dasharray: 9 2 2 2 } .s4 { stroke: #8a6d00; stroke-dasharray: 1 4 }
.m0 { fill: #0072b2 } .m1 { fill: #d55e00 } .m2 { fill: #009e73 } .m3 { fill: #cc79a7 } .m4 { fill: #8a6d00 }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .back { fill: #16181c } .grid { stroke: #3a3d42 }
  .s0 { stroke: #56b4e9 } .s1 { stroke: #ff9e4a } .m0 { fill: #56b4e9 } .m1 { fill: #ff9e4a }
  .s2 { stroke: #2fd6a7 } .s3 { stroke: #f0a6cf } .s4 { stroke: #f0e442 }
  .m2 { fill: #2fd6a7 } .m3 { fill: #f0a6cf } .m4 { fill: #f0e442 }
}
"""


@dataclass(frozen=True)
class Panel:
    """One chart of at most five series; a logarithmic y axis takes positive values only."""

    title: str
    x_label: str
    series: Mapping[str, Points]
    show_y: Callable[[float], str]
    log_y: bool = False
    markers: bool = True


def chart(panels: Sequence[Panel], columns: int | None = None) -> str:
    """Render the panels in one row, or in rows of `columns`."""
    columns = columns or len(panels)
    width, height = PANEL_WIDTH * columns, HEIGHT * math.ceil(len(panels) / columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f'<style>{STYLE}</style><rect class="back" width="{width}" height="{height}"/>',
    ]
    for place, panel in enumerate(panels):
        at = f"{place % columns * PANEL_WIDTH} {place // columns * HEIGHT}"
        parts.append(f'<g transform="translate({at})">{_panel(panel)}</g>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel) -> str:
    x_ticks = _round_ticks([x for points in panel.series.values() for x, _ in points] + [0.0])
    values = [y for points in panel.series.values() for _, y in points]
    y_ticks = _log_ticks(values) if panel.log_y else _round_ticks([*values, 0.0])
    right, bottom = PANEL_WIDTH - RIGHT, HEIGHT - BOTTOM

    def at_x(x: float) -> float:
        return LEFT + (right - LEFT) * _position(x, x_ticks, log=False)

    def at_y(y: float) -> float:
        return bottom - (bottom - TOP) * _position(y, y_ticks, log=panel.log_y)

    parts = [f'<text class="title" x="{LEFT}" y="22">{escape(panel.title)}</text>']
    for y in y_ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {at_y(y):.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at_y(y) + 4:.1f}" text-anchor="end">{escape(panel.show_y(y))}</text>')
    for x in x_ticks:
        parts.append(f'<text x="{at_x(x):.1f}" y="{bottom + 18}" text-anchor="middle">{x:g}</text>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(panel.x_label)}</text>')
    for place, (name, points) in enumerate(panel.series.items()):
        path = "L".join(f"{at_x(x):.1f} {at_y(y):.1f}" for x, y in points)
        parts.append(f'<path class="line s{place}" d="M{path}"/>')
        if panel.markers:
            parts += [f'<circle class="m{place}" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3"/>' for x, y in points]
        parts.append(_key(place, len(panel.series), name))
    return "\n".join(parts)


def _key(place: int, count: int, name: str) -> str:
    """Render a legend entry; with more than three, they move closer together."""
    start, dash = (LEFT, 24) if count <= 3 else (12, 14)
    x = start + (PANEL_WIDTH - RIGHT - start) // max(count, 2) * place
    line = f'<path class="line s{place}" d="M{x} 42H{x + dash}"/>'
    return f'{line}<text x="{x + dash + 5}" y="46">{escape(name)}</text>'


def _position(value: float, ticks: Sequence[float], log: bool) -> float:
    """Map the first tick to 0 and the last to 1."""
    if log:
        return math.log(value / ticks[0]) / math.log(ticks[-1] / ticks[0])
    return (value - ticks[0]) / (ticks[-1] - ticks[0])


def _round_ticks(values: Sequence[float]) -> list[float]:
    """Return about five multiples of 1, 2 or 5 times a power of ten that enclose `values`."""
    low, high = min(values), max(values)
    rough = (high - low) / 5 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, max(last, first + 1) + 1)]


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Return the powers of ten, times 1, 2 and 5, that enclose `values`."""
    exponents = range(math.floor(math.log10(min(values))) - 1, math.ceil(math.log10(max(values))) + 2)
    ladder = [factor * 10.0**exponent for exponent in exponents for factor in (1, 2, 5)]
    first = max(place for place, tick in enumerate(ladder) if tick <= min(values) * 1.001)
    last = min(place for place, tick in enumerate(ladder) if tick >= max(values) * 0.999)
    return ladder[first : max(last, first + 1) + 1]
