"""95 % confidence intervals: how far a figure would move if other images had been drawn.

The intervals are delete-a-group jackknives (Shao and Tu 1995, section 2.3): the images of each side are divided at
random into ten groups, the figure is computed ten times with one group left out on both sides, and the spread of the
ten is scaled up to that of the whole. Subsets without replacement, not a bootstrap, because a bootstrap repeats images
and a Fréchet distance between sets with repetitions is another, larger, quantity. An interval speaks of the draw of
images alone: neither of the bias of a Fréchet distance at small numbers (that is what the floor and
[`set_measures.frechet_extrapolation`] are for), nor of another training seed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import stdtrit

GROUPS = 10
JACKKNIFE = f"95 % interval, delete-a-group jackknife over {GROUPS} random groups of images"
RATIO_OF_MEANS = "95 % interval of a ratio of means over images, delta method"
MEAN_OF_IMAGES = "95 % interval of a mean over images, normal approximation, with the other set taken as fixed"


def random_groups(count: int, seed: int = 0, groups: int = GROUPS) -> np.ndarray:
    """Group of each of `count` images: random, of equal size, the same for every batch size and number of ranks."""
    return np.random.default_rng([seed, count]).permutation(count) % groups


def jackknife_interval(leave_out: Callable[[int], float]) -> float:
    """Half width of the 95 % interval from `leave_out(g)`, the figure without group `g`."""
    values = np.array([leave_out(group) for group in range(GROUPS)])
    variance = (GROUPS - 1) / GROUPS * np.square(values - values.mean()).sum()
    return float(stdtrit(GROUPS - 1, 0.975) * np.sqrt(variance))


def share_interval(share: float, count: int) -> float:
    """Half width of the 95 % interval of a share of `count` images (precision, recall, coverage, accuracy).

    After Agresti and Coull (1998): two more successes and failures, so that none of 20 images is not taken for none of
    all.
    """
    adjusted = (share * count + 2) / (count + 4)
    return float(1.96 * np.sqrt(adjusted * (1 - adjusted) / (count + 4)))


def mean_interval(values: np.ndarray) -> float:
    """Half width of the 95 % interval of the mean of values `(N,)`, one for each image."""
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))
