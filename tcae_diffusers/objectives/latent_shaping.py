"""
Latent shaping: what is done to a latent between encoder and decoder while an autoencoder trains, and losses on it, so
that the latents are easier to generate from. The autoencoder that is saved knows nothing of it.

One way to shape is one file, with one [`LatentShaping`] that works for any autoencoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

Generators = list[torch.Generator]


@dataclass
class Shaped:
    """
    Args:
        latent (`torch.Tensor` of shape `(B, c, h', w')`): What the decoder gets.
        target (`torch.Tensor` of shape `(B, 3, H', W')`): What it is to make of it, in [-1, 1].
        logged (`dict[str, torch.Tensor]`): For the log, by tag; without dimensions, on the latent's device.
    """

    latent: torch.Tensor
    target: torch.Tensor
    logged: dict[str, torch.Tensor] = field(default_factory=dict)


class LatentShaping(nn.Module, ABC):
    """One way to shape. Its parameters, if any, are trained with the autoencoder and not saved with it."""

    @property
    @abstractmethod
    def description(self) -> str:
        """All of its settings in a few words, for reports; checkpoints of a run with another one are refused."""

    @abstractmethod
    def forward(self, shaped: Shaped, generators: Generators | None, step: int) -> Shaped:
        """
        Args:
            shaped ([`Shaped`]): The latent and the images as the encoder, or the shaping before this one, left them.
            generators (`list[torch.Generator]`, *optional*):
                One per image, on the CPU, each a function of (seed, step, slot). Random numbers of an image come from
                these, so that they do not depend on how a step is divided over ranks and forward passes.
            step (`int`): Completed optimizer steps.
        """


class ShapingChain(LatentShaping):
    """
    Shapings one after the other; none leaves everything as it is.

    Args:
        shapings (`Sequence[LatentShaping]`): In their order.
    """

    def __init__(self, shapings: Sequence[LatentShaping] = ()):
        super().__init__()
        self.shapings = nn.ModuleList(shapings)
        self._description = ", ".join(shaping.description for shaping in shapings)

    @property
    def description(self) -> str:
        return self._description

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint must agree with to continue a run."""
        return {"latent shaping": self.description} if self.shapings else {}

    def forward(self, shaped: Shaped, generators: Generators | None, step: int) -> Shaped:
        for shaping in self.shapings:
            shaped = shaping(shaped, generators, step)
        return shaped
