"""Monge Inception distance (MIND, Berthet et al. 2026, arXiv 2605.06797): optimal transport in random directions."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import numpy as np
import torch

from ..confidence import GROUPS, JACKKNIFE, jackknife_interval, random_groups
from ..figure import Estimate
from .measure import ComparedReference, SampleFeatures, SetMeasure

# As in the main branch of torch-fidelity, whose releases up to 0.4.0 have no MIND.
DIRECTIONS = 1000
_DIRECTIONS_AT_ONCE = 100


@cache
def random_directions(dimensions: int) -> torch.Tensor:
    """Unit vectors `(DIRECTIONS, D)`, uniform on the sphere and always the same, so that figures share their error."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(DIRECTIONS, dimensions, generator=generator, dtype=torch.float64)
    return (normal / normal.norm(dim=1, keepdim=True)).float()


def monge_distances(
    samples: np.ndarray, reference: np.ndarray, seed: int = 0, groups: int = 0
) -> tuple[float, list[float]]:
    """
    The squared 2-Wasserstein distance between projections on a direction, averaged over [`random_directions`], times
    three times the number of dimensions. Along one direction the optimal transport between equally many values maps
    the smallest to the smallest, and so on: sorting finds it.

    Args:
        samples, reference: Features `(N, D)` and `(M, D)`; of the larger set a random part of the size of the smaller.
        seed: Of that part and of the groups.
        groups: Into how many random groups of images both sets are divided; 0 for none.

    Returns:
        The distance, and the distances without each of the groups.
    """
    count, dimensions = min(len(samples), len(reference)), samples.shape[1]
    sides = [_random_part(features, count, seed) for features in (samples, reference)]
    members = [torch.from_numpy(random_groups(count, seed + place)) for place in range(2)]
    sums = np.zeros(groups + 1)
    for directions in random_directions(dimensions).split(_DIRECTIONS_AT_ONCE):
        ordered = [(directions @ side.T).sort(dim=1) for side in sides]
        sums[groups] += _transport_cost(*(values for values, _ in ordered))
        for group in range(groups):
            kept = [
                values[member[order] != group].view(len(directions), -1)
                for (values, order), member in zip(ordered, members, strict=True)
            ]
            sums[group] += _transport_cost(*kept)
    # Times D, because a shift by v moves |v|^2 / D along a random direction on average; the 3 is torch-fidelity's.
    *without, distance = (3 * dimensions * sums / DIRECTIONS).tolist()
    return distance, without


def _random_part(features: np.ndarray, count: int, seed: int) -> torch.Tensor:
    if len(features) > count:
        features = features[np.random.default_rng([seed, 3]).choice(len(features), count, replace=False)]
    return torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))


def _transport_cost(first: torch.Tensor, second: torch.Tensor) -> float:
    """Of sorted values `(directions, images)`: the sum over directions of the mean squared difference."""
    return float((first - second).square().mean(dim=1).double().sum())


class MongeDistance(SetMeasure):
    """[`monge_distances`] with its interval."""

    better: ClassVar = {"MIND": "lower"}
    is_of_generators = True

    def between(self, samples: np.ndarray, reference: np.ndarray) -> dict[str, Estimate]:
        return {"MIND": Estimate(value=monge_distances(samples, reference)[0], details={"directions": DIRECTIONS})}

    def compare(self, samples: SampleFeatures, reference: ComparedReference) -> dict[str, Estimate]:
        estimates = super().compare(samples, reference)
        return {
            name: estimate.with_interval(_interval(samples.features, reference), JACKKNIFE)
            for name, estimate in estimates.items()
        }


def _interval(samples: np.ndarray, reference: ComparedReference) -> float | None:
    if min(len(samples), len(reference.draws[0])) < 2 * GROUPS:
        return None
    _, without = monge_distances(samples, reference.draws[0], reference.seed, GROUPS)
    return jackknife_interval(lambda group: without[group])
