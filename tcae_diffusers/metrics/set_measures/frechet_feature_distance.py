"""The Fréchet distance of two sets of features: FID, or FD on other features than Inception's."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..confidence import JACKKNIFE
from ..figure import Estimate
from ..frechet import FrechetStatistics, frechet_distance, frechet_distance_of_features
from ..frechet_interval import frechet_interval
from .measure import ComparedReference, SampleFeatures, SetMeasure

STATISTICS_OF_A_FILE = "mu and sigma of the reference file"


class FrechetFeatureDistance(SetMeasure):
    """To the mean and covariance of a reference file where there are some, else to its images; see [`frechet`]."""

    better: ClassVar = {"FID": "lower"}
    is_of_generators = True

    def between(self, samples: np.ndarray, reference: np.ndarray) -> dict[str, Estimate]:
        return {"FID": Estimate(value=frechet_distance_of_features(samples, reference))}

    def compare(self, samples: SampleFeatures, reference: ComparedReference) -> dict[str, Estimate]:
        if reference.statistics is None:
            other = reference.draws[0]
            estimate = super().compare(samples, reference)["FID"]
        else:
            other = reference.statistics
            distance = frechet_distance(FrechetStatistics.from_features(samples.features), other)
            estimate = Estimate(value=distance, reference=STATISTICS_OF_A_FILE)
        return {"FID": estimate.with_interval(frechet_interval(samples.features, other, reference.seed), JACKKNIFE)}
