"""How samples change with guidance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tcae_diffusers.metrics.figure import Figure

from ...report.charts import line_chart
from ..result import Result, as_figures
from .generation import distance_figure


@dataclass(kw_only=True)
class SweepPoint:
    """
    One setting of guidance.

    Args:
        guidance_scale (`float`), guidance_interval (`tuple[float, float]`): The setting.
        figures (`list[Figure]`): Of its samples. folder (`str`): Where they lie, within that of the sweep.
    """

    guidance_scale: float
    guidance_interval: tuple[float, float]
    figures: list[Figure]
    folder: str

    def __post_init__(self) -> None:
        # JSON has lists.
        start, end = self.guidance_interval
        self.guidance_interval, self.figures = (start, end), as_figures(self.figures)


@dataclass(kw_only=True)
class GuidanceSweepResult(Result):
    """
    Result of `guidance_sweep`.

    Args:
        pipeline (`str`): What was drawn from.
        points (`list[SweepPoint]`): In the order of drawing.
        best (`dict`): Scale and interval of the lowest distance.
        reference (`dict`): The real images.
        guider (`dict`, *optional*): Name and options of the guider; `None` if it is the pipeline's own.
    """

    kind: ClassVar[str] = "guidance_sweep"
    template: ClassVar[str] = "guidance_sweep.html"

    pipeline: str
    points: list[SweepPoint]
    best: dict[str, Any]
    reference: dict[str, Any]
    guider: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.points = [SweepPoint(**point) if isinstance(point, Mapping) else point for point in self.points]

    def describe(self) -> list[str]:
        lines = []
        for point in self.points:
            figure, (start, end) = distance_figure(point.figures), point.guidance_interval
            spread = "" if figure.interval is None else f" ± {figure.interval:.2g}"
            lowest = point.guidance_scale == self.best["guidance_scale"] and [start, end] == list(
                self.best["guidance_interval"]
            )
            setting = f"scale {point.guidance_scale:g} in {start:g}:{end:g}"
            lines.append(f"{setting}: {figure.name} {figure.value:.4f}{spread}{'  <- lowest' if lowest else ''}")
        return lines

    def shown(self) -> dict[str, Any]:
        return {"charts": [self._chart(figure.name) for figure in self.points[0].figures]}

    def _chart(self, name: str) -> dict[str, str]:
        """A figure against the guidance scale, one curve per interval."""
        # Without guidance there is no interval: that point begins every curve.
        intervals = list(dict.fromkeys(point.guidance_interval for point in self.points if point.guidance_scale != 1))
        series, widths = {}, {}
        for interval in intervals or [self.points[0].guidance_interval]:
            measured = sorted(
                (
                    (point.guidance_scale, figure)
                    for point in self.points
                    for figure in point.figures
                    if figure.name == name and (point.guidance_scale == 1 or point.guidance_interval == interval)
                ),
                key=lambda entry: entry[0],
            )
            label = f"guided in {interval[0]:g}:{interval[1]:g}"
            series[label] = [scale for scale, _ in measured], [figure.value for _, figure in measured]
            widths[label] = [figure.interval for _, figure in measured]
        return {"title": name, "svg": line_chart(series, "guidance scale", widths)}
