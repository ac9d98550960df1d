"""Semantic-region self-similarity (SRSS; Singh et al. 2025, iREPA, arXiv 2512.10794, appendix B)."""

from __future__ import annotations

from typing import ClassVar

import torch

from .measure import TokenMeasure
from .token_map import TokenMap


class SemanticRegionSimilarity(TokenMeasure):
    """
    For each token of an object, its mean cosine with others of the object at Manhattan distances up to half the side
    of the grid, minus that with tokens outside it at distances from there on; averaged over the tokens that have both.
    At most 2, and undefined for an image whose object leaves no such token.

    The paper names no radii for it; these are those that it gives for [`LocalDistantSimilarity`] (its released code
    takes the neighbours, and distances from 6). It takes one random object an image, of the masks of SAM 2.
    """

    name = "SRSS"
    better: ClassVar = "higher"
    needs_objects = True

    def why_not(self, grid: tuple[int, int]) -> str | None:
        return None if min(grid) > 1 else "no two tokens are as close as half the side of their grid"

    def __call__(self, tokens: TokenMap) -> torch.Tensor:
        distances, radius = tokens.distances, min(tokens.grid) / 2
        near, distant = (distances > 0) & (distances <= radius), distances >= radius
        values = []
        for cosines, inside in zip(tokens.cosines(), tokens.inside_object.flatten(1), strict=True):
            pairs_within, pairs_across = near & inside, distant & ~inside
            counts = torch.stack([pairs_within.sum(dim=1), pairs_across.sum(dim=1)])
            sums = torch.stack([(cosines * pairs).sum(dim=1) for pairs in (pairs_within, pairs_across)])
            anchors = inside & (counts > 0).all(dim=0)
            # The mean over no token is NaN.
            within, across = (sums / counts)[:, anchors].mean(dim=1)
            values.append(within - across)
        return torch.stack(values)
