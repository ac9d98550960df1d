"""The spatial structure of tokens and latents: every measure of [`TOKEN_MEASURES`], at every depth with a grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from .confidence import mean_interval
from .figure import Figure
from .token_measures import TOKEN_MEASURES, TokenMap, TokenMeasure

INTERVAL_METHOD = "95 % interval of a mean over images, normal approximation"


@dataclass(frozen=True)
class StructurePlan:
    """
    What can be measured of the spatial structure.

    Args:
        measures (`dict[str, tuple[str, TokenMeasure]]`): By name of the figure, the depth and what measures it.
        not_measured (`dict[str, str]`): What a reader may miss, and why it is not there.
    """

    measures: dict[str, tuple[str, TokenMeasure]]
    not_measured: dict[str, str]

    @classmethod
    def of(cls, hidden: Mapping[str, torch.Tensor]) -> StructurePlan:
        """For hidden states of the shapes of these: by depth maps `(B, D, h, w)`, or others, which have no grid."""
        plan = cls({}, {})
        for depth, values in hidden.items():
            if values.ndim == 3:
                why = f"nothing says on which grid its {values.shape[1]} tokens lie; name a module that returns a map"
                plan.not_measured.update({f"{measure.name}, {depth}": why for measure in TOKEN_MEASURES})
            if values.ndim != 4:
                continue
            grid = (values.shape[-2], values.shape[-1])
            for measure in TOKEN_MEASURES:
                name, why_not = f"{measure.name}, {depth} {grid[0]}x{grid[1]}", measure.why_not(grid)
                if why_not is None:
                    plan.measures[name] = depth, measure
                else:
                    plan.not_measured[name] = why_not
        return plan

    def values(self, hidden: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Float64 `(B,)` for each of [`measures`], one value for each image."""
        depths = {depth for depth, _ in self.measures.values()}
        maps = {depth: TokenMap(hidden[depth]) for depth in depths}
        return {name: measure(maps[depth]).cpu().numpy() for name, (depth, measure) in self.measures.items()}

    def figures(self, values: Mapping[str, np.ndarray]) -> list[Figure]:
        """Means over all images of what [`values`] gave."""
        return [
            Figure(
                name=name,
                value=float(values[name].mean()),
                interval=mean_interval(values[name]),
                interval_method=INTERVAL_METHOD,
                samples=len(values[name]),
                better=measure.better,
            )
            for name, (_, measure) in self.measures.items()
        ]
