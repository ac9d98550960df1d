"""Charts as inline SVG, drawn by matplotlib: sharp at any size, a few kilobytes, nothing to load.

Text and grid take the colours of the page (its CSS variables `--ink`, `--soft` and `--line`), and everything else has
a colour that shows on light and on dark paper, so one drawing serves both.
"""

from __future__ import annotations

import colorsys
import io
import itertools
import re
import textwrap
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal
from xml.etree import ElementTree

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import ColorType

# Contrast of 3 and more with white and with near-black, what WCAG 2.1 (1.4.11) asks of graphics.
PALETTE = ("#3b7dbd", "#d2622f", "#3d8f5a", "#9a66b8", "#9c8026", "#c2407e", "#2b8f98")
INK, SOFT, LINE = "#1d2733", "#5b6875", "#dfe4ea"
# What a page has colours of its own for; the values are for SVG outside a page.
_PAGE_COLORS = {INK: f"var(--ink, {INK})", SOFT: f"var(--soft, {SOFT})", LINE: f"var(--line, {LINE})"}
_FONT = {"font-family": "'Helvetica Neue', Arial, sans-serif", "font-size": "11"}
_STYLE = {
    "figure.dpi": 72,  # a pixel is a unit of the SVG
    "font.size": float(_FONT["font-size"]),
    "text.color": INK,
    "text.parse_math": False,  # names are text, whatever dollar signs they hold
    "axes.prop_cycle": cycler(linestyle=("-", "--", ":")) * cycler(color=PALETTE),
    "axes.labelcolor": SOFT,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-4, 6),
    "axes.formatter.useoffset": False,
    "grid.color": LINE,
    "grid.linewidth": 1,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.bottom": False,
    "ytick.left": False,
    "lines.linewidth": 2,
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.handletextpad": 0.6,
    "svg.fonttype": "none",
}
_STYLE_LOCK = threading.RLock()
_ROUND_STEPS = [1, 2, 2.5, 5, 10]


@contextmanager
def chart_style() -> Iterator[None]:
    """
    matplotlib's defaults and `_STYLE`, whatever the user's matplotlibrc says; afterwards as it was. These are settings
    of the process, so other threads wait.
    """
    with _STYLE_LOCK, matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        # Letters are measured in a font that may lack them; the reader's browser has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def _new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width / 72, height / 72), frameon=False, layout="constrained")
    return figure, figure.add_subplot(frameon=False)


def _new_rows(names: Sequence[str], row_height: float, axis_height: float) -> tuple[Figure, Axes]:
    """A wide figure with a row for each name, the first on top."""
    wrapped = [textwrap.fill(name, 40) for name in names]
    row_height += 14 * max(name.count("\n") for name in wrapped)
    figure, axes = _new_figure(720, row_height * len(names) + axis_height)
    axes.set_yticks(range(len(names)), wrapped)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params("y", labelcolor=INK)
    return figure, axes


def _to_svg(figure: Figure, description: str) -> str:
    """
    The figure as an `<svg>` element as wide as its place, read out as `description`.

    matplotlib names parts by ids and points to them, which clashes where a page has several charts. Here there are
    none: nothing is drawn with markers, and nothing reaches out of its axes, so that clipping can go.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg")
    root = ElementTree.fromstring(file.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.text, element.tail = (element.text or "").strip(), None
        for name in ("id", "clip-path"):
            element.attrib.pop(name, None)
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
        for name in {"d", "x", "y"}.intersection(element.attrib):
            rounded = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}", element.attrib[name])
            element.set(name, " ".join(rounded.split()))
        if "style" in element.attrib:
            # The font is that of the whole element.
            style = "; ".join(part for part in element.attrib["style"].split("; ") if not part.startswith("font"))
            element.set("style", re.sub(r"#\w{6}", lambda color: _PAGE_COLORS.get(color[0], color[0]), style))
    attributes = {"class": "chart", "role": "img", "aria-label": description, "viewBox": root.attrib["viewBox"]}
    svg = ElementTree.Element("svg", {**attributes, **_FONT, "stroke-linejoin": "round"})
    svg.extend(root.findall("g"))
    return ElementTree.tostring(svg, encoding="unicode")


def _draw_dots(axes: Axes, xs: Sequence[float], ys: Sequence[float], color: ColorType, size: float) -> None:
    """Round caps of lines without length, all in one path: each marker would point to an id."""
    vertices = np.repeat(np.column_stack([xs, ys]), 2, axis=0)
    path = Path(vertices, np.tile([Path.MOVETO, Path.LINETO], len(xs)))
    path.should_simplify = False  # lines without length would be left out
    axes.add_patch(PathPatch(path, facecolor="none", edgecolor=color, linewidth=size, capstyle="round"))


def _add_legend(
    figure: Figure,
    handles: Sequence[Line2D],
    place: Literal["outside upper left", "outside lower left"],
    most: int,
    handle_length: float,
) -> None:
    """A legend outside the axes, in as many columns as fit, `most` of them at most; the figure grows by its height."""
    for columns in range(min(most, len(handles)), 0, -1):
        legend = figure.legend(handles=handles, loc=place, ncols=columns, handlelength=handle_length)
        extent = legend.get_window_extent()
        if extent.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)


def smooth(values: Sequence[float], span: int) -> np.ndarray:
    """Centred moving average over `span` points, fewer at the ends: it neither lags behind the curve nor leads."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(max(span, 1) // 2, np.minimum(index, index[::-1]))
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)


