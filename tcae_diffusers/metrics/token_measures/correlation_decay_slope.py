"""Correlation decay slope (CDS; Singh et al. 2025, iREPA, arXiv 2512.10794, appendix B)."""

from __future__ import annotations

from typing import ClassVar

import torch

from .measure import TokenMeasure
from .token_map import TokenMap

# The paper names no number; this is the default of its released code, for grids of 16x16.
LARGEST_DISTANCE = 8


class CorrelationDecaySlope(TokenMeasure):
    """
    How much the mean cosine of two tokens falls with each step between them: minus the slope of the least-squares line
    through its means at the Manhattan distances from 1 to 8, or to the largest of a small grid. Every distance counts
    alike, however many pairs are that far apart.
    """

    name = "CDS"
    better: ClassVar = "higher"

    def why_not(self, grid: tuple[int, int]) -> str | None:
        return None if sum(grid) > 3 else "a slope needs tokens at two distances"

    def __call__(self, tokens: TokenMap) -> torch.Tensor:
        means = (tokens.similarity_sums / tokens.pair_counts)[:, 1 : LARGEST_DISTANCE + 1]
        steps = torch.arange(means.shape[1], dtype=means.dtype, device=means.device)
        centred = steps - steps.mean()
        return -(means @ centred) / centred.square().sum()
