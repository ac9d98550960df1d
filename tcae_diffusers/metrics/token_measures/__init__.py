"""
Measures of the spatial structure of an autoencoder's tokens. A new one is a file here and a line in
[`TOKEN_MEASURES`]; it is then in every result of `probing`, at every depth, and in comparisons and reports.
"""

from .correlation_decay_slope import CorrelationDecaySlope
from .local_distant_similarity import LocalDistantSimilarity
from .measure import TokenMeasure
from .rms_spatial_contrast import RMSSpatialContrast
from .semantic_region_similarity import SemanticRegionSimilarity
from .token_map import TokenMap

__all__ = ["TOKEN_MEASURES", "TokenMap", "TokenMeasure"]

# In the order of results and reports.
TOKEN_MEASURES: list[TokenMeasure] = [
    LocalDistantSimilarity(),
    CorrelationDecaySlope(),
    SemanticRegionSimilarity(),
    RMSSpatialContrast(),
]
