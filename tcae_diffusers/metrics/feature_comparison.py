"""Measures between two sets of features, and a reference that knows what real images score against each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from ..errors import InputError
from .confidence import (
    JACKKNIFE,
    MEAN_OF_IMAGES,
    frechet_at_infinity,
    frechet_interval,
    kid_interval,
    share_interval,
)
from .frechet import FrechetStatistics, frechet_distance, frechet_distance_of_features
from .names import FULL_SAMPLE_COUNT

DENSITY_NEIGHBOURHOOD = 5


def kid(
    samples: np.ndarray, reference: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> dict:
    """Kernel Inception distance by torch-fidelity: `value` (mean over subsets), `std` over subsets, `subset_size`.

    With fewer than `2 * subset_size` images on a side the subsets are half of that side, so that they still differ.
    """
    smallest = min(len(samples), len(reference))
    size = subset_size if smallest >= 2 * subset_size else max(2, smallest // 2)
    result = kid_features_to_metric(
        torch.from_numpy(np.asarray(samples, dtype=np.float32)),
        torch.from_numpy(np.asarray(reference, dtype=np.float32)),
        kid_subsets=subsets,
        kid_subset_size=size,
        rng_seed=seed,
        verbose=False,
    )
    return {"value": result[KEY_METRIC_KID_MEAN], "std": result[KEY_METRIC_KID_STD], "subset_size": size}


def precision_recall(samples: np.ndarray, reference: np.ndarray, neighborhood: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019) by torch-fidelity, k-th neighbour balls."""
    if min(len(samples), len(reference)) <= neighborhood:
        raise InputError(f"precision and recall need more than {neighborhood} images on each side")
    result = prc_features_to_metric(
        torch.from_numpy(samples),
        torch.from_numpy(reference),
        prc_neighborhood=neighborhood,
        prc_batch_size=10_000,
        save_cpu_ram=len(samples) + len(reference) > 20_000,
        verbose=False,
    )
    return result[KEY_METRIC_PRECISION], result[KEY_METRIC_RECALL]


def density_coverage(
    samples: np.ndarray, reference: np.ndarray, neighborhood: int = DENSITY_NEIGHBOURHOOD, chunk: int = 2048
) -> tuple[np.ndarray, np.ndarray]:
    """Density and coverage (Naeem et al. 2020, eqs. 3 and 4) before their means are taken.

    A ball around each real image reaches to its `neighborhood`-th nearest real neighbour.

    Returns:
        `(N,)` float64, the number of balls each sample lies in over `neighborhood`, whose mean is the density (1 for
        samples like the real images, more where they crowd), and `(M,)` bool, whether a real image's ball holds any
        sample, whose mean is the coverage.
    """
    if len(reference) <= neighborhood:
        raise InputError(f"density and coverage need more than {neighborhood} reference images")
    drawn, real = torch.from_numpy(np.asarray(samples)), torch.from_numpy(np.asarray(reference))
    radii = torch.cat([torch.cdist(part, real).kthvalue(neighborhood + 1).values for part in real.split(chunk)])
    balls, covered = [], torch.zeros(len(real), dtype=torch.bool)
    for part in drawn.split(chunk):
        inside = torch.cdist(part, real) < radii
        balls.append(inside.sum(dim=1).double() / neighborhood)
        covered |= inside.any(dim=0)
    return torch.cat(balls).numpy(), covered.numpy()


def compare_features(samples: np.ndarray, reference: np.ndarray) -> dict[str, dict[str, Any]]:
    """All measures between two feature sets `(N, D)`: `{measure: {"value": ...}}`."""
    precision, recall = precision_recall(samples, reference)
    figures = {
        "FID": {"value": frechet_distance_of_features(samples, reference)},
        "KID": kid(samples, reference),
        "precision": {"value": precision, "interval": share_interval(precision, len(samples))},
        "recall": {"value": recall, "interval": share_interval(recall, len(reference))},
    }
    if len(reference) > DENSITY_NEIGHBOURHOOD:
        density, covered = density_coverage(samples, reference)
        coverage = float(covered.mean())
        spread = float(1.96 * density.std(ddof=1) / np.sqrt(len(density)))
        figures["density"] = {"value": float(density.mean()), "interval": spread}
        figures["coverage"] = {"value": coverage, "interval": share_interval(coverage, len(reference))}
    for name in {"precision", "recall", "density", "coverage"} & set(figures):
        figures[name]["interval_method"] = MEAN_OF_IMAGES
    return figures


