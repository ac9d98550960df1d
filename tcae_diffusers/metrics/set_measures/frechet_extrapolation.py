"""The Fréchet distance extrapolated to infinitely many images: FID-infinity (Chong and Forsyth 2020)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from scipy.special import stdtrit

from ..figure import Estimate
from ..frechet import FrechetStatistics, frechet_distance
from ..frechet_interval import frechet_interval
from ..names import FULL_SAMPLE_COUNT
from .frechet_feature_distance import STATISTICS_OF_A_FILE
from .measure import ComparedReference, SampleFeatures, SetMeasure

SMALLEST_SET = 40
_SIZES = 8
_DRAWS = 2


def frechet_at_infinity(
    samples: np.ndarray, reference: np.ndarray | FrechetStatistics, seed: int = 0, most: int | None = None
) -> Estimate | None:
    """Fréchet distance extrapolated to infinitely many images on both sides (FID-infinity, Chong and Forsyth 2020).

    The bias of the distance falls as `1 / n` once `n` exceeds the number of directions that matter. The distance is
    computed for random subsets of several sizes between a quarter and all of the images, and the line through them
    over `1 / n` is followed to zero. Against fixed statistics only the samples' side is extrapolated.

    Args:
        most (`int`, *optional*): Real images that the distance itself is taken to, all if unset; no subset is larger.

    Returns:
        The estimate, whose interval is that of fit and draw of images together, with `method`, and `r_squared` and
        `sizes` of the fit, in its details; `None` with fewer than 40 images.
    """
    fixed = isinstance(reference, FrechetStatistics)
    largest = len(samples) if isinstance(reference, FrechetStatistics) else min(len(samples), len(reference))
    largest = largest if most is None else min(largest, most)
    if largest < SMALLEST_SET:
        return None
    sizes = np.unique((1 / np.linspace(4 / largest, 1 / largest, _SIZES)).round().astype(int))
    x, y = [], []
    for size in sizes:
        for turn in range(_DRAWS):
            generator = np.random.default_rng([seed, int(size), turn])
            part = samples[generator.choice(len(samples), size, replace=False)]
            other = reference
            if not isinstance(other, FrechetStatistics):
                other = other[generator.choice(len(other), size, replace=False)]
            x.append(1.0 / size)
            y.append(frechet_distance(part, other))
    intercept, error, r_squared = _intercept(np.array(x), np.array(y))
    compared = reference
    if not isinstance(compared, FrechetStatistics) and most is not None and most < len(compared):
        compared = compared[np.random.default_rng([seed, most]).choice(len(compared), most, replace=False)]
    drawn = frechet_interval(samples, compared, seed) or 0.0
    sides = "the samples" if fixed else "both sides"
    return Estimate(
        value=intercept,
        interval=float(np.hypot(error, drawn)),
        interval_method="95 % interval of the intercept, with the jackknife of the distance itself",
        reference=STATISTICS_OF_A_FILE if fixed else None,
        details={
            "method": f"straight line over 1/n through random subsets of {sides}",
            "r_squared": r_squared,
            "sizes": sizes.tolist(),
        },
    )


def _intercept(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Of the line through the points: where it meets `x = 0`, half the 95 % interval of that, and R squared."""
    design = np.stack([np.ones_like(x), x], axis=1)
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    residual = np.square(y - design @ coefficients).sum()
    freedom = len(x) - 2
    error = np.sqrt(residual / freedom * np.linalg.inv(design.T @ design)[0, 0])
    spread = np.square(y - y.mean()).sum()
    r_squared = float(1 - residual / spread) if spread > 0 else 1.0
    return float(coefficients[0]), float(stdtrit(freedom, 0.975) * error), r_squared


class FrechetAtInfinity(SetMeasure):
    """[`frechet_at_infinity`], for sets so small that the plain distance is biased."""

    better: ClassVar = {"FID-inf": "lower"}
    is_of_generators = True

    def compare(self, samples: SampleFeatures, reference: ComparedReference) -> dict[str, Estimate]:
        drawn = len(samples) if reference.statistics is not None else len(reference.draws[0])
        if min(len(samples), drawn) >= FULL_SAMPLE_COUNT:
            return {}
        other = reference.features if reference.statistics is None else reference.statistics
        assert other is not None, "a reference without statistics has features"
        estimate = frechet_at_infinity(samples.features, other, reference.seed, drawn)
        return {} if estimate is None else {"FID-inf": estimate}
