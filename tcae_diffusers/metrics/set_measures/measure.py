"""What a measure of a set of images is, and what it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..figure import Better, Estimate
from ..frechet import FrechetStatistics


@dataclass(frozen=True)
class SampleFeatures:
    """Features `(N, D)` of the images that are judged and, where the network gives them, class logits `(N, C)`."""

    features: np.ndarray
    logits: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class ComparedReference:
    """
    The real images of one comparison.

    Args:
        features (`np.ndarray`, *optional*): All of them, `(M, D)`; `None` if there are only statistics.
        draws (`Sequence[np.ndarray]`): The random parts to compare with, of one size, or all images once; empty
            without features.
        statistics ([`FrechetStatistics`], *optional*): Mean and covariance from a file, for measures that need no
            more.
        seed (`int`): Of whatever a measure draws.
    """

    features: np.ndarray | None
    draws: Sequence[np.ndarray]
    statistics: FrechetStatistics | None = None
    seed: int = 0


class SetMeasure:
    """
    A measure of a set of images. A subclass overrides [`between`], or [`compare`], or both.

    Attributes:
        better (`Mapping[str, str]`): The figures that it gives, each with `"higher"` or `"lower"`; measures that come
            out of one computation belong together. The names are those that [`names.metric_name`] takes.
        is_of_generators (`bool`): Whether names of figures get a `g`, as in gFID.
        has_reference (`bool`): Whether it compares with real images at all.
    """

    better: ClassVar[Mapping[str, Better]]
    is_of_generators: ClassVar[bool] = False
    has_reference: ClassVar[bool] = True

    def between(self, samples: np.ndarray, reference: np.ndarray) -> dict[str, Estimate]:
        """
        Estimates between features `(N, D)` and `(M, D)`, one for each name; none where there are too few images. Real
        images are compared with real ones by this too, which gives the floor.
        """
        return {}

    def compare(self, samples: SampleFeatures, reference: ComparedReference) -> dict[str, Estimate]:
        """Estimates of a sample set: unless overridden, means of [`between`] over the draws from the reference."""
        return mean_over_draws([self.between(samples.features, part) for part in reference.draws])


def mean_over_draws(repeats: Sequence[dict[str, Estimate]]) -> dict[str, Estimate]:
    """Mean and standard deviation over repeated draws; the rest is that of the first draw."""
    means = {}
    for name, first in repeats[0].items() if repeats else ():
        values = np.array([repeat[name].value for repeat in repeats])
        spread = float(values.std(ddof=1)) if len(values) > 1 else None
        means[name] = replace(first, value=float(values.mean()), std_over_draws=spread)
    return means
