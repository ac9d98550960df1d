"""Tokens of images on their grid, and how similar they are at each distance on it."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F


class TokenMap:
    """
    Tokens of a batch of images, computed with in float64.

    Args:
        values (`torch.Tensor` of shape `(B, D, h, w)`): A vector for each position.

    Attributes:
        grid (`tuple[int, int]`): Rows and columns.
        unit (`torch.Tensor` of shape `(B, D, h, w)`): The vectors divided by their lengths; zeros stay zeros.
    """

    def __init__(self, values: torch.Tensor):
        self.grid = (values.shape[-2], values.shape[-1])
        self.unit = F.normalize(values.double(), dim=1, eps=1e-12)

    @cached_property
    def pair_counts(self) -> torch.Tensor:
        """Ordered pairs of positions at each Manhattan distance from 0: int64 `(h + w - 1,)`."""
        return self._distances.bincount()

    @cached_property
    def similarity_sums(self) -> torch.Tensor:
        """
        Cosines of all ordered pairs of tokens of an image, added up by the Manhattan distance between them: float64
        `(B, h + w - 1)`, from distance 0, where every token meets itself.
        """
        sums = []
        # One image at a time, for memory and so that no figure depends on the batch size.
        for image in self.unit.flatten(2):
            cosines = image.T @ image
            sums.append(cosines.new_zeros(sum(self.grid) - 1).index_add_(0, self._distances, cosines.flatten()))
        return torch.stack(sums)

    @cached_property
    def _distances(self) -> torch.Tensor:
        """Of all ordered pairs, those of the first position first: int64 `((h * w) ** 2,)`."""
        rows, columns = (torch.arange(side, device=self.unit.device) for side in self.grid)
        positions = torch.cartesian_prod(rows, columns)
        return (positions[:, None] - positions[None]).abs().sum(dim=2).flatten()
