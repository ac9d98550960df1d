"""What a measure of the tokens of single images is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from ..figure import Better
from .token_map import TokenMap


class TokenMeasure(ABC):
    """
    A measure of the tokens of an image and of where they lie.

    Attributes:
        name (`str`): What its figures are called, before the depth and the grid.
        better (`str`): `"higher"` or `"lower"`.
        needs_objects (`bool`): Whether it has to know where an object of the image lies.
    """

    name: ClassVar[str]
    better: ClassVar[Better]
    needs_objects: ClassVar[bool] = False

    def why_not(self, grid: tuple[int, int]) -> str | None:
        """Why it is undefined on a grid of that many rows and columns; `None` where it is defined."""
        return None

    @abstractmethod
    def __call__(self, tokens: TokenMap) -> torch.Tensor:
        """Values `(B,)` in float64, NaN for an image that it is undefined for."""
