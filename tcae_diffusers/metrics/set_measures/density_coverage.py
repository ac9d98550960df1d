"""Density and coverage (Naeem et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from ...errors import InputError
from ..confidence import MEAN_OF_IMAGES, mean_interval, share_interval
from ..figure import Estimate
from .measure import SetMeasure

NEIGHBORHOOD = 5


def density_coverage(samples: np.ndarray, reference: np.ndarray, chunk: int = 2048) -> tuple[np.ndarray, np.ndarray]:
    """Density and coverage (Naeem et al. 2020, eqs. 3 and 4) before their means are taken.

    A ball around each real image reaches to its [`NEIGHBORHOOD`]th nearest real neighbour.

    Returns:
        `(N,)` float64, the number of balls each sample lies in over that number, whose mean is the density (1 for
        samples like the real images, more where they crowd), and `(M,)` bool, whether a real image's ball holds any
        sample, whose mean is the coverage.

    Raises:
        InputError: If there are no more than that number of real images.
    """
    if len(reference) <= NEIGHBORHOOD:
        raise InputError(f"density and coverage need more than {NEIGHBORHOOD} reference images, got {len(reference)}")
    drawn, real = torch.from_numpy(np.asarray(samples)), torch.from_numpy(np.asarray(reference))
    radii = torch.cat([torch.cdist(part, real).kthvalue(NEIGHBORHOOD + 1).values for part in real.split(chunk)])
    balls, covered = [], torch.zeros(len(real), dtype=torch.bool)
    for part in drawn.split(chunk):
        inside = torch.cdist(part, real) < radii
        balls.append(inside.sum(dim=1).double() / NEIGHBORHOOD)
        covered |= inside.any(dim=0)
    return torch.cat(balls).numpy(), covered.numpy()


class DensityAndCoverage(SetMeasure):
    """Means of [`density_coverage`] with their intervals."""

    better: ClassVar = {"density": "higher", "coverage": "higher"}

    def between(self, samples: np.ndarray, reference: np.ndarray) -> dict[str, Estimate]:
        if len(reference) <= NEIGHBORHOOD:
            return {}
        density, covered = density_coverage(samples, reference)
        coverage = float(covered.mean())
        intervals = {"density": mean_interval(density), "coverage": share_interval(coverage, len(reference))}
        return {
            name: Estimate(value=value, interval=intervals[name], interval_method=MEAN_OF_IMAGES)
            for name, value in (("density", float(density.mean())), ("coverage", coverage))
        }
