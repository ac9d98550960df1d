"""
Latent shaping: what is done to a latent between encoder and decoder while an autoencoder trains, and losses on it, so
that the latents are easier to generate from. The autoencoder that is saved knows nothing of it.

One way to shape is one file, with one [`LatentShaping`] that works for any autoencoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
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
        losses (`dict[str, torch.Tensor]`): Losses of the latent by name, without weights and without dimensions.
        logged (`dict[str, torch.Tensor]`): For the log, by tag; without dimensions, on the latent's device.
    """

    latent: torch.Tensor
    target: torch.Tensor
    losses: dict[str, torch.Tensor] = field(default_factory=dict)
    logged: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class Decoded:
    """
    A forward pass with all that a loss of the latent is weighed against.

    Args:
        shaped ([`Shaped`]): What was decoded, and losses.
        latent (`torch.Tensor` of shape `(B, c, h, w)`): As the encoder gave it, in the graphs of all losses.
        reconstruction_loss (`torch.Tensor`): Without dimensions.
    """

    shaped: Shaped
    latent: torch.Tensor
    reconstruction_loss: torch.Tensor


class LatentShaping(nn.Module, ABC):
    """One way to shape. Its parameters, if any, are trained with the autoencoder and not saved with it."""

    # Whether [`loss`] takes gradients at the latent, before those of the step.
    weighs_gradients: bool = False

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

    def begin_step(self, passes: Callable[[], Iterable[Decoded]], num_passes: int) -> None:
        """
        Called before the first forward pass of an optimizer step.

        Args:
            passes: Gives the step's forward passes, with a graph that begins at the latent. A shaping whose loss is
                weighed by all images of a step calls it where there are several passes; it costs one more of each.
            num_passes (`int`): How many there are.
        """
        return

    def loss(self, decoded: Decoded) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted loss of a forward pass, to be added to that of the reconstruction, and what is logged of it."""
        return torch.zeros_like(decoded.reconstruction_loss), {}


class ShapingChain(LatentShaping):
    """
    Shapings one after the other; none leaves everything as it is.

    Args:
        shapings (`Sequence[LatentShaping]`): In their order.
    """

    def __init__(self, shapings: Sequence[LatentShaping] = ()):
        super().__init__()
        self.shapings = tuple(shapings)
        self.registered = nn.ModuleList(shapings)
        self.weighs_gradients = any(shaping.weighs_gradients for shaping in shapings)

    @property
    def description(self) -> str:
        return ", ".join(shaping.description for shaping in self.shapings)

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint must agree with to continue a run."""
        return {"latent shaping": self.description} if self.shapings else {}

    def forward(self, shaped: Shaped, generators: Generators | None, step: int) -> Shaped:
        for shaping in self.shapings:
            shaped = shaping(shaped, generators, step)
        return shaped

    def begin_step(self, passes: Callable[[], Iterable[Decoded]], num_passes: int) -> None:
        for shaping in self.shapings:
            shaping.begin_step(passes, num_passes)

    def loss(self, decoded: Decoded) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, logged = super().loss(decoded)
        logged |= decoded.shaped.logged
        logged |= {f"train/loss_{name}": value for name, value in decoded.shaped.losses.items()}
        for shaping in self.shapings:
            term, tags = shaping.loss(decoded)
            loss, logged = loss + term, logged | tags
        return loss, logged
