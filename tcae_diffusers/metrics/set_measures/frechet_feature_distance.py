"""The Fréchet distance of two sets of features: FID, or FD on other features than Inception's."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from ..confidence import JACKKNIFE
from ..figure import Estimate
from ..frechet import FrechetStatistics, headline_distance
from ..frechet_interval import frechet_interval
from .measure import ComparedReference, SampleFeatures, SetMeasure

STATISTICS_OF_A_FILE = "mu and sigma of the reference file"


class FrechetFeatureDistance(SetMeasure):
    """To the mean and covariance of a reference file where there are some, else to its images; see [`frechet`]."""

    better: ClassVar = {"FID": "lower"}
    is_of_generators = True

    def between(self, samples: np.ndarray, reference: np.ndarray) -> dict[str, Estimate]:
        return {"FID": headline_distance(samples, reference)}

    def compare(self, samples: SampleFeatures, reference: ComparedReference) -> dict[str, Estimate]:
        other: np.ndarray | FrechetStatistics
        if reference.statistics is None:
            other = reference.draws[0]
            estimate = super().compare(samples, reference)["FID"]
        else:
            other = reference.statistics
            estimate = replace(headline_distance(samples.features, other), reference=STATISTICS_OF_A_FILE)
        return {"FID": estimate.with_interval(frechet_interval(samples.features, other, reference.seed), JACKKNIFE)}
