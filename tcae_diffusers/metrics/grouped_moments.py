"""Feature moments of a set that streams past, kept per random group of images so that an interval can be computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from accelerate import PartialState

from ..data.distributed import gather_in_rank_order
from .confidence import GROUPS, JACKKNIFE, jackknife_interval, random_groups
from .figure import Estimate
from .frechet import FrechetStatistics, frechet_distance, headline_distance
from .frechet_interval import INTERVAL_TOLERANCE, frechet_interval_of_groups, merged

# An update costs a pass over a (D, D) matrix however few images it brings: wait until they are worth it.
_BUFFERED_IMAGES = 256


def merged_over_ranks(statistics: Sequence[FrechetStatistics], state: PartialState) -> list[FrechetStatistics]:
    """Each of them over all ranks, on every rank; one travels at a time."""
    result = []
    for own in statistics:
        first, *others = gather_in_rank_order(own, state)
        for other in others:
            first.merge(other)
        result.append(first)
    return result


class GroupedMoments:
    """[`FrechetStatistics`] of each group of [`confidence.random_groups`], in constant memory.

    Args:
        dimensions (`int`): Length of a feature vector.
        count (`int`): Images of the whole set, over all ranks; the group of image `i` depends on this and `i` only.
        groups (`int`): How many; one where no interval is wanted.
    """

    def __init__(self, dimensions: int, count: int, groups: int = GROUPS):
        self._groups = random_groups(count, groups=groups)
        self._statistics = [FrechetStatistics(dimensions) for _ in range(groups)]
        self._buffers: list[list[np.ndarray]] = [[] for _ in range(groups)]

    def update(self, features: np.ndarray, indices: Sequence[int]) -> None:
        """Adds features `(B, D)` of the images `indices`."""
        for row, group in zip(features, self._groups[list(indices)], strict=True):
            self._buffers[group].append(row)
            if len(self._buffers[group]) == _BUFFERED_IMAGES:
                self._flush(group)

    def _flush(self, group: int) -> None:
        if self._buffers[group]:
            self._statistics[group].update(np.stack(self._buffers[group]))
            self._buffers[group] = []

    def gather(self, state: PartialState) -> list[FrechetStatistics]:
        """The statistics per group over all ranks, on every rank."""
        for group in range(len(self._buffers)):
            self._flush(group)
        return merged_over_ranks(self._statistics, state)


class StreamedFrechet:
    """Fréchet distance between two sets of paired images (originals and reconstructions) that stream past.

    With more images than features only moments per group are kept; with fewer the features themselves, which take less
    memory than one covariance and whose distance is an order of magnitude faster.

    Args:
        dimensions, count: As in [`GroupedMoments`].
        interval: Whether the 95 % interval is wanted, which multiplies the memory by ten where moments are kept.
    """

    def __init__(self, dimensions: int, count: int, interval: bool = True):
        self._groups, self._interval = random_groups(count), interval
        self._features = np.zeros((2, count, dimensions), dtype=np.float32) if count <= dimensions else None
        groups = GROUPS if interval else 1
        self._moments = [GroupedMoments(dimensions, count, groups) for _ in range(2)] if self._features is None else []

    def update(self, first: np.ndarray, second: np.ndarray, indices: Sequence[int]) -> None:
        """Adds features `(B, D)` of both sides of the images `indices`."""
        if self._features is not None:
            self._features[:, list(indices)] = first, second
            return
        for target, features in zip(self._moments, (first, second), strict=True):
            target.update(features, indices)

    def result(self, state: PartialState) -> Estimate:
        """The distance over all ranks, with its interval where one is wanted, on every rank."""
        if self._features is None:
            one, other = (target.gather(state) for target in self._moments)
            interval = frechet_interval_of_groups(one, other) if self._interval else None
            return headline_distance(merged(one), merged(other)).with_interval(interval, JACKKNIFE)
        # Each rank has filled its own rows; the others' are zero.
        first, second = sum(gather_in_rank_order(self._features, state))
        distance = headline_distance(first, second)
        if not self._interval or len(first) < 2 * GROUPS:
            return distance

        def leave_out(group: int) -> float:
            kept = self._groups != group
            return frechet_distance(first[kept], second[kept], INTERVAL_TOLERANCE)

        return distance.with_interval(jackknife_interval(leave_out), JACKKNIFE)
