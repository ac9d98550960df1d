"""Fréchet distance between two sets of features, in float64, exact also when there are fewer images than features.

`d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)` (Heusel et al. 2017, eq. 6). No matrix square root is taken:
from statistics the last term comes from the eigenvalues of a symmetric matrix, and from few images it is the nuclear
norm of `F1 F2^T` with the centred feature matrices `F^T F = S`, which does not lose half of the digits on singular
covariances.
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
    values, vectors = np.linalg.eigh(covariances[0])
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    factor = vectors[:, kept] * np.sqrt(values[kept])
    # S1 S2 has the eigenvalues of F^T S2 F, which is symmetric: an order of magnitude faster, and real by
    # construction.
    eigenvalues = np.linalg.eigvalsh(factor.T @ covariances[1] @ factor)
    traces = np.trace(covariances[0]) + np.trace(covariances[1])
    difference = first.mean - second.mean
    return float(difference @ difference + traces - 2 * np.sqrt(eigenvalues.clip(min=0)).sum())


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
    cross = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    difference = means[0] - means[1]
    return float(difference @ difference + sum(traces) - 2 * cross)
