"""How far a figure would move if other images had been drawn: 95 % intervals from repeated subsets, and FD-infinity.

The intervals are delete-a-group jackknives (Shao and Tu 1995, section 2.3): the images of each side are divided at
random into ten groups, the figure is computed ten times with one group left out on both sides, and the spread of the
ten is scaled up to that of the whole. Subsets without replacement, not a bootstrap, because a bootstrap repeats images
and a Fréchet distance between sets with repetitions is another, larger, quantity. An interval speaks of the draw of
images alone: neither of the bias of a Fréchet distance at small numbers (that is what the floor and [`frechet_at_
infinity`] are for), nor of another training seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import stdtrit

from .frechet import FrechetStatistics, frechet_distance, frechet_distance_of_features

GROUPS = 10
JACKKNIFE = f"95 % interval, delete-a-group jackknife over {GROUPS} random groups of images"
MEAN_OF_IMAGES = "95 % interval of a mean over images, normal approximation, the other side taken as given"
# The polynomial kernels of n images cost n^2; beyond this many a random part is used and the interval is scaled.
_KERNEL_IMAGES = 5000
_EXTRAPOLATION_SIZES = 8
_EXTRAPOLATION_DRAWS = 2
EXTRAPOLATION_MINIMUM = 40
# Of a Fréchet distance with a group left out, relative: far below what leaving a group out changes.
INTERVAL_TOLERANCE = 1e-5


def random_groups(count: int, seed: int = 0, groups: int = GROUPS) -> np.ndarray:
    """Group of each of `count` images: random, of equal size, the same for every batch size and number of ranks."""
    return np.random.default_rng([seed, count]).permutation(count) % groups


def jackknife_interval(leave_out: Callable[[int], float], groups: int = GROUPS) -> float:
    """Half width of the 95 % interval from `leave_out(g)`, the figure without group `g`."""
    values = np.array([leave_out(group) for group in range(groups)])
    variance = (groups - 1) / groups * np.square(values - values.mean()).sum()
    return float(stdtrit(groups - 1, 0.975) * np.sqrt(variance))


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
    """Interval of a Fréchet distance from statistics per group, for sets that were never in memory as a whole.

    Args:
        first, second: One entry per group; where images are pairs (original and reconstruction), a pair is in one
            group on both sides, so that what pairs have in common is accounted for.

    Returns:
        The half width, or `None` where a side has fewer than two images per group.
    """
    if min(part.count for part in [*first, *second]) < 2:
        return None
    return _frechet_jackknife(_leave_out_statistics(first), _leave_out_statistics(second))


def _leave_out_statistics(parts: list[FrechetStatistics]) -> Callable[[int], FrechetStatistics]:
    whole = merged(parts)
    return lambda group: whole.without(parts[group])


def _leave_out(features: np.ndarray, groups: np.ndarray) -> Callable[[int], FrechetStatistics | np.ndarray]:
    """All of features `(N, D)` but one group: as features while they are fewer than their dimensions."""
    if len(features) - np.bincount(groups).max() <= features.shape[1]:
        return lambda group: features[groups != group]
    return _leave_out_statistics(group_statistics(features, groups))


def _frechet_jackknife(
    first: Callable[[int], FrechetStatistics | np.ndarray], second: Callable[[int], FrechetStatistics | np.ndarray]
) -> float:
    return jackknife_interval(lambda group: frechet_distance(first(group), second(group), INTERVAL_TOLERANCE))


def frechet_interval(samples: np.ndarray, reference: np.ndarray | FrechetStatistics, seed: int = 0) -> float | None:
    """Interval of the Fréchet distance of features `(N, D)` to features `(M, D)`, or to fixed statistics.

    Returns:
        The half width, or `None` where a side has fewer than two images per group.
    """
    own = random_groups(len(samples), seed)
    if len(samples) < 2 * GROUPS:
        return None
    if isinstance(reference, FrechetStatistics):
        return _frechet_jackknife(_leave_out(samples, own), lambda group: reference)
    if len(reference) < 2 * GROUPS:
        return None
    theirs = random_groups(len(reference), seed + 1)
    return _frechet_jackknife(_leave_out(samples, own), _leave_out(reference, theirs))


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


def inception_score_interval(logits: np.ndarray, seed: int = 0) -> float | None:
    """Interval of the Inception score `exp(H(mean p) - mean H(p))` of logits `(N, C)`, all images as one split."""
    if len(logits) < 2 * GROUPS:
        return None
    groups = random_groups(len(logits), seed)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logarithms = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    probabilities = np.exp(logarithms)
    entropies = (probabilities * logarithms).sum(axis=1)
    sums = [probabilities[groups == group].sum(axis=0) for group in range(GROUPS)]

    def leave_out(group: int) -> float:
        kept = groups != group
        mean = (sum(sums) - sums[group]) / kept.sum()
        return float(np.exp(entropies[kept].mean() - (mean * np.log(mean.clip(min=1e-300))).sum()))

    return jackknife_interval(leave_out)


def share_interval(share: float, count: int) -> float:
    """Half width of the 95 % interval of a share of `count` images (precision, recall, coverage, accuracy).

    After Agresti and Coull (1998): two more successes and failures, so that none of 20 images is not taken for none of
    all.
    """
    adjusted = (share * count + 2) / (count + 4)
    return float(1.96 * np.sqrt(adjusted * (1 - adjusted) / (count + 4)))


def frechet_at_infinity(
    samples: np.ndarray, reference: np.ndarray | FrechetStatistics, seed: int = 0
) -> dict[str, Any] | None:
    """Fréchet distance extrapolated to infinitely many images on both sides (FID-infinity, Chong and Forsyth 2020).

    The bias of the distance falls as `1 / n` once `n` exceeds the number of directions that matter. The distance is
    computed for random subsets of several sizes between a quarter and all of the images, and the line through them
    over `1 / n` is followed to zero. Against fixed statistics only the samples' side is extrapolated.

    Returns:
        `value`, `interval` (fit and draw of images together), `method`, and `r_squared` and `sizes` of the fit; `None`
        with fewer than 40 images.
    """
    fixed = isinstance(reference, FrechetStatistics)
    largest = len(samples) if fixed else min(len(samples), len(reference))
    if largest < EXTRAPOLATION_MINIMUM:
        return None
    sizes = np.unique((1 / np.linspace(4 / largest, 1 / largest, _EXTRAPOLATION_SIZES)).round().astype(int))
    x, y = [], []
    for size in sizes:
        for turn in range(_EXTRAPOLATION_DRAWS):
            generator = np.random.default_rng([seed, int(size), turn])
            part = samples[generator.choice(len(samples), size, replace=False)]
            if fixed:
                distance = frechet_distance(FrechetStatistics.from_features(part), reference)
            else:
                other = reference[generator.choice(len(reference), size, replace=False)]
                distance = frechet_distance_of_features(part, other)
            x.append(1.0 / size)
            y.append(distance)
    x, y = np.array(x), np.array(y)
    design = np.stack([np.ones_like(x), x], axis=1)
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    residual = np.square(y - design @ coefficients).sum()
    freedom = len(x) - 2
    error = np.sqrt(residual / freedom * np.linalg.inv(design.T @ design)[0, 0])
    drawn = frechet_interval(samples, reference, seed) or 0.0
    spread = np.square(y - y.mean()).sum()
    return {
        "value": float(coefficients[0]),
        "interval": float(np.hypot(stdtrit(freedom, 0.975) * error, drawn)),
        "interval_method": "95 % interval of the intercept, with the jackknife of the distance itself",
        "method": "straight line over 1/n through random subsets of both sides"
        if not fixed
        else "straight line over 1/n through random subsets of the samples",
        "r_squared": float(1 - residual / spread) if spread > 0 else 1.0,
        "sizes": sizes.tolist(),
    }
