"""The spatial structure of tokens and latents: every measure of [`TOKEN_MEASURES`], at every depth with a grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..models.object_finder import ObjectFinder
from .confidence import mean_interval
from .figure import Figure
from .token_measures import TOKEN_MEASURES, TokenMap, TokenMeasure

NO_OBJECTS = "it needs the objects in images, which --object_finder finds"
INTERVAL_METHOD = "95 % interval of a mean over images, normal approximation"


@dataclass(frozen=True)
class StructurePlan:
    """
    What can be measured of the spatial structure.

    Args:
        measures (`dict[str, tuple[str, TokenMeasure]]`): By name of the figure, the depth and what measures it.
        not_measured (`dict[str, str]`): What a reader may miss, and why it is not there.
        finder ([`ObjectFinder`], *optional*): What finds the objects that some measures need.
    """

    measures: dict[str, tuple[str, TokenMeasure]]
    not_measured: dict[str, str]
    finder: ObjectFinder | None = None

    @classmethod
    def of(cls, hidden: Mapping[str, torch.Tensor], finder: ObjectFinder | None = None) -> StructurePlan:
        """For hidden states of the shapes of these: by depth maps `(B, D, h, w)`, or others, which have no grid."""
        measures = [measure for measure in TOKEN_MEASURES if finder is not None or not measure.needs_objects]
        plan = cls({}, {measure.name: NO_OBJECTS for measure in TOKEN_MEASURES if measure not in measures}, finder)
        for depth, values in hidden.items():
            if values.ndim == 3:
                why = f"nothing says on which grid its {values.shape[1]} tokens lie; name a module that returns a map"
                plan.not_measured.update({f"{measure.name}, {depth}": why for measure in measures})
            if values.ndim != 4:
                continue
            grid = (values.shape[-2], values.shape[-1])
            for measure in measures:
                name, why_not = f"{measure.name}, {depth} {grid[0]}x{grid[1]}", measure.why_not(grid)
                if why_not is None:
                    plan.measures[name] = depth, measure
                else:
                    plan.not_measured[name] = why_not
        return plan

    def values(
        self, hidden: Mapping[str, torch.Tensor], images: torch.Tensor, numbers: range
    ) -> dict[str, np.ndarray]:
        """
        Float64 `(B,)` for each of [`measures`], one value for each image, NaN where it has none.

        Args:
            hidden: Of the images, by depth. images: uint8 `(B, 3, H, W)`. numbers: Of the images in their set.
        """
        objects = None
        if self.finder is not None and any(measure.needs_objects for _, measure in self.measures.values()):
            objects = self.finder.one_of_each(images, numbers)
        depths = {depth for depth, _ in self.measures.values()}
        maps = {depth: TokenMap(hidden[depth], objects) for depth in depths}
        return {name: measure(maps[depth]).cpu().numpy() for name, (depth, measure) in self.measures.items()}

    def figures(self, values: Mapping[str, np.ndarray]) -> list[Figure]:
        """Means of what [`values`] gave over all images that have a value, where two or more have."""
        return [
            Figure(
                name=name,
                value=float(known.mean()),
                interval=mean_interval(known),
                interval_method=INTERVAL_METHOD,
                samples=len(known),
                better=measure.better,
                extractor=self.finder.describe() if self.finder is not None and measure.needs_objects else None,
            )
            for name, (_, measure) in self.measures.items()
            if len(known := _known(values[name])) > 1
        ]

    def without_figure(self, values: Mapping[str, np.ndarray]) -> dict[str, str]:
        """What [`figures`] leaves out, and why."""
        return {
            name: f"of {len(values[name])} images {len(known)} have an object that spans enough of the grid"
            for name in self.measures
            if len(known := _known(values[name])) < 2
        }


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]
