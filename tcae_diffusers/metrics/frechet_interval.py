"""95 % intervals of Fréchet distances, by the jackknife of [`confidence`]."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .confidence import GROUPS, jackknife_interval, random_groups
from .frechet import FrechetStatistics, frechet_distance

# Of a Fréchet distance with a group left out, relative: far below what leaving a group out changes.
INTERVAL_TOLERANCE = 1e-5


def group_statistics(features: np.ndarray, groups: np.ndarray) -> list[FrechetStatistics]:
    """[`FrechetStatistics`] of every group of features `(N, D)`."""
    return [FrechetStatistics.from_features(features[groups == group]) for group in range(GROUPS)]


def merged(parts: list[FrechetStatistics]) -> FrechetStatistics:
    """All groups together."""
    total = FrechetStatistics(len(parts[0].mean))
    for part in parts:
        total.merge(part)
    return total


def frechet_interval_of_groups(first: list[FrechetStatistics], second: list[FrechetStatistics]) -> float | None:
    """Interval of a Fréchet distance from statistics per group, for sets that were never in memory at once.

    Args:
        first, second: One entry per group; where images are pairs (original and reconstruction), a pair is in one
            group on both sides, so that what pairs have in common is accounted for.

    Returns:
        The half width, or `None` where a side has fewer than two images per group.
    """
    if min(part.count for part in [*first, *second]) < 2:
        return None
    own, theirs = _leave_out_statistics(first), _leave_out_statistics(second)
    return jackknife_interval(lambda group: frechet_distance(own(group), theirs(group), INTERVAL_TOLERANCE))


def frechet_interval(samples: np.ndarray, reference: np.ndarray | FrechetStatistics, seed: int = 0) -> float | None:
    """Interval of the Fréchet distance of features `(N, D)` to features `(M, D)`, or to fixed statistics.

    Returns:
        The half width, or `None` where a side has fewer than two images per group.
    """
    distances = leave_out_distances(samples, reference, seed)
    return None if distances is None else jackknife_interval(lambda group: distances[group])


def paired_frechet_interval(first: Sequence[float] | None, second: Sequence[float] | None) -> float | None:
    """
    Interval of the difference between two Fréchet distances to one reference, where row `i` of both sets belongs
    together (one latent, two decoders): such rows are left out together, and so is the same part of the reference, so
    that what the sets have in common cancels.

    Args:
        first, second: [`leave_out_distances`] of the two sets, to the same reference with the same seed.

    Returns:
        The half width, or `None` where there are none.
    """
    if first is None or second is None:
        return None
    return jackknife_interval(lambda group: first[group] - second[group])


def leave_out_distances(
    samples: np.ndarray, reference: np.ndarray | FrechetStatistics, seed: int = 0
) -> list[float] | None:
    """
    Fréchet distances of features `(N, D)` to features `(M, D)`, or to fixed statistics, without each of the random
    groups on both sides; `None` where a side has fewer than two images per group.
    """
    if len(samples) < 2 * GROUPS:
        return None
    own = _leave_out(samples, random_groups(len(samples), seed))
    if isinstance(reference, FrechetStatistics):
        return [frechet_distance(own(group), reference, INTERVAL_TOLERANCE) for group in range(GROUPS)]
    if len(reference) < 2 * GROUPS:
        return None
    theirs = _leave_out(reference, random_groups(len(reference), seed + 1))
    return [frechet_distance(own(group), theirs(group), INTERVAL_TOLERANCE) for group in range(GROUPS)]


def _leave_out_statistics(parts: list[FrechetStatistics]) -> Callable[[int], FrechetStatistics]:
    whole = merged(parts)
    return lambda group: whole.without(parts[group])


def _leave_out(features: np.ndarray, groups: np.ndarray) -> Callable[[int], FrechetStatistics | np.ndarray]:
    """All of features `(N, D)` but one group: as features while they are fewer than their dimensions."""
    if len(features) - np.bincount(groups).max() <= features.shape[1]:
        return lambda group: features[groups != group]
    return _leave_out_statistics(group_statistics(features, groups))