def line_chart(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_title: str = "step",
    intervals: Mapping[str, Sequence[float | None]] | None = None,
) -> str:
    """One or several curves over steps; long noisy ones get their moving average drawn over the pale raw curve.

    Args:
        series: `{name: (steps, values)}`; values that are not finite are left out.
        intervals: `{name: half widths}`, drawn as vertical bars through the points; `None` where there is none.

    Returns:
        An `<svg>` element.
    """
    curves = {}
    for name, (steps, values) in series.items():
        spreads = (intervals or {}).get(name, [None] * len(steps))
        points = np.column_stack([np.array(column, dtype=float) for column in (steps, values, spreads)])
        if np.isfinite(points[:, 1]).any():
            curves[name] = points[np.isfinite(points[:, 1])]
    if not curves:
        return "<p>no finite values</p>"
    xs = np.concatenate([points[:, 0] for points in curves.values()])
    room = 0.5 if xs.min() == xs.max() else 0
    limits = _value_range(np.concatenate(list(curves.values())))
    with chart_style():
        figure, axes = _new_figure(460, 230)
        lines = [_draw_curve(axes, name, curves[name], limits, is_measured=intervals is not None) for name in curves]
        axes.set(xlim=(xs.min() - room, xs.max() + room), ylim=limits)
        axes.set_xlabel(x_title, loc="right")
        whole = bool((xs == xs.round()).all())
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_ROUND_STEPS, integer=whole, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_ROUND_STEPS))
        axes.grid(axis="y")
        if len(lines) > 1:
            _add_legend(figure, lines, "outside upper left", len(lines), handle_length=1.4)
        ends = "; ".join(
            f"{name} from {first[1]:.4g} at {first[0]:g} to {last[1]:.4g} at {last[0]:g}"
            for name, (first, last) in ((name, points[[0, -1]]) for name, points in curves.items())
        )
        return _to_svg(figure, f"Curves over {x_title}: {ends}")


