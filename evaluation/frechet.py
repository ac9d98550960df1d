"""Fréchet distance between two sets of features, in float64, exact also when there are fewer images than features.

`d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)` (Heusel et al. 2017, eq. 6). The last term is computed as the
nuclear norm of `F1 F2^T` where `F^T F = S`: for few images `F` is the centred feature matrix itself, for many it comes
from the eigendecomposition of the covariance. That is faster than a matrix square root and does not lose half of the
digits on singular covariances, as the eigenvalues of the product `S1 S2` do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .errors import EvaluationError


class FrechetStatistics:
    """Count, mean and covariance of features, gathered batch by batch in constant memory.

    Batches and ranks may come in any order: [`update`] and [`merge`] combine them exactly (Chan et al. 1979).

    Args:
        dimensions (`int`): Length of a feature vector.
    """

    def __init__(self, dimensions: int):
        self.count = 0
        self.mean = np.zeros(dimensions)
        self._scatter = np.zeros((dimensions, dimensions))

    def update(self, features) -> FrechetStatistics:
        """Adds features `(B, D)`, any float type, array or CPU tensor."""
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise EvaluationError(f"features of shape {features.shape}, expected (batch, {len(self.mean)})")
        if not np.isfinite(features).all():
            raise EvaluationError("features contain NaN or infinity; the images or the feature network are broken")
        if len(features) == 0:
            return self
        mean = features.mean(axis=0)
        centred = features - mean
        return self._combine(len(features), mean, centred.T @ centred)

    def merge(self, other: FrechetStatistics) -> FrechetStatistics:
        """Adds what another instance (another rank) has gathered."""
        return self._combine(other.count, other.mean, other._scatter)

    def _combine(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> FrechetStatistics:
        total = self.count + count
        if total == 0:
            return self
        delta = mean - self.mean
        self._scatter += scatter + np.outer(delta, delta) * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total
        return self

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance `(D, D)`."""
        if self.count < 2:
            raise EvaluationError(f"a Fréchet distance needs at least 2 images on each side, got {self.count}")
        return self._scatter / (self.count - 1)

    @classmethod
    def from_features(cls, features) -> FrechetStatistics:
        """Statistics of features `(N, D)` held in memory."""
        features = np.asarray(features)
        return cls(features.shape[1]).update(features)

    @classmethod
    def from_adm_npz(cls, path: str | Path) -> FrechetStatistics:
        """Reads `mu` and `sigma` of an ADM reference file (guided-diffusion's `.npz`), whose image count is not in it.

        Raises:
            EvaluationError: If the file cannot be read or lacks the two arrays.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                names = archive.files
                if "mu" not in names or "sigma" not in names:
                    raise EvaluationError(f"{path} has arrays {names}, expected mu and sigma (an ADM reference file)")
                mean, covariance = archive["mu"].astype(np.float64), archive["sigma"].astype(np.float64)
        except (OSError, ValueError) as error:
            if isinstance(error, EvaluationError):
                raise
            raise EvaluationError(f"cannot read reference statistics {path}: {error}") from error
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise EvaluationError(f"{path}: mu {mean.shape} and sigma {covariance.shape} do not belong together")
        statistics = cls(len(mean))
        statistics.count, statistics.mean = 2, mean  # any count: `covariance` divides by count - 1 = 1
        statistics._scatter = covariance
        return statistics


def frechet_distance(first: FrechetStatistics, second: FrechetStatistics) -> float:
    """Squared Fréchet distance of the two Gaussians, the number that is reported as FID."""
    if len(first.mean) != len(second.mean):
        raise EvaluationError(
            f"features of {len(first.mean)} and {len(second.mean)} dimensions cannot be compared; the reference "
            "statistics were made with another feature network"
        )
    covariances = first.covariance, second.covariance
    return _distance(
        first.mean - second.mean,
        np.trace(covariances[0]) + np.trace(covariances[1]),
        _factor_of_covariance(covariances[0]),
        _factor_of_covariance(covariances[1]),
    )


def frechet_distance_of_features(first, second) -> float:
    """The same from features `(N1, D)` and `(N2, D)`; much faster when there are fewer images than features."""
    factors, means, traces = [], [], []
    for features in (first, second):
        features = np.asarray(features, dtype=np.float64)
        if len(features) < 2:
            raise EvaluationError(f"a Fréchet distance needs at least 2 images on each side, got {len(features)}")
        if len(features) > features.shape[1]:
            return frechet_distance(FrechetStatistics.from_features(first), FrechetStatistics.from_features(second))
        means.append(features.mean(axis=0))
        factors.append((features - means[-1]) / np.sqrt(len(features) - 1))
        traces.append(np.square(factors[-1]).sum())
    return _distance(means[0] - means[1], sum(traces), *factors)


def _factor_of_covariance(covariance: np.ndarray) -> np.ndarray:
    """`F (rank, D)` with `F^T F = covariance`; directions without variance are dropped."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return (vectors[:, kept] * np.sqrt(values[kept])).T


def _distance(difference: np.ndarray, traces: float, first_factor: np.ndarray, second_factor: np.ndarray) -> float:
    cross = np.linalg.svd(first_factor @ second_factor.T, compute_uv=False).sum()
    return float(difference @ difference + traces - 2 * cross)
