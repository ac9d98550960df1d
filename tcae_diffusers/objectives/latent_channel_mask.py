"""Latents whose first channels hold the structure of an image and whose last ones its details."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..errors import InputError
from .latent_shaping import Generators, LatentShaping, Shaped


class LatentChannelMask(LatentShaping):
    """
    The decoder gets the first `k` channels of each latent and zeros for the others, `k` drawn uniformly for each image
    (structured latent space of DC-AE 1.5, arXiv 2508.00413).

    Args:
        min_channels (`int`): Smallest `k`; the largest is all channels.
        num_channels (`int`): Of the latent.

    Raises:
        InputError: no channel, or more than there are.
    """

    def __init__(self, min_channels: int, num_channels: int):
        super().__init__()
        if not 1 <= min_channels <= num_channels:
            raise InputError(
                f"min_channels is {min_channels}, but the latent has {num_channels} channels; expected 1 to"
                f" {num_channels}"
            )
        self.min_channels = min_channels
        self.num_channels = num_channels

    @property
    def description(self) -> str:
        return f"the first {self.min_channels} to {self.num_channels} channels"

    def forward(self, shaped: Shaped, generators: Generators | None, step: int) -> Shaped:
        if generators is None:
            return shaped
        bounds = (self.min_channels, self.num_channels + 1)
        kept = torch.stack([torch.randint(*bounds, (), generator=generator) for generator in generators])
        mask = (torch.arange(self.num_channels) < kept[:, None]).to(shaped.latent, non_blocking=True)
        return replace(
            shaped,
            latent=shaped.latent * mask[:, :, None, None],
            logged={**shaped.logged, "shaping/channels": mask.float().mean()},
        )
