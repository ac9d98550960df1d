"""Charts as inline SVG: sharp at any size, a few kilobytes, nothing to load."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from html import escape

PALETTE = ("#2b5c8a", "#c2542d", "#3f7f4f", "#7a5195", "#8a7a2b")
_WIDTH, _HEIGHT = 460, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 24, 34


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers within `[low, high]`."""
    step = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(step))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= step)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _label(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.4g}"


def _text(x: float, y: float, content: str, style: str, anchor: str, fill: str | None = None) -> str:
    color = f' fill="{fill}"' if fill else ""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{color}>{escape(content)}</text>'


def smooth(values: Sequence[float], span: int) -> list[float]:
    """Centred moving average over `span` points, fewer at the ends: it neither lags behind the curve nor leads."""
    sums = [0.0, *itertools.accumulate(values)]
    half = max(span, 1) // 2
    out = []
    for index in range(len(values)):
        reach = min(half, index, len(values) - 1 - index)
        first, last = index - reach, index + reach + 1
        out.append((sums[last] - sums[first]) / (last - first))
    return out


def line_chart(
    series: dict[str, tuple[Sequence[float], Sequence[float]]],
    x_title: str = "step",
    intervals: dict[str, Sequence[float | None]] | None = None,
) -> str:
    """One or several curves over steps; long noisy ones get their moving average drawn over the pale raw curve.

    Args:
        series: `{name: (steps, values)}`; values that are not finite are left out.
        intervals: `{name: half widths}`, drawn as vertical bars through the points; all values must be finite then.

    Returns:
        An `<svg>` element.
    """
    clean = {}
    for name, (steps, values) in series.items():
        points = [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]
        if points:
            clean[name] = points
    if not clean:
        return "<p>no finite values</p>"
    xs = [x for points in clean.values() for x, _ in points]
    # Early transients would press the rest of a curve flat: the axis covers the 1st to 99th percentile and its
    # margins.
    ys = [y for points in clean.values() for _, y in points]
    for name, widths in (intervals or {}).items():
        pairs = zip(series[name][1], widths, strict=True)
        ys += [y + sign * width for y, width in pairs for sign in (-1, 1) if width is not None]
    ys.sort()
    low, high = (ys[int(0.01 * (len(ys) - 1))], ys[math.ceil(0.99 * (len(ys) - 1))])
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = low - margin, high + margin
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)

    def place(x: float, y: float) -> str:
        across = _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        down = _HEIGHT - _BOTTOM - (min(max(y, low), high) - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return f"{across:.1f},{down:.1f}"

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" class="chart">']
    for tick in _ticks(low, high):
        y = place(x_low, tick).split(",")[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y}" dy="0.32em" text-anchor="end">{_label(tick)}</text>')
    for tick in _ticks(x_low, x_high, 5):
        x = place(tick, low).split(",")[0]
        parts.append(f'<text class="tick" x="{x}" y="{_HEIGHT - 18}" text-anchor="middle">{_label(tick)}</text>')
    parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - 4, x_title, "tick", "end"))
    for index, (name, points) in enumerate(clean.items()):
        color = PALETTE[index % len(PALETTE)]
        raw = " ".join(place(x, y) for x, y in _thin(points))
        noisy = len(points) >= 40
        if noisy:
            parts.append(f'<polyline class="raw" stroke="{color}" points="{raw}"/>')
            averaged = smooth([y for _, y in points], len(points) // 20)
            raw = " ".join(place(x, y) for x, y in _thin(list(zip((x for x, _ in points), averaged, strict=True))))
        parts.append(f'<polyline class="curve" stroke="{color}" points="{raw}"/>')
        for (x, y), width in zip(points, (intervals or {}).get(name, ()), strict=False):
            across, middle = place(x, y).split(",")
            parts.append(f'<circle cx="{across}" cy="{middle}" r="3" fill="{color}"/>')
            if width is not None:
                ends = [place(x, y + sign * width).split(",")[1] for sign in (-1, 1)]
                bar = f'x1="{across}" x2="{across}" y1="{ends[0]}" y2="{ends[1]}"'
                parts.append(f'<line {bar} stroke="{color}" stroke-width="1.5"/>')
        if len(points) == 1:
            x, y = raw.split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{color}"/>')
        if len(clean) > 1:
            parts.append(_text(_LEFT + 125 * index, 12, name, "legend", "start", color))
    return "".join(parts) + "</svg>"


def _thin(points: list, limit: int = 600) -> list:
    """At most `limit` points, evenly chosen, the last kept: more cannot be seen."""
    if len(points) <= limit:
        return points
    return [points[index * (len(points) - 1) // (limit - 1)] for index in range(limit)]


def _name_width(names: Iterable[str], least: int) -> int:
    """Room for the longest name, at about 7.5 units a character, within reason."""
    return min(max([least, *(round(7.5 * len(name)) + 14 for name in names)]), 400)


def bar_chart(values: dict[str, float], marker: tuple[str, float] | None = None, unit: str = "") -> str:
    """Horizontal bars with their values; `marker` is a named dashed line, such as the floor."""
    row, left, right = 34, _name_width(values, 150), 70
    width, height = 720, row * len(values) + (34 if marker else 10)
    largest = max([*values.values(), marker[1] if marker else 0.0, 1e-12])
    scale = (width - left - right) / largest
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" class="chart bars">']
    for index, (name, value) in enumerate(values.items()):
        y, length = index * row + 6, max(value, 0.0) * scale
        color = PALETTE[0] if index == 0 else "#b8c4cf"
        parts.append(f'<text class="name" x="{left - 10}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="22" rx="3" fill="{color}"/>')
        parts.append(f'<text class="name" x="{left + length + 8:.1f}" y="{y + 15}">{value:.4g}{escape(unit)}</text>')
    if marker:
        x = left + marker[1] * scale
        parts.append(f'<line class="marker" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 24}"/>')
        parts.append(_text(x, height - 8, f"{marker[0]} {marker[1]:.4g}", "tick", "middle"))
    return "".join(parts) + "</svg>"


def interval_chart(values: dict[str, tuple[float, float | None]]) -> str:
    """One dot per name on a common axis, with its interval as a bar where it has one."""
    row, left, right = 26, _name_width(values, 190), 80
    width, height = 720, row * len(values) + 30
    ends = [value + sign * (spread or 0.0) for value, spread in values.values() for sign in (-1, 1)]
    margin = (max(ends) - min(ends)) * 0.06 or abs(max(ends)) * 0.1 or 1.0
    low, high = min(ends) - margin, max(ends) + margin

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" class="chart intervals">']
    for tick in _ticks(low, high, 5):
        x = place(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 24}"/>')
        parts.append(_text(x, height - 8, _label(tick), "tick", "middle"))
    for index, (name, (value, spread)) in enumerate(values.items()):
        y, color = index * row + 14, PALETTE[index % len(PALETTE)]
        parts.append(_text(left - 12, y + 5, name, "name", "end"))
        if spread is not None:
            bar = f'x1="{place(value - spread):.1f}" x2="{place(value + spread):.1f}" y1="{y}" y2="{y}"'
            parts.append(f'<line {bar} stroke="{color}" stroke-width="3" stroke-linecap="round" opacity="0.45"/>')
        parts.append(f'<circle cx="{place(value):.1f}" cy="{y}" r="5" fill="{color}"/>')
        parts.append(_text(width - right + 8, y + 5, f"{value:.4g}", "name", "start"))
    return "".join(parts) + "</svg>"


def scatter_chart(points: Sequence[Sequence[float]], labels: Sequence[int], classes: Sequence[str]) -> str:
    """Points `(N, 2)` coloured by class, at most 1,500 of them; no axes, for only nearness has a meaning."""
    step = -(-len(points) // 1500)
    shown = list(zip(points, labels[: len(points)], strict=True))[::step]
    width, height, margin, legend_row = 460, 320, 12, 18
    lows, highs = ([extreme(point[axis] for point, _ in shown) for axis in (0, 1)] for extreme in (min, max))
    legend_rows = -(-len(classes[:18]) // 3)
    parts = [f'<svg viewBox="0 0 {width} {height + legend_rows * legend_row}" role="img" class="chart scatter">']
    for point, label in shown:
        x, y = (
            margin + (point[axis] - lows[axis]) / ((highs[axis] - lows[axis]) or 1.0) * (side - 2 * margin)
            for axis, side in ((0, width), (1, height))
        )
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{_class_color(label, len(classes))}"/>')
    for index, name in enumerate(classes[:18]):
        x, y = 10 + index % 3 * 152, height + 13 + index // 3 * legend_row
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{_class_color(index, len(classes))}"/>')
        parts.append(_text(x + 9, y, name, "legend", "start"))
    return "".join(parts) + "</svg>"


def _class_color(index: int, count: int) -> str:
    # Equal steps of hue, alternating lightness: neighbours in the list stay apart.
    return f"hsl({360 * index / max(count, 1):.0f} 62% {46 if index % 2 else 58}%)"
