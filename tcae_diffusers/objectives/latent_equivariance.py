"""Latents that scale and turn as their images do (EQ-VAE, arXiv 2502.09509)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from ..data.sample_randomness import step_generator
from ..errors import InputError
from .latent_shaping import Generators, LatentShaping, Shaped


class LatentEquivariance(LatentShaping):
    """
    In some steps latents are scaled down and rotated by 90, 180 or 270 degrees before they are decoded, and images
    alike before the reconstruction is compared with them: `L_rec(t(x), D(t(E(x))))` in place of `L_rec(x, D(E(x)))`.

    As in the authors' release, the scale is that of a whole step, since the latents of a batch have one size, and is
    the same in both directions. Here each image has a rotation of its own. Both are resized by an antialiased bilinear
    filter, to whole latent positions.

    Args:
        seed (`int`): Of the run; which steps, and their scales, are a function of it and of the step.
        spatial_ratio (`int`): Pixels per latent position.
        probability (`float`, defaults to 0.5): Fraction of the steps (release: 0.5).
        min_scale (`float`, defaults to 0.25): Smallest side, relative to the whole; 1 only rotates (release: 0.25).

    Raises:
        InputError: a probability outside [0, 1], or a scale outside (0, 1].
    """

    def __init__(self, seed: int, spatial_ratio: int, probability: float = 0.5, min_scale: float = 0.25):
        super().__init__()
        if not 0 <= probability <= 1:
            raise InputError(f"equivariance probability is {probability}; expected 0 to 1")
        if not 0 < min_scale <= 1:
            raise InputError(f"equivariance min_scale is {min_scale}; expected above 0 and at most 1")
        self.seed = seed
        self.spatial_ratio = spatial_ratio
        self.probability = probability
        self.min_scale = min_scale

    @property
    def description(self) -> str:
        return f"equivariance in {self.probability:g} of the steps at scales from {self.min_scale:g}"

    def smallest_side(self, side: int) -> int:
        """Of latents with `side` positions along a side."""
        return math.ceil(self.min_scale * side)

    def scaled_side(self, side: int, step: int) -> int | None:
        """Positions along a side of the latents of a step, which have `side` as the encoder gives them; `None` where
        the step leaves them alone."""
        generator = step_generator(self.seed, step)
        if generator.random() >= self.probability:
            return None
        return int(generator.integers(self.smallest_side(side), side, endpoint=True))

    def forward(self, shaped: Shaped, generators: Generators | None, step: int) -> Shaped:
        """
        Raises:
            InputError: latents that are not square, which a quarter turn would give another size.
        """
        rows, columns = shaped.latent.shape[-2:]
        if rows != columns:
            raise InputError(f"latents of {rows}x{columns} positions cannot be rotated; expected square ones")
        side = None if generators is None else self.scaled_side(rows, step)
        scale = torch.full((), (side or rows) / rows, device=shaped.latent.device)
        logged = {**shaped.logged, "shaping/scale": scale}
        if side is None or generators is None:
            return replace(shaped, logged=logged)
        turns = torch.cat([torch.randint(1, 4, (1,), generator=generator) for generator in generators]).tolist()
        if side == 1:
            # A single position cannot tell how it was turned.
            turns = [0] * len(turns)
        return replace(
            shaped,
            latent=transformed(shaped.latent, side, turns),
            target=transformed(shaped.target, side * self.spatial_ratio, turns),
            logged=logged,
        )


def transformed(maps: torch.Tensor, side: int, turns: list[int]) -> torch.Tensor:
    """Square `maps` `(B, C, H, H)` with sides of `side`, each rotated by as many quarter turns as `turns` says."""
    if side != maps.shape[-1]:
        # Not every device has this filter in half precision.
        maps = F.interpolate(maps.float(), size=(side, side), mode="bilinear", antialias=True)
    return torch.stack([torch.rot90(each, count, (1, 2)) for each, count in zip(maps, turns, strict=True)])
