"""What the tokens and the latent of an autoencoder know about the class."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from ...report.charts import scatter_chart
from ..figure_text import describe_figure
from ..result import FigureGroup
from .autoencoder import AutoencoderResult

_PICTURED = ("tokens", "latent")


@dataclass(kw_only=True)
class ProbingResult(AutoencoderResult):
    """Result of `probing`.

    Args:
        fitted_to (`dict`): The images that probes were fitted to, as [`measured_on`] has those they were tested on.
        pictures, labels, classes, not_measured: See [`ProbingFigures`].
    """

    kind: ClassVar[str] = "probing"
    template: ClassVar[str] = "probing.html"

    pictures: dict[str, dict[str, Any]]
    labels: list[int]
    classes: list[str]
    not_measured: dict[str, str] = field(default_factory=dict)
    fitted_to: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> list[str]:
        lines = []
        for figure in self.figures:
            rate = figure.details.get("learning_rate")
            lines.append(describe_figure(figure) + (f", learning rate {rate:g}" if rate else ""))
        return lines + [f"{name}: not measured, {why}" for name, why in self.not_measured.items()]

    def figure_groups(self) -> list[FigureGroup]:
        fitting = {"probes fitted to": self.fitted_to.get("fingerprint"), "epochs": self.settings.get("epochs")}
        return [replace(group, conditions={**group.conditions, **fitting}) for group in super().figure_groups()]

    def shown(self) -> dict[str, Any]:
        pictured = {name: picture for name, picture in self.pictures.items() if name in _PICTURED}

        def charts(points: str) -> dict[str, str]:
            return {
                name: scatter_chart(picture[points], self.labels, self.classes)
                for name, picture in pictured.items()
                if points in picture
            }

        return {"charts": charts("points"), "neighbour_charts": charts("tsne")}
