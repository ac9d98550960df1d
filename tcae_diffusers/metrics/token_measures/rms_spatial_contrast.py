"""RMS spatial contrast (RMSC; Singh et al. 2025, iREPA, arXiv 2512.10794, appendix B)."""

from __future__ import annotations

from typing import ClassVar

import torch

from .measure import TokenMeasure
from .token_map import TokenMap


class RMSSpatialContrast(TokenMeasure):
    """
    Root of the mean squared distance of an image's unit tokens from their mean: 0 where all point one way, 1 where
    they cancel. Of these measures it alone does not know where tokens lie.
    """

    name = "RMSC"
    better: ClassVar = "higher"

    def __call__(self, tokens: TokenMap) -> torch.Tensor:
        centred = tokens.unit - tokens.unit.mean(dim=(2, 3), keepdim=True)
        return centred.square().sum(dim=1).mean(dim=(1, 2)).sqrt()
