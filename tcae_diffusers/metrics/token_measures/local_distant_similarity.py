"""Local versus distant similarity (LDS; Singh et al. 2025, iREPA, arXiv 2512.10794, appendix B)."""

from __future__ import annotations

from typing import ClassVar

import torch

from .measure import TokenMeasure
from .token_map import TokenMap


class LocalDistantSimilarity(TokenMeasure):
    """
    The mean cosine of two tokens at Manhattan distances below half the side of the grid, minus that at distances from
    there on: 0 where a token says nothing about its surroundings, at most 2.

    These are the paper's radii, both H/2 (of the shorter side, if the grid is oblong). Taken literally, its formula
    pairs each token with itself too, which would favour small grids; here, as in its released code, it does not. That
    code takes other radii: the four neighbours, and distances from 6.
    """

    name = "LDS"
    better: ClassVar = "higher"

    def why_not(self, grid: tuple[int, int]) -> str | None:
        return None if min(grid) > 2 else "no two tokens are closer than half the side of their grid"

    def __call__(self, tokens: TokenMap) -> torch.Tensor:
        counts, radius = tokens.pair_counts, min(tokens.grid) / 2
        distances = torch.arange(len(counts), device=counts.device)
        local, distant = (distances > 0) & (distances < radius), distances >= radius
        means = [tokens.similarity_sums[:, chosen].sum(dim=1) / counts[chosen].sum() for chosen in (local, distant)]
        return means[0] - means[1]
