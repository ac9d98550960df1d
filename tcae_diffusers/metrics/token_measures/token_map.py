"""Tokens of images on their grid, and how similar they are at each distance on it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
import torch.nn.functional as F


class TokenMap:
    """
    Tokens of a batch of images, computed with in float64.

    Args:
        values (`torch.Tensor` of shape `(B, D, h, w)`): A vector for each position.
        objects (`torch.Tensor` of shape `(B, H, W)`, *optional*): Pixels of an object in each image, as bool.

    Attributes:
        grid (`tuple[int, int]`): Rows and columns.
        unit (`torch.Tensor` of shape `(B, D, h, w)`): The vectors divided by their lengths; zeros stay zeros.
    """

    def __init__(self, values: torch.Tensor, objects: torch.Tensor | None = None):
        self.grid = (values.shape[-2], values.shape[-1])
        self.unit = F.normalize(values.double(), dim=1, eps=1e-12)
        self._objects = objects

    @cached_property
    def inside_object(self) -> torch.Tensor:
        """Tokens at least half of whose pixels are the object's: bool `(B, h, w)`."""
        if self._objects is None:
            raise ValueError("nothing says where the objects are")
        covered = F.adaptive_avg_pool2d(self._objects.to(self.unit.device, torch.float64)[:, None], self.grid)[:, 0]
        return covered >= 0.5

    def cosines(self) -> Iterator[torch.Tensor]:
        """
        Of all pairs of tokens of each image: float64 `(h * w, h * w)`. One image at a time, for memory and so that no
        figure depends on the batch size.
        """
        return (image.T @ image for image in self.unit.flatten(2))

    @cached_property
    def pair_counts(self) -> torch.Tensor:
        """Ordered pairs of positions at each Manhattan distance from 0: int64 `(h + w - 1,)`."""
        return self.distances.flatten().bincount()

    @cached_property
    def similarity_sums(self) -> torch.Tensor:
        """
        Cosines of all ordered pairs of tokens of an image, added up by the Manhattan distance between them: float64
        `(B, h + w - 1)`, from distance 0, where every token meets itself.
        """
        distances = self.distances.flatten()
        return torch.stack(
            [
                cosines.new_zeros(sum(self.grid) - 1).index_add_(0, distances, cosines.flatten())
                for cosines in self.cosines()
            ]
        )

    @cached_property
    def distances(self) -> torch.Tensor:
        """Manhattan distances of all pairs of positions: int64 `(h * w, h * w)`."""
        rows, columns = (torch.arange(side, device=self.unit.device) for side in self.grid)
        positions = torch.cartesian_prod(rows, columns)
        return (positions[:, None] - positions[None]).abs().sum(dim=2)
