"""Real images to compare with, and the figures that real images themselves get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..data.images.center_crop import height_and_width
from ..data.images.image_sets import ImageSet, NpzImages, is_archive, open_image_set
from ..data.numpy_archive import open_npz
from ..errors import InputError
from ..files import sha256_of_file
from .feature_cache import features_of
from .features import FeatureNetwork
from .figure import Estimate
from .frechet import FrechetStatistics
from .frechet_interval import leave_out_distances
from .names import INCEPTION
from .set_measures import SET_MEASURES, ComparedReference, SampleFeatures
from .set_measures.measure import mean_over_draws
from .settings import SMALLEST_SET

# Random draws over which figures are averaged.
_DRAWS = 3


class Reference:
    """Real images as features.

    Args:
        features (`np.ndarray`): `(M, D)`, or `None` if there are only statistics.
        statistics ([`FrechetStatistics`], *optional*): Mean and covariance of an ADM file, used for the FID instead of
            the features.
        seed (`int`): Of the random draws.
    """

    def __init__(self, features: np.ndarray | None, statistics: FrechetStatistics | None = None, seed: int = 0):
        self.features, self.statistics, self.seed = features, statistics, seed
        self._floors: dict[tuple[int, int], dict[str, Estimate]] = {}

    def floor(self, samples: int, used: int | None) -> tuple[tuple[int, int], dict[str, Estimate]]:
        """
        Estimates between disjoint random parts of the reference, as large as the sets that are compared or, where
        there are not as many images, as they can be.

        Args:
            samples (`int`): Images of the sample set, for which the first part stands.
            used (`int`, *optional*): Reference images that it is compared with.

        Returns:
            `((images of the first part, of the second), {measure: estimate})`.
        """
        if self.features is None or used is None or len(self.features) < SMALLEST_SET:
            return (0, 0), {}
        first = min(samples, len(self.features) // 2)
        sizes = first, min(used, len(self.features) - first)
        if sizes not in self._floors:
            draws = []
            for repeat in range(_DRAWS):
                order = np.random.default_rng([self.seed, repeat, 1]).permutation(len(self.features))
                parts = self.features[order[:first]], self.features[order[first : sum(sizes)]]
                draws.append({name: value for each in SET_MEASURES for name, value in each.between(*parts).items()})
            self._floors[sizes] = mean_over_draws(draws)
        return sizes, self._floors[sizes]

    def compare(self, samples: SampleFeatures, count: int | None) -> tuple[int | None, dict[str, Estimate]]:
        """
        Every measure of [`SET_MEASURES`] that there is for `samples` against `count` reference images (`None`: all).

        Returns:
            `(images used, {measure: estimate})`; no images where there are only statistics.
        """
        draws = self._draws(count)
        compared = ComparedReference(self.features, draws, self.statistics, self.seed)
        estimates: dict[str, Estimate] = {}
        for measure in SET_MEASURES:
            estimates |= measure.compare(samples, compared)
        return len(draws[0]) if draws else None, estimates

    def leave_out_distances(self, samples: np.ndarray, count: int | None) -> list[float] | None:
        """Of features `(N, D)` to `count` reference images, see [`frechet_interval.leave_out_distances`]."""
        other = self._draws(count)[0] if self.statistics is None else self.statistics
        return leave_out_distances(samples, other, self.seed)

    def _draws(self, count: int | None) -> list[np.ndarray]:
        if self.features is None:
            return []
        if count is None or count >= len(self.features):
            return [self.features]
        orders = [np.random.default_rng([self.seed, repeat, 2]) for repeat in range(_DRAWS)]
        return [self.features[order.choice(len(self.features), count, replace=False)] for order in orders]


def open_reference_content(
    spec: str, size: int | tuple[int, int] | None = None, network: FeatureNetwork | None = None
) -> tuple[ImageSet | None, FrechetStatistics | None]:
    """Images and Fréchet statistics of a data source, a folder, or an ADM `.npz`; one of the two may be missing.

    Args:
        spec: See [`open_image_set`].
        size: Side, or height and width, to which images are cropped and resized, wherever they come from.
        network: Whose features will be compared, if any will.

    Raises:
        InputError: If `spec` cannot be read or holds neither, or has statistics of images of another size. With a
            `network` also if there are too few images to compare, or statistics of Inception for another network.
    """
    images, statistics = _images_and_statistics(spec, size)
    if network is not None and images is not None and len(images) < SMALLEST_SET:
        raise InputError(f"reference {spec} has {len(images)} images; at least {SMALLEST_SET} are needed")
    if network is not None and statistics is not None and network.name != INCEPTION:
        raise InputError(
            f"{spec} holds Inception statistics; compare with --extractor {INCEPTION}, not {network.name}"
        )
    return images, statistics


def _images_and_statistics(
    spec: str, size: int | tuple[int, int] | None
) -> tuple[ImageSet | None, FrechetStatistics | None]:
    if not is_archive(spec):
        return open_image_set(spec, size), None
    with open_npz(spec, "reference") as archive:
        names = archive.files
    if not {"mu", "arr_0"} & set(names):
        raise InputError(f"{spec} has arrays {names}, expected mu and sigma, or images in arr_0")
    statistics = FrechetStatistics.from_adm_npz(spec) if "mu" in names else None
    images = NpzImages(spec, size) if "arr_0" in names else None
    if statistics is not None and images is not None and size is not None:
        found, wanted = (f"{width}x{height}" for height, width in (images.original_size, height_and_width(size)))
        if found != wanted:
            raise InputError(
                f"{spec} has statistics of {found} images, and the samples are {wanted}; statistics cannot be "
                "resized, so use those of images of the samples' size"
            )
    return images, statistics


def open_reference(
    spec: str,
    size: int | tuple[int, int],
    network: FeatureNetwork,
    batch_size: int = 32,
    cache_folder: Path | None = None,
    seed: int = 0,
) -> tuple[Reference, dict[str, Any]]:
    """Reads a reference: a data source, a folder, or an ADM `.npz` with images, statistics, or both.

    Args:
        size: Side, or height and width, of the samples, to which images are cropped and resized.

    Returns:
        The [`Reference`] and its description for the result file.

    Raises:
        InputError: As [`open_reference_content`].
    """
    images, statistics = open_reference_content(spec, size, network)
    features = None if images is None else features_of(images, network, batch_size, cache_folder)["features"]
    description = {
        "spec": spec,
        "images": 0 if images is None else len(images),
        "statistics": statistics is not None,
        "preprocessing": None if images is None else "centre crop, resized to {1}x{0}".format(*height_and_width(size)),
        "fingerprint": sha256_of_file(spec) if images is None else images.fingerprint,
        "attribution": None if images is None else images.attribution,
    }
    return Reference(features, statistics, seed), description