def _with_interval(figure: dict[str, Any], interval: float | None) -> dict[str, Any]:
    return figure if interval is None else {**figure, "interval": interval, "interval_method": JACKKNIFE}


def _mean_over(repeats: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation over repeated draws; other entries are those of the first draw."""
    result = {}
    for measure, first in repeats[0].items():
        values = np.array([repeat[measure]["value"] for repeat in repeats])
        result[measure] = {**first, "value": float(values.mean())}
        if len(values) > 1:
            result[measure]["std_over_draws"] = float(values.std(ddof=1))
    return result


class Reference:
    """Real images as features, and the figures that real images themselves get.

    Args:
        features (`np.ndarray`): `(M, D)`, or `None` if there are only statistics.
        statistics ([`FrechetStatistics`], *optional*): Mean and covariance of an ADM file, used for the FID instead of
        the features. seed, repeats: Of the random draws.
    """

    def __init__(
        self, features: np.ndarray | None, statistics: FrechetStatistics | None = None, seed: int = 0, repeats: int = 3
    ):
        self.features, self.statistics, self.seed, self.repeats = features, statistics, seed, repeats
        self._floors: dict[int, dict[str, dict[str, Any]]] = {}

    def floor(self, count: int) -> tuple[int, dict[str, dict[str, Any]]]:
        """`(n, figures)` between disjoint random parts of the reference with `n = min(count, half)` images each."""
        if self.features is None or len(self.features) < 8:
            return 0, {}
        count = min(count, len(self.features) // 2)
        if count not in self._floors:
            draws = []
            for repeat in range(self.repeats):
                order = np.random.default_rng([self.seed, repeat, 1]).permutation(len(self.features))
                draws.append(compare_features(self.features[order[:count]], self.features[order[count : 2 * count]]))
            self._floors[count] = _mean_over(draws)
        return count, self._floors[count]

    def compare(self, samples: np.ndarray, count: int | None) -> tuple[int | None, dict[str, dict[str, Any]]]:
        """Figures of `samples` against `count` reference images (`None`: all). Returns `(images used, figures)`."""
        if self.features is None:
            return None, self._compare_statistics(samples)
        if count is None or count >= len(self.features):
            draws, count = [self.features], len(self.features)
        else:
            orders = [np.random.default_rng([self.seed, repeat, 2]) for repeat in range(self.repeats)]
            draws = [self.features[order.choice(len(self.features), count, replace=False)] for order in orders]
        figures = _mean_over([compare_features(samples, part) for part in draws])
        figures["KID"] = _with_interval(figures["KID"], kid_interval(samples, draws[0], self.seed))
        if self.statistics is not None:
            return count, {**figures, **self._compare_statistics(samples)}
        figures["FID"] = _with_interval(figures["FID"], frechet_interval(samples, draws[0], self.seed))
        if min(len(samples), count) < FULL_SAMPLE_COUNT:
            extrapolated = frechet_at_infinity(samples, self.features, self.seed)
            if extrapolated:
                figures["FID-inf"] = extrapolated
        return count, figures

    def _compare_statistics(self, samples: np.ndarray) -> dict[str, dict[str, Any]]:
        distance = frechet_distance(FrechetStatistics.from_features(samples), self.statistics)
        figure = {"value": distance, "reference": "mu and sigma of the reference file"}
        figures = {"FID": _with_interval(figure, frechet_interval(samples, self.statistics, self.seed))}
        extrapolated = None
        if len(samples) < FULL_SAMPLE_COUNT:
            extrapolated = frechet_at_infinity(samples, self.statistics, self.seed)
        if extrapolated:
            figures["FID-inf"] = {**extrapolated, "reference": figure["reference"]}
        return figures
