"""
Charts of a study as PNG.

Each holds the numbers that were drawn as JSON in its text `Description`: the bytes of a picture depend on the version
of matplotlib, these do not.
"""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tcae_diffusers.evaluation.report.charts import PALETTE, chart_style
from tcae_diffusers.training.study.records import MeasuredFigure, StudyRecords

_MARKERS = "osD^vPX"
_HELDOUT = "heldout/psnr"
# Per arm and seed `[xs, ys]`.
_Curves = dict[str, dict[int, list[list[float]]]]


def distance_chart(
    records: StudyRecords, reconstructed: MeasuredFigure, generated: Sequence[MeasuredFigure]
) -> bytes | None:
    """
    Distance of samples over that of reconstructions, a panel for each number of DiT steps, a point for each seed;
    `None` if no record has both.
    """
    drawn: dict[str, _Curves] = {}
    for figure in generated:
        panel: _Curves = {}
        for arm in records.units:
            xs, ys = reconstructed.values(arm), figure.values(arm)
            if both := [seed for seed in records.plan.seeds if seed in xs and seed in ys]:
                panel[arm] = {seed: [[xs[seed]], [ys[seed]]] for seed in both}
        if panel:
            drawn[figure.title] = panel
    if not drawn:
        return None

    def draw(axes: Axes, panel: str, arm: str, style: dict[str, Any]) -> None:
        points = [(x, y) for (x,), (y,) in drawn[panel][arm].values()]
        xs, ys = zip(*points, strict=True)
        dots = {**style, "linestyle": "none"}
        axes.plot(xs, ys, markersize=5, **dots)
        mean = {**dots, "label": None, "markerfacecolor": "none", "markersize": 12}
        axes.plot(statistics.fmean(xs), statistics.fmean(ys), **mean)

    return _panels(records, drawn, dict.fromkeys(drawn, reconstructed.name), draw)


def curve_chart(records: StudyRecords, generated: Sequence[MeasuredFigure]) -> bytes | None:
    """
    Held-out PSNR over the steps of tokenizers, and the distance of samples over those of DiTs, a line per seed; `None`
    if no record has either.
    """
    heldout: _Curves = {}
    samples: _Curves = {}
    for arm, by_seed in records.units.items():
        if found := {seed: unit.curves[_HELDOUT] for seed, unit in by_seed.items() if _HELDOUT in unit.curves}:
            heldout[arm] = found
        for seed in by_seed:
            points = [(float(each.dit_steps or 0), each.values(arm).get(seed)) for each in generated]
            if measured := [(steps, value) for steps, value in points if value is not None]:
                samples.setdefault(arm, {})[seed] = [list(column) for column in zip(*measured, strict=True)]
    drawn = {"held-out PSNR (dB)": heldout} if heldout else {}
    drawn |= {generated[0].name: samples} if samples else {}
    if not drawn:
        return None

    def draw(axes: Axes, panel: str, arm: str, style: dict[str, Any]) -> None:
        for number, (xs, ys) in enumerate(drawn[panel][arm].values()):
            label = style["label"] if number == 0 else None
            axes.plot(xs, ys, linewidth=1, markersize=3, **{**style, "label": label})

    titles = {panel: "DiT steps" if curves is samples else "tokenizer steps" for panel, curves in drawn.items()}
    return _panels(records, drawn, titles, draw)


def _panels(
    records: StudyRecords,
    drawn: dict[str, _Curves],
    x_titles: dict[str, str],
    draw: Callable[[Axes, str, str, dict[str, Any]], None],
) -> bytes:
    """Panels side by side, titled as in `drawn`, with one legend; an arm has the same colour and marker in all."""
    styles = {
        arm: {
            "label": arm,
            "color": PALETTE[number % len(PALETTE)],
            "marker": _MARKERS[(number + number // len(PALETTE)) % len(_MARKERS)],
            "linestyle": "-" if number < len(PALETTE) else "--",
        }
        for number, arm in enumerate(records.plan.arms)
    }
    with chart_style():
        figure = Figure(figsize=(5 * len(drawn), 4.2), layout="constrained")
        handles: dict[str, Any] = {}
        for axes, panel in zip(figure.subplots(1, len(drawn), squeeze=False).flat, drawn, strict=True):
            for arm in drawn[panel]:
                draw(axes, panel, arm, styles[arm])
            axes.set_title(panel, fontsize=10)
            axes.set_xlabel(x_titles[panel])
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], min_n_ticks=2))
            axes.grid()
            lines, names = axes.get_legend_handles_labels()
            handles |= dict(zip(names, lines, strict=True))
        ordered = [handles[arm] for arm in styles if arm in handles]
        figure.legend(handles=ordered, loc="outside lower center", ncols=min(4, len(ordered)))
        file = io.BytesIO()
        metadata = {"Software": None, "Description": json.dumps(drawn)}
        figure.savefig(file, format="png", dpi=120, facecolor="white", metadata=metadata)
        return file.getvalue()