def _value_range(points: np.ndarray) -> tuple[float, float]:
    """
    Ends of the value axis for `(N, 3)` points of position, value and half width or NaN. Early transients would press
    the rest of a curve flat: the axis covers the 1st to 99th percentile and its margins.
    """
    spreads = np.nan_to_num(points[:, 2])
    values = np.concatenate([points[:, 1] - spreads, points[:, 1] + spreads])
    low, high = np.quantile(values, 0.01, method="lower"), np.quantile(values, 0.99, method="higher")
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _draw_curve(axes: Axes, name: str, points: np.ndarray, limits: tuple[float, float], is_measured: bool) -> Line2D:
    """A curve of `(N, 3)` points; what lies beyond `limits` is drawn on the edge. Measured points are not averaged."""
    xs, ys, spreads = points.T
    # At most 600 points, evenly chosen, both ends kept: more cannot be seen.
    shown = np.linspace(0, len(xs) - 1, min(len(xs), 600)).round().astype(int)
    is_averaged = len(xs) >= 40 and not is_measured
    bold = smooth(ys, len(ys) // 20) if is_averaged else ys
    (line,) = axes.plot(xs[shown], bold[shown].clip(*limits), label=textwrap.fill(name, 60), zorder=3)
    color = line.get_color()
    if is_averaged:
        axes.plot(xs[shown], ys[shown].clip(*limits), "-", color=color, linewidth=1, alpha=0.35)
    if is_measured or len(xs) == 1:
        _draw_dots(axes, xs, ys.clip(*limits), color, size=6)
        has_bar = np.isfinite(spreads)
        bottom, top = ((ys + sign * spreads)[has_bar].clip(*limits) for sign in (-1, 1))
        axes.vlines(xs[has_bar], bottom, top, color=color, linewidth=1.5)
    return line


def bar_chart(values: dict[str, float], marker: tuple[str, float] | None = None) -> str:
    """Horizontal bars with their values; `marker` is a named dashed line, such as the floor."""
    texts = [f"{value:.4g}" for value in values.values()]
    description = "Bars: " + ", ".join(map(" ".join, zip(values, texts, strict=True)))
    with chart_style():
        figure, axes = _new_rows(list(values), 30, 24 if marker else 4)
        colors = [PALETTE[0], *[(SOFT, 0.45)] * (len(values) - 1)]
        axes.bar_label(axes.barh(range(len(values)), list(values.values()), 0.68, color=colors), texts, padding=6)
        axes.set_xticks([])
        if marker:
            text = f"{marker[0]} {marker[1]:.4g}"
            axes.axvline(marker[1], color=PALETTE[1], linewidth=1.5, linestyle="--")
            axes.set_xticks([marker[1]], [text])
            description += f"; dashed line: {text}"
        return _to_svg(figure, description)


def interval_chart(values: dict[str, tuple[float, float | None]]) -> str:
    """One dot per name on a common axis, with its interval as a bar where it has one."""
    texts = []
    with chart_style():
        figure, axes = _new_rows(list(values), 26, 24)
        axes.set_xlim(_value_range(np.array([(0, *pair) for pair in values.values()], dtype=float)))
        for row, ((name, (value, spread)), color) in enumerate(
            zip(values.items(), itertools.cycle(PALETTE), strict=False)
        ):
            if spread is not None:
                axes.hlines(row, value - spread, value + spread, color, linewidth=4, alpha=0.45, capstyle="round")
            _draw_dots(axes, [value], [row], color, size=10)
            axes.text(1.01, row, f"{value:.4g}", va="center", transform=axes.get_yaxis_transform())
            texts.append(f"{name} {value:.4g}" + (f" ± {spread:.2g}" if spread is not None else ""))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_ROUND_STEPS))
        axes.grid(axis="x")
        return _to_svg(figure, f"Dots with intervals: {', '.join(texts)}")


def scatter_chart(points: Sequence[Sequence[float]], labels: Sequence[int], classes: Sequence[str]) -> str:
    """Points `(N, 2)` coloured by class, at most 1,500 of them; no axes, for only nearness has a meaning."""
    step = -(-len(points) // 1500)
    shown, shown_labels = np.asarray(points, dtype=float)[::step], np.asarray(labels[: len(points)])[::step]
    colors = [_class_color(index, len(classes)) for index in range(len(classes))]
    with chart_style():
        figure, axes = _new_figure(460, 320)
        for label in np.unique(shown_labels):
            xs, ys = shown[shown_labels == label].T
            _draw_dots(axes, xs, ys, colors[label], size=5.5)
        axes.update_datalim(shown)
        axes.autoscale_view()
        axes.set_axis_off()
        names = [textwrap.shorten(name, 30, placeholder="…") for name in classes[:18]]
        handles = [
            Line2D([], [], color=color, linewidth=8, solid_capstyle="round", label=name)
            for name, color in zip(names, colors, strict=False)
        ]
        _add_legend(figure, handles, "outside lower left", 3, handle_length=0.01)
        return _to_svg(figure, f"{len(shown)} points of {len(classes)} classes, coloured by class")


def _class_color(index: int, count: int) -> tuple[float, float, float]:
    # Equal steps of hue, alternating lightness: neighbours in the list stay apart.
    return colorsys.hls_to_rgb(index / count, 0.44 if index % 2 else 0.58, 0.62)
