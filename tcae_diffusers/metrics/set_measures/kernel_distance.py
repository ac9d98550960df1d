"""Kernel Inception distance (Bińkowski et al. 2018): unbiased at any number of images."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from ..confidence import GROUPS, JACKKNIFE, jackknife_interval, random_groups
from ..figure import Estimate
from .measure import ComparedReference, SampleFeatures, SetMeasure

# The polynomial kernels of n images cost n^2; beyond this many a random part is used and the interval is scaled.
_KERNEL_IMAGES = 5000


def kid(samples: np.ndarray, reference: np.ndarray, subsets: int = 100, subset_size: int = 1000) -> Estimate:
    """
    Kernel Inception distance by torch-fidelity: mean and standard deviation over subsets, whose size is in `details`.

    With fewer than `2 * subset_size` images on a side the subsets are half of that side, so that they still differ.
    """
    smallest = min(len(samples), len(reference))
    size = subset_size if smallest >= 2 * subset_size else max(2, smallest // 2)
    result = kid_features_to_metric(
        torch.from_numpy(np.asarray(samples, dtype=np.float32)),
        torch.from_numpy(np.asarray(reference, dtype=np.float32)),
        kid_subsets=subsets,
        kid_subset_size=size,
        rng_seed=2020,
        verbose=False,
    )
    mean, std = result[KEY_METRIC_KID_MEAN], result[KEY_METRIC_KID_STD]
    return Estimate(value=mean, std=std, details={"subset_size": size})


def kid_interval(samples: np.ndarray, reference: np.ndarray, seed: int = 0) -> float | None:
    """Interval of the kernel distance (unbiased squared MMD, kernel `(x.y / D + 1)^3`) over all pairs of images."""
    if min(len(samples), len(reference)) < 2 * GROUPS:
        return None
    generator = np.random.default_rng([seed, 7])
    sides, shares = [], []
    for features in (samples, reference):
        used = min(len(features), _KERNEL_IMAGES)
        sides.append(np.asarray(features[generator.permutation(len(features))[:used]], dtype=np.float64))
        shares.append(used / len(features))
    groups = [random_groups(len(side), seed + place) for place, side in enumerate(sides)]
    members = [np.eye(GROUPS)[group] for group in groups]

    def block_sums(first: int, second: int) -> np.ndarray:
        kernel = (sides[first] @ sides[second].T / sides[0].shape[1] + 1) ** 3
        if first == second:
            np.fill_diagonal(kernel, 0.0)
        return members[first].T @ kernel @ members[second]

    within, across = [block_sums(0, 0), block_sums(1, 1)], block_sums(0, 1)

    def leave_out(group: int) -> float:
        kept = np.arange(GROUPS) != group
        counts = [int((part != group).sum()) for part in groups]
        own = sum(part[np.ix_(kept, kept)].sum() / (n * (n - 1)) for part, n in zip(within, counts, strict=True))
        return own - 2 * across[np.ix_(kept, kept)].sum() / (counts[0] * counts[1])

    return jackknife_interval(leave_out) * float(np.sqrt(max(shares)))


class KernelDistance(SetMeasure):
    """[`kid`] with its interval."""

    better: ClassVar = {"KID": "lower"}
    is_of_generators = True

    def between(self, samples: np.ndarray, reference: np.ndarray) -> dict[str, Estimate]:
        return {"KID": kid(samples, reference)}

    def compare(self, samples: SampleFeatures, reference: ComparedReference) -> dict[str, Estimate]:
        estimates = super().compare(samples, reference)
        return {
            name: estimate.with_interval(kid_interval(samples.features, reference.draws[0], reference.seed), JACKKNIFE)
            for name, estimate in estimates.items()
        }
