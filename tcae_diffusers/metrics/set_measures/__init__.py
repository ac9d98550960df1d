"""
Measures between a set of images and real ones, on their features. A new one is a file here and a line in
[`SET_MEASURES`]; it is then in every result, its floor beside it, and in the report.
"""

from .density_coverage import DensityAndCoverage
from .frechet_extrapolation import FrechetAtInfinity
from .frechet_feature_distance import FrechetFeatureDistance
from .inception_score import InceptionScore
from .kernel_distance import KernelDistance
from .measure import ComparedReference, SampleFeatures, SetMeasure
from .monge_distance import MongeDistance
from .precision_recall import PrecisionAndRecall

__all__ = ["SET_MEASURES", "ComparedReference", "SampleFeatures", "SetMeasure"]

# In the order of results and reports.
SET_MEASURES: list[SetMeasure] = [
    FrechetFeatureDistance(),
    KernelDistance(),
    MongeDistance(),
    PrecisionAndRecall(),
    DensityAndCoverage(),
    FrechetAtInfinity(),
    InceptionScore(),
]
